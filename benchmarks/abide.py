"""ABIDE from denoised parcel series to a table: build, pretrain without labels, export, evaluate on sites left out.

python benchmarks/abide.py --data DIR [--positions FILE] [--work DIR] [--seeds 0 1] [--steps 600] [--limit N]
python benchmarks/abide.py --table --out FILE     prints a result file as the documents show it

DIR is laid out as ``nilearn.datasets.fetch_abide_pcp(data_dir=DIR, pipeline="cpac", band_pass_filtering=True,
global_signal_regression=True, derivatives=["rois_cc200"], quality_checked=False)`` leaves it; where it is empty and
there is a network, that is what runs. FILE has the columns label, x_mm, y_mm, z_mm: centres of the atlas CC200. Nothing
of the recordings or the people goes into the result file, benchmarks/results/abide_<people>.json.

Sites are the scanning protocols of the file names. Pretraining sees all scans without their labels (transductive);
every classifier sees the labels of other sites alone. Beside the runs of --seeds there are a control, of pairs shuffled
within sites, and a run that has seen a random half of each site's people, which shows whether weights give away who.
What WORK holds already is not made again: after an interruption the same command goes on. --limit tries it on few.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mcsp.data_sharding.bids.write import write_parcellated_bold, write_parcellation, write_participants
from mcsp.provenance import made_by
from mcsp.run_log import read_metrics

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "deepspeed", "numpy", "scikit-learn", "pyriemann")
# Seconds, from the consortium's scan parameters; sites are the beginnings of the file names.
REPETITION_TIME = {
    "Caltech": 2.0, "CMU_a": 2.0, "CMU_b": 2.0, "KKI": 2.5, "Leuven_1": 1.656, "Leuven_2": 1.667, "MaxMun_a": 3.0,
    "MaxMun_b": 3.0, "MaxMun_c": 3.0, "MaxMun_d": 3.0, "NYU": 2.0, "OHSU": 2.5, "Olin": 1.5, "Pitt": 1.5, "SBL": 2.2,
    "SDSU": 2.0, "Stanford": 2.0, "Trinity": 2.0, "UCLA_1": 3.0, "UCLA_2": 3.0, "UM_1": 2.0, "UM_2": 2.0, "USM": 2.0,
    "Yale": 2.0,
}  # fmt: skip
SERIES, PHENOTYPES = "ABIDE_pcp/cpac/filt_global", "ABIDE_pcp/Phenotypic_V1_0b_preprocessed1.csv"
ATLAS = "CC200"
LEAST_SECONDS, WINDOW_SECONDS = 60, 200
STEP_SECONDS, EVALUATION_SECONDS = 1.0, 0.25  # of a step, and of a person in an evaluation, about, on two cores
# The data are public, so the key of the subjects' hashes may be known.
KEY = {"MCSP_SUBJECT_KEY": b"mcsp abide, public key".hex().ljust(64, "0")}


def people(data: Path, limit: int | None = None) -> pd.DataFrame:
    """Who has a series and a diagnosis, with columns ``file`` and ``site``; ``limit`` of them, in turn from all sites.

    Raises:
        ValueError: no series, or a site whose repetition time is not known.
    """
    table = pd.read_csv(data / PHENOTYPES)
    files = [data / SERIES / f"{name}_rois_cc200.1D" for name in table["FILE_ID"]]
    table = table.assign(file=pd.Series(files, index=table.index, dtype=object))
    found = table[[path.is_file() for path in table["file"]]].copy()
    if found.empty:
        raise ValueError(f"{data / SERIES}: expected *_rois_cc200.1D of people in {PHENOTYPES}, found none")
    found["site"] = found["FILE_ID"].str.rsplit("_", n=1).str[0]
    if unknown := sorted(set(found["site"]) - set(REPETITION_TIME)):
        raise ValueError(f"{data / PHENOTYPES}: expected sites {sorted(REPETITION_TIME)}, found {unknown}")
    turn = found.groupby("site").cumcount().sort_values(kind="stable").index[:limit]
    print(f"series of {len(found)} of the {len(table)} people in the table; {len(turn)} of them are used")
    return found.loc[turn]


def write_sites(table: pd.DataFrame, positions: Path, bids: Path) -> None:
    """One BIDS dataset per site, of the people of ``table``."""
    centres = pd.read_csv(positions, sep="\t")[["x_mm", "y_mm", "z_mm"]].to_numpy()
    names = [f"{ATLAS.lower()}-{i}" for i in range(1, len(centres) + 1)]
    for site, group in table.groupby("site"):
        root = bids / str(site).replace("_", "-")
        everyone: list[dict[Hashable, Any]] = group.to_dict("records")
        for person in everyone:
            x_TP = np.loadtxt(file := person["file"], ndmin=2)
            if x_TP.shape[1] != len(names):
                raise ValueError(f"{file}: expected {len(names)} columns as {positions}, found {x_TP.shape[1]}")
            sidecar = {"RepetitionTime": REPETITION_TIME[str(site)], "Units": "arbitrary"}
            write_parcellated_bold(root, f"{person['SUB_ID']:07d}", ATLAS, names, x_TP.T, sidecar)
        write_parcellation(root, ATLAS, names, centres)
        columns = {name: {"Description": name} for name in ("diagnosis", "age", "sex", "mean_fd_mm")}
        rows = [
            (
                f"sub-{p['SUB_ID']:07d}",
                {1: "autism", 2: "control"}[p["DX_GROUP"]],
                p["AGE_AT_SCAN"],
                "MF"[p["SEX"] - 1],
                "n/a" if pd.isna(p["func_mean_fd"]) else p["func_mean_fd"],
            )
            for p in everyone
        ]
        write_participants(root, columns, rows)
        description = {"Name": f"ABIDE {site}", "BIDSVersion": "1.9.0", "DatasetType": "derivative"}
        (root / "dataset_description.json").write_text(json.dumps(description) + "\n")


def run(command: Sequence[str | Path], made: Path, environment: dict[str, str] | None = None) -> None:
    """Run ``command`` in the repository unless ``made`` is there; its failure ends the program."""
    words = [str(word) for word in command]
    if made.exists():
        print(f"== {made} is there", flush=True)
        return
    print(f"== {' '.join(words)}", flush=True)
    subprocess.run(words, cwd=ROOT, env={**os.environ, **KEY, **(environment or {})}, check=True)


def launcher(name: str, *arguments: str | Path) -> list[str | Path]:
    """A command of this project under this interpreter."""
    return [sys.executable, f"launchers/{name}.py", *arguments]


def fetched(data: Path) -> None:
    """Fetch what ``data`` lacks, where there is a network."""
    if (data / PHENOTYPES).is_file():
        return
    from nilearn.datasets import fetch_abide_pcp

    try:
        fetch_abide_pcp(
            data_dir=str(data), pipeline="cpac", band_pass_filtering=True, global_signal_regression=True,
            derivatives=["rois_cc200"], quality_checked=False,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:  # no network, an address that has moved, a broken archive
        found = " ".join(str(error).split())[:200]
        raise ValueError(f"{data / PHENOTYPES}: not there, and cannot be fetched ({found})") from None


def build(bids: Path, corpus: Path, *values: str) -> Path:
    """The corpus of all sites in ``bids``; its folder."""
    usual = ["split_fractions=[1, 0, 0]", "workers=1", "allow_public_key=true"]
    run(launcher("build_corpus", f"bids_root={bids}", f"out_dir={corpus}", *usual, *values), corpus / "index.json")
    return corpus


@dataclass(frozen=True)
class Asked:
    """What all runs share."""

    steps: int
    pretraining: Sequence[str]
    evaluation: Sequence[str]


def pretrained(work: Path, corpus: Path, name: str, seed: int, changes: Sequence[str], config: Asked) -> Path:
    """Pretrain with ``changes`` of the settings; the run's folder, whose exit.json says that it finished."""
    trained, folder = work / f"{name}-{seed}-run", Path(sys.executable).parent
    with socket.create_server(("127.0.0.1", 0)) as server:  # another run may have the usual port
        port = str(server.getsockname()[1])
    start: list[str | Path] = [folder / "deepspeed", "--log_level", "error", "--num_accelerators", "1"]
    start += ["--master_port", port, "launchers/pretrain.py", "--config", "configs/pretrain/fmri-consortium.yaml"]
    values = [f"corpus_dir={corpus}", f"run_dir={trained}", f"seed={seed}", f"steps={config.steps}"]
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "DS_ACCELERATOR": "cpu"}
    ended = trained / "exit.json"  # is there after an interruption too
    if ended.is_file() and json.loads(ended.read_text())["reason"] != "finished":
        ended.unlink()
    run([*start, *values, *config.pretraining, *changes], ended, environment)  # of one key the last value counts
    return trained


