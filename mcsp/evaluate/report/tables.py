"""Results as text: for the terminal, and the sentences of the report."""

import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mcsp.evaluate.methods import CLASSICAL, PRETRAINED, UNTRAINED
from mcsp.wording import BOLD, CYAN, YELLOW, columns, counted, printable, styled

_COLUMNS = 80  # of a terminal
_WIDEST_NAME = 52  # what a score and its interval leave of them
PROTOCOL_NAMES = {"kfold": "new subjects", "leave_site_out": "subjects of a site left out"}


@dataclass(frozen=True)
class Measure:
    """What the rows of a label are judged by: names of its values in results.json, and what guessing gives."""

    name: str
    title: str
    chance: float
    within: str  # the same inside a site


MEASURES = {
    "auroc": Measure("auroc", "AUROC", 0.5, "auroc_sites"),
    "r2": Measure("r2", "R²", 0.0, "r_sites"),  # 0: no better than the mean of the training labels
}


def measure_of(results: dict[str, Any]) -> Measure:
    """The one that the label's results lead with."""
    return MEASURES[results["label"].get("measure", "auroc")]


def main_rows(block: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows of a question by features, of the classifier that every feature set has: the pretrained one's first."""
    main = next((row["classifier"] for row in block if row["features"] == PRETRAINED), None)
    return {row["features"]: row for row in block if row["classifier"] == main}


def interval(estimate: dict[str, float] | None, form: str = ".3f") -> str:
    """An estimate with its interval, in format ``form``; a dash for nothing."""
    if estimate is None:
        return "-"
    return f"{estimate['value']:{form}} ({estimate['ci_low']:{form}} to {estimate['ci_high']:{form}})"


def questions(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Rows of one protocol and one kind of recordings together, below what they ask; protocols first."""
    blocks: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: list(PROTOCOL_NAMES).index(row["protocol"])):
        blocks.setdefault((row["recordings"], row["protocol"]), []).append(row)
    return [(f"{recordings}, {PROTOCOL_NAMES[p]}", block) for (recordings, p), block in blocks.items()]


def terminal_table(results: dict[str, Any]) -> str:
    """The scores as plain text, a block of lines per question; on a terminal what matters is bold or in colour."""

    def strong(text: str, style: str = BOLD) -> str:
        return styled(text, sys.stdout, style)

    rows, measure = results["classification"], measure_of(results)
    names = [(f"{row['features']},", f"{row['classifier']}{' *' * row['transductive']}") for row in rows]
    width = min(max((len(" ".join(name)) for name in names), default=0), _WIDEST_NAME)
    shown = {
        id(row): _score_line(name, width, interval(row[measure.name])) for row, name in zip(rows, names, strict=True)
    }
    lines = []
    for name, block in questions(rows):
        lines += ["", strong(f"{name}: {measure.title} (95 % interval over subjects)")]
        for row in block:
            lines.append(strong(shown[id(row)], CYAN) if row["features"] == PRETRAINED else shown[id(row)])
    if any(row["transductive"] for row in rows):
        lines += ["", "* transductive: uses unlabelled recordings of the tested site"]
    lines += ["", *(_wrapped(f"shuffled labels, {line}") for line in permutation_lines(rows))]
    if results["retrieval"]:
        found = [
            (r["subjects_of"], f"{r['candidates']} of {r['candidates_from']}", r["model"], f"{r['top1']:.3f}",
             f"{r['chance']:.3f}")
            for r in results["retrieval"]
        ]  # fmt: skip
        head, *body = columns([("retrieval of", "candidates", "model", "top-1", "chance"), *found], right=3)
        lines += ["", strong(head), *body, ""]
    for row in results.get("membership", ()):
        said = f"{row['seen']} seen from {row['unseen']} unseen, {row['modality']}, {row['model']}"
        lines.append(_wrapped(f"membership, {said}: AUROC {interval(row['auroc'])}"))
    simulated = [site for site, of_site in results["sites"].items() if of_site["simulated"]]
    lines += ["", _wrapped(f"simulated sites: {', '.join(simulated)}")] if simulated else []
    lines += [
        "",
        strong(_wrapped(overlap_line(results)), YELLOW if results["subjects_seen_in_pretraining"] != 0 else BOLD),
        *(_wrapped(f"note: {note}") for note in results["notes"]),
    ]
    sentence = verdict([row for row in rows if not row["transductive"]], measure)
    lines += ["", strong(_wrapped(sentence))] if sentence else []
    for label, more in results.get("more_labels", {}).items():
        lines += ["", strong(f"label {printable(label)}:"), terminal_table(more)]
    return "\n".join(lines[1:])


def _score_line(name: tuple[str, str], width: int, score: str) -> str:
    """Features, classifier and score; the features have a line of their own where both are longer than ``width``."""
    features, classifier = map(printable, name)
    together = f"{features} {classifier}"
    start = f"  {together:<{width}}" if len(together) <= width else f"  {features}\n    {classifier:<{width - 2}}"
    return f"{start}  {score}"


def _wrapped(text: str) -> str:
    return textwrap.fill(printable(text), _COLUMNS, subsequent_indent="  ", break_on_hyphens=False)


def permutation_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What shuffled labels give, for every block that has it."""
    return [
        f"{r['recordings']}, {PROTOCOL_NAMES[r['protocol']]}: {r['permuted']['mean']:.3f} ± {r['permuted']['sd']:.3f} "
        f"over {r['permuted']['draws']} draws, p = {r['permuted']['p']:.2g}"
        for r in rows
        if "permuted" in r
    ]


def overlap_line(results: dict[str, Any]) -> str:
    """What is known of an overlap with the pretraining subjects; a warning unless there is none."""
    return ("warning: " if results["subjects_seen_in_pretraining"] != 0 else "") + results["overlap"]


def verdict(rows: Sequence[dict[str, Any]], measure: Measure) -> str:
    """One sentence: how good the pretrained model is, and how often it beats the untrained one and classical features.

    By the paired differences, whose intervals leave out zero or not. Empty where no question has a pretrained row.
    """
    best: list[float] = []
    found: dict[str, Counter[str]] = {"the same model without pretraining": Counter(), "classical features": Counter()}
    for _, block in questions(rows):
        of = main_rows(block)
        if PRETRAINED not in of or of[PRETRAINED][measure.name] is None:
            continue
        best.append(of[PRETRAINED][measure.name]["value"])
        for counts, other in zip(found.values(), (UNTRAINED, CLASSICAL[block[0]["recordings"]]), strict=True):
            gain = of.get(other, {}).get("pretrained_minus_this", {}).get(measure.name)
            if gain is not None:
                counts["higher" if gain["ci_low"] > 0 else "lower" if gain["ci_high"] < 0 else "open"] += 1
    if not best:
        return ""
    span = f"{best[0]:.2f}" if len(best) == 1 else f"{min(best):.2f} to {max(best):.2f}"
    said = [
        f"; against {name} it scores higher in {n['higher']} of {n.total()}, lower in {n['lower']}, without a clear "
        f"difference in {n['open']}"
        for name, n in found.items()
        if n
    ]
    return f"The pretrained model has an {measure.title} of {span} in {counted(len(best), 'question')}{''.join(said)}."


def limits(results: dict[str, Any]) -> str:
    """What the numbers do not show, in sentences."""
    sites, subjects = results["sites"], results["subjects"]
    said = [
        f"{subjects} subjects of {counted(len(sites), 'site')} and one pretraining run: the "
        "intervals include the spread over subjects, not that of another pretraining run or another choice of sites.",
        "A score that is good here says nothing about single persons elsewhere, about why people differ (age, "
        "medication and motion may), or about use in a clinic.",
    ]
    if len(sites) < 3:
        said.append("With fewer than three sites, a score on a site left out comes from one or two scanners.")
    if any(site["simulated"] for site in sites.values()):
        said.append("Scores on simulated sites say nothing about brains.")
    if results["subjects_seen_in_pretraining"] is None:
        said.append("Whether pretraining has seen these subjects is not known.")
    return " ".join(said)
