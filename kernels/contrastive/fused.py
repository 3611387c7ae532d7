"""The contrast over all pairs in Triton: tiles of similarities are made, used and forgotten.

``prepare`` rounds embeddings and numbers the keys, ``sum_tiles`` makes parts of the sums over rows and columns,
``add_parts`` adds them up, ``close_losses`` makes losses and what the backward pass needs of each row, ``grad_tiles``
all gradients of embeddings, ``close_scales`` those of scales. Each launch is for all pairs, each program writes where
no other does: no atomics, the same bits each time. Nothing is read back by the host, so a CUDA graph can hold it all.

Side q of pair p = q // 2 is its first (q even) or second embedding as anchor. All rows of all processes, the columns,
are there once; this process's own are the n from ``offset`` on. With OWN, they are all, and one product per pair
serves both sides; else each side has its own, a job.

Shape letters: M embeddings, n own rows, N (``total``) rows of all processes, D padded width; m, c and d the rows,
columns and depth of a tile.
"""

import triton
import triton.language as tl

INTERPRETED = bool(triton.knobs.runtime.interpret)
# Part of every exponential: rows with a negative have a sum, however small. It is a 10^-13th of the least sum used.
FLOOR = tl.constexpr(1e-37)
LEAST = tl.constexpr(1e-24)
MOST = tl.constexpr(3e38)
MARGIN = tl.constexpr(60.0)


def dot_precision(precision: str, hip: bool) -> str:
    """What ``tl.dot`` calls a precision. Three TF32 products are as good as one in float32, which ROCm has."""
    if INTERPRETED or hip:
        return "ieee"
    return {"bf16": "tf32", "tf32": "tf32", "bf16x3": "bf16x3", "fp32": "tf32x3"}[precision]


