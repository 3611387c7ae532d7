"""Views in the temporal domain. Pure functions of (signal, strengths, key).

Shape letters: B rows, C channels, T time samples.
"""

import torch
from torch import Tensor

from mcsp.augmentations.random import normal, uniform, white_noise
from mcsp.batch import Signal
from mcsp.schema import Purpose


def time_half(signal: Signal, late_B: Tensor) -> Signal:
    """Cut each row to one half of its valid extent: the late one where ``late_B``, else the early one.

    The result is half as long.
    """
    samples = signal.x_BCT.shape[-1]
    first_B = signal.time_valid_BT.int().argmax(1)
    stop_B = samples - signal.time_valid_BT.flip(1).int().argmax(1)
    length_B = ((stop_B - first_B) // 2).clamp_min(1)
    start_B = torch.where(late_B, stop_B - length_B, first_B)
    if late_B.device.type == "cpu":
        return _cut(signal, start_B.tolist(), length_B.tolist())
    step_L = torch.arange(max(1, samples // 2), device=late_B.device)
    inside_BL = step_L < length_B[:, None]
    index_BL = (start_B[:, None] + step_L).clamp_max(samples - 1)
    valid_BL = signal.time_valid_BT.gather(1, index_BL) & inside_BL
    x_BCL = signal.x_BCT.gather(2, index_BL[:, None].expand(-1, signal.x_BCT.shape[1], -1))
    return signal.replace(x_BCT=x_BCL * valid_BL[:, None], time_valid_BT=valid_BL)


def _cut(signal: Signal, starts: list[int], lengths: list[int]) -> Signal:
    """The same where places are known without waiting for a device: rows are copied as a whole, without an index."""
    rows, channels, samples = signal.x_BCT.shape
    x_BCL = signal.x_BCT.new_zeros(rows, channels, max(1, samples // 2))
    valid_BL = signal.time_valid_BT.new_zeros(rows, x_BCL.shape[-1])
    for b, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        x_BCL[b, :, :length] = signal.x_BCT[b, :, start : start + length]
        valid_BL[b, :length] = signal.time_valid_BT[b, start : start + length]
    return signal.replace(x_BCT=x_BCL, time_valid_BT=valid_BL)


def mask_time(signal: Signal, largest_fraction: float, key_B: Tensor) -> Signal:
    """Mark one span, up to ``largest_fraction`` of each row's valid samples, as not valid."""
    samples = signal.x_BCT.shape[-1]
    length_B = signal.time_valid_BT.sum(1)
    span_B = (uniform(key_B, Purpose.MASKED_LENGTH) * largest_fraction * length_B).long()
    start_B = (uniform(key_B, Purpose.MASKED_PLACE) * (length_B - span_B + 1)).long()
    time_T = torch.arange(samples, device=key_B.device)
    hidden_BT = (time_T >= start_B[:, None]) & (time_T < (start_B + span_B)[:, None])
    valid_BT = signal.time_valid_BT & ~hidden_BT
    # A product with truth values takes six times as long as one with numbers.
    return signal.replace(x_BCT=signal.x_BCT * valid_BT[:, None].to(signal.x_BCT), time_valid_BT=valid_BT)


def scale_amplitude(signal: Signal, sd_log: float, key_B: Tensor) -> Signal:
    """Multiply each row by a log-normal gain: impedance and scanner gain vary."""
    return signal.replace(x_BCT=signal.x_BCT * torch.exp(normal(key_B, Purpose.AMPLITUDE) * sd_log)[:, None, None])


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
