"""One bad thing costs itself alone: a folder of sound and odd datasets of every kind ends with a report."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.reasons import REASONS
from mcsp.data_sharding.bids.write import write_eeg, write_json, write_parcellated_bold, write_parcellation, write_tsv
from mcsp.data_sharding.build.corpus import build_corpus
from mcsp.data_sharding.build.plan import make_plan
from mcsp.data_sharding.inspect.report import index_table
from mcsp.data_sharding.store.index import read_rejected
from tests.data_sharding.conftest import CHANNELS, DESCRIPTION, KEY, PARCELS, bold, eeg_uv

SIDECAR = {"SamplingFrequency": 250, "PowerLineFrequency": "n/a"}
_seeds = iter(range(1, 1000))


def sound(root: Path, subject: str = "1") -> Path:
    """A dataset with a recording that is like no other."""
    write_json(root / "dataset_description.json", DESCRIPTION)
    return write_eeg(root, subject, "rest", eeg_uv(15, seed=next(_seeds)), CHANNELS, SIDECAR)


def latin_1_participants(root: Path) -> None:
    sound(root)
    (root / "participants.tsv").write_bytes("participant_id\tgroup\nsub-1\tcaf\xe9\n".encode("latin-1"))


def sparse_participants(root: Path) -> None:
    """A hundred gigabytes that take no room on the disk."""
    sound(root)
    with open(root / "participants.tsv", "wb") as file:
        file.write(b"participant_id\tgroup\nsub-1\tA\n")
        file.truncate(100 * 10**9)


def deep_json(root: Path) -> None:
    path = sound(root)
    path.with_suffix(".json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


def broken_description(root: Path) -> None:
    sound(root)
    (root / "dataset_description.json").write_text("{")


def sparse_channels(root: Path) -> None:
    path = sound(root)
    with open(path.with_name("sub-1_task-rest_channels.tsv"), "r+b") as file:
        file.truncate(100 * 10**9)


def dangling_link(root: Path) -> None:
    sound(root)
    path = root / "sub-2/eeg/sub-2_task-rest_eeg.edf"
    path.parent.mkdir(parents=True)
    path.symlink_to("../../.git/annex/objects/7K/4J/x/x.edf")


def link_loops(root: Path) -> None:
    """A file that leads to itself, a folder that does, and one that leads back up."""
    sound(root)
    folder = root / "sub-2/eeg"
    folder.mkdir(parents=True)
    (folder / "sub-2_task-rest_eeg.edf").symlink_to("sub-2_task-rest_eeg.edf")
    (root / "sub-3").symlink_to("sub-3")
    (root / "sub-1/up").symlink_to(root, target_is_directory=True)


def name_not_utf_8(root: Path) -> None:
    path = sound(root)
    os.rename(os.fsencode(path), os.fsencode(path).replace(b"task-rest", b"task-r\xe9st"))


def linked_subjects(root: Path) -> None:
    elsewhere = root.parent.parent / f"{root.name}-elsewhere"
    sound(elsewhere)
    write_json(root / "dataset_description.json", DESCRIPTION)
    (root / "sub-1").symlink_to(elsewhere / "sub-1", target_is_directory=True)


def empty_files(root: Path) -> None:
    """As the examples of BIDS have them: every file is there and has no content."""
    sound(root)
    for i, suffix in enumerate((".edf", ".bdf", ".set", ".vhdr", ".fif"), 2):
        path = root / f"sub-{i}/eeg/sub-{i}_task-rest_eeg{suffix}"
        path.parent.mkdir(parents=True)
        path.touch()


def other_kinds(root: Path) -> None:
    """MEG, intracranial EEG, PET, genetics, motion: nothing that is read, and nothing that disturbs."""
    write_json(root / "dataset_description.json", DESCRIPTION)
    for name in (
        "meg/sub-1_task-rest_meg.fif", "meg/sub-1_task-rest_meg.ds/x.meg4", "ieeg/sub-1_task-rest_ieeg.edf",
        "pet/sub-1_pet.nii.gz", "motion/sub-1_task-rest_tracksys-a_motion.tsv", "micr/sub-1_sample-A_SEM.png",
        "anat/sub-1_T1w.nii.gz", "nirs/sub-1_task-rest_nirs.snirf", "beh/sub-1_task-rest_beh.tsv",
    ):  # fmt: skip
        (root / "sub-1" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "sub-1" / name).touch()
    write_json(root / "genetic_info.json", {"GeneticLevel": "Genetic"})


def nested_derivatives(root: Path) -> None:
    """A derivative of a derivative, under the names of the raw files."""
    sound(root)
    for folder in ("derivatives/a", "derivatives/a/derivatives/b"):
        write_eeg(root / folder, "1", "rest", eeg_uv(15, seed=next(_seeds)), CHANNELS, SIDECAR)


def no_dataset(root: Path) -> None:
    root.mkdir(parents=True)
    (root / "notes.txt").write_text("nothing")


# What becomes of each: reasons of the recordings that are not stored, and how many are.
SITES: dict[str, tuple[Callable[[Path], object], dict[str, int], int]] = {
    "sound": (sound, {}, 1),
    "latin-1": (latin_1_participants, {"bad-encoding": 1}, 0),
    "sparse": (sparse_participants, {"unreadable": 1}, 0),
    "deep": (deep_json, {"invalid-json": 1}, 0),
    "description": (broken_description, {"invalid-json": 1}, 0),
    "sparse-channels": (sparse_channels, {"unreadable": 1}, 0),
    "dangling": (dangling_link, {"missing-file": 1}, 1),
    "loops": (link_loops, {"unreadable": 1}, 1),
    "bytes": (name_not_utf_8, {"bad-encoding": 1}, 0),
    "linked": (linked_subjects, {"outside-dataset": 1}, 0),
    "empty": (empty_files, {"unreadable": 5}, 1),
    "other": (other_kinds, {}, 0),
    "nested": (nested_derivatives, {}, 1),
}


@pytest.fixture
def config(tmp_path: Path) -> CorpusConfig:
    for name, (write, _, _) in SITES.items():
        write(tmp_path / "bids" / name)
    no_dataset(tmp_path / "bids/no-dataset")
    return CorpusConfig(
        bids_root=tmp_path / "bids", out_dir=tmp_path / "corpus", max_quarantined=1.0, split_fractions=(1, 0, 0)
    )


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_every_kind_ends_with_a_report(
    config: CorpusConfig, ray_here: None, capfd: pytest.CaptureFixture[str]
) -> None:
    index, _ = build_corpus(config)
    out = Path(config.out_dir)
    sites = index["totals"]["sites"]
    found = {name: (site["found"], site["recordings"]) for name, site in sites.items()}
    assert found == {name: (sum(bad.values()) + n, n) for name, (_, bad, n) in SITES.items()}
    for rejection in read_rejected(out):
        _, bad, _ = SITES[rejection.site]
        assert rejection.reason in bad, rejection
    page = (out / "report.html").read_text(encoding="utf-8")
    told = capfd.readouterr().err
    for name, (_, bad, _) in SITES.items():
        assert name in page and all(reason in page and REASONS[reason].remedy[:20] in page for reason in bad)
    assert "warning: left out: " in told and "no-dataset/dataset_description.json: missing" in told
    assert "warning: latin-1: participants.tsv: line 2: byte 30 is 0xe9, expected UTF-8" in told
    assert "what to do: fetch the content" in index_table(index)
    lines = (out / ".build/rejected.tsv").read_text(encoding="utf-8")
    assert "task-r\\xe9st" in lines and "Traceback" not in lines
    assert all(line.split("\t")[4] for line in lines.splitlines())
    assert json.loads((out / "index.json").read_text())["reasons"] == index["reasons"]


def test_a_column_that_only_a_broken_table_has_is_told_with_the_site(config: CorpusConfig) -> None:
    with pytest.raises(ValueError, match="no site has the column 'group'") as caught:
        make_plan(config.model_copy(update={"participants_columns": ["group"]}), KEY.encode())
    assert "latin-1: participants.tsv: line 2" in str(caught.value) and "\n" not in str(caught.value)


def test_a_parcellated_series_beside_a_raw_image_and_a_second_pipeline_is_told(tmp_path: Path) -> None:
    root = tmp_path / "bids/site"
    write_json(root / "dataset_description.json", DESCRIPTION)
    for folder in ("derivatives/xcp_d", "derivatives/other"):
        write_parcellated_bold(root / folder, "1", "Three", PARCELS, bold(40), {"RepetitionTime": 1.5})
    write_parcellation(root, "Three", PARCELS, np.array([[-40.0, 0, 30], [40, 0, 30], [0, 20, 50]]))
    write_tsv(root / "participants.tsv", ("participant_id",), [("sub-1",)])
    config = CorpusConfig(bids_root=root.parent, out_dir=tmp_path / "corpus")
    plan = make_plan(config, KEY.encode())
    assert plan.notes == [
        "site: derivatives of other, xcp_d hold the same runs, taken: other; name one with `derivatives`"
    ]
    named = make_plan(config.model_copy(update={"derivatives": "xcp_d"}), KEY.encode())
    assert named.notes == []
    (shard,) = named.shards
    assert shard.samples[0].recordings[0].file.startswith("derivatives/xcp_d/")
