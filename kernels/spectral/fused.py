# mypy: allow-untyped-defs
"""Log-power in Triton: frames are read straight from the signal, transformed as a matrix product, and only the result
is written. For frames of up to about 1,000 samples; ``fused_fft`` has those for longer ones.

One launch serves rows of any sampling rate: each has its frame length, hop, window, basis and bands in tables. The mean
is removed in float32 before the product rounds anything. The backward pass keeps the signal and the result
only: one kernel transforms each frame again and writes the gradient at its frequencies, a second one gathers, for every
sample, the frames that cover it, so nothing is added atomically and the same input gives the same bits.

Shape letters: B rows, C channels, T time samples, P frames, L samples per frame, F frequencies, K bands, W windows,
G kinds of rows. OUT values per frame are written: its F frequencies where KP is 0, else its K <= KP bands.
"""

import triton
import triton.language as tl

INTERPRETED = bool(triton.knobs.runtime.interpret)
_UPCAST = tl.constexpr(INTERPRETED)


@triton.jit
def _dot(a, b, total, PRECISION: tl.constexpr):
    """``total + a @ b``; "bf16" rounds both, the others are what ``tl.dot`` calls them."""
    if PRECISION == "bf16":
        a = a.to(tl.bfloat16)
        b = b.to(tl.bfloat16)
        if _UPCAST:  # the interpreter multiplies bfloat16 wrongly, without a word
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        total = tl.dot(a, b, total)
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
def _load(x_ptr, valid_ptr, start, n, length, channels_ok, stride_c, c):
    """A tile of a frame in float32 and which of its samples count; others are never read."""
    good = tl.load(valid_ptr + start + n, mask=(n >= 0) & (n < length), other=0) != 0
    place = c.to(tl.int64)[:, None] * stride_c + (start + n)[None, :]
    return tl.load(x_ptr + place, mask=channels_ok[:, None] & good[None, :], other=0.0).to(tl.float32), good


