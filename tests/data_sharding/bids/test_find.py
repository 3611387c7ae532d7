"""Finding recordings: versions of a run, inheritance, sites."""

from pathlib import Path

import pytest

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.find import find_recordings, find_sites
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import Site, is_read, parse_name, read_sidecar, repetition_time_of_run
from mcsp.data_sharding.bids.write import write_json
from mcsp.data_sharding.build.privacy import require_labels
from mcsp.data_sharding.clean.child import read_recording


def touch(root: Path, *names: str) -> Site:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return Site("site", root, False, None)


def found(site: Site, parcellation: str | None = None) -> list[str]:
    return [ref.file for ref in find_recordings(site, parcellation)]


def test_names_give_long_entities() -> None:
    entities, suffix = parse_name("sub-1_ses-b_task-rest_acq-x_desc-preproc_bold.nii.gz")
    expected = {"subject": "1", "session": "b", "task": "rest", "acquisition": "x", "description": "preproc"}
    assert (entities, suffix) == (expected, "bold.nii.gz")


def test_one_version_of_each_run_is_taken(tmp_path: Path) -> None:
    site = touch(
        tmp_path,
        "sub-1/func/sub-1_task-rest_run-1_bold.nii.gz",
        "derivatives/fmriprep/sub-1/func/sub-1_task-rest_run-1_desc-confounds_timeseries.tsv",
        "derivatives/fmriprep/sub-1/func/sub-1_task-rest_run-1_space-T1w_desc-preproc_bold.nii.gz",
        "derivatives/fmriprep/sub-1/func/sub-1_task-rest_run-1_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz",
        "sub-1/func/sub-1_task-rest_run-2_bold.nii.gz",
        "derivatives/xcp/sub-1/func/sub-1_task-rest_run-2_space-MNI_seg-Gordon_stat-mean_timeseries.tsv",
        "derivatives/xcp/sub-1/func/sub-1_task-rest_run-2_space-MNI_seg-Schaefer_stat-mean_timeseries.tsv",
        "sub-1/eeg/sub-1_task-rest_eeg.edf",
        "derivatives/clean/sub-1/eeg/sub-1_task-rest_desc-clean_eeg.fif",
        "sourcedata/sub-1/eeg/sub-1_task-other_eeg.edf",
    )
    preproc = "derivatives/fmriprep/sub-1/func/sub-1_task-rest_run-1_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
    table = "derivatives/xcp/sub-1/func/sub-1_task-rest_run-2_space-MNI_seg-{}_stat-mean_timeseries.tsv"
    eeg = "sub-1/eeg/sub-1_task-rest_eeg.edf"
    assert found(site) == [preproc, table.format("Gordon"), eeg]
    assert found(site, "Schaefer") == [preproc, table.format("Schaefer"), eeg]


def test_sidecars_are_inherited_and_the_closest_wins(tmp_path: Path) -> None:
    site = touch(tmp_path, "sub-1/eeg/sub-1_task-rest_eeg.edf", "sub-1/eeg/sub-1_task-move_eeg.edf")
    write_json(tmp_path / "task-rest_eeg.json", {"PowerLineFrequency": 50, "EEGReference": "Cz", "only": "rest"})
    write_json(tmp_path / "eeg.json", {"PowerLineFrequency": 60, "Manufacturer": "x"})
    write_json(tmp_path / "sub-1" / "sub-1_task-rest_eeg.json", {"EEGReference": "FCz"})
    write_json(tmp_path / "sub-2" / "sub-2_task-rest_eeg.json", {"EEGReference": "of another subject"})
    sidecars = {ref.entities["task"]: read_sidecar(ref) for ref in find_recordings(site)}
    assert sidecars["move"] == {"PowerLineFrequency": 60, "Manufacturer": "x"}
    assert sidecars["rest"] == {"PowerLineFrequency": 50, "EEGReference": "FCz", "only": "rest", "Manufacturer": "x"}


def test_tables_beside_a_recording_need_no_space_entity_of_it(tmp_path: Path) -> None:
    site = touch(
        tmp_path,
        "sub-1/eeg/sub-1_task-rest_eeg.edf",
        "sub-1/eeg/sub-1_space-CapTrak_electrodes.tsv",
        "sub-1/eeg/sub-1_task-move_channels.tsv",
        "sub-1/func/sub-1_task-rest_seg-A_timeseries.tsv",
        "seg-A_dseg.tsv",
        "seg-B_dseg.tsv",
    )
    eeg, table = find_recordings(site)
    assert eeg.companion("electrodes.tsv") == tmp_path / "sub-1/eeg/sub-1_space-CapTrak_electrodes.tsv"
    assert eeg.companion("channels.tsv") is None
    assert table.companions["dseg.tsv"] == (tmp_path / "seg-A_dseg.tsv",)
    assert tmp_path / "seg-A_dseg.tsv" in table.inputs() and tmp_path / "seg-B_dseg.tsv" not in table.inputs()


