"""The evaluation for a reader: one HTML file that needs nothing else, and its pictures.

Each panel is a picture of its own, so that a phone shows them below each other.

Shape letters: N units, F features.
"""

import base64
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from mcsp.evaluate.methods import CLASSICAL, PRETRAINED, UNTRAINED
from mcsp.evaluate.report.tables import Measure, limits, main_rows, measure_of, permutation_lines, questions, verdict
from mcsp.evaluate.units import Labelled
from mcsp.export.curves import PANELS, draw_curves
from mcsp.output import write_whole
from mcsp.page import COLOURS, GREY, MARKERS, render
from mcsp.run_log import read_metrics
from mcsp.schema import Modality
from mcsp.wording import shortened

_INK = "#010101"  # becomes the page's own colour of text, light or dark
# What matplotlib writes and a page does not need: names of groups, which repeat on a page, and its own font.
_NEEDLESS = re.compile(r' id="[\w.]+_\d+"|font-family: [^;"]*;? ?|\n\s*(?=<)')
# Words stay words: the reader's font, readable by search and screen readers. A dollar in a name is no formula.
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "mcsp", "text.parse_math": False, "font.family": "sans-serif",
    "font.size": 8, "legend.fontsize": 7.5, "legend.frameon": False, "axes.spines.top": False,
    "axes.spines.right": False, "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
}  # fmt: skip
_WIDTH = 3.7  # inches of a panel; on a phone and in three columns of a wide page its letters are 12 pixels high
_FAMILIES = {PRETRAINED: (COLOURS[0], "o"), UNTRAINED: (COLOURS[1], "s")}  # whose learned parts look like them


def vector(figure: Figure, alternative: str) -> Markup:
    """A figure drawn under :data:`STYLE` as SVG for a page; the same figure gives the same text."""
    buffer = io.StringIO()
    with rc_context(STYLE):
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    svg = _NEEDLESS.sub("", buffer.getvalue()).replace(_INK, "currentColor")
    # What comes before the root element goes, and a text comes for those who do not see the picture.
    return Markup(f'<svg role="img" aria-label="{html.escape(alternative)}"{svg[svg.index("<svg") + 4 :]}')


