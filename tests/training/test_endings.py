"""How runs end that are not left to finish: launchers that die, ranks that stop, links that break.

Covers: mcsp/training/stopping.py, mcsp/training/watchdog.py
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mcsp.run_log import read_events, read_metrics
from mcsp.training.clock import Clock
from mcsp.training.run import status_of
from mcsp.training.run_dir import Lock
from mcsp.training.stopping import EXIT_DISK, RunEnded, StopRequest, describe, reserve_exit, write_exit
from mcsp.training.watchdog import diagnose
from tests.training import hosts
from tests.training.disks import small_disk
from tests.training.ranks import LAUNCHER, ROOT, deepspeed, environment, last_step, pretrain


def processes(run_dir: Path, *words: str) -> list[int]:
    """Processes with the run's folder and all ``words`` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if entry.name.isdigit() and f"run_dir={run_dir}" in line and all(word in line for word in words):
            found.append(int(entry.name))
    return found


def wait(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def wait_for_step(run_dir: Path, step: int) -> None:
    wait(lambda: last_step(run_dir) >= step, 150, f"step {step} of {run_dir}")


def ended(run_dir: Path) -> dict:
    return json.loads((run_dir / "exit.json").read_text())


@pytest.mark.slow
@pytest.mark.multirank
def test_whatever_happens_to_a_launcher_the_run_is_saved_and_nothing_is_left(finished_run, tmp_path) -> None:
    _, overrides = finished_run
    run_dir = tmp_path / "run"

    def tell(number: int, *words: str) -> None:
        [pid] = processes(run_dir, *words)
        os.kill(pid, number)

    causes: dict[str, Callable[[], object]] = {
        "deepspeed, SIGTERM": lambda: tell(signal.SIGTERM, "bin/deepspeed"),
        "deepspeed, SIGUSR1": lambda: tell(signal.SIGUSR1, "bin/deepspeed"),
        "deepspeed, SIGKILL": lambda: tell(signal.SIGKILL, "bin/deepspeed"),
        "Ctrl-C": lambda: [os.kill(pid, signal.SIGINT) for pid in processes(run_dir)],  # as a terminal sends it
        "launch.py, SIGTERM": lambda: tell(signal.SIGTERM, "deepspeed.launcher.launch"),
        "launch.py, SIGKILL": lambda: tell(signal.SIGKILL, "deepspeed.launcher.launch"),
        "STOP": (run_dir / "STOP").touch,
    }
    step = 0
    for cause, act in causes.items():
        launcher = deepspeed(f"run_dir={run_dir}", *overrides, "steps=4000", "checkpoint_every=10000", "workers=1")
        try:
            wait_for_step(run_dir, step + 2)
            act()
            wait(lambda: not processes(run_dir), 60, f"the end of all processes after {cause}")
            code = launcher.wait(timeout=10)
        finally:
            for pid in processes(run_dir):
                os.kill(pid, signal.SIGKILL)
        told = ended(run_dir)
        assert told["reason"] == "asked to stop" and told["exit_code"] == 75 and told["step"] > step, (cause, told)
        step = told["step"]
        assert (run_dir / "checkpoints" / f"step-{step:08d}").is_dir(), cause
        assert not (run_dir / "STOP").exists()
        if cause == "STOP":
            assert code == 75 and told["detail"] == "file STOP on rank 0"
    assert [m["step"] for m in read_metrics(run_dir)] == list(range(1, step + 1))
    assert len([e for e in read_events(run_dir) if e["event"] == "start"]) == len(causes)


@pytest.mark.slow
@pytest.mark.multirank
def test_a_stopped_rank_is_named_and_the_launcher_ends(finished_run, tmp_path) -> None:
    _, overrides = finished_run
    run_dir = tmp_path / "run"
    launcher = deepspeed(f"run_dir={run_dir}", *overrides, "steps=4000", "watchdog_seconds=20")
    try:
        wait_for_step(run_dir, 3)
        [stopped] = processes(run_dir, "--local_rank=1")
        os.kill(stopped, signal.SIGSTOP)
        assert launcher.wait(timeout=120) == 70
        wait(lambda: not processes(run_dir), 45, "the end of all processes")
    finally:
        for pid in processes(run_dir):
            os.kill(pid, signal.SIGKILL)
    told = ended(run_dir)
    assert told["reason"] == "watchdog" and told["exit_code"] == 70 and told["rank"] == 0
    assert f"silent (stopped, dead or cut off): rank 1 ({told['host']}, process {stopped}, last in " in told["detail"]
    assert "waiting: rank 0" in told["detail"]
    stacks = (run_dir / "stacks" / "rank-00000.txt").read_text()
    assert told["detail"] in stacks and "/mcsp/training/run.py" in stacks and "most recent call first" in stacks


@pytest.mark.slow
@pytest.mark.multirank
@pytest.mark.skipif(bool(hosts.missing()), reason=f"two hosts on one machine need: {hosts.missing()}")
def test_a_broken_link_between_hosts_is_noticed_on_both(finished_run, tmp_path) -> None:
    _, overrides = finished_run
    run_dir = tmp_path / "run"
    (tmp_path / "env").write_text(f"GLOO_SOCKET_IFNAME={hosts.INTERFACE}\nDS_ACCELERATOR=cpu\nOMP_NUM_THREADS=1\n")
    env = environment() | {"DS_ENV_FILE": str(tmp_path / "env"), "PDSH_RCMD_TYPE": "ssh"}
    with hosts.two_hosts(tmp_path) as two:
        launch = [
            str(Path(sys.executable).with_name("deepspeed")), "--hostfile", str(tmp_path / "hostfile"),
            "--master_addr", hosts.ADDRESSES["a"], str(LAUNCHER), f"run_dir={run_dir}", *overrides,
            "steps=4000", "watchdog_seconds=20",
        ]  # fmt: skip
        launcher = subprocess.Popen(
            two.command("a", *launch), env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_for_step(run_dir, 3)
            hosts.ip("-n", f"{two.tag}a", "link", "set", hosts.INTERFACE, "down")
            assert launcher.wait(timeout=120) != 0
            wait(lambda: not processes(run_dir, "--local_rank"), 45, "the end of all ranks")
        finally:
            for pid in processes(run_dir):
                os.kill(pid, signal.SIGKILL)
    told = ended(run_dir)
    assert told["reason"] == "watchdog" and told["exit_code"] == 70
    assert told["detail"].startswith("all ranks are alive: a link is down, or their collectives differ; ")
    assert "rank 0 (hosta" in told["detail"] and "rank 1 (hostb" in told["detail"]
    assert sorted(p.name for p in (run_dir / "stacks").iterdir()) == ["rank-00000.txt", "rank-00001.txt"]


def beat(rank: int, beat: int, phase: str, diagnosing: bool = False) -> dict:
    facts = {"rank": rank, "host": f"node{rank}", "pid": 100 + rank, "beat": beat, "step": 6, "phase": phase}
    return facts | {"idle_seconds": 30.0, "diagnosing": diagnosing}


def test_diagnosis_tells_silent_busy_and_waiting_ranks_apart() -> None:
    waits = "communication of backward"
    earlier = {r: beat(r, 5, waits) for r in (0, 1, 3)} | {2: beat(2, 5, "data")}
    later = {0: beat(0, 6, waits), 1: beat(1, 5, waits), 2: beat(2, 6, "data"), 3: beat(3, 5, waits, diagnosing=True)}
    report, reporter = diagnose(earlier, later, 5)
    assert reporter == 0
    silent, busy, waiting = report.split("; ")
    assert silent == (
        "silent (stopped, dead or cut off): rank 1 (node1, process 101, last in communication of backward, "
        "step 7), rank 4 (no heartbeat yet)"
    )
    assert busy.startswith("busy: rank 2 (node2, process 102, in data, step 7") and "rank 0" in waiting
    assert "rank 3" in waiting
    everyone = {r: beat(r, 6, waits) for r in range(12)}
    report, _ = diagnose({r: beat(r, 5, waits) for r in range(12)}, everyone, 12)
    assert report.startswith("all ranks are alive: a link is down") and report.endswith(" and 4 more")
    starting = {r: beat(r, 6, "start") for r in range(2)}
    report, _ = diagnose({r: beat(r, 5, "start") for r in range(2)}, starting, 2)
    alive = (
        "all ranks are alive and none waits for another: the start takes longer than watchdog_seconds, or a GPU hangs"
    )
    assert report.startswith(f"{alive}; busy: rank 0 (node0, process 100, in start, for ")
    report, _ = diagnose({0: beat(0, 5, "start")}, {0: beat(0, 6, "forward")}, 1)
    assert "another: what they do takes longer" in report and "in forward, step 7" in report


def test_the_first_to_say_why_a_run_ended_is_heard(tmp_path) -> None:
    write_exit(tmp_path, "error", "the cause", 3, 1, rank=5)
    write_exit(tmp_path, "error", "Connection closed by peer", 3, 1, rank=0)
    assert ended(tmp_path)["detail"] == "the cause" and ended(tmp_path)["rank"] == 5
    assert [p.name for p in tmp_path.iterdir()] == ["exit.json"]
    write_exit(tmp_path / "gone", "error", "nowhere to write", 3, 1, rank=0)


def test_there_is_room_for_the_exit_record_on_a_full_disk(tmp_path) -> None:
    with small_disk(tmp_path / "disk", 2**16) as disk:
        reserve_exit(disk)
        with pytest.raises(OSError, match="No space left"):
            (disk / "fill").write_bytes(bytes(2**17))
        write_exit(disk, "cannot save", "No space left on device", 3, EXIT_DISK, rank=0)
        assert ended(disk)["detail"] == "No space left on device" and not (disk / ".exit-0.json").exists()


def test_the_record_has_the_status_that_the_process_ends_with(pretrain_overrides, tmp_path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    lock = Lock(run_dir)
    said = pretrain(*pretrain_overrides, expect=1)
    assert f"error: {run_dir}: in use by process {os.getpid()} on " in said and "Traceback" not in said
    assert [p.name for p in run_dir.iterdir()] == ["lock.json"], "the folder is another run's"
    lock.release()
    said = pretrain(*pretrain_overrides, "batch={paired: 4, eeg: 2, fmri: 0}", expect=2)
    assert "error: " in said and "Traceback" not in said
    told = ended(run_dir)
    assert {p.name for p in run_dir.iterdir()} == {"exit.json", "heartbeats"}
    assert told["exit_code"] == 2 and told["detail"].startswith("ValueError: ")
    full = OSError(errno.ENOSPC, "No space left on device")
    assert [status_of(e) for e in (full, OSError("other"), ValueError(), KeyboardInterrupt(), RuntimeError())] == [
        EXIT_DISK, 1, 2, 130, 1,
    ]  # fmt: skip


ABORTS = """
import atexit, os, signal, sys
atexit.register(os.abort)  # as what is left of torch's threads did, now and then
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts jobs in the background without it
from launchers.pretrain import main
if sys.argv.pop(1) == "interrupted":
    import mcsp.training.run as run
    run.check = lambda run_dir: os.kill(os.getpid(), signal.SIGINT)
main()
"""


def test_nothing_that_happens_while_the_interpreter_shuts_down_changes_how_a_run_ended(
    pretrain_overrides, tmp_path
) -> None:
    def started(how: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", ABORTS, how, *pretrain_overrides, "steps=1"]
        return subprocess.run(
            command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
        )

    done = started("finished")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ended(tmp_path / "run")["reason"] == "finished" and f"run: {tmp_path / 'run'}" in done.stdout
    early = started("interrupted")  # before the first step, where no checkpoint is to be saved
    assert early.returncode == 130 and "Traceback" not in early.stderr, early.stderr
    assert "interrupted before the first step" in early.stderr
    (tmp_path / "run" / "exit.json").unlink()


def test_ctrl_c_is_a_request_to_stop_like_sigterm(tmp_path) -> None:
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        request = StopRequest(tmp_path, 1, Clock(torch.device("cpu")))
        assert request.why == ""
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # an impatient user
        assert request.why == "SIGINT"
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        request.clock.phase = "checkpoint"  # its thread, which watches on, lets a save take as long as it takes


def test_an_exception_is_described_with_its_line() -> None:
    def fails() -> None:
        raise RuntimeError("two\nlines")

    with pytest.raises(RuntimeError) as caught:
        fails()
    line = fails.__code__.co_firstlineno + 1
    assert describe(caught.value) == f"RuntimeError: two lines (test_endings.py:{line})"
    assert str(RunEnded("too many rollbacks", "4", 65)) == "too many rollbacks: 4"


def test_time_goes_to_its_phase_and_collectives_to_communication() -> None:
    clock = Clock(torch.device("cpu"))
    time.sleep(0.02)
    clock.split()  # the start counts nowhere
    begin = time.perf_counter()
    clock.enter("forward")
    time.sleep(0.03)
    with clock.collective(), clock.collective():
        assert clock.doing == "communication of forward"
        time.sleep(0.05)
    between = time.perf_counter()
    clock.enter("optimizer")
    time.sleep(0.02)
    split = clock.split()
    assert split["forward"] >= 0.03 and split["communication"] >= 0.05 and split["optimizer"] >= 0.02
    assert split["data"] == split["backward"] == split["checkpoint"] == 0
    # Nothing counts twice. (Waking up from a sleep may take any time, so nothing is bounded from above by itself.)
    assert split["forward"] + split["communication"] <= between - begin + 1e-3
    assert sum(split.values()) <= time.perf_counter() - begin
