"""Pictures of the evaluation report.

Shape letters: N units, F features.
"""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from mcsp.evaluate.methods import MAIN, PRETRAINED, UNTRAINED
from mcsp.schema import Modality

_MARKERS = "os^Dv<>P*X"
_COLOURS = ("#2c6fbb", "#d1495b")
PROTOCOL_NAMES = {"kfold": "new subjects", "leave_site_out": "subjects of a site left out"}


def draw_embedding(
    features: dict[Modality, np.ndarray], y_N: np.ndarray, sites: Sequence[str], classes: Sequence[str]
) -> Figure:
    """Two principal components of the standardised features per modality; colour by label, mark by site."""
    figure = Figure(figsize=(5.6 * max(len(features), 1), 4.9), layout="constrained")
    names = sorted(set(sites))
    panels = figure.subplots(1, max(len(features), 1), squeeze=False)[0]
    for axes, (modality, x_NF) in zip(panels, features.items(), strict=False):
        rows = np.flatnonzero(np.isfinite(x_NF).all(axis=1))
        if len(rows) < 2:
            continue
        place_N2 = PCA(2, svd_solver="full").fit_transform(StandardScaler().fit_transform(x_NF[rows]))
        for k, site in enumerate(names):
            for y in range(len(classes)):
                chosen = [n for n, i in enumerate(rows.tolist()) if sites[i] == site and y_N[i] == y]
                marks = {"marker": _MARKERS[k % len(_MARKERS)], "c": _COLOURS[y], "s": 26, "alpha": 0.75, "lw": 0}
                axes.scatter(*place_N2[chosen].T, **marks)
        axes.set(title=modality, xlabel="component 1", ylabel="component 2")
        axes.spines[["top", "right"]].set_visible(False)
    # More sites than marks: marks repeat, and a list of them would cover the picture.
    shown = [(c, "o", colour) for c, colour in zip(classes, _COLOURS, strict=True)]
    shown += [(site, _MARKERS[k], "#777") for k, site in enumerate(names)] if len(names) <= len(_MARKERS) else []
    handles = [Line2D([], [], marker=m, color=colour, lw=0, label=name) for name, m, colour in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=2 * len(panels), fontsize=8, frameon=False)
    return figure


def image(figure: Figure, alternative: str) -> str:
    """An HTML image that holds its own bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    content = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alternative)}" src="data:image/png;base64,{content}">'


def draw_roc(rows: Sequence[dict[str, Any]]) -> Figure:
    """ROC curves: one panel per protocol and recordings, one line per method; bands: 95 %, of both encoders."""
    panels = list(dict.fromkeys((row["protocol"], row["recordings"]) for row in rows))
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    most = max(sum((r["protocol"], r["recordings"]) == panel for r in rows) for panel in panels)
    figure = Figure(figsize=(4.4 * columns, (4.9 + 0.22 * most) * lines), layout="constrained")
    axes_list = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, panel in zip(axes_list, panels, strict=False):
        for k, row in enumerate(r for r in rows if (r["protocol"], r["recordings"]) == panel):
            label = f"{row['features']}, {row['classifier']} {row['auroc']['value']:.2f}"
            plain = row["features"] == PRETRAINED and row["classifier"] == MAIN.name
            style = {"lw": 2.2 if plain else 1.1, "color": colormaps["tab20"](k)}
            grid = np.linspace(0, 1, len(row["roc"]))
            axes.plot(grid, row["roc"], label=label, **style)
            if row["features"] in (PRETRAINED, UNTRAINED) and row["classifier"] == MAIN.name:
                axes.fill_between(grid, row["roc_low"], row["roc_high"], color=style["color"], alpha=0.13, lw=0)
        axes.plot([0, 1], [0, 1], color="#bbb", lw=0.8, ls="--")
        axes.set(
            title=f"{panel[1]}, {PROTOCOL_NAMES[panel[0]]}", xlabel="1 - specificity", ylabel="sensitivity", aspect=1
        )
        axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14))
        axes.spines[["top", "right"]].set_visible(False)
    for axes in axes_list[len(panels) :]:
        axes.set_visible(False)
    return figure


def draw_label_efficiency(points: Sequence[dict[str, Any]]) -> Figure:
    """AUROC over the mean number of labelled training units, one panel per kind of recordings."""
    panels = list(dict.fromkeys(p["recordings"] for p in points))
    figure = Figure(figsize=(4.6 * len(panels), 3.6), layout="constrained")
    for axes, recordings in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        of_panel = [p for p in points if p["recordings"] == recordings]
        for features in dict.fromkeys(p["features"] for p in of_panel):
            curve = [p for p in of_panel if p["features"] == features]
            n, mean, sd = np.array([(p["training_units"], p["auroc"], p["sd"]) for p in curve]).T
            axes.errorbar(n, mean, sd, marker="o", ms=3, lw=2 if features == PRETRAINED else 1.1, label=features)
        axes.axhline(0.5, color="#bbb", lw=0.8, ls="--")
        axes.set(
            title=recordings, xlabel="labelled training units", ylabel="AUROC, mean and sd over seeds", xscale="log"
        )
        axes.set_xticks(n, [f"{units:.0f}" for units in n])
        axes.minorticks_off()
        axes.legend(fontsize=7, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
