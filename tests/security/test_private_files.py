"""Attacks on what a build keeps to itself: original names beside their hashes, on a disk and in an object store.

Covers: data_sharding/build/receipts.py
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.find import find_recordings, find_sites
from mcsp.data_sharding.bids.write import write_eeg, write_json
from mcsp.data_sharding.build.corpus import build_corpus, ray_session
from mcsp.data_sharding.build.receipts import private_place
from mcsp.data_sharding.clean.read import ReadingProcess
from tests.data_sharding.conftest import CHANNELS, DESCRIPTION, KEY, eeg_uv
from tests.object_store import object_store

NAME = b"annakarenina"
SIDECAR = {"SamplingFrequency": 250, "PowerLineFrequency": 50}


@pytest.fixture
def open_session() -> Iterator[Path]:
    """Ray under a umask that lets everybody read and write; the folder of its logs."""
    import ray

    before = os.umask(0)
    with pytest.MonkeyPatch.context() as patch, ray_session(workers=1):
        patch.setenv("MCSP_SUBJECT_KEY", KEY)
        yield Path(ray._private.worker._global_node.get_logs_dir_path())
    os.umask(before)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site of a sound and a damaged recording of somebody whose label is a name."""
    root = tmp_path / "bids" / "clinic"
    write_json(root / "dataset_description.json", DESCRIPTION)
    write_eeg(root, NAME.decode(), "rest", eeg_uv(), CHANNELS, SIDECAR)
    write_eeg(root, NAME.decode(), "move", eeg_uv(), CHANNELS, SIDECAR).write_bytes(b"0       damaged" + bytes(300))
    return tmp_path / "bids"


def test_a_build_s_own_files_are_for_its_owner_alone_and_logs_name_nobody(
    site: Path, tmp_path: Path, open_session: Path
) -> None:
    out = tmp_path / "corpus"
    build_corpus(CorpusConfig(bids_root=site, out_dir=out, max_quarantined=1.0))
    build = out / ".build"
    for path in (build, *build.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    named = [path for path in out.rglob("*") if path.is_file() and NAME in path.read_bytes()]
    assert named and all(build in path.parents for path in named)
    logs = [path for path in open_session.rglob("*") if path.is_file()]
    assert logs and not [path for path in logs if NAME in path.read_bytes()]


def test_what_libraries_print_about_a_recording_goes_nowhere(site: Path, tmp_path: Path) -> None:
    config = CorpusConfig(bids_root=site, out_dir=tmp_path / "out")
    with ReadingProcess(config) as process:
        process.read(find_recordings(find_sites(config)[0])[1])
        assert process.process is not None
        assert {os.readlink(f"/proc/{process.process.pid}/fd/{output}") for output in (1, 2)} == {os.devnull}


def test_an_object_store_has_no_name_in_it_and_needs_a_place_for_them(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCSP_SUBJECT_KEY", KEY)
    with object_store("published") as store:
        values = {"bids_root": site, "out_dir": "s3://published/corpus", "max_quarantined": 1.0, "workers": 1}
        with pytest.raises(ValueError, match=r"^s3://published/corpus: .*; set private_dir to a place") as error:
            build_corpus(CorpusConfig(**values))
        assert "\n" not in str(error.value)
        private = tmp_path / "private"
        config = CorpusConfig(**values, private_dir=private)
        index, _ = build_corpus(config)
        assert index["totals"]["all"]["recordings"] == 1
        assert build_corpus(config)[1], "the receipts were found again"
        objects = store.find("published")
        assert len(objects) > 5 and not [name for name in objects if NAME in name.encode() + store.cat_file(name)]
        assert NAME in (private / "rejected.tsv").read_bytes() and private.stat().st_mode & 0o777 == 0o700
        other = config.model_copy(update={"out_dir": "s3://published/other", "seed": 1})
        with pytest.raises(ValueError, match=r"private: holds a corpus of another configuration"):
            build_corpus(other)


@pytest.mark.parametrize(
    ("out", "private"),
    [
        ("s3://b/corpus", "s3://b/corpus"),
        ("s3://b/corpus", "s3://b/corpus/x/"),
        ("corpus", "corpus/.build/x"),
        ("a", "./a"),
    ],
)
def test_a_private_place_inside_of_the_corpus_is_refused(out: str, private: str) -> None:
    config = CorpusConfig(bids_root="bids", out_dir=out, private_dir=private)
    line = r"^private_dir: found \S+, a part of out_dir=\S+, expected a place outside of it$"
    with pytest.raises(ValueError, match=line):
        private_place(config)
    private_place(config.model_copy(update={"private_dir": f"{out}-private"}))