@triton.jit
def _transform(
    x_ptr, valid_ptr, window_ptr, basis_ptr, sums_ptr, start, length, count, stride_c, c, channels_ok, f,
    FP: tl.constexpr, LP: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr, BT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Cosine and sine parts of a frame of BC channels, its mean, energy, and 0 for a flat channel."""
    mean = tl.zeros((BC,), tl.float32)
    rest = tl.zeros((BC,), tl.float32)
    norm2 = tl.zeros((BC,), tl.float32)
    re = tl.zeros((BC, BF), tl.float32)
    im = tl.zeros((BC, BF), tl.float32)
    for i in range(LP // BT):
        x, _ = _load(x_ptr, valid_ptr, start, i * BT + tl.arange(0, BT), length, channels_ok, stride_c, c)
        mean += tl.sum(x, 1)
    mean = mean / tl.maximum(count, 1.0)
    for i in range(LP // BT):
        n = i * BT + tl.arange(0, BT)
        x, good = _load(x_ptr, valid_ptr, start, n, length, channels_ok, stride_c, c)
        x = tl.where(good[None, :], x - mean[:, None], 0.0)
        rest += tl.sum(x, 1)
        norm2 += tl.sum(x * x, 1)
        x = x * tl.load(window_ptr + n)[None, :]
        place = n[:, None] * (2 * FP) + f[None, :]
        re = _dot(x, tl.load(basis_ptr + place), re, PRECISION)
        im = _dot(x, tl.load(basis_ptr + place + FP), im, PRECISION)
    # What rounding left of the mean, whose transform is known, would show at 0 Hz.
    rest = rest / tl.maximum(count, 1.0)
    re -= rest[:, None] * tl.load(sums_ptr + f)[None, :]
    im -= rest[:, None] * tl.load(sums_ptr + FP + f)[None, :]
    mean += rest
    rest2 = rest * rest * count
    norm2 = tl.maximum(norm2 - rest2, 0.0)
    eps32: tl.constexpr = 1.1920929e-07
    lively = (norm2 > 64 * eps32 * rest2).to(tl.float32)
    return re, im, mean, norm2, lively


@triton.jit
def _density(
    x_ptr, valid_ptr, window_ptr, basis_ptr, sums_ptr, count_ptr, share_ptr, per_sample, length, hop, first,
    stride_c, c, channels_ok, f, eps,
    FRAMES: tl.constexpr, FP: tl.constexpr, LP: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr, BT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Density of BC channels at BF frequencies and its floor, the mean over FRAMES frames that count."""
    total = tl.zeros((BC, BF), tl.float32)
    floor = tl.zeros((BC,), tl.float32)
    for j in range(FRAMES):
        count, share = tl.load(count_ptr + first + j), tl.load(share_ptr + first + j)
        re, im, _, norm2, lively = _transform(
            x_ptr, valid_ptr, window_ptr, basis_ptr, sums_ptr, (first + j) * hop,
            tl.where(share > 0, length, 0), count, stride_c, c, channels_ok, f, FP, LP, BC, BF, BT, PRECISION,
        )  # fmt: skip
        total += (re * re + im * im) * (lively * share)[:, None]
        floor += norm2 * (lively * share) * (eps * per_sample / tl.maximum(count, 1.0))
    return total, floor


@triton.jit
def forward_kernel(
    x_ptr, valid_ptr, rows_ptr, count_ptr, share_ptr, level_ptr, window_ptr, basis_ptr, sums_ptr, pool_ptr,
    out_ptr, C, stride_b, stride_c, stride_valid, eps, flat,
    P: tl.constexpr, FRAMES: tl.constexpr, OUT: tl.constexpr, FP: tl.constexpr, KP: tl.constexpr, LP: tl.constexpr,
    BC: tl.constexpr, BF: tl.constexpr, BT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Log10 of density plus its floor, (B, C, P / FRAMES, OUT): of the mean over FRAMES frames that count."""
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    w, g = tl.load(rows_ptr + b * 4).to(tl.int64), tl.load(rows_ptr + b * 4 + 1).to(tl.int64)
    length, hop = tl.load(rows_ptr + b * 4 + 2), tl.load(rows_ptr + b * 4 + 3)
    per_sample = tl.load(level_ptr + b)
    channels_ok = c < C
    x_ptr += b * stride_b
    valid_ptr += b * stride_valid
    basis_ptr += g * (LP * 2 * FP)
    if KP == 0:
        group = tl.program_id(2) // (FP // BF)
        o = (tl.program_id(2) % (FP // BF)) * BF + tl.arange(0, BF)
        total, floor = _density(
            x_ptr, valid_ptr, window_ptr + w * LP, basis_ptr, sums_ptr + w * (2 * FP),
            count_ptr + b * P, share_ptr + b * P, per_sample, length, hop, group * FRAMES, stride_c, c, channels_ok, o,
            eps, FRAMES, FP, LP, BC, BF, BT, PRECISION,
        )  # fmt: skip
    else:
        group = tl.program_id(2)
        o = tl.arange(0, KP)
        total = tl.zeros((BC, KP), tl.float32)
        floor = tl.zeros((BC,), tl.float32)
        for i in range(FP // BF):
            f = i * BF + tl.arange(0, BF)
            power, floor = _density(
                x_ptr, valid_ptr, window_ptr + w * LP, basis_ptr, sums_ptr + w * (2 * FP),
                count_ptr + b * P, share_ptr + b * P, per_sample, length, hop, group * FRAMES, stride_c, c,
                channels_ok, f, eps, FRAMES, FP, LP, BC, BF, BT, PRECISION,
            )  # fmt: skip
            total = _dot(power, tl.load(pool_ptr + (g * FP + f[:, None]) * KP + o[None, :]), total, PRECISION)
    value = tl.log2(total + floor[:, None] + flat) * 0.3010299956639812
    place = ((b * C + c.to(tl.int64)) * (P // FRAMES) + group)[:, None] * OUT + o[None, :]
    tl.store(out_ptr + place, value, mask=channels_ok[:, None] & (o < OUT)[None, :])


@triton.jit
def _power_gradient(out_ptr, grad_ptr, place, known):
    """Gradient of the density from that of its logarithm."""
    grad = tl.load(grad_ptr + place, mask=known, other=0.0).to(tl.float32)
    return grad * tl.exp2(tl.load(out_ptr + place, mask=known, other=0.0) * -3.321928094887362) * 0.4342944819


@triton.jit
def frequency_gradient_kernel(
    x_ptr, valid_ptr, rows_ptr, count_ptr, share_ptr, level_ptr, window_ptr, basis_ptr, sums_ptr, pool_ptr,
    out_ptr, grad_ptr, work_ptr, stats_ptr, C, stride_b, stride_c, stride_valid, eps,
    P: tl.constexpr, FRAMES: tl.constexpr, OUT: tl.constexpr, FP: tl.constexpr, KP: tl.constexpr, LP: tl.constexpr,
    BC: tl.constexpr, BF: tl.constexpr, BT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Per frame: gradients of the cosine and sine parts, and the numbers that the gather needs beside them.

    ``stats``: mean, factor of the centred sample, mean of the windowed gradient.
    """
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    p = tl.program_id(2)
    w, g = tl.load(rows_ptr + b * 4).to(tl.int64), tl.load(rows_ptr + b * 4 + 1).to(tl.int64)
    length, hop = tl.load(rows_ptr + b * 4 + 2), tl.load(rows_ptr + b * 4 + 3)
    per_sample = tl.load(level_ptr + b)
    count, share = tl.load(count_ptr + b * P + p), tl.load(share_ptr + b * P + p)
    channels_ok = c < C
    signal = b * C + c.to(tl.int64)
    frame = (signal * P + p)[:, None]
    written = (signal * (P // FRAMES) + p // FRAMES)[:, None] * OUT
    mean = tl.zeros((BC,), tl.float32)
    factor = tl.zeros((BC,), tl.float32)
    lively = tl.zeros((BC,), tl.float32)
    grad_mean = tl.zeros((BC,), tl.float32)
    for i in range(FP // BF):
        f = i * BF + tl.arange(0, BF)
        re, im, mean, _, lively = _transform(
            x_ptr + b * stride_b, valid_ptr + b * stride_valid, window_ptr + w * LP,
            basis_ptr + g * (LP * 2 * FP), sums_ptr + w * (2 * FP), p * hop, tl.where(share > 0, length, 0), count,
            stride_c, c, channels_ok, f, FP, LP, BC, BF, BT, PRECISION,
        )  # fmt: skip
        if KP == 0:
            o = f
            grad = _power_gradient(out_ptr, grad_ptr, written + o, channels_ok[:, None] & (o < OUT)[None, :])
            factor += tl.sum(grad, 1)
        else:
            o = tl.arange(0, KP)
            grad_k = _power_gradient(out_ptr, grad_ptr, written + o, channels_ok[:, None] & (o < OUT)[None, :])
            factor = tl.sum(grad_k, 1)
            pool = tl.load(pool_ptr + (g * FP + f[None, :]) * KP + o[:, None])
            grad = _dot(grad_k, pool, tl.zeros((BC, BF), tl.float32), PRECISION)
        grad = grad * (lively * share)[:, None]
        grad_re, grad_im = 2.0 * grad * re, 2.0 * grad * im
        tl.store(work_ptr + frame * (2 * FP) + f[None, :], grad_re, mask=channels_ok[:, None])
        tl.store(work_ptr + frame * (2 * FP) + FP + f[None, :], grad_im, mask=channels_ok[:, None])
        sums = sums_ptr + w * (2 * FP) + f
        grad_mean += tl.sum(grad_re * tl.load(sums)[None, :] + grad_im * tl.load(sums + FP)[None, :], 1)
    factor = factor * lively * (share * 2.0 * eps * per_sample / tl.maximum(count, 1.0))
    stats = stats_ptr + (signal * P + p) * 3
    tl.store(stats, mean, mask=channels_ok)
    tl.store(stats + 1, factor, mask=channels_ok)
    tl.store(stats + 2, grad_mean / tl.maximum(count, 1.0), mask=channels_ok)


@triton.jit
def sample_gradient_kernel(
    x_ptr, valid_ptr, rows_ptr, share_ptr, window_ptr, basis_ptr, work_ptr, stats_ptr, grad_x_ptr,
    C, T, stride_b, stride_c, stride_valid,
    P: tl.constexpr, COVER: tl.constexpr, FP: tl.constexpr, LP: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr,
    BT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of BT samples, gathered from the at most COVER frames that hold one of them."""
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    first = tl.program_id(2) * BT
    t = first + tl.arange(0, BT)
    w, g = tl.load(rows_ptr + b * 4).to(tl.int64), tl.load(rows_ptr + b * 4 + 1).to(tl.int64)
    length, hop = tl.load(rows_ptr + b * 4 + 2), tl.load(rows_ptr + b * 4 + 3)
    channels_ok = c < C
    signal = b * C + c.to(tl.int64)
    x, good = _load(x_ptr + b * stride_b, valid_ptr + b * stride_valid, 0, t, T, channels_ok, stride_c, c)
    total = tl.zeros((BC, BT), tl.float32)
    # The first frame that ends after the tile begins; frames before it do not reach the tile.
    earliest = tl.maximum(first - length + hop, 0) // hop
    for j in range(COVER):
        p = earliest + j
        n = t - p * hop
        there = tl.minimum(p, P - 1)
        share = tl.load(share_ptr + b * P + there) * (p < P).to(tl.float32)
        inside = (n >= 0) & (n < tl.where(share > 0, length, 0))
        frame = signal * P + there
        part = tl.zeros((BC, BT), tl.float32)
        for i in range(FP // BF):
            f = i * BF + tl.arange(0, BF)
            place = n[None, :] * (2 * FP) + f[:, None]
            basis = basis_ptr + g * (LP * 2 * FP) + place
            work = work_ptr + frame[:, None] * (2 * FP) + f[None, :]
            grad_re = tl.load(work, mask=channels_ok[:, None], other=0.0)
            grad_im = tl.load(work + FP, mask=channels_ok[:, None], other=0.0)
            part = _dot(grad_re, tl.load(basis, mask=inside[None, :], other=0.0), part, PRECISION)
            part = _dot(grad_im, tl.load(basis + FP, mask=inside[None, :], other=0.0), part, PRECISION)
        stats = stats_ptr + frame * 3
        centred = x - tl.load(stats, mask=channels_ok, other=0.0)[:, None]
        part = part * tl.load(window_ptr + w * LP + n, mask=inside, other=0.0)[None, :]
        part -= tl.load(stats + 2, mask=channels_ok, other=0.0)[:, None]
        part += tl.load(stats + 1, mask=channels_ok, other=0.0)[:, None] * centred
        total += tl.where((inside & good)[None, :], part, 0.0)
    place = signal[:, None] * T + t[None, :]
    tl.store(grad_x_ptr + place, total, mask=channels_ok[:, None] & (t < T)[None, :])