def test_sites_are_the_folders_below_bids_root(tmp_path: Path) -> None:
    write_json(tmp_path / "b" / "dataset_description.json", {"Name": "b", "Simulated": True})
    write_json(tmp_path / "a" / "dataset_description.json", {"Name": "a"})
    (tmp_path / ".cache").mkdir()
    sites = find_sites(CorpusConfig(bids_root=tmp_path, out_dir=tmp_path / "out"))
    assert [(site.name, site.simulated) for site in sites] == [("a", False), ("b", True)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ([], "no folders in it"),
        (["plain/README"], "dataset_description.json: missing; expected a BIDS dataset"),
        (["my site/dataset_description.json"], "site name 'my site': expected letters"),
    ],
)
def test_what_is_no_bids_dataset_is_refused_in_one_line(tmp_path: Path, make: list[str], message: str) -> None:
    touch(tmp_path, *make)
    with pytest.raises(ValueError, match=message) as error:
        find_sites(CorpusConfig(bids_root=tmp_path, out_dir=tmp_path / "out"))
    assert "\n" not in str(error.value)
    # Among datasets the same folder is left out with a line.
    write_json(tmp_path / "sound" / "dataset_description.json", {"Name": "x"})
    notes: list[str] = []
    assert [site.name for site in find_sites(CorpusConfig(bids_root=tmp_path, out_dir=tmp_path / "out"), notes)] == [
        "sound"
    ]
    assert len(notes) == len(make) and all(note.startswith("left out: ") for note in notes)


def test_sessions_and_subjects_of_folders_count_where_the_name_has_none(tmp_path: Path) -> None:
    site = touch(
        tmp_path,
        "sub-1/ses-1/eeg/sub-1_task-rest_eeg.edf",
        "sub-1/ses-1/eeg/sub-1_task-rest_channels.tsv",
        "sub-1/ses-2/eeg/sub-1_task-rest_eeg.edf",
        "sub-2/eeg/task-rest_eeg.EDF",
        "sub-3/eeg/SUB-3_Task-rest_EEG.Set",
    )
    refs = find_recordings(site)
    assert [(ref.entities["subject"], ref.entities.get("session"), ref.entities["task"]) for ref in refs] == [
        ("1", "1", "rest"), ("1", "2", "rest"), ("2", None, "rest"), ("3", None, "rest"),
    ]  # fmt: skip
    assert [ref.companion("channels.tsv") is not None for ref in refs] == [True, False, False, False]


def test_linked_folders_are_followed_and_no_recording_is_found_twice(tmp_path: Path) -> None:
    site = touch(tmp_path / "site", "sub-1/eeg/sub-1_task-rest_eeg.edf")
    touch(tmp_path / "elsewhere", "sub-2/eeg/sub-2_task-rest_eeg.edf", "store/x.edf")
    (site.root / "sub-2").symlink_to(tmp_path / "elsewhere/sub-2")
    (site.root / "sub-3").symlink_to("sub-1")  # the same person once more
    (site.root / "sub-1/self").symlink_to("..")
    (site.root / "sub-4").symlink_to("sub-4")
    (site.root / "sub-5/eeg").mkdir(parents=True)
    (site.root / "sub-5/eeg/sub-5_task-rest_eeg.edf").symlink_to(tmp_path / "elsewhere/store/x.edf")
    assert found(site) == [f"sub-{n}/eeg/sub-{n}_task-rest_eeg.edf" for n in (1, 2, 5)]


def test_a_format_that_is_not_read_is_told_where_a_run_has_no_other(tmp_path: Path) -> None:
    names = ["1_task-rest_eeg.cnt", "2_task-rest_eeg.edf.gz", "3_task-rest_eeg.eeg", "4_task-rest_eeg.mat"]
    site = touch(
        tmp_path, *(f"sub-{name[0]}/eeg/sub-{name}" for name in names),
        *(f"sub-5/eeg/sub-5_task-rest_eeg.{suffix}" for suffix in ("eeg", "vhdr", "vmrk")),
        "sub-6/eeg/sub-6_task-rest_eeg.mff/signal1.bin",
        "sub-6/func/sub-6_task-rest_space-fsLR_bold.dtseries.nii",
        "sub-6/func/sub-6_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz",
        "sub-7/func/sub-7_task-rest_bold_space-MNI152NLin2009cAsym_preproc.nii.gz",
        "sub-8/func/sub-8_task-rest_seg-A_timeseries.tsv.gz",
        # Versions of a run, and what is no BOLD.
        *(f"sub-6/func/sub-6_task-rest_hemi-{side}_space-fsaverage5_bold.func.gii" for side in "LR"),
        "sub-7/anat/sub-7_T1w_space-MNI152NLin2009cAsym_preproc.nii.gz",
    )  # fmt: skip
    refs = {Path(ref.file).name: ref for ref in find_recordings(site)}
    read = ["sub-5_task-rest_eeg.vhdr", "sub-6_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"]
    assert [name for name in refs if is_read(name)] == read
    told = [name for name in refs if name not in read]
    assert told[:4] == [f"sub-{name}" for name in names] and len(told) == 7
    for name in told:
        with pytest.raises(RecordingError, match="a format that is not read, expected") as error:
            read_recording(refs[name], CorpusConfig(bids_root=tmp_path, out_dir=tmp_path))
        assert error.value.reason == "unreadable" and str(error.value).startswith(name)


