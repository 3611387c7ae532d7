"""Output of a run: ``metrics.jsonl``, ``events.jsonl``, TensorBoard files, and progress on stderr.

Only rank 0 makes one. ``metrics.jsonl`` has one line per logged step, and always one of the first, whose losses and
retrieval accuracies are those of the untrained model (they precede its update). A step with an evaluation has a line as
well, with values under ``validation/``; those in the first line are also of the untrained model, unless the run
evaluates step 1 itself (``validate_every=1``, or it is the last). The file holds the run as it counts: steps that are
taken again after a crash or a rollback appear once. ``events.jsonl`` is only ever appended to: starts, skipped steps,
rollbacks, ends, with the time.

Metrics go to Weights & Biases or MLflow as well, where their package is installed. Where their servers are, and who is
asking, they read from their own environment variables (``WANDB_*``, ``MLFLOW_*``); MLflow without them keeps a database
in the run's folder. A continued run goes on in the record that it began.
"""

import importlib
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from mcsp.output import write_whole
from mcsp.run_log import iter_metrics, keep_steps, open_to_append
from mcsp.wording import listed

_SERVER = "MLFLOW_TRACKING_URI"
LINE_SECONDS = 10.0  # between progress lines where there is no terminal
BAR = "{desc} {n_fmt}/{total_fmt} [{remaining} left{postfix}]"  # with brief(), below 80 columns


class Tracker(NamedTuple):
    """One record of this run."""

    name: str
    log: Callable[[int, dict[str, float]], object]
    close: Callable[[], object]


