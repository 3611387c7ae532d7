"""Validation curves of two pretraining runs on public recordings.

    python benchmarks/studies/validation_curves.py --abide DIR --positions FILE --eegmat DIR --work DIR

``--abide`` and ``--positions`` are the DIR and FILE of benchmarks/abide.py, ``--eegmat`` that of benchmarks/eegmat.py,
whose functions write the recordings as BIDS datasets. The corpora are built, 600 steps are taken on the first with
configs/pretrain/fmri-consortium.yaml as it is and 300 on the second, and numbers and a picture are written. A corpus or
a run that ``--work`` holds is used, or continued.

ABIDE: Di Martino et al. 2014 (Mol Psychiatry 19:659), Craddock et al. 2013 (Preprocessed Connectomes Project).
eegmat: Zyma et al. 2019 (Data 4:14), PhysioNet (Goldberger et al. 2000, Circulation 101:e215).
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcsp.config import CorpusConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.provenance import made_by
from mcsp.run_log import read_events, read_metrics

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import abide  # noqa: E402
import eegmat  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "validation_curves.json"
PICTURE = ROOT / "docs" / "images" / "validation-curves.png"
# Public recordings: the key of the subject hashes may be known.
KEY = b"mcsp validation curves, public".hex().ljust(64, "0")
RUNS = {
    "abide": ["--config", "configs/pretrain/fmri-consortium.yaml"],
    "eegmat": [
        "steps=300", "batch={paired: 0, eeg: 16, fmri: 0}", "window_seconds={eeg: 30}",
        "augmentation.opposite_halves=[spatial, temporal, spectral]", "validate_every=25",
    ],
}  # fmt: skip
SPLIT = {"abide": (0.8, 0.1, 0.1), "eegmat": (0.6, 0.4, 0.0)}


def corpus(name: str, write: Callable[[Path], None], work: Path) -> Path:
    """The corpus of what ``write`` puts into a folder, built where it is not there yet."""
    from mcsp.data_sharding.build.corpus import build_corpus

    out, bids = work / f"{name}-corpus", work / f"{name}-bids"
    if (out / "index.json").is_file():
        return out
    if not bids.is_dir():
        write(bids)
    minimum = {"eeg": 30.0, "fmri": float(abide.LEAST_SECONDS)}
    values = {"split_fractions": SPLIT[name], "min_seconds": minimum, "allow_public_key": True}
    build_corpus(CorpusConfig(bids_root=bids, out_dir=out, **values))
    return out


def train(name: str, corpus_dir: Path, work: Path) -> Path:
    """Run or continue; ``run_dir``."""
    run_dir, end = work / f"{name}-run", work / f"{name}-run" / "exit.json"
    if end.is_file() and json.loads(end.read_text())["reason"] == "finished":
        return run_dir
    (work / f"{name}-made-by.json").write_text(json.dumps(made_by(("torch", "deepspeed", "numpy", "mne"))))
    command = [sys.executable, "launchers/pretrain.py", *RUNS[name], f"corpus_dir={corpus_dir}", f"run_dir={run_dir}"]
    subprocess.run(command, cwd=ROOT, check=True)
    return run_dir


def summary(corpus_dir: Path, run_dir: Path) -> dict[str, Any]:
    """Numbers of one run: every evaluation, people, what evaluating cost, and which steps were skipped."""
    lines, events = read_metrics(run_dir), read_events(run_dir)
    people: dict[str, set[str]] = {}
    for r in Corpus(corpus_dir).recordings:
        people.setdefault(r.split, set()).add(f"{r.site}/{r.subject}")
    evaluated = [line for line in lines if "validation/loss" in line]
    seconds = {part: sum(line.get(f"seconds/{part}", 0.0) for line in lines) for part in ("validation", "checkpoint")}
    total = sum(line["seconds_per_step"] for line in lines)
    return {
        "people": {split: len(members) for split, members in sorted(people.items())},
        "steps": len(lines),
        "skipped_steps": [event["step"] for event in events if event["event"] == "skip"],
        "new_levels": [event["step"] for event in events if event["event"] == "new level"],
        "ended": json.loads((run_dir / "exit.json").read_text())["reason"],
        "share_of_time_evaluating": round(seconds["validation"] / total, 4),
        "seconds_per_step": round(total / len(lines), 3),
        "evaluations": [
            {"step": int(line["step"]), "training_loss": round(line["loss"], 4)}
            | {
                name.removeprefix("validation/"): round(line[name], 4)
                for name in line
                if name.startswith("validation/")
            }
            for line in evaluated
        ],
        "loss": [round(line["loss"], 4) for line in lines],
        "gradient_norm": [round(line["gradient_norm"], 3) for line in lines],
    }


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """A row of panels per run: loss, prediction across halves, identification, site."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(found), 4, figsize=(16, 3.6 * len(found)), squeeze=False, layout="constrained")
    colours = {"spatial": "#0072B2", "temporal": "#D55E00", "spectral": "#009E73"}
    for row, (name, run) in zip(axes, found.items(), strict=True):
        evaluations = run["evaluations"]
        step = [e["step"] for e in evaluations]
        row[0].plot(range(1, run["steps"] + 1), run["loss"], color="#bbbbbb", linewidth=0.7, label="training")
        row[0].plot(step, [e["loss"] for e in evaluations], "o-", color="black", markersize=3, label="people set aside")
        row[0].set(ylabel="loss", title=f"{name}: {run['people']['train']} people trained on, "
                   f"{run['people']['validation']} set aside")  # fmt: skip
        titles = (
            "error across halves (1: mean over people)",
            "identification across halves",
            "site told (dotted: input)",
        )
        for panel, kind, title in zip(row[1:], ("half_error", "identification", "site_h"), titles, strict=True):
            panel.set_title(title)
            for key in [k for k in evaluations[-1] if k.startswith(f"{kind}/")]:
                colour = colours[key.rsplit("/", 1)[1]]
                panel.plot(
                    step, [e[key] for e in evaluations], "o-", markersize=3, color=colour, label=key.split("/")[-1]
                )
                other = key.replace("site_h", "site_input")
                if kind == "site_h":
                    panel.plot(step, [e[other] for e in evaluations], ":", color=colour)
            panel.set_ylim(bottom=0)
            if panel.lines:
                panel.legend(fontsize=8)
            else:
                panel.text(0.5, 0.5, "one site", ha="center", transform=panel.transAxes)
        row[1].axhline(1, color="#888888", linewidth=1)
        row[0].legend(fontsize=8)
        for panel in row:
            panel.set_xlabel("step")
            panel.grid(alpha=0.25)
    figure.savefig(path, dpi=90)


