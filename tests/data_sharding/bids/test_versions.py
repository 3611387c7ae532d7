"""Of several versions of a run the right one is taken, with the files that are its own.

Covers: data_sharding/bids/find.py, data_sharding/bids/ref.py
"""

from dataclasses import replace
from pathlib import Path

import pytest

from mcsp.config import CorpusConfig
from mcsp.config.corpus import Selection
from mcsp.data_sharding.bids.find import find_recordings, find_sites
from mcsp.data_sharding.bids.ref import RecordingRef, Site, entities_of, parse_name, ref_of_file, run_entities
from mcsp.data_sharding.bids.write import write_json

EEG, FUNC = "sub-1/eeg/sub-1_task-rest", "sub-1/func/sub-1_task-rest"
MNI = "space-MNI152NLin6Asym"
TABLE = f"{FUNC}_seg-A_timeseries.tsv"


def site_of(root: Path, *names: str) -> Site:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return Site("site", root, False, None)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (f"{EEG}_eeg.vhdr", f"derivatives/clean/{EEG}_eeg.edf"),
        (f"derivatives/clean/{EEG}_eeg.set", f"{EEG}_eeg.cnt"),  # which is not read
        (f"{EEG}_eeg.set", f"{EEG}_desc-clean_eeg.edf"), (f"{EEG}_eeg.bdf", f"{EEG}_eeg.edf"),
        (f"{EEG}_eeg.set", f"{EEG}_proc-x_desc-clean_eeg.edf"),
        (TABLE, f"{FUNC}_{MNI}_desc-preproc_bold.nii.gz"),
        (f"{FUNC}_{MNI}_desc-preproc_bold.nii.gz", f"{FUNC}_{MNI}_desc-denoised_bold.nii.gz"),
        (f"{FUNC}_space-T1w_desc-preproc_bold.nii.gz", f"{FUNC}_{MNI}_bold.nii.gz"),
        (f"{FUNC}_space-T1w_desc-denoised_bold.nii.gz", f"{FUNC}_{MNI}_desc-denoisedSmoothed_bold.nii.gz"),
        (f"{FUNC}_{MNI}_desc-preproc_bold.nii.gz", f"{FUNC}_space-T1w_desc-preproc_bold.nii"),
        (f"{FUNC}_{MNI}_bold.nii.gz", f"{FUNC}_{MNI}_echo-1_bold.nii.gz"),
        (f"{FUNC}_seg-B_stat-mean_timeseries.tsv", f"{FUNC}_seg-A_stat-max_timeseries.tsv"),
        (f"{FUNC}_seg-B_timeseries.tsv", f"{FUNC}_seg-A_stat-max_timeseries.tsv"),
        (TABLE, f"{FUNC}_seg-B_timeseries.csv"), (f"{FUNC}_seg-A_timeseries.csv", TABLE.replace("seg", "atlas")),
        (f"{FUNC}_{MNI}_bold.nii", f"{FUNC}_{MNI}_bold.nii.gz"),
        (f"{FUNC}_seg-A_timeseries.tsv", f"derivatives/xcp/{FUNC}_seg-A_timeseries.tsv"),
        (f"{FUNC}_{MNI}_part-mag_bold.nii.gz", f"{FUNC}_{MNI}_part-phase_bold.nii.gz"),
    ],
)  # fmt: skip
def test_the_better_version_of_a_run_is_taken(tmp_path: Path, better: str, worse: str) -> None:
    assert [ref.file for ref in find_recordings(site_of(tmp_path, better, worse))] == [better]
    (tmp_path / better).unlink()
    found = [ref.file for ref in find_recordings(Site("site", tmp_path, False, None))]
    assert found == ([] if "phase" in worse else [worse])


def test_what_is_named_comes_before_what_is_better(tmp_path: Path) -> None:
    """The pipeline, then the parcellation, then the space of the labels."""
    pipeline, other = f"derivatives/p/{FUNC}_seg-B_timeseries.tsv", f"derivatives/p/{FUNC}_seg-C_timeseries.tsv"
    site = site_of(tmp_path, TABLE, pipeline, other)
    assert [ref.file for ref in find_recordings(site, "C")] == [other]
    assert [ref.file for ref in find_recordings(site)] == [TABLE]
    named = replace(site, selection=Selection(derivatives="p"))
    assert [ref.file for ref in find_recordings(named)] == [pipeline]
    assert [ref.file for ref in find_recordings(named, "C")] == [other]


