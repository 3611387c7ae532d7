"""Views in the spectral domain, made on the signal's Fourier transform. Pure functions of (signal, strengths, key).

Shape letters: B rows, C channels, T time samples, F frequency bins.
"""

import torch
from torch import Tensor

from mcsp.augmentations.random import normal, uniform
from mcsp.batch import Signal
from mcsp.schema import Purpose


def reshape_spectrum(signal: Signal, band_fraction: float, tilt_sd: float, highest_hz: float, key_B: Tensor) -> Signal:
    """Attenuate one random band and change the slope of the 1/f background, in one transform.

    The band covers up to ``band_fraction`` of (0, min(``highest_hz``, Nyquist)) and keeps 10 to 50 % of its amplitude,
    the same in all channels. The slope changes by a factor ``(f / f_middle)^(e / 2)`` with e normal of sd ``tilt_sd``,
    so power changes by the exponent e; the mean is left alone.
    """
    samples = signal.x_BCT.shape[-1]
    unit_F = torch.fft.rfftfreq(samples, device=key_B.device)
    freqs_BF = unit_F * signal.sfreq_B[:, None]
    top_B1 = (signal.sfreq_B / 2).clamp_max(highest_hz)[:, None]
    width_B1 = uniform(key_B, Purpose.BAND_WIDTH, 1) * band_fraction * top_B1
    low_B1 = uniform(key_B, Purpose.BAND_PLACE, 1) * (top_B1 - width_B1)
    kept_B1 = 0.1 + 0.4 * uniform(key_B, Purpose.BAND_KEPT, 1)
    inside_BF = (freqs_BF >= low_B1) & (freqs_BF < low_B1 + width_B1)
    # Bounded below: the lowest bins of a long window would otherwise be raised without limit.
    relative_BF = (freqs_BF / (top_B1 / 4)).clamp(0.05, 20.0)
    gain_BF = torch.where(inside_BF, kept_B1, 1.0) * relative_BF ** (0.5 * tilt_sd * normal(key_B, Purpose.TILT, 1))
    gain_BF = torch.where(unit_F == 0, 1.0, gain_BF)
    x_BCT = torch.fft.irfft(torch.fft.rfft(signal.x_BCT) * gain_BF[:, None], n=samples)
    return signal.replace(x_BCT=x_BCT * signal.time_valid_BT[:, None])
