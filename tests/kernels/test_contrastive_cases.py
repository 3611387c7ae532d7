"""Random cases against float64 on a CPU: the reference and blocks, float32 and float64."""

from typing import Any

import pytest
import torch

from mcsp.kernels.contrastive import blocks, contrastive_loss, relational_distillation
from tests.kernels.contrast_cases import case, expect_float64, outcome, without_itself


@pytest.mark.parametrize("loss", [contrastive_loss, relational_distillation])
@pytest.mark.parametrize("seed", range(64))
def test_reference_and_blocks_are_float64_to_a_millionth(loss: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    p = case(seed)
    p = without_itself(p) if loss is relational_distillation else p
    monkeypatch.setattr(blocks, "GOOD_ROWS", 16)
    truth = outcome(loss, p, torch.float64, "cpu", impl="reference")
    exact = outcome(loss, p, torch.float64, "cpu", impl="blocks", workspace_bytes=10_000)
    torch.testing.assert_close(exact, truth, rtol=1e-9, atol=1e-12)
    for impl in ("reference", "blocks"):
        found = outcome(loss, p, torch.float32, "cpu", impl=impl)
        expect_float64(loss, p, truth, found)


@pytest.mark.parametrize("seed", range(64))
def test_an_embedding_teaches_itself_nothing(seed: int) -> None:
    """Both sides' gradients cancel: what is left is two roundings of the largest term, which the scale bounds."""
    p = case(seed)
    p["pairs_P2"] = [(a, a) for a, _ in p["pairs_P2"]]
    factor_P = torch.arange(1.0, len(p["pairs_P2"]) + 1)  # of outcome
    factor_P *= p.get("weight_P", torch.ones(1)).abs()
    largest = float((factor_P * p["scale_P"]).max())
    for impl in ("reference", "blocks"):
        value, rows, scales, *columns = outcome(relational_distillation, p, torch.float32, "cpu", impl=impl)
        assert float(value.abs().max()) <= (2.4e-7 * largest) ** 2  # near its minimum a divergence is of second order
        assert bool((scales.abs() <= 2.4e-7 * factor_P).all())
        assert all(float(x.norm()) <= 2.4e-7 * largest for x in (rows, *columns))
