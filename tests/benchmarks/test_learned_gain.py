"""Layers that are learned from halves: the closed form is the evaluation's denoiser, training lowers its loss."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from mcsp.evaluate.readout.grams import combined, denoised, gram

STUDIES = Path(__file__).parents[2] / "benchmarks" / "people"
SITES = [f"site-{i % 3}" for i in range(36)]


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STUDIES)
        yield importlib.import_module("learned_gain")


@pytest.fixture(scope="module")
def gram_3N3N() -> np.ndarray:
    """Of 36 people whose halves share four directions."""
    rng = np.random.default_rng(0)
    own_NF = rng.normal(size=(36, 4)) @ rng.normal(size=(4, 300))
    first_NF, second_NF = (own_NF + rng.normal(size=own_NF.shape) for _ in range(2))
    return gram(np.concatenate([(first_NF + second_NF) / 2, first_NF, second_NF]))


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_layer_of_all_numbers_is_the_denoiser(study: ModuleType, gram_3N3N: np.ndarray, shuffled: bool) -> None:
    train = np.arange(30)
    span = study.Span(gram_3N3N, np.asarray(SITES), train, shuffled)
    encode_PR, decode_RP = span.denoiser(10**6)
    np.testing.assert_allclose(decode_RP @ decode_RP.T, np.eye(len(decode_RP)), atol=1e-9)
    found_NN = combined([gram(span.whole_NP @ encode_PR)], train)
    np.testing.assert_allclose(found_NN, denoised(gram_3N3N, SITES, shuffled)(train), atol=1e-8)


def test_few_numbers_hold_what_halves_share(study: ModuleType, gram_3N3N: np.ndarray) -> None:
    span = study.Span(gram_3N3N, np.asarray(SITES), np.arange(36), False)
    full_AP = span.halves_AP @ np.linalg.multi_dot(span.denoiser(10**6))
    few_AP = span.halves_AP @ np.linalg.multi_dot(span.denoiser(4))
    assert np.linalg.norm(full_AP - few_AP) < 0.5 * np.linalg.norm(full_AP)


@pytest.mark.parametrize("terms", ["prediction", "contrast"])
def test_training_lowers_the_loss_and_depends_on_the_seed_alone(
    study: ModuleType, gram_3N3N: np.ndarray, monkeypatch: pytest.MonkeyPatch, terms: str
) -> None:
    monkeypatch.setattr(study, "TRAINED_RANK", 4)
    span = study.Span(gram_3N3N, np.asarray(SITES), np.arange(36), False)
    halves = [torch.tensor(x, dtype=torch.float32) for x in np.split(span.halves_AP, 2)]
    site_M, losses = torch.tensor(span.site_M), []

    class Kept(study.Layer):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            made.append(self)

    made: list[torch.nn.Module] = []
    monkeypatch.setattr(study, "Layer", Kept)
    found = {}
    for steps in (0, 40, 40):
        monkeypatch.setattr(study, "STEPS", steps)
        found_NR = study.trained(span, terms, 0, at_denoiser=False, mlp=True)
        losses.append(study.loss_of(made[-1], halves, halves[::-1], site_M, terms).item())
        np.testing.assert_array_equal(found.setdefault(steps, found_NR), found_NR)
    assert losses[1] < 0.9 * losses[0]