def one_run(work: Path, corpus: Path, name: str, seed: int, changes: Sequence[str], config: Asked) -> dict[str, Any]:
    """Pretrain with ``changes`` of the settings, export and evaluate; scores and the course of the losses."""
    trained = pretrained(work, corpus, name, seed, changes, config)
    model, scored = (work / f"{name}-{seed}-{what}" for what in ("model", "evaluation"))
    run(launcher("export", trained, model), model / "config.json")
    values = [f"model_dir={model}", f"corpus_dir={corpus}", f"out_dir={scored}", *config.evaluation]
    evaluate = ["--config", "configs/evaluate/fmri-consortium.yaml", *values]
    run(launcher("evaluate", *evaluate), scored / "results.json")
    found = json.loads((scored / "results.json").read_text())
    ended = json.loads((trained / "exit.json").read_text())["reason"]
    lines = [{k: v for k, v in line.items() if k.split("/")[0] in ("step", "loss")} for line in read_metrics(trained)]
    dropped = ("roc", "roc_low", "roc_high")
    rows = [{k: v for k, v in row.items() if k not in dropped} for row in found["classification"]]  # curves are long
    kept = ("label_efficiency", "site_decoding", "membership", "overlap", "splits_sha256", "subjects", "sites", "notes")
    return {
        "seed": seed, "steps": config.steps, "ended": ended,
        "changes": list(changes), "first_step": lines[0], "last_step": lines[-1],
        "classification": rows, **{k: found[k] for k in kept if k in found},
    }  # fmt: skip


