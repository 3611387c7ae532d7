"""The evaluation for a reader: one HTML file that needs nothing else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context

from mcsp.evaluate.report.figures import STYLE, draw_embedding, draw_forest, draw_label_efficiency, draw_roc, vector
from mcsp.evaluate.report.tables import Measure, limits, measure_of, permutation_lines, questions, verdict
from mcsp.evaluate.units import Labelled
from mcsp.export.curves import PANELS, draw_curves
from mcsp.output import write_whole
from mcsp.page import render
from mcsp.run_log import read_metrics
from mcsp.schema import Modality

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
