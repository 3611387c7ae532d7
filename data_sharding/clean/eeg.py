"""Read and clean EEG: every montage, unit and sampling rate becomes float32 microvolts at one rate.

The steps, their constants and sources are in docs/cleaning.md.

Notch, band-pass and resampling are one linear-phase filter, applied by FFT block after block. Its response is the
product of those that MNE's ``notch_filter`` and ``filter_data`` design, so the result is that of MNE's chain
(``notch_filter``, ``filter_data``, ``resample``) up to rounding, away from the ends. A block is transformed once: its
spectrum is multiplied by the response, cut off (or filled with zeros) at the new Nyquist frequency, and transformed
back at the new length (overlap-save; Oppenheim and Schafer, Discrete-Time Signal Processing, 8.7). No BLAS and one
thread, so the values do not depend on the machine's thread settings.

Shape letters: T time samples, C channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import mne
import numpy as np
import scipy.fft

from mcsp.config import EegConfig
from mcsp.data_sharding.bids.reasons import RecordingError, naming
from mcsp.data_sharding.bids.ref import RecordingRef, read_sidecar
from mcsp.data_sharding.clean.eeg_files import OpenEeg, open_eeg, positive_number, valid_times
from mcsp.data_sharding.clean.recording import (
    CleanRecording,
    RawWatch,
    artefact_windows,
    check_unit,
    require_enough,
    robust_amplitude,
    scale_by_table,
    spans_of,
    subsampled,
    summarise,
    unlike_others,
)
from mcsp.schema import UNITS

# Rates [Hz] outside of which "sfreq" is something else: a period, or a rate in kHz. Ours.
_SFREQ_BOUNDS = (30.0, 200_000.0)
# Frequencies [Hz] of power lines, which are 50 and 60; a notch elsewhere and at its multiples takes the EEG out. Ours.
_LINE_BOUNDS = (45.0, 65.0)


def read_eeg(ref: RecordingRef, config: EegConfig, min_seconds: float) -> CleanRecording:
    """Read one EEG file and clean it; memory is that of the result and of one block of the file.

    Notch at PowerLineFrequency, band-pass and resampling in one pass, marking of bad channels (``channels.tsv``,
    non-finite, flat, clipped, unlike the others), average reference over the good channels, and masking of artefacts.
    Bad channels stay in the array.

    Returns:
        a recording in uV at ``config.sfreq``.

    Raises:
        RecordingError: with the reason.
        Exception: whatever MNE raises on a damaged file; ``child.read_recording`` catches it.
    """
    with naming(ref.path.name):
        sidecar = read_sidecar(ref)
        return clean_eeg(open_eeg(ref, sidecar), ref, sidecar, config, min_seconds)[0]


@dataclass(frozen=True)
class EegDetails:
    """What cleaning found and did beyond what a corpus stores; lists have one entry per channel of the result."""

    sfreq: float  # Hz, of the file
    names: list[str]  # as the file calls them
    position_from: list[str]  # electrodes.tsv, 10-05 or file
    bad: list[str]  # reason, as in REASONS, or ""
    others: dict[str, str]  # channels that are no EEG, or have no place -> why
    notches_hz: list[float]
    band_hz: tuple[float, float]  # what is left by the filters and by both Nyquist frequencies


def clean_eeg(
    opened: OpenEeg, ref: RecordingRef, sidecar: dict[str, object], config: EegConfig, min_seconds: float
) -> tuple[CleanRecording, EegDetails]:
    """As :func:`read_eeg`, of a file that is open or of a recording in memory.

    Args:
        opened: continuous; its Raw is not changed.
        ref: names the recording in errors; its table of events is used.
        sidecar: ``PowerLineFrequency`` is used.
        config: constants.
        min_seconds: least length, of the whole and of what is left outside of artefacts.
    """
    raw, names, repairs = opened.raw, opened.channels.names, list(opened.repairs)
    sfreq = float(raw.info["sfreq"])
    if not _SFREQ_BOUNDS[0] <= sfreq <= _SFREQ_BOUNDS[1]:
        expected = f"expected {_SFREQ_BOUNDS[0]:g} to {_SFREQ_BOUNDS[1]:g} Hz"
        raise RecordingError("sfreq-mismatch", f"{ref.path.name}: sampling frequency {sfreq:g} Hz, {expected}")
    if raw.n_times < min_seconds * sfreq:
        raise RecordingError(
            "too-short", f"{ref.path.name}: {raw.n_times / sfreq:.1f} s, expected at least {min_seconds:g} s"
        )
    stream = _Stream(raw, names, config.gain, opened.header_factors)
    line_hz = _line_hz(sidecar.get("PowerLineFrequency", "n/a"), repairs) or config.line_hz
    kernels = kernels_of(sfreq, config, line_hz)
    x_TC = filter_resample(stream.read, raw.n_times, len(names), (sfreq, config.sfreq), kernels)
    factor_C = np.array([opened.table_factors.get(name, 1.0) for name in names])
    if scaled := scale_by_table(x_TC, factor_C, config):
        repairs.append(f"{ref.path.name}: {scaled}")
    marked_bad = opened.channels.marked_bad
    good_C, amplitude_C, bad = _judge(x_TC, stream, np.array([name in marked_bad for name in names]), config)
    # Before the reference, which would carry what one channel has into all.
    bad_W = artefact_windows(x_TC, good_C, stream.watch, config.sfreq) if config.mask_artefacts else np.array([])
    if good_C.sum() >= 2:  # referenced to itself, a single channel would vanish
        x_TC -= (x_TC if good_C.all() else x_TC[:, good_C]).mean(axis=1, keepdims=True)
    x_TC[:, ~stream.finite_C] = 0.0
    valid_T = valid_times(raw, ref, config.sfreq, len(x_TC), repairs)
    edges = np.append(np.round(np.arange(len(bad_W)) * config.sfreq).astype(np.int64), len(valid_T))
    for window in np.flatnonzero(bad_W):
        valid_T[edges[window] : edges[window + 1]] = False
    if valid_T.sum() < min_seconds * config.sfreq:
        found = f"{valid_T.sum() / config.sfreq:.1f} s outside of artefacts"
        raise RecordingError("artefacts", f"{ref.path.name}: {found}, expected at least {min_seconds:g} s")
    clean = CleanRecording(
        x_TC=x_TC, sfreq=config.sfreq, unit=UNITS["eeg"], channels=opened.channels.channels,
        positions_C3=opened.channels.positions_C3, channel_good_C=good_C, valid_spans=spans_of(valid_T),
        quality=summarise(amplitude_C, good_C, 1 - valid_T.mean()), repairs=tuple(repairs),
    )  # fmt: skip
    top_hz = min(config.lowpass_hz, sfreq / 2, config.sfreq / 2)
    notches_hz = [float(hz) for hz in line_harmonics(line_hz, sfreq, config)]
    reasons = [next((reason for reason, bad_C in bad.items() if bad_C[c]), "") for c in range(len(names))]
    sources, others = opened.channels.position_from, opened.channels.others
    details = EegDetails(sfreq, names, sources, reasons, others, notches_hz, (config.highpass_hz, top_hz))
    return clean, details


def _line_hz(stated: object, repairs: list[str]) -> float | None:
    """``PowerLineFrequency`` [Hz] where it is that of a power line."""
    line_hz = positive_number(str(stated).lower().removesuffix("hz"))
    if line_hz is not None and _LINE_BOUNDS[0] <= line_hz <= _LINE_BOUNDS[1]:
        return line_hz
    if stated not in ("n/a", None):
        repairs.append(f"PowerLineFrequency is {stated!r}, which no power line has: not used, expected 50 or 60")
    return None


def _judge(
    x_TC: np.ndarray, stream: "_Stream", marked_C: np.ndarray, config: EegConfig
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Good channels, the robust amplitude [uV] of all after filtering, and the bad ones by reason; ``(C,)`` each."""
    bad = {"non-finite": ~stream.finite_C, "flat": stream.watch.flat_C(), "clipped": stream.watch.clipped_C()}
    bad["flat"] &= stream.finite_C
    usable_C = ~np.any(list(bad.values()), axis=0)
    amplitude_C = robust_amplitude(subsampled(x_TC))
    check_unit(amplitude_C, usable_C, config)
    bad["bad-channels"] = usable_C & (marked_C | unlike_others(x_TC, amplitude_C, usable_C))
    return require_enough(bad, config.max_bad_fraction), amplitude_C, bad


