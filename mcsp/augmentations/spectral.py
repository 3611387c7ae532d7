"""Views in the spectral domain, made on measured log-power. Pure functions of (frequencies, rates, strengths, key).

Shape letters: B rows, F frequencies.
"""

import torch
from torch import Tensor

from mcsp.augmentations.random import normal, uniform
from mcsp.schema import Purpose


def log_gain(
    freqs_F: Tensor, sfreq_B: Tensor, band_fraction: float, tilt_sd: float, highest_hz: float, key_B: Tensor
) -> Tensor:
    """What is added to log10 power, the same in all channels, ``(B, F)``: one random band is attenuated, and the slope
    of the 1/f background changes.

    The band covers up to ``band_fraction`` of (0, min(``highest_hz``, Nyquist)) and keeps 10 to 50 % of its amplitude.
    Power changes by a factor ``(f / f_middle)^e`` with e normal of sd ``tilt_sd`` and f_middle a quarter of that range.
    Frequencies that a row cannot have (from sfreq / 2 on) get 0.
    """
    top_B1 = (sfreq_B / 2).clamp_max(highest_hz)[:, None]
    width_B1 = uniform(key_B, Purpose.BAND_WIDTH, 1) * band_fraction * top_B1
    low_B1 = uniform(key_B, Purpose.BAND_PLACE, 1) * (top_B1 - width_B1)
    kept_B1 = 0.1 + 0.4 * uniform(key_B, Purpose.BAND_KEPT, 1)
    inside_BF = (freqs_F >= low_B1) & (freqs_F < low_B1 + width_B1)
    # Bounded below: the lowest frequencies would otherwise be raised without limit.
    relative_BF = (freqs_F / (top_B1 / 4)).clamp(0.05, 20.0)
    tilt_BF = tilt_sd * normal(key_B, Purpose.TILT, 1) * torch.log10(relative_BF)
    gain_BF = torch.where(inside_BF, 2 * torch.log10(kept_B1), 0.0) + tilt_BF
    return torch.where(freqs_F < sfreq_B[:, None] / 2, gain_BF, 0.0)
