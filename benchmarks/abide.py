"""ABIDE from denoised parcel series to a table: build, pretrain without labels, export, evaluate on sites left out.

python benchmarks/abide.py --data DIR --positions FILE --work DIR [--seeds 0 1] [--steps 600] [--no-control]
python benchmarks/abide.py --table [--out FILE]     prints the result file as the documents show it

DIR is laid out as ``nilearn.datasets.fetch_abide_pcp(data_dir=DIR, pipeline="cpac", band_pass_filtering=True,
global_signal_regression=True, derivatives=["rois_cc200"], quality_checked=False)`` leaves it; where it is empty and
there is a network, that is what runs. FILE has the columns label, x_mm, y_mm, z_mm: centres of the atlas CC200. Nothing
of the recordings or the people goes into the result file, benchmarks/results/abide_<people>.json.

Sites are the scanning protocols of the file names. Pretraining sees all scans without their labels (transductive);
every classifier sees the labels of other sites alone. What WORK holds already is not made again.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
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
# The data are public, so the key of the subjects' hashes may be known.
KEY = {"MCSP_SUBJECT_KEY": b"mcsp abide, public key".hex().ljust(64, "0")}


def write_sites(data: Path, positions: Path, bids: Path) -> None:
    """One BIDS dataset per site, of the people of ``data`` who have a series and a diagnosis."""
    centres = pd.read_csv(positions, sep="\t")[["x_mm", "y_mm", "z_mm"]].to_numpy()
    names = [f"{ATLAS.lower()}-{i}" for i in range(1, len(centres) + 1)]
    table = pd.read_csv(data / PHENOTYPES)
    table["file"] = [data / SERIES / f"{name}_rois_cc200.1D" for name in table["FILE_ID"]]
    table = table[[path.is_file() for path in table["file"]]]
    if table.empty:
        raise ValueError(f"{data / SERIES}: expected *_rois_cc200.1D of people in {PHENOTYPES}, found none")
    table["site"] = table["FILE_ID"].str.rsplit("_", n=1).str[0]
    for site, people in table.groupby("site"):
        root = bids / str(site).replace("_", "-")
        for person in people.itertuples():
            x_TP = np.loadtxt(person.file)
            sidecar = {"RepetitionTime": REPETITION_TIME[str(site)], "Units": "arbitrary"}
            write_parcellated_bold(root, f"{person.SUB_ID:07d}", ATLAS, names, x_TP.T, sidecar)
        write_parcellation(root, ATLAS, names, centres)
        columns = {name: {"Description": name} for name in ("diagnosis", "age", "sex", "mean_fd_mm")}
        rows = [
            (f"sub-{p.SUB_ID:07d}", {1: "autism", 2: "control"}[p.DX_GROUP], p.AGE_AT_SCAN, "MF"[p.SEX - 1], fd)
            for p, fd in zip(people.itertuples(), people["func_mean_fd"].fillna("n/a"), strict=True)
        ]
        write_participants(root, columns, rows)
        description = {"Name": f"ABIDE {site}", "BIDSVersion": "1.9.0", "DatasetType": "derivative"}
        (root / "dataset_description.json").write_text(json.dumps(description) + "\n")


def run(command: Sequence[str | Path], made: Path, environment: dict[str, str] | None = None) -> None:
    """Run ``command`` in the repository unless ``made`` is there; its failure ends the program."""
    words = [str(word) for word in command]
    if made.exists():
        print(f"== {made.name} is there: {' '.join(words[1:3])}", flush=True)
        return
    print(f"== {' '.join(words)}", flush=True)
    subprocess.run(words, cwd=ROOT, env={**os.environ, **KEY, **(environment or {})}, check=True)


def launcher(name: str, *arguments: str | Path) -> list[str | Path]:
    """A command of this project under this interpreter."""
    return [sys.executable, f"launchers/{name}.py", *arguments]


def build(data: Path, positions: Path, work: Path) -> Path:
    """The corpus of all people; its folder."""
    bids, corpus = work / "bids", work / "corpus"
    if not (data / PHENOTYPES).is_file():
        from nilearn.datasets import fetch_abide_pcp

        fetch_abide_pcp(
            data_dir=str(data), pipeline="cpac", band_pass_filtering=True, global_signal_regression=True,
            derivatives=["rois_cc200"], quality_checked=False,
        )  # fmt: skip
    if not corpus.exists():
        write_sites(data, positions, bids)
    values = [f"bids_root={bids}", f"out_dir={corpus}", f"min_seconds={{fmri: {LEAST_SECONDS}}}"]
    values += [
        "participants_columns=[diagnosis, age, sex, mean_fd_mm]",
        "split_fractions=[1, 0, 0]",
        "workers=1",
        "allow_public_key=true",
    ]
    run(launcher("build_corpus", *values), corpus / "index.json")
    return corpus


def one_run(
    work: Path, corpus: Path, name: str, seed: int, steps: int, changes: Sequence[str], evaluation: Sequence[str] = ()
) -> dict[str, Any]:
    """Pretrain with ``changes`` of the settings, export and evaluate; scores and the course of the losses."""
    trained, model, scored = (work / f"{name}-{seed}-{what}" for what in ("run", "model", "evaluation"))
    folder = Path(sys.executable).parent
    with socket.create_server(("127.0.0.1", 0)) as server:  # another run may have the usual port
        port = str(server.getsockname()[1])
    start: list[str | Path] = [folder / "deepspeed", "--log_level", "error", "--num_accelerators", "1"]
    start += ["--master_port", port]
    values = [f"corpus_dir={corpus}", f"run_dir={trained}", f"seed={seed}", f"steps={steps}"]
    values += [f"window_seconds={{fmri: {WINDOW_SECONDS}}}", "model.modalities=[fmri]", *changes]  # the last one counts
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "DS_ACCELERATOR": "cpu"}
    config = ["--config", "configs/pretrain/fmri-consortium.yaml"]
    run([*start, "launchers/pretrain.py", *config, *values], trained / "exit.json", environment)
    run(launcher("export", trained, model), model / "config.json")
    config = ["--config", "configs/evaluate/fmri-consortium.yaml"]
    values = [f"model_dir={model}", f"corpus_dir={corpus}", f"out_dir={scored}", *evaluation]
    run(launcher("evaluate", *config, *values), scored / "results.json")
    found = json.loads((scored / "results.json").read_text())
    lines = [{k: v for k, v in line.items() if k.split("/")[0] in ("step", "loss")} for line in read_metrics(trained)]
    dropped = ("roc", "roc_low", "roc_high")
    rows = [{k: v for k, v in row.items() if k not in dropped} for row in found["classification"]]  # curves are long
    kept = ("label_efficiency", "site_decoding", "membership", "overlap", "splits_sha256", "subjects", "sites", "notes")
    ended = json.loads((trained / "exit.json").read_text())["reason"]
    return {
        "seed": seed, "steps": steps, "ended": ended, "changes": list(changes),
        "first_step": lines[0], "last_step": lines[-1],
        "classification": rows, **{k: found[k] for k in kept if k in found},
    }  # fmt: skip


# Pairs of different people of a site teach what a site has in common; what is learned of a person has to be more.
CONTROL, SHUFFLED = ["objective.shuffled_pairs=within_site"], "pairs shuffled within sites"


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, write the file, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="as nilearn lays it out")
    parser.add_argument("--positions", type=Path, help="centres of the parcels; default DATA/cc200_positions.tsv")
    parser.add_argument("--work", type=Path, help="folder of everything that is made; default DATA/mcsp")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of pretraining, one run each (0 1)")
    parser.add_argument("--steps", type=int, default=600, help="of pretraining (600)")
    parser.add_argument(
        "--control", action=argparse.BooleanOptionalAction, default=True, help="one run of pairs shuffled within sites"
    )
    parser.add_argument("--out", type=Path, help="the result file")
    parser.add_argument("--table", action="store_true", help="print the result file; run nothing")
    arguments = parser.parse_args(argv)
    if arguments.table:
        print(table(json.loads(arguments.out.read_text())))
        return 0
    if arguments.data is None:
        parser.error("--data: expected a folder, found none")
    work = (arguments.work or arguments.data / "mcsp").resolve()
    corpus = build(arguments.data, arguments.positions or arguments.data / "cc200_positions.tsv", work)
    runs = {"default": [one_run(work, corpus, "default", seed, arguments.steps, []) for seed in arguments.seeds]}
    if arguments.control:
        runs[SHUFFLED] = [one_run(work, corpus, "shuffled", arguments.seeds[0], arguments.steps, CONTROL)]
    people = runs["default"][0]["subjects"]
    content = {**made_by(PACKAGES), "date": f"{date.today():%Y-%m}", "people": people, "runs": runs}
    out = arguments.out or ROOT / "benchmarks" / "results" / f"abide_{people}.json"
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"\nresults: {out}\n\n{table(content)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
