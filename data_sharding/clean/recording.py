"""Result of reading one recording: a clean array in physical units, valid spans, quality, stored form.

Of EEG also what its quality is judged by: flat, clipped or deviating channels, and spans with artefacts. Nothing is
interpolated or cut: bad channels are marked, and artefacts are left out of the valid spans. Thresholds are robust, from
the recording itself. Numbers without a source are ours.

Shape letters: T time samples, C channels, W windows of one second.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from mcsp.config import EegConfig
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


# Robust z above which a channel or a window is an outlier: 5 as in PREP (Bigdely-Shamlo et al., Front. Neuroinform.
# 9:16, 2015). The floor of the spread (of the log) keeps montages of nearly equal channels from losing some.
_OUTLIER_Z, _MIN_LOG_SPREAD, _MIN_FOR_OUTLIERS = 5.0, 0.2, 6
# Fraction of a channel's samples that stay at its very largest or smallest value, and of its windows that are constant.
_MAX_HELD, _MAX_FLAT = 0.01, 0.5
# A channel that held its extreme this often did so by clipping; its windows that touch it are artefacts.
_MIN_HELD = 10
# Fraction of good channels that may be bad in a window (autoreject's consensus, Jas et al., NeuroImage 159, 2017; there
# it is found by cross-validation).
_CONSENSUS = 0.25
# Amplitudes are medians over about this many samples, less than twice as many: 1 % of error.
_SAMPLES = 1 << 14

# Factors by which mistaken units are off, and what the mistake was; the recording would be ordinary without it.
_WRONG_UNITS = {
    1e6: " (microvolts where volts were expected?)",
    1e3: " (millivolts taken for volts, or microvolts for millivolts?)",
    1e-6: " (volts where microvolts were expected?)",
    1e-3: " (millivolts where microvolts were expected?)",
}


class RawWatch:
    """Collects, while the samples pass, what filtering would hide: constant windows and held extremes."""

    def __init__(self, n_channels: int, n_times: int, sfreq: float) -> None:
        n_windows = max(1, int(n_times / sfreq))
        self.edges = np.round(np.arange(n_windows) * sfreq).astype(np.int64)  # the last window also has the remainder
        self.high_CW = np.full((n_channels, n_windows), -np.inf, dtype=np.float32)
        self.low_CW = np.full((n_channels, n_windows), np.inf, dtype=np.float32)
        # Largest value and minus the smallest so far; samples there whose predecessor was there too.
        self.extreme_2C = np.full((2, n_channels), -np.inf, dtype=np.float32)
        self.held_2C = np.zeros((2, n_channels), dtype=np.int64)
        self.n_times, self.seen = n_times, 0

    def see(self, x_CT: np.ndarray, start: int) -> None:
        """Take finite samples from ``start`` on; those that were seen are skipped."""
        if start != self.seen:
            return
        stop = start + x_CT.shape[1]
        first, last = np.searchsorted(self.edges, [start, stop - 1], side="right") - 1
        cuts = np.maximum(self.edges[first : last + 1] - start, 0)
        windows = slice(first, last + 1)
        self.high_CW[:, windows] = np.maximum(self.high_CW[:, windows], np.maximum.reduceat(x_CT, cuts, axis=1))
        self.low_CW[:, windows] = np.minimum(self.low_CW[:, windows], np.minimum.reduceat(x_CT, cuts, axis=1))
        now_2C = np.stack([self.high_CW[:, windows].max(axis=1), -self.low_CW[:, windows].min(axis=1)])
        for side, sign in enumerate((1, -1)):
            (touched,) = np.nonzero(now_2C[side] >= self.extreme_2C[side])
            at_CT = x_CT[touched] == sign * now_2C[side, touched, None]
            count = (at_CT[:, 1:] & at_CT[:, :-1]).sum(axis=1)
            self.held_2C[side, touched] *= now_2C[side, touched] == self.extreme_2C[side, touched]
            self.held_2C[side, touched] += count
        self.extreme_2C = np.maximum(self.extreme_2C, now_2C)
        self.seen = stop

    def flat_CW(self) -> np.ndarray:
        """Windows in which a channel is constant."""
        return self.high_CW == self.low_CW

    def clipped_CW(self) -> np.ndarray:
        """Windows in which a channel that holds its extreme value touches it."""
        high_C, low_C = self.held_2C >= _MIN_HELD
        return (high_C[:, None] & (self.high_CW == self.extreme_2C[0][:, None])) | (
            low_C[:, None] & (self.low_CW == -self.extreme_2C[1][:, None])
        )

    def flat_C(self) -> np.ndarray:
        """Channels that are constant in most windows."""
        return self.flat_CW().mean(axis=1) > _MAX_FLAT

    def clipped_C(self) -> np.ndarray:
        """Channels that stay too long at an extreme value; a constant one is flat and not clipped."""
        return (self.held_2C.max(axis=0) > _MAX_HELD * self.n_times) & ~self.flat_C()


def subsampled(x_TC: np.ndarray) -> np.ndarray:
    """Evenly spaced samples ``(C, T')``, enough for a median."""
    return np.ascontiguousarray(x_TC[:: _stride(x_TC)].T)


def _stride(x_TC: np.ndarray) -> int:
    return max(1, len(x_TC) // _SAMPLES)


def scale_by_table(x_TC: np.ndarray, factor_C: np.ndarray, config: EegConfig) -> str:
    """Multiply channels in place by the unit that ``channels.tsv`` gives them, and say so; "" where nothing was done.

    The file itself names no unit (``factor_C`` is 1 where it does), so it was read in that of its format. Only where
    that gives no amplitude of a scalp, and the table's unit does, the table is believed: many name the unit of what
    some program made of the file.
    """
    done = []
    for factor in np.unique(factor_C[factor_C != 1]):
        of_unit_C = factor_C == factor
        median = float(np.median(robust_amplitude(subsampled(x_TC[:, of_unit_C]))))
        plausible = [config.min_amplitude_uv <= value <= config.max_amplitude_uv for value in (median, median * factor)]
        if plausible == [False, True]:
            x_TC[:, of_unit_C] *= np.float32(factor)
            done.append(f"{int(of_unit_C.sum())} channels times {factor:g}")
    return f"no unit in the file, that of channels.tsv taken ({', '.join(done)})" if done else ""


def check_unit(amplitude_C: np.ndarray, usable_C: np.ndarray, config: EegConfig) -> None:
    """Raise :class:`RecordingError` where the median amplitude is none that a scalp has in microvolts."""
    if not usable_C.any():
        return
    median = float(np.median(amplitude_C[usable_C]))
    if not config.min_amplitude_uv <= median <= config.max_amplitude_uv:
        expected = f"{config.min_amplitude_uv:g} to {config.max_amplitude_uv:g} uV"
        guess = next((text for factor, text in _WRONG_UNITS.items() if 1 <= median / factor <= 500), "")
        raise RecordingError("wrong-unit", f"median channel amplitude {median:.3g} uV, expected {expected}{guess}")


def unlike_others(x_TC: np.ndarray, amplitude_C: np.ndarray, usable_C: np.ndarray) -> np.ndarray:
    """Channels much stronger or weaker than the others, or much rougher, bool ``(C,)``.

    Roughness is the robust amplitude of the difference of neighbouring samples over that of the samples: the high
    frequencies of bad contacts and muscles.
    """
    if usable_C.sum() < _MIN_FOR_OUTLIERS:
        return np.zeros(len(usable_C), dtype=bool)
    stride = _stride(x_TC)
    difference_CT = np.ascontiguousarray((x_TC[1::stride] - x_TC[: len(x_TC) - 1 : stride]).T)
    roughness_C = robust_amplitude(difference_CT) / np.maximum(amplitude_C, 1e-12)
    return (np.abs(_robust_z(amplitude_C, usable_C)) > _OUTLIER_Z) | (_robust_z(roughness_C, usable_C) > _OUTLIER_Z)


def _robust_z(value_C: np.ndarray, usable_C: np.ndarray) -> np.ndarray:
    log_C = np.log(np.maximum(value_C, 1e-12))
    centre = np.median(log_C[usable_C])
    return (log_C - centre) / max(MAD_TO_SD * float(np.median(np.abs(log_C[usable_C] - centre))), _MIN_LOG_SPREAD)


def require_enough(bad: dict[str, np.ndarray], max_fraction: float) -> np.ndarray:
    """Good channels, bool ``(C,)``, given the bad ones by reason.

    Raises:
        RecordingError: more than ``max_fraction`` are bad; the reason is the most frequent, of a tie the first.
    """
    good_C = ~np.any(list(bad.values()), axis=0)
    n = len(good_C)
    if good_C.sum() < max(1.0, (1 - max_fraction) * n):
        counts = {reason: int(bad_C.sum()) for reason, bad_C in bad.items()}
        found = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
        reason = max(counts, key=lambda name: counts[name])
        raise RecordingError(reason, f"{n - int(good_C.sum())} of {n} channels are bad ({found}), too many to go on")
    return good_C


def artefact_windows(x_TC: np.ndarray, good_C: np.ndarray, watch: RawWatch, sfreq: float) -> np.ndarray:
    """One-second windows of artefacts, bool ``(W,)``: too many good channels exceed their threshold, are flat or clip.

    The threshold of a channel is on the peak-to-peak amplitude as in autoreject, but robust instead of cross-validated:
    the log of it may be ``_OUTLIER_Z`` robust deviations above the channel's median. The last window also has what
    remains at the end.
    """
    n_windows = len(watch.edges)
    edges = np.round(np.arange(n_windows) * sfreq).astype(np.int64)
    range_WC = np.maximum.reduceat(x_TC, edges, axis=0) - np.minimum.reduceat(x_TC, edges, axis=0)
    log_WC = np.log(np.maximum(range_WC[:, good_C], 1e-6))
    median_C = np.median(log_WC, axis=0)
    spread_C = np.maximum(MAD_TO_SD * np.median(np.abs(log_WC - median_C), axis=0), _MIN_LOG_SPREAD)
    bad_WC = log_WC > median_C + _OUTLIER_Z * spread_C
    bad_WC |= (watch.flat_CW() | watch.clipped_CW())[good_C].T
    return bad_WC.mean(axis=1) > _CONSENSUS
