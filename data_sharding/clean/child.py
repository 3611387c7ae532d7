"""The process that reads and cleans recordings; :mod:`mcsp.data_sharding.clean.read` starts it by its name.

It imports every reader, which takes seconds; those who wait for its answers do not import it.
"""

import ctypes
import gc
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from nilearn.datasets import get_data_dirs

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.derivatives import inputs_of, raw_roots
from mcsp.data_sharding.bids.find import RecordingRef
from mcsp.data_sharding.bids.pairing import acquisition_time
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.remote import local_copy
from mcsp.data_sharding.clean.fingerprint import fingerprint
from mcsp.data_sharding.clean.read import READY, Reading, SharedArray
from mcsp.data_sharding.clean.readers import read_recording
from mcsp.data_sharding.parcels.atlases import named_atlas
from mcsp.data_sharding.store.landlock import landlock_version, limit_to

_PR_SET_PDEATHSIG = 1
# What libraries open after they are imported, beside their own folders.
_OF_THE_SYSTEM = (
    "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime",
    "/dev/null", "/dev/urandom",
)  # fmt: skip


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
    for name in {config.fmri_of(site).atlas for site in (*config.sites, "")} - {None}:
        with suppress(ValueError):  # told with the recording that needs it
            named_atlas(str(name))  # may have to be downloaded, which a thread with limits cannot
    programs = _programs() if landlock_version() else None
    gc.freeze()  # what the readers consist of is never looked through again
    connection.send(READY)
    # What libraries print names files; it would stand in the logs of every worker.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        os.dup2(nowhere, output)
    while True:
        try:
            ref: RecordingRef | None = connection.recv()
        except EOFError:
            return
        connection.send(fingerprint() if ref is None else _answered(ref, config, memory, programs))


def _answered(
    ref: RecordingRef, config: CorpusConfig, memory: int, programs: list[Path] | None
) -> SharedArray | tuple[str, str]:
    """What :func:`_read` gives, from a thread and with a scratch folder of its own: limits end with the thread."""
    answers: list[SharedArray | tuple[str, str]] = []
    place = tempfile.gettempdir()
    tempfile.tempdir = tempfile.mkdtemp(prefix="mcsp-reading-")
    thread = threading.Thread(target=lambda: answers.append(_read(ref, config, memory, programs)))
    thread.start()
    thread.join()
    scratch, tempfile.tempdir = tempfile.tempdir, place
    try:
        os.rmdir(scratch)  # a tenth of what it costs to look for files in it, which few readers leave
    except OSError:
        shutil.rmtree(scratch, ignore_errors=True)
    return answers[0]


def _read(
    ref: RecordingRef, config: CorpusConfig, memory: int, programs: list[Path] | None
) -> SharedArray | tuple[str, str]:
    """A recording in ``memory``, or reason and detail; ``programs`` None: without limits."""
    try:
        with local_copy(ref) as here:
            if programs is not None:
                _limit_to_recording(here, programs)
            reading = Reading(read_recording(here, config), acquisition_time(here))
        return SharedArray.of(reading, memory)
    except RecordingError as error:
        return error.reason, str(error)
    except MemoryError:
        return "out-of-memory", f"reading needs more than read_memory_gb = {config.read_memory_gb:g}"
    except Exception as error:  # noqa: BLE001  of the tables beside it, or of the memory that both processes have
        return "unreadable", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _limit_to_recording(ref: RecordingRef, programs: list[Path]) -> None:
    """Limit this thread to reading the recording's folder and the files that belong to it, and to one scratch folder.

    A link is read where it leads, if that is in the dataset. Files of its annex have no names that tell whose they are.
    """
    roots = [ref.site.root, *raw_roots(ref)]
    trusted = [root.resolve() for root in (*roots, *(ref.site.trusted or ()))]
    folder = ref.path.parent
    elsewhere = [path for path in inputs_of(ref) if path.parent != folder or path.is_symlink()]
    own = [path.resolve() for path in (folder, *elsewhere)]
    own = [path for path in own if any(path.is_relative_to(root) for root in trusted)]
    own += [ref.site.root / ".git" / "annex" / "objects", *(ref.site.trusted or ())]
    if ref.site.label_image is not None:
        own.append(ref.site.label_image.parent)
    limit_to([*programs, *own], write=[Path(tempfile.gettempdir()), Path(os.devnull)], names=roots)


def _programs() -> list[Path]:
    """Python, its packages and what these read: only whole packages, for a single module may lie in any folder."""
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    own = [Path.home() / ".mne", *get_data_dirs()]  # settings of MNE, atlases of nilearn
    folders = [Path(path) for path in (sys.prefix, sys.base_prefix, *_OF_THE_SYSTEM, *own, *filter(None, libraries))]
    for _, module in sorted(sys.modules.items()):
        for path in map(Path, getattr(module, "__path__", ())):
            if not any(path.resolve().is_relative_to(folder) for folder in folders):
                folders.append(path.resolve())
    return folders


if __name__ == "__main__":
    serve(*(int(argument) for argument in sys.argv[1:]))
