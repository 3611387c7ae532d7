# mypy: allow-untyped-defs
"""Log-power in Triton: frames are read straight from the signal, transformed as a matrix product, and only the result
is written. For frames of up to about 1,000 samples.

One launch serves rows of any sampling rate: each has its frame length, hop, window, basis and bands in tables. Mean and
line are removed in float64 before the product rounds anything, and the line's transform, which is known, is added.

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
    """A tile of a frame in float64 and which of its samples count; others are never read."""
    good = tl.load(valid_ptr + start + n, mask=n < length, other=0) != 0
    place = c.to(tl.int64)[:, None] * stride_c + (start + n)[None, :]
    return tl.load(x_ptr + place, mask=channels_ok[:, None] & good[None, :], other=0.0).to(tl.float64), good


@triton.jit
def _transform(
    x_ptr, valid_ptr, window_ptr, line_ptr, basis_ptr, lines_ptr, start, length, count, stride_c, c, channels_ok, f,
    FP: tl.constexpr, LP: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr, BT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Cosine and sine parts of a frame of BC channels, its energy, and 0 for a flat channel."""
    middle, inverse = tl.load(line_ptr), tl.load(line_ptr + 1)
    counted = tl.maximum(count, 1.0).to(tl.float64)
    mean = tl.zeros((BC,), tl.float64)
    slope = tl.zeros((BC,), tl.float64)
    for i in range(LP // BT):
        n = i * BT + tl.arange(0, BT)
        x, _ = _load(x_ptr, valid_ptr, start, n, length, channels_ok, stride_c, c)
        mean += tl.sum(x, 1)
        slope += tl.sum(x * (n.to(tl.float64) - middle)[None, :], 1)
    mean = mean / counted
    slope = slope * inverse
    norm2 = tl.zeros((BC,), tl.float64)
    re = tl.zeros((BC, BF), tl.float32)
    im = tl.zeros((BC, BF), tl.float32)
    for i in range(LP // BT):
        n = i * BT + tl.arange(0, BT)
        x, good = _load(x_ptr, valid_ptr, start, n, length, channels_ok, stride_c, c)
        x = tl.where(good[None, :], x - mean[:, None], 0.0)
        norm2 += tl.sum(x * x, 1)
        # Where a sample does not count, the window is 0.
        x = (x - slope[:, None] * (n.to(tl.float64) - middle)[None, :]) * tl.load(window_ptr + n)[None, :]
        place = n[:, None] * (2 * FP) + f[None, :]
        re = _dot(x.to(tl.float32), tl.load(basis_ptr + place), re, PRECISION)
        im = _dot(x.to(tl.float32), tl.load(basis_ptr + place + FP), im, PRECISION)
    slope32 = slope.to(tl.float32)[:, None]
    re += slope32 * tl.load(lines_ptr + f)[None, :]
    im += slope32 * tl.load(lines_ptr + FP + f)[None, :]
    # Numbers in float32 that differ at all do so by 2^-24 of their size; rounding of the mean is far below 2^-33.
    least = mean * 1.1641532182693481e-10
    lively = (norm2 > counted * least * least).to(tl.float32)
    return re, im, norm2.to(tl.float32), lively


@triton.jit
def _density(
    x_ptr, valid_ptr, window_ptr, line_ptr, basis_ptr, lines_ptr, count_ptr, share_ptr, per_sample, length, hop, first,
    stride_c, c, channels_ok, f, eps,
    FRAMES: tl.constexpr, FP: tl.constexpr, LP: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr, BT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Density of BC channels at BF frequencies and its floor, the mean over FRAMES frames that count."""
    total = tl.zeros((BC, BF), tl.float32)
    floor = tl.zeros((BC,), tl.float32)
    for j in range(FRAMES):
        count, share = tl.load(count_ptr + first + j), tl.load(share_ptr + first + j)
        re, im, norm2, lively = _transform(
            x_ptr, valid_ptr, window_ptr, line_ptr, basis_ptr, lines_ptr, (first + j) * hop,
            tl.where(share > 0, length, 0), count, stride_c, c, channels_ok, f, FP, LP, BC, BF, BT, PRECISION,
        )  # fmt: skip
        total += (re * re + im * im) * (lively * share)[:, None]
        floor += norm2 * (lively * share) * (eps * per_sample / tl.maximum(count, 1.0))
    return total, floor


@triton.jit
def forward_kernel(
    x_ptr, valid_ptr, rows_ptr, count_ptr, share_ptr, level_ptr, window_ptr, line_ptr, basis_ptr, lines_ptr,
    pool_ptr, out_ptr, C, stride_b, stride_c, stride_valid, eps, flat,
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
            x_ptr, valid_ptr, window_ptr + w * LP, line_ptr + w * 2, basis_ptr, lines_ptr + w * (2 * FP),
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
                x_ptr, valid_ptr, window_ptr + w * LP, line_ptr + w * 2, basis_ptr, lines_ptr + w * (2 * FP),
                count_ptr + b * P, share_ptr + b * P, per_sample, length, hop, group * FRAMES, stride_c, c,
                channels_ok, f, eps, FRAMES, FP, LP, BC, BF, BT, PRECISION,
            )  # fmt: skip
            total = _dot(power, tl.load(pool_ptr + (g * FP + f[:, None]) * KP + o[None, :]), total, PRECISION)
    value = tl.log2(total + floor[:, None] + flat) * 0.3010299956639812
    place = ((b * C + c.to(tl.int64)) * (P // FRAMES) + group)[:, None] * OUT + o[None, :]
    tl.store(out_ptr + place, value, mask=channels_ok[:, None] & (o < OUT)[None, :])
