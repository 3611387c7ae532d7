"""The table of an ablation: mean and spread over seeds, and the difference to the base with the same seeds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

# Key in the scores of a run, heading of the column.
COLUMNS = {
    "auroc": "AUROC, all",
    "auroc_learned": "AUROC, learned",
    "auroc_few_labels": "few labels",
    "identification": "same person",
    "retrieval": "retrieval",
    "site": "site",
    "site_variance": "site variance",
}
DRAWN = ("auroc_learned", "auroc_few_labels", "identification", "site_variance")
UNTRAINED = "untrained"


def summarise(results: Sequence[dict[str, Any]], order: Sequence[str], base: str) -> list[dict[str, Any]]:
    """A row per variant that has a result, in the given order, and one for the base before any training.

    Args:
        results: contents of ``result.json``.
        order: names of the variants.
        base: the one that the others are compared with.

    Returns:
        Rows ``{"variant", "seeds", "scores": {key: {"mean", "sd", "n"}}, "minus_base": {...}, "minus_untrained":
        {...}}``; ``sd`` is over seeds, None for one seed. Differences are taken seed by seed; keys without a value are
        left out.
    """
    by_run = {(r["variant"], r["seed"]): r["scores"] for r in results}
    trained = {run: scores["trained"] for run, scores in by_run.items()}
    before = {run: scores["untrained"] for run, scores in by_run.items()}
    rows = []
    for name in order:
        seeds = sorted(seed for variant, seed in by_run if variant == name)
        if not seeds:
            continue
        mine = {seed: trained[name, seed] for seed in seeds}
        rows.append(
            {
                "variant": name,
                "seeds": seeds,
                "scores": _spread(list(mine.values())),
                "minus_base": _spread([_minus(mine[s], trained[base, s]) for s in seeds if (base, s) in trained]),
                "minus_untrained": _spread([_minus(mine[s], before[name, s]) for s in seeds]),
            }
        )
        if name == base:
            own = [before[name, seed] for seed in seeds]
            differences = [_minus(before[name, s], trained[name, s]) for s in seeds]
            untrained = {"variant": UNTRAINED, "seeds": seeds, "scores": _spread(own)}
            rows.append({**untrained, "minus_base": _spread(differences), "minus_untrained": {}})
    return rows


def _minus(a: dict[str, float | None], b: dict[str, float | None]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for key in COLUMNS:
        x, y = a.get(key), b.get(key)
        found[key] = None if x is None or y is None else x - y
    return found


def _spread(rows: Sequence[dict[str, float | None]]) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    for key in COLUMNS:
        values = [v for row in rows if (v := row.get(key)) is not None]
        if values:
            sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
            found[key] = {"mean": float(np.mean(values)), "sd": sd, "n": len(values)}
    return found


def _cell(value: dict[str, float | None] | None, form: str = ".3f") -> str:
    if value is None:
        return "-"
    return f"{value['mean']:{form}}" + (f" ± {value['sd']:.3f}" if value["sd"] is not None else "")


def table_lines(rows: Sequence[dict[str, Any]], markdown: bool = False) -> list[str]:
    """The scores and the difference of the learned AUROC to the base, as text or as a table of Markdown."""
    shown = [key for key in COLUMNS if any(key in row["scores"] for row in rows)]
    head = ["variant", "seeds", *(COLUMNS[key] for key in shown), "learned - base", "learned - untrained"]
    body = [
        [
            row["variant"],
            str(len(row["seeds"])),
            *(_cell(row["scores"].get(key)) for key in shown),
            _cell(row["minus_base"].get("auroc_learned"), "+.3f"),
            _cell(row["minus_untrained"].get("auroc_learned"), "+.3f"),
        ]
        for row in rows
    ]
    if markdown:
        return ["| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *body]]
    widths = [max(len(line[k]) for line in [head, *body]) for k in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [head, *body]]


def draw(rows: Sequence[dict[str, Any]], chance: dict[str, float]) -> Figure:
    """A panel per score, a line per variant: mean and standard deviation over seeds; dashed: chance."""
    shown = [key for key in DRAWN if any(key in row["scores"] for row in rows)]
    figure = Figure(figsize=(3.2 * len(shown) + 1.5, 0.28 * len(rows) + 1.2), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    place = np.arange(len(rows))
    for axes, key in zip(panels, shown, strict=True):
        found = [row["scores"].get(key) or {"mean": np.nan, "sd": None} for row in rows]
        sd = [f["sd"] or 0.0 for f in found]
        axes.errorbar([f["mean"] for f in found], place, xerr=sd, fmt="o", ms=4, color="#2c6fbb", capsize=2)
        if key in chance:
            axes.axvline(chance[key], color="0.6", ls="--", lw=1)
        axes.axvline(found[0]["mean"], color="#2c6fbb", lw=0.5)
        axes.set(title=COLUMNS[key], yticks=place, yticklabels=[row["variant"] for row in rows])
        axes.grid(axis="x", lw=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    return figure
