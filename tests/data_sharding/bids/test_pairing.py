"""The clock of simultaneous recordings, by the marker of the first volume, and what else a run has elsewhere."""

import math
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from mcsp.data_sharding.bids.find import find_recordings
from mcsp.data_sharding.bids.ref import Site, acquisition_time, raw_roots, repetition_time_of_run
from mcsp.data_sharding.bids.write import write_json, write_tsv
from mcsp.data_sharding.build.samples import marked_times

MARKER = "R128"


def site(root: Path, runs: int = 2) -> Site:
    for run in range(1, runs + 1):
        for name in (f"eeg/sub-1_task-rest_run-{run}_eeg.edf", f"func/sub-1_task-rest_run-{run}_seg-S_timeseries.tsv"):
            (root / "sub-1" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "sub-1" / name).touch()
    return Site("s", root, False, None)


def events(root: Path, run: int, rows: list[tuple[object, object, str]]) -> None:
    write_tsv(root / f"sub-1/eeg/sub-1_task-rest_run-{run}_events.tsv", ("onset", "duration", "value"), rows)


def times(root: Path) -> list[float] | None:
    refs = find_recordings(site(root))
    return marked_times([(ref, 300.0 if ref.modality == "eeg" else 280.0) for ref in refs], MARKER)


def test_the_first_volume_lies_at_its_marker_and_runs_never_overlap(tmp_path: Path) -> None:
    site(tmp_path)
    events(tmp_path, 1, [(14.345, 0, MARKER), (1.0, 0, "S1"), (12.345, 0, MARKER)])  # in no order
    events(tmp_path, 2, [(40.5, 0, MARKER)])
    refs = find_recordings(site(tmp_path))
    found = times(tmp_path)
    assert found is not None
    start = {(ref.entities["run"], ref.modality): time for ref, time in zip(refs, found, strict=True)}
    assert start["1", "fmri"] - start["1", "eeg"] == 12.345
    assert math.isclose(start["2", "fmri"] - start["2", "eeg"], 40.5)
    assert start["1", "eeg"] == 0 and start["2", "eeg"] == 300 + 3600, "an hour after the end of the first run"


def test_a_run_without_a_marker_has_no_time(tmp_path: Path) -> None:
    site(tmp_path)
    events(tmp_path, 1, [(12.0, 0, MARKER)])
    found = times(tmp_path)
    assert found is not None and np.isnan(found).sum() == 2
    events(tmp_path, 1, [("soon", 0, MARKER)])
    assert times(tmp_path) is None


