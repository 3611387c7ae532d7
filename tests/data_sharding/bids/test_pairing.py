"""The clock of simultaneous recordings, by the marker of the first volume, and what else a run has elsewhere.

Covers: data_sharding/bids/ref.py, data_sharding/build/shards.py
"""

import math
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from mcsp.data_sharding.bids.find import find_recordings
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import (
    Site,
    acquisition_time,
    atlas_files,
    even_timing,
    inputs_of,
    pipeline_root,
    raw_roots,
    repetition_time_of_run,
    scans_tables,
    siblings,
)
from mcsp.data_sharding.bids.write import write_json, write_tsv
from mcsp.data_sharding.build.shards import marked_times

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
    assert raw_roots(own.path.parent, own.site.root) == (pipeline, raw)
    [below] = find_recordings(Site("s", raw, False, None))
    assert raw_roots(below.path.parent, below.site.root) == (raw,)
    alone = pipeline.rename(tmp_path / "alone")
    (alone / "sourcedata" / "raw").mkdir(parents=True)
    [own] = find_recordings(Site("s", alone, False, None))
    assert raw_roots(own.path.parent, own.site.root) == (alone, alone / "sourcedata" / "raw")


def test_runs_without_a_marker_between_others_and_volumes_that_go_on_after_the_eeg(tmp_path: Path) -> None:
    refs = find_recordings(site(tmp_path, 3))
    events(tmp_path, 1, [(20.0, 0, MARKER)])
    events(tmp_path, 3, [(5.0, 0, MARKER)])
    refs = find_recordings(site(tmp_path, 3))
    seconds = {("1", "fmri"): 400.0}
    found = marked_times([(r, seconds.get((r.entities["run"], r.modality), 300.0)) for r in refs], MARKER)
    assert found is not None
    start = {(ref.entities["run"], ref.modality): time for ref, time in zip(refs, found, strict=True)}
    assert start["1", "eeg"] == 0 and start["1", "fmri"] == 20
    assert math.isnan(start["2", "eeg"]) and math.isnan(start["2", "fmri"])
    assert start["3", "eeg"] == 20 + 400 + 3600 and start["3", "fmri"] == start["3", "eeg"] + 5


def test_a_marker_may_stand_in_the_column_of_trial_types_and_is_of_its_session_alone(tmp_path: Path) -> None:
    for session in "ab":
        for kind, name in (("eeg", "eeg.edf"), ("func", "seg-S_timeseries.tsv")):
            folder = tmp_path / f"sub-1/ses-{session}/{kind}"
            folder.mkdir(parents=True)
            (folder / f"sub-1_ses-{session}_task-rest_{name}").touch()
    table = tmp_path / "sub-1/ses-b/eeg/sub-1_ses-b_task-rest_events.tsv"
    write_tsv(table, ("onset", "duration", "trial_type", "value"), [(3.5, 0, MARKER, 7), (9.0, 0, "x", MARKER)])
    refs = find_recordings(Site("s", tmp_path, False, None))
    found = marked_times([(ref, 100.0) for ref in refs], MARKER)
    assert found is not None
    start = {(ref.entities["session"], ref.modality): time for ref, time in zip(refs, found, strict=True)}
    assert start["b", "eeg"] == 0 and start["b", "fmri"] == 3.5
    assert math.isnan(start["a", "eeg"]) and math.isnan(start["a", "fmri"])


def write_run(root: Path, stem: str = "sub-1_ses-a_task-rest", pipeline: str = "derivatives/x") -> Path:
    path = root / pipeline / "sub-1/ses-a/func" / f"{stem}_space-MNI_seg-S_timeseries.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_files_of_the_same_run_beside_a_recording_are_found_whatever_their_version(tmp_path: Path) -> None:
    table = write_run(tmp_path)
    for name in ("sub-1_ses-a_task-rest_outliers.tsv", "sub-1_ses-a_task-rest_space-T1w_desc-x_bold.json",
                 "sub-1_ses-a_task-rest_run-2_outliers.tsv", "sub-1_ses-a_task-go_bold.json"):  # fmt: skip
        (table.parent / name).write_text("{}")
    [ref] = find_recordings(Site("s", tmp_path, False, None))
    assert [f.name for f in siblings(ref, "_outliers.tsv", "_bold.json", "_timeseries.tsv")] == [
        "sub-1_ses-a_task-rest_outliers.tsv", "sub-1_ses-a_task-rest_space-T1w_desc-x_bold.json",
    ]  # fmt: skip
    assert pipeline_root(ref.path.parent, ref.site.root) == tmp_path / "derivatives/x"


