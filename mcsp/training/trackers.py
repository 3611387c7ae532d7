"""Metrics to Weights & Biases or MLflow as well, where their package is installed; rank 0 alone talks to them.

Where their servers are, and who is asking, they read from their own environment variables (``WANDB_*``, ``MLFLOW_*``).
A continued run goes on in the record that it began.
"""

import importlib
import importlib.util
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


def _remembered(run_dir: Path, name: str, make: Callable[[], str]) -> str:
    path = run_dir / f"{name}-id"
    if not path.is_file():
        path.write_text(make())
    return path.read_text()


def _wandb(run_dir: Path, config: dict[str, Any]) -> Tracker:
    wandb = importlib.import_module("wandb")
    identity = _remembered(run_dir, "wandb", wandb.util.generate_id)
    run = wandb.init(project="mcsp", id=identity, name=run_dir.name, dir=str(run_dir), config=config, resume="allow")
    # Its own counter must never go back, as ours does after a rollback.
    run.define_metric("*", step_metric="step")
    return Tracker(lambda step, values: run.log({**values, "step": step}), run.finish)


def _mlflow(run_dir: Path, config: dict[str, Any]) -> Tracker:
    mlflow = importlib.import_module("mlflow")
    mlflow.set_experiment("mcsp")

    def begin() -> str:
        run = mlflow.start_run(run_name=run_dir.name)
        mlflow.log_dict(config, "config.json")
        mlflow.end_run()
        return str(run.info.run_id)

    mlflow.start_run(run_id=_remembered(run_dir, "mlflow", begin))
    return Tracker(lambda step, values: mlflow.log_metrics(values, step=step), mlflow.end_run)
