"""When a run evaluates; it keeps the best checkpoint and ends when embeddings collapse."""

import os
import shutil
from pathlib import Path

from mcsp import distributed
from mcsp.training.metrics import Metrics
from mcsp.training.saving import checkpoint
from mcsp.training.stopping import EXIT_COLLAPSED, RunEnded
from mcsp.training.trainer import Trainer
from mcsp.training.validation.validate import PREFIX, Validation, collapsed, validation_schedule

# Beginnings of names; everything else is better where it is smaller.
_MORE_IS_BETTER = ("top1/", "identification/", "rank_")
BEST_DIR = "best"


class Evaluations:
    """Every rank has one. What it decides rests on values that are the same on all, and on the trainer's state."""

    def __init__(self, trainer: Trainer, metrics: Metrics | None) -> None:
        self.trainer, self.config, self.metrics = trainer, trainer.config, metrics
        self.best = False  # whether the last evaluation was the best so far
        schedule = validation_schedule(self.config, trainer.dataset.corpus) if self.config.validate_every else None
        self.validation = Validation(trainer, schedule) if schedule else None
        if self.config.keep_best and self.validation is None:
            raise ValueError(
                f"keep_best={self.config.keep_best}: expected evaluations, found validate_every=0 or a corpus without "
                "people in the validation split"
            )
        self.find_best()

    def at_start(self) -> dict[str, float]:
        """The untrained model's values, logged with step 1, whose losses are also those of the untrained model."""
        if self.validation is None or self.trainer.step:
            return {}
        return self._evaluate(self.validation)

    def _evaluate(self, validation: Validation) -> dict[str, float]:
        values, name = validation.evaluate(), self.config.keep_best
        if name and PREFIX + name not in values:
            known = ", ".join(sorted(key.removeprefix(PREFIX) for key in values))
            raise ValueError(f"keep_best={name}: expected a quantity of the evaluations, one of {known}")
        return values

    def after_step(self) -> dict[str, float]:
        """Values where this step has an evaluation, else none."""
        step, self.best = self.trainer.step, False
        untrained = step == 1 and 1 not in (self.config.validate_every, self.config.steps)  # is logged there
        if self.validation is None or untrained or not self.config.is_evaluated(step):
            return {}
        values, state = self._evaluate(self.validation), self.trainer.validated
        alike, whole = collapsed(values)
        state["collapsed"] = state["collapsed"] + 1 if whole else 0
        if alike and self.metrics:
            self.metrics.event("collapse", step, because="embeddings are all alike", domains=alike)
        name = self.config.keep_best
        # While the weights are in doubt none of them is saved, so none of them is the best.
        if name and not self.trainer.in_doubt and _better(name, values[PREFIX + name], state["best"]):
            state["best"], state["best_step"], self.best = values[PREFIX + name], step, True
        return values

    def end_if_collapsed(self) -> None:
        """Raise ``RunEnded`` after ``collapse_after`` evaluations in a row with embeddings all alike."""
        times, most = self.trainer.validated["collapsed"], self.config.collapse_after
        if most and times >= most:
            self.trainer.saver.finish()  # of weights from before
            raise RunEnded(
                "collapsed",
                f"embeddings of a modality were all alike {times} evaluations in a row; checkpoints are from before",
                EXIT_COLLAPSED,
            )

    def keep(self) -> None:
        """Keep the checkpoint of this step as the best one: hard links, which old checkpoints are not deleted from."""
        if distributed.is_main():
            link_best(self.config.run_dir, self.trainer.step)

    def find_best(self) -> None:
        """After a start or a rollback: keep what the run's state calls the best, or forget it where it is nowhere.

        A run that was killed just behind that save has not kept it yet. A best of later steps, which the run has gone
        back behind, is of a run that no longer is.
        """
        if not self.config.keep_best:
            return
        run_dir, step, found = self.config.run_dir, self.trainer.validated["best_step"], False
        if distributed.is_main():
            for path in checkpoint.complete(run_dir, BEST_DIR):
                if checkpoint.step_of(path) > self.trainer.step:
                    shutil.rmtree(path)
            if step is not None:
                found = (run_dir / BEST_DIR / checkpoint.checkpoint_path(run_dir, step).name).is_dir()
                if not found and checkpoint.latest_checkpoint(run_dir, lambda m: m["step"] == step):
                    link_best(run_dir, step)
                    found = True
        if step is not None and not distributed.gather_objects(found)[0]:
            self.trainer.validated |= {"best": None, "best_step": None}


def _better(name: str, value: float, best: float | None) -> bool:
    if best is None:
        return value == value  # not NaN
    return value > best if name.startswith(_MORE_IS_BETTER) else value < best


def link_best(run_dir: Path, step: int) -> None:
    """``best/step-00000100`` with the files of that checkpoint; an earlier best goes when the new one is there."""
    source, folder = checkpoint.checkpoint_path(run_dir, step), run_dir / BEST_DIR
    aside = folder / f"incomplete-{source.name}"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        shutil.copytree(source, aside, copy_function=os.link)
    except (OSError, shutil.Error):  # no hard links on this file system
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside)
    shutil.rmtree(folder / source.name, ignore_errors=True)
    aside.rename(folder / source.name)
    for path in checkpoint.complete(run_dir, BEST_DIR):
        if path.name != source.name:
            shutil.rmtree(path)