def test_parts_echoes_and_spaces_of_one_run(tmp_path: Path) -> None:
    stem = "sub-1/func/sub-1_task-rest"
    site = touch(
        tmp_path,
        "space-MNI152NLin6Asym_seg-A_dseg.nii.gz",
        f"{stem}_part-phase_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz",
        f"{stem}_echo-1_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz",
        f"{stem}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz",
        f"{stem}_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz",
        "sub-2/func/sub-2_task-rest_seg-A_stat-max_timeseries.tsv",
        "sub-2/func/sub-2_task-rest_seg-A_stat-mean_timeseries.tsv",
        # Only the reader of FIF goes on from part to part.
        *(f"sub-3/eeg/sub-3_task-{kind}_split-0{i}_eeg.{kind}" for i in (1, 2) for kind in ("edf", "fif")),
    )
    assert found(site) == [
        f"{stem}_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz",
        "sub-2/func/sub-2_task-rest_seg-A_stat-mean_timeseries.tsv",
        "sub-3/eeg/sub-3_task-edf_split-01_eeg.edf",
        "sub-3/eeg/sub-3_task-edf_split-02_eeg.edf",
        "sub-3/eeg/sub-3_task-fif_split-01_eeg.fif",
    ]
    wanted = find_recordings(site, label_space="MNI152NLin2009cAsym")[0].file
    (tmp_path / "space-MNI152NLin6Asym_seg-A_dseg.nii.gz").unlink()
    assert wanted == found(site)[0] == f"{stem}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"


def test_run_01_is_run_1_which_some_pipelines_make_of_it(tmp_path: Path) -> None:
    stem = "derivatives/x/sub-1/func/sub-1_task-rest"
    site = touch(
        tmp_path,
        "sub-1/func/sub-1_task-rest_run-01_bold.nii.gz",
        f"{stem}_run-1_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz",
        f"{stem}_run-01_desc-confounds_timeseries.tsv",
        "sub-1/eeg/sub-1_task-rest_run-2_eeg.edf",
        "sub-1/eeg/sub-1_task-rest_run-02_channels.tsv",
        "sub-1/eeg/sub-1_task-rest_run-12_channels.tsv",
    )
    write_json(tmp_path / "sub-1/func/sub-1_task-rest_run-01_bold.json", {"RepetitionTime": 2.5})
    bold, eeg = find_recordings(site)
    assert bold.file == f"{stem}_run-1_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
    assert bold.confounds() == tmp_path / f"{stem}_run-01_desc-confounds_timeseries.tsv"
    assert repetition_time_of_run(bold) == 2.5
    assert [file.name for file in eeg.companions["channels.tsv"]] == ["sub-1_task-rest_run-02_channels.tsv"]


def test_a_smoothed_image_comes_after_the_same_without(tmp_path: Path) -> None:
    stem = "sub-1/func/sub-1_task-rest_space-MNI152NLin6Asym_desc-denoised"
    assert found(touch(tmp_path, f"{stem}_bold.nii.gz", f"{stem}Smoothed_bold.nii.gz")) == [f"{stem}_bold.nii.gz"]


def test_what_is_no_entity_tells_recordings_apart_and_is_refused(tmp_path: Path) -> None:
    """Else the one of two people whose name comes first would stand for both."""
    site = touch(tmp_path, *(f"sub-01_{who}/eeg/sub-01_{who}_task-rest_eeg.edf" for who in "AB"))
    refs = find_recordings(site)
    assert [Path(ref.file).name for ref in refs] == [f"sub-01_{who}_task-rest_eeg.edf" for who in "AB"]
    with pytest.raises(RecordingError, match="'A' between its entities, expected each as key-label") as error:
        require_labels(refs[0])
    assert error.value.reason == "bad-name"


def test_of_sidecars_in_one_folder_that_with_more_entities_wins(tmp_path: Path) -> None:
    """In the order of their names the general one would come last."""
    site = touch(tmp_path, "sub-1/eeg/sub-1_task-rest_eeg.edf")
    write_json(tmp_path / "sub-1_task-rest_eeg.json", {"SamplingFrequency": 250, "EEGReference": "Cz"})
    write_json(tmp_path / "task-rest_eeg.json", {"SamplingFrequency": 500, "PowerLineFrequency": 50})
    [ref] = find_recordings(site)
    assert read_sidecar(ref) == {"SamplingFrequency": 250, "EEGReference": "Cz", "PowerLineFrequency": 50}
