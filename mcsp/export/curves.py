"""The training curves of a run as one picture, for its card and for the evaluation's report."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure


def draw_curves(curves: Sequence[dict[str, float]]) -> Figure:
    """Loss, the contrast of each pair, and the retrieval within the batch, by step."""
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    steps = [line["step"] for line in curves]
    names = sorted({name for line in curves for name in line})
    contrast = [n for n in names if n.startswith("loss/") and n.count("/") == 2]
    every = [n for n in names if n.startswith("top1/")]
    across = [n for n in every if "-" in n.split("/")[1]]
    found = ("top-1 across modalities, in the batch", across) if across else ("top-1 in the batch", every)
    panels = (("loss", ["loss"]), ("contrast per pair", contrast), found)
    for axes, (title, shown) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.set_prop_cycle(color=colormaps["tab20"](np.arange(20)))
        for name in shown:
            values = [line.get(name, np.nan) for line in curves]
            axes.plot(steps, values, lw=1, label=name.split("/", 1)[-1])
        axes.set(title=title, xlabel="step")
        axes.spines[["top", "right"]].set_visible(False)
        if len(shown) > 1:
            axes.legend(fontsize=6, frameon=False, ncols=1, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
