"""The learning rate: linear warm-up, then one of three courses; a function of the settings and of applied steps."""

import math
from typing import Any

from mcsp.config import PretrainConfig

# What decides the course of the rate, beside its peak.
SETTINGS = ("steps", "schedule_steps", "warmup_steps", "schedule", "decay_steps")
FINAL = 0.1  # of the peak
_COMPARED = 1000


def learning_rate(config: PretrainConfig, applied_steps: int) -> float:
    """The rate of the step after ``applied_steps``.

    ``cosine`` falls in half a wave from the peak to a tenth at the end. ``constant`` stays. ``warmup-stable-decay``
    (MiniCPM, arXiv 2404.06395; Hägele et al., arXiv 2405.18392) stays and then falls linearly to a tenth over the last
    ``decay_steps``, so that a run can be lengthened for as long as it has not begun to fall.
    """
    if applied_steps < config.warmup_steps:
        return config.learning_rate * (applied_steps + 1) / config.warmup_steps
    length = config.schedule_steps or config.steps
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "warmup-stable-decay":
        decay = max(1, length // 5 if config.decay_steps is None else config.decay_steps)
        fallen = min(1.0, max(0.0, (applied_steps - (length - decay)) / decay))
        return config.learning_rate * (1 - (1 - FINAL) * fallen)
    progress = (applied_steps - config.warmup_steps) / max(1, length - config.warmup_steps)
    return config.learning_rate * ((1 + FINAL) / 2 + (1 - FINAL) / 2 * math.cos(math.pi * min(1.0, progress)))


def same_so_far(old: dict[str, Any], new: dict[str, Any], applied_steps: int) -> bool:
    """Whether two dumped configs give steps up to ``applied_steps`` the same course, whatever their peaks."""
    either = [
        PretrainConfig.model_validate(
            {name: config[name] for name in SETTINGS if name in config}
            | {"corpus_dir": "any", "run_dir": "any", "learning_rate": 1.0}
        )
        for config in (old, new)
    ]
    stride = max(1, applied_steps // _COMPARED)
    return all(
        learning_rate(either[0], step) == learning_rate(either[1], step)
        for step in [*range(0, applied_steps, stride), applied_steps - 1]
        if step >= 0
    )
