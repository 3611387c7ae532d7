"""Products over time in float32: how far from float64 the log-correlation is, beside plain torch in float32."""

import pytest
import torch

from mcsp.model.tangent import LEAST_SHRINKAGE, log_correlation


def plain(x_BAT: torch.Tensor) -> torch.Tensor:
    """The definition, all of it in the dtype of ``x_BAT``, as torch computes it."""
    n = x_BAT.shape[-1]
    x = x_BAT / x_BAT.square().mean(-1, keepdim=True).sqrt()
    correlation, identity = x @ x.mT / n, torch.eye(x.shape[1], dtype=x.dtype)
    fourth = x.square().sum(1).square().mean(-1)
    noise = (fourth - correlation.square().sum((1, 2))) / n
    r = (noise / (correlation - identity).square().sum((1, 2))).clamp(LEAST_SHRINKAGE, 1.0)[:, None, None]
    value, vector = torch.linalg.eigh((1 - r) * correlation + r * identity)
    return (vector * value.log()[:, None]) @ vector.mT


@pytest.mark.parametrize(("anchors", "samples"), [(32, 3000), (100, 50)], ids=["EEG", "BOLD"])
def test_products_over_time_in_float32_are_as_near_to_float64_as_float32_can_be(anchors: int, samples: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(4, 1, samples, generator=generator, dtype=torch.float64)
    x = torch.randn(4, anchors, samples, generator=generator, dtype=torch.float64) + shared
    x = x * torch.logspace(-3, 3, anchors, dtype=torch.float64)[:, None]  # amplitudes a million times apart
    x = (x - x.mean(-1, keepdim=True)).float()
    valid = torch.ones(4, samples, dtype=torch.bool)
    expected = plain(x.double())
    torch.testing.assert_close(log_correlation(x.double(), valid), expected, rtol=1e-10, atol=1e-10)
    found = log_correlation(x, valid)
    assert found.dtype == torch.float32
    error, usual = ((y.double() - expected).abs().max() for y in (found, plain(x)))
    assert error <= usual and error < 1e-5
