"""The evaluation for a reader: one HTML file that needs nothing else, and tables for the terminal."""

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from mcsp.schema import Modality

_MARKERS = "os^Dv<>P*X"
_COLOURS = ("#2c6fbb", "#d1495b")

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>MCSP evaluation: {label}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1.2rem; }}
h1 {{ font-size: 1.6rem; margin-bottom: .2rem; }} h2 {{ font-size: 1.15rem; margin: 2.2rem 0 .5rem; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem; }}
th, td {{ text-align: left; padding: .35rem .7rem; border-bottom: 1px solid #e3e3e3; vertical-align: top; }}
th {{ font-weight: 600; background: #f6f7f9; }} td.n, th.n {{ text-align: right; white-space: nowrap; }}
tr.first td {{ border-top: 2px solid #c9ced6; }}
img {{ max-width: 100%; }} p.small, footer {{ color: #666; font-size: .87rem; }}
.notice {{ background: #fff6dd; border-left: 4px solid #e0a800; padding: .6rem 1rem; }}
</style></head><body>
<h1>MCSP evaluation: {label}</h1>
{body}
<footer><p>{footer}</p></footer>
</body></html>
"""


_PROBE_TEXT = """
<p>Logistic regression on frozen features, {folds} folds grouped by subject, {seeds} seeds, the same folds for every
row of a block; the penalty is chosen inside the training folds. The interval is a bootstrap over subjects; it does
not hold the spread that another pretraining run would add. Pretraining used no labels, but {seen} of the {subjects}
subjects were in its training split; “unseen subjects” scores the {unseen} others only. “Site AUROC” is the same probe
asked for the site instead of the label: near 1 means that the features carry the scanner, so groups must not differ
by site.</p>
<p>A gain over <i>random initialisation</i> is what pretraining adds; a gain over <i>classical</i> (connectivity of
BOLD, band power of EEG) is what makes it worth having. Where the intervals overlap widely, these data do not decide.
The model's features hold connectivity that needs no weights, so random initialisation is a strong baseline
already.</p>
"""
_RETRIEVAL_TEXT = """
<p>Each EEG window ranks the BOLD windows of its draw by cosine similarity, mean over domains; sites: {sites}. Windows
of one subject do not overlap in time and may be candidates together. “Same subject” counts a hit on any window of the
right subject. With candidates from all sites a model can gain by knowing the site; “one site” takes that away.
“Before” is the same architecture with random weights.</p>
"""


def write_report(
    path: Path,
    results: dict[str, Any],
    features: dict[Modality, np.ndarray],
    y_N: np.ndarray,
    sites: Sequence[str],
    run_dir: Path | None,
) -> None:
    """Write ``report.html``.

    Args:
        path: the file.
        results: content of ``results.json``.
        features: pretrained features ``(N, F)`` per modality, for the picture; rows of NaN where missing.
        y_N: labels 0 or 1.
        sites: of each sample.
        run_dir: a pretraining run whose ``metrics.jsonl`` is drawn; None for no curves.
    """
    sections = [_introduction(results), _probe_section(results), _retrieval_section(results)]
    curves = read_curves(run_dir) if run_dir else []
    if curves:
        sections.append("<h2>Pretraining</h2>" + _image(draw_curves(curves), "loss, contrast and retrieval by step"))
    picture = draw_embedding(features, y_N, sites, results["label"]["classes"])
    sections.append(
        "<h2>Features</h2><p>First two principal components of the pretrained features, one mark per sample. Colour is "
        "the label, which pretraining never saw; the mark's shape is the site.</p>"
        + _image(picture, "features by label and site")
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in results["notes"])
    sections.append(f"<h2>Notes</h2><ul>{notes}</ul>" if notes else "")
    used = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    footer = f"{html.escape(used)}. Corpus {results['corpus_index_hash'][:12]}. Every number is in results.json."
    path.write_text(_PAGE.format(label=html.escape(results["label"]["name"]), body="\n".join(sections), footer=footer))


def _introduction(results: dict[str, Any]) -> str:
    label, sites = results["label"], results["sites"]
    classes = " and ".join(f"{n} {html.escape(c)}" for c, n in zip(label["classes"], label["samples"], strict=True))
    names = ", ".join(f"{s} ({v['samples']}{', simulated' if v['simulated'] else ''})" for s, v in sites.items())
    simulated = [s for s, v in sites.items() if v["simulated"]]
    notice = ""
    if simulated:
        part = "All labelled samples are" if len(simulated) == len(sites) else f"{html.escape(', '.join(simulated))}:"
        notice = (
            f'<p class="notice"><b>{part} simulated.</b> They come from a generator with a known link between the '
            "modalities and the label. The numbers show that the method and the code find what was put in; they say "
            "nothing about any disorder.</p>"
        )
    return (
        f"<p>Samples: {classes}, of {results['subjects']} subjects. Sites: {html.escape(names)}. Model: size "
        f"{results['model']['config']['size']}, {results['model']['parameters']:,} parameters, frozen.</p>{notice}"
    )


def _probe_section(results: dict[str, Any]) -> str:
    config, site = results["config"], {(s["modalities"], s["features"]): s["auroc"] for s in results["site_probes"]}
    rows, previous = [], None
    for p in results["probes"]:
        cells = [
            p["modalities"],
            p["features"],
            f"{p['auroc']:.3f} ± {p['sd']:.3f}",
            f"{p['ci_low']:.3f} to {p['ci_high']:.3f}",
            _number(p["auroc_unseen"]),
            _number(site.get((p["modalities"], p["features"]))),
            f"{p['n_subjects']}",
        ]
        rows.append(_row(cells, n_text=2, first=p["modalities"] != previous))
        previous = p["modalities"]
    head = ("recordings", "features", "AUROC ± sd", "95 % interval", "unseen subjects", "site AUROC", "subjects")
    seen, subjects = results["subjects_seen_in_pretraining"], results["subjects"]
    return (
        "<h2>Classification from frozen features</h2>"
        + _table(head, rows, n_text=2)
        + _PROBE_TEXT.format(
            folds=config["folds"], seeds=config["seeds"], seen=seen, unseen=subjects - seen, subjects=subjects
        )
    )


def _retrieval_section(results: dict[str, Any]) -> str:
    if not results["retrieval"]:
        return ""
    rows, previous = [], None
    for r in results["retrieval"]:
        block = (r["subjects_of"], r["candidates_from"])
        cells = [
            *block,
            "after pretraining" if r["model"] == "pretrained" else "before",
            f"{r['top1']:.3f} ± {r['sd']:.3f}",
            f"{r['chance']:.3f}",
            f"{r['top1_subject']:.3f}",
            f"{r['chance_subject']:.3f}",
            f"{r['candidates']}",
            f"{r['windows']}",
        ]
        rows.append(_row(cells, n_text=3, first=block != previous))
        previous = block
    head = (
        "subjects",
        "from",
        "model",
        "top-1 ± sd",
        "chance",
        "same subject",
        "chance",
        "candidates",
        "windows",
    )
    sites = results["retrieval"][0]["simulated"]
    names = ", ".join(html.escape(f"{s} (simulated)" if simulated else s) for s, simulated in sites.items())
    return (
        "<h2>Which BOLD window belongs to this EEG window?</h2>"
        + _table(head, rows, n_text=3)
        + _RETRIEVAL_TEXT.format(sites=names)
    )


def _row(cells: Sequence[str], n_text: int, first: bool) -> str:
    inner = "".join(f"<td{'' if i < n_text else ' class=n'}>{html.escape(c)}</td>" for i, c in enumerate(cells))
    return f"<tr{' class=first' if first else ''}>{inner}</tr>"


def _table(head: Sequence[str], rows: Sequence[str], n_text: int) -> str:
    cells = "".join(f"<th{'' if i < n_text else ' class=n'}>{html.escape(c)}</th>" for i, c in enumerate(head))
    return f"<table><tr>{cells}</tr>{''.join(rows)}</table>"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def read_curves(run_dir: Path) -> list[dict[str, float]]:
    """Lines of ``metrics.jsonl``; empty where there is none. A last line cut off by a crash is left out."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    curves = []
    for line in lines:
        try:
            curves.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return curves


def draw_curves(curves: Sequence[dict[str, float]]) -> Figure:
    """Loss, the contrast of each pair, and the retrieval within the batch, by step."""
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    steps = [line["step"] for line in curves]
    names = sorted({name for line in curves for name in line})
    contrast = [n for n in names if n.startswith("loss/") and n.count("/") == 2]
    top1 = [n for n in names if n.startswith("top1/") and "-" in n.split("/")[1]]
    panels = (("loss", ["loss"]), ("contrast per pair", contrast), ("top-1 across modalities, in the batch", top1))
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


def draw_embedding(
    features: dict[Modality, np.ndarray], y_N: np.ndarray, sites: Sequence[str], classes: Sequence[str]
) -> Figure:
    """Two principal components of the standardised features per modality; colour by label, mark by site."""
    figure = Figure(figsize=(5.6 * max(len(features), 1), 4.4), layout="constrained")
    names = sorted(set(sites))
    panels = figure.subplots(1, max(len(features), 1), squeeze=False)[0]
    for axes, (modality, x_NF) in zip(panels, features.items(), strict=False):
        rows = np.flatnonzero(np.isfinite(x_NF).all(axis=1))
        if len(rows) < 2:
            continue
        place_N2 = PCA(2, svd_solver="full").fit_transform(StandardScaler().fit_transform(x_NF[rows]))
        for k, site in enumerate(names):
            for y, name in enumerate(classes):
                chosen = [n for n, i in enumerate(rows.tolist()) if sites[i] == site and y_N[i] == y]
                marks = {"marker": _MARKERS[k % len(_MARKERS)], "c": _COLOURS[y], "s": 26, "alpha": 0.75, "lw": 0}
                axes.scatter(*place_N2[chosen].T, label=f"{name}, {site}", **marks)
        axes.set(title=modality, xlabel="component 1", ylabel="component 2")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False)
    return figure


def _image(figure: Figure, alternative: str) -> str:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    content = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alternative)}" src="data:image/png;base64,{content}">'


def terminal_table(results: dict[str, Any]) -> str:
    """The scores as plain text."""
    simulated = [s for s, v in results["sites"].items() if v["simulated"]]
    lines = [f"{'recordings':<12}{'features':<26}{'AUROC':>7}{'sd':>7}   95 % interval"]
    lines += [
        f"{p['modalities']:<12}{p['features']:<26}{p['auroc']:>7.3f}{p['sd']:>7.3f}   "
        f"{p['ci_low']:.3f} to {p['ci_high']:.3f}"
        for p in results["probes"]
    ]
    if results["retrieval"]:
        lines += ["", f"{'retrieval of':<14}{'candidates':<18}{'model':<26}{'top-1':>7}{'chance':>8}"]
    for r in results["retrieval"]:
        candidates = f"{r['candidates']} of {r['candidates_from']}"
        lines.append(f"{r['subjects_of']:<14}{candidates:<18}{r['model']:<26}{r['top1']:>7.3f}{r['chance']:>8.3f}")
    if simulated:
        lines += ["", f"simulated sites: {', '.join(simulated)}"]
    return "\n".join(lines + [f"note: {note}" for note in results["notes"]])
