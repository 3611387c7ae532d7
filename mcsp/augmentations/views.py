"""Two views of every window for every domain: each domain is augmented in its own way.

The abstract of the method asks for augmentation that belongs to the domain. What is here in each: other channels at
other places (spatial), other stretches, amplitudes and noise (temporal), other bands and slopes (spectral). All are
functions of what they change, of strengths and of keys alone.

A draw is a function of (key of the row, purpose, element index) alone, so a view does not depend on the device, on
padding, on which rank holds the row, or on what was drawn before. The integer function is SplitMix64, the same as
:func:`mcsp.schema.mix64`.

Shape letters: B rows, C channels, T time samples, A anchors, F frequencies.
"""

import functools
import math

import numpy as np
import torch
from torch import Tensor

from mcsp.batch import Signal, as_one
from mcsp.config import AugmentationConfig
from mcsp.schema import DOMAINS, HIGHEST_HZ, VIEWS, Domain, Modality, Purpose

# Of SplitMix64; as numpy's integers, because making these from Python's takes half the time of a small draw.
_ADDED, _SHIFTS = np.uint64(0x9E3779B97F4A7C15), tuple(np.uint64(bits) for bits in (30, 27, 31))
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_DROPPED = np.uint64(40)  # the 24 bits that a float32 holds are left


def _signed(value: int) -> int:
    """The int64 with the same bits as an unsigned 64-bit integer (torch has no wrapping uint64 arithmetic)."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix64(x: Tensor) -> Tensor:
    """SplitMix64 finaliser on int64 tensors, bit for bit :func:`mcsp.schema.mix64`."""
    if x.device.type == "cpu":  # draws are small and many, and numpy, which has unsigned integers, takes a third
        return torch.from_numpy(_mixed(x.numpy().view(np.uint64)).view(np.int64))
    return _mixed_by_torch(x)


def _mixed_by_torch(x: Tensor) -> Tensor:
    x = x + _signed(int(_ADDED))
    x = (x ^ _shift_right(x, int(_SHIFTS[0]))) * _signed(int(_FACTORS[0]))
    x = (x ^ _shift_right(x, int(_SHIFTS[1]))) * _signed(int(_FACTORS[1]))
    return x ^ _shift_right(x, int(_SHIFTS[2]))


def _mixed(x: np.ndarray) -> np.ndarray:
    x = x + _ADDED
    x ^= x >> _SHIFTS[0]
    x *= _FACTORS[0]
    x ^= x >> _SHIFTS[1]
    x *= _FACTORS[1]
    x ^= x >> _SHIFTS[2]
    return x


def uniform(key_B: Tensor, purpose: int, *shape: int) -> Tensor:
    """Floats in [0, 1), float32 ``(B, *shape)``. Element (b, i, j ...) depends on key, purpose, i, j ... only."""
    if key_B.device.type == "cpu":
        mixed = _mixed(key_B.numpy().view(np.uint64) ^ np.uint64(purpose))
        for size in shape:
            mixed = _mixed(mixed[..., None] ^ np.arange(size, dtype=np.uint64))
        return torch.from_numpy((_mixed(mixed) >> _DROPPED).astype(np.float32) * np.float32(2.0**-24))
    return _uniform_by_torch(key_B, purpose, *shape)


def _uniform_by_torch(key_B: Tensor, purpose: int, *shape: int) -> Tensor:
    bits = _mixed_by_torch(key_B ^ purpose)
    for size in shape:
        bits = _mixed_by_torch(bits[..., None] ^ torch.arange(size, device=key_B.device))
    return _shift_right(_mixed_by_torch(bits), int(_DROPPED)).float() * 2.0**-24


def normal(key_B: Tensor, purpose: int, *shape: int) -> Tensor:
    """Standard normal numbers, float32 ``(B, *shape)`` (Box and Muller, 1958)."""
    u, v = uniform(key_B, 2 * purpose + 1, *shape), uniform(key_B, 2 * purpose + 2, *shape)
    return torch.sqrt(-2 * torch.log(1 - u)) * torch.cos(2 * math.pi * v)


@functools.cache
def _noise_table(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1 << 20, generator=generator).to(device)


def white_noise(key_B: Tensor, purpose: int, channels: int, samples: int) -> Tensor:
    """Standard normal noise ``(B, C, T)``: each channel reads a fixed table of 2^20 numbers from a random place.

    One hash per channel instead of one per value: hashing every sample of an EEG batch costs more than the model's
    first layer. Places are multiples of 8 in the first half of the table, whatever the length, and rows are copied as a
    whole.

    Raises:
        ValueError: windows longer than half the table.
    """
    table = _noise_table(key_B.device)
    most = len(table) // 2
    if samples > most:
        raise ValueError(f"white_noise: expected at most {most} time samples, found {samples}")
    places_NT = table[: most + samples - 8].unfold(0, samples, 8)
    start_BC = (uniform(key_B, purpose, channels) * len(places_NT)).long()
    return places_NT.index_select(0, start_BC.flatten()).view(*start_BC.shape, samples)


def halves(signal: Signal, late_B: Tensor) -> Signal:
    """Both halves of each row's valid extent, (2 B, ...) of half the length: first of all rows the late half where
    ``late_B``, else the early one; then the other.
    """
    samples = signal.x_BCT.shape[-1]
    first_B = signal.time_valid_BT.int().argmax(1)
    stop_B = samples - signal.time_valid_BT.flip(1).int().argmax(1)
    length_B = ((stop_B - first_B) // 2).clamp_min(1)
    start_2B = torch.cat([torch.where(late, stop_B - length_B, first_B) for late in (late_B, ~late_B)])
    x_2BCL, valid_2BL = _cuts(signal, start_2B, length_B.repeat(2), max(1, samples // 2))
    return as_one([signal, signal], x_BCT=x_2BCL, time_valid_BT=valid_2BL)


def _cuts(signal: Signal, start_2B: Tensor, length_2B: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Windows and valid time from each start on, zero and not valid beyond the length: each channel is one copy."""
    rows, channels, samples = signal.x_BCT.shape
    # On a GPU to look would be to wait.
    whole = start_2B.device.type == "cpu" and bool((length_2B == longest).all())

    def cut(x: Tensor, first_N: Tensor) -> Tensor:
        flat = x.reshape(-1) if whole else torch.nn.functional.pad(x.reshape(-1), (0, longest))
        return flat.unfold(0, longest, 1).index_select(0, first_N)

    row_2B = torch.arange(rows, device=start_2B.device).repeat(2)
    channel_C = torch.arange(channels, device=start_2B.device)
    first_2BC = (row_2B[:, None] * channels + channel_C) * samples + start_2B[:, None]
    x_2BCL = cut(signal.x_BCT, first_2BC.flatten()).view(2 * rows, channels, longest)
    valid_2BL = cut(signal.time_valid_BT, row_2B * samples + start_2B)
    if not whole:
        valid_2BL &= torch.arange(longest, device=start_2B.device) < length_2B[:, None]
        x_2BCL.masked_fill_(~valid_2BL[:, None], 0)
    return x_2BCL, valid_2BL