def all_runs(work: Path, seeds: Sequence[int], config: Asked, corpora: dict[str, Path]) -> dict[str, Any]:
    """The runs of the result file by kind: of every seed, of the control, and of the corpus of half of the people."""
    plan: list[tuple[str, str, int, Path, Sequence[str]]] = [
        *(("default", "default", seed, corpora["all"], ()) for seed in seeds),
        (SHUFFLED, "shuffled", seeds[0], corpora["all"], CONTROL),
        (HALF, "half", seeds[0], corpora["half"], ()),
    ]
    runs: dict[str, Any] = {}
    began = time.monotonic()
    for number, (kind, name, seed, corpus, changes) in enumerate(plan, start=1):
        minutes = (time.monotonic() - began) / 60
        print(f"\n==== run {number} of {len(plan)}: {kind}, seed {seed}; {minutes:.0f} min so far", flush=True)
        runs.setdefault(kind, []).append(one_run(work, corpus, name, seed, changes, config))
    return runs


PRETRAINING = (f"window_seconds={{fmri: {WINDOW_SECONDS}}}", "model.modalities=[fmri]")
# Pairs of different people of a site teach what a site has in common; what is learned of a person has to be more.
CONTROL, SHUFFLED = ["objective.shuffled_pairs=within_site"], "pairs shuffled within sites"
# Half of each site's people in pretraining: who was, and what those who were not are worth.
HALF, HALF_SPLIT = "half of the people in pretraining", "split_fractions=[0.5, 0, 0.5]"


