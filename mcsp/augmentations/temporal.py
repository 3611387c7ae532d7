"""Views in the temporal domain. Pure functions of (signal, strengths, key).

Shape letters: B rows, C channels, T time samples.
"""

import math

import torch
from torch import Tensor

from mcsp.augmentations.random import normal, uniform, white_noise
from mcsp.batch import Signal


def time_half(signal: Signal, late_B: Tensor, gap: float) -> Signal:
    """Cut each row to one half of its valid extent: the late one where ``late_B``, else the early one.

    ``gap`` is the fraction of the extent that is left out between the halves. The result is half as long.
    """
    return _cut(signal, (1 - gap) / 2, late_B.float())


def crop(signal: Signal, fraction: float, key_B: Tensor) -> Signal:
    """Cut ``fraction`` off each row's valid extent, a random share of it at the start: a shift of the window."""
    return _cut(signal, 1 - fraction, uniform(key_B, 206))


def _cut(signal: Signal, kept: float, place_B: Tensor) -> Signal:
    """Keep a fraction of each row's valid extent, from its start (``place_B`` 0) to its end (1)."""
    samples = signal.x_BCT.shape[-1]
    first_B = signal.time_valid_BT.int().argmax(1)
    stop_B = samples - signal.time_valid_BT.flip(1).int().argmax(1)
    length_B = ((stop_B - first_B) * kept).long().clamp_min(1)
    start_B = first_B + ((stop_B - length_B - first_B) * place_B).round().long()
    step_L = torch.arange(max(1, int(samples * kept)), device=place_B.device)
    inside_BL = step_L < length_B[:, None]
    index_BL = (start_B[:, None] + step_L).clamp_max(samples - 1)
    valid_BL = signal.time_valid_BT.gather(1, index_BL) & inside_BL
    x_BCL = signal.x_BCT.gather(2, index_BL[:, None].expand(-1, signal.x_BCT.shape[1], -1))
    return signal.replace(x_BCT=x_BCL * valid_BL[:, None], time_valid_BT=valid_BL)


def warp_time(signal: Signal, largest_change: float, key_B: Tensor) -> Signal:
    """Play each row up to ``largest_change`` faster and slower in turn, in one to three smooth cycles.

    Sample t becomes the value at ``t + a L / (2 pi c) (sin(2 pi c t / L + p) - sin(p))`` with L the row's valid length
    in samples, interpolated linearly; a is within ``largest_change``, so speed stays within 1 +- a. Start and end stay.
    """
    samples = signal.x_BCT.shape[-1]
    length_B1 = signal.time_valid_BT.sum(1, keepdim=True).clamp_min(1).double()
    strength_B1 = largest_change * (2 * uniform(key_B, 207, 1) - 1)
    turns_B1 = 2 * math.pi * (1 + (3 * uniform(key_B, 208, 1)).floor())
    phase_B1 = 2 * math.pi * uniform(key_B, 209, 1)
    first_B1 = signal.time_valid_BT.int().argmax(1, keepdim=True)
    time_BT = (torch.arange(samples, device=key_B.device) - first_B1) / length_B1
    bend_BT = torch.sin(turns_B1 * time_BT + phase_B1) - torch.sin(phase_B1)
    place_BT = first_B1 + length_B1 * (time_BT + strength_B1 / turns_B1 * bend_BT)
    low_BT = place_BT.floor().long().clamp(0, samples - 1)
    high_BT = (low_BT + 1).clamp_max(samples - 1)
    fraction_BT = (place_BT - low_BT).clamp(0, 1).to(signal.x_BCT.dtype)

    def at(index_BT: Tensor) -> Tensor:
        return signal.x_BCT.gather(2, index_BT[:, None].expand(-1, signal.x_BCT.shape[1], -1))

    valid_BT = signal.time_valid_BT & signal.time_valid_BT.gather(1, low_BT) & signal.time_valid_BT.gather(1, high_BT)
    x_BCT = torch.lerp(at(low_BT), at(high_BT), fraction_BT[:, None])
    return signal.replace(x_BCT=x_BCT * valid_BT[:, None], time_valid_BT=valid_BT)


def warp_amplitude(signal: Signal, sd_log: float, key_B: Tensor) -> Signal:
    """Multiply each row by a smooth log-normal gain of sd ``sd_log``: one and two cycles over the window, half each.

    The same in all channels, so connectivity within a moment stays.
    """
    samples = signal.x_BCT.shape[-1]
    length_B1 = signal.time_valid_BT.sum(1, keepdim=True).clamp_min(1)
    time_BT = 2 * math.pi * torch.arange(samples, device=key_B.device) / length_B1
    log_gain_BT = torch.zeros_like(time_BT)
    for cycles in (1, 2):
        sine, cosine = normal(key_B, 210 + cycles, 2).split(1, dim=1)
        wave_BT = sine * torch.sin(cycles * time_BT) + cosine * torch.cos(cycles * time_BT)
        log_gain_BT = log_gain_BT + sd_log / math.sqrt(2) * wave_BT
    return signal.replace(x_BCT=signal.x_BCT * log_gain_BT.exp()[:, None].to(signal.x_BCT.dtype))


def mask_time(signal: Signal, largest_fraction: float, key_B: Tensor) -> Signal:
    """Mark one span, up to ``largest_fraction`` of each row's valid samples, as not valid."""
    samples = signal.x_BCT.shape[-1]
    length_B = signal.time_valid_BT.sum(1)
    span_B = (uniform(key_B, 201) * largest_fraction * length_B).long()
    start_B = (uniform(key_B, 202) * (length_B - span_B + 1)).long()
    time_T = torch.arange(samples, device=key_B.device)
    hidden_BT = (time_T >= start_B[:, None]) & (time_T < (start_B + span_B)[:, None])
    valid_BT = signal.time_valid_BT & ~hidden_BT
    return signal.replace(x_BCT=signal.x_BCT * valid_BT[:, None], time_valid_BT=valid_BT)


def scale_amplitude(signal: Signal, sd_log: float, key_B: Tensor) -> Signal:
    """Multiply each row by a log-normal gain: impedance and scanner gain vary."""
    return signal.replace(x_BCT=signal.x_BCT * torch.exp(normal(key_B, 203) * sd_log)[:, None, None])


def add_noise(signal: Signal, relative_sd: float, key_B: Tensor) -> Signal:
    """Add white noise relative to each channel's standard deviation over valid time."""
    count_B1 = signal.time_valid_BT.sum(1, keepdim=True).clamp_min(1)
    # Invalid values are zero: sums over the whole row need no mask, and each pass over a row counts.
    mean_BC = signal.x_BCT.sum(-1) / count_B1
    square_BC = torch.linalg.vector_norm(signal.x_BCT, dim=-1).square() / count_B1
    sd_BC = (square_BC - mean_BC.square()).clamp_min(0).sqrt() * relative_sd * signal.channel_valid_BC
    noise_BCT = white_noise(key_B, 204, *signal.x_BCT.shape[1:]).to(signal.x_BCT.dtype)
    noise_BCT *= sd_BC[..., None]
    noise_BCT *= signal.time_valid_BT[:, None]
    return signal.replace(x_BCT=signal.x_BCT + noise_BCT)


def flip_polarity(signal: Signal, key_B: Tensor) -> Signal:
    """Change the sign of half of the rows: the sign of EEG depends on the reference."""
    sign_B = torch.where(uniform(key_B, 205) < 0.5, -1.0, 1.0)
    return signal.replace(x_BCT=signal.x_BCT * sign_B[:, None, None])
