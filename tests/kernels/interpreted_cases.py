"""Random cases in Triton against float64; test_contrastive_fused.py runs this in a process of its own."""

from typing import Any

import pytest
import torch

from mcsp.kernels.contrastive import contrastive_loss, fused, relational_distillation
from tests.kernels.contrast_cases import case, expect_float64, outcome, without_itself

DEVICE = "cpu" if fused.INTERPRETED else "cuda"
# The interpreter computes in NumPy, which warns of NaN and inf; they are what some cases are about.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.mark.parametrize("loss", [contrastive_loss, relational_distillation])
@pytest.mark.parametrize("seed", range(64), ids=lambda seed: f"case{seed}-")
def test_float32_is_float64_to_a_millionth(loss: Any, seed: int) -> None:
    p = case(seed)
    p = without_itself(p) if loss is relational_distillation else p
    truth = outcome(loss, p, torch.float64, DEVICE, impl="reference")
    found = outcome(loss, p, torch.float32, DEVICE, impl="triton")
    expect_float64(loss, p, truth, found, gpu=DEVICE == "cuda")
