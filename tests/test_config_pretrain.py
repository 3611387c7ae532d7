"""Defaults and limits of pretraining, written out: another default is another run from the same command.

Covers: mcsp/config/pretrain.py
"""

from pathlib import Path
from typing import Any

import pytest

from mcsp.config import PretrainConfig

AT_LEAST = {
    "steps": 1, "schedule_steps": 1, "micro_batches": 1, "decay_steps": 1, "checkpoint_every": 1, "keep_checkpoints": 1,
    "validation_batches": 1, "log_every": 1, "sites_per_batch": 0, "shuffle_shards": 0, "warmup_steps": 0, "workers": 0,
    "keep_every": 0, "validate_every": 0, "collapse_after": 0, "batch.paired": 0, "batch.eeg": 0, "batch.fmri": 0,
    "health.spike_window": 2, "health.new_level_after": 1, "health.rollback_after": 1, "health.lost_after": 0,
    "health.max_rollbacks": 0, "site_temperature": 1.0, "ema_decay": 0.0, "weight_decay": 0.0, "gradient_clipping": 0.0,
    "max_bad_windows": 0.0, "watchdog_seconds": 0.0, "health.spike_factor": 0.0,
}  # fmt: skip


def config(**values: Any) -> PretrainConfig:
    """With dots for sections."""
    overrides = [f"{name}={'null' if value is None else value}" for name, value in values.items()]
    return PretrainConfig.load(None, ["corpus_dir=c", "run_dir=r", *overrides])


def test_defaults_are_those_that_runs_were_made_with() -> None:
    found = {n: v for n, v in config().dump().items() if n not in ("model", "objective", "augmentation")}
    assert found == {
        "corpus_dir": "c", "run_dir": "r", "mirror_dir": None, "init_from": None, "spatial_start": "random",
        "steps": 1000, "schedule_steps": None, "seed": 0, "batch": {"paired": 32, "eeg": 16, "fmri": 16},
        "micro_batches": 1, "window_seconds": {"eeg": 30.0, "fmri": 60.0}, "hemodynamic_delay_seconds": 5.0,
        "site_temperature": 1.0, "sites_per_batch": 0, "shuffle_shards": 0, "learning_rate": 1e-3, "warmup_steps": 20,
        "schedule": "cosine", "decay_steps": None, "ema_decay": 0.0, "weight_decay": 0.05, "gradient_clipping": 1.0,
        "precision": "auto", "activation_checkpointing": False, "compile": False,
        "deepspeed": "configs/deepspeed/zero1.json", "workers": 0, "max_bad_windows": 0.01, "cache_dir": None,
        "cache_gb": 100.0, "checkpoint_every": 100, "keep_checkpoints": 3, "keep_every": 0, "keep_best": None,
        "validate_every": 100, "validation_batches": 2, "collapse_after": 3, "log_every": 1, "profile_steps": None,
        "trackers": [], "resume": "auto", "watchdog_seconds": 600.0,
        "health": {
            "spike_window": 128, "spike_factor": 10.0, "new_level_after": 5, "rollback_after": 10, "lost_after": 200,
            "max_rollbacks": 3,
        },
    }  # fmt: skip
    assert config().deepspeed == Path("configs/deepspeed/zero1.json")


@pytest.mark.parametrize("name", AT_LEAST)
def test_the_least_value_is_taken_and_any_below_it_refused(name: str) -> None:
    least = AT_LEAST[name]
    found: Any = config(**{name: least})
    for part in name.split("."):
        found = getattr(found, part)
    assert found == least
    below = least - 1 if isinstance(least, int) else least - 1e-3
    with pytest.raises(ValueError, match=name.split(".")[-1]):
        config(**{name: below})


@pytest.mark.parametrize("name", ["learning_rate", "cache_gb"])
def test_some_values_are_above_zero(name: str) -> None:
    assert getattr(config(**{name: 1e-4}), name) == 1e-4
    with pytest.raises(ValueError, match=name):
        config(**{name: 0.0})


def test_an_average_keeps_less_than_all() -> None:
    assert config(ema_decay=0.9999).ema_decay == 0.9999
    with pytest.raises(ValueError, match="ema_decay"):
        config(ema_decay=1.0)


def steps(told: str, **values: Any) -> list[int]:
    run = config(steps=12, **values)
    return [step for step in range(1, 13) if getattr(run, told)(step)]


def test_the_first_and_last_step_and_every_so_many_are_evaluated_and_logged() -> None:
    assert steps("is_evaluated", validate_every=5) == [1, 5, 10, 12] and steps("is_evaluated", validate_every=0) == []
    assert steps("is_evaluated", validate_every=100) == [1, 12]
    assert steps("is_logged", validate_every=0, log_every=4) == [1, 4, 8, 12]
    assert steps("is_logged", validate_every=5, log_every=7) == [1, 5, 7, 10, 12]
    assert steps("is_logged", validate_every=0, log_every=100) == [1, 12]
    assert steps("is_logged") == list(range(1, 13))
