"""Many short runs of pretraining, each in its own process, so that a failure affects one run only.

A run is ``variant/seed``. Its folder holds ``log.txt``, ``run/`` (metrics) and, once it is finished and scored,
``result.json``; a run that has one with the same configuration is not made again.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mcsp.config import PretrainConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.model.mcsp import MCSP
from mcsp.model.weights import load_weights
from mcsp.output import write_whole
from mcsp.run_log import read_metrics
from mcsp.training.run import pretrain
from mcsp.training.saving import checkpoint
from mcsp.training.saving.state import consolidate_weights
from mcsp.training.trainer import for_corpus

from .settings import AblateConfig

RESULT_FILE = "result.json"
SCORING = 3  # raise when scores change their meaning, so that older results are made again
_POLL_SECONDS = 0.2


def read_result(config: AblateConfig, run: str) -> dict[str, Any] | None:
    """What a finished run found; None where there is none, or one of another configuration."""
    variant, seed = run.split("/")
    path = config.out_dir / run / RESULT_FILE
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found if found["asked"] == asked(config, variant, int(seed)) else None


def asked(config: AblateConfig, variant: str, seed: int) -> dict[str, Any]:
    """Everything that a run's result depends on beside code and corpus files."""
    pretraining = config.pretraining(variant, seed)
    return {
        "pretraining": {k: v for k, v in pretraining.dump().items() if k != "run_dir"},
        "label": config.label,
        "windows_per_recording": config.windows_per_recording,
        "few_labels": [config.few_labels, config.few_label_draws],
        "scoring": SCORING,
    }


def run_all(config: AblateConfig, command: Sequence[str]) -> list[str]:
    """Make every run that has no result yet, ``config.at_once`` at a time; the runs that failed.

    Args:
        config: the grid.
        command: makes one run when ``only=variant/seed`` is appended to it.
    """
    waiting = [run for run in config.runs() if read_result(config, run) is None]
    failed: list[str] = []
    working: dict[str, subprocess.Popen[bytes]] = {}
    bar = tqdm(total=len(config.runs()), initial=len(config.runs()) - len(waiting), desc="ablation", unit="run")
    try:
        while waiting or working:
            while waiting and len(working) < config.at_once:
                run = waiting.pop(0)
                working[run] = _start(config.out_dir / run, [*command, f"only={run}"])
            time.sleep(_POLL_SECONDS)
            for run, process in list(working.items()):
                if process.poll() is not None:
                    del working[run]
                    bar.update()
                    if read_result(config, run) is None:
                        failed.append(run)
                        log = config.out_dir / run / "log.txt"
                        tqdm.write(f"{run}: failed (status {process.returncode}), see {log}", file=sys.stderr)
    finally:
        for process in working.values():
            process.terminate()
        bar.close()
    return failed


def result_file(config: AblateConfig, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What ``ablation.json`` says beside its table: who made it, of what, and every run; no path of the machine.

    Args:
        config: the grid.
        results: contents of ``result.json`` of the runs that have one.
    """
    corpus = Corpus(config.corpus_dir)
    totals = corpus.index["totals"]
    makers: list[dict[str, Any]] = []
    for result in results:
        if result["made_by"] not in makers:
            makers.append(result["made_by"])
    base = config.pretraining(config.base, config.seeds[0]).dump()
    shared = config.dump()
    if config.pretrain is not None and config.pretrain.is_absolute():
        shared["pretrain"] = config.pretrain.name
    return {
        "made_by": makers,
        "corpus": {
            "index_hash": corpus.index_hash,
            "subjects": totals["all"]["subjects"],
            "sites": len(totals["sites"]),
            "simulated_sites": sum(site["simulated"] for site in totals["sites"].values()),
        },
        "config": {k: v for k, v in shared.items() if k not in ("corpus_dir", "out_dir", "at_once", "only")},
        "base": {k: v for k, v in base.items() if k not in ("corpus_dir", "run_dir", "seed")},
        "runs": [{k: v for k, v in result.items() if k not in ("asked", "made_by")} for result in results],
    }


def _start(folder: Path, command: Sequence[str]) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def train(config: PretrainConfig) -> MCSP:
    """Pretrain, or continue, and the model in evaluation mode on the CPU.

    Raises:
        ValueError: whatever pretraining refuses, or a run that did not reach its last step.
    """
    code = pretrain(config)
    found = checkpoint.latest_checkpoint(config.run_dir)
    if code or found is None:
        raise ValueError(f"{config.run_dir}: pretraining ended with status {code} before its last step")
    model = initial(config)
    load_weights(model, consolidate_weights(found), str(found))
    return model.eval()


def initial(config: PretrainConfig) -> MCSP:
    """The model with weights from the run's seed, before any training, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return MCSP(for_corpus(config, Corpus(config.corpus_dir)).model).eval()


def remembered(
    config: AblateConfig, pretraining: PretrainConfig, score: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What ``score`` says of a model before training, kept on disk: many variants start from the same one."""
    keys = ("corpus_dir", "seed", "window_seconds", "model", "hemodynamic_delay_seconds")
    start = {key: value for key, value in pretraining.dump().items() if key in keys}
    scoring = [SCORING, config.label, config.windows_per_recording, config.few_labels, config.few_label_draws]
    digest = hashlib.sha256(json.dumps([start, scoring], sort_keys=True).encode()).hexdigest()[:16]
    path = config.out_dir / "untrained" / f"{digest}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(score(), indent=1) + "\n")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def write_result(config: AblateConfig, run: str, scores: dict[str, Any], made_by: dict[str, Any]) -> None:
    """Write ``result.json`` at once or not at all, then drop the checkpoints, which are large.

    Args:
        config: the grid.
        run: variant/seed.
        scores: of the trained and of the untrained model.
        made_by: from :func:`mcsp.provenance.made_by`, taken when the run began.
    """
    variant, seed = run.split("/")
    folder, pretraining = config.out_dir / run, config.pretraining(variant, int(seed))
    metrics = read_metrics(pretraining.run_dir)
    first, last = metrics[0], metrics[-1]
    names = [name for name in last if name == "loss" or name.startswith(("loss/", "top1/"))]
    training = {name: [first.get(name), last[name]] for name in names}
    seconds = sum(line["seconds_per_step"] for line in metrics) / len(metrics)
    content = {
        "variant": variant, "seed": int(seed), "asked": asked(config, variant, int(seed)), "scores": scores,
        "first_and_last_step": training, "seconds_per_step": seconds, "made_by": made_by,
    }  # fmt: skip
    write_whole(folder / RESULT_FILE, json.dumps(content, indent=1) + "\n")
    shutil.rmtree(pretraining.run_dir / "checkpoints", ignore_errors=True)