class _Stream:
    """Reads a file piece by piece as float32 microvolts less the first sample, and watches what passes."""

    def __init__(self, raw: mne.io.BaseRaw, names: list[str], gain: float, factors: dict[str, float]) -> None:
        self.raw = raw
        self.scale_C1 = np.array([[1e6 * gain * factors.get(name, 1.0)] for name in names])
        self.picks = [raw.ch_names.index(name) for name in names]
        self.watch = RawWatch(len(names), raw.n_times, float(raw.info["sfreq"]))
        self.finite_C = np.ones(len(names), dtype=bool)
        self.offset_C1 = _zero_where_not_finite(self._volts(0, 1))

    def _volts(self, start: int, stop: int) -> np.ndarray:
        return self.raw.get_data(picks=self.picks, start=start, stop=stop, verbose="ERROR")

    def read(self, start: int, stop: int) -> np.ndarray:
        """Finite values ``(C, stop - start)``; a channel with one that is not is remembered."""
        x_CT = self._volts(start, stop)
        x_CT -= self.offset_C1
        x_CT *= self.scale_C1
        x_CT = x_CT.astype(np.float32)
        finite_C = np.isfinite(x_CT).all(axis=1)
        if not finite_C.all():
            self.finite_C &= finite_C
            x_CT = _zero_where_not_finite(x_CT)
        self.watch.see(x_CT, start)
        return x_CT