def raster(figure: Figure, alternative: str) -> Markup:
    """A figure of many small areas, such as a map of the scalp, as a PNG that the page holds."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    content = base64.b64encode(buffer.getvalue()).decode()
    return Markup(f'<img alt="{html.escape(alternative)}" src="data:image/png;base64,{content}">')


def _panel(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots()


@rc_context(STYLE)
def draw_forest(rows: Sequence[dict[str, Any]], measure: Measure, limits: tuple[float, float]) -> Figure:
    """A line per method: its name above its score and interval; hollow where not told apart from the pretrained one."""
    main = main_rows(rows).get(PRETRAINED)
    figure, axes = _panel(0.5 + 0.33 * len(rows))
    for place, row in enumerate(rows):
        colour, marker = _FAMILIES.get(row["features"].split(",")[0], (GREY, "D"))
        found, gain = row[measure.name], (row.get("pretrained_minus_this") or {}).get(measure.name)
        told_apart = gain is None or gain["ci_low"] > 0 or gain["ci_high"] < 0
        strong = "bold" if row is main else "normal"
        axes.plot([found["ci_low"], found["ci_high"]], [place, place], color=colour, lw=1.6, solid_capstyle="butt")
        axes.plot(
            found["value"], place, marker, ms=5, color=colour, mew=1.3, mfc=colour if told_apart else "none",
            zorder=3,
        )  # fmt: skip
        text: dict[str, Any] = {
            "transform": axes.get_yaxis_transform(),
            "fontsize": 7.5,
            "va": "center",
            "weight": strong,
        }
        name = shortened(f"{row['features']}, {row['classifier']}", 60)
        axes.text(0.0, place - 0.44, name, ha="left", **text)
        axes.text(1.0, place - 0.44, f"{found['value']:.2f}", ha="right", **text)
    # In pieces beside the marks: a whole line would cross the names.
    places = np.arange(len(rows))
    axes.vlines([measure.chance] * len(rows), places - 0.2, places + 0.26, color=GREY, lw=0.9, zorder=0)
    axes.set(xlim=limits, ylim=(len(rows) - 0.5, -0.85), yticks=[], xlabel=measure.title)
    axes.spines["left"].set_visible(False)
    return figure


@rc_context(STYLE)
def draw_roc(rows: Sequence[dict[str, Any]]) -> Figure:
    """ROC curves of one question: named and in colour what the pretrained model has to beat, all others in grey."""
    figure, axes = _panel(_WIDTH + 0.5)
    shown = {
        PRETRAINED: (COLOURS[0], "-"),
        UNTRAINED: (COLOURS[1], "--"),
        CLASSICAL[rows[0]["recordings"]]: (COLOURS[2], "-."),
    }
    named = main_rows(rows)
    for row in rows:
        grid = np.linspace(0, 1, len(row["roc"]))
        if row["features"] not in shown or row is not named.get(row["features"]):
            axes.plot(grid, row["roc"], color=GREY, lw=0.7, alpha=0.5)
            continue
        colour, line = shown[row["features"]]
        label = f"{row['features']} {row['auroc']['value']:.2f}"
        axes.plot(grid, row["roc"], color=colour, ls=line, lw=1.9, zorder=3, label=label)
        axes.fill_between(grid, row["roc_low"], row["roc_high"], color=colour, alpha=0.12, lw=0)
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":", label="chance")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", aspect=1, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    figure.legend(loc="outside lower center")
    return figure


@rc_context(STYLE)
def draw_label_efficiency(points: Sequence[dict[str, Any]], measure: Measure) -> Figure:
    """Score over the mean number of labelled training units, of one kind of recordings."""
    figure, axes = _panel(4.0)
    others = iter(list(zip(COLOURS[2:], MARKERS[2:], strict=False)) * len(points))
    for name in dict.fromkeys(p["features"] for p in points):
        of = [(p["training_units"], p[measure.name], p["sd"]) for p in points if p["features"] == name]
        n, mean, sd = np.array(of).T
        colour, marker = _FAMILIES.get(name.split(",")[0]) or next(others)
        style: dict[str, Any] = {
            "color": colour,
            "marker": marker,
            "ms": 4,
            "ls": "-" if name in _FAMILIES or "," not in name else "--",
        }
        axes.errorbar(n, mean, sd, lw=2 if name == PRETRAINED else 1.1, label=shortened(name, 50), **style)
    axes.axhline(measure.chance, color=GREY, lw=0.9, ls="--")
    axes.set(xlabel="labelled training units", ylabel=f"{measure.title}, mean and sd", xscale="log")
    axes.set_xticks(n, [f"{units:.0f}" for units in n])
    axes.minorticks_off()
    figure.legend(loc="outside lower center")
    return figure


@rc_context(STYLE)
def draw_embedding(x_NF: np.ndarray, y_N: np.ndarray, sites: Sequence[str], classes: Sequence[str]) -> Figure | None:
    """Two principal components of the standardised features; colour by label, mark by site. None below two units.

    A label without classes is a number: light for the largest.
    """
    rows = np.flatnonzero(np.isfinite(x_NF).all(axis=1))
    if len(rows) < 2:
        return None
    figure, axes = _panel(3.6)
    place_N2 = PCA(2, svd_solver="full").fit_transform(StandardScaler().fit_transform(x_NF[rows]))
    site_N, names = np.array(sites)[rows], sorted(set(sites))
    for k, site in enumerate(names):
        style: dict[str, Any] = {"marker": MARKERS[k % len(MARKERS)], "s": 22, "alpha": 0.75, "lw": 0}
        for y in range(len(classes)):
            chosen = (site_N == site) & (y_N[rows] == y)
            axes.scatter(place_N2[chosen, 0], place_N2[chosen, 1], color=COLOURS[y % len(COLOURS)], **style)
        if not classes:
            here, limits = site_N == site, {"vmin": y_N.min(), "vmax": y_N.max()}
            values: dict[str, Any] = {"c": y_N[rows][here], "cmap": "cividis", **limits, **style}
            shades = axes.scatter(place_N2[here, 0], place_N2[here, 1], **values)
    if not classes:
        figure.colorbar(shades, ax=axes, shrink=0.7, label="label")
    axes.set(xlabel="component 1", ylabel="component 2")
    # More sites than marks: marks repeat, and a list of them would cover the picture.
    shown = [(name, "o", COLOURS[y % len(COLOURS)]) for y, name in enumerate(classes)]
    shown += [(site, MARKERS[k], GREY) for k, site in enumerate(names)] if len(names) <= len(MARKERS) else []
    handles = [axes.plot([], [], marker, color=colour)[0] for _, marker, colour in shown]
    figure.legend(handles, [shortened(name, 24) for name, _, _ in shown], loc="outside lower center", ncols=2)
    return figure


Pictures = list[tuple[str, Markup]]  # each below its caption
# What else rows may have, by the name in results.json: columns of the table of details.
DETAILS = {
    "r": "r", "mae": "mean error", "mae_of_mean": "mean error of the mean", "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy", "sensitivity": "sensitivity", "specificity": "specificity",
    "brier": "Brier", "calibration_error": "calibration error", "auroc_unseen": "unseen AUROC",
    "r2_unseen": "unseen R²",
}  # fmt: skip


def write_report(
    path: Path, results: dict[str, Any], features: dict[Modality, np.ndarray], labelled: Labelled, run_dir: Path | None
) -> None:
    """Write ``report.html``.

    Args:
        path: the file.
        results: content of ``results.json``.
        features: pretrained features ``(N, F)`` per modality, for the picture; rows of NaN where missing.
        labelled: the units.
        run_dir: a pretraining run whose ``metrics.jsonl`` is drawn; None for no curves.
    """
    measure = measure_of(results)
    strict = [row for row in results["classification"] if not row["transductive"]]
    centred = [r for r in results["classification"] if r["transductive"] or r.get("auroc_centred")]
    embedding = {
        modality: draw_embedding(x_NF, labelled.y_N, labelled.sites, labelled.classes)
        for modality, x_NF in features.items()
    }
    page = render(
        "evaluation.html.jinja",
        title=f"MCSP evaluation: {results['label']['name']}",
        footer=", ".join(f"{name} {version}" for name, version in results["versions"].items())
        + f". Corpus {results['corpus_index_hash'][:12]}. Every number is in results.json.",
        results=results,
        simulated=[site for site, of_site in results["sites"].items() if of_site["simulated"]],
        measure=measure,
        verdict=verdict(strict, measure),
        limits=limits(results),
        blocks=questions(strict),
        forests=_forests(strict, measure),
        details=[found for found in DETAILS.items() if any(row.get(found[0]) is not None for row in strict)],
        permuted=permutation_lines(strict),
        roc=[
            (name, vector(draw_roc(rows), f"ROC curves, {name}"))
            for name, rows in questions([row for row in strict if "roc" in row])
        ],
        decoded={(s["recordings"], s["features"]): s["auroc"] for s in results["site_decoding"]},
        by_site=[(name, rows, sites) for name, rows in questions(strict) if (sites := _sites(rows))],
        transductive=questions(centred),
        few_labels=_few_labels(results["label_efficiency"], measure),
        curves=_curves(run_dir),
        embedding=[(m, vector(figure, f"{m} features by label and site")) for m, figure in embedding.items() if figure],
    )
    write_whole(path, page)


def _forests(rows: Sequence[dict[str, Any]], measure: Measure) -> Pictures:
    """A forest plot per question, all on the same axis."""
    known = [row[measure.name] for row in rows if row[measure.name] is not None]
    ends = [measure.chance, *(found[end] for found in known for end in ("ci_low", "ci_high"))]
    span = (min(ends) - 0.02, max(ends) + 0.02)
    return [
        (name, vector(draw_forest(block, measure, span), f"{measure.title} of every method, {name}"))
        for name, block in questions([row for row in rows if row[measure.name] is not None])
    ]


def _sites(rows: Sequence[dict[str, Any]]) -> list[str]:
    return sorted({site for row in rows for site in row["per_site"]})


def _few_labels(points: Sequence[dict[str, Any]], measure: Measure) -> Pictures:
    pictures = []
    for recordings in dict.fromkeys(p["recordings"] for p in points):
        figure = draw_label_efficiency([p for p in points if p["recordings"] == recordings], measure)
        pictures.append(
            (recordings, vector(figure, f"{measure.title} by number of labelled training units, {recordings}"))
        )
    return pictures


def _curves(run_dir: Path | None) -> Pictures:
    """The panels of the run's curves, each a picture of its own."""
    curves = read_metrics(run_dir) if run_dir else []
    with rc_context(STYLE):
        return [("", vector(draw_curves(curves, [panel]), f"{panel} by step")) for panel in PANELS] if curves else []
