"""Results as text: for the terminal, and the sentences of the report."""

from collections.abc import Sequence
from typing import Any

from mcsp.evaluate.methods import UNTRAINED_LEARNED
from mcsp.evaluate.report.figures import PROTOCOL_NAMES


def number(value: float | None) -> str:
    """Three decimals; a dash for nothing."""
    return "-" if value is None else f"{value:.3f}"


def value(estimate: dict[str, float] | None) -> str:
    """An estimate without its interval."""
    return "-" if estimate is None else f"{estimate['value']:.3f}"


def interval(estimate: dict[str, float] | None, form: str = ".3f") -> str:
    """An estimate with its interval, in format ``form``."""
    if estimate is None:
        return "-"
    return f"{estimate['value']:{form}} ({estimate['ci_low']:{form}} to {estimate['ci_high']:{form}})"


def terminal_table(results: dict[str, Any]) -> str:
    """The scores as plain text."""
    simulated = [s for s, v in results["sites"].items() if v["simulated"]]
    measure = results["label"]["measure"]
    head = f"{measure.upper()} (95 % interval)"
    lines = [f"{'recordings':<11}{'tested on':<16}{'features':<32}{'classifier':<22}{head}"]
    lines += [
        f"{r['recordings']:<11}{r['protocol']:<16}{r['features']:<32}{r['classifier']:<22}{interval(r[measure])}"
        + "  transductive" * r["transductive"]
        for r in results["classification"]
    ]
    lines += [f"shuffled labels, {line}" for line in permutation_lines(results["classification"])]
    if results["retrieval"]:
        lines += ["", f"{'retrieval of':<14}{'candidates':<18}{'model':<36}{'top-1':>7}{'chance':>8}"]
    for r in results["retrieval"]:
        candidates = f"{r['candidates']} of {r['candidates_from']}"
        lines.append(f"{r['subjects_of']:<14}{candidates:<18}{r['model']:<36}{r['top1']:>7.3f}{r['chance']:>8.3f}")
    for row in results.get("membership", ()):
        said = f"{row['seen']} seen from {row['unseen']} unseen, {row['modality']}, {row['model']}"
        lines.append(f"membership, {said}: AUROC {interval(row['auroc'])}")
    if simulated:
        lines += ["", f"simulated sites: {', '.join(simulated)}"]
    lines += ["", overlap_line(results)]
    lines += [f"note: {note}" for note in results["notes"]]
    for label, more in results.get("more_labels", {}).items():
        lines += ["", f"label {label}:", terminal_table(more)]
    return "\n".join(lines)


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


def summary_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One sentence per block on what its numbers show and do not show."""
    lines = []
    for protocol, recordings in dict.fromkeys((row["protocol"], row["recordings"]) for row in rows):
        block = [row for row in rows if (row["protocol"], row["recordings"]) == (protocol, recordings)]
        if block[0]["features"] != "pretrained":
            continue
        verdicts: dict[str, list[str]] = {"above": [], "below": [], "not told apart from": []}
        learned = ""
        for row in (row for row in block[1:] if not row["transductive"]):
            gain = row.get("pretrained_minus_this", {}).get("auroc")
            if gain is None:
                continue
            certain = gain["ci_low"] > 0 or gain["ci_high"] < 0
            word = ("above" if gain["value"] > 0 else "below") if certain else "not told apart from"
            if row["features"] == UNTRAINED_LEARNED:
                learned = f"; its learned part alone: {word} the untrained one ({gain['value']:+.3f})"
            else:
                verdicts[word].append(f"{row['features']} with {row['classifier']} ({gain['value']:+.3f})")
        said = "".join(f"; {word} {', '.join(names)}" for word, names in verdicts.items() if names)
        name = f"{recordings}, {PROTOCOL_NAMES[protocol]}"
        lines.append(f"{name}: pretrained AUROC {interval(block[0]['auroc'])}{said}{learned}.")
    return lines


def limits(results: dict[str, Any]) -> str:
    """What the numbers do not show, in sentences."""
    sites, subjects = results["sites"], results["subjects"]
    said = [
        f"{subjects} subjects of {len(sites)} {'site' if len(sites) == 1 else 'sites'} and one pretraining run: the "
        "intervals hold the spread over subjects, not that of another pretraining run or another choice of sites.",
        "A score that tells classes apart here says nothing about single persons elsewhere, about why the classes "
        "differ (age, medication and motion may), or about use in a clinic.",
    ]
    if len(sites) < 3:
        said.append("With fewer than three sites, a score on a site left out rests on one or two scanners.")
    if any(site["simulated"] for site in sites.values()):
        said.append("Scores on simulated sites say nothing about brains.")
    if results["subjects_seen_in_pretraining"] is None:
        said.append("Whether pretraining has seen these subjects is not known.")
    return "What these numbers do not show: " + " ".join(said)
