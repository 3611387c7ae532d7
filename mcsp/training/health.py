"""Which steps are applied, and when a run returns to a checkpoint: a function of losses and gradient norms.

Loss and norm are judged apart, each against the last ``spike_window`` finite values *seen*, counted or not:

* what is not finite is skipped;
* a spike (more than ``spike_factor`` robust standard deviations above the median) is skipped. Where ``new_level_after``
  of the last twice as many were spikes, that is a new level: it counts, and what was seen before it is forgotten. Norms
  are compared by their logarithm, because they grow by factors while a model learns;
* the run goes back where ``rollback_after`` steps in a row were not finite, or where all that was learned is lost: the
  median loss has been above that of the first steps, and 1.5 times its best, for ``lost_after`` steps.

The history enters the checkpoint and is the same on every rank, so a resumed run decides alike. Skipping spikes follows
OLMo (arXiv 2501.00656, section 3.2: above the mean of the last 128 by 6 standard deviations) with median and median
absolute deviation for mean and deviation; going back and skipping data follows PaLM (arXiv 2204.02311, section 5.1).
The new level and the loss of all that was learned are ours.

A run ends where too many windows could not be read.
"""

import logging
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mcsp.batch import Batch
from mcsp.config import HealthConfig
from mcsp.schema import MAD_TO_SD

_LEAST_SIGMA = 0.05  # of the median loss, or of the logarithm of a norm: after a quiet stretch no wobble is a spike
_LEVEL_STEPS = 32  # whose median is the level of the loss
_FAR = 1.5  # times the best level
_DOUBT_STEPS = 5  # whose median is high where the weights may be bad: the level would show it some 16 steps late
_SMALLEST, _LARGEST_LOG = 1e-30, 700.0  # norm that has a logarithm, and logarithm that has a norm
# A fraction of bad windows means nothing before so many were read.
_LEAST_WINDOWS = 1000
_log = logging.getLogger(__name__)