def test_the_tables_of_times_of_a_derivative_are_its_own_and_those_of_the_raw_dataset(tmp_path: Path) -> None:
    table = write_run(tmp_path)
    own = table.parents[1] / "sub-1_ses-a_scans.tsv"
    raw = [tmp_path / "sub-1/ses-a/sub-1_ses-a_scans.tsv", tmp_path / "sub-1/sub-1_scans.tsv"]
    for file in (own, *raw, tmp_path / "sub-1/ses-a/sub-1_ses-b_scans.tsv"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("filename\tacq_time\n")
    [ref] = find_recordings(Site("s", tmp_path, False, None))
    assert scans_tables(ref)[0] == own and set(scans_tables(ref)) == {own, *raw}
    [own_site] = find_recordings(Site("s", tmp_path / "derivatives/x", False, None))
    assert scans_tables(own_site) == [own, *raw]


def test_a_row_of_times_is_that_of_the_recording_itself_before_any_of_its_run(tmp_path: Path) -> None:
    """Also where another version of the run has another time, and where the table that comes first has none."""
    table = write_run(tmp_path)
    raw = tmp_path / "sub-1/ses-a/sub-1_ses-a_scans.tsv"
    raw.parent.mkdir(parents=True)
    name = "sub-1_ses-a_task-rest"
    rows = [(f"func/{name}_bold.nii.gz", "2019-05-06T10:00:00"), (f"eeg/{name}_eeg.edf", "2019-05-06T08:00:00")]
    write_tsv(raw, ("filename", "acq_time"), rows)
    own = table.parents[1] / "sub-1_ses-a_scans.tsv"
    write_tsv(own, ("filename", "acq_time"), [("func/other.tsv", "2019-05-06T07:00:00")])
    site_ = Site("s", tmp_path, False, None)
    ten = datetime(2019, 5, 6, 10, tzinfo=UTC).timestamp()
    assert acquisition_time(find_recordings(site_)[0]) == ten
    own_rows = [(f"func/{name}_desc-a_bold.nii.gz", "2019-05-06T07:00:00"), (f"func/{table.name}", "2019-05-06T11:00")]
    write_tsv(own, ("filename", "acq_time"), own_rows)
    assert acquisition_time(find_recordings(site_)[0]) == ten + 3600
    write_tsv(own, ("filename",), [(f"func/{table.name}",)])
    assert acquisition_time(find_recordings(site_)[0]) == ten, "a table without times says nothing"


def test_atlases_lie_in_their_own_folders_or_beside_each_other(tmp_path: Path) -> None:
    write_run(tmp_path)
    own = tmp_path / "derivatives/x"
    names = ("sourcedata/atlases/atlas-S/atlas-S_dseg.nii.gz", "atlases/atlas-S_dseg.tsv", "atlases/seg-S_dseg.nii")
    for name in (*names, "atlases/atlas-S/atlas-T_dseg.tsv", "atlases/atlas-S_probseg.nii.gz"):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).touch()
    (tmp_path / "atlases").mkdir()
    (tmp_path / "atlases/atlas-S_desc-site_dseg.tsv").touch()
    [ref] = find_recordings(Site("s", tmp_path, False, None))
    found = atlas_files(ref, "S")
    assert [f.name for f in found] == [
        "atlas-S_desc-site_dseg.tsv", "atlas-S_dseg.tsv", "atlas-S_dseg.nii.gz", "seg-S_dseg.nii",
    ]  # fmt: skip
    assert set(found) <= set(inputs_of(ref)), "who changes an atlas builds again"


@pytest.mark.parametrize(
    ("timing", "t_r"),
    [([0, 2, 4], 2.0), ([1.0, 2.5], 1.5), ([0.0], None), ([], None), ([0, "2"], None), (2.0, None),
     ([0, 2.0, 4.02], 2.01)],
)  # fmt: skip
def test_times_of_volumes_give_a_repetition_time_where_there_are_two(timing: object, t_r: float | None) -> None:
    found = even_timing({"VolumeTiming": timing}, "x.json")
    assert found is None if t_r is None else found == pytest.approx(t_r)


def test_times_of_volumes_may_differ_by_a_hundredth() -> None:
    assert even_timing({"VolumeTiming": [0, 100, 199]}, "x.json") == 99.5
    with pytest.raises(RecordingError, match=r"x\.json: volumes follow each other after 98\.9 to 100 s") as error:
        even_timing({"VolumeTiming": [0, 100, 198.9]}, "x.json")
    assert error.value.reason == "t_r-mismatch"


def test_images_of_a_run_have_one_repetition_time_and_true_is_none(tmp_path: Path) -> None:
    table = write_run(tmp_path)
    beside = table.parent / "sub-1_ses-a_task-rest_bold.json"
    write_json(beside, {"RepetitionTime": True})
    write_json(tmp_path / "bold.json", {"RepetitionTime": 2})
    [ref] = find_recordings(Site("s", tmp_path, False, None))
    assert repetition_time_of_run(ref) == 2.0
    write_json(beside, {"VolumeTiming": [0, 1.5, 3.0]})
    with pytest.raises(RecordingError, match=r"1\.5 s in sub-1_ses-a_task-rest_bold\.json, 2 s in bold\.json"):
        repetition_time_of_run(ref)
    write_json(beside, {"RepetitionTime": "1.5"})
    assert repetition_time_of_run(ref) == 2.0
