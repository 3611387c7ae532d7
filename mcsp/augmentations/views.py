"""Two views of every window for every domain: each domain is augmented in its own way."""

from torch import Tensor

from mcsp.augmentations.random import mix64, uniform
from mcsp.augmentations.spatial import channel_half, drop_channels, jitter_positions, kept_edges, mask_region
from mcsp.augmentations.spectral import add_line, randomise_phase, reshape_spectrum
from mcsp.augmentations.temporal import (
    add_noise,
    crop,
    flip_polarity,
    mask_time,
    scale_amplitude,
    time_half,
    warp_amplitude,
    warp_time,
)
from mcsp.batch import Signal
from mcsp.config import AugmentationConfig
from mcsp.schema import DOMAINS, Domain, Modality

HIGHEST_HZ: dict[Modality, float] = {"eeg": 45.0, "fmri": 0.25}  # the range the spectral encoder reads


def half_of_view(signal: Signal, index: int, config: AugmentationConfig) -> Signal:
    """The half of the window that view ``index`` sees where views are opposite halves; not augmented.

    Which view is the early one is drawn per sample, and is the same for all its domains and modalities.
    """
    return time_half(signal, _second_B(signal, 106, index), config.half_gap)


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
    key_B = mix64(signal.key_B ^ (1000 + 2 * DOMAINS.index(domain) + index))
    if domain in config.opposite_halves:
        signal = half_of_view(signal, index, config) if half is None else half
    if domain == "spatial" and modality in config.disjoint_channels:
        signal = channel_half(signal, _second_B(signal, 107, index), signal.key_B)
    if config.gain:
        signal = scale_amplitude(signal, config.gain, key_B)
    if domain == "spatial":
        return _spatial(signal, config, key_B)
    if domain == "temporal":
        return _temporal(signal, modality, config, key_B)
    return _spectral(signal, modality, config, key_B)


def edges_of_view(signal: Signal, anchors: int, index: int, config: AugmentationConfig) -> Tensor | None:
    """Which connections between anchors the spatial encoder may see in a view, ``(B, A, A)``; None for all."""
    if not config.edge_dropout:
        return None
    return kept_edges(mix64(signal.key_B ^ (2000 + index)), anchors, config.edge_dropout)


def hidden_tokens(key_B: Tensor, valid_BP: Tensor, domain: Domain, index: int, config: AugmentationConfig) -> Tensor:
    """Which tokens of a view are hidden, bool ``(B, P)``: ``config.hidden_tokens`` of each row's valid ones, rounded.

    At least one is hidden and one stays; a row with fewer than two valid tokens hides none.
    """
    draw_BP = uniform(mix64(key_B ^ (3000 + 2 * DOMAINS.index(domain) + index)), 111, valid_BP.shape[1])
    rank_BP = draw_BP.masked_fill(~valid_BP, 2.0).argsort(1).argsort(1)
    valid_B1 = valid_BP.sum(1, keepdim=True)
    count_B1 = (valid_B1 * config.hidden_tokens).round().clamp_min(1).minimum(valid_B1 - 1)
    return rank_BP < count_B1


# What is off costs nothing: a strength of zero leaves its function out.
def _spatial(signal: Signal, config: AugmentationConfig, key_B: Tensor) -> Signal:
    if config.channel_dropout:
        signal = drop_channels(signal, config.channel_dropout, key_B)
    if config.region_mask_mm:
        signal = mask_region(signal, config.region_mask_mm, key_B)
    return jitter_positions(signal, config.position_jitter_mm, key_B) if config.position_jitter_mm else signal


def _temporal(signal: Signal, modality: Modality, config: AugmentationConfig, key_B: Tensor) -> Signal:
    if config.crop:
        signal = crop(signal, config.crop, key_B)
    if config.time_warp:
        signal = warp_time(signal, config.time_warp, key_B)
    if config.time_mask:
        signal = mask_time(signal, config.time_mask, key_B)
    if config.amplitude_jitter:
        signal = scale_amplitude(signal, config.amplitude_jitter, key_B)
    if config.amplitude_warp:
        signal = warp_amplitude(signal, config.amplitude_warp, key_B)
    if config.noise:
        signal = add_noise(signal, config.noise, key_B)
    return flip_polarity(signal, key_B) if config.polarity and modality == "eeg" else signal


def _spectral(signal: Signal, modality: Modality, config: AugmentationConfig, key_B: Tensor) -> Signal:
    if config.line_noise and modality == "eeg":
        signal = add_line(signal, config.line_noise, key_B)
    if config.phase:
        signal = randomise_phase(signal, config.phase, key_B)
    if config.band_mask or config.tilt:
        signal = reshape_spectrum(signal, config.band_mask, config.tilt, HIGHEST_HZ[modality], key_B)
    return signal


def _second_B(signal: Signal, purpose: int, index: int) -> Tensor:
    """Whether view ``index`` takes the second of two halves; a draw per sample, the other view takes the other."""
    return (uniform(signal.key_B, purpose) < 0.5) ^ bool(index)
