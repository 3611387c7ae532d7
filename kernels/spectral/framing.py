"""Checks, frames and transforms that the spectral functions share.

Shape letters: B rows of a batch, b rows of one block, C channels, T time samples, P frames, L samples per frame,
F frequencies, K bands.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from mcsp.kernels.spectral.transforms import fits, transformed

# Floor of a channel without any variation, in unit^2/Hz; far below the noise of any amplifier, in uV or in V.
FLAT_POWER = 1e-20

# Samples in a block of rows on a CPU, with a gradient and without: 2 MiB of float64 and 8 MiB of float32, so that the
# passes over a block find it in the cache and there are few blocks.
_BLOCK_SAMPLES = (2**18, 2**21)
# Frequencies from which a CPU's FFT, which computes all bins, is faster than a product for the wanted ones alone; on a
# GPU the frame's length decides. Both count only where the frequencies are bins of the frame.
_FFT_FREQS_CPU, _FFT_LENGTH_GPU = 24, 1000
_READ = WeakTensorKeyDictionary()  # values of tensors on a GPU
_SAME = 1e-6  # relative difference of frequencies that count as one: float32 rates carry no more


class Block(NamedTuple):
    """Rows that share a sampling rate, and where they stand in the batch."""

    rows: list[int]
    x_bCT: Tensor
    valid_bT: Tensor
    sfreq: float
    length: int  # samples per frame, or from the first valid sample to the last
    hop: int  # samples between frames; 0 where a row is one frame
    whole: bool  # nobody gave a mask


class Spectra(NamedTuple):
    """Spectra of a block: ``square * scale^2`` is a one-sided density."""

    re_bCPF: Tensor
    im_bCPF: Tensor
    square_bCPF: Tensor  # re^2 + im^2
    scale_bCPF: Tensor  # 0 for a channel without variation; broadcasts
    level_bCP: Tensor  # a channel's mean density over 0 .. sfreq / 2
    frames_valid_bP: Tensor

    def density(self) -> Tensor:
        """``(b, C, P, F)`` in unit^2/Hz."""
        return self.square_bCPF * self.scale_bCPF.square()


def planned_rows(
    x_BCT: Tensor,
    sfreq_B: Tensor,
    time_valid_BT: Tensor | None,
    frame_seconds: float | None,
    hop_seconds: float | None,
    by_span: bool,
) -> list[tuple[float, int, int]]:
    """Check the inputs; each row's rate [Hz], samples per frame, and samples between frames.

    A row that is one frame has hop 0, and as length its T or, ``by_span``, that from first to last valid sample.
    """
    if x_BCT.ndim != 3 or min(x_BCT.shape) < 1 or not x_BCT.is_floating_point():
        raise ValueError(f"x_BCT: expected a floating tensor (B, C, T), found {x_BCT.dtype} {tuple(x_BCT.shape)}")
    rows, _, n_times = x_BCT.shape
    if time_valid_BT is not None and (time_valid_BT.shape != (rows, n_times) or time_valid_BT.dtype != torch.bool):
        found = f"{time_valid_BT.dtype} {tuple(time_valid_BT.shape)}"
        raise ValueError(f"time_valid_BT: expected bool {(rows, n_times)}, found {found}")
    if sfreq_B.shape != (rows,):
        raise ValueError(f"sfreq_B: expected shape ({rows},), found {tuple(sfreq_B.shape)}")
    rates = on_host(sfreq_B)
    if any(not (rate > 0 and math.isfinite(rate)) for rate in rates):
        raise ValueError(f"sfreq_B: expected positive rates in Hz, found {rates}")
    if frame_seconds is not None:
        plan = {rate: frame_samples(n_times, rate, frame_seconds, hop_seconds) for rate in sorted(set(rates))}
        return [(rate, *plan[rate]) for rate in rates]
    spans = [n_times] * rows
    if by_span and time_valid_BT is not None:
        first_B, last_B = valid_ends(time_valid_BT)
        spans = (last_B - first_B + 1).int().tolist()
    return [(rate, span, 0) for rate, span in zip(rates, spans, strict=True)]


def on_host(x: Tensor) -> list[float]:
    """The values; those of a tensor on a GPU are read once for as long as it lives and does not change.

    So a second call with it waits for nothing, and a CUDA graph can hold that call.
    """
    if x.device.type == "cpu" or x.is_inference():  # inference tensors do not count their changes
        return x.tolist()
    version, values = _READ.get(x, (-1, []))
    if version != x._version:
        values = x.tolist()
        _READ[x] = (x._version, values)
    return values


def blocks(
    x_BCT: Tensor,
    sfreq_B: Tensor,
    time_valid_BT: Tensor | None,
    frame_seconds: float | None,
    hop_seconds: float | None,
    by_span: bool = False,
) -> Iterator[Block]:
    """Check the inputs and yield blocks of rows with one rate each (``by_span``: and with one valid length each).

    Signals are float64 where they are given so, and where a gradient is wanted; else float32.
    """
    plan = planned_rows(x_BCT, sfreq_B, time_valid_BT, frame_seconds, hop_seconds, by_span)
    rows, _, n_times = x_BCT.shape
    valid_BT = x_BCT.new_ones(rows, n_times, dtype=torch.bool) if time_valid_BT is None else time_valid_BT
    x_BCT = x_BCT if x_BCT.dtype == torch.float64 else x_BCT.float()
    wanted = x_BCT.requires_grad and torch.is_grad_enabled()
    # A gradient has the transform over its square, and the floor lets a transform be a thousandth of the signal: sums
    # in float32 would leave an error of 1e-5 there.
    wide = torch.float64 if wanted else x_BCT.dtype
    samples = _BLOCK_SAMPLES[0] if wanted else _BLOCK_SAMPLES[1]
    parts = -(-x_BCT.numel() // samples) if x_BCT.device.type == "cpu" else 1
    most = -(-rows // min(parts, rows))
    for kind in sorted(set(plan)):
        chosen = [b for b in range(rows) if plan[b] == kind]
        whole = len(chosen) == rows
        # Split and not sliced: the gradient of a slice is a tensor of the whole batch's size.
        x_parts = (x_BCT if whole else x_BCT[chosen]).split(most)
        valid_parts = (valid_BT if whole else valid_BT[chosen]).split(most)
        for i, (x, valid) in enumerate(zip(x_parts, valid_parts, strict=True)):
            yield Block(chosen[i * most : (i + 1) * most], x.to(wide), valid, *kind, time_valid_BT is None)


def result_type(x: Tensor) -> torch.dtype:
    """float64 for float64 signals, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def in_order(parts: list[Tensor], order: list[int]) -> Tensor:
    """Concatenate the blocks and put their rows back where they came from."""
    whole = torch.cat(parts) if len(parts) > 1 else parts[0]
    if order == sorted(order):
        return whole
    return whole[sorted(range(len(order)), key=order.__getitem__)]


