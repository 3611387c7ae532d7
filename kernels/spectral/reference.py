"""Log-power and imaginary coherence in plain PyTorch: the definition that faster versions are tested against.

A frame is demeaned, multiplied by a periodic Hann window and projected onto cosines and sines
at the wanted frequencies: by a matrix product, so any length and any frequency cost the same, or by FFT where they are
bins of the frame and that is faster. Rows of a batch may differ in sampling rate and in valid length.

Power is a one-sided density: with x in uV it is in uV^2/Hz, does not depend on length or sampling rate, and
equals ``scipy.signal.periodogram`` or ``welch`` (window "hann", detrend "constant", scaling "density") wherever
those have a bin. The integral over frequency is the variance.

Shape letters: B rows, C channels, T time samples, F frequencies, P frames, L samples per frame, K bands.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mcsp.kernels.spectral.framing import FLAT_POWER, Block, band_bins, blocks, in_order, on_host, result_type, spectra

# Clinical EEG bands and the BOLD slow-5 .. slow-2 bands (Penttonen and Buzsaki 2003; Zuo et al. 2010), in Hz.
EEG_BANDS_HZ: dict[str, tuple[float, float]] = {
    "delta": (1.0, 4.0),
    "theta": (4.0, 8.0),
    "alpha": (8.0, 13.0),
    "beta": (13.0, 30.0),
    "gamma": (30.0, 45.0),
}
BOLD_BANDS_HZ: dict[str, tuple[float, float]] = {
    "slow-5": (0.010, 0.027),
    "slow-4": (0.027, 0.073),
    "slow-3": (0.073, 0.198),
    "slow-2": (0.198, 0.250),
}
LOG_FLAT = math.log10(FLAT_POWER)

Bands = Sequence[tuple[float, float]]


def log_power(
    x_BCT: Tensor,
    sfreq_B: Tensor,
    freqs_hz_F: Tensor | Sequence[float] | None = None,
    *,
    bands_hz: Bands | None = None,
    time_valid_BT: Tensor | None = None,
    frame_seconds: float | None = None,
    hop_seconds: float | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Log10 of the power density per channel, averaged over frames (Welch's method), at frequencies or in bands.

    The value is ``log10(power + eps * m + 1e-20)``, where m is the channel's mean density (its variance divided by
    sfreq / 2). So eps bounds the dynamic range and the gradient (by about 1 / sqrt(eps)), and a flat channel gives
    -20 and no gradient. Frequencies and bands above a row's sfreq / 2 hold the floor.

    Args:
        x_BCT: signals in any floating dtype. The arithmetic is float64 for float64 and wherever a gradient is wanted,
            which is then exact but for its last rounding; else it is float32. Training wants none.
        sfreq_B: sampling rates [Hz].
        freqs_hz_F: frequencies [Hz], not necessarily bins of a DFT.
        bands_hz: instead of frequencies, K pairs (low, high) [Hz]: power is then the mean density over the bins
            low <= f < high of each row's own frame, so add log10(high - low) for the power of a band in unit^2.
        time_valid_BT: False where a sample does not count, whatever it holds; default all True.
        frame_seconds: length of a frame [s]; None takes one frame from a row's first valid sample to its last.
        hop_seconds: distance between frames [s]; default half a frame.
        eps: floor relative to the channel's mean density.

    Returns:
        (B, C, F) or (B, C, K), float64 for float64 and else float32. A row without one wholly valid frame holds the
            floor, -20.

    Raises:
        ValueError: shapes that do not fit, sfreq that is not positive, a negative frequency, a frame that is longer
            than T or shorter than two samples, a band without a bin, or both or neither of frequencies and bands.
    """
    wanted = checked_freqs(freqs_hz_F, bands_hz)
    parts: list[Tensor] = []
    order: list[int] = []
    for block in blocks(x_BCT, sfreq_B, time_valid_BT, frame_seconds, hop_seconds, by_span=bands_hz is not None):
        density_bCPF, level_bCP, frames_valid_bP = _density(block, wanted, bands_hz)
        if block.whole and frames_valid_bP.shape[1] == 1:
            parts.append(torch.log10(density_bCPF[:, :, 0] + (eps * level_bCP + FLAT_POWER)))
        else:
            share_bP = frames_valid_bP.to(level_bCP)
            share_b1P1 = (share_bP / share_bP.sum(1, keepdim=True).clamp(min=1))[:, None, :, None]
            floor_bC1 = eps * (level_bCP[..., None] * share_b1P1).sum(2) + FLAT_POWER
            parts.append(torch.log10((density_bCPF * share_b1P1).sum(2) + floor_bC1))
        order += block.rows
    return in_order(parts, order).to(result_type(x_BCT))


