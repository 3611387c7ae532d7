"""Two views of every window for every domain: each domain is augmented in its own way.

The abstract of the method asks for augmentation that belongs to the domain. What is here in each: other channels at
other places (spatial), other stretches, amplitudes and noise (temporal), other bands and slopes (spectral). All are
functions of what they change, of strengths and of keys alone.

Shape letters: B rows, C channels, A anchors, F frequencies.
"""

import torch
from torch import Tensor

from mcsp.augmentations.random import mix64, normal, uniform
from mcsp.augmentations.temporal import add_noise, mask_time, scale_amplitude, time_half
from mcsp.batch import Signal
from mcsp.config import AugmentationConfig
from mcsp.schema import DOMAINS, HIGHEST_HZ, Domain, Modality, Purpose


def half_of_view(signal: Signal, index: int) -> Signal:
    """The half of the window that view ``index`` sees where views are opposite halves; not augmented.

    Which view is the early one is drawn per sample, and is the same for all its domains and modalities.
    """
    return time_half(signal, (uniform(signal.key_B, Purpose.LATE_VIEW) < 0.5) ^ bool(index))


# What is off costs nothing: a strength of zero leaves its function out.
def spatial_view(signal: Signal, index: int, config: AugmentationConfig) -> Signal:
    """View number ``index`` (0 or 1) of a window, or of its half, for the spatial domain.

    It changes which channels there are and where, and nothing over time; a function of ``signal.key_B`` and the
    arguments, as all views are.
    """
    key_B = _key_B(signal, "spatial", index)
    if config.channel_dropout:
        signal = drop_channels(signal, config.channel_dropout, key_B)
    return jitter_positions(signal, config.position_jitter_mm, key_B) if config.position_jitter_mm else signal


def drop_channels(signal: Signal, largest_fraction: float, key_B: Tensor) -> Signal:
    """Mask a random fraction, up to ``largest_fraction``, of each row's channels; one always stays."""
    channels = signal.x_BCT.shape[1]
    fraction_B1 = uniform(key_B, Purpose.DROPPED_FRACTION, 1) * largest_fraction
    draw_BC = uniform(key_B, Purpose.DROPPED_CHANNELS, channels).masked_fill(~signal.channel_valid_BC, -1.0)
    keep_BC = (draw_BC >= fraction_B1) | (draw_BC == draw_BC.amax(1, keepdim=True))
    return signal.replace(
        x_BCT=signal.x_BCT * keep_BC[..., None],
        channel_valid_BC=signal.channel_valid_BC & keep_BC,
        position_valid_BC=signal.position_valid_BC & keep_BC,
    )


def jitter_positions(signal: Signal, sd_mm: float, key_B: Tensor) -> Signal:
    """Move every channel by a Gaussian step: caps sit differently, parcels differ between people."""
    step_BC3 = normal(key_B, Purpose.POSITION, signal.x_BCT.shape[1], 3) * sd_mm
    moved = torch.where(signal.position_valid_BC[..., None], signal.position_BC3 + step_BC3, signal.position_BC3)
    return signal.replace(position_BC3=moved)


def temporal_view(signal: Signal, index: int, config: AugmentationConfig) -> Signal:
    """The same for the temporal domain: another stretch, amplitude and noise."""
    key_B = _key_B(signal, "temporal", index)
    if config.time_mask:
        signal = mask_time(signal, config.time_mask, key_B)
    if config.amplitude_jitter:
        signal = scale_amplitude(signal, config.amplitude_jitter, key_B)
    return add_noise(signal, config.noise, key_B) if config.noise else signal


def spectral_view(
    power_BAF: Tensor, freqs_F: Tensor, signal: Signal, index: int, modality: Modality, config: AugmentationConfig
) -> Tensor:
    """The same for the spectral domain, of log10 power that was measured: one band weaker, another slope."""
    if not (config.band_mask or config.tilt):
        return power_BAF
    key_B = _key_B(signal, "spectral", index)
    rates_B = signal.sfreq_B.to(power_BAF.device)
    gain_BF = log_gain(freqs_F, rates_B, config.band_mask, config.tilt, HIGHEST_HZ[modality], key_B)
    return power_BAF + gain_BF[:, None]


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


def _key_B(signal: Signal, domain: Domain, index: int) -> Tensor:
    return mix64(signal.key_B ^ (Purpose.VIEW + 2 * DOMAINS.index(domain) + index))
