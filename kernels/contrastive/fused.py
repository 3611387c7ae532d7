"""What is done with each block of similarities, in Triton: each block is read once.

The functions are those of :mod:`mcsp.kernels.contrastive.plain`. Each program takes a tile of one job's block and
writes where no other does: no atomics, the same bits each time. Nothing is read back, so a CUDA graph can hold it all.

Shape letters: g jobs, r rows and c columns of a block; m and k the rows and columns of a tile.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcsp.kernels.contrastive.blocks import Compared, finite

INTERPRETED = bool(triton.knobs.runtime.interpret)


class Tile(NamedTuple):
    """Rows and columns of a tile, and the warps that share it."""

    rows: int
    columns: int
    warps: int


# Candidates compile without spilling for sm_80, sm_90 and sm_100; the first is taken until a GPU has timed them.
CANDIDATES = {
    "contrast": (Tile(8, 256, 4), Tile(16, 64, 4), Tile(32, 64, 8), Tile(32, 128, 8), Tile(16, 256, 8)),
    "relations": (Tile(16, 128, 8), Tile(16, 64, 4), Tile(8, 128, 4), Tile(8, 256, 8)),
}
TILES = {name: tiles[0] for name, tiles in CANDIDATES.items()}


@triton.jit
def kept(  # type: ignore[no-untyped-def]
    subject_r_ptr, subject_c_ptr, site_r_ptr, site_c_ptr, valid_r_ptr, valid_c_ptr, job, i_m, i_k, r, c,
    SITES: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Which rows and columns of a tile are compared."""
    keep_mk = (i_m < r)[:, None] & (i_k < c)[None, :]
    subject_m = tl.load(subject_r_ptr + i_m, mask=i_m < r, other=0)
    subject_k = tl.load(subject_c_ptr + i_k, mask=i_k < c, other=0)
    keep_mk = keep_mk & (subject_m[:, None] != subject_k[None, :])
    if SITES:
        site_m = tl.load(site_r_ptr + i_m, mask=i_m < r, other=0)
        site_k = tl.load(site_c_ptr + i_k, mask=i_k < c, other=0)
        keep_mk = keep_mk & (site_m[:, None] == site_k[None, :])
    if MASKED:
        valid_m = tl.load(valid_r_ptr + job * r + i_m, mask=i_m < r, other=0) != 0
        valid_k = tl.load(valid_c_ptr + job * c + i_k, mask=i_k < c, other=0) != 0
        keep_mk = keep_mk & valid_m[:, None] & valid_k[None, :]
    return keep_mk


@triton.jit
def place(job, i_m, i_k, r, c):  # type: ignore[no-untyped-def]
    """Where a tile stands in its block, and which of it does; 64 bits."""
    at_mk = (job * r + i_m.to(tl.int64))[:, None] * c + i_k[None, :]
    return at_mk, (i_m < r)[:, None] & (i_k < c)[None, :]


