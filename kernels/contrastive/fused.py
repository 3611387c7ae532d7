"""The contrast over all pairs in Triton: two kernels that make tiles of similarities and keep none of them.

``sum_tiles`` makes the sums over rows and columns, ``grad_tiles`` the gradient of a band of similarities in a bounded
workspace, from which library products make the gradients of embeddings. Each program writes where no other does: no
atomics, the same bits each time. Nothing is read back by the host, so a CUDA graph can hold it all.

Shape letters: M embeddings, n rows of this process, N rows of all processes, D width, J jobs; m and c the rows and
columns of a tile.
"""

from typing import NamedTuple

import triton
import triton.language as tl

INTERPRETED = bool(triton.knobs.runtime.interpret)


class Tiles(NamedTuple):
    """Sizes of tiles (rows, columns, depth of one product), columns of tiles per program, and how they compile."""

    rows: int
    columns: int
    depth: int
    span: int
    warps: int
    stages: int


def tiles_for(precision: str, hopper: bool, gradient: bool) -> Tiles:
    """The largest tiles that compile without spilling; ``hopper``: compute capability 9.0 or newer."""
    if INTERPRETED:
        return Tiles(32, 32, 32, 2, 4, 1)
    if precision != "bf16":
        return Tiles(64, 64, 32, 16, 4, 3)
    return Tiles(128, 128, 64, 8, 8, 3) if hopper and not gradient else Tiles(128, 64, 64, 16, 8, 3)


def dot_precision(precision: str, hip: bool) -> str:
    """What ``tl.dot`` calls a precision. Three TF32 products are as good as one in float32, which ROCm has."""
    if INTERPRETED or hip:
        return "ieee"
    return {"bf16": "tf32", "tf32": "tf32", "bf16x3": "bf16x3", "fp32": "tf32x3"}[precision]


