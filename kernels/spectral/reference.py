"""Log-power and imaginary coherence in plain PyTorch: the definition that faster versions are tested against.

A frame is demeaned, multiplied by a periodic Hann window and projected onto cosines and sines at the wanted
frequencies (a matrix product, so any length and any frequency cost the same). Rows of a batch may differ in
sampling rate and in valid length.

Power is a one-sided density: with x in uV it is in uV^2/Hz, does not depend on length or sampling rate, and
equals ``scipy.signal.periodogram`` or ``welch`` (window "hann", detrend "constant", scaling "density") wherever
those have a bin. The integral over frequency is the variance.

Shape letters: B rows, C channels, T time samples, F frequencies, P frames, L samples per frame, K bands.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

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

# Floor of a channel without any variation, in unit^2/Hz; far below the noise of any amplifier, in uV or in V.
FLAT_POWER = 1e-20


def log_power(
    x_BCT: Tensor,
    sfreq_B: Tensor,
    freqs_hz_F: Tensor | Sequence[float],
    *,
    time_valid_BT: Tensor | None = None,
    frame_seconds: float | None = None,
    hop_seconds: float | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Log10 of the power density per channel, averaged over frames (Welch's method).

    The value is ``log10(power + eps * m + 1e-20)``, where m is the channel's mean density (its variance divided by
    sfreq / 2). So eps bounds the dynamic range and the gradient (by about 1 / sqrt(eps)), and a flat channel gives
    -20 and no gradient. Frequencies above a row's sfreq / 2 hold the floor.

    Args:
        x_BCT: signals in any floating dtype; the arithmetic is float64 for float64 and float32 otherwise.
        sfreq_B: sampling rates [Hz].
        freqs_hz_F: frequencies [Hz], not necessarily bins of a DFT.
        time_valid_BT: False where a sample does not count, whatever it holds; default all True.
        frame_seconds: length of a frame [s]; None takes one frame from a row's first valid sample to its last.
        hop_seconds: distance between frames [s]; default half a frame.
        eps: floor relative to the channel's mean density.

    Returns:
        (B, C, F). A row without one wholly valid frame holds the floor, -20.

    Raises:
        ValueError: shapes that do not fit, sfreq that is not positive, a negative frequency, or a frame that is
            longer than T or shorter than two samples.
    """
    freqs = _checked_freqs(freqs_hz_F)
    parts: list[Tensor] = []
    order: list[int] = []
    for rows, x, valid, sfreq in _groups(x_BCT, sfreq_B, time_valid_BT):
        re, im, level_bCP, frames_valid_bP = _spectra(x, valid, sfreq, freqs, frame_seconds, hop_seconds)
        density = (re.square() + im.square() + eps * level_bCP[..., None]) * frames_valid_bP[:, None, :, None]
        count_b = frames_valid_bP.sum(1).clamp(min=1)[:, None, None]
        parts.append(torch.log10(density.sum(2) / count_b + FLAT_POWER))
        order += rows
    return _in_order(parts, order)


