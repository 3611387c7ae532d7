"""What the fused kernels read beside the signal: frames, windows and bases of every row of a batch.

All that follows from shapes, rates and wanted frequencies alone is made once, on the host, and kept. What depends on a
mask is made on its device for each call, without waiting for that device.

Shape letters: B rows, T time samples, P frames, L samples per frame (padded), F frequencies (padded), K bands (padded),
W windows, G kinds of rows.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcsp.kernels.spectral.framing import band_bins, fourier_basis, hann_over_valid

Kind = tuple[float, int, int]  # rate [Hz], samples per frame, samples between frames (0: the row is one frame)


class Request(NamedTuple):
    """All that tables depend on but for the mask; hashable."""

    rows: tuple[Kind, ...]
    n_times: int
    framed: bool
    freqs: tuple[float, ...] | None
    bands: tuple[tuple[float, float], ...] | None
    average: bool
    multiple: int  # of which L is one
    device: torch.device

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """G distinct kinds of rows, sorted."""
        return tuple(sorted(set(self.rows)))

    @property
    def kind_of_B(self) -> list[int]:
        """Each row's place in ``kinds``."""
        places = {kind: g for g, kind in enumerate(self.kinds)}
        return [places[row] for row in self.rows]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Samples per frame and between frames of each kind; a row that is one frame has T for both."""
        return [(length, hop) if self.framed else (self.n_times, self.n_times) for _, length, hop in self.kinds]

    @property
    def frames(self) -> list[int]:
        """Number of frames of each kind."""
        return [(self.n_times - length) // hop + 1 for length, hop in self.shapes]

    @property
    def outputs(self) -> int:
        """Values per frame: frequencies or bands."""
        return len(self.freqs or self.bands or ())


@dataclass(frozen=True)
class FrameTables:
    """Frames of one batch, on its device; padding is zero."""

    valid_BT: Tensor  # uint8; (1, T) where every sample of every row counts
    rows_B4: Tensor  # int32: window, kind, samples per frame, samples between frames
    count_BP: Tensor  # samples that count in a frame
    share_BP: Tensor  # weight of a frame in what is written: 0 where it does not count
    rate_B: Tensor  # float64, Hz
    level_B: Tensor  # mean density of a channel per unit of its variance
    window_WL: Tensor  # float64, scaled so that squares add to density
    line_W2: Tensor  # float64: mean place of the samples that count, 1 / sum of squares of places less that
    rows_of_G: tuple[Tensor, ...]  # int64
    averaged: int  # frames that go into one value

    @property
    def frames(self) -> int:
        """P, the most frames of any row."""
        return self.count_BP.shape[1]

    @property
    def padded_length(self) -> int:
        """L."""
        return self.window_WL.shape[1]

    @property
    def valid_stride(self) -> int:
        """From row to row of the mask."""
        return self.valid_BT.shape[1] if len(self.valid_BT) > 1 else 0


@dataclass(frozen=True)
class ProductTables:
    """Bases of a transform as a matrix product, and the transform of a line, which the product leaves out."""

    basis_GL2F: Tensor
    line_W2F: Tensor  # sums over a frame of window * (place - mean place) * basis (cosine, sine)
    pool_GFK: Tensor  # mean over the bins of each band; (1, 1, 1) without bands

    @property
    def padded_freqs(self) -> int:
        """F."""
        return self.basis_GL2F.shape[3]

    @property
    def padded_bands(self) -> int:
        """K, 0 without bands."""
        return self.pool_GFK.shape[2] if self.pool_GFK.shape[1] > 1 else 0


def frame_tables(request: Request, time_valid_BT: Tensor | None) -> FrameTables:
    """Frames of ``request``; no mask counts every sample."""
    whole = _whole(request)
    if time_valid_BT is None:
        return whole
    valid_BT = time_valid_BT.contiguous()
    masked = replace(whole, valid_BT=valid_BT.view(torch.uint8))
    if request.framed:
        length_B1, hop_B1 = whole.rows_B4[:, 2:3].long(), whole.rows_B4[:, 3:].long()
        start_BP = (torch.arange(whole.frames, device=request.device) * hop_B1).clamp(max=request.n_times)
        before_BT = torch.nn.functional.pad(valid_BT.long().cumsum(1), (1, 0))
        end_BP = (start_BP + length_B1).clamp(max=request.n_times)
        inside_BP = before_BT.gather(1, end_BP) - before_BT.gather(1, start_BP)
        there_BP = (inside_BP == length_B1) & (whole.share_BP > 0)
        return replace(masked, share_BP=_shares(there_BP, request.average))
    count_BP = valid_BT.sum(1, keepdim=True)
    counted_BL = torch.nn.functional.pad(valid_BT, (0, whole.padded_length - request.n_times), value=False)
    own_B1 = torch.arange(len(request.rows), dtype=torch.int32, device=request.device)[:, None]
    return replace(
        masked,
        window_WL=_windows(counted_BL, whole.rate_B),
        line_W2=_lines(counted_BL),
        rows_B4=torch.cat([own_B1, whole.rows_B4[:, 1:]], 1),
        count_BP=count_BP.float(),
        share_BP=_shares(count_BP >= 2, request.average),
    )


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _whole(request: Request) -> FrameTables:
    """Tables of rows without a mask; windows are those of kinds."""
    which, shapes, frames = request.kind_of_B, request.shapes, request.frames
    padded = math.ceil(max(length for length, _ in shapes) / request.multiple) * request.multiple
    counted_GL = torch.arange(padded)[None] < torch.tensor([length for length, _ in shapes])[:, None]
    there_BP = torch.arange(max(frames))[None] < torch.tensor([frames[g] for g in which])[:, None]
    rate_B = torch.tensor([rate for rate, _, _ in request.rows], dtype=torch.float64)
    length_B = torch.tensor([shapes[g][0] for g in which])
    tables = FrameTables(
        valid_BT=torch.ones(1, request.n_times, dtype=torch.uint8),
        rows_B4=torch.tensor([[g, g, *shapes[g]] for g in which], dtype=torch.int32),
        count_BP=length_B[:, None].expand_as(there_BP).float().contiguous(),
        share_BP=_shares(there_BP, request.average),
        rate_B=rate_B,
        level_B=(2 / rate_B).float(),
        window_WL=_windows(counted_GL, torch.tensor([rate for rate, _, _ in request.kinds]).double()),
        line_W2=_lines(counted_GL),
        rows_of_G=tuple(torch.tensor([b for b, h in enumerate(which) if h == g]) for g in range(len(shapes))),
        averaged=max(frames) if request.average else 1,
    )
    there: dict[str, Any] = {n: v.to(request.device) for n, v in vars(tables).items() if isinstance(v, Tensor)}
    return replace(tables, rows_of_G=tuple(rows.to(request.device) for rows in tables.rows_of_G), **there)


def _windows(counted_WL: Tensor, rate_W: Tensor) -> Tensor:
    """Hann windows over the samples that count, whose squares add to density; float64."""
    window_WL = hann_over_valid(counted_WL)
    energy_W = window_WL.square().sum(1).clamp(min=torch.finfo(torch.float32).tiny)
    return window_WL * torch.rsqrt(energy_W * rate_W)[:, None]


def _lines(counted_WL: Tensor) -> Tensor:
    """Mean of the places that count and 1 / the sum of squares about it, 0 for fewer than two; ``(W, 2)`` float64."""
    place_L = torch.arange(counted_WL.shape[1], device=counted_WL.device, dtype=torch.float64)
    mean_W = (place_L * counted_WL).sum(1) / counted_WL.sum(1).clamp(min=1)
    square_W = ((place_L - mean_W[:, None]).square() * counted_WL).sum(1)
    return torch.stack([mean_W, torch.where(square_W > 0, 1 / square_W, 0)], 1)


def _shares(there_BP: Tensor, average: bool) -> Tensor:
    share_BP = there_BP.float()
    return (share_BP / share_BP.sum(1, keepdim=True).clamp(min=1) if average else share_BP).contiguous()


def product_tables(request: Request, frames: FrameTables, multiple: int) -> ProductTables:
    """Bases of every kind of row; F is a multiple of ``multiple``."""
    if len(frames.window_WL) == len(request.kinds):
        whole = _whole_product(request, multiple)
        if request.framed or frames.window_WL is _whole(request).window_WL:
            return whole
    exact_GL2F, basis_GL2F, pool_GFK = _bases(*_basis_key(request, frames.padded_length), multiple)
    line_W2F = frames.window_WL.new_empty(len(frames.window_WL), 2, basis_GL2F.shape[3], dtype=torch.float32)
    for g, rows in enumerate(frames.rows_of_G):
        line_W2F[rows] = _line_transforms(frames.window_WL[rows], frames.line_W2[rows], exact_GL2F[g])
    return ProductTables(basis_GL2F, line_W2F, pool_GFK)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _whole_product(request: Request, multiple: int) -> ProductTables:
    frames = _whole(request)
    exact_GL2F, basis_GL2F, pool_GFK = _bases(*_basis_key(request, frames.padded_length), multiple)
    kinds = zip(frames.window_WL.split(1), frames.line_W2.split(1), exact_GL2F, strict=True)
    return ProductTables(basis_GL2F, torch.cat([_line_transforms(*kind) for kind in kinds]), pool_GFK)


def _line_transforms(window_WL: Tensor, line_W2: Tensor, basis_L2F: Tensor) -> Tensor:
    """Transforms ``(W, 2, F)`` of a line of slope 1 through 0 at its mean place; summed in float64."""
    place_L = torch.arange(window_WL.shape[1], device=window_WL.device, dtype=torch.float64)
    weight_WL = window_WL * (place_L - line_W2[:, :1])
    return (weight_WL @ basis_L2F.flatten(1)).unflatten(1, (2, -1)).float()


def _basis_key(request: Request, padded: int) -> tuple[Any, ...]:
    """All that bases depend on: batches whose rows stand in another order share them."""
    lengths = tuple(length for length, _ in request.shapes)
    return request.kinds, lengths, padded, request.freqs, request.bands, request.device


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _bases(
    kinds: tuple[Kind, ...],
    lengths: tuple[int, ...],
    padded: int,
    freqs: tuple[float, ...] | None,
    bands: tuple[tuple[float, float], ...] | None,
    device: torch.device,
    multiple: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines and sines of each kind ``(G, L, 2, F)`` in float64 and in float32, and weights ``(G, F, K)`` of bands.

    Bins of all bands stand one after another.
    """
    wanted: list[list[float]] = [list(freqs or ()) for _ in kinds]
    pool_GFK = torch.zeros(1, 1, 1)
    if bands is not None:
        by_band = [band_bins(bands, rate, length) for rate, length, _ in kinds]
        wanted = [[f for band in found for f in band] for found in by_band]
    n_freqs = max(1, *map(len, wanted))
    padded_freqs = math.ceil(n_freqs / multiple) * multiple
    if bands is not None:
        pool_GFK = torch.zeros(len(kinds), padded_freqs, max(16, 1 << (len(bands) - 1).bit_length()))
        for g, found in enumerate(by_band):
            start = 0
            for k, band in enumerate(found):
                pool_GFK[g, start : start + len(band), k] = 1 / max(1, len(band))
                start += len(band)
    basis_GL2F = torch.zeros(len(kinds), padded, 2, padded_freqs, dtype=torch.float64)
    for g, (rate, _, _) in enumerate(kinds):
        basis_LF = fourier_basis(lengths[g], rate, torch.tensor(wanted[g], dtype=torch.float64))
        basis_GL2F[g, : lengths[g], :, : len(wanted[g])] = basis_LF.unflatten(1, (2, -1)) if wanted[g] else 0
    basis_GL2F = basis_GL2F.to(device)
    return basis_GL2F, basis_GL2F.float(), pool_GFK.to(device)
