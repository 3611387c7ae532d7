"""Output files are whole or not there, in UTF-8 on every machine, and an error names them."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from mcsp.encode.files import Features, write_features, write_table
from mcsp.model.weights import write_tensors
from mcsp.output import whole_file, write_whole


@contextmanager
def full_disk(most_bytes: int) -> Iterator[None]:
    """Inside, no file of this process can be longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failing_rename_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "beat.json"
    write_whole(path, "1")
    write_whole(path, "2")

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match=f"Input/output error: '{path}'"):
        write_whole(path, "3")
    assert path.read_text() == "2"
    monkeypatch.undo()
    write_whole(path, "3")
    assert path.read_text() == "3" and [p.name for p in tmp_path.iterdir()] == ["beat.json"]


def test_a_full_disk_names_the_file_and_leaves_what_was_there(tmp_path: Path) -> None:
    def save(path: Path) -> None:
        from safetensors.numpy import save_file

        save_file({"x": np.zeros(10_000)}, path)

    rows = [Features(f"{i}.edf", "eeg", ["eeg_0"], np.full(1, i / 3)) for i in range(2000)]
    writers = {
        "features.tsv": lambda path: write_features(rows, path),
        "features.npz": lambda path: write_features(rows, path),
        "table.tsv": lambda path: write_table(path, ["a"], ({"a": "b" * 100} for _ in range(2000))),
        "results.json": lambda path: write_whole(path, "0" * 50_000),
        "head.safetensors": lambda path: write_tensors(path, save),
    }
    for name, write in writers.items():
        path = tmp_path / name
        path.write_text("of before")
        with full_disk(20_000), pytest.raises(OSError, match=name):
            write(path)
        assert path.read_text() == "of before"
        write(path)
        assert path.stat().st_size > 20_000
    assert {p.name for p in tmp_path.iterdir()} == set(writers)


def test_a_place_that_takes_no_file_is_named_before_the_work(tmp_path: Path) -> None:
    def never() -> Iterator[Features]:
        raise AssertionError("the first row was made")
        yield

    (tmp_path / "folder.tsv").mkdir()
    for name, error in (("folder.tsv", IsADirectoryError), ("none/table.tsv", FileNotFoundError)):
        with pytest.raises(error, match=name):
            write_features(never(), tmp_path / name)
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "table.tsv"):
        1 / 0  # noqa: B018  what fails in the block is passed on
    with pytest.raises(FileNotFoundError, match="other"), whole_file(tmp_path / "table.tsv"):
        (tmp_path / "other").read_text()  # another file keeps its name
    assert [p.name for p in tmp_path.iterdir()] == ["folder.tsv"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "table.tsv").symlink_to(tmp_path / "far" / "table.tsv")
    write_whole(tmp_path / "table.tsv", "a")
    assert (tmp_path / "table.tsv").is_symlink() and (tmp_path / "far" / "table.tsv").read_text() == "a"


def test_text_is_utf_8_where_the_machine_has_another_encoding(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, mcsp.output; mcsp.output.write_whole(pathlib.Path(sys.argv[1]), 'R\\u00b2 \\u982d\\n')"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "report.html")], check=True, env=environment)
    assert (tmp_path / "report.html").read_bytes().decode() == "R\u00b2 \u982d\n"
