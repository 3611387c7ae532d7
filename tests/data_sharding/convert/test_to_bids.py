"""Files of another layout become datasets that the builder reads: the same values, names, places, labels and clocks."""

import os
from pathlib import Path

import numpy as np
import pytest

from mcsp.commands.main import launcher
from mcsp.config import FmriConfig
from mcsp.data_sharding.bids.find import find_recordings
from mcsp.data_sharding.bids.ref import Site
from mcsp.data_sharding.bids.tables import read_json, read_tsv
from mcsp.data_sharding.bids.write import write_eeg, write_tsv
from mcsp.data_sharding.clean.fmri import read_fmri
from mcsp.data_sharding.convert.to_bids import find_atlas, plan_sites, read_manifest, write_site
from tests.data_sharding.conftest import CHANNELS, PARCELS, PLACES, bold, eeg_uv

main = launcher("write-bids")


@pytest.fixture
def laboratory(tmp_path: Path) -> Path:
    """Two sessions of one person and one of another, of two sites, in a layout of its own; tables without a header."""
    folder = tmp_path / "laboratory"
    folder.mkdir()
    write_tsv(folder / "atlas_dseg.tsv", ("index", "name", "x", "y", "z"), [
        (i, name, *xyz) for i, (name, xyz) in enumerate(zip(PARCELS, PLACES, strict=True), 1)
    ])  # fmt: skip
    lines = []
    for seed, (subject, session, site) in enumerate([("A-1", "late", "x"), ("A-1", "early", "x"), ("B", "", "y")]):
        np.savetxt(folder / f"{seed}.1D", bold(60, seed).T, fmt="%.6f")
        lines.append((f"{seed}.1D", subject, session, site, 1.5, "", {"A-1": "case", "B": "control"}[subject]))
    edf = write_eeg(tmp_path / "raw", "B", "rest", eeg_uv(20), CHANNELS, {"SamplingFrequency": 250})
    edf.rename(folder / "b.edf")
    lines.append(("b.edf", "B", "", "y", "", 250, "control"))
    write_tsv(folder / "files.tsv", ("path", "subject", "session", "site", "t_r", "sampling_rate", "diagnosis"), lines)
    return folder


def options(laboratory: Path, out: Path) -> list[str]:
    return [str(laboratory / "files.tsv"), str(out), "--atlas", str(laboratory / "atlas_dseg.tsv")]