@triton.jit
def base(top):  # type: ignore[no-untyped-def]
    """A maximum to subtract: 0 where nothing was compared, since -inf - -inf is no number."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def rounded(x, dtype: tl.constexpr, UPCAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """``x`` in another type; to the nearest also in the interpreter, which cuts bits off."""
    if UPCAST and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        even = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
        x = tl.where(x == x, even, x)
    return x.to(dtype)


@triton.jit
def contrast_sums_kernel(  # type: ignore[no-untyped-def]
    x_ptr, scale_ptr, subject_r_ptr, subject_c_ptr, site_r_ptr, site_c_ptr, valid_r_ptr, valid_c_ptr, row_ptr,
    column_ptr, g, r, c, BM: tl.constexpr, BK: tl.constexpr, SITES: tl.constexpr, MASKED: tl.constexpr,
    BOTH: tl.constexpr,
):  # fmt: skip
    """Of each row of a tile, and with BOTH of each column: the largest logit and the sum of exp(logit - largest).

    Grid: tiles of columns, tiles of rows, jobs. Writes (2, tiles of columns, g, r) and (2, tiles of rows, g, c).
    """
    k, m, job = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i_m, i_k = m * BM + tl.arange(0, BM), k * BK + tl.arange(0, BK)
    at_mk, inside_mk = place(job, i_m, i_k, r, c)
    x_mk = tl.load(scale_ptr + job) * tl.load(x_ptr + at_mk, mask=inside_mk, other=0.0)
    keep_mk = kept(
        subject_r_ptr,
        subject_c_ptr,
        site_r_ptr,
        site_c_ptr,
        valid_r_ptr,
        valid_c_ptr,
        job,
        i_m,
        i_k,
        r,
        c,
        SITES,
        MASKED,
    )
    x_mk = tl.where(keep_mk, x_mk, float("-inf"))
    top_m = tl.max(x_mk, 1)
    sum_m = tl.sum(tl.exp(x_mk - base(top_m)[:, None]), 1)
    row_ptr += (k.to(tl.int64) * g + job) * r
    tl.store(row_ptr + i_m, top_m, mask=i_m < r)
    tl.store(row_ptr + tl.num_programs(0).to(tl.int64) * g * r + i_m, sum_m, mask=i_m < r)
    if BOTH:
        top_k = tl.max(x_mk, 0)
        sum_k = tl.sum(tl.exp(x_mk - base(top_k)[None, :]), 0)
        column_ptr += (m.to(tl.int64) * g + job) * c
        tl.store(column_ptr + i_k, top_k, mask=i_k < c)
        tl.store(column_ptr + tl.num_programs(1).to(tl.int64) * g * c + i_k, sum_k, mask=i_k < c)


@triton.jit
def contrast_gradient_kernel(  # type: ignore[no-untyped-def]
    x_ptr, scale_ptr, subject_r_ptr, subject_c_ptr, site_r_ptr, site_c_ptr, valid_r_ptr, valid_c_ptr,
    reference_r_ptr, share_r_ptr, reference_c_ptr, share_c_ptr, out_ptr, g, r, c, BM: tl.constexpr, BK: tl.constexpr,
    SITES: tl.constexpr, MASKED: tl.constexpr, BOTH: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of logits, exp(logit - reference) share of its row and, with BOTH, of its column."""
    k, m, job = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i_m, i_k = m * BM + tl.arange(0, BM), k * BK + tl.arange(0, BK)
    at_mk, inside_mk = place(job, i_m, i_k, r, c)
    x_mk = tl.load(scale_ptr + job) * tl.load(x_ptr + at_mk, mask=inside_mk, other=0.0)
    keep_mk = kept(
        subject_r_ptr,
        subject_c_ptr,
        site_r_ptr,
        site_c_ptr,
        valid_r_ptr,
        valid_c_ptr,
        job,
        i_m,
        i_k,
        r,
        c,
        SITES,
        MASKED,
    )
    x_mk = tl.where(keep_mk, x_mk, float("-inf"))
    reference_m = tl.load(reference_r_ptr + job * r + i_m, mask=i_m < r, other=float("inf"))
    share_m = tl.load(share_r_ptr + job * r + i_m, mask=i_m < r, other=0.0)
    grad_mk = tl.exp(x_mk - reference_m[:, None]) * share_m[:, None]
    if BOTH:
        reference_k = tl.load(reference_c_ptr + job * c + i_k, mask=i_k < c, other=float("inf"))
        share_k = tl.load(share_c_ptr + job * c + i_k, mask=i_k < c, other=0.0)
        grad_mk += tl.exp(x_mk - reference_k[None, :]) * share_k[None, :]
    tl.store(out_ptr + at_mk, rounded(grad_mk, out_ptr.dtype.element_ty, UPCAST), mask=inside_mk)