def table(content: dict[str, Any]) -> str:
    """The table of docs/results.md: AUROC of people left out, mean over runs, and with few labels; changes below."""
    runs = content["runs"]["default"]
    names = [(r["features"], r["classifier"]) for r in runs[0]["classification"] if not r["transductive"]]
    fractions = sorted({p["fraction"] for p in runs[0]["label_efficiency"]})[:-1]
    head = [
        "features",
        "classifier",
        "AUROC (95 % interval)",
        "within sites",
        *(f"{f:.0%} of labels" for f in fractions),
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [_line(runs, features, classifier, fractions, features) for features, classifier in names]
    for name, changed in content["runs"].items():
        for part in ("pretrained", "pretrained, learned part") if name != "default" else ():
            lines.append(_line(changed, part, "linear SVM", fractions, f"{part}; {name}"))
    return "\n".join(lines)


def leaks(content: dict[str, Any]) -> str:
    """What features tell beside the label, AUROC: the site, and, of half of the people, who was in pretraining."""
    runs = content["runs"]
    sites = [row for run in runs["default"] for row in run["site_decoding"]]
    known = [row for run in runs.get(HALF, ()) for row in run["membership"]]
    told = {f"{row['model']}, learned part": row["auroc"] for row in known}
    names = dict.fromkeys([*(row["features"] for row in sites), *told])
    heads = ["features", *(["site"] if sites else []), *(["who was in pretraining"] if told else [])]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in names:
        cells = [name]
        if sites:
            cells.append(f"{np.mean([row['auroc'] for row in sites if row['features'] == name]):.3f}")
        if told:
            cells.append("{value:.3f} ({ci_low:.3f} to {ci_high:.3f})".format(**told[name]) if name in told else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) if names else ""


def _line(runs: Sequence[dict[str, Any]], features: str, classifier: str, fractions: Sequence[float], name: str) -> str:
    """One row of the table, mean over runs."""
    rows = [_row(run["classification"], features, classifier) for run in runs]
    value, low, high = (np.mean([row["auroc"][k] for row in rows]) for k in ("value", "ci_low", "ci_high"))
    within = np.mean([row["auroc_sites"]["value"] for row in rows])
    few = []
    for fraction in fractions:
        points = [
            p["auroc"] for run in runs for p in run["label_efficiency"]
            if (p["features"], p["fraction"]) == (features, fraction) and classifier == "linear SVM"
        ]  # fmt: skip
        few.append(f"{np.mean(points):.3f}" if points else "")
    cells = [name, classifier, f"{value:.3f} ({low:.3f} to {high:.3f})", f"{within:.3f}", *few]
    return f"| {' | '.join(cells)} |"


def _row(rows: Sequence[dict[str, Any]], features: str, classifier: str) -> dict[str, Any]:
    return next(r for r in rows if (r["features"], r["classifier"]) == (features, classifier))


def parsed(description: str | None, steps: int, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments that this study and that of EEG share, and nobody's else."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the recordings")
    parser.add_argument(
        "--positions", type=Path, help="ABIDE: centres of the parcels; default DATA/cc200_positions.tsv"
    )
    parser.add_argument("--work", type=Path, help="folder of everything that is made; default DATA/mcsp")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of pretraining, one run each (0 1)")
    parser.add_argument("--steps", type=int, default=steps, help=f"of pretraining ({steps})")
    parser.add_argument("--limit", type=int, help="use so many people only, to try the command; then name --out")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings of pretraining")
    parser.add_argument("--out", type=Path, help="the result file")
    parser.add_argument("--table", action="store_true", help="print the result file; run nothing")
    arguments = parser.parse_args(argv)
    if arguments.table and arguments.out is None:
        parser.error("--table: expected --out FILE, found none")
    if not arguments.table and arguments.data is None:
        parser.error("--data: expected a folder, found none")
    if arguments.limit is not None and arguments.out is None:
        parser.error("--limit: expected --out FILE beside it, since results of few people are no results; found none")
    if arguments.data is not None:
        arguments.work = (arguments.work or arguments.data / "mcsp").resolve()
    return arguments


def began(work: Path, arguments: argparse.Namespace, found: int) -> None:
    """Remember what ``work`` is made for; ``ValueError`` where that was something else."""
    asked, path = {"people": found, "steps": arguments.steps, "set": list(arguments.set)}, work / "asked.json"
    if path.is_file() and (before := json.loads(path.read_text())) != asked:
        raise ValueError(f"{work}: expected a folder made with {asked}, found one of {before}; take another --work")
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asked) + "\n")
    runs = len(arguments.seeds) + 2
    minutes = runs * (arguments.steps * STEP_SECONDS + found * EVALUATION_SECONDS) / 60
    print(
        f"{found} people, {runs} runs of {arguments.steps} steps: about {minutes:.0f} min on two free cores", flush=True
    )


