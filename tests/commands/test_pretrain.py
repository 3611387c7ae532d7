"""Ranks on one host are started and stopped by the command itself, and DeepSpeed's launcher is quiet unless asked."""

import json
import os
import signal
import subprocess
import sys
import time
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


@pytest.mark.slow
@pytest.mark.multirank
def test_ctrl_c_saves_and_ends_without_a_traceback(corpus_dir: Path, tmp_path: Path) -> None:
    """As a terminal sends it: to the process group of the command."""
    run_dir = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "mcsp",
        "pretrain",
        "--ranks",
        "2",
        f"corpus_dir={corpus_dir}",
        f"run_dir={run_dir}",
    ]
    command += ["steps=1000", "window_seconds={eeg: 10, fmri: 30}", "batch={paired: 4, eeg: 0, fmri: 0}"]
    with (tmp_path / "told").open("w+") as told:
        # A shell starts jobs in the background without the signal, and commands keep what they are started with.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(command, stdout=told, stderr=told, cwd=ROOT, start_new_session=True)
        signal.signal(signal.SIGINT, before)
        try:
            deadline = time.monotonic() + 200
            while not (run_dir / "metrics.jsonl").is_file() or not (run_dir / "metrics.jsonl").stat().st_size:
                assert time.monotonic() < deadline and process.poll() is None, (tmp_path / "told").read_text()
                time.sleep(0.1)
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(120) == 75
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(60)
    end = json.loads((run_dir / "exit.json").read_text())
    assert (end["reason"], end["exit_code"]) == ("asked to stop", 75)
    assert (run_dir / "checkpoints" / f"step-{end['step']:08d}" / "manifest.json").is_file()
    words = (tmp_path / "told").read_text()
    assert "asked to stop after step" in words and "Traceback" not in words
