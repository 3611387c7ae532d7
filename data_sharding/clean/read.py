"""Read each recording in a separate process, so that a crash, a hang or too much memory affects one file only.

One such process serves many recordings, one after the other; it is replaced when it dies or is too slow. What goes to
and fro between the two are messages of ``multiprocessing.connection``.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
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
