"""Seconds of each part of a step, and the present phase of this rank."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch

Phase = Literal["start", "data", "forward", "backward", "optimizer", "validation", "checkpoint", "end"]
SPLIT = ("data", "forward", "backward", "communication", "optimizer", "validation", "checkpoint")


# By the names of DeepSpeed's backend, which it keeps whatever torch calls them; a test compares the two.
COLLECTIVES = (
    "all_reduce", "inference_all_reduce", "all_reduce_coalesced", "reduce", "broadcast", "broadcast_object_list",
    "all_gather", "all_gather_base", "all_gather_into_tensor", "all_gather_coalesced", "all_gather_object", "gather",
    "scatter", "reduce_scatter", "reduce_scatter_tensor", "all_to_all", "all_to_all_single", "barrier",
    "monitored_barrier",
)  # fmt: skip


class _Awaited:
    """A collective under way, whose ``wait`` counts as communication."""

    def __init__(self, work: Any, clock: "Clock") -> None:
        self._work, self._clock = work, clock

    def wait(self, *args: Any) -> Any:
        with self._clock.collective():
            return self._work.wait(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


class Clock:
    """Attributes time to phases; what passes inside :meth:`collective` is communication, whatever the phase.

    On CUDA it records events and waits for them only in :meth:`split`; on the CPU it reads the clock. Collectives that
    run beside the computation count only for as long as something waits for them.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.phase: Phase = "start"
        self.step = 0  # steps taken
        self._depth = 0  # of collectives
        self.progress = time.monotonic()  # when this rank last went from one thing to another
        self._marks: list[tuple[Phase, float | torch.cuda.Event]] = [("start", self._now())]
        self._waits: list[tuple[Phase, float | torch.cuda.Event, float | torch.cuda.Event]] = []

    def _now(self) -> "float | torch.cuda.Event":
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def enter(self, phase: Phase) -> None:
        """From now on time belongs to ``phase``."""
        self.phase, self.progress = phase, time.monotonic()
        self._marks.append((phase, self._now()))

    @contextlib.contextmanager
    def collective(self) -> Iterator[None]:
        """Inside, this rank waits for other ranks."""
        phase, begin = self.phase, self._now()
        self._depth += 1
        self.progress = time.monotonic()
        try:
            yield
        finally:
            self._depth -= 1
            self.progress = time.monotonic()
            if self._depth == 0:  # DeepSpeed's collectives call each other
                self._waits.append((phase, begin, self._now()))

    def watch_collectives(self, backend: object) -> None:
        """Count the collectives of ``backend``, or the waiting for those under way, as communication."""

        def wrapped(collective: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(collective)
            def call(*args: Any, **keywords: Any) -> Any:
                with self.collective():
                    work = collective(*args, **keywords)
                return _Awaited(work, self) if hasattr(work, "wait") else work

            return call

        for name in COLLECTIVES:
            original = getattr(type(backend), name).__get__(backend)  # not what an earlier clock left
            setattr(backend, name, wrapped(original))

    @property
    def doing(self) -> str:
        """The phase, in words."""
        return f"communication of {self.phase}" if self._depth else self.phase

    def split(self) -> dict[str, float]:
        """Seconds per phase of :data:`SPLIT` since the last call, which also ends the current stretch."""
        self.enter(self.phase)
        last = self._marks[-1][1]
        if isinstance(last, torch.cuda.Event):
            last.synchronize()
        seconds = dict.fromkeys(SPLIT, 0.0)
        for (phase, begin), (_, end) in zip(self._marks[:-1], self._marks[1:], strict=True):
            if phase in seconds:
                seconds[phase] += _between(begin, end)
        for phase, begin, end in self._waits:
            if phase in seconds:
                waited = _between(begin, end)
                seconds["communication"] += waited
                seconds[phase] -= waited
        self.forget()
        return seconds

    def forget(self) -> None:
        """Drop what :meth:`split` would tell. A rank that logs nothing would remember every phase of the run."""
        self._marks, self._waits = self._marks[-1:], []


def _between(begin: "float | torch.cuda.Event", end: "float | torch.cuda.Event") -> float:
    if isinstance(begin, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event)
        return begin.elapsed_time(end) / 1000
    assert isinstance(end, float)
    return end - begin


class Profile:
    """A trace of some steps for chrome://tracing or ui.perfetto.dev, in ``run_dir/profile/rank-00000.json.gz``."""

    def __init__(self, run_dir: Path, rank: int, steps: tuple[int, int] | None, of: int) -> None:
        """Args:
            run_dir, rank: of the run.
            steps: the first and the last, counted from 1; None: no trace.
            of: steps of the run.

        Raises:
            ValueError: steps that the run does not have: there would be no trace of them.
        """
        if steps and not 1 <= steps[0] <= steps[1] <= of:
            raise ValueError(f"profile_steps: expected the first and the last of steps 1 to {of}, found {list(steps)}")
        self.steps, self.path = steps, run_dir / "profile" / f"rank-{rank:05d}.json.gz"
        self._running: torch.profiler.profile | None = None

    def before(self, step: int) -> None:
        """Start where ``step``, which is about to be taken, is the first, or later where the run begins later."""
        if self.steps and self._running is None and self.steps[0] <= step <= self.steps[1] and not self.path.exists():
            self._running = torch.profiler.profile(record_shapes=True)
            self._running.start()

    def after(self, step: int) -> None:
        """Write where ``step``, which was just taken, is the last."""
        if self._running is not None and self.steps and step >= self.steps[1]:
            self._running.stop()
            self.path.parent.mkdir(exist_ok=True)
            self._running.export_chrome_trace(str(self.path))
            self._running = None
