"""What a result file says of its origin: true, and without a path of the machine."""

import json
import os
import subprocess
from pathlib import Path

import numpy
import pytest

from mcsp import provenance


def test_the_machine_is_told_and_no_path_of_it() -> None:
    found = provenance.made_by(["numpy", "no-such-package"])
    assert found["versions"] == {"numpy": numpy.__version__, "no-such-package": None}
    assert found["hardware"]["cores"] == len(os.sched_getaffinity(0))
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    assert found["hardware"]["memory_gib"] == pytest.approx(pages, abs=0.5)
    assert str(provenance.ROOT) not in json.dumps(found) and "UUID" not in json.dumps(found)


def test_the_commit_says_whether_tracked_files_were_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance.commit() is None, "a folder that is no checkout"
    who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a"}

    def git(*arguments: str) -> str:
        command = ["git", "-c", "commit.gpgsign=false", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **who}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "first")
    clean = provenance.commit()
    assert clean == git("rev-parse", "--short=7", "HEAD")
    (tmp_path / "untracked").touch()
    assert provenance.commit() == clean
    (tmp_path / "a").write_text("2")
    assert provenance.commit() == f"{clean}-dirty"
