"""The folder of a run, at its start: one that all ranks see and can write to, and that no other run is using."""

import contextlib
import json
import os
import re
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from mcsp import distributed
from mcsp.run_log import first_to_name
from mcsp.training.stopping import process_stat

LOCK = "lock.json"
BEAT_SECONDS = 5.0
LOOK_AGAIN_SECONDS = 10.0  # a network file system may show a new file only after some seconds


class InUse(Exception):  # noqa: N818 (a state of the folder)
    """Another run holds the folder; whatever is in it is that run's."""


def check(run_dir: Path) -> None:
    """Look whether this is one writable folder for all ranks; every rank calls it, and makes it where it is not there.

    Raises:
        ValueError: on every rank, with what the first rank found that had something against it.
    """
    token, problem, where = "", "", None
    if distributed.is_main():
        try:
            if re.match(r"[A-Za-z][\w+.-]*:/", str(run_dir)):
                raise ValueError("expected a folder that all hosts share, found a URL; copies go to mirror_dir")
            run_dir.mkdir(parents=True, exist_ok=True)
            handle, token = tempfile.mkstemp(prefix=".start-", dir=run_dir)
            os.close(handle)
            where = Path(token)
        except OSError as error:
            problem = f"cannot write there ({error.strerror}); choose a folder that you may write to"
        except ValueError as error:
            problem = str(error)
    problem, token = distributed.gather_objects((problem, token))[0]
    if not problem:
        found = distributed.gather_objects(_rank_sees(run_dir, Path(token).name))
        problem = next((text for text in found if text), "")
    if where is not None:
        where.unlink(missing_ok=True)
    if problem:
        raise ValueError(f"run_dir={run_dir}: {problem}")


def _rank_sees(run_dir: Path, token: str) -> str:
    """What this rank has against the folder in which rank 0 made the file ``token``, or nothing."""
    who = f"rank {distributed.rank()} on {socket.gethostname()}"
    deadline = time.monotonic() + LOOK_AGAIN_SECONDS
    while not (run_dir / token).exists():
        if time.monotonic() > deadline:
            return f"{who} sees another folder by this name than rank 0; put it on a file system that all hosts share"
        with contextlib.suppress(OSError):
            os.listdir(run_dir)  # has NFS ask its server again
        time.sleep(0.2)
    try:
        with tempfile.NamedTemporaryFile(prefix=".start-", dir=run_dir):
            pass
    except OSError as error:
        return f"{who} cannot write there ({error.strerror})"
    return ""


class Lock(threading.Thread):
    """Holds ``run_dir`` for this process of rank 0: ``lock.json`` names it, and a beat shows that it lives."""

    def __init__(self, run_dir: Path, beat_seconds: float = BEAT_SECONDS) -> None:
        """Take the lock; one that a dead process left is taken over.

        On its own host a process is known to be dead by its number and start time. Of one on another host the beat is
        waited for: three times ``beat_seconds`` without one, and it is dead.

        Raises:
            InUse: says who holds it.
        """
        super().__init__(daemon=True, name="lock of run_dir")
        self.path, self.beat_seconds = run_dir / LOCK, beat_seconds
        self._ended = threading.Event()
        self._me = {"host": socket.gethostname(), "pid": os.getpid(), "place": _place()}
        self._me |= {"started": process_stat(os.getpid())[1], "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        holder = _read(self.path)
        if holder and self._lives(holder):
            raise InUse(
                f"{run_dir}: in use by process {holder['pid']} on {holder['host']} since {holder['since']}; wait for "
                f"its end, stop it (touch {run_dir / 'STOP'}), or use another run_dir"
            )
        damaged = holder is None and self.path.exists() and _read(self.path) is None  # it is linked whole
        if holder or damaged:
            self.path.unlink(missing_ok=True)
        own = self.path.with_name(f".{LOCK}-{self._me['pid']}-{self._me['started']}")
        own.write_text(json.dumps(self._me) + "\n")
        try:
            if not first_to_name(own, self.path):
                raise InUse(f"{run_dir}: another run has started in it at this moment")
        finally:
            own.unlink(missing_ok=True)
        self.start()

    def _lives(self, holder: dict[str, Any]) -> bool:
        if holder["place"] == self._me["place"] and holder["started"]:  # unknown where there is no /proc
            return process_stat(holder["pid"])[1] == holder["started"]
        deadline = time.monotonic() + 3 * self.beat_seconds
        while time.monotonic() < deadline:
            time.sleep(self.beat_seconds / 5)
            now = _read(self.path)
            if now is None:
                return False
            if now != holder:
                return True
        return False

    def run(self) -> None:
        """Beat, until :meth:`release` or the end of the process."""
        while not self._ended.wait(self.beat_seconds):
            holder = _read(self.path)
            if holder is not None and (holder["place"], holder["pid"]) != (self._me["place"], self._me["pid"]):
                # This process was stopped for so long that it counted as dead. Whatever it writes now would spoil
                # the other run.
                taken = f"error: {self.path}: taken over by process {holder['pid']} on {holder['host']}"
                print(taken, file=sys.stderr, flush=True)
                os._exit(1)
            with contextlib.suppress(OSError):
                os.utime(self.path)  # takes no space, so it works on a full disk

    def release(self) -> None:
        """Give the folder back."""
        self._ended.set()
        self.join()
        self.path.unlink(missing_ok=True)


def _place() -> str:
    """What stands for all processes that know each other by number: a boot of a host, and a container on it."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _read(path: Path) -> dict[str, Any] | None:
    """Who holds a lock, and the time of its last beat; ``None`` where nobody does, or nobody can say."""
    try:
        with path.open("rb") as file:  # opening it, NFS asks its server again
            holder: dict[str, Any] = json.loads(file.read())
            beat = os.fstat(file.fileno()).st_mtime_ns
    except (OSError, ValueError):
        return None
    known = isinstance(holder, dict) and {"host", "pid", "place", "started", "since"} <= holder.keys()
    return {**holder, "beat": beat} if known else None