def test_a_derivative_has_the_clock_of_the_raw_run_that_it_comes_from(tmp_path: Path) -> None:
    """fMRIPrep's folder has no scans.tsv of its own."""
    stem = "sub-1_ses-a_task-rest_run-1"
    for name in (
        f"sub-1/ses-a/eeg/{stem}_eeg.vhdr",
        f"sub-1/ses-a/func/{stem}_bold.nii.gz",
        f"derivatives/fmriprep/sub-1/ses-a/func/{stem}_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz",
        f"derivatives/fmriprep/sub-1/ses-a/func/{stem.replace('run-1', 'run-2')}_space-T1w_desc-preproc_bold.nii.gz",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    times = [
        (f"eeg/{stem}_eeg.vhdr", "2019-05-06T10:00:00"),
        (f"func/{stem}_echo-1_bold.nii.gz", "2019-05-06T10:00:08"),
        (f"func/{stem}_echo-2_bold.nii.gz", "2019-05-06T10:00:08"),
        (f"anat/{stem}_T1w.nii.gz", "2019-05-06T09:00:00"),
    ]
    write_tsv(tmp_path / "sub-1/ses-a/sub-1_ses-a_scans.tsv", ("filename", "acq_time"), times)
    first, second, eeg = find_recordings(Site("site", tmp_path, False, None))
    assert acquisition_time(first) - acquisition_time(eeg) == 8.0
    assert math.isnan(acquisition_time(second))  # of another run
    times[2] = (times[2][0], "2019-05-06T11:00:00")
    write_tsv(tmp_path / "sub-1/ses-a/sub-1_ses-a_scans.tsv", ("filename", "acq_time"), times)
    assert math.isnan(acquisition_time(first))  # which of both, nobody says


@pytest.fixture
def far_from_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine in Tokyo."""
    monkeypatch.setenv("TZ", "JST-9")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("far_from_utc")
def test_a_clock_does_not_depend_on_where_the_corpus_is_built(tmp_path: Path) -> None:
    eeg, _ = find_recordings(site(tmp_path, 1))
    expected = datetime(2019, 5, 6, 10, tzinfo=UTC).timestamp()
    for written in ("2019-05-06T10:00:00", "2019-05-06T10:00:00Z", "2019-05-06T12:00:00+02:00"):
        write_tsv(tmp_path / "sub-1/sub-1_scans.tsv", ("filename", "acq_time"), [(f"eeg/{eeg.path.name}", written)])
        eeg, _ = find_recordings(site(tmp_path, 1))
        assert acquisition_time(eeg) == expected


def test_the_closest_table_of_times_and_the_closest_folder_speak_first(tmp_path: Path) -> None:
    name = "sub-1_ses-a_task-rest_eeg.edf"
    (tmp_path / "sub-1/ses-a/eeg").mkdir(parents=True)
    (tmp_path / "sub-1/ses-a/eeg" / name).touch()
    columns = ("filename", "acq_time")
    write_tsv(tmp_path / "sub-1/sub-1_scans.tsv", columns, [(f"ses-a/eeg/{name}", "2019-05-06T09:00:00")])
    write_tsv(tmp_path / "sub-1/ses-a/sub-1_ses-a_scans.tsv", columns, [(f"eeg/{name}", "2019-05-06T10:00:00")])
    [eeg] = find_recordings(Site("s", tmp_path, False, None))
    assert acquisition_time(eeg) == datetime(2019, 5, 6, 10, tzinfo=UTC).timestamp()


def test_a_repetition_time_of_the_run_comes_from_every_place_of_its_image_and_is_above_zero(tmp_path: Path) -> None:
    table = tmp_path / "derivatives/x/sub-1/func/sub-1_task-rest_seg-S_timeseries.tsv"
    table.parent.mkdir(parents=True)
    table.touch()
    [ref] = find_recordings(Site("s", tmp_path, False, None))
    write_json(tmp_path / "sub-1/func/sub-1_task-rest_bold.json", {"RepetitionTime": 0})
    write_json(tmp_path / "task-other_bold.json", {"RepetitionTime": 3.0})
    assert repetition_time_of_run(ref) is None
    write_json(tmp_path / "task-rest_bold.json", {"RepetitionTime": 2.0})
    assert repetition_time_of_run(ref) == 2.0


def test_the_raw_dataset_lies_above_a_pipelines_folder_or_in_its_sourcedata(tmp_path: Path) -> None:
    """The folder of a pipeline may be the site itself."""
    raw = tmp_path / "study"
    pipeline = raw / "derivatives" / "fmriprep"
    (pipeline / "sub-1/func").mkdir(parents=True)
    (pipeline / "sub-1/func/sub-1_task-rest_space-MNI_desc-preproc_bold.nii.gz").touch()
    write_json(pipeline / "dataset_description.json", {})
    [own] = find_recordings(Site("s", pipeline, False, None))
    assert raw_roots(own) == [pipeline, raw]
    [below] = find_recordings(Site("s", raw, False, None))
    assert raw_roots(below) == [raw]
    alone = pipeline.rename(tmp_path / "alone")
    (alone / "sourcedata" / "raw").mkdir(parents=True)
    [own] = find_recordings(Site("s", alone, False, None))
    assert raw_roots(own) == [alone, alone / "sourcedata" / "raw"]
