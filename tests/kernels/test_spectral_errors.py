"""Spectra of what cannot have any: one clear line."""

import math

import pytest
import torch

from mcsp.kernels.spectral import imaginary_coherence, log_power
from tests.kernels.test_spectral_reference import rates, signal


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_BCT": torch.zeros(3, 9)}, r"x_BCT: expected a floating tensor \(B, C, T\), found torch.float32 \(3, 9\)"),
        ({"x_BCT": torch.zeros(1, 3, 9, dtype=torch.int64)}, "x_BCT: expected a floating"),
        ({"sfreq_B": torch.ones(2)}, r"sfreq_B: expected shape \(1,\), found \(2,\)"),
        ({"sfreq_B": torch.zeros(1)}, "sfreq_B: expected positive rates in Hz"),
        ({"freqs_hz_F": [-1.0]}, "freqs_hz_F: expected a non-empty list of frequencies >= 0 Hz"),
        ({"freqs_hz_F": [math.nan]}, "freqs_hz_F"),
        ({"time_valid_BT": torch.ones(1, 8, dtype=torch.bool)}, r"time_valid_BT: expected bool \(1, 9\)"),
        ({"frame_seconds": 1.0}, "frame_seconds: expected between 2 and T=9 samples at 10 Hz, found 1.0 s"),
        ({"bands_hz": [(1.0, 2.0)]}, "freqs_hz_F, bands_hz: expected one of the two, found both"),
        ({"freqs_hz_F": None}, "freqs_hz_F, bands_hz: expected one of the two, found neither"),
        ({"freqs_hz_F": None, "bands_hz": [(3.0, 2.0)]}, "bands_hz: expected pairs with 0 <= low < high in Hz"),
        (
            {"freqs_hz_F": None, "bands_hz": [(2.0, float("inf"))]},
            "bands_hz: expected pairs with 0 <= low < high in Hz",
        ),
        ({"freqs_hz_F": None, "bands_hz": [(2.3, 3.2)]}, "bands_hz: expected bands that hold a multiple of 1.11111 Hz"),
        ({"frame_seconds": 0.5, "hop_seconds": 0.0}, "hop_seconds: expected more than 0 s"),
    ],
)
def test_errors_say_what_was_found(change: dict, message: str) -> None:
    arguments = {"x_BCT": torch.zeros(1, 3, 9), "sfreq_B": torch.tensor([10.0]), "freqs_hz_F": [1.0]} | change
    with pytest.raises(ValueError, match=message):
        log_power(**arguments)


def test_a_band_narrower_than_the_resolution_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bands_hz: expected bands that hold a multiple of 4 Hz, found \(5.0, 7.0\)"):
        imaginary_coherence(signal(1, 2, 300), rates(1, 200.0), [(5.0, 7.0)], frame_seconds=0.25)
