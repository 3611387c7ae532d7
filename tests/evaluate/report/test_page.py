"""The page says what the rows of results.json hold, of two classes, of several and of a number.

Covers: mcsp/evaluate/report/page.py, mcsp/evaluate/report/page.py, mcsp/evaluate/report/tables.py
"""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

from mcsp.evaluate.report.page import draw_forest, write_report
from mcsp.evaluate.report.tables import MEASURES, terminal_table
from tests.evaluate.report.results import estimate, evaluation


def written(path: Path, results: dict[str, Any], y_N: np.ndarray) -> str:
    sites = [next(iter(results["sites"]))] * len(y_N)
    labelled = SimpleNamespace(y_N=y_N, sites=sites, classes=results["label"]["classes"])
    features = {"eeg": np.random.default_rng(0).normal(size=(len(y_N), 5))}
    write_report(path, results, features, labelled, None)  # type: ignore[arg-type]
    return path.read_text()


def text_of(page: str) -> str:
    body = re.sub("(?s)<style.*?</style>", "", page)
    return " ".join(re.sub("<[^>]*>", " ", body).split())


def test_several_classes_have_their_confusion_and_no_sensitivity(tmp_path: Path) -> None:
    results = evaluation("name")
    results["label"] |= {
        "classes": ["low", "middle", "high"],
        "units": [2, 3, 4],
        "kind": "classes",
        "measure": "auroc",
    }
    for row in results["classification"]:
        for name in ("roc", "roc_low", "roc_high"):
            del row[name]
        row |= {
            "sensitivity": None,
            "specificity": None,
            "accuracy": 0.625,
            "confusion": [[2, 0, 0], [1, 2, 0], [0, 1, 3]],
        }
    said = text_of(written(tmp_path / "report.html", results, np.arange(9) % 3))
    assert "2 low, 3 middle and 4 high" in said and "mean over classes, each against the rest" in said
    assert "ROC curves" not in said and "sensitivity" not in said and "accuracy" in said and "0.625" in said
    assert "label low middle high low 2 0 0 middle 1 2 0 high 0 1 3" in said


def test_a_number_is_judged_by_r2_against_the_mean(tmp_path: Path) -> None:
    results = evaluation("name")
    results["label"] |= {
        "name": "age", "classes": [], "units": [8], "kind": "number", "measure": "r2", "least": 20.0, "largest": 80.0,
        "mean": 44.5, "sd": 12.0,
    }  # fmt: skip
    results["label_efficiency"] = [{**p, "r2": p.pop("auroc")} for p in results["label_efficiency"]]
    for row in results["classification"]:
        for name in ("auroc", "auroc_sites", "auroc_centred", "auroc_unseen", "roc", "roc_low", "roc_high", "brier"):
            del row[name]
        row |= {"classifier": "ridge", "r2": estimate(0.31), "r_sites": estimate(0.52), "mae": estimate(6.25)}
        if "pretrained_minus_this" in row:
            row["pretrained_minus_this"] = {"r2": estimate(0.2)}
    said = text_of(written(tmp_path / "report.html", results, np.linspace(20, 80, 8)))
    assert "8 numbers, 20 to 80, mean 44.5 ± 12" in said
    assert "has an R² of 0.31 in 1 question" in said and "scores higher in 1 of 1" in said
    assert "0.310 (0.210 to 0.410)" in said and "0.520 (0.420 to 0.620)" in said and "6.250" in said
    assert "have to be near 0.0" in said and "AUROC 0." not in said and "Transductive" not in said
    assert "R² (95 % interval over subjects)" in terminal_table(results)


def test_an_unknown_overlap_is_a_warning(tmp_path: Path) -> None:
    results = evaluation("name")
    page = written(tmp_path / "report.html", {**results, "overlap": "OVERLAP NOT CHECKED: why"}, np.arange(8) // 4)
    assert '<p class="notice"><b>OVERLAP NOT CHECKED: why</b>' in page
    page = written(tmp_path / "report.html", {**results, "subjects_seen_in_pretraining": 0}, np.arange(8) // 4)
    assert "<p>name</p>" in page


def test_the_line_of_chance_crosses_no_name() -> None:
    rows = [
        {**row, "features": "root of connectivity, denoised", "auroc": {"value": 0.6, "ci_low": 0.3, "ci_high": 0.8}}
        for row in 3 * evaluation("name")["classification"][:1]
    ]
    figure = draw_forest(rows, MEASURES["auroc"], (0.2, 1.0))
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    names = [text.get_window_extent() for text in axes.texts]
    (chance,) = axes.collections
    pieces = [Bbox(axes.transData.transform(piece)) for piece in chance.get_segments()]  # type: ignore[attr-defined]
    assert len(pieces) == 3 and names[0].x0 < pieces[0].x0 < names[0].x1, "a whole line would cross the name"
    assert not any(piece.y0 < name.y1 and name.y0 < piece.y1 for piece in pieces for name in names)