def without_span(valid_BT: Tensor, largest_fraction: float, key_B: Tensor) -> Tensor:
    """Valid time without one span, of up to ``largest_fraction`` of each row's."""
    length_B = valid_BT.sum(1)
    span_B = (uniform(key_B, Purpose.MASKED_LENGTH) * largest_fraction * length_B).long()
    start_B = (uniform(key_B, Purpose.MASKED_PLACE) * (length_B - span_B + 1)).long()
    time_T = torch.arange(valid_BT.shape[1], device=key_B.device)
    return valid_BT & ~((time_T >= start_B[:, None]) & (time_T < (start_B + span_B)[:, None]))


def noisy(signal: Signal, valid_NBT: Tensor, relative_sd: float, key_NB: Tensor) -> Tensor:
    """Windows with white noise relative to each channel's standard deviation over valid time, ``(N B, C, T)``.

    Noise is also where time is not valid. N draws of each row: ``valid_NBT``, numbers, and ``key_NB`` have a row for
    each, the first of all first.
    """
    x_BCT = signal.x_BCT
    valid_BTN = valid_NBT.view(-1, *signal.time_valid_BT.shape).permute(1, 2, 0)
    count_B1N = valid_BTN.sum(1, keepdim=True).clamp_min(1)
    with torch.autocast(x_BCT.device.type, enabled=False):
        mean_BCN, square_BCN = (x_BCT @ valid_BTN) / count_B1N, (x_BCT.square() @ valid_BTN) / count_B1N
    sd_BCN = (square_BCN - mean_BCN.square()).clamp_min(0).sqrt() * relative_sd * signal.channel_valid_BC[..., None]
    noise = white_noise(key_NB, Purpose.NOISE, *x_BCT.shape[1:]).to(x_BCT.dtype)
    # In place, and one after the other: an addcmul over rows takes a CPU four times as long.
    noise.view(-1, *x_BCT.shape).mul_(sd_BCN.movedim(-1, 0)[..., None]).add_(x_BCT)
    return noise


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
    key_B = _key_B(signal.key_B, "spatial", index)
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


def temporal_views(signal: Signal, config: AugmentationConfig, apart: bool = False) -> Signal:
    """Both views for the temporal domain, ``(2 B, ...)``, all rows of one view, then of the other: one span of time
    marked as not valid, white noise, and a log-normal gain of each row, as impedance and scanner gain vary.

    Both at once, so that no pass over them is spent on joining them. ``apart``: ``signal`` holds the rows of both
    views already, as :func:`halves_of_views` gives them.
    """
    signals = [signal] if apart else [signal] * len(VIEWS)
    keys = signal.key_B.chunk(len(VIEWS)) if apart else [signal.key_B] * len(VIEWS)
    key_2B = torch.cat([_key_B(key_B, "temporal", v) for v, key_B in enumerate(keys)])
    valid_2BT = torch.cat([s.time_valid_BT for s in signals])
    if config.time_mask:
        valid_2BT = without_span(valid_2BT, config.time_mask, key_2B)
    # As numbers: a product with truth values takes six times as long.
    weight_2BT = valid_2BT.to(signal.x_BCT)
    plain = config.noise == 0
    x_2BCT = torch.cat([s.x_BCT for s in signals]) if plain else noisy(signal, weight_2BT, config.noise, key_2B)
    if config.amplitude_jitter:
        weight_2BT = weight_2BT * torch.exp(normal(key_2B, Purpose.AMPLITUDE) * config.amplitude_jitter)[:, None]
    return as_one(signals, x_BCT=x_2BCT.mul_(weight_2BT[:, None]), time_valid_BT=valid_2BT)


def spectral_view(
    power_BAF: Tensor, freqs_F: Tensor, signal: Signal, index: int, modality: Modality, config: AugmentationConfig
) -> Tensor:
    """The same for the spectral domain, of log10 power that was measured: one band weaker, another slope."""
    if not (config.band_mask or config.tilt):
        return power_BAF
    key_B = _key_B(signal.key_B, "spectral", index)
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


def _key_B(key_B: Tensor, domain: Domain, index: int) -> Tensor:
    return mix64(key_B ^ (Purpose.VIEW + 2 * DOMAINS.index(domain) + index))
