"""Two views of every window for every domain: each domain is augmented in its own way.

The abstract of the method asks for augmentation that belongs to the domain. What is here in each: other channels at
other places (spatial), other stretches, amplitudes and noise (temporal), other bands and slopes (spectral).
"""

from torch import Tensor

from mcsp.augmentations.random import mix64, uniform
from mcsp.augmentations.spatial import drop_channels, jitter_positions
from mcsp.augmentations.spectral import reshape_spectrum
from mcsp.augmentations.temporal import add_noise, mask_time, scale_amplitude, time_half
from mcsp.batch import Signal
from mcsp.config import AugmentationConfig
from mcsp.schema import DOMAINS, HIGHEST_HZ, Domain, Modality, Purpose


def half_of_view(signal: Signal, index: int) -> Signal:
    """The half of the window that view ``index`` sees where views are opposite halves; not augmented.

    Which view is the early one is drawn per sample, and is the same for all its domains and modalities.
    """
    return time_half(signal, (uniform(signal.key_B, Purpose.LATE_VIEW) < 0.5) ^ bool(index))


def view(
    signal: Signal,
    modality: Modality,
    domain: Domain,
    index: int,
    config: AugmentationConfig,
    half: Signal | None = None,
) -> Signal:
    """View number ``index`` (0 or 1) of a window for one domain; a function of ``signal.key_B`` and the arguments.

    ``half`` is what :func:`half_of_view` gives, for a caller who has it: it is the same for all domains.
    """
    key_B = mix64(signal.key_B ^ (Purpose.VIEW + 2 * DOMAINS.index(domain) + index))
    if domain in config.opposite_halves:
        signal = half_of_view(signal, index) if half is None else half
    if domain == "spatial":
        return _spatial(signal, config, key_B)
    if domain == "temporal":
        return _temporal(signal, config, key_B)
    if config.band_mask or config.tilt:
        signal = reshape_spectrum(signal, config.band_mask, config.tilt, HIGHEST_HZ[modality], key_B)
    return signal


# What is off costs nothing: a strength of zero leaves its function out.
def _spatial(signal: Signal, config: AugmentationConfig, key_B: Tensor) -> Signal:
    if config.channel_dropout:
        signal = drop_channels(signal, config.channel_dropout, key_B)
    return jitter_positions(signal, config.position_jitter_mm, key_B) if config.position_jitter_mm else signal


def _temporal(signal: Signal, config: AugmentationConfig, key_B: Tensor) -> Signal:
    if config.time_mask:
        signal = mask_time(signal, config.time_mask, key_B)
    if config.amplitude_jitter:
        signal = scale_amplitude(signal, config.amplitude_jitter, key_B)
    return add_noise(signal, config.noise, key_B) if config.noise else signal