def log_power_frames(
    x_BCT: Tensor,
    sfreq_B: Tensor,
    freqs_hz_F: Tensor | Sequence[float] | None = None,
    *,
    frame_seconds: float,
    bands_hz: Bands | None = None,
    hop_seconds: float | None = None,
    time_valid_BT: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Log10 of the power density per channel and frame; arguments, unit and errors as in :func:`log_power`.

    Frame p covers ``frame_seconds`` from ``p * hop_seconds`` on, both rounded to whole samples of the row. Rows
    with a lower sampling rate in the same T have other numbers of frames; the missing ones are marked.

    Returns:
        (B, C, P, F) log-power, -20 where a frame is not valid, and (B, P) bool, True where all samples of a frame
        are valid. K bands take the place of F frequencies where those are asked for.
    """
    wanted = checked_freqs(freqs_hz_F, bands_hz)
    values: list[Tensor] = []
    masks: list[Tensor] = []
    order: list[int] = []
    for block in blocks(x_BCT, sfreq_B, time_valid_BT, frame_seconds, hop_seconds):
        density_bCPF, level_bCP, frames_valid_bP = _density(block, wanted, bands_hz)
        value = torch.log10(density_bCPF + (eps * level_bCP[..., None] + FLAT_POWER))
        if value.device.type != "cpu" or not bool(frames_valid_bP.all()):
            value = value.masked_fill(~frames_valid_bP[:, None, :, None], LOG_FLAT)
        values.append(value)
        masks.append(frames_valid_bP)
        order += block.rows
    most = max(mask.shape[1] for mask in masks)
    for i, mask in enumerate(masks):
        missing = most - mask.shape[1]
        if missing:
            values[i] = torch.nn.functional.pad(values[i], (0, 0, 0, missing), value=LOG_FLAT)
            masks[i] = torch.nn.functional.pad(mask, (0, missing), value=False)
    return in_order(values, order).to(result_type(x_BCT)), in_order(masks, order)


def imaginary_coherence(
    x_BCT: Tensor,
    sfreq_B: Tensor,
    bands_hz: Bands,
    *,
    frame_seconds: float,
    hop_seconds: float | None = None,
    time_valid_BT: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Magnitude of the imaginary part of coherency per band: coupling that volume conduction cannot fake.

    Coherency C_ij(f) = S_ij / sqrt(S_ii S_jj), with cross-spectra S averaged over valid frames (Nolte et al. 2004,
    Clin. Neurophysiol. 115:2292). Its imaginary part is averaged over the bins low <= f < high of the frame, sign
    kept so that noise cancels, and then its magnitude is taken. With few frames it is biased upwards, by about
    1 / sqrt(frames * bins). ``eps`` relative to a channel's mean density keeps empty bins from being blown up.

    Args:
        bands_hz: K pairs (low, high) [Hz]. A band wholly above a row's sfreq / 2 gives 0 in that row.
        x_BCT, sfreq_B, time_valid_BT, frame_seconds, hop_seconds: as in :func:`log_power`.

    Returns:
        (B, K, C, C) in [0, 1], symmetric, diagonal 0; 0 for flat channels and for rows without a valid frame.

    Raises:
        ValueError: as :func:`log_power`, or a band that is empty or holds no bin because frames are too short.
    """
    parts: list[Tensor] = []
    order: list[int] = []
    for block in blocks(x_BCT, sfreq_B, time_valid_BT, frame_seconds, hop_seconds):
        bins = band_bins(bands_hz, block.sfreq, block.length)
        found = spectra(block, tuple(f for band in bins for f in band))
        keep = found.frames_valid_bP[:, None, :, None]
        power = (found.density() * keep).sum(2, keepdim=True)
        level = (found.level_bCP[..., None] * keep).sum(2, keepdim=True)
        gain = keep * found.scale_bCPF * torch.rsqrt(power + eps * level + FLAT_POWER)
        sizes = [len(band) for band in bins]
        re, im = (found.re_bCPF * gain).split(sizes, -1), (found.im_bCPF * gain).split(sizes, -1)
        with torch.autocast(power.device.type, enabled=False):
            half = [i.flatten(2) @ r.flatten(2).mT / max(1, n) for r, i, n in zip(re, im, sizes, strict=True)]
        half_bKCC = torch.stack(half, 1)
        parts.append((half_bKCC - half_bKCC.mT).abs().clamp(max=1.0))
        order += block.rows
    return in_order(parts, order).to(result_type(x_BCT))


def _density(block: Block, freqs_hz: tuple[float, ...] | None, bands_hz: Bands | None) -> tuple[Tensor, Tensor, Tensor]:
    """Density (b, C, P, F or K) at frequencies or averaged over bands, mean density (b, C, P), frame mask (b, P)."""
    if freqs_hz is not None:
        found = spectra(block, freqs_hz)
        return found.density(), found.level_bCP, found.frames_valid_bP
    bins = band_bins(bands_hz or (), block.sfreq, block.length)
    found = spectra(block, tuple(f for band in bins for f in band))
    pooled = [part.sum(-1) / max(1, part.shape[-1]) for part in found.density().split([len(b) for b in bins], -1)]
    return torch.stack(pooled, -1), found.level_bCP, found.frames_valid_bP


def checked_freqs(freqs_hz_F: Tensor | Sequence[float] | None, bands_hz: Bands | None) -> tuple[float, ...] | None:
    """The frequencies, or None where bands are asked for."""
    if (freqs_hz_F is None) == (bands_hz is None):
        found = "neither" if bands_hz is None else "both"
        raise ValueError(f"freqs_hz_F, bands_hz: expected one of the two, found {found}")
    if bands_hz is not None:
        if not bands_hz or any(not 0 <= low < high < math.inf for low, high in bands_hz):
            raise ValueError(f"bands_hz: expected pairs with 0 <= low < high in Hz, found {list(bands_hz)}")
        return None
    assert freqs_hz_F is not None
    flat = not isinstance(freqs_hz_F, Tensor) or freqs_hz_F.ndim == 1
    freqs = on_host(freqs_hz_F) if isinstance(freqs_hz_F, Tensor) else [float(f) for f in freqs_hz_F]
    if not flat or not freqs or not all(0 <= f < math.inf for f in freqs):
        raise ValueError(f"freqs_hz_F: expected a non-empty list of frequencies >= 0 Hz, found {freqs}")
    return tuple(freqs)
