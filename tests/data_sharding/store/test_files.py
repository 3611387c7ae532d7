"""Files of a corpus are complete or absent, on a disk and on the file systems that fsspec knows."""

import os
import pickle
from pathlib import Path

import pytest

from mcsp.data_sharding.store.files import is_local, location, names, new_file, read_range, size, write_atomic
from mcsp.outside import sha256_file


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "corpus") if request.param == "disk" else f"memory://{tmp_path.name}/corpus"


def test_what_is_written_can_be_read_in_parts(folder: str) -> None:
    place = location(folder)
    assert names(place) == [] and size(place / "a") is None
    place.mkdir(parents=True)
    write_atomic(place / "a", b"0123456789")
    write_atomic(place / "a", b"abcdefgh")
    write_atomic(place / "b", b"")
    assert names(place) == ["a", "b"]
    assert (size(place / "a"), size(place / "b"), size(place)) == (8, 0, None)
    assert read_range(place / "a", 2, 3) == b"cde" and read_range(place / "a", 6, 9) == b"gh"
    assert sha256_file(place / "b").startswith("e3b0c44298fc1c14")
    assert str(pickle.loads(pickle.dumps(place))) == str(place)
    with pytest.raises(OSError, match="absent"):
        read_range(place / "absent", 0, 1)


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(folder: str) -> None:
    place = location(folder)
    place.mkdir(parents=True)
    write_atomic(place / "a", b"old")

    def write_half() -> None:
        with new_file(place / "a") as temporary:
            temporary.write_bytes(b"half of the n")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_half()
    assert names(place) == ["a"] and (place / "a").read_bytes() == b"old"


def test_places_and_protocols(tmp_path: Path) -> None:
    assert location(f"file://{tmp_path}") == tmp_path == location(os.fspath(tmp_path)) == location(tmp_path)
    assert is_local(location(tmp_path)) and not is_local(location("memory://a"))
    with pytest.raises(ValueError, match="nowhere://x: cannot use nowhere://"):
        location("nowhere://x")
