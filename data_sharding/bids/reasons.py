"""Why a recording is not stored: the list of reasons, and the error that carries one of them."""

import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Why a recording was found and not stored. docs/corpus-format.md has the same table, and a test compares them.
REASONS = {
    # files
    "unreadable": "the reader of the format fails on the file",
    "missing-file": "a file that the recording's header names is absent",
    "truncated": "the file ends before its header says it does",
    "wrong-length": "the file holds more than its header, or lasts otherwise than its sidecar says",
    "not-continuous": "the file holds pieces with gaps between them",
    "invalid-json": "a JSON sidecar that is no JSON object",
    "bad-encoding": "a sidecar or table that is not UTF-8",
    "bad-table": "a table with text, gaps or too few columns where numbers are expected",
    "too-short": "less time than min_seconds",
    # EEG
    "sfreq-mismatch": "SamplingFrequency of the sidecar and the file's header differ by more than 1 %",
    "channels-mismatch": "channels.tsv speaks of other channels than the file holds",
    "no-channels": "no EEG channel or no parcel in the file",
    "unknown-montage": "no EEG channel has a position, by its name or in electrodes.tsv",
    "wrong-unit": "amplitude that microvolts of EEG, or the percent that a BOLD sidecar says, cannot explain",
    "clipped": "too many channels sit at the limits of their range",
    "bad-channels": "too many channels are marked bad or unlike the others",
    "artefacts": "less than min_seconds outside of artefacts",
    # EEG and fMRI
    "non-finite": "too many channels hold NaN or infinity",
    "flat": "too many channels are constant",
    # fMRI
    "missing-t_r": "no RepetitionTime in the sidecar",
    "t_r-mismatch": "RepetitionTime is no plausible number of seconds, or the image header says otherwise",
    "not-4d": "an image that is no series of volumes",
    "no-volumes": "a time series without volumes",
    "singular-affine": "an image whose affine maps no voxel to a place",
    "no-label-image": "a 4-D image without a parcellation",
    "bad-label-image": "a parcellation image that holds no integer labels",
    "no-orientation": "an image that does not say where its voxels lie, so left and right may be exchanged",
    "label-space-mismatch": "image and parcellation lie in different spaces, or nothing says in which",
    "unknown-parcellation": "a time series whose parcels have no positions, so that the model has no place for them",
    "parcels-mismatch": "time series and parcellation have different numbers of parcels",
    "parcels-missing": "too many parcels of the parcellation have no signal",
    "no-baseline": "BOLD whose mean is neither a baseline for percent signal change nor zero, as of denoised series",
    "missing-confounds": "no confounds of fMRIPrep beside the image, although the configuration asks for them",
    "confounds-mismatch": "confounds and time series have different numbers of volumes",
    "motion": "less than min_seconds outside of motion",
    # what only the builder sees
    "timeout": "reading took longer than the limit",
    "native-crash": "the process that read the file died",
    "out-of-memory": "reading needed more memory than the limit",
    "duplicate": "the same content as another recording of the corpus",
    "suspected-personal-data": "text that may identify a person would have gone along",
}


_DETAIL_LENGTH = 200
_BEGINS_WITH_FILE = re.compile(r"[^\s:]+\.\w*[A-Za-z]\w*[: ]")  # and not "2.0 s"


class RecordingError(ValueError):
    """A recording that must not be stored; ``reason`` is a key of :data:`REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        assert reason in REASONS, reason
        self.reason = reason


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Put ``file`` in front of an error of the body that does not begin with the name of a file."""
    try:
        yield
    except RecordingError as error:
        if _BEGINS_WITH_FILE.match(str(error)) or str(error).startswith(file):
            raise
        raise RecordingError(error.reason, f"{file}: {error}") from None


@contextmanager
def reading(root: Path) -> Iterator[None]:
    """Turn what MNE, nibabel, pandas and the codecs below them raise on a damaged file into a :class:`RecordingError`.

    The path of ``root`` is left out of the text: it would make an index depend on the machine.
    """
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    damaged = (
        OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError,
        struct.error, zlib.error, ImageFileError, HeaderDataError,
    )  # fmt: skip
    try:
        yield
    except RecordingError:
        raise
    except damaged as error:
        detail = " ".join(str(error).split()).replace(f"{root}{os.sep}", "")
        raise RecordingError("unreadable", f"{type(error).__name__}: {detail}"[:_DETAIL_LENGTH]) from None
