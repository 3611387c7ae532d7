"""Views in the temporal domain. Pure functions of (signal, strengths, key).

Shape letters: B rows, C channels, T time samples.
"""

import torch
from torch import Tensor

from mcsp.augmentations.random import normal, uniform, white_noise
from mcsp.batch import Signal, as_one
from mcsp.schema import Purpose


def halves(signal: Signal, late_B: Tensor) -> Signal:
    """Both halves of each row's valid extent, (2 B, ...) of half the length: first of all rows the late half where
    ``late_B``, else the early one; then the other.
    """
    samples = signal.x_BCT.shape[-1]
    first_B = signal.time_valid_BT.int().argmax(1)
    stop_B = samples - signal.time_valid_BT.flip(1).int().argmax(1)
    length_B = ((stop_B - first_B) // 2).clamp_min(1)
    start_2B = torch.cat([torch.where(late, stop_B - length_B, first_B) for late in (late_B, ~late_B)])
    cut = _by_rows if late_B.device.type == "cpu" else _by_index
    x_2BCL, valid_2BL = cut(signal, start_2B, length_B.repeat(2), max(1, samples // 2))
    return as_one([signal, signal], x_BCT=x_2BCL, time_valid_BT=valid_2BL)


def _by_rows(signal: Signal, start_2B: Tensor, length_2B: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Windows and valid time of the cuts, where reading their places waits for nothing: each row is one copy."""
    rows, channels, _ = signal.x_BCT.shape
    x_2BCL = signal.x_BCT.new_zeros(2 * rows, channels, longest)
    valid_2BL = signal.time_valid_BT.new_zeros(2 * rows, longest)
    for b, (start, length) in enumerate(zip(start_2B.tolist(), length_2B.tolist(), strict=True)):
        x_2BCL[b, :, :length] = signal.x_BCT[b % rows, :, start : start + length]
        valid_2BL[b, :length] = signal.time_valid_BT[b % rows, start : start + length]
    return x_2BCL, valid_2BL


def _by_index(signal: Signal, start_2B: Tensor, length_2B: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """The same without reading the places."""
    step_L = torch.arange(longest, device=start_2B.device)
    index_2BL = (start_2B[:, None] + step_L).clamp_max(signal.x_BCT.shape[-1] - 1)
    valid_2BL = signal.time_valid_BT.repeat(2, 1).gather(1, index_2BL) & (step_L < length_2B[:, None])
    channels = signal.x_BCT.shape[1]
    of_halves = [signal.x_BCT.gather(2, i_BL[:, None].expand(-1, channels, -1)) for i_BL in index_2BL.chunk(2)]
    return torch.cat(of_halves) * valid_2BL[:, None], valid_2BL


def mask_and_scale(signal: Signal, largest_fraction: float, sd_log: float, key_B: Tensor) -> Signal:
    """Mark one span, up to ``largest_fraction`` of each row's valid samples, as not valid, and multiply each row by a
    log-normal gain: impedance and scanner gain vary. One pass over the rows for both.
    """
    valid_BT = signal.time_valid_BT
    if largest_fraction:
        length_B = valid_BT.sum(1)
        span_B = (uniform(key_B, Purpose.MASKED_LENGTH) * largest_fraction * length_B).long()
        start_B = (uniform(key_B, Purpose.MASKED_PLACE) * (length_B - span_B + 1)).long()
        time_T = torch.arange(valid_BT.shape[1], device=key_B.device)
        valid_BT = valid_BT & ~((time_T >= start_B[:, None]) & (time_T < (start_B + span_B)[:, None]))
    # As numbers: a product with truth values takes six times as long.
    weight_BT = valid_BT.to(signal.x_BCT)
    if sd_log:
        weight_BT = weight_BT * torch.exp(normal(key_B, Purpose.AMPLITUDE) * sd_log)[:, None]
    return signal.replace(x_BCT=signal.x_BCT * weight_BT[:, None], time_valid_BT=valid_BT)


def add_noise(signal: Signal, relative_sd: float, key_B: Tensor) -> Signal:
    """Add white noise relative to each channel's standard deviation over valid time."""
    count_B1 = signal.time_valid_BT.sum(1, keepdim=True).clamp_min(1)
    # Invalid values are zero: sums over the whole row need no mask, and each pass over a row counts.
    mean_BC = signal.x_BCT.sum(-1) / count_B1
    square_BC = torch.linalg.vector_norm(signal.x_BCT, dim=-1).square() / count_B1
    sd_BC = (square_BC - mean_BC.square()).clamp_min(0).sqrt() * relative_sd * signal.channel_valid_BC
    noise_BCT = white_noise(key_B, Purpose.NOISE, *signal.x_BCT.shape[1:]).to(signal.x_BCT.dtype)
    noisy_BCT = torch.addcmul(signal.x_BCT, noise_BCT, sd_BC[..., None])
    return signal.replace(x_BCT=noisy_BCT.mul_(signal.time_valid_BT[:, None].to(noisy_BCT)))
