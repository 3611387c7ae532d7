"""Memory, time and disk that a run needs, measured on a few steps: ``mcsp pretrain --check``.

Seconds of the parts of a step too; the profiler shows the same names.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import record_function

from mcsp import distributed
from mcsp.batch import Batch
from mcsp.config import ObjectiveConfig, PretrainConfig
from mcsp.losses.objective import objective
from mcsp.training import engine
from mcsp.training.pretrainer import Output, Pretrainer
from mcsp.training.saving.state import write_state
from mcsp.training.throughput import Throughput, peak_memory_gib
from mcsp.training.trainer import Trainer
from mcsp.training.validation.evaluations import Evaluations

_STEPS = 3  # the first is slower: memory is used for the first time


def check(config: PretrainConfig) -> dict[str, Any]:
    """Build everything, take a few steps, evaluate, save once to a temporary folder; every rank calls it.

    Returns:
        Numbers by name, the same on every rank but for ``parts``; :func:`in_words` puts them into words.

    Raises:
        ValueError: whatever the run itself would refuse.
    """
    engine.start_process_group()
    with tempfile.TemporaryDirectory(prefix="mcsp-check-") as aside:
        trainer = Trainer(config.model_copy(update={"run_dir": Path(aside), "mirror_dir": None, "resume": "auto"}))
        evaluations = Evaluations(trainer, None)
        if distributed.is_main():  # as the run does at its start
            Throughput(trainer.config, trainer.dataset.schedule.mean_shapes, trainer.world_size, trainer.device)
        built_gib = peak_memory_gib(trainer.device)
        evaluating, untrained = _timed(trainer, evaluations.at_start)
        seconds = [_timed(trainer, partial(_step, trainer, step))[0] for step in range(_STEPS)]
        stepped_gib = peak_memory_gib(trainer.device)
        copied = trainer.engine.copy_state()
        _step(trainer, _STEPS)  # while the copy waits to be written
        saving, path = _timed(trainer, partial(write_state, Path(aside), trainer.rank, copied))
        own = {
            "checkpoint_bytes": path.stat().st_size,
            "memory_gib_built": built_gib,
            "memory_gib_step": stepped_gib,
            "memory_gib_peak": peak_memory_gib(trainer.device),
            "seconds_per_step": statistics.median(seconds[1:]),
            "seconds_per_evaluation": evaluating if untrained else 0.0,
            "seconds_per_checkpoint": saving,
        }
        of_ranks = distributed.gather_objects(own)
        trainer.saver.finish()
    found: dict[str, Any] = {name: max(each[name] for each in of_ranks) for name in own}
    found["checkpoint_bytes"] = sum(each["checkpoint_bytes"] for each in of_ranks)
    found["parameters"] = sum(getattr(p, "ds_numel", p.numel()) for p in trainer.module.parameters())
    found["model_parameters"] = sum(getattr(p, "ds_numel", p.numel()) for p in trainer.module.model.parameters())
    found["samples"] = {stream.name: len(stream) for stream in trainer.dataset.schedule.streams}
    found["ranks"] = trainer.world_size
    found["parts"] = _parts(trainer) if distributed.is_main() else {}
    found["hours"] = _hours(config, found)
    return found


def _parts(trainer: Trainer) -> dict[str, float]:
    """Where a step of one rank goes, by plain steps of a module that is thrown away."""
    config = trainer.config
    module = Pretrainer(config.model, config.objective, config.augmentation).to(trainer.device)
    optimizer = torch.optim.AdamW(engine.parameter_groups(module, config.weight_decay), lr=config.learning_rate)
    batch = trainer.dataset[0][0].to(trainer.device)
    with distributed.alone():
        return seconds_of_parts(module, batch, config.objective, optimizer, steps=3)


def _step(trainer: Trainer, step: int) -> None:
    batches = [batch.to(trainer.device) for batch in trainer.dataset[step]]
    trainer.train_step(batches)


def _timed(trainer: Trainer, action: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    value = action()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return time.perf_counter() - begin, value


def _hours(config: PretrainConfig, found: dict[str, Any]) -> float:
    """Of all steps, evaluations and checkpoints, without start-up."""
    evaluations = 1 + config.steps // config.validate_every if config.validate_every else 0
    checkpoints = 1 + config.steps // config.checkpoint_every
    seconds = config.steps * found["seconds_per_step"] + evaluations * found["seconds_per_evaluation"]
    return float((seconds + checkpoints * found["seconds_per_checkpoint"]) / 3600)


def in_words(found: dict[str, Any], config: PretrainConfig) -> str:
    """The numbers in words, a line each."""
    samples = ", ".join(f"{count:,} {name}" for name, count in found["samples"].items())
    kept = config.keep_checkpoints + 1 + bool(config.keep_best)
    return f"""\
