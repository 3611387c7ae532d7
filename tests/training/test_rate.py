"""The course of the learning rate, and which settings of it may change in a run.

Covers: mcsp/config/pretrain.py
"""

from itertools import pairwise
from typing import Any

import pytest

from mcsp.config import PretrainConfig
from mcsp.config.pretrain import learning_rate, same_so_far


def config(**values: Any) -> PretrainConfig:
    return PretrainConfig.parse({"corpus_dir": "c", "run_dir": "r", "steps": 110, "warmup_steps": 10} | values, "test")


def test_cosine_warms_up_and_falls_to_a_tenth() -> None:
    rates = [learning_rate(config(learning_rate=1e-2), step) for step in range(111)]
    assert rates[:3] == pytest.approx([1e-3, 2e-3, 3e-3])
    assert max(rates) == pytest.approx(1e-2)
    assert rates[110] == pytest.approx(1e-3)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_constant_stays() -> None:
    rates = [learning_rate(config(learning_rate=1e-2, schedule="constant"), step) for step in range(200)]
    assert rates[4] == pytest.approx(5e-3) and set(rates[10:]) == {1e-2}


def test_warmup_stable_decay_falls_at_the_end() -> None:
    stable = config(learning_rate=1e-2, schedule="warmup-stable-decay", decay_steps=20)
    rates = [learning_rate(stable, step) for step in range(130)]
    assert set(rates[9:91]) == {1e-2} and rates[91] == pytest.approx(0.955e-2)
    assert rates[100] == pytest.approx(0.55e-2) and rates[110:] == pytest.approx([1e-3] * 20)
    a_fifth = config(schedule="warmup-stable-decay")
    assert learning_rate(a_fifth, 88) == learning_rate(a_fifth, 20) > learning_rate(a_fifth, 89)
    for short in ({"decay_steps": 1}, {"steps": 4, "schedule_steps": 4}):  # a fifth of four steps is none
        at_once = config(schedule="warmup-stable-decay", learning_rate=1e-2, warmup_steps=0, **short)
        last = at_once.schedule_steps or at_once.steps
        assert [learning_rate(at_once, last + n) for n in (-2, -1, 0)] == pytest.approx([1e-2, 1e-2, 1e-3])


@pytest.mark.parametrize(
    ("old", "new", "steps", "same"),
    [
        ({}, {"steps": 200}, 50, False),
        ({}, {"steps": 200, "schedule_steps": 110}, 110, True),
        ({}, {"learning_rate": 1e-5}, 50, True),
        ({}, {"warmup_steps": 12}, 50, False),
        ({"schedule": "constant"}, {"schedule": "constant", "steps": 500}, 110, True),
        ({"schedule": "warmup-stable-decay"}, {"schedule": "warmup-stable-decay", "steps": 500}, 88, True),
        ({"schedule": "warmup-stable-decay"}, {"schedule": "warmup-stable-decay", "steps": 500}, 89, True),
        ({"schedule": "warmup-stable-decay"}, {"schedule": "warmup-stable-decay", "steps": 500}, 90, False),
        ({"schedule": "constant"}, {"schedule": "warmup-stable-decay"}, 60, True),
        ({}, {"schedule": "constant"}, 60, False),
        ({}, {"schedule": "constant"}, 5, True),
        ({}, {"warmup_steps": 12}, 0, True),
        ({}, {"warmup_steps": 12}, 1, False),
    ],
)
def test_a_course_may_change_ahead_and_not_behind(old, new, steps, same) -> None:
    assert same_so_far(config(**old).dump(), config(**new).dump(), steps) == same


def test_behind_its_end_a_course_stays_at_a_tenth_whatever_its_warm_up() -> None:
    for course in ("cosine", "warmup-stable-decay"):
        for values in ({}, {"warmup_steps": 0}, {"steps": 50, "schedule_steps": 110}):
            rates = [learning_rate(config(learning_rate=1.0, schedule=course, **values), step) for step in range(170)]
            assert rates[110:] == pytest.approx([0.1] * 60) and min(rates[10:110]) > 0.1
    half = config(learning_rate=1.0, warmup_steps=0)
    assert [learning_rate(half, step) for step in (0, 55)] == pytest.approx([1.0, 0.55])


def test_of_a_long_course_the_last_step_is_compared_too() -> None:
    """Steps 0 to 1998 have the same rate; only every second of 2000 steps is looked at, and the last."""
    old = config(schedule="constant", steps=4000).dump()
    new = config(schedule="warmup-stable-decay", steps=2498, decay_steps=500).dump()
    assert same_so_far(old, new, 1999) and not same_so_far(old, new, 2000)