def written(arguments: argparse.Namespace, kind: str, runs: dict[str, Any]) -> int:
    """Write the result file and print its tables."""
    found = runs["default"][0]["subjects"]
    content = {**made_by(PACKAGES), "date": f"{date.today():%Y-%m}", "people": found, "runs": runs}
    out = arguments.out or ROOT / "benchmarks" / "results" / f"{kind}_{found}.json"
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"\nresults: {out}\n")
    return show(out)


def show(path: Path) -> int:
    """Print the tables of a result file."""
    content = json.loads(path.read_text())
    print(f"{table(content)}\n\n{leaks(content)}")
    return 0


def study(arguments: argparse.Namespace) -> int:
    """Run what is missing, write the file, print the tables."""
    chosen, positions, work = wanted(arguments)
    began(work, arguments, len(chosen))
    corpora = built(chosen, positions, work, {"all": ("corpus", []), "half": ("corpus-half", [HALF_SPLIT])})
    config = Asked(arguments.steps, [*PRETRAINING, *arguments.set], [])
    return written(arguments, "abide", all_runs(work, arguments.seeds, config, corpora))


def wanted(arguments: argparse.Namespace) -> tuple[pd.DataFrame, Path, Path]:
    """Whose recordings are used, fetched where they are not there; the file of the parcels' centres; ``--work``."""
    fetched(arguments.data)
    positions = arguments.positions or arguments.data / "cc200_positions.tsv"
    if not positions.is_file():
        raise ValueError(f"{positions}: expected the centres of the parcels (label, x_mm, y_mm, z_mm), found no file")
    return people(arguments.data, arguments.limit), positions, arguments.work


def built(
    chosen: pd.DataFrame, positions: Path, work: Path, of: Mapping[str, tuple[str, Sequence[str]]]
) -> dict[str, Path]:
    """Corpora of the people of ``chosen``: folders in ``work`` by name, from their names there and other settings."""
    if any(not (work / folder).exists() for folder, _ in of.values()):
        write_sites(chosen, positions, work / "bids")
    usual = [f"min_seconds={{fmri: {LEAST_SECONDS}}}", "participants_columns=[diagnosis, age, sex, mean_fd_mm]"]
    return {name: build(work / "bids", work / folder, *usual, *values) for name, (folder, values) in of.items()}


def guarded(run_study: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Its status; what is missing or fails is said in one line."""
    if arguments.table:
        return show(arguments.out)
    try:
        return run_study(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    except subprocess.CalledProcessError as error:
        print(f"error: status {error.returncode} of the command above; the same command goes on", file=sys.stderr)
    return 1


def main(argv: Sequence[str] | None = None) -> int:
    """Everything from the recordings to the tables."""
    return guarded(study, parsed(__doc__, 600, argv))


if __name__ == "__main__":
    raise SystemExit(main())
