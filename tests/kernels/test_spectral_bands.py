"""The bands of the literature, written out: a moved edge changes what every feature called "alpha" is."""

import math

import pytest
import torch

from mcsp.kernels.spectral import BOLD_BANDS_HZ, EEG_BANDS_HZ, log_power


def test_bands_are_those_of_their_sources() -> None:
    assert EEG_BANDS_HZ == {
        "delta": (1.0, 4.0), "theta": (4.0, 8.0), "alpha": (8.0, 13.0), "beta": (13.0, 30.0), "gamma": (30.0, 45.0)
    }  # fmt: skip
    assert BOLD_BANDS_HZ == {
        "slow-5": (0.010, 0.027), "slow-4": (0.027, 0.073), "slow-3": (0.073, 0.198), "slow-2": (0.198, 0.250)
    }  # fmt: skip


@pytest.mark.parametrize(("hz", "band"), [(1, 0), (4, 1), (8, 2), (13, 3), (30, 4), (7, 1), (12, 2), (29, 3), (44, 4)])
def test_a_wave_at_the_edge_of_a_band_is_in_the_upper_one(hz: int, band: int) -> None:
    """A wave of 1 uV has a variance of 1/2; a Hann window puts 2/3 of its power into its own bin."""
    t = torch.arange(2000, dtype=torch.float64) / 200
    x = torch.sin(2 * math.pi * hz * t)[None, None]
    power = 10 ** log_power(x, torch.tensor([200.0]), bands_hz=list(EEG_BANDS_HZ.values()), eps=0.0)[0, 0]
    assert int(power.argmax()) == band
    width_hz = [3, 4, 5, 17, 15][band]
    at_edge = hz in (1, 4, 8, 13, 30)  # then one neighbouring bin is in the band below
    assert power[band].item() * width_hz == pytest.approx(0.5 * (5 / 6 if at_edge else 1), rel=1e-6)


def test_the_density_of_a_band_is_the_mean_over_its_bins_also_of_one() -> None:
    x = torch.randn(1, 2, 600, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {"frame_seconds": 1.0, "eps": 0.0}
    bins = 10 ** log_power(x, torch.tensor([100.0]), [9.0, 10.0, 11.0], **options)
    bands = 10 ** log_power(x, torch.tensor([100.0]), bands_hz=[(10.0, 11.0), (9.0, 12.0)], **options)
    torch.testing.assert_close(bands, torch.stack([bins[..., 1], bins.mean(-1)], -1))