@triton.jit
def relation_sums_kernel(  # type: ignore[no-untyped-def]
    x_ptr, scale_ptr, subject_r_ptr, subject_c_ptr, site_r_ptr, site_c_ptr, valid_r_ptr, valid_c_ptr, row_ptr, g, r, c,
    BM: tl.constexpr, BK: tl.constexpr, SITES: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Of each row of both sides a and b: the largest logit, and the sums of e = exp(logit - largest) and of e (a - b).

    Grid: tiles of columns, tiles of rows, jobs. Reads (2, g, r, c) and writes (3, tiles of columns, 2, g, r).
    """
    k, m, job = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i_m, i_k = m * BM + tl.arange(0, BM), k * BK + tl.arange(0, BK)
    a_at, inside_mk = place(job, i_m, i_k, r, c)
    b_at, _ = place(g + job, i_m, i_k, r, c)
    scale = tl.load(scale_ptr + job)
    a_mk = scale * tl.load(x_ptr + a_at, mask=inside_mk, other=0.0)
    b_mk = scale * tl.load(x_ptr + b_at, mask=inside_mk, other=0.0)
    keep_mk = kept(
        subject_r_ptr,
        subject_c_ptr,
        site_r_ptr,
        site_c_ptr,
        valid_r_ptr,
        valid_c_ptr,
        job,
        i_m,
        i_k,
        r,
        c,
        SITES,
        MASKED,
    )
    difference_mk = a_mk - b_mk
    stride = tl.num_programs(0).to(tl.int64) * 2 * g * r
    for side in tl.static_range(2):
        x_mk = tl.where(keep_mk, a_mk if side == 0 else b_mk, float("-inf"))
        top_m = tl.max(x_mk, 1)
        e_mk = tl.exp(x_mk - base(top_m)[:, None])
        at = row_ptr + ((k.to(tl.int64) * 2 + side) * g + job) * r + i_m
        tl.store(at, top_m, mask=i_m < r)
        tl.store(at + stride, tl.sum(e_mk, 1), mask=i_m < r)
        tl.store(at + 2 * stride, tl.sum(e_mk * difference_mk, 1), mask=i_m < r)


@triton.jit
def relation_gradient_kernel(  # type: ignore[no-untyped-def]
    x_ptr, scale_ptr, subject_r_ptr, subject_c_ptr, site_r_ptr, site_c_ptr, valid_r_ptr, valid_c_ptr,
    reference_ptr, share_ptr, out_ptr, g, r, c, BM: tl.constexpr, BK: tl.constexpr, SITES: tl.constexpr,
    MASKED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """exp(a - reference_a) share_a - exp(b - reference_b) share_b of a tile, and its opposite; (2, g, r, c)."""
    k, m, job = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i_m, i_k = m * BM + tl.arange(0, BM), k * BK + tl.arange(0, BK)
    a_at, inside_mk = place(job, i_m, i_k, r, c)
    b_at, _ = place(g + job, i_m, i_k, r, c)
    keep_mk = kept(
        subject_r_ptr,
        subject_c_ptr,
        site_r_ptr,
        site_c_ptr,
        valid_r_ptr,
        valid_c_ptr,
        job,
        i_m,
        i_k,
        r,
        c,
        SITES,
        MASKED,
    )
    scale = tl.load(scale_ptr + job)
    grad_mk = tl.zeros((BM, BK), tl.float32)
    for side in tl.static_range(2):
        x_mk = scale * tl.load(x_ptr + (a_at if side == 0 else b_at), mask=inside_mk, other=0.0)
        x_mk = tl.where(keep_mk, x_mk, float("-inf"))
        at = (side * g + job) * r + i_m
        reference_m = tl.load(reference_ptr + at, mask=i_m < r, other=float("inf"))
        share_m = tl.load(share_ptr + at, mask=i_m < r, other=0.0)
        part_mk = tl.exp(x_mk - reference_m[:, None]) * share_m[:, None]
        grad_mk = part_mk if side == 0 else grad_mk - part_mk
    tl.store(out_ptr + a_at, rounded(grad_mk, out_ptr.dtype.element_ty, UPCAST), mask=inside_mk)
    tl.store(out_ptr + b_at, rounded(-grad_mk, out_ptr.dtype.element_ty, UPCAST), mask=inside_mk)


def contrast_sums(x_grc: Tensor, scale_g: Tensor, compared: Compared, both: bool) -> list[tuple[Tensor, list[Tensor]]]:
    """See :func:`mcsp.kernels.contrastive.plain.contrast_sums`."""
    g, r, c = x_grc.shape
    grid, how = _launch("contrast", x_grc, compared)
    row = x_grc.new_empty(2, grid[0], g, r)
    column = x_grc.new_empty(2, grid[1], g, c) if both else row
    contrast_sums_kernel[grid](x_grc, scale_g.contiguous(), *_keys(compared), row, column, g, r, c, BOTH=both, **how)
    return [_added(parts) for parts in ((row, column) if both else (row,))]


def contrast_gradient(
    x_grc: Tensor, scale_g: Tensor, compared: Compared, sides: list[tuple[Tensor, Tensor]], dtype: torch.dtype
) -> Tensor:
    """See :func:`mcsp.kernels.contrastive.plain.contrast_gradient`."""
    out = x_grc if dtype == x_grc.dtype else torch.empty_like(x_grc, dtype=dtype)
    grid, how = _launch("contrast", x_grc, compared)
    given = [x.contiguous() for side in (sides[0], sides[-1]) for x in side]
    contrast_gradient_kernel[grid](
        x_grc,
        scale_g.contiguous(),
        *_keys(compared),
        *given,
        out,
        *x_grc.shape,
        BOTH=len(sides) == 2,
        UPCAST=INTERPRETED,
        **how,
    )
    return out


def relation_sums(x_Sgrc: Tensor, scale_g: Tensor, compared: Compared) -> tuple[Tensor, list[Tensor]]:
    """See :func:`mcsp.kernels.contrastive.plain.relation_sums`."""
    grid, how = _launch("relations", x_Sgrc[0], compared)
    row = x_Sgrc.new_empty(3, grid[0], *x_Sgrc.shape[:3])
    relation_sums_kernel[grid](x_Sgrc, scale_g.contiguous(), *_keys(compared), row, *x_Sgrc.shape[1:], **how)
    return _added(row)


def relation_gradient(
    x_Sgrc: Tensor,
    scale_g: Tensor,
    compared: Compared,
    reference_Sgr: Tensor,
    share_Sgr: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """See :func:`mcsp.kernels.contrastive.plain.relation_gradient`."""
    out = x_Sgrc if dtype == x_Sgrc.dtype else torch.empty_like(x_Sgrc, dtype=dtype)
    grid, how = _launch("relations", x_Sgrc[0], compared)
    given = (reference_Sgr.contiguous(), share_Sgr.contiguous(), out)
    relation_gradient_kernel[grid](
        x_Sgrc, scale_g.contiguous(), *_keys(compared), *given, *x_Sgrc.shape[1:], UPCAST=INTERPRETED, **how
    )
    return out


def _launch(name: str, x_grc: Tensor, compared: Compared) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """Grid, and what is compiled for: tiles and masks."""
    tile = TILES[name]
    g, r, c = x_grc.shape
    how = {"BM": tile.rows, "BK": tile.columns, "num_warps": tile.warps, "enable_fp_fusion": True}
    how |= {"SITES": compared.site_r is not None, "MASKED": compared.valid_gr is not None}
    return (-(-c // tile.columns), -(-r // tile.rows), g), how


def _keys(compared: Compared) -> list[Tensor]:
    """Keys and masks one after another in memory; where there are none, something that is never read."""
    unread = compared.subject_r
    return [(unread if x is None else x).contiguous() for x in compared]


def _added(parts: Tensor) -> tuple[Tensor, list[Tensor]]:
    """A maximum and sums relative to it from those of tiles, (1 + sums, tiles, ...)."""
    top = parts[0].amax(0)
    factor = (parts[0] - finite(top)).exp_()
    return top, list((parts[1:] * factor).sum(1).unbind(0))
