"""Charts of the corpus report as inline SVG: small enough for hundreds on one page, sharp on a phone, same bytes again.

A page of 200 sites holds about 3,000 of them; benchmarks/studies/report_charts.py compares bytes and time with
matplotlib's. Each has an alternative text, draws in the style of ``corpus.html.jinja`` and rounds to a tenth of a
pixel, so that the last bit of a float changes nothing.

Shape letters: T time samples, C channels.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup

from mcsp.wording import shortened

_WIDTH, _HEIGHT = 320, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 24, 34
_TRACE_STRETCHES = 80  # of a long trace, each drawn by its lowest and highest value


@dataclass(frozen=True)
class Scale:
    """Values onto pixels, linear or logarithmic; values beyond ``low`` to ``high`` land on the edge."""

    low: float
    high: float
    first: float  # pixel of low
    last: float  # pixel of high
    log: bool = False

    def __call__(self, value: float) -> float:
        """Pixel of ``value``."""
        low, high = (math.log10(v) if self.log else v for v in (self.low, self.high))
        value = (math.log10(value) if value > 0 else low) if self.log else value
        share = (value - low) / (high - low) if high > low else 0.5
        return self.first + min(max(share, 0.0), 1.0) * (self.last - self.first)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values inside the range: 1, 2 or 5 times a power of ten."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1, 2, 5), (1, 3), (1,)):
                ticks = [d * 10.0**p for p in powers for d in digits if self.low <= d * 10.0**p <= self.high * 1.0001]
                if len(ticks) <= most:
                    return ticks
            return ticks[:: math.ceil(len(ticks) / most)]
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        step = 10.0 ** math.floor(math.log10(span / most))
        step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= most)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(k * step, 12) for k in range(first, last + 1)]


def histogram(
    values: np.ndarray, everything: np.ndarray, edges: np.ndarray, log: bool, title: str, subject: str
) -> Markup:
    """Share of ``values`` per bin, with the share of ``everything`` as a dashed outline.

    Args:
        values: of one site; those beyond the edges count in the outermost bins.
        everything: of all sites.
        edges: bins, ascending; the same for every site, so that sites compare.
        log: whether the axis is logarithmic.
        title: above the chart, with its unit.
        subject: whose values these are, for the alternative text.
    """
    shares, reference = (_shares(v, edges) for v in (values, everything))
    x = Scale(float(edges[0]), float(edges[-1]), _LEFT, _WIDTH - _RIGHT, log)
    y = Scale(0.0, float(max(shares.max(), reference.max(), 1e-9)) * 1.05, _HEIGHT - _BOTTOM, _TOP)
    pixels = [x(float(e)) for e in edges]
    bars = "".join(
        f"M{_p(a)} {_p(y(0))}V{_p(y(s))}H{_p(b - 1)}V{_p(y(0))}"
        for (a, b), s in zip(pairwise(pixels), shares, strict=True)
        if s > 0
    )
    outline = f"M{_p(pixels[0])} {_p(y(0))}" + "".join(
        f"V{_p(y(s))}H{_p(b)}" for b, s in zip(pixels[1:], reference, strict=True)
    )
    parts = [*_axes(x, y, percent=True), f'<path class="bar" d="{bars}"/>', f'<path class="all" d="{outline}"/>']
    low, middle, high = np.percentile(values, [5, 50, 95])
    alternative = f"{title}, {subject}: median {middle:.3g}, 5 to 95 % of recordings {low:.3g} to {high:.3g}"
    return _svg(title, alternative, parts)


def spectrum(
    frequencies_F: np.ndarray,
    quartiles_3F: np.ndarray,
    log: bool,
    limits: tuple[float, float],
    title: str,
    subject: str,
) -> Markup:
    """Median power spectrum over recordings with the range of the middle half; power on a logarithmic axis.

    Args:
        frequencies_F: Hz; the first must be positive where ``log``.
        quartiles_3F: lower quartile, median, upper quartile of power, NaN where nothing is known.
        log: whether the frequency axis is logarithmic.
        limits: lowest and highest power of the axis, the same for every site.
        title: above the chart, with its unit.
        subject: whose spectrum this is, for the alternative text.
    """
    x = Scale(float(frequencies_F[0]), float(frequencies_F[-1]), _LEFT, _WIDTH - _RIGHT, log)
    y = Scale(*limits, _HEIGHT - _BOTTOM, _TOP, log=True)
    known = np.isfinite(quartiles_3F).all(axis=0)
    fx = [x(float(f)) for f in frequencies_F[known]]
    lower, middle, upper = ([y(float(v)) for v in row] for row in quartiles_3F[:, known])
    band = _line(fx, lower) + _line(fx[::-1], upper[::-1]).replace("M", "L") + "Z"
    parts = [
        *_axes(x, y, unit="Hz"),
        f'<path class="band" d="{band}"/>',
        f'<path class="line" d="{_line(fx, middle)}"/>',
    ]
    peak = float(frequencies_F[known][np.argmax(quartiles_3F[1, known])]) if known.any() else math.nan
    return _svg(title, f"{title}, {subject}: most power at {peak:.3g} Hz", parts)


def traces(
    x_TC: np.ndarray, seconds: float, names: Sequence[str], good: Sequence[bool], unit: str, title: str
) -> Markup:
    """Some channels of one window below each other, with a bar for the amplitude; bad channels in vermilion."""
    left, height = 66, _TOP + _BOTTOM + 24 * x_TC.shape[1]
    x = Scale(0.0, seconds, left, _WIDTH - _RIGHT)
    spread = np.percentile(np.abs(x_TC[:, list(good)] if any(good) else x_TC), 98)
    power = 10.0 ** math.floor(math.log10(2 * float(spread))) if spread > 0 else 1.0
    bar = max(m for m in (1, 2, 5) if m * power <= 2.0002 * float(spread)) * power if spread > 0 else 1.0
    pixels_per_unit = 18 / max(2 * float(spread), 1e-12)
    parts = []
    for c, name in enumerate(names):
        middle = _TOP + 24 * c + 12
        xs, ys = _envelope(x_TC[:, c], x, middle, pixels_per_unit)
        kind = "trace" if good[c] else "trace bad"
        parts.append(f'<text class="e" x="{left - 5}" y="{middle + 4}">{html.escape(shortened(name, 8))}</text>')
        parts.append(f'<path class="{kind}" d="{_line(xs, ys)}"/>')
    base = height - _BOTTOM
    parts.append(f'<path class="axis" d="M{left} {base}H{_WIDTH - _RIGHT}"/>')
    parts += [_below(x(t), base + 14, f"{t:g} s") for t in x.ticks()]
    length = bar * pixels_per_unit
    parts.append(f'<path class="axis" d="M{left} {base + 20}v{_p(min(length, 13))}"/>')
    parts.append(f'<text x="{left + 5}" y="{base + 31}">{bar * min(13 / length, 1):.2g} {html.escape(unit)}</text>')
    bad = len(good) - sum(good)
    note = f", {bad} of them bad" if bad else ""
    return _svg(title, f"{title}: {seconds:.3g} s of {len(names)} channels{note}", parts, height)


def ranges(rows: Sequence[tuple[str, np.ndarray]], limits: tuple[float, float], log: bool, title: str) -> Markup:
    """One row per site: 5 to 95 % of the recordings as a line, the middle half as a box, the median as a dot."""
    left, row_height = 108, 17
    height = _TOP + _BOTTOM + row_height * len(rows) - 8
    x = Scale(*limits, left, _WIDTH - _RIGHT, log)
    base = height - _BOTTOM + 6
    parts = [f'<path class="grid" d="M{_p(x(t))} {_TOP}V{base}"/>' for t in x.ticks(4)]
    parts += [_below(x(t), base + 14, f"{t:g}") for t in x.ticks(4)]
    for k, (name, values) in enumerate(rows):
        p5, p25, p50, p75, p95 = (x(float(v)) for v in np.percentile(values, [5, 25, 50, 75, 95]))
        middle = _TOP + row_height * k + 8
        parts += [
            f'<text class="e" x="{left - 6}" y="{middle + 4}">{html.escape(shortened(name, 17))}</text>',
            f'<path class="axis" d="M{_p(p5)} {middle}H{_p(p95)}"/>',
            f'<path class="box" d="M{_p(p25)} {middle - 4}H{_p(p75)}v8H{_p(p25)}Z"/>',
            f'<circle class="dot" cx="{_p(p50)}" cy="{middle}" r="2.6"/>',
        ]
    texts = "; ".join(f"{name} {np.median(values):.3g}" for name, values in rows)
    return _svg(title, f"{title}, median of each site: {texts}", parts, height)


def bins(everything: np.ndarray, whole: bool) -> tuple[np.ndarray, bool]:
    """Edges for histograms of a quantity over all sites, and whether they are logarithmic.

    They span the middle 99 %; logarithmic where that is a factor of 30 or more; of width one or more for ``whole``
    numbers.
    """
    low, high = (float(v) for v in np.percentile(everything, [0.5, 99.5]))
    if whole:
        high = max(high, 4.0)  # room for a few bars where all is zero
        width = max(1, math.ceil((high + 1) / 20))
        return np.arange(0, high + width + 1, width, dtype=float) - 0.5, False
    if low > 0 and high / low >= 30:
        return np.geomspace(low, high, 21), True
    margin = max((high - low) * 0.02, abs(high) * 0.05) or 1.0
    return np.linspace(max(low - margin, 0.0) if low >= 0 else low - margin, high + margin, 21), False


def _shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
    return counts / max(len(values), 1)


def _envelope(x_T: np.ndarray, x: Scale, middle: float, pixels_per_unit: float) -> tuple[list[float], list[float]]:
    """Pixels of a trace; a long one is drawn through the lowest and highest value of each of its stretches."""
    starts = np.unique(np.linspace(0, len(x_T), _TRACE_STRETCHES + 1).astype(int)[:-1])
    if len(x_T) <= 2 * _TRACE_STRETCHES:
        values, places = x_T, np.arange(len(x_T))
    else:
        low, high = np.minimum.reduceat(x_T, starts), np.maximum.reduceat(x_T, starts)
        values, places = np.stack([low, high], axis=1).ravel(), np.repeat(starts, 2)
    pixels = middle - np.clip(values * pixels_per_unit, -22, 22)
    return [x(p / max(len(x_T) - 1, 1) * x.high) for p in places], pixels.tolist()


def _axes(x: Scale, y: Scale, unit: str = "", percent: bool = False) -> list[str]:
    base, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick in y.ticks(4):
        text = f"{100 * tick:g} %" if percent else f"{tick:g}"
        parts.append(f'<path class="grid" d="M{_LEFT} {_p(y(tick))}H{right}"/>')
        parts.append(f'<text class="e" x="{_LEFT - 5}" y="{_p(y(tick) + 4)}">{text}</text>')
    ticks = x.ticks()
    for k, tick in enumerate(ticks):
        suffix = f" {unit}" if unit and k == len(ticks) - 1 else ""
        parts.append(f'<path class="axis" d="M{_p(x(tick))} {base}v4"/>')
        parts.append(_below(x(tick), base + 16, f"{tick:g}{suffix}"))
    return [*parts, f'<path class="axis" d="M{_LEFT} {base}H{right}"/>']


def _below(x: float, y: float, text: str) -> str:
    """A label centred below a tick, unless that would leave the chart."""
    kind, place = ("e", _WIDTH - 1) if x + 3 * len(text) > _WIDTH else ("m", x)
    return f'<text class="{kind}" x="{_p(place)}" y="{_p(y)}">{html.escape(text)}</text>'


def _line(xs: Sequence[float], ys: Sequence[float]) -> str:
    """A path through points, in steps of a tenth of a pixel relative to the point before, which is the shortest."""
    if not xs:
        return "M0 0"
    tenths = [(round(10 * a), round(10 * b)) for a, b in zip(xs, ys, strict=True)]
    steps = [f"{(c - a) / 10:g} {(d - b) / 10:g}" for (a, b), (c, d) in pairwise(tenths)]
    return f"M{_p(xs[0])} {_p(ys[0])}" + (f"l{' '.join(steps)}" if steps else "")


def _p(pixel: float) -> str:
    return f"{round(10 * pixel) / 10:g}"


def _svg(title: str, alternative: str, parts: Sequence[str], height: int = _HEIGHT) -> Markup:
    # aria-label is what a screen reader says; a <title> would also pop up over every line of the chart.
    return Markup(
        f'<svg role="img" aria-label="{html.escape(alternative)}" viewBox="0 0 {_WIDTH} {height}">'
        f'<text class="b" x="4" y="14">{html.escape(title)}</text>{"".join(parts)}</svg>'
    )
