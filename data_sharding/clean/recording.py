"""Result of reading one recording: a clean array in physical units, valid spans, quality, stored form.

Shape letters: T time samples, C channels.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.schema import MAD_TO_SD

STORED_DTYPE = np.dtype("<f2")
# The largest good value is stored as 5,000..10,000: values down to a billionth of it keep fp16's 11 bits, and bad
# channels have room above.
_TARGET_PEAK = 1e4
_FP16_MAX = 65504.0


@dataclass(frozen=True)
class CleanRecording:
    """One recording in one of the units of :func:`mcsp.schema.units_of`."""

    x_TC: np.ndarray  # float32; zero where a channel could not be computed
    sfreq: float  # Hz
    unit: str
    channels: list[str]
    positions_C3: np.ndarray  # mm, NaN where unknown
    channel_good_C: np.ndarray  # bool
    valid_spans: list[int] = field(default_factory=list)  # start, stop, start, stop ... in samples
    # bad_channels, amplitude (median over the good channels of the robust amplitude; in arbitrary units robust_scale,
    # by which the values were divided), artefact_fraction; for fMRI with confounds also mean_fd_mm, max_fd_mm and
    # mean_dvars.
    quality: dict[str, float] = field(default_factory=dict)
    space: str = ""  # of the parcels' positions
    repairs: tuple[str, ...] = ()  # one line for each thing that was wrong with the files and put right
    began: float = math.nan  # seconds since 1970 by the scanner's clock; NaN where unknown; never stored

    @property
    def seconds(self) -> float:
        """Duration [s]."""
        return len(self.x_TC) / self.sfreq


def valid_seconds(recording: CleanRecording) -> float:
    """Total length of the valid spans [s]."""
    spans = np.asarray(recording.valid_spans).reshape(-1, 2)
    return float((spans[:, 1] - spans[:, 0]).sum() / recording.sfreq)


def spans_of(valid_T: np.ndarray) -> list[int]:
    """Start, stop, start, stop ... of the stretches that are true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], valid_T, [False]])))
    return [int(edge) for edge in edges]


def robust_amplitude(x_CT: np.ndarray) -> np.ndarray:
    """Median absolute deviation over time of each channel, scaled to the standard deviation of a Gaussian, ``(C,)``."""
    x_CT = np.ascontiguousarray(x_CT)  # sorting along another axis would copy every row
    deviation_CT = np.abs(x_CT - _median(x_CT)[:, None])
    return MAD_TO_SD * _median(deviation_CT)


def _median(x_CT: np.ndarray) -> np.ndarray:
    """As ``np.median`` over the last axis, to the bit, in a third of its time: numpy sorts with wide registers."""
    sorted_CT = np.sort(x_CT, axis=1)
    n = x_CT.shape[1]
    middle_C = (sorted_CT[:, (n - 1) // 2] + sorted_CT[:, n // 2]) / 2
    return np.where(np.isnan(sorted_CT[:, -1]), np.nan, middle_C).astype(x_CT.dtype)


def summarise(amplitude_C: np.ndarray, good_C: np.ndarray, artefact_fraction: float) -> dict[str, float]:
    """The numbers that :attr:`CleanRecording.quality` has for either modality."""
    return {
        "bad_channels": float((~good_C).sum()),
        "amplitude": float(np.median(amplitude_C[good_C])),
        "artefact_fraction": round(float(artefact_fraction), 6),
    }


def require_good(finite_C: np.ndarray, flat_C: np.ndarray) -> np.ndarray:
    """Channels that are finite and not flat, bool ``(C,)``; raise :class:`RecordingError` where none is left."""
    if not finite_C.any():
        raise RecordingError("non-finite", f"none of {len(finite_C)} channels is finite throughout")
    good_C = finite_C & ~flat_C
    if not good_C.any():
        raise RecordingError("flat", f"all {int(finite_C.sum())} finite channels are constant")
    return good_C


def encode(x_TC: np.ndarray, good_C: np.ndarray) -> tuple[np.ndarray, float]:
    """Store physical values as little-endian float16 ``(T, C)``; physical = stored * scale.

    The scale is a power of two, so that scaling rounds nothing; it is set by the good channels, and what bad ones
    have beyond the range of float16 is clipped.
    """
    good_TC = x_TC if good_C.all() else x_TC[:, good_C]
    peak = max(float(good_TC.max()), -float(good_TC.min()))
    scale = 2.0 ** math.ceil(math.log2(peak / _TARGET_PEAK)) if peak > 0 else 1.0
    stored_TC = x_TC / np.float32(scale)
    if not good_C.all():
        np.clip(stored_TC, -_FP16_MAX, _FP16_MAX, out=stored_TC)
    return stored_TC.astype(STORED_DTYPE), scale