@triton.jit
def rounded(x, dtype: tl.constexpr, UPCAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """``x`` in another type; to the nearest also in the interpreter, which cuts bits off."""
    if UPCAST and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def prepare(  # type: ignore[no-untyped-def]
    z_ptr, valid_ptr, subject_ptr, site_ptr, operand_ptr, key_ptr, total, width,
    D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, SITES: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Embeddings as they are multiplied, zeros where not valid; and each key as the first row that holds it (32 bits).

    Grid: blocks of rows, embeddings. Writes (M, N, D) and, of subjects and sites, (2, N).
    """
    block, z = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_m = block * BM + tl.arange(0, BM)
    valid_m = tl.load(valid_ptr + z * total + i_m, mask=i_m < total, other=0) != 0
    row_m = z * total + i_m
    for d in range(0, D, BD):
        i_d = d + tl.arange(0, BD)
        z_md = tl.load(
            z_ptr + row_m[:, None] * width + i_d[None, :], mask=valid_m[:, None] & (i_d < width)[None, :], other=0.0
        )
        at = operand_ptr + row_m[:, None] * D + i_d[None, :]
        z_md = rounded(z_md.to(tl.float32), operand_ptr.dtype.element_ty, UPCAST)
        tl.store(at, z_md, mask=(i_m < total)[:, None] & (i_d < D)[None, :])
    if z == 0:
        _number(subject_ptr, key_ptr, block, total, BM)
        if SITES:
            _number(site_ptr, key_ptr + total, block, total, BM)


@triton.jit
def _number(key_ptr, out_ptr, block, total, BM: tl.constexpr):  # type: ignore[no-untyped-def]
    i_m = block * BM + tl.arange(0, BM)
    key_m = tl.load(key_ptr + i_m, mask=i_m < total, other=0)
    first_m = i_m
    for before in range(0, block + 1):
        i_c = before * BM + tl.arange(0, BM)
        key_c = tl.load(key_ptr + i_c, mask=i_c < total, other=0)
        first_m = tl.minimum(first_m, tl.min(tl.where(key_m[:, None] == key_c[None, :], i_c[None, :], total), 1))
    tl.store(out_ptr + i_m, first_m, mask=i_m < total)


@triton.jit
def cosines(  # type: ignore[no-untyped-def]
    row_ptr, column_ptr, i_m, i_c, stop_m, stop_c,
    D: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Products of a tile; rows and columns beyond the end are 0."""
    cosine_mc = tl.zeros((BM, BC), tl.float32)
    for d in range(0, D, BD):
        row_md = load_rows(row_ptr, i_m, stop_m, d, D, BD, UPCAST)
        column_cd = load_rows(column_ptr, i_c, stop_c, d, D, BD, UPCAST)
        cosine_mc = tl.dot(row_md, tl.trans(column_cd), cosine_mc, input_precision=PRECISION)
    return cosine_mc


@triton.jit
def load_rows(  # type: ignore[no-untyped-def]
    z_ptr, i_m, stop, start, D: tl.constexpr, BD: tl.constexpr, UPCAST: tl.constexpr
):  # fmt: skip
    """Numbers ``start : start + BD`` of rows; 0 beyond the end."""
    i_d = start + tl.arange(0, BD)
    mask = (i_m[:, None] < stop) & (i_d[None, :] < D)
    z_md = tl.load(z_ptr + i_m[:, None].to(tl.int64) * D + i_d[None, :], mask=mask, other=0.0)
    if UPCAST:  # the interpreter multiplies bfloat16 wrongly, without a word
        z_md = z_md.to(tl.float32)
    return z_md


@triton.jit
def compared(key_ptr, i_m, i_c, stop_m, stop_c, total, SITES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which rows and columns of a tile are of different subjects [and of one site]."""
    subject_m = tl.load(key_ptr + i_m, mask=i_m < stop_m, other=0)
    subject_c = tl.load(key_ptr + i_c, mask=i_c < stop_c, other=0)
    keep_mc = subject_m[:, None] != subject_c[None, :]
    if SITES:
        site_m = tl.load(key_ptr + total + i_m, mask=i_m < stop_m, other=0)
        site_c = tl.load(key_ptr + total + i_c, mask=i_c < stop_c, other=0)
        keep_mc = keep_mc & (site_m[:, None] == site_c[None, :])
    return keep_mc


@triton.jit
def finite(top):  # type: ignore[no-untyped-def]
    """A running maximum to subtract: 0 where nothing was kept so far, since -inf - -inf is no number."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def any_flag(flag_ptr, count):  # type: ignore[no-untyped-def]
    """Whether any of ``count`` flags is up, as 0 or 1."""
    found = tl.zeros((128,), tl.int32)
    for start in range(0, count, 128):
        i = start + tl.arange(0, 128)
        found = tl.maximum(found, tl.load(flag_ptr + i, mask=i < count, other=0))
    return tl.max(found, 0)


@triton.jit
def sum_tiles(  # type: ignore[no-untyped-def]
    z_ptr, table_ptr, scale_ptr, flag_ptr, valid_ptr, key_ptr, row_ptr, column_ptr, n, total, offset, flags,
    D: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, SPAN: tl.constexpr, OWN: tl.constexpr,
    SITES: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Parts of the sums of exp(logit - m); with EXACT, of flagged jobs, their logarithms, without reference.

    Grid: tiles of rows, spans of SPAN tiles of columns, jobs. Writes row parts (J, spans, n) and, with OWN, column
    parts (J, tiles of rows, N).
    """
    tile, span, job = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if EXACT:  # noqa: SIM102 - the first is decided when compiling
        if any_flag(flag_ptr + job * flags, flags) == 0:
            return
    left, right = tl.load(table_ptr + 3 * job), tl.load(table_ptr + 3 * job + 1)
    scale = tl.load(scale_ptr + tl.load(table_ptr + 3 * job + 2)).to(tl.float32)
    m = tl.maximum(scale - MARGIN, 0.0)
    i_m, stop = offset + tile * BM + tl.arange(0, BM), offset + n
    valid_m = tl.load(valid_ptr + left * total + i_m, mask=i_m < stop, other=0) != 0
    sum_m = tl.zeros((BM,), tl.float32)
    top_m = tl.full((BM,), float("-inf"), tl.float32)
    for k in range(SPAN):
        i_c = (span * SPAN + k) * BC + tl.arange(0, BC)
        valid_c = tl.load(valid_ptr + right * total + i_c, mask=i_c < total, other=0) != 0
        logit_mc = scale * cosines(
            z_ptr + left * total * D, z_ptr + right * total * D, i_m, i_c, stop, total, D, BM, BC, BD, PRECISION, UPCAST
        )
        keep_mc = compared(key_ptr, i_m, i_c, stop, total, total, SITES) & valid_m[:, None] & valid_c[None, :]
        column_at = column_ptr + (job.to(tl.int64) * tl.num_programs(0) + tile) * total + i_c
        if EXACT:
            logit_mc = tl.where(keep_mc, logit_mc, float("-inf"))
            new_m = tl.maximum(top_m, tl.max(logit_mc, 1))
            base_m = finite(new_m)
            sum_m = sum_m * tl.exp(top_m - base_m) + tl.sum(tl.exp(logit_mc - base_m[:, None]), 1)
            top_m = new_m
            if OWN:
                top_c = tl.max(logit_mc, 0)
                base_c = finite(top_c)
                part_c = tl.log(tl.sum(tl.exp(logit_mc - base_c[None, :]), 0)) + base_c
                tl.store(column_at, part_c, mask=i_c < total)
        else:
            e_mc = tl.where(keep_mc, tl.exp(logit_mc - m) + FLOOR, 0.0)
            sum_m += tl.sum(e_mc, 1)
            if OWN:
                tl.store(column_at, tl.sum(e_mc, 0), mask=i_c < total)
    if EXACT:
        sum_m = tl.log(sum_m) + finite(top_m)
    tl.store(row_ptr + (job.to(tl.int64) * tl.num_programs(1) + span) * n + i_m - offset, sum_m, mask=i_m < stop)


@triton.jit
def _pushes(  # type: ignore[no-untyped-def]
    cosine_mc, keep_mc, scale, exact, pull_m, pull_c, base_m, base_at_c, mask_c
):  # fmt: skip
    """How strongly each row and column of a tile push each other away: the gradient of their logit."""
    if exact != 0:
        base_c = tl.load(base_at_c, mask=mask_c, other=float("inf"))
        logit_mc = tl.where(keep_mc, scale * cosine_mc, float("-inf"))
        push_mc = tl.exp(logit_mc - base_m[:, None]) * pull_m[:, None]
        push_mc += tl.exp(logit_mc - base_c[None, :]) * pull_c[None, :]
    else:
        e_mc = tl.where(keep_mc, tl.exp(scale * cosine_mc - tl.maximum(scale - MARGIN, 0.0)), 0.0)
        push_mc = e_mc * (pull_m[:, None] + pull_c[None, :])
    return push_mc


@triton.jit
def grad_tiles(  # type: ignore[no-untyped-def]
    z_ptr, entry_ptr, first_ptr, scale_ptr, exact_ptr, valid_ptr, key_ptr, pull_ptr, base_ptr, diagonal_ptr, grad_ptr,
    row_ptr, column_ptr, part_ptr, n, total, offset, row_tiles, width, grad_stride,
    D: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, SPAN: tl.constexpr, SITES: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Gradients of embeddings: each program makes some rows of one embedding, from all pairs that it is in.

    An entry (other embedding, pair, side of these rows as anchors or -1, side of the others or -1, part of the scale's
    gradient or -1) says what to do for one pair; those of embedding m stand at first[m] : first[m + 1], those for its
    rows as columns at first[M + m]. Logits have the gradient exp(logit) (pull_m + pull_c), made in tiles from which
    the other embedding's rows make the gradient at once; positives are added in float32.
    Grid: tiles of own rows (``row_tiles``) and then of columns, embeddings, pieces of the width.
    """
    tile, mine, start_d = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2) * SPAN
    own = tile < row_tiles
    i_m = tl.where(own, offset + tile * BM, (tile - row_tiles) * BM) + tl.arange(0, BM)
    stop_m, stop_c = tl.where(own, offset + n, total), tl.where(own, total, offset + n)
    start_c = tl.where(own, 0, offset)
    valid_m = tl.load(valid_ptr + mine * total + i_m, mask=i_m < stop_m, other=0) != 0
    grad_md = tl.zeros((BM, SPAN), tl.float32)
    index = tl.where(own, mine, mine + tl.num_programs(1))
    for k in range(tl.load(first_ptr + index), tl.load(first_ptr + index + 1)):
        other, pair = tl.load(entry_ptr + 5 * k), tl.load(entry_ptr + 5 * k + 1)
        side_m, side_c = tl.load(entry_ptr + 5 * k + 2), tl.load(entry_ptr + 5 * k + 3)
        part = tl.load(entry_ptr + 5 * k + 4)
        weight = tl.load(grad_ptr + pair * grad_stride).to(tl.float32)
        scale = tl.load(scale_ptr + pair).to(tl.float32)
        exact = tl.load(exact_ptr + tl.maximum(side_m, side_c))
        mask_m = i_m < tl.where(side_m >= 0, stop_m, 0)
        pull_m = weight * tl.load(pull_ptr + side_m * n + i_m - offset, mask=mask_m, other=0.0)
        base_m = tl.load(base_ptr + side_m * n + i_m - offset, mask=mask_m, other=float("inf"))
        scale_m = tl.zeros((BM,), tl.float32)
        other_ptr = z_ptr + other * total * D
        for c in range(start_c, stop_c, BC):
            i_c = c + tl.arange(0, BC)
            mask_c = i_c < tl.where(side_c >= 0, stop_c, 0)
            pull_c = weight * tl.load(pull_ptr + side_c * n + i_c - offset, mask=mask_c, other=0.0)
            valid_c = tl.load(valid_ptr + other * total + i_c, mask=i_c < stop_c, other=0) != 0
            cosine_mc = cosines(
                z_ptr + mine * total * D, other_ptr, i_m, i_c, stop_m, stop_c, D, BM, BC, BD, PRECISION, UPCAST
            )
            keep_mc = compared(key_ptr, i_m, i_c, stop_m, stop_c, total, SITES) & valid_m[:, None] & valid_c[None, :]
            base_at_c = base_ptr + side_c * n + i_c - offset
            push_mc = _pushes(cosine_mc, keep_mc, scale, exact, pull_m, pull_c, base_m, base_at_c, mask_c)
            scale_m += tl.sum(push_mc * cosine_mc, 1)
            other_cd = load_rows(other_ptr, i_c, stop_c, start_d, D, SPAN, UPCAST)
            push_mc = rounded(scale * push_mc, z_ptr.dtype.element_ty, UPCAST).to(other_cd.dtype)
            grad_md = tl.dot(push_mc, other_cd, grad_md, input_precision=PRECISION)
        if (part >= 0) & (start_d == 0):
            tl.store(part_ptr + part * row_tiles + tile, tl.sum(scale_m, 0))
        mask_m = i_m < tl.where(own, stop_m, 0)
        pull_m = tl.load(diagonal_ptr + pair * n + i_m - offset, mask=mask_m, other=0.0)
        positive_md = load_rows(other_ptr, i_m, stop_m, start_d, D, SPAN, UPCAST).to(tl.float32)
        grad_md += (scale * weight * pull_m)[:, None] * positive_md
    i_d = start_d + tl.arange(0, SPAN)
    stop_own, stop_all = tl.where(own, stop_m, 0), tl.where(own, 0, stop_m)
    mask_d = (i_d < width)[None, :]
    row_at = row_ptr + (mine * n + i_m - offset)[:, None] * width + i_d[None, :]
    tl.store(row_at, grad_md.to(row_ptr.dtype.element_ty), mask=mask_d & (i_m < stop_own)[:, None])
    column_at = column_ptr + (mine * total + i_m)[:, None] * width + i_d[None, :]
    tl.store(column_at, grad_md.to(column_ptr.dtype.element_ty), mask=mask_d & (i_m < stop_all)[:, None])