def spectra(block: Block, freqs_hz: tuple[float, ...]) -> Spectra:
    """Demean each frame, weight it with a Hann window and project it onto ``freqs_hz``."""
    x_bCT, valid_bT = block.x_bCT, block.valid_bT
    # On a CPU a look at the mask is cheaper than a copy of the signal; on a GPU it would wait for the device.
    whole = block.whole or (x_bCT.device.type == "cpu" and bool(valid_bT.all()))
    bins = _bins_by_transform(block, freqs_hz)
    if bins is not None:
        return _by_transform(block, bins, whole)
    if block.hop == 0:
        frames = (x_bCT if whole else x_bCT.masked_fill(~valid_bT[:, None], 0))[:, :, None]
        frames_valid_bP = (valid_bT.sum(1) >= 2)[:, None]
        counted_bL = valid_bT[:1] if whole else valid_bT
    else:
        frames = x_bCT.unfold(-1, block.length, block.hop)
        frames_valid_bP = valid_bT.new_ones(frames.shape[0], frames.shape[2])
        if not whole:
            frames_valid_bP = valid_bT.unfold(-1, block.length, block.hop).all(-1)
            # A frame that does not count is not read: NaN times a share of 0 would be NaN.
            frames = frames.masked_fill(~frames_valid_bP[:, None, :, None], 0)
        counted_bL = valid_bT.new_ones(1, block.length)
    if whole or block.hop > 0:
        window_bL, density_b = _whole_window(counted_bL.shape[1], block.sfreq, x_bCT.dtype, x_bCT.device)
    else:
        window_bL, density_b = _window(counted_bL, block.sfreq, x_bCT.dtype)
    counted = counted_bL[:, None, None].to(x_bCT.dtype)
    centred, rest, total = _centred(frames, counted, whole or block.hop > 0)
    norm = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    # What is left of a constant after rounding must count as nothing, or its logarithm has a huge gradient.
    lively = norm.detach() > 8 * torch.finfo(norm.dtype).eps * rest
    level_bCP = (norm.square() * lively / total * (2 / block.sfreq))[..., 0]
    scale = lively * density_b[:, None, None, None]
    re, im, one_sided_F = _transform(centred, window_bL[:, None, None], block.sfreq, freqs_hz)
    square = re.square().addcmul_(im, im)
    return Spectra(re, im, square, scale * one_sided_F.to(scale), level_bCP, frames_valid_bP)