samples of the training split: {samples}
parameters: {found["parameters"]:,}, of which the export holds {found["model_parameters"]:,}
memory of the fullest of {found["ranks"]} rank(s): {found["memory_gib_built"]:.2f} GiB with the model built, \
{found["memory_gib_step"]:.2f} GiB in a step; expect {found["memory_gib_peak"]:.2f} GiB, while a checkpoint is written
time: {found["seconds_per_step"]:.3g} s per step, {found["seconds_per_evaluation"]:.3g} s per evaluation, \
{found["seconds_per_checkpoint"]:.3g} s per checkpoint; {config.steps:,} steps in {found["hours"]:.2g} hours
checkpoint: {found["checkpoint_bytes"] / 2**20:.1f} MiB; up to {kept} of them, \
{kept * found["checkpoint_bytes"] / 2**30:.2f} GiB, in run_dir
a step of one micro-batch of one rank, in fp32 and without communication:
{table(found["parts"]) if found["parts"] else ""}"""


PARTS = ("views", "measures", "encoders", "heads", "contrast", "backward", "optimizer")


def seconds_of_parts(
    module: Pretrainer,
    batch: Batch,
    config: ObjectiveConfig,
    optimizer: torch.optim.Optimizer,
    steps: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each of :data:`PARTS` in plain steps of one process on one batch, and of the ``step``.

    Views are what augments; measures what is computed of a window without weights; heads projection and prediction;
    contrast the objective. The weights change, so give it a module that may be thrown away. ``clock`` tells seconds:
    on a busy machine ``time.process_time`` those of this process alone.
    """
    found: list[dict[str, float]] = []
    for _ in range(steps + 1):
        seconds, inside = dict.fromkeys(PARTS, 0.0), list[str]()
        begin = _now(batch, clock)

        @contextmanager
        def part(name: str, seconds: dict[str, float] = seconds, inside: list[str] = inside) -> Iterator[None]:
            start = _now(batch, clock)
            inside.append(name)
            with record_function(name):
                yield
            inside.pop()
            seconds[name] += _now(batch, clock) - start
            if inside:  # a part within another one is not counted twice
                seconds[inside[-1]] -= _now(batch, clock) - start

        module.part = part
        try:
            output: Output = module(batch)
        finally:
            module.part = record_function
        with part("contrast"):
            loss, _ = objective(*output, batch.subject_N, batch.site_N, config, module.terms, module.predictions)
        with part("backward"):
            loss.backward()
        with part("optimizer"):
            optimizer.step()
            optimizer.zero_grad()
        found.append({**seconds, "step": _now(batch, clock) - begin})
    return {name: float(torch.tensor([f[name] for f in found[1:]]).median()) for name in found[0]}


def table(seconds: dict[str, float]) -> str:
    """Lines with each part's milliseconds and share of the step; what no part holds is called ``rest``."""
    whole = seconds["step"]
    rows = {name: seconds[name] for name in PARTS}
    rows["rest"] = whole - sum(rows.values())
    lines = [f"{name:<10} {value * 1e3:9.1f} ms {value / whole:6.1%}" for name, value in rows.items()]
    return "\n".join([*lines, f"{'step':<10} {whole * 1e3:9.1f} ms"])


def _now(batch: Batch, clock: Callable[[], float]) -> float:
    if batch.subject_N.is_cuda:
        torch.cuda.synchronize()
    return clock()
