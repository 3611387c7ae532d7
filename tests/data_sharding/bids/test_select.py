"""Which files of a dataset are wanted: labels, patterns, .bidsignore, and the folder of a pipeline.

Covers: data_sharding/bids/find.py
"""

from pathlib import Path

import pytest

from mcsp.config import CorpusConfig
from mcsp.config.corpus import Selection
from mcsp.data_sharding.bids.find import find_recordings, find_sites, is_label, pipelines_of
from mcsp.data_sharding.bids.ref import Site
from mcsp.data_sharding.bids.write import write_json

FILES = [
    f"sub-{s}/ses-{n}/eeg/sub-{s}_ses-{n}_task-{task}_run-0{run}_eeg.edf"
    for s in ("01", "02", "03") for n in ("a", "b") for task, run in (("rest", 1), ("rest", 2), ("move", 1))
]  # fmt: skip


def dataset(root: Path, *names: str) -> Path:
    write_json(root / "dataset_description.json", {"Name": "x"})
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(root: Path, notes: list[str] | None = None, **selection: object) -> list[str]:
    site = Site("site", root, False, None, selection=Selection.parse(selection, "test"))
    return [ref.file for ref in find_recordings(site, notes=notes)]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({}, lambda f: True),
        ({"subjects": ["01", "sub-03"]}, lambda f: "sub-02" not in f),
        ({"subjects": [1]}, lambda f: "sub-01" in f),  # as YAML reads 01
        ({"sessions": ["ses-a"]}, lambda f: "ses-a" in f),
        ({"tasks": ["rest"], "runs": [1]}, lambda f: "task-rest_run-01" in f),
        ({"runs": ["02"]}, lambda f: "run-02" in f),
        ({"exclude": ["sub-02"]}, lambda f: "sub-02" not in f),
        ({"exclude": ["02", "sub-03/ses-b/*"]}, lambda f: "sub-02" not in f and "sub-03/ses-b" not in f),
        ({"exclude": ["sub-01/ses-a", "*task-move*"]}, lambda f: "sub-01/ses-a" not in f and "move" not in f),
        ({"subjects": ["9"]}, lambda f: False),
    ],
)
def test_labels_and_patterns(tmp_path: Path, selection: dict[str, object], expected: object) -> None:
    root = dataset(tmp_path, *FILES)
    assert found(root, **selection) == sorted(filter(expected, FILES))  # type: ignore[call-overload]


def test_a_site_says_what_differs_from_all(tmp_path: Path) -> None:
    for name in ("a", "b"):
        dataset(tmp_path / name, *FILES)
    sites = {"a": {"path": tmp_path / "a", "subjects": ["01"]}, "b": {"path": tmp_path / "b"}}
    config = CorpusConfig.parse({"sites": sites, "out_dir": "out", "tasks": ["move"], "subjects": ["02", "03"]}, "test")
    counts = {site.name: len(find_recordings(site)) for site in find_sites(config)}
    assert counts == {"a": 2, "b": 4}


def test_what_bidsignore_names_is_not_there(tmp_path: Path) -> None:
    root = dataset(tmp_path, *FILES)
    (root / ".bidsignore").write_text("# trials of the amplifier\n*_run-02_*\nsub-03/\n!sub-01/**/*_run-02_*\n")
    expected = [f for f in FILES if "sub-03" not in f and ("run-02" not in f or "sub-01" in f)]
    assert found(root) == sorted(expected)
    (root / ".bidsignore").write_bytes(b"\xff\xfe*\x00")
    notes: list[str] = []
    assert found(root, notes) == sorted(FILES)
    assert len(notes) == 1 and ".bidsignore is not used" in notes[0]


def test_raw_comes_first_and_a_pipeline_is_named(tmp_path: Path) -> None:
    raw = "sub-1/eeg/sub-1_task-rest_eeg.set"
    cleaned, other = (f"derivatives/{name}/{raw}" for name in ("cleaned", "other"))
    only_there = "derivatives/cleaned/sub-2/eeg/sub-2_task-rest_desc-clean_eeg.fif"
    bold = "sub-1/func/sub-1_task-rest_bold.nii.gz"
    processed = "derivatives/fmriprep/sub-1/func/sub-1_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
    root = dataset(tmp_path, raw, cleaned, other, only_there, bold, processed)
    assert found(root) == [only_there, processed, raw]
    assert found(root, derivatives="cleaned") == [cleaned, only_there, bold]
    assert found(root, derivatives="fmriprep") == [processed, raw]
    assert found(root, derivatives="none") == [raw, bold]
    assert pipelines_of(f"derivatives/a/derivatives/b/{raw}") == ["a", "b"]
    assert pipelines_of("derivatives/a/bold.nii") == ["a"] and pipelines_of("derivatives/bold.nii") == []


def test_numbers_are_labels_with_or_without_zeros() -> None:
    assert is_label(1, "sub-", "001") and is_label("sub-01", "sub-", "01") and is_label("1", "run-", "01")
    assert not is_label("1", "sub-", "01") and not is_label(1, "sub-", "x") and not is_label(1, "ses-", None)
