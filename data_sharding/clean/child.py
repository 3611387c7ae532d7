"""The process that reads and cleans recordings; :mod:`mcsp.data_sharding.clean.read` starts it by its name.

It imports every reader, which takes seconds; those who wait for its answers do not import it.
"""

import ctypes
import gc
import hashlib
import os
import resource
import signal
import sys
import tempfile
import threading
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from nilearn.datasets import get_data_dirs

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.find import find_recordings
from mcsp.data_sharding.bids.reasons import RecordingError, reading
from mcsp.data_sharding.bids.ref import RecordingRef, Site, acquisition_time, inputs_of, is_read, raw_roots
from mcsp.data_sharding.bids.remote import local_copy
from mcsp.data_sharding.bids.tables import real_folder, require_content, require_inside
from mcsp.data_sharding.bids.write import write_eeg, write_json, write_parcellated_bold, write_parcellation
from mcsp.data_sharding.clean.eeg import read_eeg
from mcsp.data_sharding.clean.fmri import read_fmri
from mcsp.data_sharding.clean.landlock import landlock_version, limit_to
from mcsp.data_sharding.clean.read import READY, SCRATCH, SharedArray
from mcsp.data_sharding.clean.recording import CleanRecording, encode, valid_seconds
from mcsp.data_sharding.parcels.atlases import named_atlas

_PR_SET_PDEATHSIG = 1
# What libraries open after they are imported, beside their own folders.
_OF_THE_SYSTEM = (
    "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime",
    "/dev/null", "/dev/urandom",
)  # fmt: skip
# Channels and parcels of the fixed recordings.
_CHANNELS = ["Fp1", "Fp2", "C3", "C4", "O1", "O2", "Cz", "Pz"]
_PARCELS = ["left", "right", "middle"]
_EEG_SIDECAR = {"SamplingFrequency": 250, "PowerLineFrequency": 50}
_EXPECTED = {
    "eeg": "expected .edf, .bdf, .vhdr, .set or .fif: MNE-BIDS converts it",
    "fmri": "expected *_bold.nii.gz, *_timeseries.tsv, .csv, .npy or .1D with seg-, or *.ptseries.nii",
}


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
    with tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{os.getpid()}-", ignore_cleanup_errors=True) as scratch:
        tempfile.tempdir = scratch
        thread = threading.Thread(target=lambda: answers.append(_read(ref, config, memory, programs)))
        thread.start()
        thread.join()
        tempfile.tempdir = place
    return answers[0]


def _read(
    ref: RecordingRef, config: CorpusConfig, memory: int, programs: list[Path] | None
) -> SharedArray | tuple[str, str]:
    """A recording in ``memory``, or reason and detail; ``programs`` None: without limits."""
    real_folder.cache_clear()
    try:
        with nullcontext(ref) if ref.site.url is None else local_copy(ref) as here:
            if programs is not None:
                _limit_to_recording(here, programs)
            clean = replace(read_recording(here, config), began=acquisition_time(here))
        return SharedArray.of(clean, memory)
    except RecordingError as error:
        return error.reason, str(error)
    except MemoryError:
        return "out-of-memory", f"reading needs more than read_memory_gb = {config.read_memory_gb:g}"
    except Exception as error:  # noqa: BLE001  of the tables beside it, or of the memory that both processes have
        return "unreadable", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def read_recording(ref: RecordingRef, config: CorpusConfig) -> CleanRecording:
    """Read and clean one recording; raise :class:`RecordingError` with the reason, whatever is wrong with the file."""
    min_seconds = config.min_seconds.get(ref.modality, 0.0)
    with reading(ref.site.root, ref.path.name):
        # First, for nothing outside is opened, not even to look whether it is there; a link to nowhere is told as such.
        require_inside(ref.site, [ref.path] if ref.path.exists() else ())
        if not is_read(ref.path.name):
            raise RecordingError("unreadable", f"{ref.path.name}: a format that is not read, {_EXPECTED[ref.modality]}")
        require_content(ref.path)
        require_inside(ref.site, ref.inputs())
        if ref.modality == "eeg":
            clean = read_eeg(ref, config.eeg_of(ref.site.name), min_seconds)
        else:
            clean = read_fmri(ref, config.fmri_of(ref.site.name), min_seconds)
    if valid_seconds(clean) < min_seconds:
        detail = f"{valid_seconds(clean):.1f} s outside of bad spans, expected at least {min_seconds:g} s"
        raise RecordingError("too-short", detail)
    return clean


def _limit_to_recording(ref: RecordingRef, programs: list[Path]) -> None:
    """Limit this thread to reading the recording's folder and the files that belong to it, and to one scratch folder.

    A link is read where it leads, if that is in the dataset. Files of its annex have no names that tell whose they are.
    """
    roots = [ref.site.root, *raw_roots(ref.path.parent, ref.site.root)]
    trusted = [real_folder(root) for root in (*roots, *(ref.site.trusted or ()))]
    folder = ref.path.parent
    own = [real_folder(folder)]
    for path in inputs_of(ref):
        if path.is_symlink():
            own.append(path.resolve())
        elif path.parent != folder:
            own.append(real_folder(path.parent) / path.name)
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


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """SHA-256 over the stored bytes of a synthetic EDF file and BOLD table; equal on machines that compute alike.

    They pass reading, cleaning and encoding under the default configuration. Sums of a few sines and a linear
    congruential sequence, so that no random generator of a library is part of it.
    """
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(prefix="mcsp-fingerprint-") as folder:
        root = Path(folder)
        write_json(root / "dataset_description.json", {"Name": "fingerprint", "BIDSVersion": "1.10.0"})
        write_eeg(root, "1", "rest", _signals(len(_CHANNELS), 40 * 250), _CHANNELS, _EEG_SIDECAR)
        bold = 10_000 + _signals(len(_PARCELS), 120)
        write_parcellation(root, "three", _PARCELS, np.array([[-40.0, 0, 20], [40, 0, 20], [0, -50, 30]]))
        write_parcellated_bold(root, "1", "three", _PARCELS, bold, {"RepetitionTime": 1.5})
        config = CorpusConfig(bids_root=root, out_dir=root, min_seconds={"eeg": 0, "fmri": 0})
        for ref in find_recordings(Site("fingerprint", root, True, None)):
            clean = read_recording(ref, config)
            stored_TC, scale = encode(clean.x_TC, clean.channel_good_C)
            digest.update(f"{ref.modality} {stored_TC.shape} {scale}".encode() + stored_TC.tobytes())
    return digest.hexdigest()


def _signals(n_channels: int, n_samples: int) -> np.ndarray:
    """Sines of three frequencies per channel plus pseudo-random steps, amplitude about 30, ``(C, T)``."""
    t = np.arange(n_samples)
    rows = []
    for channel in range(n_channels):
        sines = sum(20 / k * np.sin(2 * np.pi * t * (k + channel) / (31.7 * k)) for k in (1, 2, 3))
        noise = (t * 1103515245 + 12345 + channel * 99991) % 65521 / 65521 - 0.5
        rows.append(sines + 10 * noise)
    return np.array(rows)


if __name__ == "__main__":
    serve(*(int(argument) for argument in sys.argv[1:]))
