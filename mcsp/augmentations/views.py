"""Two views of every window for every domain: each domain is augmented in its own way.

The abstract of the method asks for augmentation that belongs to the domain. What is here in each: other channels at
other places (spatial), other stretches, amplitudes and noise (temporal), other bands and slopes (spectral).
"""

from torch import Tensor

from mcsp.augmentations.random import mix64, uniform
from mcsp.augmentations.spatial import drop_channels, jitter_positions
from mcsp.augmentations.spectral import log_gain
from mcsp.augmentations.temporal import add_noise, halves, mask_and_scale
from mcsp.batch import Signal
from mcsp.config import AugmentationConfig
from mcsp.schema import DOMAINS, HIGHEST_HZ, Domain, Modality, Purpose


def halves_of_views(signal: Signal) -> Signal:
    """The halves that the views see where they are opposite halves, all rows of one view, then of the other.

    Not augmented. Which view is the early one is drawn per sample, and is the same for all its domains and modalities.
    """
    return halves(signal, uniform(signal.key_B, Purpose.LATE_VIEW) < 0.5)


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


def temporal_view(signal: Signal, index: int, config: AugmentationConfig) -> Signal:
    """The same for the temporal domain: another stretch, amplitude and noise."""
    key_B = _key_B(signal, "temporal", index)
    if config.time_mask or config.amplitude_jitter:
        signal = mask_and_scale(signal, config.time_mask, config.amplitude_jitter, key_B)
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


def _key_B(signal: Signal, domain: Domain, index: int) -> Tensor:
    return mix64(signal.key_B ^ (Purpose.VIEW + 2 * DOMAINS.index(domain) + index))
