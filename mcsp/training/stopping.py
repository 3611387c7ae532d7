"""How a run ends: asked to by a signal, a file or the death of its launcher; and ``exit.json``, which says why.

Batch systems send a signal before they take a machine away. The handler only sets a flag: anything more, even printing,
could break a save that is under way. The loop sums the flag over ranks: a request to any one stops all, after the step
they are in, with a checkpoint.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import NoReturn

from mcsp.run_log import first_to_name
from mcsp.training.clock import Clock

# As in sysexits.h: a temporary failure ("run me again"), a disk that takes no more, a hang, and data that cannot be
# trained on. Bad input ends like a typing error in the command line.
EXIT_AGAIN, EXIT_DISK, EXIT_HUNG, EXIT_DATA, EXIT_INPUT = 75, 74, 70, 65, 2
EXIT_COLLAPSED = 66  # embeddings all alike: the same command would end in the same way
GRACE_SECONDS = 120.0  # a rank that waits for a dead one never gets to the end of its step
STOP_FILE = "STOP"


class RunEnded(Exception):  # noqa: N818 (an end, not an error)
    """The run cannot go on; every rank raises it together."""

    def __init__(self, reason: str, detail: str, code: int) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.code = reason, detail, code


class StopRequest:
    """The flag of this process, and what sets it."""

    def __init__(self, run_dir: Path, rank: int, clock: Clock) -> None:
        self.run_dir, self.rank, self.clock = run_dir, rank, clock
        self.number = 0
        self._other = ""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):  # the last is Ctrl-C
            signal.signal(number, self._note)
        threading.Thread(target=self._watch, args=(launchers(),), daemon=True).start()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number

    @property
    def why(self) -> str:
        """In words; empty while nobody has asked."""
        return self._other or (signal.Signals(self.number).name if self.number else "")

    def _watch(self, above: list[tuple[int, str]]) -> None:
        since = 0.0
        while True:
            time.sleep(0.5)
            if not self.why:
                gone = [pid for pid, started in above if process_stat(pid)[1] != started]
                if gone:
                    self._other = f"end of the launcher (process {gone[0]})"
                elif self.rank == 0 and _there(self.run_dir / STOP_FILE):
                    self._other = f"file {STOP_FILE}"
            elif self.clock.phase != "checkpoint":  # a save takes as long as it takes
                since = since or time.monotonic()
                if time.monotonic() - max(since, self.clock.progress) > GRACE_SECONDS:
                    detail = f"{self.why}, but no progress for {GRACE_SECONDS:.0f} s in {self.clock.doing}"
                    write_exit(self.run_dir, "asked to stop", detail, self.clock.step, 1, self.rank)
                    os._exit(1)


def _there(path: Path) -> bool:
    """Whether there is a file; no where a network file system has trouble, which must not end the watch."""
    try:
        return path.exists()
    except OSError:
        return False


def process_stat(pid: int) -> tuple[int, str, str]:
    """Parent, start time and name of a process of this host; zero and empty where there is none that lives."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0, "", ""
    name, fields = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
    # A process that has ended stays in the table, as Z, until its parent asks for its exit status.
    return (0, "", "") if fields[0] in "ZX" else (int(fields[1]), fields[19], name)


def launchers() -> list[tuple[int, str]]:
    """Process id and start time of DeepSpeed's ``launch.py`` above this process, and of what started that.

    On the host where ``deepspeed`` was typed this is the process of that name, on others the ssh session. Nothing
    above them counts: a shell that closes does not end the run.
    """
    found: list[tuple[int, str]] = []
    pid = os.getppid()
    with contextlib.suppress(OSError):
        if b"deepspeed.launcher.launch" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return []
    while pid > 1:
        parent, started, name = process_stat(pid)
        found.append((pid, started))
        if len(found) > 1 and name not in ("sh", "bash", "dash"):
            break
        pid = parent
    return found


def reserve_exit(run_dir: Path) -> None:
    """Take the room for the exit record of rank 0 now: at the end the disk may be full."""
    with contextlib.suppress(OSError), _own_record(run_dir, 0).open("wb") as file:
        file.write(b" " * 4096)
        file.flush()
        os.fsync(file.fileno())


def _own_record(run_dir: Path, rank: int) -> Path:
    return run_dir / f".exit-{rank}.json"


def write_exit(run_dir: Path, reason: str, detail: str, step: int, code: int, rank: int) -> None:
    """Write ``exit.json`` unless another rank has: the first to say why is the one to know.

    Nothing is raised where it cannot be written: this is the last thing that a process does.
    """
    facts = {"reason": reason, "detail": detail, "step": step, "exit_code": code, "rank": rank}
    facts |= {"host": socket.gethostname(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    own, common = _own_record(run_dir, rank), run_dir / "exit.json"
    text = (json.dumps(facts) + "\n").encode()
    with contextlib.suppress(OSError):
        with open(own, "r+b" if own.exists() else "wb") as file:  # over what was reserved
            file.write(text)
            file.truncate()
        first_to_name(own, common)
        own.unlink(missing_ok=True)


def leave(code: int) -> NoReturn:
    """End the process with this status, once everything that was said is written.

    Without the interpreter's shutdown: threads of torch and its process groups may still run in it, and a run that has
    finished was then seen to end by SIGABRT ("terminate called without an active exception").
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def describe(error: BaseException) -> str:
    """An exception in one line, with the place in this project that it came through last."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and "/lib/python" not in f.filename] or frames
    place = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.500}{place}"
