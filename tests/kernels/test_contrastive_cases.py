"""Random cases against float64 on a CPU: the reference and blocks, float32 and float64."""

from typing import Any

import pytest
import torch

from mcsp.kernels.contrastive import blocks, contrastive_loss, relational_distillation
from tests.kernels.contrast_cases import case, expect_float64, outcome


@pytest.mark.parametrize("loss", [contrastive_loss, relational_distillation])
@pytest.mark.parametrize("seed", range(64))
def test_reference_and_blocks_are_float64_to_a_millionth(loss: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    p = case(seed)
    monkeypatch.setattr(blocks, "GOOD_ROWS", 16)
    truth = outcome(loss, p, torch.float64, "cpu", impl="reference")
    exact = outcome(loss, p, torch.float64, "cpu", impl="blocks", workspace_bytes=10_000)
    torch.testing.assert_close(exact, truth, rtol=1e-9, atol=1e-12)
    for impl in ("reference", "blocks"):
        expect_float64(p, truth, outcome(loss, p, torch.float32, "cpu", impl=impl))