class Health:
    """Counts and judges steps; the same on every rank, because every rank tells it the same numbers."""

    def __init__(self, config: HealthConfig) -> None:
        self.config = config
        self.losses: list[float] = []  # the last finite ones, of steps that counted or not
        self.log_norms: list[float] = []
        self.loss_spikes: list[bool] = []  # whether each of the last few was one
        self.norm_spikes: list[bool] = []
        self.levels: list[float] = []  # of the loss: the first and the best, once there are any
        self.lost = 0  # steps in a row in which all that was learned is lost
        self.not_finite = 0  # steps in a row
        self.skipped_steps = 0
        self.in_a_row = 0  # skipped steps since the last one that counted
        self.rollbacks = 0
        self.data_offset = 0  # step s reads what the schedule has for s + data_offset

    def loss_limit(self) -> float:
        """The largest loss that counts in the next step; infinite until half a window is seen."""
        return self._limit(self.losses, None)

    def norm_limit(self) -> float:
        """The largest gradient norm that counts in the next step; infinite until half a window is seen."""
        limit = self._limit(self.log_norms, 1.0)
        return math.exp(limit) if limit < _LARGEST_LOG else math.inf

    def _limit(self, values: list[float], unit: float | None) -> float:
        """``unit`` is what the least spread is a part of, the median where None."""
        if self.config.spike_factor == 0 or len(values) < self.config.spike_window // 2:
            return math.inf
        median = statistics.median(values)
        sigma = MAD_TO_SD * statistics.median(abs(v - median) for v in values)
        return median + self.config.spike_factor * max(sigma, _LEAST_SIGMA * (unit or abs(median)))

    def fault(self, name: str, value: float, limit: float) -> str:
        """Why a step with this value is skipped, in words; empty if it counts."""
        if not math.isfinite(value):
            return f"{name} is {value}"
        return f"{name} {value:.4g} is above {limit:.4g}" if value > limit else ""

    def seen(self, loss: float, norm: float | None, counted: bool) -> str:
        """Remember a step; ``norm`` is None where the loss was reason enough to skip it.

        Returns:
            What has a new level, in words; mostly nothing.
        """
        self.not_finite = 0 if math.isfinite(loss) and math.isfinite(norm or 0.0) else self.not_finite + 1
        self.skipped_steps += not counted
        self.in_a_row = 0 if counted else self.in_a_row + 1
        news = []
        if math.isfinite(loss):
            new = self._remember(loss, self.loss_limit(), self.losses, self.loss_spikes)
            news += ["loss"] * new
            self._follow_level()
        if norm is not None and math.isfinite(norm):
            log_norm = math.log(max(norm, _SMALLEST))
            new = self._remember(log_norm, self._limit(self.log_norms, 1.0), self.log_norms, self.norm_spikes)
            news += ["gradient norm"] * new
        return " and ".join(news)

    def _remember(self, value: float, limit: float, values: list[float], spikes: list[bool]) -> bool:
        """Whether this value is the one that makes a new level."""
        enough = self.config.new_level_after
        spikes.append(value > limit)
        del spikes[: -2 * enough]
        values.append(value)
        if sum(spikes) < enough:
            del values[: -self.config.spike_window]
            return False
        del values[:-enough]
        spikes.clear()
        return True

    def _follow_level(self) -> None:
        width = min(_LEVEL_STEPS, self.config.spike_window)
        whole = len(self.losses) >= width
        if not whole and not self.levels:
            return
        # Behind a new level there are few losses: enough for doubt about the weights, too few for a best level.
        level = statistics.median(self.losses[-width:])
        first, best = self.levels or (level, level)
        self.levels = [first, min(best, level) if whole else best]
        self.lost = self.lost + 1 if _is_lost(level, self.levels) else 0

    @property
    def why_back(self) -> str:
        """Why the run has to go back, in words; empty while it has not."""
        if self.not_finite >= self.config.rollback_after:
            return f"{self.not_finite} steps in a row were not finite"
        if self.config.lost_after and self.lost >= self.config.lost_after:
            first, best = self.levels
            return f"the loss was above its first level {first:.4g} for {self.lost} steps, after {best:.4g}"
        return ""

    @property
    def doubtful(self) -> bool:
        """Whether the weights may be bad: no checkpoint of them should take the place of an older one."""
        return not clean(self.state())

    def rolled_back(self, saved: dict[str, Any], steps: int) -> None:
        """Take the state of a checkpoint ``steps`` ago, and skip what was read since."""
        offset, rollbacks = self.data_offset, self.rollbacks
        self.load_state(saved)
        self.data_offset, self.rollbacks = offset + steps, rollbacks + 1

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON types (which keep every bit of a float)."""
        return {name: value for name, value in vars(self).items() if name != "config"}

    def load_state(self, state: dict[str, Any]) -> None:
        """Read what :meth:`state` wrote; what an older version did not write stays as it is."""
        for name in self.state().keys() & state.keys():
            value = state[name]
            setattr(self, name, list(value) if isinstance(value, list) else value)


class BadWindows:
    """Counts the windows that could not be read, and says when they are too many."""

    def __init__(self, most: float) -> None:
        """``most``: below 1 a fraction of the windows read, from 1 on a number."""
        self.most, self.bad, self.read = most, 0, 0
        self.left_out: Counter[str] = Counter()  # by site: read, and not fit to be learned from
        self._logged: set[str] = set()

    def tell(self, batches: list[Batch]) -> int:
        """Log each place that could not be read, once; returns how many windows of this rank were replaced."""
        errors = [line for batch in batches for line in batch.unreadable]
        for line in errors:
            if line not in self._logged:
                _log.warning("window replaced by the next sample of its stream: %s", line)
                self._logged.add(line)
        return len(errors)

    def add(self, bad: int, read: int, left_out: Sequence[Mapping[str, int]] = ()) -> None:
        """Count windows of all ranks, and those that each rank left out, by site."""
        self.bad, self.read = self.bad + bad, self.read + read
        for of_rank in left_out:
            self.left_out.update(of_rank)

    def too_many(self) -> str:
        """Why the run has to end, in one line; empty where it may go on. The same on every rank."""
        allowed = self.most if self.most >= 1 else self.most * max(self.read, _LEAST_WINDOWS)
        if self.bad <= allowed:
            return ""
        return (
            f"{self.bad} of {self.read} windows could not be read, more than max_bad_windows={self.most:g} allows; "
            "lint_corpus lists what is damaged"
        )


def _is_lost(level: float, levels: Sequence[float]) -> bool:
    first, best = levels
    return level > first and level > _FAR * best


def clean(state: dict[str, Any]) -> bool:
    """Whether a run may go back to a checkpoint with this state: nothing was wrong when it was saved.

    The loss is high from the third step on of which it is; :attr:`Health.lost` waits for its level.
    """
    if state["in_a_row"] or state.get("lost"):
        return False
    levels = state.get("levels")
    return not levels or not _is_lost(statistics.median(state["losses"][-_DOUBT_STEPS:]), levels)


def suspects(events: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Samples that were in more than one skipped step, and in how many; the most frequent first.

    Samples whose embeddings were not finite are named alone in their event; elsewhere all of the batch are.
    """
    steps = [set(event["samples"]) for event in events if event["event"] == "skip" and "samples" in event]
    counts = Counter(key for keys in steps for key in keys)
    return {key: count for key, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if count > 1}