def _zero_where_not_finite(x_CT: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(x_CT), x_CT, 0.0)


# Ratio of the rates: 1 / (2 * 2048^2) of timing error is 10 ms in a day.
_MAX_DENOMINATOR = 2048
# Both ends of a block fade out over this time beyond the filter's reach: what the FFT wraps around is smooth.
_FADE_SECONDS = 1.0
# Samples of a block that are no overlap, at least, and channels that are transformed together; bounds of memory.
_MIN_HOP, _CHANNELS_AT_ONCE = 32_768, 32


def line_harmonics(line_hz: float | None, sfreq: float, config: EegConfig) -> np.ndarray:
    """Power line frequency and its multiples [Hz] that the low-pass would leave."""
    return np.arange(line_hz, min(config.lowpass_hz, sfreq / 2 - 2), line_hz) if line_hz else np.array([])


@lru_cache(maxsize=64)
def design(
    sfreq: float, highpass_hz: float, lowpass_hz: float | None, notches_hz: tuple[float, ...]
) -> list[np.ndarray]:
    """Symmetric FIR kernels whose product of responses is the filter: band-pass and notch with MNE's default widths.

    MNE's defaults: Hamming windows, transition bands of a quarter of the cut-off (at least 2 Hz; at most the cut-off)
    for the band, 0.5 Hz for a notch, whose width is 1/200 of its frequency.
    """
    kernels = []
    if notches_hz:
        # As mne.filter.notch_filter does it with trans_bandwidth=1.
        freqs = np.array(notches_hz)
        reach = freqs / 400 + 0.5
        widths = {"l_trans_bandwidth": 0.5, "h_trans_bandwidth": 0.5}
        kernels.append(mne.filter.create_filter(None, sfreq, freqs + reach, freqs - reach, **widths, verbose="ERROR"))
    if highpass_hz or lowpass_hz:
        kernels.append(mne.filter.create_filter(None, sfreq, highpass_hz or None, lowpass_hz, verbose="ERROR"))
    return kernels


def kernels_of(sfreq: float, config: EegConfig, line_hz: float | None) -> list[np.ndarray]:
    """The filter for a recording at ``sfreq``; no low-pass where the Nyquist frequency is lower."""
    lowpass = config.lowpass_hz if config.lowpass_hz < sfreq / 2 - 2 else None
    harmonics = tuple(float(hz) for hz in line_harmonics(line_hz, sfreq, config))
    return design(sfreq, config.highpass_hz, lowpass, harmonics)


