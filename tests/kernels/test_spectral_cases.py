"""Log-power of random awkward windows on a CPU against sums in float64."""

import numpy as np
import pytest
import torch

from tests.kernels.spectral_cases import case, expect_float64, outcome, truth


@pytest.mark.parametrize("seed", range(38))
def test_log_power_and_its_gradient_are_those_of_sums_in_float64(seed: int) -> None:
    p = case(seed)
    np.testing.assert_allclose(outcome(p, torch.float64)[0].numpy(), truth(p), rtol=0, atol=1e-8)
    expect_float64(p, "reference")
