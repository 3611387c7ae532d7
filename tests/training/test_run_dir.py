"""The folder of a run at its start: one for all ranks, writable, and used by one run."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mcsp.config import PretrainConfig
from mcsp.training import run_dir
from mcsp.training.run_dir import LOCK, InUse, Lock, check
from tests.training.disks import small_disk
from tests.training.ranks import ROOT


def test_what_is_no_writable_folder_is_refused_in_one_line(tmp_path, monkeypatch) -> None:
    def refused(folder: Path | str) -> str:
        config = PretrainConfig.load(None, ["corpus_dir=c", f"run_dir={folder}"])
        with pytest.raises(ValueError, match="run_dir=") as caught:
            check(config.run_dir)
        return str(caught.value)

    assert "found a URL; copies go to mirror_dir" in refused("s3://bucket/run")
    assert not Path("s3:").exists()
    (tmp_path / "file").write_text("")
    assert "cannot write there (File exists)" in refused(tmp_path / "file")
    assert "cannot write there (Not a directory)" in refused(tmp_path / "file" / "run")
    assert "cannot write there (No such file or directory)" in refused("/proc/run")  # takes no folder, not even root's
    check(tmp_path / "new" / "run")
    assert list((tmp_path / "new" / "run").iterdir()) == []
    monkeypatch.setattr(run_dir, "LOOK_AGAIN_SECONDS", 0.1)
    assert "rank 0 on " in run_dir._rank_sees(tmp_path, ".start-that-is-not-here")
    assert "another folder by this name than rank 0" in run_dir._rank_sees(tmp_path, ".start-that-is-not-here")


def test_a_path_is_meant_as_it_is_typed(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = PretrainConfig.load(None, ["corpus_dir=~/corpus", "run_dir=~/run #2", "init_from=~/old"])
    assert config.run_dir == tmp_path / "run #2"
    assert config.init_from == tmp_path / "old" and config.corpus_dir == str(tmp_path / "corpus")
    quoted = PretrainConfig.load(None, ["corpus_dir=s3://b/c", "run_dir='run #2'  # the second", "steps=5"])
    assert str(quoted.run_dir) == "run #2" and quoted.corpus_dir == "s3://b/c" and quoted.steps == 5
    with pytest.raises(ValueError, match=r"steps: .*found '5 # all'"):
        PretrainConfig.load(None, ["corpus_dir=c", "run_dir=r", "steps=5 # all"])


HOLDER = """
import sys, time
from pathlib import Path
from mcsp.training.run_dir import Lock
Lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_run_is_told_who_holds_the_folder_and_takes_it_when_that_has_died(tmp_path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(InUse, match=f"{tmp_path}: in use by process {holder.pid} on .* since 20.*use another run_"):
            Lock(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    lock = Lock(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_lock_and_a_full_disk(tmp_path) -> None:
    (tmp_path / LOCK).write_text('{"host": "no')
    Lock(tmp_path).release()
    with small_disk(tmp_path / "disk", 2**14) as disk:
        with pytest.raises(OSError, match="No space left"):
            (disk / "fill").write_bytes(bytes(2**15))
        with pytest.raises(OSError, match="No space left"):
            Lock(disk)
        (disk / "fill").unlink()
        lock = Lock(disk)
        with pytest.raises(OSError, match="No space left"):
            (disk / "fill").write_bytes(bytes(2**15))
        lock.release()
        assert [p.name for p in disk.iterdir()] == ["fill"]


def elsewhere(folder: Path) -> Path:
    """The lock of a process of another host, whose number says nothing here."""
    lock = Lock(folder)
    facts = json.loads((folder / LOCK).read_text())
    lock.release()
    (folder / LOCK).write_text(json.dumps({**facts, "place": "another boot", "host": "node7"}))
    return folder / LOCK


def test_a_holder_on_another_host_lives_as_long_as_it_beats(tmp_path) -> None:
    path = elsewhere(tmp_path)
    beating = subprocess.Popen(["bash", "-c", f"for i in $(seq 100); do sleep 0.05; touch {path}; done"])
    try:
        with pytest.raises(InUse, match=r"in use by process \d+ on node7"):
            Lock(tmp_path, beat_seconds=1.0)
    finally:
        beating.kill()
        beating.wait()
    lock = Lock(tmp_path, beat_seconds=0.1)
    before = path.stat().st_mtime_ns
    deadline = time.monotonic() + 10
    while path.stat().st_mtime_ns == before:
        assert time.monotonic() < deadline, "it does not beat"
        time.sleep(0.05)
    lock.release()


def test_a_run_that_counted_as_dead_ends_when_another_has_taken_over(tmp_path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER.replace("sys.argv[1])", "sys.argv[1]), 0.1"), str(tmp_path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        facts = json.loads((tmp_path / LOCK).read_text())
        (tmp_path / "new").write_text(json.dumps({**facts, "pid": os.getpid(), "host": "node7"}))
        os.replace(tmp_path / "new", tmp_path / LOCK)
        assert holder.wait(20) == 1
        assert holder.stderr is not None and f"taken over by process {os.getpid()} on node7" in holder.stderr.read()
    finally:
        holder.kill()
        holder.communicate()
