"""What happens between and after the tiles of ``fused``, in Triton, so that each step is one launch for all pairs.

Shape letters: P pairs, Q = 2 P sides, n own rows, N (``total``) rows of all processes; m rows of a block.
"""

import triton
import triton.language as tl

from mcsp.kernels.contrastive.fused import LEAST, MARGIN, MOST, any_flag, finite, load_rows


@triton.jit
def add_parts(  # type: ignore[no-untyped-def]
    z_ptr, pair_ptr, valid_ptr, row_ptr, column_ptr, sum_ptr, flag_ptr, cosine_ptr, n, total, offset, spans, bands,
    D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, OWN: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Sums (Q, n) of parts, flags (Q, blocks) where one cannot be used, and cosines of positives (P, n).

    A sum cannot be used if it is not finite, or if an anchor's may have lost small terms to underflow.
    Grid: blocks of rows, sides.
    """
    block, side = tl.program_id(0), tl.program_id(1).to(tl.int64)
    pair = side // 2
    a, b = tl.load(pair_ptr + 2 * pair), tl.load(pair_ptr + 2 * pair + 1)
    i_m = block * BM + tl.arange(0, BM)
    mask = i_m < n
    sum_m = tl.zeros((BM,), tl.float32)
    if OWN:
        if side % 2 == 0:
            for k in range(spans):
                sum_m += tl.load(row_ptr + (pair * spans + k) * n + i_m, mask=mask, other=0.0)
        else:
            for k in range(bands):
                sum_m += tl.load(column_ptr + (pair * bands + k) * n + i_m, mask=mask, other=0.0)
    else:
        for k in range(spans):
            sum_m += tl.load(row_ptr + (side * spans + k) * n + i_m, mask=mask, other=0.0)
    valid_a = tl.load(valid_ptr + a * total + offset + i_m, mask=mask, other=0)
    valid_b = tl.load(valid_ptr + b * total + offset + i_m, mask=mask, other=0)
    lost_m = (sum_m > 0) & (sum_m < LEAST) & (valid_a != 0) & (valid_b != 0)
    bad_m = lost_m | ((sum_m < MOST) == 0)
    tl.store(sum_ptr + side * n + i_m, sum_m, mask=mask)
    tl.store(flag_ptr + side * tl.num_programs(0) + block, tl.max(tl.where(bad_m, 1, 0), 0))
    if side % 2 == 0:
        cosine_m = tl.zeros((BM,), tl.float32)
        for d in range(0, D, BD):
            a_md = load_rows(z_ptr + a * total * D, offset + i_m, offset + n, d, D, BD, UPCAST).to(tl.float32)
            b_md = load_rows(z_ptr + b * total * D, offset + i_m, offset + n, d, D, BD, UPCAST).to(tl.float32)
            cosine_m += tl.sum(a_md * b_md, 1)
        tl.store(cosine_ptr + pair * n + i_m, cosine_m, mask=mask)


@triton.jit
def _closed_sums(  # type: ignore[no-untyped-def]
    row_ptr, column_ptr, sum_ptr, pair, exact, scale, n, spans, bands, i_m, K: tl.constexpr, BM: tl.constexpr,
    OWN: tl.constexpr,
):  # fmt: skip
    """Of the rows of side K of a pair: logarithms of sums, their reference, whether there is a sum, and one over sums.

    With ``exact``, logarithms come from parts, and one over sums is 1.
    """
    side = 2 * pair + K
    sum_m = tl.load(sum_ptr + side * n + i_m, mask=i_m < n, other=0.0)
    m = tl.maximum(scale - MARGIN, 0.0)
    log_m = tl.log(tl.maximum(sum_m, LEAST))
    some_m = sum_m > 0
    share_m = 1 / tl.where(some_m, sum_m, 1.0)
    if exact != 0:
        if OWN:
            log_m = add_logs(row_ptr, pair, spans, n, i_m, BM) if K == 0 else add_logs(
                column_ptr, pair, bands, n, i_m, BM
            )  # fmt: skip
        else:
            log_m = add_logs(row_ptr, side, spans, n, i_m, BM)
        m = 0.0
        some_m = log_m > float("-inf")
        share_m = tl.full((BM,), 1.0, tl.float32)
    return log_m, m, some_m, share_m


@triton.jit
def close_losses(  # type: ignore[no-untyped-def]
    pair_ptr, scale_ptr, weight_ptr, valid_ptr, row_ptr, column_ptr, sum_ptr, flag_ptr, cosine_ptr, loss_ptr,
    exact_ptr, pull_ptr, base_ptr, diagonal_ptr, slope_ptr, n, total, offset, spans, bands, blocks,
    BM: tl.constexpr, OWN: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Losses (P,), and for the backward pass of a loss of gradient 1:

    per side whether its sums are exact logarithms (Q,); per row and side how strongly exp(logit - base) pushes (Q, n);
    the gradient of positives (P, n) and the scale's part in it (P,). Grid: pairs.
    """
    pair = tl.program_id(0).to(tl.int64)
    a, b = tl.load(pair_ptr + 2 * pair), tl.load(pair_ptr + 2 * pair + 1)
    scale = tl.load(scale_ptr + pair).to(tl.float32)
    anchors = anchor_count(valid_ptr, a, b, total, BM)
    weight = 0.5 / tl.maximum(anchors, 1).to(tl.float32)
    if WEIGHTED:
        weight *= tl.load(weight_ptr + pair).to(tl.float32)
    loss_m, slope_m = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    first = any_flag(flag_ptr + 2 * pair * blocks, blocks)
    second = any_flag(flag_ptr + (2 * pair + 1) * blocks, blocks)
    if OWN:
        first = tl.maximum(first, second)
        second = first
    tl.store(exact_ptr + 2 * pair, first)
    tl.store(exact_ptr + 2 * pair + 1, second)
    for start in range(0, n, BM):
        i_m = start + tl.arange(0, BM)
        mask = i_m < n
        valid_a = tl.load(valid_ptr + a * total + offset + i_m, mask=mask, other=0)
        valid_b = tl.load(valid_ptr + b * total + offset + i_m, mask=mask, other=0)
        cosine_m = tl.load(cosine_ptr + pair * n + i_m, mask=mask, other=0.0)
        diagonal_m = tl.zeros((BM,), tl.float32)
        for k in tl.static_range(2):
            side = 2 * pair + k
            exact = first if k == 0 else second
            log_m, m, some_m, share_m = _closed_sums(
                row_ptr, column_ptr, sum_ptr, pair, exact, scale, n, spans, bands, i_m, k, BM, OWN
            )
            active_m = some_m & (valid_a != 0) & (valid_b != 0)
            excess_m = tl.where(active_m, log_m - (scale * cosine_m - m), -1e30)
            loss_m += softplus(excess_m)
            pull_m = tl.where(active_m, weight / (1 + tl.exp(-excess_m)), 0.0)
            tl.store(pull_ptr + side * n + i_m, tl.where(active_m, pull_m * share_m, 0.0), mask=mask)
            tl.store(base_ptr + side * n + i_m, tl.where(active_m, log_m, float("inf")), mask=mask)
            diagonal_m -= pull_m
        tl.store(diagonal_ptr + pair * n + i_m, diagonal_m, mask=mask)
        slope_m += diagonal_m * cosine_m
    tl.store(loss_ptr + pair, weight * tl.sum(loss_m, 0))
    tl.store(slope_ptr + pair, tl.sum(slope_m, 0))


@triton.jit
def anchor_count(valid_ptr, a, b, total, BM: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many rows of all processes are valid in both embeddings."""
    count_m = tl.zeros((BM,), tl.int32)
    for start in range(0, total, BM):
        i_m = start + tl.arange(0, BM)
        valid_a = tl.load(valid_ptr + a * total + i_m, mask=i_m < total, other=0)
        valid_b = tl.load(valid_ptr + b * total + i_m, mask=i_m < total, other=0)
        count_m += tl.where((valid_a != 0) & (valid_b != 0), 1, 0)
    return tl.sum(count_m, 0)


@triton.jit
def add_logs(part_ptr, first, parts, n, i_m, BM: tl.constexpr):  # type: ignore[no-untyped-def]
    """Logarithm of the sum of what ``parts`` logarithms stand for."""
    top_m = tl.full((BM,), float("-inf"), tl.float32)
    sum_m = tl.zeros((BM,), tl.float32)
    for k in range(parts):
        log_m = tl.load(part_ptr + (first * parts + k) * n + i_m, mask=i_m < n, other=float("-inf"))
        new_m = tl.maximum(top_m, log_m)
        base_m = finite(new_m)
        sum_m = sum_m * tl.exp(top_m - base_m) + tl.exp(log_m - base_m)
        top_m = new_m
    return tl.log(sum_m) + finite(top_m)


@triton.jit
def softplus(x):  # type: ignore[no-untyped-def]
    """log(1 + exp(x)) to full relative accuracy: log(1 + y) is 2 artanh(y / (2 + y)), a short series for y <= 1."""
    y = tl.exp(-tl.abs(x))
    t = y / (2 + y)
    square = t * t
    series = 1 / 13 + square * (1 / 15)
    series = 1 / 9 + square * (1 / 11 + square * series)
    series = 1 / 5 + square * (1 / 7 + square * series)
    return tl.maximum(x, 0.0) + 2 * t * (1 + square * (1 / 3 + square * series))


@triton.jit
def close_scales(  # type: ignore[no-untyped-def]
    grad_ptr, slope_ptr, part_ptr, out_ptr, parts, grad_stride, BM: tl.constexpr, SLOPED: tl.constexpr,
):  # fmt: skip
    """Gradients of scales: ``parts`` parts of each pair [and those of its positives]. Grid: pairs."""
    pair = tl.program_id(0).to(tl.int64)
    sum_m = tl.zeros((BM,), tl.float32)
    for start in range(0, parts, BM):
        i_m = start + tl.arange(0, BM)
        sum_m += tl.load(part_ptr + pair * parts + i_m, mask=i_m < parts, other=0.0)
    grad = tl.sum(sum_m, 0)
    if SLOPED:
        grad += tl.load(grad_ptr + pair * grad_stride).to(tl.float32) * tl.load(slope_ptr + pair)
    tl.store(out_ptr + pair, grad.to(out_ptr.dtype.element_ty))
