"""What the fused kernels read beside the signal: frames, windows and bases of every row of a batch.

Shape letters: B rows, T time samples, P frames, L samples per frame (padded), F frequencies (padded), K bands,
W windows, G bases.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcsp.kernels.spectral.framing import band_bins, fourier_basis, hann_over_valid, planned_rows, unit_line

Bands = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class FrameTables:
    """Tables of one batch, on its device; padding is zero."""

    valid_BT: Tensor  # uint8
    rows_B4: Tensor  # int32: window, basis, samples per frame, samples between frames
    count_BP: Tensor  # samples that count in a frame
    share_BP: Tensor  # weight of a frame in what is written: 0 where it does not count
    level_B: Tensor  # mean density of a channel per unit of its variance
    window_WL: Tensor  # scaled so that squares add to density
    line_WL: Tensor
    basis_GL2F: Tensor
    sums_W4F: Tensor  # sums over a frame of window * basis (cosine, sine), and of line * window * basis
    pool_BFK: Tensor | None  # mean over the bins of each band
    n_freqs: int
    averaged: int  # frames that go into one value
    linear: bool
    longest: tuple[tuple[int, int], ...]  # distinct (length, hop)

    @property
    def frames(self) -> int:
        """P, the most frames of any row."""
        return self.count_BP.shape[1]

    @property
    def padded_freqs(self) -> int:
        """F, a whole number of blocks."""
        return self.basis_GL2F.shape[3]

    @property
    def padded_length(self) -> int:
        """L, a whole number of blocks."""
        return self.window_WL.shape[1]

    def cover(self, block: int) -> int:
        """The most frames that can hold one of ``block`` neighbouring samples."""
        return min(self.frames, max((length + block - 1) // hop + 1 for length, hop in self.longest))

    def for_samples(self) -> tuple[Tensor, ...]:
        """In the order of the gathering kernel."""
        return self.valid_BT, self.rows_B4, self.share_BP, self.window_WL, self.line_WL, self.basis_GL2F

    def for_frames(self) -> tuple[Tensor, ...]:
        """In the order of the kernels that transform frames."""
        weights = (self.count_BP, self.share_BP, self.level_B)
        bases = (self.window_WL, self.line_WL, self.basis_GL2F, self.sums_W4F)
        return self.valid_BT, self.rows_B4, *weights, *bases


def frame_tables(
    x_BCT: Tensor,
    sfreq_B: Tensor,
    freqs_F: Tensor | None,
    bands_hz: Bands | None,
    time_valid_BT: Tensor | None,
    frame_seconds: float | None,
    hop_seconds: float | None,
    detrend: str,
    average: bool,
    multiples: tuple[int, int],
) -> FrameTables:
    """Tables for ``x_BCT``; L and F are padded to ``multiples``; errors as :func:`reference.log_power`."""
    device, n_times = x_BCT.device, x_BCT.shape[-1]
    valid_BT, plan = planned_rows(x_BCT, sfreq_B, time_valid_BT, frame_seconds, hop_seconds, bands_hz is not None)
    kinds = sorted(set(plan))
    which = [kinds.index(kind) for kind in plan]
    framed = frame_seconds is not None
    lengths = [length if framed else n_times for _, length, _ in kinds]
    hops = [hop if framed else n_times for _, _, hop in kinds]
    padded = math.ceil(max(lengths) / multiples[0]) * multiples[0]
    wanted, pools = _wanted(kinds, freqs_F, bands_hz)
    basis_GL2F = _bases(kinds, lengths, wanted, padded, multiples[1]).to(device)
    which_B = torch.tensor(which, device=device)
    rate_B = torch.tensor([rate for rate, _, _ in plan], dtype=torch.float64, device=device)
    if framed:
        counted_WL = torch.arange(padded)[None] < torch.tensor(lengths)[:, None]
        counted_WL, window_of_B = counted_WL.to(device), which_B
        rate_W = torch.tensor([rate for rate, _, _ in kinds], dtype=torch.float64, device=device)
    else:
        counted_WL = torch.nn.functional.pad(valid_BT, (0, padded - n_times), value=False)
        window_of_B, rate_W = torch.arange(len(plan), device=device), rate_B
    window_WL = hann_over_valid(counted_WL)
    energy_W = window_WL.square().sum(1).clamp(min=torch.finfo(torch.float32).tiny)
    window_WL = window_WL * torch.rsqrt(energy_W * rate_W)[:, None]
    line_WL = unit_line(counted_WL.double())
    per_window = basis_GL2F if framed else basis_GL2F[which_B]
    sums = [torch.einsum("wl,wlxf->wxf", weight, per_window) for weight in (window_WL, window_WL * line_WL)]
    count_BP, share_BP = _frame_counts(valid_BT, [(lengths[g], hops[g]) for g in which], framed)
    if average:
        share_BP = share_BP / share_BP.sum(1, keepdim=True).clamp(min=1)
    shape_B = torch.tensor([[lengths[g], hops[g]] for g in which], device=device)
    return FrameTables(
        valid_BT=valid_BT.view(torch.uint8).contiguous(),
        rows_B4=torch.cat([window_of_B[:, None], which_B[:, None], shape_B], 1).int().contiguous(),
        count_BP=count_BP.float().contiguous(),
        share_BP=share_BP.float().contiguous(),
        level_B=(2 / rate_B).float(),
        window_WL=window_WL.float().contiguous(),
        line_WL=line_WL.float().contiguous(),
        basis_GL2F=basis_GL2F.float().contiguous(),
        sums_W4F=torch.cat(sums, 1).float().contiguous(),
        pool_BFK=None if pools is None else pools.to(device)[which_B],
        n_freqs=wanted.shape[1],
        averaged=count_BP.shape[1] if average else 1,
        linear=detrend == "linear",
        longest=tuple(sorted(set(zip(lengths, hops, strict=True)))),
    )


def _wanted(
    kinds: list[tuple[float, int, int]], freqs_F: Tensor | None, bands_hz: Bands | None
) -> tuple[Tensor, Tensor | None]:
    """Frequencies (G, F) of each kind of row, and for bands the weights (G, F, K) that average over them.

    A frequency above sfreq / 2 transforms to zero: the last one always is, and stands for bands that hold no bin.
    """
    if freqs_F is not None:
        return freqs_F.expand(len(kinds), -1), None
    bins = [band_bins(bands_hz or (), rate, length) for rate, length, _ in kinds]
    most = 1 + max(sum(map(len, bands)) for bands in bins)
    freqs = torch.tensor([rate for rate, _, _ in kinds], dtype=torch.float64)[:, None].repeat(1, most)
    pools = torch.zeros(len(kinds), most, len(bins[0]))
    for g, bands in enumerate(bins):
        start = 0
        for k, band in enumerate(bands):
            freqs[g, start : start + len(band)] = torch.tensor(band, dtype=torch.float64)
            pools[g, start : start + len(band), k] = 1 / max(1, len(band))
            pools[g, -1, k] += not band
            start += len(band)
    return freqs, pools


def _bases(
    kinds: list[tuple[float, int, int]], lengths: list[int], wanted: Tensor, padded: int, multiple: int
) -> Tensor:
    """``(G, L, 2, F)`` float64: cosines and sines of each kind of row."""
    n_freqs = wanted.shape[1]
    bases = torch.zeros(len(kinds), padded, 2, math.ceil(n_freqs / multiple) * multiple, dtype=torch.float64)
    for g, (rate, _, _) in enumerate(kinds):
        bases[g, : lengths[g], :, :n_freqs] = fourier_basis(lengths[g], rate, wanted[g]).reshape(lengths[g], 2, n_freqs)
    return bases


def _frame_counts(valid_BT: Tensor, shapes: list[tuple[int, int]], framed: bool) -> tuple[Tensor, Tensor]:
    """Samples that count in each frame (B, P), and 1 where the frame counts: wholly valid, or the row with two."""
    if not framed:
        count_BP = valid_BT.sum(1, keepdim=True)
        return count_BP, (count_BP >= 2).double()
    n_times = valid_BT.shape[1]
    frames = [(n_times - length) // hop + 1 for length, hop in shapes]
    length_B1, hop_B1 = torch.tensor(shapes, device=valid_BT.device)[:, :, None].unbind(1)
    place_P = torch.arange(max(frames), device=valid_BT.device)
    there_BP = place_P < torch.tensor(frames, device=valid_BT.device)[:, None]
    start_BP = (place_P * hop_B1).clamp(max=n_times)
    before_BT = torch.nn.functional.pad(valid_BT.long().cumsum(1), (1, 0))
    inside_BP = before_BT.gather(1, (start_BP + length_B1).clamp(max=n_times)) - before_BT.gather(1, start_BP)
    return length_B1.expand_as(inside_BP), ((inside_BP == length_B1) & there_BP).double()
