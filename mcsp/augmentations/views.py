"""Two views of every window for every domain: each domain is augmented in its own way."""

from torch import Tensor

from mcsp.augmentations.random import mix64, uniform
from mcsp.augmentations.spatial import channel_half, drop_channels, jitter_positions
from mcsp.augmentations.spectral import reshape_spectrum
from mcsp.augmentations.temporal import add_noise, flip_polarity, mask_time, scale_amplitude, time_half
from mcsp.batch import Signal
from mcsp.config import AugmentationConfig
from mcsp.schema import DOMAINS, Domain, Modality

HIGHEST_HZ: dict[Modality, float] = {"eeg": 45.0, "fmri": 0.25}  # the range the spectral encoder reads


def half_of_view(signal: Signal, index: int, config: AugmentationConfig) -> Signal:
    """The half of the window that view ``index`` sees where views are opposite halves; not augmented.

    Which view is the early one is drawn per sample, and is the same for all its domains and modalities.
    """
    return time_half(signal, _second_B(signal, 106, index), config.half_gap)


def view(signal: Signal, modality: Modality, domain: Domain, index: int, config: AugmentationConfig) -> Signal:
    """View number ``index`` (0 or 1) of a window for one domain; a function of ``signal.key_B`` and the arguments."""
    key_B = mix64(signal.key_B ^ (1000 + 2 * DOMAINS.index(domain) + index))
    if domain == "spatial" and config.disjoint_channels:
        signal = channel_half(signal, _second_B(signal, 107, index), signal.key_B)
    if domain in config.opposite_halves:
        signal = half_of_view(signal, index, config)
    if domain == "spatial":
        return jitter_positions(drop_channels(signal, config.channel_dropout, key_B), config.position_jitter_mm, key_B)
    if domain == "temporal":
        signal = scale_amplitude(mask_time(signal, config.time_mask, key_B), config.amplitude_jitter, key_B)
        signal = add_noise(signal, config.noise, key_B)
        return flip_polarity(signal, key_B) if modality == "eeg" else signal
    return reshape_spectrum(signal, config.band_mask, config.tilt, HIGHEST_HZ[modality], key_B)


def _second_B(signal: Signal, purpose: int, index: int) -> Tensor:
    """Whether view ``index`` takes the second of two halves; a draw per sample, the other view takes the other."""
    return (uniform(signal.key_B, purpose) < 0.5) ^ bool(index)