def main() -> None:
    """Build, train, summarise, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--abide", type=Path, help="folder of the parcel series")
    parser.add_argument("--positions", type=Path, help="centres of the parcels")
    parser.add_argument("--eegmat", type=Path, help="folder of the EDF files")
    parser.add_argument("--work", type=Path, required=True, help="where corpora and runs go")
    parser.add_argument("--only", choices=tuple(RUNS), help="make one of the two runs; the other stays as it is in OUT")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    os.environ.setdefault("MCSP_SUBJECT_KEY", KEY)
    writers: dict[str, Callable[[Path], None]] = {
        "abide": lambda bids: abide.write_sites(abide.people(arguments.abide), arguments.positions, bids),
        "eegmat": lambda bids: eegmat.write_site(eegmat.recordings(arguments.eegmat, None), bids),
    }
    found: dict[str, dict[str, Any]] = json.loads(arguments.out.read_text())["runs"] if arguments.only else {}
    for name in [arguments.only] if arguments.only else list(RUNS):
        built = corpus(name, writers[name], arguments.work)
        run_dir = train(name, built, arguments.work)
        origin = json.loads((arguments.work / f"{name}-made-by.json").read_text())
        found[name] = {"made_by": origin, **summary(built, run_dir)}
    arguments.out.write_text(json.dumps({"what": __doc__, "runs": found}) + "\n")
    draw(found, arguments.picture)
    print(f"results: {arguments.out}\npicture: {arguments.picture}")


if __name__ == "__main__":
    main()
