"""The evaluation for a reader: one HTML file that needs nothing else."""

import html
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mcsp.evaluate.report.figures import PROTOCOL_NAMES, draw_embedding, draw_label_efficiency, draw_roc, image
from mcsp.evaluate.report.tables import interval, limits, number, permutation_lines, summary_lines, value
from mcsp.evaluate.units import Labelled
from mcsp.export.curves import draw_curves
from mcsp.run_log import read_metrics
from mcsp.schema import Modality

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1.2rem; }}
h1 {{ font-size: 1.6rem; margin-bottom: .2rem; }} h2 {{ font-size: 1.15rem; margin: 2.2rem 0 .5rem; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem; }}
th, td {{ text-align: left; padding: .35rem .7rem; border-bottom: 1px solid #e3e3e3; vertical-align: top; }}
th {{ font-weight: 600; background: #f6f7f9; }} td.n, th.n {{ text-align: right; }} .i {{ white-space: nowrap; }}
tr.block td {{ border-top: 2px solid #c9ced6; font-weight: 600; }}
.wide {{ overflow-x: auto; }} h3 {{ font-size: 1rem; }}
td .i {{ color: #666; font-size: .9em; }}
.dense table {{ font-size: .84rem; }} .dense td, .dense th {{ padding: .3rem .45rem; }}
img {{ max-width: 100%; }} p.small, footer {{ color: #666; font-size: .87rem; }}
@media (max-width: 60rem) {{
table {{ font-size: .84rem; }} th, td {{ padding: .3rem .35rem; }} .dense .i {{ white-space: normal; }} }}
.notice {{ background: #fff6dd; border-left: 4px solid #e0a800; padding: .6rem 1rem; }}
</style></head><body>
<h1>{title}</h1>
{body}
<footer><p>{footer}</p></footer>
</body></html>
"""


_METHOD_TEXT = """
<p>Features stay as they are; the classifier and every mean or covariance it needs are fitted on training subjects
only, with one fixed penalty. <b>New subjects</b>: {folds} folds grouped by subject, {seeds}. <b>Subjects of a site left
out</b>: trained on all other sites. All methods of a block share units and folds (digests are in results.json).
AUROC pools the units of all test parts; brackets are 95 % bootstrap intervals over subjects and do not hold the spread
that another pretraining run would add. “Within sites” is the mean over sites of the AUROC inside a site, which a
difference between sites cannot raise. “Pretrained minus this” is paired: both methods on the same draws of subjects.
Sensitivity and specificity, below, are for “{positive}” at the classifier's own threshold.</p>
<p>The untrained encoder has the same architecture and read-out with random weights: the gain over it is what
pretraining learned. Its features hold measured ones (connectivity, band power) that need no weights, so it is a strong
baseline already. The rows called “learned part” leave them out; there the untrained encoder is compared with the
pretrained one's learned part. All other rows are rulers. “Root of connectivity” is the square root of the correlation
matrix; “denoised” is the same after a ridge from one half of each recording to the other, which needs no labels.</p>
"""
_TRANSDUCTIVE_TEXT = """
<p><b>Transductive:</b> what follows looks at unlabelled subjects of the tested site together, so it is not what a
single new person would get. “Site-centred” features had their site's mean subtracted before the classifier was fitted.
The last column is for the scores of a method after each site's own mean score was subtracted.</p>
"""
_RETRIEVAL_TEXT = """
<p>Each EEG window ranks the BOLD windows of its draw by cosine similarity, mean over domains; sites: {sites}. Windows
of one subject do not overlap in time and may be candidates together. “Same subject” counts a hit on any window of the
right subject. With candidates from all sites a model can gain by knowing the site; “one site” takes that away.
“Before” is the same architecture with random weights. The other rows are controls: what finds windows with the EEG of
somebody else, or with the time alone, is a schedule and not a brain.</p>
"""


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
    rows = [row for row in results["classification"] if not row["transductive"]]
    sections = [_introduction(results), _summary(results), _classification_section(results, rows)]
    if rows:
        sections.append(image(draw_roc(rows), "ROC curves of every method, by protocol and recordings"))
        sections += [_detail_section(results, rows), _site_section(rows)]
        sections.append(_transductive_section(results["classification"]))
    if results["label_efficiency"]:
        sections.append(
            "<h2>How many labels are needed</h2><p>Only a part of the training subjects has labels; folds as for new "
            "subjects.</p>"
            + image(draw_label_efficiency(results["label_efficiency"]), "AUROC by number of labelled training units")
        )
    sections.append(_retrieval_section(results))
    curves = read_metrics(run_dir) if run_dir else []
    if curves:
        sections.append("<h2>Pretraining</h2>" + image(draw_curves(curves), "loss, contrast and retrieval by step"))
    picture = draw_embedding(features, labelled.y_N, labelled.sites, labelled.classes)
    sections.append(
        "<h2>Features</h2><p>First two principal components of the pretrained features, one mark per unit. Colour is "
        "the label, which pretraining never saw; the mark's shape is the site.</p>"
        + image(picture, "features by label and site")
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in results["notes"])
    sections.append(f"<h2>Notes</h2><ul>{notes}</ul>" if notes else "")
    used = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    title = f"MCSP evaluation: {html.escape(results['label']['name'])}"
    footer = f"{html.escape(used)}. Corpus {results['corpus_index_hash'][:12]}. Every number is in results.json."
    path.write_text(PAGE.format(title=title, body="\n".join(sections), footer=footer))


def _introduction(results: dict[str, Any]) -> str:
    label, sites = results["label"], results["sites"]
    classes = " and ".join(f"{n} {html.escape(c)}" for c, n in zip(label["classes"], label["units"], strict=True))
    names = ", ".join(f"{s} ({v['units']}{', simulated' if v['simulated'] else ''})" for s, v in sites.items())
    simulated = [s for s, v in sites.items() if v["simulated"]]
    notice = ""
    if simulated:
        part = (
            "All labelled recordings are" if len(simulated) == len(sites) else f"{html.escape(', '.join(simulated))}:"
        )
        notice = (
            f'<p class="notice"><b>{part} simulated.</b> They come from a generator with a known link between the '
            "modalities and the label. The numbers show that the method and the code find what was put in; they say "
            "nothing about any disorder.</p>"
        )
    return (
        f"<p>Units: {classes}, of {results['subjects']} subjects. Sites: {html.escape(names)}. Model: size "
        f"{results['model']['config']['size']}, {results['model']['parameters']:,} parameters, all frozen.</p>"
        f"{notice}{_overlap(results)}"
    )


def _overlap(results: dict[str, Any]) -> str:
    seen, subjects = results["subjects_seen_in_pretraining"], results["subjects"]
    text = html.escape(results["overlap"])
    if seen is None:
        return f'<p class="notice"><b>{text}</b></p>'
    if not seen:
        return f"<p>{text}</p>"
    return (
        f'<p class="notice"><b>{text}</b> Pretraining used no labels, but its features may fit these recordings better '
        f"than new ones. “Unseen” scores the other {subjects - seen} subjects only.</p>"
    )


def _summary(results: dict[str, Any]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in summary_lines(results["classification"]))
    return f"<h2>In short</h2><ul>{items}</ul><p>{html.escape(limits(results))}</p>" if items else ""


def _classification_section(results: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    def cells(row: dict[str, Any]) -> list[str]:
        gain = row.get("pretrained_minus_this", {}).get("auroc")
        return [interval(row["auroc"]), interval(row["auroc_sites"]), interval(gain, "+.3f"), f"{row['subjects']}"]

    head = ("AUROC", "within sites", "pretrained minus this", "subjects")
    parts = ["<h2>Classification from frozen features</h2>", _by_block(head, rows, cells)]
    parts.append(
        _METHOD_TEXT.format(
            folds=results["config"]["folds"],
            seeds=_counted(results["config"]["seeds"], "seed"),
            positive=html.escape(results["label"]["classes"][1]),
        )
    )
    permuted = "; ".join(permutation_lines(rows))
    if permuted:
        parts.append(
            f"<p>The pretrained rows with shuffled labels, which have to be near 0.5: {html.escape(permuted)}.</p>"
        )
    return "".join(parts)


def _detail_section(results: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    site = {(s["recordings"], s["features"]): s["auroc"] for s in results["site_decoding"]}
    measures = ("balanced_accuracy", "sensitivity", "specificity", "brier", "calibration_error")
    head = (
        "balanced accuracy",
        "sensitivity",
        "specificity",
        "Brier",
        "calibration error",
        "unseen AUROC",
        "site AUROC",
    )

    def cells(row: dict[str, Any]) -> list[str]:
        decoded = number(site.get((row["recordings"], row["features"])))
        return [*(number(row[m]) for m in measures), value(row["auroc_unseen"]), decoded]

    return (
        "<h2>Decisions, calibration, and the site</h2>"
        + _by_block(head, rows, cells)
        + "<p>“Unseen”: subjects that were not in the pretraining data. “Site AUROC”: the classifier asked for "
        "the site instead of the label; near 1 means that the features carry the scanner, so groups must not differ by "
        "site. The support vector machine gives no probabilities, so it has no Brier score.</p>"
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _method(row: dict[str, Any]) -> str:
    return f"{row['features']}, {row['classifier']}"


def _transductive_section(rows: Sequence[dict[str, Any]]) -> str:
    shown = [r for r in rows if r["transductive"] or r["auroc_centred"] is not None]

    def cells(row: dict[str, Any]) -> list[str]:
        return [interval(row["auroc"]) if row["transductive"] else "", interval(row["auroc_centred"])]

    head = ("AUROC", "AUROC, site means of scores removed")
    return "<h2>Transductive rows</h2>" + _TRANSDUCTIVE_TEXT + _by_block(head, shown, cells) if shown else ""


def _site_section(rows: Sequence[dict[str, Any]]) -> str:
    """A table per block, sites down and methods across: consortia have more sites than there are methods."""
    parts = []
    for block in _blocks(rows):
        sites = sorted({site for row in block for site in row["per_site"]})
        lines = [_row([site, *(interval(r["per_site"].get(site), ".2f") for r in block)], 1) for site in sites]
        if lines:
            parts.append(f"<h3>{html.escape(_block_name(block[0]))}</h3>")
            parts.append(f"<div class=dense>{_table(['site', *map(_method, block)], lines, 1)}</div>")
    text = "<p>AUROC inside each site. Sites of few subjects have wide intervals.</p>"
    return "<h2>Site by site</h2>" + text + "".join(parts) if parts else ""


def _retrieval_section(results: dict[str, Any]) -> str:
    if not results["retrieval"]:
        return ""
    rows = []
    for r in results["retrieval"]:
        cells = [
            r["subjects_of"],
            r["candidates_from"],
            {"pretrained": "after pretraining", "untrained": "before"}.get(r["model"], r["model"]),
            f"{r['top1']:.3f} ± {r['sd']:.3f}",
            f"{r['chance']:.3f}",
            f"{r['top1_subject']:.3f}",
            f"{r['chance_subject']:.3f}",
            f"{r['candidates']}",
            f"{r['windows']}",
        ]
        rows.append(_row(cells, n_text=3))
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


def _blocks(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows of one protocol and one kind of recordings together, protocols first."""
    blocks: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for protocol in dict.fromkeys(row["protocol"] for row in rows):
        for row in (r for r in rows if r["protocol"] == protocol):
            blocks.setdefault((protocol, row["recordings"]), []).append(row)
    return list(blocks.values())


def _block_name(row: dict[str, Any]) -> str:
    return f"{row['recordings']}, tested on {PROTOCOL_NAMES[row['protocol']]}"


def _by_block(
    head: Sequence[str], rows: Sequence[dict[str, Any]], cells: Callable[[dict[str, Any]], Sequence[str]]
) -> str:
    """A table with a line above the methods of each block, so that no column repeats what they share."""
    lines = []
    for block in _blocks(rows):
        name = html.escape(_block_name(block[0]))
        lines.append(f"<tr class=block><td colspan={len(head) + 1}>{name}</td></tr>")
        lines += [_row([_method(row), *cells(row)], 1) for row in block]
    return _table(["method", *head], lines, 1)


def _row(cells: Sequence[str], n_text: int) -> str:
    inner = "".join(f"<td{'' if i < n_text else ' class=n'}>{_unbroken(c)}</td>" for i, c in enumerate(cells))
    return f"<tr>{inner}</tr>"


def _unbroken(cell: str) -> str:
    """HTML of a cell whose interval stays on one line, the line below its estimate where the column is narrow."""
    return re.sub(r"\(\S+ to \S+\)", r"<span class=i>\g<0></span>", html.escape(cell))


def _table(head: Sequence[str], rows: Sequence[str], n_text: int) -> str:
    cells = "".join(f"<th{'' if i < n_text else ' class=n'}>{html.escape(c)}</th>" for i, c in enumerate(head))
    return f"<div class=wide><table><tr>{cells}</tr>{''.join(rows)}</table></div>"