def _bins_by_transform(block: Block, freqs_hz: tuple[float, ...]) -> range | None:
    """The bins of the frames that :func:`_by_transform` finds, where it can and is faster."""
    wanted = block.x_bCT.requires_grad and torch.is_grad_enabled()
    if wanted or block.x_bCT.device.type != "cpu" or block.hop == 0 or len(freqs_hz) < _FFT_FREQS_CPU:
        return None
    _, bins = _plan(block.length, block.sfreq, freqs_hz)
    return None if bins is None else fits(block.length, block.hop, bins)


def _by_transform(block: Block, bins: range, whole: bool) -> Spectra:
    x_bCT, valid_bT, length = block.x_bCT, block.valid_bT, block.length
    frames_bPL = valid_bT.unfold(-1, length, block.hop)
    frames_valid_bP = valid_bT.new_ones(frames_bPL.shape[:2]) if whole else frames_bPL.all(-1)
    window_1L, density_1 = _whole_window(length, block.sfreq, x_bCT.dtype, x_bCT.device)
    x_bCT = x_bCT if whole else x_bCT.masked_fill(~valid_bT[:, None], 0)
    found = transformed(x_bCT, window_1L[0], block.hop, bins)
    scale_bCP = found.lively_bCP * (density_1 * math.sqrt(2))
    level_bCP = found.norm_bCP.square() * found.lively_bCP * (2 / block.sfreq / length)
    # As pairs of numbers, which lie side by side: a pass over real parts alone takes up to four times as long.
    pairs = torch.view_as_real(found.spectrum_bCPF)
    squares = pairs.square()
    square_bCPF = squares[..., 0] + squares[..., 1]
    return Spectra(pairs[..., 0], pairs[..., 1], square_bCPF, scale_bCP[..., None], level_bCP, frames_valid_bP)


