"""Relational distillation over all pairs in Triton: forward, its end, and backward, one launch each.

Softmaxes are over rows only, so running maxima serve as references, and no sum needs to be done again. Entries, tiles,
own rows and columns are those of ``fused``.

Shape letters: M embeddings, P pairs, n own rows, N (``total``) rows of all processes, D padded width; m, c and d the
rows, columns and depth of a tile.
"""

import triton
import triton.language as tl

from mcsp.kernels.contrastive.fused import compared, cosines, finite, load_rows, rounded
from mcsp.kernels.contrastive.fused_losses import anchor_count


@triton.jit
def valid_in_both(valid_ptr, a, b, i, stop, total):  # type: ignore[no-untyped-def]
    """Which rows both embeddings have."""
    valid_a = tl.load(valid_ptr + a * total + i, mask=i < stop, other=0)
    valid_b = tl.load(valid_ptr + b * total + i, mask=i < stop, other=0)
    return (valid_a != 0) & (valid_b != 0)


@triton.jit
def _take(top_m, sum_m, mean_m, logit_mc, difference_mc):  # type: ignore[no-untyped-def]
    """Running maximum of logits, and sums of exp(logit - maximum) and of the same times a difference."""
    new_m = tl.maximum(top_m, tl.max(logit_mc, 1))
    base_m = finite(new_m)
    e_mc = tl.exp(logit_mc - base_m[:, None])
    shrink_m = tl.exp(top_m - base_m)
    return new_m, sum_m * shrink_m + tl.sum(e_mc, 1), mean_m * shrink_m + tl.sum(e_mc * difference_mc, 1)


