"""Four example tasks, one command: simulated diagnosis at sites never seen, and three tasks on real recordings.

python benchmarks/studies/example_tasks.py --work DIR [--seeds 0 1 2] [--populations 2 3 4] [--steps K] [--out FILE]
python benchmarks/studies/example_tasks.py --table [--out FILE]     prints the result file as the documents show it

Makes a simulated fMRI consortium, pretrains on it (two CPU ranks, or the GPUs that are there), exports, and scores the
export on other consortia, of people and sites that pretraining never saw, and on recordings that come inside Python
packages (real_recordings.py beside this file). Each of ``--seeds`` is a pretraining run of its own, each of
``--populations`` a consortium to score. Writes one file, benchmarks/results/example_tasks_<yyyymm>.json. A stage
that DIR holds already, made with the same command, is re-used with the seconds and the commit that it was made with.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from example_tables import tables

from mcsp.provenance import commit, made_by
from mcsp.run_log import read_metrics

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "deepspeed", "numpy", "scikit-learn", "pyriemann", "neurolib", "aeon-neuro")
LABEL_FRACTIONS = "[0.1, 0.25, 1.0]"
FOLD_SEEDS = 2
# Nobody is behind the simulated subjects, so the key of their hashes may be known.
KEY = {"MCSP_SUBJECT_KEY": b"mcsp example tasks, public key".hex().ljust(64, "0")}
STEPS_ON_PIECES = 60
# To pretrain on, and to score: 1 was looked at while tokens, features and views were chosen, so it cannot be a judge.
PRETRAINED_ON, SCORED_ON = 0, (2, 3, 4, 5)
_ROC = ("roc", "roc_low", "roc_high")


class StageError(Exception):
    """A stage that failed; one line."""


class Stages:
    """Runs named commands once; ``stages.json`` in the work folder says which, how long, at which commit."""

    def __init__(self, work: Path, commit: str | None) -> None:
        """``work`` is made where it is missing."""
        work.mkdir(parents=True, exist_ok=True)
        self.path = work / "stages.json"
        self.commit = commit
        self.done: dict[str, dict[str, Any]] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def run(self, name: str, command: Sequence[str | Path], environment: dict[str, str] | None = None) -> None:
        """Run ``command`` in the repository with its output shown, unless it was run before.

        Raises:
            StageError: an exit status other than 0, or a stage of that name that was made by another command.
        """
        words = [str(word) for word in command]
        before = self.done.get(name)
        if before is not None and before["command"] != words:
            raise StageError(
                f"{self.path}: expected stage {name} of the command {' '.join(words)!r}, found it made by "
                f"{' '.join(before['command'])!r}; name another --work"
            )
        if before is not None:
            print(f"== {name}: made before, in {before['seconds']:.0f} s", flush=True)
            return
        print(f"== {name}\n   {' '.join(words)}", flush=True)
        start = time.monotonic()
        code = subprocess.run(words, cwd=ROOT, env={**os.environ, **KEY, **(environment or {})}, check=False).returncode
        if code != 0:
            raise StageError(f"stage {name} ended with exit status {code}: {' '.join(words)}")
        self.done[name] = {
            "command": words, "seconds": round(time.monotonic() - start, 1), "commit": self.commit,
        }  # fmt: skip
        self.path.write_text(json.dumps(self.done, indent=1) + "\n")


def launcher(name: str, *arguments: str | Path) -> list[str | Path]:
    """A command of this project under this interpreter."""
    return [sys.executable, f"launchers/{name}.py", *arguments]


def deepspeed() -> tuple[list[str | Path], dict[str, str]]:
    """How pretraining is started: on the largest power of two of GPUs that are there, else on two CPU ranks."""
    import torch

    folder = Path(sys.executable).parent
    start: list[str | Path] = [folder / "deepspeed", "--log_level", "error"]
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    gpus = min(torch.cuda.device_count(), 8)
    if gpus:
        return [*start, "--num_gpus", str(1 << gpus.bit_length() - 1)], environment
    return [*start, "--num_accelerators", "2"], {**environment, "DS_ACCELERATOR": "cpu"}


def consortium(stages: Stages, work: Path, name: str, subjects: int, sites: int, seed: int) -> Path:
    """A corpus of simulated recordings; its folder."""
    size = ("--subjects", str(subjects), "--sites", str(sites), "--seed", str(seed))
    bids, corpus = work / f"{name}-bids", work / f"{name}-corpus"
    stages.run(
        f"{name}: recordings", [sys.executable, "-m", "mcsp", "demo-sites", bids, "--kind", "fmri-consortium", *size]
    )
    config = ("--config", "configs/corpus/fmri-consortium.yaml")
    stages.run(
        f"{name}: corpus",
        launcher("build_corpus", *config, f"bids_root={bids}", f"out_dir={corpus}", "allow_public_key=true"),
    )
    return corpus


def one_run(
    stages: Stages, work: Path, seed: int, corpus: Path, others: dict[int, Path], arguments: argparse.Namespace
) -> None:
    """Pretrain with one seed, export, and score the export on all four tasks."""
    run, model = work / f"run-{seed}", work / f"model-{seed}"
    start, environment = deepspeed()
    config = ["--config", "configs/pretrain/fmri-consortium.yaml"]
    values = [f"corpus_dir={corpus}", f"run_dir={run}", f"seed={seed}"]
    values += [f"steps={arguments.steps}"] if arguments.steps else []
    stages.run(f"pretraining {seed}", [*start, "launchers/pretrain.py", *config, *values], environment)
    stages.run(f"export {seed}", launcher("export", run, model))
    config = ["--config", "configs/evaluate/fmri-consortium.yaml"]
    for population, other in others.items():
        values = [f"model_dir={model}", f"corpus_dir={other}", f"out_dir={evaluation(work, seed, population)}"]
        values += [f"run_dir={run}", f"label_fractions={LABEL_FRACTIONS}", f"seeds={FOLD_SEEDS}"]
        stages.run(f"evaluation {seed} of {population}", launcher("evaluate", *config, *values))
    real: list[str | Path] = [
        sys.executable,
        "benchmarks/studies/real_recordings.py",
        "--fmri-model",
        model,
        "--seed",
        str(seed),
    ]
    real += ["--steps", str(arguments.steps_on_pieces), "--out", work / f"real-{seed}.json"]
    stages.run(f"real recordings {seed}", real)


def pretraining(run: Path) -> dict[str, Any]:
    """Losses and retrieval at the first and last step, and how the run ended."""
    lines = read_metrics(run)
    kept = [{k: v for k, v in line.items() if k.split("/")[0] in ("step", "loss", "top1")} for line in lines]
    ended = json.loads((run / "exit.json").read_text())["reason"]
    return {"first_step": kept[0], "last_step": kept[-1], "ended": ended}


def evaluation(work: Path, seed: int, population: int) -> Path:
    """The folder of the scores of one run on one consortium."""
    return work / f"evaluation-{seed}-{population}"


def _scores(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "results.json").read_text())
    rows = [{k: v for k, v in row.items() if k not in _ROC} for row in found["classification"]]
    return {**found, "classification": rows}


def collect(work: Path, seeds: Sequence[int], populations: Sequence[int]) -> dict[str, Any]:
    """What the runs found, by seed."""
    found: dict[str, Any] = {}
    for seed in seeds:
        found[str(seed)] = {
            "pretraining": pretraining(work / f"run-{seed}"),
            "consortia": {str(p): _scores(evaluation(work, seed, p)) for p in populations},
            "real_recordings": json.loads((work / f"real-{seed}.json").read_text())["results"],
        }
    return found


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder of everything that is made (some 2 GB)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of pretraining, one run each (default 0)")
    consortia = "simulated consortia to score (default 2 3 4 5)"
    parser.add_argument("--populations", type=int, nargs="+", default=SCORED_ON, metavar="SEED", help=consortia)
    parser.add_argument("--steps", type=int, help="of pretraining (default: as in its configuration)")
    parser.add_argument("--steps-on-pieces", type=int, default=STEPS_ON_PIECES, help="of training on EEG pieces (60)")
    parser.add_argument(
        "--people", type=int, nargs=2, default=(600, 320), help="to pretrain on, to score each (600 320)"
    )
    parser.add_argument("--sites", type=int, nargs=2, default=(12, 8), help="the same of sites (12 8)")
    default = ROOT / "benchmarks" / "results" / f"example_tasks_{date.today():%Y%m}.json"
    parser.add_argument("--out", type=Path, default=default, help=f"the result file (default {default.name})")
    parser.add_argument("--table", action="store_true", help="print the result file as Markdown; run nothing")
    arguments = parser.parse_args(argv)
    if not arguments.table and arguments.work is None:
        parser.error("--work: expected a folder, found none")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, write the file, print the tables; 1 where a stage failed."""
    arguments = parse(argv)
    if not arguments.table:
        work = arguments.work.resolve()
        stages = Stages(work, commit())
        try:
            people, sites = arguments.people, arguments.sites
            corpus = consortium(stages, work, "pretraining", people[0], sites[0], PRETRAINED_ON)
            others = {p: consortium(stages, work, f"new-{p}", people[1], sites[1], p) for p in arguments.populations}
            for seed in arguments.seeds:
                one_run(stages, work, seed, corpus, others, arguments)
        except StageError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        content = {
            **made_by(PACKAGES),
            "stages": {name: {**made, "command": " ".join(made["command"])} for name, made in stages.done.items()},
            "runs": collect(work, arguments.seeds, arguments.populations),
        }
        text = json.dumps(content, indent=1).replace(str(work), "WORK").replace(f"{Path(sys.executable).parent}/", "")
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")
        print(f"\nresults: {arguments.out}\n")
    if not arguments.out.is_file():
        print(f"error: {arguments.out}: expected a result file, found none", file=sys.stderr)
        return 1
    print(tables(json.loads(arguments.out.read_text())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
