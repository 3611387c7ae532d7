"""What reading one recording gives: a clean array in physical units, or a reason why not.

Shape letters: T time samples, C channels.
"""

from dataclasses import dataclass, field

import numpy as np

REASONS = {
    "unreadable": "the file or its sidecar cannot be read",
    "too-short": "less valid time than min_seconds",
    "non-finite": "every channel holds NaN or infinity",
    "flat": "every channel is constant",
    "no-channels": "no EEG channel or no parcel in the file",
    "wrong-unit": "EEG amplitude that microvolts cannot explain",
    "sfreq-mismatch": "SamplingFrequency of the sidecar and the file's header differ",
    "missing-t_r": "no RepetitionTime in the sidecar",
    "t_r-mismatch": "RepetitionTime is no plausible number of seconds, or the image header says otherwise",
    "no-label-image": "a 4-D image without a usable parcellation",
    "no-baseline": "BOLD without its mean, so percent signal change is undefined",
}


class RecordingError(ValueError):
    """A recording that must not be stored; ``reason`` is a key of :data:`REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        assert reason in REASONS, reason
        self.reason = reason


@dataclass(frozen=True)
class CleanRecording:
    """One recording in the units of :data:`mcsp.schema.UNITS`."""

    x_TC: np.ndarray  # float32; zero where a channel could not be computed
    sfreq: float  # Hz
    channels: list[str]
    positions_C3: np.ndarray  # mm, NaN where unknown
    channel_good_C: np.ndarray  # bool
    valid_spans: list[int] = field(default_factory=list)  # start, stop, start, stop ... in samples


def valid_seconds(recording: CleanRecording) -> float:
    """Total length of the valid spans [s]."""
    spans = np.asarray(recording.valid_spans).reshape(-1, 2)
    return float((spans[:, 1] - spans[:, 0]).sum() / recording.sfreq)


def robust_amplitude(x_CT: np.ndarray) -> np.ndarray:
    """Median absolute deviation over time of each channel, scaled to the standard deviation of a Gaussian, ``(C,)``."""
    deviation_CT = np.abs(x_CT - np.median(x_CT, axis=1, keepdims=True))
    return 1.4826 * np.median(deviation_CT, axis=1)


def require_good(finite_C: np.ndarray, flat_C: np.ndarray) -> np.ndarray:
    """Channels that are finite and not flat, bool ``(C,)``; raise :class:`RecordingError` where none is left."""
    if not finite_C.any():
        raise RecordingError("non-finite", f"none of {len(finite_C)} channels is finite throughout")
    good_C = finite_C & ~flat_C
    if not good_C.any():
        raise RecordingError("flat", f"all {int(finite_C.sum())} finite channels are constant")
    return good_C
