"""The process that reads and cleans recordings; :mod:`mcsp.data_sharding.clean.read` starts it by its name.

It imports every reader, which takes seconds; those who wait for its answers do not import it.
"""

import ctypes
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.find import RecordingRef
from mcsp.data_sharding.bids.pairing import acquisition_time
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.remote import local_copy
from mcsp.data_sharding.clean.fingerprint import fingerprint
from mcsp.data_sharding.clean.read import READY, Reading, SharedArray
from mcsp.data_sharding.clean.readers import read_recording

_PR_SET_PDEATHSIG = 1


def serve(descriptor: int, memory: int, parent: int) -> None:
    """The other process: answer until the connection closes or the parent dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    connection = Connection(descriptor)
    config: CorpusConfig = connection.recv()
    limit = int(config.read_memory_gb * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection.send(READY)
    while True:
        try:
            ref: RecordingRef | None = connection.recv()
        except EOFError:
            return
        answer: SharedArray | str | tuple[str, str]
        try:
            if ref is None:
                answer = fingerprint()
            else:
                with local_copy(ref) as here:
                    reading = Reading(read_recording(here, config), acquisition_time(here))
                answer = SharedArray.of(reading, memory)
        except RecordingError as error:
            answer = (error.reason, str(error))
        except MemoryError:
            answer = ("out-of-memory", f"reading needs more than read_memory_gb = {config.read_memory_gb:g}")
        except Exception as error:  # noqa: BLE001  of the tables beside it, or of the memory that both processes have
            answer = ("unreadable", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        connection.send(answer)


if __name__ == "__main__":
    serve(*(int(argument) for argument in sys.argv[1:]))
