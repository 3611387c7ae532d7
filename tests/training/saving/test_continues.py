"""What may differ between a run and the one that it continues, and weights that a new run starts from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mcsp.config import ModelConfig, PretrainConfig
from mcsp.training.saving import checkpoint
from mcsp.training.saving.continues import (
    AHEAD,
    FREE,
    FROM_NOW_ON,
    REFUSED,
    changes,
    in_words,
    start_from,
    table,
)
from tests.training.saving.test_checkpoint import CONFIG, FACTS, SHAPES, save, spoil, values

ROOT = Path(__file__).resolve().parents[3]


def test_another_run_is_refused_and_another_number_of_ranks_is_not(tmp_path) -> None:
    manifest = {**FACTS, "step": 5, "health": {"skipped_steps": 0}, "config": CONFIG}

    def refused(facts: dict[str, Any], **config: Any) -> str:
        with pytest.raises(ValueError, match=str(tmp_path)) as caught:
            changes(tmp_path, manifest, {**FACTS, **facts, "config": {**CONFIG, **config}})
        return str(caught.value)

    assert "the config differs from the saved one (seed: 0 -> 5)" in refused({}, seed=5)
    assert "checkpoint of another corpus" in refused({"index_hash": "0" * 64})
    assert "add schedule_steps=10" in refused({}, steps=20)
    free = {"deepspeed": "zero3.json", "steps": 20, "schedule_steps": 10}
    assert not changes(tmp_path, manifest, {**FACTS, "world_size": 7, "zero_stage": 3, "config": {**CONFIG, **free}})


def test_a_lower_learning_rate_and_other_hardware_are_permitted_and_told(tmp_path) -> None:
    manifest = {**FACTS, "step": 5, "health": {"skipped_steps": 0}, "config": {**CONFIG, "learning_rate": 1e-3}}
    other = {**FACTS, "arithmetic": "bf16 on NVIDIA H100", "config": {**CONFIG, "learning_rate": 3e-4}}
    assert changes(tmp_path, manifest, other) == {
        "learning_rate": "0.001 -> 0.0003", "arithmetic": "fp32 on cpu -> bf16 on NVIDIA H100",
    }  # fmt: skip
    before = {name: value for name, value in manifest.items() if name != "arithmetic"}
    assert changes(tmp_path, before, other) == {"learning_rate": "0.001 -> 0.0003"}


def test_every_setting_is_in_the_table_of_the_documentation_with_what_a_change_does() -> None:
    every = set(PretrainConfig.model_fields)
    kinds = [FREE, FROM_NOW_ON, AHEAD, set(REFUSED)]
    assert set().union(*kinds) == every, "a new setting needs a decision"
    assert sum(map(len, kinds)) == len(every), "one decision each"
    assert table() in (ROOT / "docs" / "training.md").read_text(), "run python -m mcsp.training.saving.continues"


def test_a_start_is_told_what_changed_and_whether_it_matters(tmp_path) -> None:
    old = PretrainConfig.load(None, ["corpus_dir=c", "run_dir=r", "steps=10"]).dump()
    new = {**old, "workers": 4, "learning_rate": 1e-4}
    manifest, facts = {**FACTS, "step": 7, "config": old}, {**FACTS, "world_size": 3, "config": new}
    told = in_words(tmp_path / "step-00000007", manifest, facts)
    assert told == [
        "continues from step-00000007: 7 of 10 steps are taken",
        "learning_rate: 0.001 -> 0.0001: steps from here on follow it",
        "workers: 0 -> 4: changes nothing in the results",
        f"saved by {FACTS['world_size']} ranks at ZeRO-{FACTS['zero_stage']}, continued with 3 at "
        f"ZeRO-{FACTS['zero_stage']}: the same data, numbers equal up to rounding",
    ]


def test_a_course_may_change_from_the_first_step_on_that_was_not_applied(tmp_path) -> None:
    """A step that was skipped took no rate, so that the course of a later one is still open."""
    stable = {**CONFIG, "schedule": "warmup-stable-decay", "decay_steps": 5}  # falls behind the fifth applied step
    facts = {**FACTS, "config": {**stable, "decay_steps": 6}}  # behind the fourth
    manifest = {**FACTS, "step": 6, "health": {"skipped_steps": 1}, "config": stable}
    assert changes(tmp_path, manifest, facts) == {}
    with pytest.raises(
        ValueError, match=r"learning rate of the 6 steps taken would have been another \(decay_steps: 5"
    ):
        changes(tmp_path, {**manifest, "health": {"skipped_steps": 0}}, facts)


class Trained(nn.Module):
    """Names and shapes of what a checkpoint of these tests holds; the temperatures are of another number."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        for name in ("a", "b"):
            self.model.register_parameter(name, nn.Parameter(torch.zeros(SHAPES[f"model.{name}"])))
        self.log_scale_P = nn.Parameter(torch.full((9,), 5.0))


def test_a_new_run_takes_the_newest_weights_that_can_be_read_and_those_of_its_own_shape(tmp_path) -> None:
    run_dir = tmp_path / "run"
    for step in (1, 2, 3):
        save(run_dir, step, keep=9)
    spoil(run_dir, 3)
    for source, step in ((run_dir, 2), (checkpoint.checkpoint_path(run_dir, 1), 1)):
        module = Trained()
        assert start_from(source, module, ModelConfig()).endswith(f"{checkpoint.checkpoint_path(run_dir, step)} "
                                                                  f"(step {step})")  # fmt: skip
        assert all(torch.equal(module.state_dict()[n], v["weight"]) for n, v in values(step).items() if "." in n)
        assert module.log_scale_P.tolist() == [5.0] * 9


def test_weights_of_another_architecture_are_refused_before_anything_is_filled(tmp_path) -> None:
    save(tmp_path, 1)
    module = Trained()
    other = ModelConfig(projection_dim=64)
    with pytest.raises(
        ValueError, match=r"another architecture \(model.projection_dim: 128 -> 64\); set model to match"
    ):
        start_from(tmp_path, module, other)
    assert not any(module.state_dict()[f"model.{n}"].any() for n in "ab")
    for nothing in (tmp_path / "absent", tmp_path / "checkpoints"):
        with pytest.raises(ValueError, match="expected a run with a checkpoint, a checkpoint or an export, found none"):
            start_from(nothing, module, ModelConfig())