def test_labels_of_a_site_say_which_space_is_wanted_and_those_of_a_person_do_not(tmp_path: Path) -> None:
    spaces = ("MNI152NLin2009cAsym", "MNI152NLin6Asym")
    images = [f"{FUNC}_space-{space}_desc-preproc_bold.nii.gz" for space in spaces]
    site = site_of(tmp_path, *images, "sub-1/anat/sub-1_space-MNI152NLin6Asym_dseg.nii.gz")
    assert [ref.file for ref in find_recordings(site)] == images[:1]
    assert [ref.file for ref in find_recordings(site, label_space="MNI152NLin6Asym")] == images[1:]
    labelled = replace(site, label_image=tmp_path.parent / f"{MNI}_seg-A_dseg.nii.gz")
    assert [ref.file for ref in find_recordings(labelled)] == images[1:]
    site_of(tmp_path, f"{MNI}_seg-A_dseg.nii.gz")
    assert [ref.file for ref in find_recordings(site)] == images[1:]


def test_runs_in_several_pipelines_are_told_with_the_one_that_was_taken(tmp_path: Path) -> None:
    names = [f"derivatives/{p}/{FUNC}_seg-A_timeseries.tsv" for p in ("xcp", "cpac")]
    notes: list[str] = []
    find_recordings(site_of(tmp_path, *names, TABLE.replace("rest", "go")), notes=notes)
    assert notes == ["site: derivatives of cpac, xcp hold the same runs, taken: cpac; name one with `derivatives`"]
    notes.clear()
    find_recordings(site_of(tmp_path, TABLE), notes=notes)  # raw, which comes first of equals
    assert notes == []
    one = site_of(tmp_path / "one", names[0])
    find_recordings(one, notes=notes)
    assert notes == []


@pytest.mark.parametrize(
    ("one", "other"),
    [("task-rest", "task-go"), ("task-rest_run-1", "task-rest_run-2"), ("task-rest", "task-rest_run-1"),
     ("task-rest_acq-a", "task-rest_acq-b"), ("task-rest_dir-AP", "task-rest_dir-PA"),
     ("ses-1_task-x", "ses-2_task-x")],
)  # fmt: skip
def test_other_runs_are_other_recordings(tmp_path: Path, one: str, other: str) -> None:
    names = [f"sub-1/eeg/sub-1_{entities}_eeg.edf" for entities in (one, other)]
    assert len(find_recordings(site_of(tmp_path, *names))) == 2


def test_entities_are_those_of_the_name_then_of_the_folders(tmp_path: Path) -> None:
    path = tmp_path / "sub-01/ses-b/eeg/ses-a_TASK-rest_run-007_eeg.edf"
    assert entities_of(path, tmp_path) == {"subject": "01", "session": "a", "task": "rest", "run": "007"}
    assert entities_of(tmp_path / "sub-/ses_x/sub-1_x/eeg.edf", tmp_path) == {}
    assert run_entities({"run": "007", "subject": "01", "space": "x", "echo": "1"}) == {"run": "7", "subject": "01"}
    assert run_entities({"run": "000"}) == {"run": "000"}
    assert parse_name("a_b-c-d_e_x.nii.gz") == ({"": "e", "b": "c-d"}, "x.nii.gz")


def only(site: Site) -> RecordingRef:
    (ref,) = find_recordings(site)
    return ref


def test_confounds_are_those_of_the_run_and_fmripreps_before_xcp_ds(tmp_path: Path) -> None:
    image = f"{FUNC}_run-1_{MNI}_desc-preproc_bold.nii.gz"
    site = site_of(
        tmp_path, image, f"{FUNC}_run-2_desc-confounds_timeseries.tsv", f"{FUNC}_run-1_desc-x_timeseries.tsv"
    )
    assert only(site).confounds() is None
    for name in (f"{FUNC}_run-1_motion.tsv", f"{FUNC}_run-01_desc-confounds_regressors.tsv"):
        site_of(tmp_path, name)
        assert only(site).confounds() == tmp_path / name


def test_inputs_are_all_files_that_decide_what_is_stored(tmp_path: Path) -> None:
    atlas = tmp_path / "atlases"
    image = f"{FUNC}_{MNI}_desc-preproc_bold.nii.gz"
    own = [image, image.replace(".nii.gz", ".json"), "task-rest_bold.json", f"{FUNC}_desc-confounds_timeseries.tsv",
           f"{FUNC}_desc-confounds_timeseries.json"]  # fmt: skip
    site = site_of(tmp_path / "site", *own, f"{FUNC}_desc-confounds_timeseries.txt", "task-go_bold.json")
    site_of(atlas, "a.nii.gz", "a.tsv", "ab.tsv")
    found = only(replace(site, label_image=atlas / "a.nii.gz")).inputs()
    assert found == sorted([*(site.root / name for name in own), atlas / "a.nii.gz", atlas / "a.tsv"])


def test_a_fif_recording_in_several_files_has_all_of_them_and_no_others(tmp_path: Path) -> None:
    parts = [f"{EEG}_split-0{i}_eeg.fif" for i in (1, 2, 3)]
    site = site_of(tmp_path, *parts, f"{EEG}_run-2_split-01_eeg.fif")
    first, second = find_recordings(site)
    assert second.inputs() == [tmp_path / part for part in parts] and first.inputs() == [first.path]