@triton.jit
def _logits(  # type: ignore[no-untyped-def]
    row_ptr, column_ptr, i_m, i_c, n, total, scale,
    D: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Scaled products of a tile; rows and columns beyond the end are 0."""
    logit_mc = tl.zeros((BM, BC), tl.float32)
    for d in range(0, D, BD):
        i_d = d + tl.arange(0, BD)
        row_md = tl.load(
            row_ptr + i_m[:, None].to(tl.int64) * D + i_d[None, :],
            mask=(i_m[:, None] < n) & (i_d[None, :] < D),
            other=0.0,
        )
        column_cd = tl.load(
            column_ptr + i_c[:, None].to(tl.int64) * D + i_d[None, :],
            mask=(i_c[:, None] < total) & (i_d[None, :] < D),
            other=0.0,
        )
        if UPCAST:  # the interpreter multiplies bfloat16 wrongly, without a word
            row_md = row_md.to(tl.float32)
            column_cd = column_cd.to(tl.float32)
        logit_mc = tl.dot(row_md, tl.trans(column_cd), logit_mc, input_precision=PRECISION)
    return logit_mc * scale


@triton.jit
def _kept(  # type: ignore[no-untyped-def]
    left, right, i_m, i_c, n, total, valid_n_ptr, valid_N_ptr, subject_n_ptr, subject_N_ptr, site_n_ptr, site_N_ptr,
    SITES: tl.constexpr,
):  # fmt: skip
    """Which similarities of a tile count."""
    valid_m = tl.load(valid_n_ptr + left * n + i_m, mask=i_m < n, other=0) != 0
    valid_c = tl.load(valid_N_ptr + right * total + i_c, mask=i_c < total, other=0) != 0
    subject_m = tl.load(subject_n_ptr + i_m, mask=i_m < n, other=0)
    subject_c = tl.load(subject_N_ptr + i_c, mask=i_c < total, other=0)
    keep_mc = valid_m[:, None] & valid_c[None, :] & (subject_m[:, None] != subject_c[None, :])
    if SITES:
        site_m = tl.load(site_n_ptr + i_m, mask=i_m < n, other=0)
        site_c = tl.load(site_N_ptr + i_c, mask=i_c < total, other=0)
        keep_mc = keep_mc & (site_m[:, None] == site_c[None, :])
    return keep_mc


@triton.jit
def sum_tiles(  # type: ignore[no-untyped-def]
    z_n_ptr, z_N_ptr, table_ptr, scale_ptr, exact_ptr, valid_n_ptr, valid_N_ptr, subject_n_ptr, subject_N_ptr,
    site_n_ptr, site_N_ptr, row_ptr, column_ptr, n, total,
    D: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, SPAN: tl.constexpr, BOTH: tl.constexpr,
    SITES: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Parts of the sums of exp(logit - m); with EXACT, of jobs so marked, their logarithms, without reference.

    Grid: tiles of rows, spans of SPAN tiles of columns, jobs. Writes row parts (J, spans, n) and, with BOTH, column
    parts (J, tiles of rows, N).
    """
    tile, span, job = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if EXACT:  # noqa: SIM102 - the first is decided when compiling
        if tl.load(exact_ptr + job) == 0:
            return
    left, right = tl.load(table_ptr + 3 * job), tl.load(table_ptr + 3 * job + 1)
    scale = tl.load(scale_ptr + tl.load(table_ptr + 3 * job + 2))
    m = tl.maximum(scale - 60.0, 0.0)
    i_m = tile * BM + tl.arange(0, BM)
    sum_m = tl.zeros((BM,), tl.float32)
    top_m = tl.full((BM,), float("-inf"), tl.float32)
    for k in range(SPAN):
        i_c = (span * SPAN + k) * BC + tl.arange(0, BC)
        logit_mc = _logits(
            z_n_ptr + left * n * D, z_N_ptr + right * total * D, i_m, i_c, n, total, scale, D, BM, BC, BD, PRECISION,
            UPCAST,
        )  # fmt: skip
        keep_mc = _kept(
            left, right, i_m, i_c, n, total, valid_n_ptr, valid_N_ptr, subject_n_ptr, subject_N_ptr, site_n_ptr,
            site_N_ptr, SITES,
        )  # fmt: skip
        column_at = column_ptr + (job.to(tl.int64) * tl.num_programs(0) + tile) * total + i_c
        if EXACT:
            logit_mc = tl.where(keep_mc, logit_mc, float("-inf"))
            new_m = tl.maximum(top_m, tl.max(logit_mc, 1))
            # A finite stand-in where nothing was kept so far, since -inf - -inf is no number.
            base_m = tl.where(new_m == float("-inf"), 0.0, new_m)
            sum_m = sum_m * tl.exp(top_m - base_m) + tl.sum(tl.exp(logit_mc - base_m[:, None]), 1)
            top_m = new_m
            if BOTH:
                top_c = tl.max(logit_mc, 0)
                base_c = tl.where(top_c == float("-inf"), 0.0, top_c)
                part_c = tl.log(tl.sum(tl.exp(logit_mc - base_c[None, :]), 0)) + base_c
                tl.store(column_at, part_c, mask=i_c < total)
        else:
            e_mc = tl.where(keep_mc, tl.exp(logit_mc - m), 0.0)
            sum_m += tl.sum(e_mc, 1)
            if BOTH:
                tl.store(column_at, tl.sum(e_mc, 0), mask=i_c < total)
    if EXACT:
        sum_m = tl.log(sum_m) + tl.where(top_m == float("-inf"), 0.0, top_m)
    tl.store(row_ptr + (job.to(tl.int64) * tl.num_programs(1) + span) * n + i_m, sum_m, mask=i_m < n)


@triton.jit
def grad_tiles(  # type: ignore[no-untyped-def]
    z_n_ptr, z_N_ptr, table_ptr, scale_ptr, exact_ptr, valid_n_ptr, valid_N_ptr, subject_n_ptr, subject_N_ptr,
    site_n_ptr, site_N_ptr, pull_n_ptr, base_n_ptr, pull_N_ptr, base_N_ptr, grad_ptr, part_ptr, start, stop, n, total,
    D: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, BOTH: tl.constexpr, SITES: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Gradient of the logits of one job's rows ``start : stop``: pull_m exp(logit - base_m) [+ the same of columns].

    Table, mark, pulls and bases are those of the job; unless it is marked ``exact``, all bases are one number.
    Grid: tiles of rows, tiles of columns. Writes (stop - start, N), and each tile's sum of gradient times logit.
    """
    i_m = start + tl.program_id(0) * BM + tl.arange(0, BM)
    i_c = tl.program_id(1) * BC + tl.arange(0, BC)
    left, right = tl.load(table_ptr), tl.load(table_ptr + 1)
    scale = tl.load(scale_ptr + tl.load(table_ptr + 2))
    logit_mc = _logits(
        z_n_ptr + left * n * D, z_N_ptr + right * total * D, i_m, i_c, stop, total, scale, D, BM, BC, BD, PRECISION,
        UPCAST,
    )  # fmt: skip
    keep_mc = _kept(
        left, right, i_m, i_c, n, total, valid_n_ptr, valid_N_ptr, subject_n_ptr, subject_N_ptr, site_n_ptr, site_N_ptr,
        SITES,
    )  # fmt: skip
    pull_m = tl.load(pull_n_ptr + i_m, mask=i_m < stop, other=0.0)
    base_m = tl.load(base_n_ptr + i_m, mask=i_m < stop, other=float("inf"))
    e_mc = tl.exp(tl.where(keep_mc, logit_mc - base_m[:, None], float("-inf")))
    grad_mc = e_mc * pull_m[:, None]
    if BOTH:
        pull_c = tl.load(pull_N_ptr + i_c, mask=i_c < total, other=0.0)
        if tl.load(exact_ptr) != 0:
            base_c = tl.load(base_N_ptr + i_c, mask=i_c < total, other=float("inf"))
            e_mc = tl.exp(tl.where(keep_mc, logit_mc - base_c[None, :], float("-inf")))
        grad_mc += e_mc * pull_c[None, :]
    part = tl.sum(tl.sum(grad_mc * tl.where(keep_mc, logit_mc, 0.0), 1), 0)
    tl.store(part_ptr + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), part)
    at = grad_ptr + (i_m - start)[:, None].to(tl.int64) * total + i_c[None, :]
    tl.store(at, grad_mc.to(grad_ptr.dtype.element_ty), mask=(i_m[:, None] < stop) & (i_c[None, :] < total))
