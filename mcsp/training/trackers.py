"""Metrics to Weights & Biases or MLflow as well, where their package is installed; rank 0 alone talks to them.

Where their servers are, and who is asking, they read from their own environment variables (``WANDB_*``, ``MLFLOW_*``).
MLflow without one keeps a database in the run's folder.
A continued run goes on in the record that it began.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Tracker(NamedTuple):
    """One record of this run."""

    log: Callable[[int, dict[str, float]], object]
    close: Callable[[], object]


def check_installed(names: Sequence[str]) -> None:
    """Raise ``ValueError`` for one whose package is missing; every rank calls it, so that all end."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"trackers: expected the package {name}, found none; pip install {name}, or take it out")


def trackers(names: Sequence[str], run_dir: Path, config: dict[str, Any]) -> list[Tracker]:
    """Open, or continue, the record of a run with each."""
    return [{"wandb": _wandb, "mlflow": _mlflow}[name](run_dir, config) for name in names]


def _wandb(run_dir: Path, config: dict[str, Any]) -> Tracker:
    wandb = importlib.import_module("wandb")
    own, known = {"project": "mcsp", "name": run_dir.name, "dir": str(run_dir)}, run_dir / "wandb-id"
    run = wandb.init(**own, config=config, resume="allow", id=known.read_text() if known.is_file() else None)
    known.write_text(run.id)
    # Its own counter must never go back, as ours does after a rollback.
    run.define_metric("*", step_metric="step")
    return Tracker(lambda step, values: run.log({**values, "step": step}), run.finish)


def _mlflow(run_dir: Path, config: dict[str, Any]) -> Tracker:
    mlflow = importlib.import_module("mlflow")
    if "MLFLOW_TRACKING_URI" not in os.environ:  # its own default is the folder where the command was typed
        place = run_dir.absolute()
        mlflow.set_tracking_uri(f"sqlite:///{place / 'mlflow.db'}")
        if mlflow.get_experiment_by_name("mcsp") is None:
            mlflow.create_experiment("mcsp", artifact_location=(place / "mlflow").as_uri())
    mlflow.set_experiment("mcsp")
    known = run_dir / "mlflow-id"
    if known.is_file():
        mlflow.start_run(run_id=known.read_text())
    else:
        known.write_text(mlflow.start_run(run_name=run_dir.name).info.run_id)
        mlflow.log_dict(config, "config.json")

    def log(step: int, values: dict[str, float]) -> None:
        # A store of files makes a folder of each slash, and "loss" is a file beside "loss/eeg".
        mlflow.log_metrics({name.replace("/", "."): value for name, value in values.items()}, step=step)

    return Tracker(log, mlflow.end_run)