def test_files_apply_from_the_root_down_and_never_those_of_others(tmp_path: Path) -> None:
    names = ["task-rest_events.tsv", "sub-1/sub-1_events.tsv", f"{EEG}_events.tsv"]
    site = site_of(tmp_path, f"{EEG}_eeg.edf", *names, "task-go_events.tsv", "sub-2/sub-2_events.tsv",
                   "sub-1/eeg/sub-1_task-rest_run-1_events.tsv", "derivatives/x/sub-1/sub-1_events.tsv")  # fmt: skip
    [ref] = [ref for ref in find_recordings(site) if ref.path.suffix == ".edf"]
    assert ref.companions["events.tsv"] == tuple(tmp_path / name for name in names)
    assert ref.companion("events.tsv") == tmp_path / names[-1] and ref.companion("channels.tsv") is None


def test_a_file_by_its_path_has_what_applies_to_it_in_its_dataset(tmp_path: Path) -> None:
    site_of(tmp_path, f"{EEG}_eeg.edf", "task-rest_channels.tsv", "alone.edf")
    ref = ref_of_file(tmp_path / f"{EEG}_eeg.edf", "eeg")
    assert ref.site.root == (tmp_path / EEG).parent and ref.companions == {}, "without a description it is no dataset"
    write_json(tmp_path / "dataset_description.json", {})
    ref = ref_of_file(tmp_path / f"{EEG}_eeg.edf", "eeg")
    assert (ref.site.root, ref.site.name, ref.site.simulated) == (tmp_path, tmp_path.name, False)
    assert ref.companion("channels.tsv") == tmp_path / "task-rest_channels.tsv" and ref.file == f"{EEG}_eeg.edf"
    assert ref_of_file(tmp_path / "alone.edf", "eeg").companions == {}


def sites(root: Path, **site: object) -> list[Site]:
    """What is said of the dataset in ``root / "b"``."""
    config = {"sites": {"b": {"path": str(root / "b"), **site}}, "out_dir": str(root / "out"), "subjects": ["1"]}
    return find_sites(CorpusConfig.parse(config, "test"))


def test_what_a_dataset_and_the_settings_say_of_a_site(tmp_path: Path) -> None:
    """The settings come first; what cannot be read is a fault unless they say it."""
    write_json(tmp_path / "b/dataset_description.json", {"Simulated": True})
    (tmp_path / "a.nii.gz").touch()
    [found] = sites(tmp_path)
    assert (found.name, found.root, found.simulated, found.label_image) == ("b", tmp_path / "b", True, None)
    assert (found.pairing, found.first_volume_event, found.fault, found.trusted) == ("simultaneous", None, None, ())
    assert found.selection.subjects == ["1"]
    [found] = sites(tmp_path, simulated=False, label_image=str(tmp_path / "a.nii.gz"), pairing="subject",
                    first_volume_event="R128", subjects=["2"])  # fmt: skip
    assert (found.simulated, found.label_image) == (False, tmp_path / "a.nii.gz")
    assert (found.pairing, found.first_volume_event, found.selection.subjects) == ("subject", "R128", ["2"])
    with pytest.raises(ValueError, match=r"none\.nii\.gz: no such label image \(site b\)"):
        sites(tmp_path, label_image=str(tmp_path / "none.nii.gz"))
    (tmp_path / "b/dataset_description.json").write_text("{")
    [found] = sites(tmp_path)
    assert not found.simulated and found.fault is not None and found.fault[0] == "invalid-json"
    [found] = sites(tmp_path, simulated=True)
    assert found.simulated and found.fault is None
    (tmp_path / "b/dataset_description.json").unlink()
    with pytest.raises(ValueError, match=r"dataset_description\.json: missing; expected a BIDS dataset"):
        sites(tmp_path)
    with pytest.raises(ValueError, match="no such folder; bids_root must hold one BIDS dataset per site"):
        find_sites(CorpusConfig(bids_root=tmp_path / "none", out_dir=tmp_path / "out"))


def test_folders_that_cannot_be_listed_are_told_and_formats_that_are_folders_are_found(tmp_path: Path) -> None:
    site = site_of(tmp_path, f"{EEG}_eeg.edf", "sub-2/eeg/sub-2_task-rest_eeg.mff/x.bin", "code/sub-3_eeg.edf",
                   ".git/sub-4_eeg.edf", "sub-5/stimuli/sub-5_eeg.edf")  # fmt: skip
    notes: list[str] = []
    assert [ref.file for ref in find_recordings(site, notes=notes)] == [
        f"{EEG}_eeg.edf", "sub-2/eeg/sub-2_task-rest_eeg.mff",
    ]  # fmt: skip
    assert notes == []


def test_of_several_folders_that_are_no_dataset_the_first_is_told(tmp_path: Path) -> None:
    for name in "cab":
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"^{tmp_path / 'a' / 'dataset_description.json'}: missing"):
        find_sites(CorpusConfig(bids_root=tmp_path, out_dir=tmp_path / "out"))
