"""Which steps count: a loss or gradient that is not finite, or far above the recent ones, is left out of the run.

What is skipped is a function of the losses and norms so far, which enter the checkpoint: a resumed run skips the same
steps. The rule follows OLMo's skipped steps (arXiv 2501.00656, section 3.2: above the mean of the last 128 by 6
standard deviations) with median and median absolute deviation for mean and deviation, so that a spike does not raise
its own limit. Going back and skipping data after many bad steps in a row follows PaLM (arXiv 2204.02311, section 5.1).
"""

import math
import statistics
from typing import Any

from mcsp.config import HealthConfig

_TO_SIGMA = 1.4826  # times the median absolute deviation: the standard deviation of a normal distribution
_LEAST_SIGMA = 0.05  # of the median: a quiet stretch does not make the next wobble a spike


class Health:
    """Counts and judges steps; the same on every rank, because every rank tells it the same numbers."""

    def __init__(self, config: HealthConfig) -> None:
        self.config = config
        self.losses: list[float] = []  # of the last steps that counted
        self.norms: list[float] = []
        self.skipped_steps = 0
        self.in_a_row = 0  # skipped steps since the last one that counted
        self.rollbacks = 0
        self.data_offset = 0  # step s reads what the schedule has for s + data_offset

    def limit(self, values: list[float]) -> float:
        """The largest value that counts after ``values``; infinite until half a window is filled."""
        if self.config.spike_factor == 0 or len(values) < self.config.spike_window // 2:
            return math.inf
        median = statistics.median(values)
        sigma = _TO_SIGMA * statistics.median(abs(v - median) for v in values)
        return median + self.config.spike_factor * max(sigma, _LEAST_SIGMA * abs(median))

    def fault(self, name: str, value: float, values: list[float]) -> str:
        """Why a step with this value is skipped, in words; empty if it counts."""
        if not math.isfinite(value):
            return f"{name} is {value}"
        limit = self.limit(values)
        return f"{name} {value:.4g} is above {limit:.4g}" if value > limit else ""

    def counted(self, loss: float, norm: float) -> None:
        """The step was applied."""
        self.in_a_row = 0
        for values, value in ((self.losses, loss), (self.norms, norm)):
            values.append(value)
            del values[: -self.config.spike_window]

    def skipped(self) -> None:
        """The step was left out."""
        self.skipped_steps += 1
        self.in_a_row += 1

    @property
    def must_roll_back(self) -> bool:
        """So many steps in a row were bad that the weights or this stretch of data must be."""
        return self.in_a_row >= self.config.rollback_after

    def rolled_back(self, saved: dict[str, Any], steps: int) -> None:
        """Take the state of a checkpoint ``steps`` ago, and skip what was read since."""
        offset, rollbacks = self.data_offset, self.rollbacks
        self.load_state(saved)
        self.data_offset, self.rollbacks = offset + steps, rollbacks + 1

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON types (which keep every bit of a float)."""
        return {name: value for name, value in vars(self).items() if name != "config"}

    def load_state(self, state: dict[str, Any]) -> None:
        """Read what :meth:`state` wrote."""
        for name in self.state():
            value = state[name]
            setattr(self, name, list(value) if isinstance(value, list) else value)
