"""Runs whose evaluations say what a test wants: which checkpoint is kept as the best one, and what an end keeps."""

import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mcsp.config import PretrainConfig
from mcsp.training import engine, trainer
from mcsp.training.reading.loader import StepDataset
from mcsp.training.run import Run, pretrain
from mcsp.training.saving.state import write_state
from mcsp.training.stopping import RunEnded
from mcsp.training.trainer import Trainer
from mcsp.training.validation.evaluations import Evaluations
from mcsp.training.validation.validate import Validation


class Damaged(StepDataset):
    """Windows that are not finite where the data is bad."""

    bad: Callable[[int], bool] = staticmethod(lambda step: False)

    def __getitem__(self, step: int):
        batches = super().__getitem__(step)
        if not self.bad(step):
            return batches
        signals = {m: s.replace(x_BCT=torch.full_like(s.x_BCT, math.nan)) for m, s in batches[0].signals.items()}
        return [replace(batches[0], signals=signals), *batches[1:]]


def evaluate(losses: dict[int, float], alike: int = 10**9) -> None:
    """Have evaluations say these losses after these steps, and that all embeddings are alike after ``alike``."""

    def told(self: Validation) -> dict[str, float]:
        step = self.trainer.step
        people = {"validation/people/eeg": 8.0, "validation/rank_z/eeg/spatial": 1.0 if step >= alike else 6.0}
        return {"validation/loss": losses.get(step, 9.0), **people}

    Validation.evaluate = told  # type: ignore[method-assign]


def run(overrides: list[str], bad: Callable[[int], bool] = lambda step: False, stop_at: int = 10**9) -> str:
    """How it ended, in words."""
    holder: list[Trainer] = []
    config = PretrainConfig.load(None, overrides)
    holder.append(Trainer(config, asked=lambda: "test" if holder[0].step + 1 == stop_at else ""))
    holder[0].dataset.__class__ = Damaged
    holder[0].dataset.bad = bad
    try:
        Run(holder[0]).go()
    except (RunEnded, ValueError, KeyboardInterrupt) as end:
        return str(end)
    return ""


def kept(run_dir: Path) -> dict[str, Any]:
    """Steps of checkpoints and of the best, and what the newest says is the best."""
    names = ("checkpoints", "best")
    steps = {name: sorted(int(path.name[5:]) for path in (run_dir / name).glob("step-*")) for name in names}
    if not steps["checkpoints"]:
        return {**steps, "said": None}
    newest = run_dir / "checkpoints" / f"step-{steps['checkpoints'][-1]:08d}" / "manifest.json"
    return {**steps, "said": json.loads(newest.read_text())["validated"]["best_step"]}


def interrupted(self: Evaluations) -> None:
    raise KeyboardInterrupt("killed behind the save")


def main(out: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    both, folder = [*overrides, "steps=4", "keep_best=loss", "spatial_start=random"], Path(out)

    evaluate({2: 1.0, 4: 2.0})  # the second step is skipped, and nothing of it saved
    run([*both, f"run_dir={out}/doubt"], bad=lambda step: step == 1)
    found["doubt"] = kept(folder / "doubt")

    killed, keep = [*both, f"run_dir={out}/killed"], Evaluations.keep
    Evaluations.keep = interrupted  # type: ignore[method-assign]
    assert run(killed) == "killed behind the save"
    Evaluations.keep = keep  # type: ignore[method-assign]
    found["killed"] = [kept(folder / "killed")]
    run(killed)
    found["killed"].append(kept(folder / "killed"))

    later = [*both, f"run_dir={out}/later"]
    evaluate({2: 1.0, 4: 0.5})
    run(later)
    found["later"] = [kept(folder / "later")]
    (folder / "later" / "checkpoints" / "step-00000004" / "manifest.json").write_text("damaged")
    evaluate({4: 3.0})  # as with another learning rate
    run(later)
    found["later"].append(kept(folder / "later"))
    shutil.rmtree(folder / "later" / "best")
    shutil.rmtree(folder / "later" / "checkpoints" / "step-00000002")
    evaluate({6: 4.0})
    run([*later, "steps=6", "schedule_steps=4"])
    found["later"].append(kept(folder / "later"))

    found["typing error"] = run([*later, "steps=8", "schedule_steps=4", "keep_best=los"])

    evaluate({}, alike=3)
    slow = [*both, f"run_dir={out}/alike", "checkpoint_every=20", "validate_every=3", "collapse_after=1"]
    init = trainer.Saver.__init__

    def slow_write(*arguments: Any) -> Path:
        time.sleep(3)
        return write_state(*arguments)

    def with_slow_write(self: Any, *arguments: Any, **more: Any) -> None:
        init(self, *arguments, **more)
        self.write = slow_write

    trainer.Saver.__init__ = with_slow_write  # type: ignore[method-assign]
    found["alike"] = {"why": run(slow), **kept(folder / "alike")}
    trainer.Saver.__init__ = init  # type: ignore[method-assign]

    evaluate({})
    only = [*both, f"run_dir={out}/only", "keep_checkpoints=1", "steps=6", "health.rollback_after=3"]
    run(only, bad=lambda step: 2 <= step <= 4, stop_at=3)
    found["only"] = [kept(folder / "only")]
    found["only"] += [run(only, bad=lambda step: 2 <= step <= 4), kept(folder / "only")]

    read = StepDataset.__getitem__

    def signalled(self: StepDataset, step: int):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, step)

    StepDataset.__getitem__ = signalled  # type: ignore[method-assign]
    code = pretrain(PretrainConfig.load(None, [*both, f"run_dir={out}/last"]))
    found["last"] = {"code": code, **json.loads((folder / "last" / "exit.json").read_text())}
    (folder / "found.json").write_text(json.dumps(found))
    engine.stop_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
