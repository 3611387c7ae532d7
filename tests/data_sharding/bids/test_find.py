"""Finding recordings: versions of a run, inheritance, sites."""

from pathlib import Path

import pytest

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.find import Site, find_recordings, find_sites, parse_name, read_sidecar
from mcsp.data_sharding.bids.write import write_json


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