@triton.jit
def distillation_tiles(  # type: ignore[no-untyped-def]
    z_ptr, pair_ptr, scale_ptr, valid_ptr, key_ptr, part_ptr, n, total, offset,
    D: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, SPAN: tl.constexpr, SITES: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Parts (P, spans, 6, n): of both embeddings' logits A and B, maximum, sum, and sum times A - B.

    Grid: tiles of rows, spans of SPAN tiles of columns, pairs.
    """
    tile, span, pair = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    a, b = tl.load(pair_ptr + 2 * pair), tl.load(pair_ptr + 2 * pair + 1)
    scale = tl.load(scale_ptr + pair).to(tl.float32)
    a_ptr, b_ptr = z_ptr + a * total * D, z_ptr + b * total * D
    i_m, stop = offset + tile * BM + tl.arange(0, BM), offset + n
    top_a, top_b = tl.full((BM,), float("-inf"), tl.float32), tl.full((BM,), float("-inf"), tl.float32)
    sum_a, sum_b = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    mean_a, mean_b = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    for k in range(SPAN):
        i_c = (span * SPAN + k) * BC + tl.arange(0, BC)
        a_mc = scale * cosines(a_ptr, a_ptr, i_m, i_c, stop, total, D, BM, BC, BD, PRECISION, UPCAST)
        b_mc = scale * cosines(b_ptr, b_ptr, i_m, i_c, stop, total, D, BM, BC, BD, PRECISION, UPCAST)
        valid_c = valid_in_both(valid_ptr, a, b, i_c, total, total)
        keep_mc = compared(key_ptr, i_m, i_c, stop, total, total, SITES) & valid_c[None, :]
        difference_mc = a_mc - b_mc
        a_mc = tl.where(keep_mc, a_mc, float("-inf"))
        b_mc = tl.where(keep_mc, b_mc, float("-inf"))
        top_a, sum_a, mean_a = _take(top_a, sum_a, mean_a, a_mc, difference_mc)
        top_b, sum_b, mean_b = _take(top_b, sum_b, mean_b, b_mc, difference_mc)
    at, mask = part_ptr + (pair * tl.num_programs(1) + span) * 6 * n + i_m - offset, i_m < stop
    tl.store(at, top_a, mask=mask)
    tl.store(at + n, sum_a, mask=mask)
    tl.store(at + 2 * n, mean_a, mask=mask)
    tl.store(at + 3 * n, top_b, mask=mask)
    tl.store(at + 4 * n, sum_b, mask=mask)
    tl.store(at + 5 * n, mean_b, mask=mask)


@triton.jit
def close_distillation(  # type: ignore[no-untyped-def]
    pair_ptr, weight_ptr, valid_ptr, part_ptr, share_ptr, loss_ptr, n, total, offset, spans,
    BM: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Parts of losses (P, blocks); rows' maxima and weights over sums, of both embeddings, (P, 4, n).

    Grid: blocks of rows, pairs.
    """
    block, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    a, b = tl.load(pair_ptr + 2 * pair), tl.load(pair_ptr + 2 * pair + 1)
    weight = 0.5 / tl.maximum(anchor_count(valid_ptr, a, b, total, BM), 1).to(tl.float32)
    if WEIGHTED:
        weight *= tl.load(weight_ptr + pair).to(tl.float32)
    i_m = block * BM + tl.arange(0, BM)
    mask = i_m < n
    anchor_m = valid_in_both(valid_ptr, a, b, offset + i_m, offset + n, total)
    loss_m = tl.zeros((BM,), tl.float32)
    for k in tl.static_range(2):
        top_m = tl.full((BM,), float("-inf"), tl.float32)
        sum_m, mean_m = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
        for span in range(spans):
            at = part_ptr + ((pair * spans + span) * 6 + 3 * k) * n + i_m
            other_m = tl.load(at, mask=mask, other=float("-inf"))
            new_m = tl.maximum(top_m, other_m)
            base_m = finite(new_m)
            left_m, right_m = tl.exp(top_m - base_m), tl.exp(other_m - base_m)
            sum_m = sum_m * left_m + tl.load(at + n, mask=mask, other=0.0) * right_m
            mean_m = mean_m * left_m + tl.load(at + 2 * n, mask=mask, other=0.0) * right_m
            top_m = new_m
        active_m = anchor_m & (top_m > float("-inf"))
        share_m = tl.where(active_m, weight / tl.where(active_m, sum_m, 1.0), 0.0)
        loss_m += share_m * mean_m if k == 0 else -share_m * mean_m
        # Against an infinite reference, rows that teach nothing have zero softmaxes.
        at = share_ptr + (pair * 4 + 2 * k) * n + i_m
        tl.store(at, tl.where(active_m, top_m, float("inf")), mask=mask)
        tl.store(at + n, share_m, mask=mask)
    tl.store(loss_ptr + pair * tl.num_programs(0) + block, tl.sum(loss_m, 0))


@triton.jit
def _difference(  # type: ignore[no-untyped-def]
    share_ptr, pair, which, i, stop, offset, n, mine_mc, other_mc, keep_mc, BY_ROW: tl.constexpr
):  # fmt: skip
    """Weighted softmax of one embedding's logits less that of the other's, by rows or by columns of the tile."""
    at, mask = share_ptr + pair * 4 * n + i - offset, i < stop
    top_i = tl.load(at + 2 * which * n, mask=mask, other=float("inf"))
    share_i = tl.load(at + (2 * which + 1) * n, mask=mask, other=0.0)
    top_other_i = tl.load(at + (2 - 2 * which) * n, mask=mask, other=float("inf"))
    share_other_i = tl.load(at + (3 - 2 * which) * n, mask=mask, other=0.0)
    axis: tl.constexpr = 1 if BY_ROW else 0
    top, share = tl.expand_dims(top_i, axis), tl.expand_dims(share_i, axis)
    top_other, share_other = tl.expand_dims(top_other_i, axis), tl.expand_dims(share_other_i, axis)
    mine_mc = tl.exp(tl.where(keep_mc, mine_mc - top, float("-inf"))) * share
    other_mc = tl.exp(tl.where(keep_mc, other_mc - top_other, float("-inf"))) * share_other
    return mine_mc - other_mc


@triton.jit
def distillation_grad_tiles(  # type: ignore[no-untyped-def]
    z_ptr, entry_ptr, first_ptr, scale_ptr, valid_ptr, key_ptr, share_ptr, grad_ptr, row_ptr, column_ptr, part_ptr, n,
    total, offset, row_tiles, width, grad_stride,
    D: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, SPAN: tl.constexpr, SITES: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Gradients of embeddings, as ``grad_tiles`` of the contrast makes them.

    An entry: other embedding, pair, which of the pair these rows are (0 or 1), whose softmaxes count (1 these rows', 2
    the others', 3 both), part of the scale's gradient or -1.
    """
    tile, mine, start_d = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2) * SPAN
    own = tile < row_tiles
    i_m = tl.where(own, offset + tile * BM, (tile - row_tiles) * BM) + tl.arange(0, BM)
    stop_m, stop_c = tl.where(own, offset + n, total), tl.where(own, total, offset + n)
    start_c = tl.where(own, 0, offset)
    mine_ptr = z_ptr + mine * total * D
    grad_md = tl.zeros((BM, SPAN), tl.float32)
    index = tl.where(own, mine, mine + tl.num_programs(1))
    for k in range(tl.load(first_ptr + index), tl.load(first_ptr + index + 1)):
        other, pair = tl.load(entry_ptr + 5 * k), tl.load(entry_ptr + 5 * k + 1)
        which, uses = tl.load(entry_ptr + 5 * k + 2), tl.load(entry_ptr + 5 * k + 3)
        part = tl.load(entry_ptr + 5 * k + 4)
        weight = tl.load(grad_ptr + pair * grad_stride).to(tl.float32)
        scale = tl.load(scale_ptr + pair).to(tl.float32)
        other_ptr = z_ptr + other * total * D
        valid_m = valid_in_both(valid_ptr, mine, other, i_m, stop_m, total)
        stop_rows, stop_columns = tl.where(uses % 2 == 1, stop_m, 0), tl.where(uses >= 2, stop_c, 0)
        scale_m = tl.zeros((BM,), tl.float32)
        for c in range(start_c, stop_c, BC):
            i_c = c + tl.arange(0, BC)
            cosine_mc = cosines(mine_ptr, mine_ptr, i_m, i_c, stop_m, stop_c, D, BM, BC, BD, PRECISION, UPCAST)
            other_mc = cosines(other_ptr, other_ptr, i_m, i_c, stop_m, stop_c, D, BM, BC, BD, PRECISION, UPCAST)
            valid_c = valid_in_both(valid_ptr, mine, other, i_c, stop_c, total)
            keep_mc = compared(key_ptr, i_m, i_c, stop_m, stop_c, total, SITES) & valid_m[:, None] & valid_c[None, :]
            difference_mc = cosine_mc - other_mc
            cosine_mc, other_mc = scale * cosine_mc, scale * other_mc
            push_mc = _difference(
                share_ptr, pair, which, i_m, stop_rows, offset, n, cosine_mc, other_mc, keep_mc, BY_ROW=True
            )
            scale_m += tl.sum(push_mc * difference_mc, 1)
            push_mc += _difference(
                share_ptr, pair, which, i_c, stop_columns, offset, n, cosine_mc, other_mc, keep_mc, BY_ROW=False
            )
            mine_cd = load_rows(mine_ptr, i_c, stop_c, start_d, D, SPAN, UPCAST)
            push_mc = rounded(scale * weight * push_mc, z_ptr.dtype.element_ty, UPCAST).to(mine_cd.dtype)
            grad_md = tl.dot(push_mc, mine_cd, grad_md, input_precision=PRECISION)
        if (part >= 0) & (start_d == 0):
            tl.store(part_ptr + part * row_tiles + tile, weight * tl.sum(scale_m, 0))
    i_d = start_d + tl.arange(0, SPAN)
    stop_own, stop_all = tl.where(own, stop_m, 0), tl.where(own, 0, stop_m)
    mask_d = (i_d < width)[None, :]
    row_at = row_ptr + (mine * n + i_m - offset)[:, None] * width + i_d[None, :]
    tl.store(row_at, grad_md.to(row_ptr.dtype.element_ty), mask=mask_d & (i_m < stop_own)[:, None])
    column_at = column_ptr + (mine * total + i_m)[:, None] * width + i_d[None, :]
    tl.store(column_at, grad_md.to(column_ptr.dtype.element_ty), mask=mask_d & (i_m < stop_all)[:, None])
