"""Views in the spectral domain, made on the signal's Fourier transform. Pure functions of (signal, strengths, key).

Shape letters: B rows, C channels, T time samples, F frequency bins.
"""

import math

import torch
from torch import Tensor

from mcsp.augmentations.random import normal, uniform
from mcsp.batch import Signal


def reshape_spectrum(signal: Signal, band_fraction: float, tilt_sd: float, highest_hz: float, key_B: Tensor) -> Signal:
    """Attenuate one random band and change the slope of the 1/f background, in one transform.

    The band covers up to ``band_fraction`` of (0, min(``highest_hz``, Nyquist)) and keeps 10 to 50 % of its amplitude,
    the same in all channels. The slope changes by a factor ``(f / f_middle)^(e / 2)`` with e normal of sd ``tilt_sd``,
    so power changes by the exponent e; the mean is left alone.
    """
    samples = signal.x_BCT.shape[-1]
    unit_F = torch.fft.rfftfreq(samples, device=key_B.device)
    freqs_BF = unit_F * signal.sfreq_B[:, None]
    top_B1 = (signal.sfreq_B / 2).clamp_max(highest_hz)[:, None]
    width_B1 = uniform(key_B, 301, 1) * band_fraction * top_B1
    low_B1 = uniform(key_B, 302, 1) * (top_B1 - width_B1)
    kept_B1 = 0.1 + 0.4 * uniform(key_B, 303, 1)
    inside_BF = (freqs_BF >= low_B1) & (freqs_BF < low_B1 + width_B1)
    # Bounded below: the lowest bins of a long window would otherwise be raised without limit.
    relative_BF = (freqs_BF / (top_B1 / 4)).clamp(0.05, 20.0)
    gain_BF = torch.where(inside_BF, kept_B1, 1.0) * relative_BF ** (0.5 * tilt_sd * normal(key_B, 304, 1))
    gain_BF = torch.where(unit_F == 0, 1.0, gain_BF)
    x_BCT = torch.fft.irfft(torch.fft.rfft(signal.x_BCT) * gain_BF[:, None], n=samples)
    return signal.replace(x_BCT=x_BCT * signal.time_valid_BT[:, None])


def add_line(signal: Signal, relative_sd: float, key_B: Tensor) -> Signal:
    """Add mains hum of 50 or 60 Hz, up to ``relative_sd`` of each channel's standard deviation, different in each.

    One phase per row. Rows that cannot hold the frequency are left alone. The spectral encoder reads up to 45 Hz, so
    what it sees of the hum is how it leaks there.
    """
    hz_B1 = torch.where(uniform(key_B, 305, 1) < 0.5, 50.0, 60.0)
    time_T = torch.arange(signal.x_BCT.shape[-1], device=key_B.device)
    turns_BT = hz_B1 / signal.sfreq_B[:, None] * time_T + uniform(key_B, 306, 1)
    wave_BT = torch.sin(2 * math.pi * (turns_BT % 1)) * math.sqrt(2) * signal.time_valid_BT
    wave_BT = wave_BT * (hz_B1 < signal.sfreq_B[:, None] / 2)
    count_B1 = signal.time_valid_BT.sum(1, keepdim=True).clamp_min(1)
    mean_BC = signal.x_BCT.sum(-1) / count_B1
    variance_BC = (torch.linalg.vector_norm(signal.x_BCT, dim=-1).square() / count_B1 - mean_BC.square()).clamp_min(0)
    strength_BC = uniform(key_B, 307, signal.x_BCT.shape[1]) * relative_sd * variance_BC.sqrt()
    strength_BC = strength_BC * signal.channel_valid_BC
    return signal.replace(x_BCT=signal.x_BCT + strength_BC[..., None] * wave_BT[:, None].to(signal.x_BCT.dtype))


def randomise_phase(signal: Signal, largest_turn: float, key_B: Tensor) -> Signal:
    """Turn the phase of every frequency by a random angle up to ``largest_turn`` half turns, alike in all channels.

    Power and cross-spectra, and so connectivity, stay as they are where a row fills its time; waveforms do not (the
    surrogate data of Prichard and Theiler, Phys. Rev. Lett. 73:951, 1994).
    """
    samples = signal.x_BCT.shape[-1]
    turn_BF = math.pi * largest_turn * (2 * uniform(key_B, 308, samples // 2 + 1) - 1)
    turn_BF[:, 0] = 0.0
    if samples % 2 == 0:  # the last bin is real
        turn_BF[:, -1] = 0.0
    rotation_BF = torch.polar(torch.ones_like(turn_BF), turn_BF)
    x_BCT = torch.fft.irfft(torch.fft.rfft(signal.x_BCT) * rotation_BF[:, None], n=samples)
    return signal.replace(x_BCT=x_BCT * signal.time_valid_BT[:, None])