def test_sites_are_written_once_and_read_by_the_builder(
    laboratory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bids"
    assert main([*options(laboratory, out), "--dry-run"]) == 0
    assert not out.exists() and "would hold 2 recordings of 1 people, columns diagnosis" in capsys.readouterr().out
    assert main(options(laboratory, out)) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{out / 'x'}: written, 2 recordings of 1 people, columns diagnosis" and len(told) == 2
    assert main(options(laboratory, out)) == 0
    assert all("there already" in line for line in capsys.readouterr().out.splitlines())

    assert read_tsv(out / "x" / "participants.tsv") == [{"participant_id": "sub-A1", "diagnosis": "case"}]
    tables = sorted(out.glob("x/sub-A1/ses-*/func/*_timeseries.tsv"))
    assert [t.name for t in tables] == [
        f"sub-A1_ses-{s}_task-rest_seg-atlasdseg_stat-mean_timeseries.tsv" for s in ("early", "late")
    ]
    for table, seed in zip(tables, (1, 0), strict=True):
        assert table.read_text().partition("\n")[0].split("\t") == PARCELS
        np.testing.assert_allclose(np.loadtxt(table, skiprows=1), np.round(bold(60, seed).T, 6), rtol=1e-8)
        assert read_json(table.with_suffix(".json"))["RepetitionTime"] == 1.5
    refs = find_recordings(Site("x", out / "x", False, None))
    assert [ref.entities["session"] for ref in refs] == ["early", "late"]
    recording = read_fmri(refs[0], FmriConfig(detrend=False), min_seconds=30)
    assert recording.channels == PARCELS and recording.sfreq == 1 / 1.5
    np.testing.assert_array_equal(recording.positions_C3, PLACES)
    mean_P = bold(60, 1).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(recording.x_TC.T, 100 * (bold(60, 1) / mean_P - 1), atol=1e-3)
    eeg = out / "y/sub-B/eeg/sub-B_task-rest_eeg.edf"
    assert eeg.read_bytes() == (laboratory / "b.edf").read_bytes()
    assert read_json(eeg.with_suffix(".json"))["SamplingFrequency"] == 250
    assert read_json(eeg.with_suffix(".json"))["PowerLineFrequency"] == "n/a"


def test_what_cannot_be_used_is_told_before_anything_is_written(
    laboratory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bids"
    assert main([*options(laboratory, out)[:2], "--atlas", "noSuchAtlas"]) == 2
    assert "expected a file or a name like" in capsys.readouterr().err
    assert main(options(laboratory, out)[:2]) == 2
    assert capsys.readouterr().err.count("no names of parcels, expected an atlas") == 3
    (laboratory / "0.1D").write_text("1 2\n3 4\n")
    assert main(options(laboratory, out)) == 2
    assert "error: x: 0.1D: 2 columns, expected the table's 3 parcels" in capsys.readouterr().err
    text = (laboratory / "files.tsv").read_text().replace("control", "case", 1)
    (laboratory / "files.tsv").write_text(text)
    assert main(options(laboratory, out)) == 2
    assert "site y, subject B: diagnosis is 'case' and 'control', expected one value" in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_of_somebody_else_is_not_replaced(laboratory: Path, tmp_path: Path) -> None:
    (tmp_path / "bids/x").mkdir(parents=True)
    (tmp_path / "bids/x/thesis.txt").write_text("years of work")
    assert main(options(laboratory, tmp_path / "bids")) == 2
    assert (tmp_path / "bids/x/thesis.txt").read_text() == "years of work"


def test_a_change_of_a_table_or_of_the_atlas_makes_the_dataset_again(laboratory: Path, tmp_path: Path) -> None:
    """Also where a table is as long as before."""
    out = tmp_path / "bids"
    plan, other = plan_sites(read_manifest(laboratory / "files.tsv"))
    atlas = find_atlas(str(laboratory / "atlas_dseg.tsv"))
    assert write_site(plan, out, atlas) and not write_site(plan, out, atlas)
    table = laboratory / "1.1D"
    first = table.read_text()
    size, stamp = table.stat().st_size, table.stat().st_mtime_ns
    table.write_text(first.replace("1", "2"))
    os.utime(table, ns=(stamp + 10**9, stamp + 10**9))
    assert table.stat().st_size == size
    assert write_site(plan, out, atlas) and not write_site(plan, out, atlas)
    rows = [(i, name, x + 1, y, z) for i, (name, (x, y, z)) in enumerate(zip(PARCELS, PLACES, strict=True), 1)]
    write_tsv(laboratory / "atlas_dseg.tsv", ("index", "name", "x", "y", "z"), rows)
    moved = find_atlas(str(laboratory / "atlas_dseg.tsv"))
    assert write_site(plan, out, moved) and not write_site(plan, out, moved)
    assert write_site(other, out, moved), "each site has its own"


def test_people_are_sorted_and_images_keep_how_they_are_packed(tmp_path: Path) -> None:
    header = ("path", "subject", "t_r", "space", "sex")
    rows = [(f"{s}.nii{gz}", s, 2.0, "MNI152NLin6Asym", "F") for s, gz in (("z", ""), ("a", ".gz"))]
    for name, *_ in rows:
        (tmp_path / name).write_bytes(name.encode())
    write_tsv(tmp_path / "files.tsv", header, rows)
    [plan] = plan_sites(read_manifest(tmp_path / "files.tsv"))
    assert write_site(plan, tmp_path / "bids", None)
    root = tmp_path / "bids" / plan.name
    assert [row["participant_id"] for row in read_tsv(root / "participants.tsv")] == ["sub-a", "sub-z"]
    stem = "task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii"
    images = {path.name: path.read_text() for path in root.rglob("*_bold.nii*")}
    assert images == {f"sub-z_{stem}": "z.nii", f"sub-a_{stem}.gz": "a.nii.gz"}