def _window(counted_bL: Tensor, sfreq: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Hann windows, and what makes their spectra densities when it is squared; (b, L) and (b,)."""
    window_bL = hann_over_valid(counted_bL).to(dtype)
    energy_b = window_bL.square().sum(-1).clamp(min=torch.finfo(dtype).tiny)
    return window_bL, torch.rsqrt(energy_b * sfreq)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _whole_window(length: int, sfreq: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    return _window(torch.ones(1, length, dtype=torch.bool, device=device), sfreq, dtype)


def _centred(frames: Tensor, counted: Tensor, whole: bool) -> tuple[Tensor, Tensor, Tensor | float]:
    """Frames without their mean; a norm of what may be left of it; and the number of counted samples.

    It is removed twice, as the first time leaves as much of a large offset as its sum was rounded by. Gradients go
    through the first removal alone: it is the same projection.
    """
    # Where all samples count, their number needs no tensor.
    total = float(frames.shape[-1]) if whole else counted.sum(-1, keepdim=True).clamp(min=1)
    centred = frames - frames.sum(-1, keepdim=True) / total
    centred = centred if whole else centred * counted
    with torch.no_grad():
        mean = centred.sum(-1, keepdim=True) / total
        rest = mean.abs() * total**0.5
        centred.sub_(mean if whole else mean * counted)
    return centred, rest, total


def _transform(
    centred: Tensor, window: Tensor, sfreq: float, freqs: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Real and imaginary parts ``(b, C, P, F)``, by FFT where that is faster and has the frequencies.

    What they are still to be multiplied with, ``(F)``, ``(1)`` or ``()``, comes third.
    """
    length = centred.shape[-1]
    one_sided_F, bins = _plan(length, sfreq, freqs)
    long = len(freqs) >= _FFT_FREQS_CPU if centred.device.type == "cpu" else length >= _FFT_LENGTH_GPU
    if bins is not None and long:
        windowed = centred * window if centred.requires_grad else centred.mul_(window)
        spectrum = _take(torch.fft.rfft(windowed), bins)
        return spectrum.real, spectrum.imag, one_sided_F
    basis = _basis(length, sfreq, freqs).to(centred)
    with torch.autocast(centred.device.type, enabled=False):
        # One window for all rows goes into the basis: a pass over the frames less.
        one = len(window) == 1
        spectrum = centred @ (basis * window.reshape(-1, 1)) if one else (centred * window) @ basis
    re, im = spectrum.chunk(2, dim=-1)
    return re, im, torch.ones(())


# What is kept must not be an inference tensor, which no later backward pass could use.
@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _plan(length: int, sfreq: float, freqs: tuple[float, ...]) -> tuple[Tensor, list[int] | None]:
    """One-sided factors ``(F)`` or ``(1)``, and the frequencies' bins if all are bins of the frame."""
    freqs_F = torch.tensor(freqs, dtype=torch.float64)
    bins_1F, on_bins_1 = bins_of(freqs_F, sfreq, torch.tensor([length]))
    # Beyond Nyquist the value does not matter.
    bins = torch.where(bins_1F[0] < 0, length // 2, bins_1F[0]).tolist()
    one_sided_F = _one_sided(freqs_F, sfreq)
    if bool((one_sided_F == one_sided_F[:1]).all()):  # without frequencies at an edge or above it one number is enough
        one_sided_F = one_sided_F[:1]
    return one_sided_F, bins if on_bins_1.item() else None


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _basis(length: int, sfreq: float, freqs: tuple[float, ...]) -> Tensor:
    return fourier_basis(length, sfreq, torch.tensor(freqs, dtype=torch.float64))


def bins_of(freqs_F: Tensor, sfreq: float, length_N: Tensor) -> tuple[Tensor, Tensor]:
    """Bins ``(N, F)`` of transforms of each length that are nearest to the frequencies, -1 above ``sfreq / 2``.

    Second, whether all frequencies of a length are bins, ``(N,)``: a bin that is off by d turns the phase by 2 pi d
    over the frame.
    """
    cycles_NF = length_N[:, None].double() * (freqs_F / sfreq)
    bins_NF = torch.minimum(cycles_NF.round(), (length_N // 2)[:, None])
    above_F = _one_sided(freqs_F, sfreq) == 0
    on_bins_N = (((cycles_NF - bins_NF).abs() < 1e-9 * length_N[:, None]) | above_F).all(1)
    return bins_NF.masked_fill(above_F, -1).long(), on_bins_N


def fourier_basis(length: int, sfreq: float, freqs_F: Tensor) -> Tensor:
    """Cosines then sines, (L, 2F), float64, one-sided; zero above ``sfreq / 2``."""
    turns = torch.arange(length, dtype=torch.float64)[:, None] * (freqs_F / sfreq)
    angle = 2 * math.pi * (turns - turns.floor())
    one_sided_F = _one_sided(freqs_F, sfreq)
    return torch.cat([angle.cos() * one_sided_F, angle.sin() * one_sided_F], dim=1)


def _one_sided(freqs_F: Tensor, sfreq: float) -> Tensor:
    """sqrt(2), except at 0 and ``sfreq / 2``, where it is 1, and above, where it is 0; float64."""
    nyquist = sfreq / 2
    edge = (freqs_F == 0) | ((freqs_F - nyquist).abs() <= _SAME * nyquist)
    return (2.0 - edge.double()).sqrt() * (freqs_F <= nyquist * (1 + _SAME))


def _take(spectrum: Tensor, bins: list[int]) -> Tensor:
    """The wanted bins; evenly spaced ones as a view, because indexing copies."""
    step = bins[1] - bins[0] if len(bins) > 1 else 1
    if step > 0 and bins == list(range(bins[0], bins[-1] + 1, step)):
        return spectrum[..., bins[0] : bins[-1] + 1 : step]
    return spectrum[..., bins]


def valid_ends(valid_bT: Tensor) -> tuple[Tensor, Tensor]:
    """Places of each row's first and last valid sample, float64 (b,); 0 and -1 where there is none."""
    time = torch.arange(valid_bT.shape[1], device=valid_bT.device, dtype=torch.float64)
    first = torch.where(valid_bT, time, math.inf).amin(1).nan_to_num(posinf=0.0)
    return first, torch.where(valid_bT, time, -1.0).amax(1)


def hann_over_valid(valid_bT: Tensor) -> Tensor:
    """Periodic Hann window from each row's first valid sample to its last, zero elsewhere; (b, T) float64."""
    first, last = valid_ends(valid_bT)
    time = torch.arange(valid_bT.shape[1], device=valid_bT.device, dtype=torch.float64)
    phase = (time - first[:, None]) / (last - first + 1).clamp(min=1)[:, None]
    return (0.5 - 0.5 * torch.cos(2 * math.pi * phase)) * valid_bT


def frame_samples(n_times: int, sfreq: float, frame_seconds: float, hop_seconds: float | None) -> tuple[int, int]:
    """Length of a frame and distance between frames, in whole samples."""
    length = round(frame_seconds * sfreq)
    if not 2 <= length <= n_times:
        raise ValueError(
            f"frame_seconds: expected between 2 and T={n_times} samples at {sfreq:g} Hz, found {frame_seconds} s"
        )
    hop = length / sfreq / 2 if hop_seconds is None else hop_seconds
    if hop <= 0:
        raise ValueError(f"hop_seconds: expected more than 0 s, found {hop_seconds}")
    return length, max(1, round(hop * sfreq))


def band_bins(bands_hz: Sequence[tuple[float, float]], sfreq: float, length: int) -> list[list[float]]:
    """Per band, the frequencies low <= f < high among the bins of a frame; none for a band above ``sfreq / 2``."""
    chosen = []
    for low, high in bands_hz:
        lowest = math.ceil(low * length / sfreq * (1 - _SAME))
        end = math.ceil(min(high * length / sfreq * (1 - _SAME), length // 2 + 1))
        if end <= lowest and low < sfreq / 2 and length > 1:
            step = f"{sfreq / length:g} Hz"
            raise ValueError(f"bands_hz: expected bands that hold a multiple of {step}, found {(low, high)}")
        chosen.append([k * sfreq / length for k in range(lowest, end)])
    return chosen