class Metrics:
    """Writes the metrics and events of one start of a run."""

    def __init__(self, run_dir: Path, first_step: int, steps: int, also: Sequence[Tracker] = ()) -> None:
        self.run_dir, self.steps, self.also = run_dir, steps, list(also)
        self._path = run_dir / "metrics.jsonl"
        self._events = open_to_append(run_dir / "events.jsonl")
        self._bar = tqdm(
            total=steps, initial=first_step, desc="pretrain", dynamic_ncols=True, disable=not sys.stderr.isatty(),
            bar_format=BAR,
        )  # fmt: skip
        self._began, self._first, self._said = time.monotonic(), first_step, 0.0
        self._open(first_step)

    def _open(self, step: int) -> None:
        keep_steps(self.run_dir, step)
        first = next(iter_metrics(self.run_dir), {})
        self._untrained = first if first.get("step") == 1 else {}
        self._file = self._path.open("a")
        # Also of a run that begins anew: killed before its first checkpoint it has left files.
        self._board = SummaryWriter(str(self.run_dir / "tensorboard"), purge_step=step + 1)

    def rewind(self, step: int) -> None:
        """Forget what was logged after ``step``."""
        self._file.close()
        self._board.close()
        self._open(step)
        self._bar.reset(self.steps)
        self._bar.update(step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log the values of one step, counted from 1; what is not finite becomes ``null``."""
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **line}) + "\n")
        self._file.flush()
        # One event for all of them: with add_scalar's event for each, sixty took 5 ms.
        together = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._board.file_writer.add_summary(together, step)  # type: ignore[attr-defined]
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self.also = [tracker for tracker in self.also if _heard(tracker, lambda: tracker.log(step, finite))]  # noqa: B023
        self._progress(step, values)

    def event(self, kind: str, step: int, **facts: Any) -> None:
        """Append what happened in step ``step``; all but starts also go to stderr."""
        self._events.write(json.dumps({"time": time.time(), "event": kind, "step": step, **facts}) + "\n")
        self._events.flush()
        if kind != "start":
            told = ", ".join(
                f"{name} {listed(value, 3) if isinstance(value, list) else value}" for name, value in facts.items()
            )
            tqdm.write(f"{kind} at step {step}: {told}", file=sys.stderr)

    def advance(self) -> None:
        """Move the progress bar by one step."""
        self._bar.update()

    def close(self) -> None:
        """Flush everything."""
        self._bar.close()
        for stream in (self._board, self._file, self._events):
            stream.close()
        for tracker in self.also:
            _heard(tracker, tracker.close)

    def _progress(self, step: int, values: dict[str, float]) -> None:
        self._untrained = values if step == 1 else self._untrained
        shown = progress(values, self._untrained)
        self._bar.set_postfix_str(brief(values), refresh=False)
        now = time.monotonic()
        if self._bar.disable and (now - self._said > LINE_SECONDS or step == self.steps):
            self._said = now
            left = (self.steps - step) * (now - self._began) / max(1, step - self._first)
            print(f"step {step}/{self.steps}, {shown}, {_clock(left)} left", file=sys.stderr, flush=True)


def _heard(tracker: Tracker, tell: Callable[[], object]) -> bool:
    """Whether a tracker took it. One that fails is told nothing more in this start: metrics.jsonl has everything."""
    try:
        tell()
    except Exception as error:  # noqa: BLE001, each service has its own, and none may end the run
        reason = " ".join(str(error).split())
        tqdm.write(f"warning: {tracker.name} gets no more metrics of this start ({reason:.500})", file=sys.stderr)
        return False
    return True


def brief(values: dict[str, float]) -> str:
    """What a progress bar has room for: loss, retrieval, speed."""
    found = _retrieval(values)
    top1 = f"top-1 {found:.2f}, " if found is not None else ""
    return f"loss {values['loss']:.4g}, {top1}{values['samples_per_second']:.0f} samples/s"


def progress(values: dict[str, float], untrained: dict[str, float]) -> str:
    """The few numbers to watch: loss, retrieval across modalities (else all), rate, norm, speed, waiting, skipped.

    Retrieval beside that of step 1, which no training came before: views that are too easy show there.
    """
    parts = [f"loss {values['loss']:.3f}"]
    now, then = _retrieval(values), _retrieval(untrained)
    parts += [f"top-1 {now:.2f}" + (f" ({then:.2f} untrained)" if then is not None else "")] if now is not None else []
    parts += [f"validation loss {values['validation/loss']:.3f}"] if "validation/loss" in values else []
    parts += [f"lr {values['learning_rate']:.1e}", f"norm {values['gradient_norm']:.2g}"]
    parts += [f"{values['samples_per_second']:.0f} samples/s", f"data wait {100 * values['data_wait_fraction']:.0f} %"]
    parts += [f"skipped {values['skipped_steps']:.0f}"] if values["skipped_steps"] else []
    return ", ".join(parts)


def _retrieval(values: dict[str, float]) -> float | None:
    found = {name: value for name, value in values.items() if name.startswith("top1/")}
    across = [v for name, v in found.items() if name.startswith("top1/fmri-eeg")] or list(found.values())
    return sum(across) / len(across) if across else None


def _clock(seconds: float) -> str:
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    return f"{hours // 24} d {hours % 24} h" if hours >= 48 else f"{hours}:{minutes % 60:02d}:{int(seconds % 60):02d}"


def check_installed(names: Sequence[str]) -> None:
    """Raise ``ValueError`` for one whose package is missing; every rank calls it, so that all end."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"trackers: expected the package {name}, found none; pip install {name}, or take it out")
        if name == "mlflow" and _SERVER not in os.environ and importlib.util.find_spec("sqlalchemy") is None:
            raise ValueError(f"trackers: mlflow has no database, expected {_SERVER} or sqlalchemy: pip install mlflow")


def trackers(names: Sequence[str], run_dir: Path, config: dict[str, Any]) -> list[Tracker]:
    """Open, or continue, the record of a run with each."""
    return [{"wandb": _wandb, "mlflow": _mlflow}[name](run_dir, config) for name in names]


def _wandb(run_dir: Path, config: dict[str, Any]) -> Tracker:
    wandb = importlib.import_module("wandb")
    own, known = {"project": "mcsp", "name": run_dir.name, "dir": str(run_dir)}, run_dir / "wandb-id"
    run = wandb.init(**own, config=config, resume="allow", id=known.read_text() if known.is_file() else None)
    write_whole(known, run.id)
    # Its own counter must never go back, as ours does after a rollback.
    run.define_metric("*", step_metric="step")
    return Tracker("wandb", lambda step, values: run.log({**values, "step": step}), run.finish)


def _mlflow(run_dir: Path, config: dict[str, Any]) -> Tracker:
    mlflow = importlib.import_module("mlflow")
    if _SERVER not in os.environ:  # its own default is the folder where the command was typed
        place = run_dir.absolute()
        mlflow.set_tracking_uri(f"sqlite:///{place / 'mlflow.db'}")
        if mlflow.get_experiment_by_name("mcsp") is None:
            mlflow.create_experiment("mcsp", artifact_location=(place / "mlflow").as_uri())
    mlflow.set_experiment("mcsp")
    known = run_dir / "mlflow-id"
    if known.is_file():
        mlflow.start_run(run_id=known.read_text())
    else:
        write_whole(known, mlflow.start_run(run_name=run_dir.name).info.run_id)
        mlflow.log_dict(config, "config.json")

    def log(step: int, values: dict[str, float]) -> None:
        # A store of files makes a folder of each slash, and "loss" is a file beside "loss/eeg".
        mlflow.log_metrics({name.replace("/", "."): value for name, value in values.items()}, step=step)

    return Tracker("mlflow", log, mlflow.end_run)
