"""One pass over EEG: notch, band-pass and resampling as one linear-phase filter, applied by FFT block after block.

The response is the product of those that MNE's ``notch_filter`` and ``filter_data`` design, so the result is that of
MNE's chain (``notch_filter``, ``filter_data``, ``resample``) up to rounding, away from the ends. A block is transformed
once: its spectrum is multiplied by the response, cut off (or filled with zeros) at the new Nyquist frequency, and
transformed back at the new length (overlap-save; Oppenheim and Schafer, Discrete-Time Signal Processing, 8.7). No BLAS
and one thread, so the values do not depend on the machine's thread settings.

Shape letters: T time samples, C channels.
"""

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

import mne
import numpy as np
import scipy.fft

from mcsp.config import EegConfig

# Ratio of the rates: 1 / (2 * 2048^2) of timing error is 10 ms in a day.
_MAX_DENOMINATOR = 2048
# Both ends of a block fade out over this time beyond the filter's reach: what the FFT wraps around is smooth.
_FADE_SECONDS = 1.0
# Samples of a block that are no overlap, at least, and channels that are transformed together; bounds of memory.
_MIN_HOP, _CHANNELS_AT_ONCE = 1 << 15, 32


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
            spectrum = scipy.fft.rfft(part, workers=1)[:, :kept]
            spectrum *= gain
            new = scipy.fft.irfft(spectrum, n=n_new, workers=1)
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
