"""Files in any layout become BIDS derivatives, as a manifest says, and a corpus is built of them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mcsp.commands.main import launcher
from mcsp.config import FmriConfig
from mcsp.data_sharding.bids.find import find_recordings
from mcsp.data_sharding.bids.ref import Site
from mcsp.data_sharding.bids.write import write_tsv
from mcsp.data_sharding.clean.fmri import detrend, read_fmri
from mcsp.schema import SCALE_FREE

main = launcher("write-bids")
PARCELS, VOLUMES = 12, 40


def series_TP(seed: int) -> np.ndarray:
    return 10 * np.random.default_rng(seed).standard_normal((VOLUMES, PARCELS)).astype(np.float32)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Series as C-PAC, nilearn and pandas leave them, a table of places, and the manifest."""
    folder = tmp_path / "files"
    folder.mkdir()
    header = "\t".join(f"#{i}" for i in range(1, PARCELS + 1))
    np.savetxt(folder / "UM_1_0050272_cc.1D", series_TP(1), fmt="%.8g", delimiter="\t", header=header, comments="")
    np.save(folder / "b.npy", series_TP(2))
    np.savetxt(folder / "c.csv", series_TP(3), fmt="%.8g", delimiter=",")
    names = [f"P_{i}" for i in range(1, PARCELS + 1)]
    pd.DataFrame(series_TP(4), columns=names[::-1]).to_csv(folder / "d.tsv", sep="\t", index=False)
    places = np.random.default_rng(9).uniform(-60, 60, (PARCELS, 3)).round(1)
    write_tsv(
        tmp_path / "atlas.tsv",
        ("index", "name", "x", "y", "z"),
        [(i, n, *p) for i, (n, p) in enumerate(zip(names, places, strict=True), 1)],
    )
    rows = [
        ("files/UM_1_0050272_cc.1D", "0050272", "", "UM_1", "2.0", "case", "31.5"),
        ("files/b.npy", "b_2", "1", "UM_1", "2", "control", "n/a"),
        ("files/c.csv", "b_2", "2", "UM_1", "2", "control", "n/a"),
        ("files/d.tsv", "sub-9", "", "Yale", "1.5", "case", "20"),
    ]  # fmt: skip
    write_tsv(tmp_path / "manifest.tsv", ("path", "subject", "session", "site", "t_r", "diagnosis", "age"), rows)
    return tmp_path


def test_a_manifest_becomes_datasets_whose_values_and_places_are_those_of_the_files(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, arguments = (
        files / "bids",
        [str(files / "manifest.tsv"), str(files / "bids"), "--atlas", str(files / "atlas.tsv")],
    )
    assert main([*arguments, "--dry-run"]) == 0
    assert "UM_1: would hold 3 recordings of 2 people, columns age, diagnosis" in capsys.readouterr().out
    assert not out.exists()
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert "there already" in capsys.readouterr().out
    people = pd.read_csv(out / "UM_1/participants.tsv", sep="\t", dtype=str, keep_default_na=False)
    assert people.to_dict("list") == {
        "participant_id": ["sub-0050272", "sub-b2"], "age": ["31.5", "n/a"], "diagnosis": ["case", "control"]
    }  # fmt: skip
    description = json.loads((out / "Yale/dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["GeneratedBy"][0]["Name"] == "mcsp write_bids"
    seeds = {"sub-0050272": 1, "sub-b2_ses-1": 2, "sub-b2_ses-2": 3, "sub-9": 4}
    atlas = pd.read_csv(files / "atlas.tsv", sep="\t")
    found = 0
    for site, t_r in (("UM_1", 2.0), ("Yale", 1.5)):
        for ref in find_recordings(Site(site, out / site, False, None)):
            recording = read_fmri(ref, FmriConfig(), 30)
            x_TP = series_TP(seeds[ref.path.name.partition("_task")[0]])
            x_TP = x_TP[:, ::-1] if site == "Yale" else x_TP  # d.tsv has its columns in another order
            assert recording.unit == SCALE_FREE and recording.sfreq == 1 / t_r
            assert recording.channels == atlas["name"].tolist()
            np.testing.assert_allclose(recording.positions_C3, atlas[["x", "y", "z"]])
            scaled_TP = recording.x_TC * recording.quality["robust_scale"]
            np.testing.assert_allclose(scaled_TP, detrend(x_TP.astype(float)), rtol=1e-4, atol=1e-4)
            found += 1
    assert found == 4


def test_tables_of_another_atlas_are_told(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(files / "manifest.tsv"), str(files / "out"), "--atlas", "Power2011", "--dry-run"]) == 2
    assert "UM_1: UM_1_0050272_cc.1D: " in capsys.readouterr().err
    assert not (files / "out").exists()
