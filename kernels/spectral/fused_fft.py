# mypy: allow-untyped-defs
"""Log-power of long frames in Triton around a library FFT: a kernel before it, one behind, and three for the gradient.

Each program has one frame of one channel, or a part of one, and every number is written by one program: no atomics. The
backward pass keeps the signal and the result only and transforms the frames again.

Shape letters: B rows, C channels, P frames, L samples per frame, N samples of a transform, F frequencies, K bands. OUT
values per frame are written: F frequencies where WIDEST is 0, else K bands of at most WIDEST bins. ``stats`` holds, per
frame, mean, slope, energy, and 0 for a flat channel.
"""

import triton
import triton.language as tl


@triton.jit
def _frame(rows_ptr, place_ptr, share_ptr, signal, p, C, P):
    """Row, channel, window, kind, first sample, samples that count (0: none), N, and place in both workspaces."""
    b, c = signal // C, signal % C
    w, g = tl.load(rows_ptr + b * 4).to(tl.int64), tl.load(rows_ptr + b * 4 + 1).to(tl.int64)
    length, hop = tl.load(rows_ptr + b * 4 + 2), tl.load(rows_ptr + b * 4 + 3)
    share = tl.load(share_ptr + b * P + p)
    size, frames = tl.load(place_ptr + b * 4 + 2), tl.load(place_ptr + b * 4 + 3)
    samples = tl.load(place_ptr + b * 4) + (c * frames + p) * size
    bins = tl.load(place_ptr + b * 4 + 1) + (c * frames + p) * (size // 2 + 1)
    return b, c, w, g, p * hop, tl.where(share > 0, length, 0), share, size.to(tl.int32), samples, bins


@triton.jit
def _samples(x_ptr, valid_ptr, n, length):
    """Samples of a frame in float32 and which of them count; others are never read."""
    good = tl.load(valid_ptr + n, mask=n < length, other=0) != 0
    return tl.load(x_ptr + n, mask=good, other=0.0).to(tl.float32), good


@triton.jit
def frame_kernel(
    x_ptr, valid_ptr, rows_ptr, place_ptr, count_ptr, share_ptr, window_ptr, line_ptr, frames_ptr, stats_ptr,
    C, stride_b, stride_c, stride_valid,
    P: tl.constexpr, LP: tl.constexpr, BT: tl.constexpr, LINEAR: tl.constexpr, WRAPPED: tl.constexpr,
):  # fmt: skip
    """A frame without its mean (and line), windowed, and its numbers."""
    signal, p = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, c, w, _, start, length, _, size, samples, _ = _frame(rows_ptr, place_ptr, share_ptr, signal, p, C, P)
    count = tl.maximum(tl.load(count_ptr + b * P + p), 1.0)
    x_ptr += b * stride_b + c * stride_c + start
    valid_ptr += b * stride_valid + start
    total = tl.zeros((BT,), tl.float32)
    for i in range(LP // BT):
        x, good = _samples(x_ptr, valid_ptr, i * BT + tl.arange(0, BT), length)
        total += x
    mean = tl.sum(total, 0) / count
    slope = 0.0
    if LINEAR:
        total = tl.zeros((BT,), tl.float32)
        for i in range(LP // BT):
            n = i * BT + tl.arange(0, BT)
            x, good = _samples(x_ptr, valid_ptr, n, length)
            total += tl.where(good, x - mean, 0.0) * tl.load(line_ptr + w * LP + n)
        slope = tl.sum(total, 0)
    total = tl.zeros((BT,), tl.float32)
    energy = tl.zeros((BT,), tl.float32)
    for i in range(LP // BT):
        n = i * BT + tl.arange(0, BT)
        x, good = _samples(x_ptr, valid_ptr, n, length)
        x = tl.where(good, x - mean - slope * tl.load(line_ptr + w * LP + n), 0.0)
        total += x
        energy += x * x
    rest = tl.sum(total, 0) / count
    norm2 = tl.sum(energy, 0)
    for i in range(LP // BT):
        n = i * BT + tl.arange(0, BT)
        x, good = _samples(x_ptr, valid_ptr, n, length)
        x = x - mean - slope * tl.load(line_ptr + w * LP + n) - rest
        place = samples + (n % size if WRAPPED else n)
        tl.store(frames_ptr + place, x * tl.load(window_ptr + w * LP + n), mask=good)
    mean += rest
    rounding: tl.constexpr = 8 * 1.1920929e-07
    lively = (norm2 > rounding * rounding * (mean * mean * count + slope * slope)).to(tl.float32)
    stats = stats_ptr + (signal * P + p) * 4
    tl.store(stats, mean)
    tl.store(stats + 1, slope)
    tl.store(stats + 2, norm2)
    tl.store(stats + 3, lively)


@triton.jit
def power_kernel(
    spectrum_ptr, rows_ptr, place_ptr, count_ptr, share_ptr, level_ptr, bins_ptr, stats_ptr, out_ptr, C, eps, flat,
    P: tl.constexpr, FRAMES: tl.constexpr, OUT: tl.constexpr, WIDEST: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """Log10 of density plus its floor, (B, C, P / FRAMES, OUT): of the mean over FRAMES frames that count."""
    signal, group, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    total = tl.zeros((BF,), tl.float32)
    floor = 0.0
    b = signal // C
    g = tl.load(rows_ptr + b * 4 + 1).to(tl.int64)
    per_sample = tl.load(level_ptr + b)
    low, high = 0, 0
    if WIDEST > 0:
        low = tl.load(bins_ptr + (g * OUT + part) * 2)
        high = tl.load(bins_ptr + (g * OUT + part) * 2 + 1)
    for j in range(FRAMES):
        p = group * FRAMES + j
        _, _, _, _, _, _, share, size, _, bins = _frame(rows_ptr, place_ptr, share_ptr, signal, p, C, P)
        stats = stats_ptr + (signal * P + p) * 4
        weight = tl.load(stats + 3) * share
        floor += tl.load(stats + 2) * weight * (eps * per_sample / tl.maximum(tl.load(count_ptr + b * P + p), 1.0))
        for i in range((WIDEST + BF - 1) // BF if WIDEST > 0 else 1):
            if WIDEST > 0:
                k = low + i * BF + tl.arange(0, BF)
                wanted = k < tl.where(share > 0, high, 0)
            else:
                f = part * BF + tl.arange(0, BF)
                k = tl.load(bins_ptr + g * OUT + f, mask=f < OUT, other=-1)
                wanted = (k >= 0) & (k < tl.where(share > 0, size, 0))
            re = tl.load(spectrum_ptr + (bins + k) * 2, mask=wanted, other=0.0)
            im = tl.load(spectrum_ptr + (bins + k) * 2 + 1, mask=wanted, other=0.0)
            one_sided = tl.where((k == 0) | (2 * k == size), 1.0, 2.0)
            total += (re * re + im * im) * one_sided * weight
    out_ptr += (signal * (P // FRAMES) + group) * OUT
    if WIDEST > 0:
        mean = tl.sum(total, 0) / tl.maximum(high - low, 1).to(tl.float32)
        tl.store(out_ptr + part, tl.log2(mean + floor + flat) * 0.3010299956639812)
    else:
        f = part * BF + tl.arange(0, BF)
        tl.store(out_ptr + f, tl.log2(total + floor + flat) * 0.3010299956639812, mask=f < OUT)


@triton.jit
def _power_gradient(out_ptr, grad_ptr, o, known):
    """Gradient of the density from that of its logarithm."""
    grad = tl.load(grad_ptr + o, mask=known, other=0.0).to(tl.float32)
    return grad * tl.exp2(tl.load(out_ptr + o, mask=known, other=0.0) * -3.321928094887362) * 0.4342944819


@triton.jit
def spectrum_gradient_kernel(
    spectrum_ptr, rows_ptr, place_ptr, share_ptr, bins_ptr, inverse_ptr, stats_ptr, out_ptr, grad_ptr, C, most_bins,
    P: tl.constexpr, FRAMES: tl.constexpr, OUT: tl.constexpr, WIDEST: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """In the place of a spectrum, its gradient, halved where an inverse real FFT counts a bin twice."""
    signal, p = tl.program_id(0).to(tl.int64), tl.program_id(1)
    k = tl.program_id(2) * BF + tl.arange(0, BF)
    _, _, _, g, _, length, share, size, _, bins = _frame(rows_ptr, place_ptr, share_ptr, signal, p, C, P)
    there = k < tl.where(length > 0, size // 2 + 1, 0)
    written = (signal * (P // FRAMES) + p // FRAMES) * OUT
    if WIDEST > 0:
        grad = tl.zeros((BF,), tl.float32)
        for o in range(OUT):
            low = tl.load(bins_ptr + (g * OUT + o) * 2)
            high = tl.load(bins_ptr + (g * OUT + o) * 2 + 1)
            inside = (k >= low) & (k < high)
            mean = _power_gradient(out_ptr, grad_ptr, written + o, True) / tl.maximum(high - low, 1).to(tl.float32)
            grad += tl.where(inside, mean, 0.0)
    else:
        o = tl.load(inverse_ptr + g * most_bins + k, mask=k < most_bins, other=-1)
        grad = _power_gradient(out_ptr, grad_ptr, written + o, o >= 0)
    # One-sided densities count a bin twice but for the first and the last, an inverse FFT likewise.
    grad = grad * (2.0 * share * tl.load(stats_ptr + (signal * P + p) * 4 + 3))
    place = spectrum_ptr + (bins + k) * 2
    tl.store(place, grad * tl.load(place, mask=there, other=0.0), mask=there)
    tl.store(place + 1, grad * tl.load(place + 1, mask=there, other=0.0), mask=there)


@triton.jit
def frame_gradient_kernel(
    x_ptr, valid_ptr, rows_ptr, place_ptr, count_ptr, share_ptr, level_ptr, window_ptr, line_ptr, frames_ptr,
    stats_ptr, out_ptr, grad_ptr, C, stride_b, stride_c, stride_valid, eps,
    P: tl.constexpr, FRAMES: tl.constexpr, OUT: tl.constexpr, LP: tl.constexpr, BF: tl.constexpr, BT: tl.constexpr,
    LINEAR: tl.constexpr, WRAPPED: tl.constexpr,
):  # fmt: skip
    """In the place of a windowed frame's gradient, that of its samples, the floor's share included."""
    signal, p = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, c, w, _, start, length, share, size, samples, _ = _frame(rows_ptr, place_ptr, share_ptr, signal, p, C, P)
    count = tl.maximum(tl.load(count_ptr + b * P + p), 1.0)
    stats = stats_ptr + (signal * P + p) * 4
    written = (signal * (P // FRAMES) + p // FRAMES) * OUT
    total = tl.zeros((BF,), tl.float32)
    for i in range((OUT + BF - 1) // BF):
        o = i * BF + tl.arange(0, BF)
        total += _power_gradient(out_ptr, grad_ptr, written + o, o < OUT)
    factor = tl.sum(total, 0) * (2.0 * eps * share * tl.load(stats + 3) * tl.load(level_ptr + b) / count)
    x_ptr += b * stride_b + c * stride_c + start
    valid_ptr += b * stride_valid + start
    level = tl.zeros((BT,), tl.float32)
    tilt = tl.zeros((BT,), tl.float32)
    for i in range(LP // BT):
        n = i * BT + tl.arange(0, BT)
        good = tl.load(valid_ptr + n, mask=n < length, other=0) != 0
        place = samples + (n % size if WRAPPED else n)
        h = tl.load(frames_ptr + place, mask=good, other=0.0) * tl.load(window_ptr + w * LP + n)
        level += h
        tilt += h * tl.load(line_ptr + w * LP + n)
    grad_mean = tl.sum(level, 0) / count
    grad_slope = tl.sum(tilt, 0) if LINEAR else 0.0
    mean, slope = tl.load(stats), tl.load(stats + 1)
    for i in range(LP // BT):
        n = i * BT + tl.arange(0, BT)
        x, good = _samples(x_ptr, valid_ptr, n, length)
        line = tl.load(line_ptr + w * LP + n)
        place = samples + (n % size if WRAPPED else n)
        h = tl.load(frames_ptr + place, mask=good, other=0.0) * tl.load(window_ptr + w * LP + n)
        h = h - grad_mean - grad_slope * line + factor * (x - mean - slope * line)
        tl.store(frames_ptr + place, h, mask=good)


@triton.jit
def gather_kernel(
    valid_ptr, rows_ptr, place_ptr, share_ptr, frames_ptr, grad_x_ptr, C, T, stride_valid,
    P: tl.constexpr, COVER: tl.constexpr, BT: tl.constexpr, WRAPPED: tl.constexpr,
):  # fmt: skip
    """Gradient of BT samples, gathered from the at most COVER frames that hold one of them."""
    signal, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * BT
    t = first + tl.arange(0, BT)
    b = signal // C
    length, hop = tl.load(rows_ptr + b * 4 + 2), tl.load(rows_ptr + b * 4 + 3)
    good = tl.load(valid_ptr + b * stride_valid + t, mask=t < T, other=0) != 0
    earliest = tl.maximum(first - length + hop, 0) // hop
    total = tl.zeros((BT,), tl.float32)
    for j in range(COVER):
        p = earliest + j
        there = tl.minimum(p, P - 1)
        _, _, _, _, start, counted, _, size, samples, _ = _frame(rows_ptr, place_ptr, share_ptr, signal, there, C, P)
        n = t - start
        inside = good & (n >= 0) & (n < tl.where(p < P, counted, 0))
        total += tl.load(frames_ptr + samples + (n % size if WRAPPED else n), mask=inside, other=0.0)
    tl.store(grad_x_ptr + signal * T + t, total, mask=t < T)
