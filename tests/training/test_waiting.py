"""Ranks that wait for longer than they may hang, and know that they do; and what a process that was stopped does then.

Covers: mcsp/training/watchdog.py
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mcsp.training.clock import Clock
from mcsp.training.stopping import EXIT_HUNG, StopRequest
from mcsp.training.watchdog import Watchdog
from tests.training.ranks import ROOT, environment, start_ranks

PROGRAM = Path(__file__).with_name("waiting_program.py")


@pytest.mark.slow
@pytest.mark.multirank
def test_a_mirror_may_take_longer_than_a_rank_may_hang(pretrain_overrides, tmp_path) -> None:
    """At the end, of a run that was asked to stop and of one that has finished; and before the first step."""
    run_dir = tmp_path / "run"
    own = [*pretrain_overrides, "steps=4", "checkpoint_every=100", f"mirror_dir={tmp_path / 'mirror'}"]
    for kind, more, code, reason in (
        ("stopped", "watchdog_seconds=300", 75, "asked to stop"), ("fetched", "watchdog_seconds=30", 0, "finished"),
    ):  # fmt: skip
        ranks = start_ranks(2, PROGRAM, kind, *own, more)
        outputs = [process.communicate(timeout=240)[0] for process in ranks]
        assert [process.returncode for process in ranks] == [code, code], outputs
        told = json.loads((run_dir / "exit.json").read_text())
        assert (told["reason"], told["exit_code"], told["step"]) == (reason, code, 3 if code else 4)
        shutil.rmtree(run_dir / "checkpoints")
    names = sorted(path.name for path in (tmp_path / "mirror" / "checkpoints").iterdir())
    assert names[-1] == "step-00000004"


BUSY = """
import sys, time, torch
from pathlib import Path
from mcsp.training.clock import Clock
from mcsp.training.watchdog import Watchdog
clock = Clock(torch.device("cpu"))
Watchdog(Path(sys.argv[1]), 0, 1, 6.0, clock).start()
for _ in range(25):
    clock.enter("forward")
    end = time.process_time() + 0.2  # of work, of which a stop leaves the rest to do
    while time.process_time() < end:
        pass
"""


def test_a_process_that_was_stopped_as_a_whole_goes_on(tmp_path) -> None:
    """Ctrl-Z and fg, or a batch system that suspends jobs; the clock of the machine has gone on."""
    process = subprocess.Popen([sys.executable, "-c", BUSY, str(tmp_path)], env=environment(), cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "heartbeats").glob("rank-*")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGSTOP)
        time.sleep(9)
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()


HANGS = """
import sys, time, torch
from pathlib import Path
from mcsp.training.clock import Clock
from mcsp.training.watchdog import Watchdog
watchdog = Watchdog(Path(sys.argv[1]), 0, 1, 1.0, Clock(torch.device("cpu")))
watchdog.start()
time.sleep(60)
"""


def test_a_hang_is_reported_also_where_no_stacks_can_be_written(tmp_path) -> None:
    (tmp_path / "stacks").write_text("a file, not a folder")
    done = subprocess.run(
        [sys.executable, "-c", HANGS, str(tmp_path)], env=environment(), cwd=ROOT, capture_output=True, text=True,
        timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == EXIT_HUNG
    assert "watchdog: all ranks are alive and none waits for another" in done.stderr, done.stderr
    assert "stacks: cannot write stacks (" in done.stderr and "Traceback" not in done.stderr
    assert json.loads((tmp_path / "exit.json").read_text())["reason"] == "watchdog"


def test_a_folder_that_cannot_be_written_does_not_end_the_watch(tmp_path, capfd) -> None:
    (tmp_path / "run").write_text("a file, not a folder")
    watchdog = Watchdog(tmp_path / "run", 0, 1, 600.0, Clock(torch.device("cpu")))
    watchdog.start()
    deadline = time.monotonic() + 10
    while watchdog.beat < 1 or "cannot write the heartbeat" not in capfd.readouterr().err:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert watchdog.is_alive()


def test_a_file_system_with_trouble_does_not_end_the_watch_for_requests(tmp_path) -> None:
    """A name that is too long stands for a network file system: to look for a file there is an error, too."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        request = StopRequest(tmp_path / ("a" * 300), 0, Clock(torch.device("cpu")))
        time.sleep(1.2)
        request.run_dir = tmp_path
        (tmp_path / "STOP").touch()
        deadline = time.monotonic() + 10
        while request.why != "file STOP":
            assert time.monotonic() < deadline, "nobody looks any more"
            time.sleep(0.1)
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        request.clock.phase = "checkpoint"  # its thread watches on
