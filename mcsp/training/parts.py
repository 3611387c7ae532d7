"""Seconds of the parts of a step; the profiler shows the same names."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import record_function

from mcsp.batch import Batch
from mcsp.config import ObjectiveConfig
from mcsp.losses.objective import objective
from mcsp.training.pretrainer import Output, Pretrainer

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
