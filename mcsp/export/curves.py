"""The training curves of a run as one picture, for its card and for the evaluation's report.

Shape letters: S logged steps.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from mcsp.page import COLOURS, MARKERS

# How the names of the terms (loss/<modalities>/<domains>, loss/<kind>/...) fall into kinds, in the order of the method.
KINDS = ("two views", "two domains", "two modalities", "distillation", "convergence", "prediction")
PANELS = ("loss", "loss, mean of terms", "top-1 retrieval in the batch")
SET_ASIDE = "validation/"


def kind_of(term: str) -> str:
    """``"eeg/spatial" -> "two views"``; the first part of a longer name is its kind."""
    first, *rest = term.split("/")
    if len(rest) > 1:
        return first
    return "two modalities" if "-" in first else "two domains" if "-" in rest[0] else "two views"


def by_kind(columns: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Mean ``(S,)`` over the terms of each kind of the columns that start with ``prefix``, with their number."""
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    for name, value_S in columns.items():
        if name.startswith(prefix):
            found.setdefault(kind_of(name.removeprefix(prefix)), []).append(value_S)
    return {f"{kind} ({len(values)})": np.mean(values, axis=0) for kind, values in found.items() if values}


def as_columns(lines: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """Every quantity ``(S,)`` of the lines of metrics.jsonl, NaN where a line has none."""
    return {name: np.array([line.get(name, np.nan) for line in lines]) for name in sorted(set().union(*lines))}


def draw_curves(curves: Sequence[Mapping[str, float]], panels: Sequence[str] = PANELS) -> Figure:
    """Loss in training and for people set aside, its kinds of terms, and the retrieval within the batch, by step."""
    columns = as_columns(curves)
    series = {
        PANELS[0]: {
            k: columns[n] for k, n in (("training", "loss"), ("set aside", f"{SET_ASIDE}loss")) if n in columns
        },
        PANELS[1]: by_kind(columns, "loss/"),
        PANELS[2]: by_kind(columns, "top1/"),
    }
    figure = Figure(figsize=(3.7 * len(panels), 3.2), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for k, (name, value_S) in enumerate(series[panel].items()):
            made = np.isfinite(value_S)
            style = {"marker": MARKERS[k % len(MARKERS)] if made.sum() < 20 else "", "ms": 3, "lw": 1.2}
            axes.plot(columns["step"][made], value_S[made], color=COLOURS[k % len(COLOURS)], label=name, **style)
        axes.set(title=panel, xlabel="step")
        axes.spines[["top", "right"]].set_visible(False)
        if len(series[panel]) > 1:
            axes.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return figure