def log_power_frames(
    x_BCT: Tensor,
    sfreq_B: Tensor,
    freqs_hz_F: Tensor | Sequence[float],
    *,
    frame_seconds: float,
    hop_seconds: float | None = None,
    time_valid_BT: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Log10 of the power density per channel and frame; arguments, unit and errors as in :func:`log_power`.

    Frame p covers ``frame_seconds`` from ``p * hop_seconds`` on, both rounded to whole samples of the row. Rows
    with a lower sampling rate in the same T have other numbers of frames; the missing ones are marked.

    Returns:
        (B, C, P, F) log-power, -20 where a frame is not valid, and (B, P) bool, True where all samples of a frame
        are valid.
    """
    freqs = _checked_freqs(freqs_hz_F)
    values: list[Tensor] = []
    masks: list[Tensor] = []
    order: list[int] = []
    for rows, x, valid, sfreq in _groups(x_BCT, sfreq_B, time_valid_BT):
        re, im, level_bCP, frames_valid_bP = _spectra(x, valid, sfreq, freqs, frame_seconds, hop_seconds)
        value = torch.log10(re.square() + im.square() + eps * level_bCP[..., None] + FLAT_POWER)
        floor = math.log10(FLAT_POWER)
        values.append(value.masked_fill(~frames_valid_bP[:, None, :, None], floor))
        masks.append(frames_valid_bP)
        order += rows
    most = max(mask.shape[1] for mask in masks)
    for i, mask in enumerate(masks):
        missing = most - mask.shape[1]
        values[i] = torch.nn.functional.pad(values[i], (0, 0, 0, missing), value=math.log10(FLAT_POWER))
        masks[i] = torch.nn.functional.pad(mask, (0, missing), value=False)
    return _in_order(values, order), _in_order(masks, order)


def imaginary_coherence(
    x_BCT: Tensor,
    sfreq_B: Tensor,
    bands_hz: Sequence[tuple[float, float]],
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
    for rows, x, valid, sfreq in _groups(x_BCT, sfreq_B, time_valid_BT):
        bins = [_band_bins(band, sfreq, round(frame_seconds * sfreq)) for band in bands_hz]
        freqs = torch.tensor([f for band in bins for f in band], dtype=torch.float64)
        re, im, level_bCP, frames_valid_bP = _spectra(x, valid, sfreq, freqs, frame_seconds, hop_seconds)
        keep = frames_valid_bP[:, None, :, None]
        power = ((re.square() + im.square()) * keep).sum(2, keepdim=True)
        level = (level_bCP[..., None] * keep).sum(2, keepdim=True)
        gain = keep * torch.rsqrt(power + eps * level + FLAT_POWER)
        sizes = [len(band) for band in bins]
        bands = []
        for re_band, im_band in zip((re * gain).split(sizes, -1), (im * gain).split(sizes, -1), strict=True):
            with torch.autocast(x.device.type, enabled=False):
                half = im_band.flatten(2) @ re_band.flatten(2).transpose(1, 2)
            bands.append((half - half.transpose(1, 2)).abs() / max(1, re_band.shape[-1]))
        parts.append(torch.stack(bands, 1).clamp(max=1.0))
        order += rows
    return _in_order(parts, order)


def _spectra(
    x_bCT: Tensor,
    valid_bT: Tensor,
    sfreq: float,
    freqs_F: Tensor,
    frame_seconds: float | None,
    hop_seconds: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Real and imaginary parts (b, C, P, F) whose squares add to density, mean density (b, C, P), frame mask (b, P)."""
    x_bCT = x_bCT.masked_fill(~valid_bT[:, None], 0)
    if frame_seconds is None:
        frames = x_bCT[:, :, None]
        count = valid_bT.sum(1)
        counted = valid_bT[:, None, None].to(x_bCT.dtype)
        total = count.clamp(min=1).to(x_bCT.dtype)[:, None, None, None]
        frames_valid_bP = (count >= 2)[:, None]
        window = _hann_over_valid(valid_bT).to(x_bCT.dtype)[:, None, None]
    else:
        length, hop = _frame_samples(x_bCT.shape[-1], sfreq, frame_seconds, hop_seconds)
        frames = x_bCT.unfold(-1, length, hop)
        counted = x_bCT.new_ones(())
        total = x_bCT.new_full((1, 1, 1, 1), length)
        frames_valid_bP = valid_bT.unfold(-1, length, hop).all(-1)
        window = _hann_over_valid(valid_bT.new_ones(1, length)).to(x_bCT.dtype)[:, None, None]
    mean = frames.sum(-1, keepdim=True) / total
    centred = frames - mean if frame_seconds is not None else (frames - mean) * counted
    # What is left of a constant after rounding must count as nothing, or its logarithm has a huge gradient.
    low, high = torch.aminmax(frames.detach(), dim=-1)
    left_low, left_high = torch.aminmax(centred.detach(), dim=-1)
    noise = 8 * torch.finfo(x_bCT.dtype).eps * torch.maximum(-low, high)
    lively_bCP = torch.maximum(-left_low, left_high) > noise
    level_bCP = torch.linalg.vector_norm(centred, dim=-1).square() * lively_bCP / total[..., 0] * (2 / sfreq)
    basis = _basis(frames.shape[-1], sfreq, freqs_F).to(x_bCT)
    with torch.autocast(x_bCT.device.type, enabled=False):
        # One window for all rows goes into the basis: a pass over the frames less.
        one = len(window) == 1
        spectrum = centred @ (basis * window.reshape(-1, 1)) if one else (centred * window) @ basis
    spectrum = spectrum * lively_bCP[..., None]
    energy = window.square().sum(-1, keepdim=True).clamp(min=torch.finfo(x_bCT.dtype).tiny)
    re, im = (spectrum * torch.rsqrt(energy * sfreq)).chunk(2, dim=-1)
    return re, im, level_bCP, frames_valid_bP


def _basis(length: int, sfreq: float, freqs_F: Tensor) -> Tensor:
    """Cosines then sines, (L, 2F), float64; sqrt(2) makes them one-sided, except at 0 and sfreq / 2."""
    cycles = torch.arange(length, dtype=torch.float64)[:, None] * (freqs_F / sfreq)
    angle = 2 * math.pi * (cycles - cycles.floor())
    nyquist = sfreq / 2
    edge = (freqs_F == 0) | ((freqs_F - nyquist).abs() <= 1e-6 * nyquist)
    factor = (2.0 - edge.double()).sqrt() * (freqs_F <= nyquist * (1 + 1e-6))
    return torch.cat([angle.cos() * factor, angle.sin() * factor], dim=1)


def _hann_over_valid(valid_bT: Tensor) -> Tensor:
    """Periodic Hann window from each row's first valid sample to its last, zero elsewhere; (b, T) float64."""
    time = torch.arange(valid_bT.shape[1], device=valid_bT.device, dtype=torch.float64)
    first = torch.where(valid_bT, time, math.inf).amin(1, keepdim=True).nan_to_num(posinf=0.0)
    last = torch.where(valid_bT, time, -1.0).amax(1, keepdim=True)
    phase = (time - first) / (last - first + 1).clamp(min=1)
    return (0.5 - 0.5 * torch.cos(2 * math.pi * phase)) * valid_bT


def _groups(
    x_BCT: Tensor, sfreq_B: Tensor, time_valid_BT: Tensor | None
) -> Iterator[tuple[list[int], Tensor, Tensor, float]]:
    """Check the inputs and yield (rows, x, valid, sfreq) for each distinct sampling rate."""
    if x_BCT.ndim != 3 or min(x_BCT.shape) < 1 or not x_BCT.is_floating_point():
        raise ValueError(f"x_BCT: expected a floating tensor (B, C, T), found {x_BCT.dtype} {tuple(x_BCT.shape)}")
    rows, _, n_times = x_BCT.shape
    if time_valid_BT is None:
        time_valid_BT = torch.ones(rows, n_times, dtype=torch.bool, device=x_BCT.device)
    if time_valid_BT.shape != (rows, n_times) or time_valid_BT.dtype != torch.bool:
        found = f"{time_valid_BT.dtype} {tuple(time_valid_BT.shape)}"
        raise ValueError(f"time_valid_BT: expected bool {(rows, n_times)}, found {found}")
    if sfreq_B.shape != (rows,):
        raise ValueError(f"sfreq_B: expected shape ({rows},), found {tuple(sfreq_B.shape)}")
    rates: list[float] = sfreq_B.tolist()
    if any(not (rate > 0 and math.isfinite(rate)) for rate in rates):
        raise ValueError(f"sfreq_B: expected positive rates in Hz, found {rates}")
    x_BCT = x_BCT if x_BCT.dtype == torch.float64 else x_BCT.float()
    for rate in sorted(set(rates)):
        chosen = [b for b, other in enumerate(rates) if other == rate]
        whole = len(chosen) == rows
        yield chosen, x_BCT if whole else x_BCT[chosen], time_valid_BT if whole else time_valid_BT[chosen], rate


def _in_order(parts: list[Tensor], order: list[int]) -> Tensor:
    """Concatenate the groups and put their rows back where they came from."""
    if len(parts) == 1:
        return parts[0]
    place = sorted(range(len(order)), key=order.__getitem__)
    return torch.cat(parts)[place]


def _checked_freqs(freqs_hz_F: Tensor | Sequence[float]) -> Tensor:
    freqs = torch.as_tensor(freqs_hz_F, dtype=torch.float64).detach().cpu()
    if freqs.ndim != 1 or len(freqs) == 0 or not bool((freqs >= 0).all()):
        raise ValueError(f"freqs_hz_F: expected a non-empty list of frequencies >= 0 Hz, found {freqs.tolist()}")
    return freqs


def _frame_samples(n_times: int, sfreq: float, frame_seconds: float, hop_seconds: float | None) -> tuple[int, int]:
    length = round(frame_seconds * sfreq)
    if not 2 <= length <= n_times:
        raise ValueError(
            f"frame_seconds: expected between 2 and T={n_times} samples at {sfreq:g} Hz, found {frame_seconds} s"
        )
    hop = length / sfreq / 2 if hop_seconds is None else hop_seconds
    if hop <= 0:
        raise ValueError(f"hop_seconds: expected more than 0 s, found {hop_seconds}")
    return length, max(1, round(hop * sfreq))


def _band_bins(band: tuple[float, float], sfreq: float, length: int) -> list[float]:
    low, high = band
    bins = [k * sfreq / length for k in range(length // 2 + 1) if low <= k * sfreq / length < high]
    if not bins and low < sfreq / 2:
        raise ValueError(f"bands_hz: expected bands that hold a multiple of {sfreq / length:g} Hz, found {band}")
    return bins
