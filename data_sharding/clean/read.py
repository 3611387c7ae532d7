"""Read each recording in a separate process, so that a crash, a hang or too much memory affects one file only.

One such process serves many recordings, one after the other; it is replaced when it dies or is too slow. What goes to
and fro between the two are messages of ``multiprocessing.connection``.
"""

import ctypes
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import numpy as np

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import RecordingRef
from mcsp.data_sharding.clean.recording import CleanRecording
from mcsp.data_sharding.store.files import location, names, private_folder, write_atomic
from mcsp.data_sharding.store.index import BUILD_NAME
from mcsp.provenance import ROOT

# System calls of Landlock: the same numbers on x86-64, arm64 and all that came later.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH, _PR_SET_NO_NEW_PRIVS = 1, 1, 38
_WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14
# Remove and make folders, files, links; no devices and no sockets.
_CHANGE_FOLDER = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 12
# Version of the interface -> how many rights on files it knows: 2 has REFER, 3 TRUNCATE, 5 IOCTL_DEV.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NO_TCP, _NO_SIGNALS_OR_ABSTRACT_SOCKETS = 0b11, 0b11


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def landlock_version() -> int:
    """Version of the interface that this kernel has; 0 where it has none or does not allow it."""
    if sys.platform != "linux":
        return 0
    return max(_libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION), 0)


