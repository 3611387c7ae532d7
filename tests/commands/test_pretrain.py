"""Ranks on one host are started by the command itself, and DeepSpeed's launcher keeps quiet unless asked."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.multirank
def test_ranks_are_started_quietly_and_verbose_tells_what_the_launcher_says(corpus_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mcsp", "pretrain", "--ranks", "2", "--config", "pretrain/demo.yaml", "--check"]
    command += [
        f"corpus_dir={corpus_dir}",
        f"run_dir={tmp_path / 'run'}",
        "steps=2",
        "window_seconds={eeg: 10, fmri: 30}",
    ]
    command += ["batch={paired: 4, eeg: 0, fmri: 0}"]
    quiet, told = (
        subprocess.run([*command, *more], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
        for more in ([], ["--verbose"])
    )
    assert (quiet.returncode, told.returncode) == (0, 0), quiet.stderr + told.stderr
    assert all("memory of the fullest of 2 rank(s)" in done.stdout for done in (quiet, told))
    launcher = [line for line in (told.stdout + told.stderr).splitlines() if "[INFO]" in line]
    assert len(launcher) >= 8 and any("WORLD INFO" in line for line in launcher)
    assert "[INFO]" not in quiet.stdout + quiet.stderr
    assert not (tmp_path / "run").exists()