def response(kernels: list[np.ndarray], n_fft: int) -> np.ndarray:
    """Real response of the filter at the ``n_fft // 2 + 1`` frequencies of a real FFT; zero phase."""
    product = np.ones(n_fft // 2 + 1)
    for kernel in kernels:
        centred = np.zeros(n_fft)
        centred[: len(kernel)] = kernel
        product *= scipy.fft.rfft(np.roll(centred, -(len(kernel) // 2))).real
    return product


def filter_resample(
    read: Callable[[int, int], np.ndarray],
    n_times: int,
    n_channels: int,
    rates: tuple[float, float],
    kernels: list[np.ndarray],
) -> np.ndarray:
    """Filter and resample a recording block by block.

    Args:
        read: ``read(start, stop)`` gives finite float32 ``(C, stop - start)``; called once for each sample in order,
            and at the start for the last samples, whose odd reflection continues the signal as in MNE. Offsets should
            be removed.
        rates: sampling frequency of the input and of the result [Hz].

    Returns:
        float32 ``(T, C)`` with ``round(n_times * rates[1] / rates[0])`` samples. Memory beyond it is that of a block.
    """
    ratio = Fraction(rates[1] / rates[0]).limit_denominator(_MAX_DENOMINATOR)
    up, down = ratio.numerator, ratio.denominator
    fade = round(_FADE_SECONDS * rates[0])
    reach = sum(len(kernel) // 2 for kernel in kernels) + fade
    reach = -(-reach // down) * down
    n_fft = down * scipy.fft.next_fast_len(-(-(max(_MIN_HOP, 2 * reach) + 2 * reach) // down), real=True)
    n_new, hop = n_fft * up // down, n_fft - 2 * reach
    kept = min(n_fft, n_new) // 2 + 1
    gain = (response(kernels, n_fft)[:kept] * (up / down)).astype(np.float32)
    if n_fft % 2 == 0 and n_new > n_fft:
        gain[-1] /= 2  # the bin at the old Nyquist frequency stands for both its signs
    ramp = (0.5 - 0.5 * np.cos(np.pi * (np.arange(fade) + 0.5) / fade)).astype(np.float32)

    out_TC = np.empty((round(n_times * ratio), n_channels), dtype=np.float32)
    source = _Padded(read, n_times, n_channels, reach)
    block = np.empty((n_channels, n_fft), dtype=np.float32)
    block[:, hop:] = source.take(2 * reach)
    skip, step = reach * up // down, hop * up // down
    for start in range(0, len(out_TC), step):
        block[:, : 2 * reach] = block[:, hop:].copy()
        block[:, 2 * reach :] = source.take(hop)
        length = min(step, len(out_TC) - start)
        for first in range(0, n_channels, _CHANNELS_AT_ONCE):
            part = block[first : first + _CHANNELS_AT_ONCE].copy()
            part[:, :fade] *= ramp
            part[:, n_fft - fade :] *= ramp[::-1]
            spectrum = scipy.fft.rfft(part)[:, :kept]
            spectrum *= gain
            new = scipy.fft.irfft(spectrum, n=n_new)
            out_TC[start : start + length, first : first + len(part)] = new[:, skip : skip + length].T
    return out_TC


class _Padded:
    """The signal with its odd reflections of ``reach`` samples before and after it, and zeros beyond."""

    def __init__(self, read: Callable[[int, int], np.ndarray], n_times: int, n_channels: int, reach: int) -> None:
        self.read, self.n_times, self.n_channels = read, n_times, n_channels
        mirrored = min(reach, n_times - 1)
        self.head = read(0, mirrored + 1)  # given out again below, so that no sample is read twice in order
        tail = read(n_times - 1 - mirrored, n_times)
        zeros = np.zeros((n_channels, reach - mirrored), dtype=np.float32)
        before = np.concatenate([zeros, 2 * self.head[:, :1] - self.head[:, :0:-1]], axis=1)
        self.pieces = [before, self.head]
        self.position = mirrored + 1
        self.after = 2 * tail[:, -1:] - tail[:, -2::-1]

    def take(self, count: int) -> np.ndarray:
        """The next ``count`` samples."""
        missing = count - sum(piece.shape[1] for piece in self.pieces)
        if missing > 0 and self.position < self.n_times:
            stop = min(self.position + missing, self.n_times)
            self.pieces.append(self.read(self.position, stop))
            missing -= stop - self.position
            self.position = stop
        if missing > 0:
            self.pieces.append(self.after)
            self.after = self.after[:, :0]
            self.pieces.append(np.zeros((self.n_channels, missing), dtype=np.float32))
        joined = np.concatenate(self.pieces, axis=1)
        self.pieces = [joined[:, count:]]
        return joined[:, :count]