def limit_to(read: Iterable[Path], write: Iterable[Path] = (), names: Iterable[Path] = ()) -> None:
    """Limit the calling thread for good; what it has opened stays open.

    It can read, write and run nothing else, and from version 4 on connect to nothing by TCP, from 6 on send signals to
    nobody outside. Paths that are not there are left out.

    Args:
        read: files, and folders with all below them.
        write: folders in which it may also make and remove files, and files that it may write.
        names: folders whose names, and those of all folders below, can be listed.

    Raises:
        OSError: the kernel refuses; ask :func:`landlock_version` first.
    """
    version = landlock_version()
    rights = (1 << _RIGHTS.get(version, 16)) - 1
    ruleset = _Ruleset(rights, _NO_TCP if version >= 4 else 0, _NO_SIGNALS_OR_ABSTRACT_SOCKETS if version >= 6 else 0)
    handle = _call("create_ruleset", _CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(_size(version)), 0)
    try:
        allowed: dict[Path, int] = {}
        changes = _READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE | _CHANGE_FOLDER
        for paths, asked in ((read, _READ_FILE | _READ_DIR), (write, changes), (names, _READ_DIR)):
            for path in paths:
                allowed[path] = allowed.get(path, 0) | asked
        for path, asked in allowed.items():
            _allow(handle, path, asked & rights)
        if _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "Landlock: no_new_privs is refused")
        _call("restrict_self", _RESTRICT_SELF, handle, 0)
    finally:
        os.close(handle)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # absent, or in a folder that is closed to us anyway
        return
    try:
        if not stat.S_ISDIR(os.fstat(parent).st_mode):
            rights &= _READ_FILE | _WRITE_FILE | _TRUNCATE
        if rights:
            rule = _PathBeneath(rights, parent)
            _call("add_rule", _ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(parent)


def _size(version: int) -> int:
    """Bytes of the ruleset that a version knows."""
    return 8 if version < 4 else 16 if version < 6 else 24


def _call(name: str, number: int, *arguments: object) -> int:
    result = int(_libc().syscall(number, *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"Landlock: {name} is refused ({os.strerror(error)})")
    return result


@lru_cache(maxsize=1)  # opened anew, it would cost more than all the calls of a limit
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


# Started by name: who waits for recordings never imports what reads them.
_CHILD = "mcsp.data_sharding.clean.child"
_KILL_SECONDS = 10
_START_SECONDS = 300.0
READY = "ready"
SCRATCH = "mcsp-reading-"  # and the process's number: how the names of scratch folders begin
# A process that dies without a word is asked once more: the machine may have killed it for another one's memory.
_ATTEMPTS = 2
# All that the reading process gets of the environment: a hostile file may make it read its own.
_ALLOWED = (
    "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "MNE_DATA", "NILEARN_DATA",
    "NILEARN_SHARED_DATA", "COVERAGE_FILE",
)  # fmt: skip
# Memory of a small recording serves the next one: to get and clear it anew costs as much as to write it.
_KEPT_BYTES = 1 << 23
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclass(frozen=True)
class SharedArray:
    """A recording whose values lie in memory that both processes have: in a message they would be copied five times."""

    clean: CleanRecording
    shape: tuple[int, ...]

    @classmethod
    def of(cls, clean: CleanRecording, memory: int) -> "SharedArray":
        """Put the values of a recording into ``memory``, a file descriptor."""
        x_TC = np.ascontiguousarray(clean.x_TC, dtype=np.float32)
        content, place = x_TC.data.cast("B"), 0
        while place < len(content):
            place += os.pwrite(memory, content[place:], place)
        return cls(replace(clean, x_TC=np.empty((0, x_TC.shape[1]), dtype=np.float32)), x_TC.shape)

    def take(self, memory: int) -> CleanRecording:
        """The recording with its values; where these are many, they leave ``memory``."""
        x_TC = np.empty(self.shape, dtype=np.float32)
        content, place = x_TC.data.cast("B"), 0
        while place < len(content):
            n_bytes = os.preadv(memory, [content[place:]], place)
            if n_bytes == 0:
                raise EOFError("the reading process gave less than it said")
            place += n_bytes
        if len(content) > _KEPT_BYTES:
            os.ftruncate(memory, 0)
        return replace(self.clean, x_TC=x_TC)


class ReadingProcess:
    """Reads recordings in another process, within ``read_timeout_seconds`` and ``read_memory_gb`` of ``config``."""

    def __init__(self, config: CorpusConfig) -> None:
        """Start nothing yet; the process starts with the first recording."""
        self.config = config
        self.process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._memory = -1

    def read(self, ref: RecordingRef) -> CleanRecording:
        """Read and clean one recording; raise :class:`RecordingError` with the reason, whatever happens to it."""
        ended = "no process"
        for _ in range(_ATTEMPTS):
            answer, ended = self._ask(ref, self.config.read_timeout_seconds)
            if isinstance(answer, CleanRecording):
                return answer
            if isinstance(answer, tuple):
                raise RecordingError(*answer)
        if ended == "killed by SIGKILL":
            raise RecordingError("out-of-memory", f"the reading process was {ended}, as a machine without memory does")
        raise RecordingError("native-crash", f"the reading process was {ended}")

    def fingerprint(self) -> str:
        """What the recipe makes of a fixed recording here (:func:`mcsp.data_sharding.clean.child.fingerprint`)."""
        answer, ended = self._ask(None, 600.0)
        if not isinstance(answer, str):
            raise ValueError(f"cannot compute the numeric fingerprint: {answer or ended}")
        return answer

    def _ask(self, question: RecordingRef | None, seconds: float) -> tuple[Any, str]:
        """The answer, or None and how the process ended."""
        process, connection = self._started()
        try:
            connection.send(question)
            if not connection.poll(seconds):
                self.close()
                return ("timeout", f"not read within {seconds:g} s"), ""
            answer = connection.recv()
            if isinstance(answer, SharedArray):
                return answer.take(self._memory), ""
            return answer, ""
        except (EOFError, OSError):
            try:
                code = process.wait(_KILL_SECONDS)
            except subprocess.TimeoutExpired:
                code = 0
            self.close()
            return None, f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"

    def _started(self) -> tuple[subprocess.Popen[bytes], Connection]:
        if self.process is None or self._connection is None or self.process.poll() is not None:
            self.close()
            ours, theirs = socket.socketpair()
            self._memory = os.memfd_create("mcsp-recording")
            # What is importable here must be there: a checkout on sys.path, or Ray's copy of a working directory.
            paths = [str(ROOT), *filter(None, sys.path)]
            environment = {name: os.environ[name] for name in _ALLOWED if name in os.environ} | ONE_THREAD
            arguments = [str(number) for number in (theirs.fileno(), self._memory, os.getpid())]
            self.process = subprocess.Popen(
                [sys.executable, "-m", _CHILD, *arguments],
                env={**environment, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
                pass_fds=[theirs.fileno(), self._memory],
                stdin=subprocess.DEVNULL,
            )
            theirs.close()
            self._connection = Connection(ours.detach())
            self._connection.send(self.config)
            # Importing the readers is not part of reading a recording.
            if not self._connection.poll(_START_SECONDS) or self._connection.recv() != READY:
                raise OSError(f"the reading process did not start within {_START_SECONDS:g} s")
        return self.process, self._connection

    def close(self) -> None:
        """End the process; one that the kernel does not let go of is left behind."""
        if self._connection is not None:
            self._connection.close()
        if self.process is not None:
            self.process.kill()
            with suppress(subprocess.TimeoutExpired):  # stuck in the kernel, on a network disk for example
                self.process.wait(_KILL_SECONDS)
            for left in Path(tempfile.gettempdir()).glob(f"{SCRATCH}{self.process.pid}-*"):
                shutil.rmtree(left, ignore_errors=True)
        if self._memory >= 0:
            os.close(self._memory)
        self.process, self._connection, self._memory = None, None, -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_FOLDER = "timeouts"

USED_UP = "the time of the site is used up"  # how the line of such a recording begins

# Between two looks at what the other workers have lost: a listing of an object store takes some 20 ms.
_LOOK_SECONDS = 5.0


class SiteTime:
    """How much time the files of each site that never end have cost a build: one site must not stop all others.

    A mark for each loss lies beside the shards, where all workers see it.
    """

    def __init__(self, config: CorpusConfig) -> None:
        """Of the build that ``config`` describes."""
        self._folder = location(config.out_dir) / BUILD_NAME / _FOLDER
        self._config = config
        self._known: dict[str, tuple[float, int]] = {}  # site -> when looked at, marks

    def lose(self, site: str) -> None:
        """A recording of the site was not read within its time."""
        folder = self._folder / site
        private_folder(self._folder)
        private_folder(folder)
        write_atomic(folder / uuid.uuid4().hex, b"", private=True)
        self._known.pop(site, None)

    def require(self, site: str) -> None:
        """Raise :class:`RecordingError` (``timeout``) where the site has used up its time."""
        looked, marks = self._known.get(site, (-_LOOK_SECONDS, 0))
        if time.monotonic() - looked >= _LOOK_SECONDS:
            marks = len(names(self._folder / site))
            self._known[site] = (time.monotonic(), marks)
        lost, limit = marks * self._config.read_timeout_seconds, self._config.site_timeout_seconds
        if lost > 0 and lost >= limit:
            cost = f"files of this site that never end have cost {lost:g} s"
            raise RecordingError("timeout", f"{USED_UP}: {cost}, expected less than site_timeout_seconds = {limit:g}")

    def forget(self) -> None:
        """Begin anew: the losses of an earlier run of this build may have been mended."""
        for site in names(self._folder):
            for mark in names(self._folder / site):
                (self._folder / site / mark).unlink(missing_ok=True)
