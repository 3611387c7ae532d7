"""The tables of an ablation: mean and spread over seeds, and the difference to the base with the same seeds.

Few seeds say little about the spread of one difference, so what is told apart from zero is judged by all variants
together: see :func:`least_differences`.

Shape letters: V variants, S seeds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t as student

from mcsp.schema import MODALITIES

# Key in the scores of a run, heading of the column. With two modalities there is also <key>_<modality>.
COLUMNS = {
    "auroc": "AUROC, all",
    "auroc_pooled": "all, pooled",
    "auroc_learned": "AUROC, learned",
    "auroc_learned_pooled": "learned, pooled",
    "auroc_few_labels": "few labels",
    "identification": "same person",
    "retrieval": "retrieval",
    "site": "site",
    "site_variance": "site variance",
}
PARTS = {"": "all recordings"} | {f"_{modality}": f"{modality} alone" for modality in MODALITIES}
DRAWN = ("auroc_learned", "auroc_learned_pooled", "auroc_few_labels", "identification", "retrieval", "site_variance")
UNTRAINED = "untrained"
LEVEL = 0.05  # of one wrong mark in a column
Scores = dict[str, float | None]
Spread = dict[str, dict[str, float | None]]


def summarise(results: Sequence[dict[str, Any]], order: Sequence[str], base: str) -> list[dict[str, Any]]:
    """A row per variant that has a result, in the given order, and one for the base before any training.

    Args:
        results: contents of ``result.json``.
        order: names of the variants.
        base: the one that the others are compared with.

    Returns:
        Rows ``{"variant", "seeds", "scores": {key: {"mean", "sd", "se", "n"}}, "minus_base": {...}, "minus_untrained":
        {...}}``; ``sd`` is over seeds and ``se`` of the mean over them, None for one seed. Differences are taken seed
        by seed; keys without a value are left out. The base has ``"least_difference": {key: value}`` as well.
    """
    by_run = {(r["variant"], r["seed"]): r["scores"] for r in results}
    trained = {run: scores["trained"] for run, scores in by_run.items()}
    before = {run: scores["untrained"] for run, scores in by_run.items()}
    rows = []
    for name in order:
        seeds = sorted(seed for variant, seed in by_run if variant == name)
        if not seeds:
            continue
        of_variant = {seed: trained[name, seed] for seed in seeds}
        rows.append(
            {
                "variant": name,
                "seeds": seeds,
                "scores": _spread(list(of_variant.values())),
                "minus_base": _spread([_minus(of_variant[s], trained[base, s]) for s in seeds if (base, s) in trained]),
                "minus_untrained": _spread([_minus(of_variant[s], before[name, s]) for s in seeds]),
            }
        )
        if name == base:
            rows[-1]["least_difference"] = least_differences(trained, seeds)
            own = [before[name, seed] for seed in seeds]
            differences = [_minus(before[name, s], trained[name, s]) for s in seeds]
            untrained = {"variant": UNTRAINED, "seeds": seeds, "scores": _spread(own)}
            rows.append({**untrained, "minus_base": _spread(differences), "minus_untrained": {}})
    return rows


def least_differences(trained: Mapping[tuple[str, int], Scores], seeds: Sequence[int]) -> dict[str, float]:
    """How far from the base a mean over ``seeds`` must be to be told apart from no difference, by key.

    Of a two-way layout without interaction (variants, seeds) with the variants that have all seeds: the residual's
    standard deviation is one for all variants, and Student's quantile is at ``LEVEL`` shared out among the differences
    to the base (Bonferroni). Keys with fewer than two variants or seeds are left out.
    """
    names = [v for v in dict.fromkeys(variant for variant, _ in trained) if all((v, s) in trained for s in seeds)]
    found = {}
    for key in _keys():
        table = [[trained[name, seed].get(key) for seed in seeds] for name in names]
        x_VS = np.array([row for row in table if None not in row], dtype=float)
        if x_VS.ndim < 2 or min(x_VS.shape) < 2:
            continue
        left_VS = x_VS - x_VS.mean(1, keepdims=True) - x_VS.mean(0) + x_VS.mean()
        freedom = (x_VS.shape[0] - 1) * (x_VS.shape[1] - 1)
        deviation = float(np.sqrt((left_VS**2).sum() / freedom))
        quantile = float(student.ppf(1 - LEVEL / 2 / (x_VS.shape[0] - 1), freedom))
        found[key] = quantile * deviation * (2 / x_VS.shape[1]) ** 0.5
    return found


def _keys() -> list[str]:
    return [key + part for part in PARTS for key in COLUMNS]


def _minus(a: Scores, b: Scores) -> Scores:
    return {key: x - y for key in a if (x := a[key]) is not None and (y := b.get(key)) is not None}


def _spread(rows: Sequence[Scores]) -> Spread:
    found: Spread = {}
    for key in _keys():
        values = [v for row in rows if (v := row.get(key)) is not None]
        if values:
            sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
            se = sd / len(values) ** 0.5 if sd is not None else None
            found[key] = {"mean": float(np.mean(values)), "sd": sd, "se": se, "n": len(values)}
    return found


def markdown(rows: Sequence[dict[str, Any]], base: str) -> str:
    """For all recordings, and for each modality alone where there are two: the scores, then differences to the base.

    A star marks a difference that is told apart from none, of variants with all seeds of the base.
    """
    (own,) = [row for row in rows if row["variant"] == base]
    least, n_seeds = own.get("least_difference", {}), len(own["seeds"])
    blocks = []
    for part, title in PARTS.items():
        shown = [key for key in COLUMNS if any(key + part in row["scores"] for row in rows)]
        if not shown:
            continue
        head = ["variant", "seeds", *(COLUMNS[key] for key in shown)]
        scores = [
            [row["variant"], str(len(row["seeds"])), *(_cell(row["scores"].get(key + part), "sd") for key in shown)]
            for row in rows
        ]
        blocks += [f"{title}: mean ± sd over seeds", _table(head, scores)]
        minus = [
            [row["variant"], str(max(value["n"] for value in of.values()))]
            + [_cell(of.get(key + part), "se", "+.3f", star.get(key + part)) for key in shown]
            for row in rows
            if row["variant"] != base and (of := row["minus_base"])
            for star in [least if len(row["seeds"]) == n_seeds and row["variant"] != UNTRAINED else {}]
        ]
        if minus:
            if any(key + part in least for key in shown):
                beyond = [f"{least[key + part]:.3f}" if key + part in least else "-" for key in shown]
                minus.append(["*: beyond", "", *beyond])
            blocks += [f"{title}: minus {base}, mean ± standard error over seeds", _table(head, minus)]
    return "\n\n".join(blocks)


def _cell(
    value: dict[str, float | None] | None, spread: str, form: str = ".3f", star_beyond: float | None = None
) -> str:
    if value is None or (mean := value["mean"]) is None:
        return "-"
    star = " *" if star_beyond is not None and abs(mean) > star_beyond else ""
    return f"{mean:{form}}" + (f" ± {value[spread]:.3f}" if value[spread] is not None else "") + star


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[k]) for line in [head, *body]) for k in range(len(head))]
    lines = [head, ["-" * width for width in widths], *body]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)


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
