"""Imaginary coherence against SciPy, and what it must and must not see."""

import numpy as np
import pytest
import torch
from scipy.signal import csd, welch

from mcsp.kernels.spectral import EEG_BANDS_HZ, imaginary_coherence
from tests.kernels.test_spectral_reference import rates, signal


def test_imaginary_coherence_is_scipys() -> None:
    x = signal(1, 3, 1190)
    ours = imaginary_coherence(x, rates(1, 200.0), [(8.0, 13.0)], frame_seconds=0.5, eps=0.0)[0, 0]
    for i in range(3):
        for j in range(3):
            freqs, cross = csd(x[0, i], x[0, j], fs=200.0, nperseg=100, noverlap=50)
            powers = [welch(x[0, k], fs=200.0, nperseg=100, noverlap=50)[1] for k in (i, j)]
            coherency = cross / np.sqrt(powers[0] * powers[1])
            band = (freqs >= 8) & (freqs < 13)
            assert ours[i, j].item() == pytest.approx(abs(coherency[band].imag.mean()), abs=1e-9)


def test_imaginary_coherence_ignores_mixing_and_sees_lag() -> None:
    source = torch.randn(1, 1, 12_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = torch.randn(1, 3, 12_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    delayed = source.roll(4, -1)  # 20 ms, a quarter of a cycle at 12.5 Hz
    x = torch.cat([source, 0.5 * source, delayed], 1) + 0.2 * noise
    out = imaginary_coherence(x, rates(1, 200.0), list(EEG_BANDS_HZ.values()), frame_seconds=1.0)[0]
    assert out.shape == (5, 3, 3)
    torch.testing.assert_close(out, out.transpose(1, 2))
    assert (out.diagonal(dim1=1, dim2=2) == 0).all()
    assert out.min() >= 0
    assert out.max() <= 1
    assert out[2, 0, 1] < 0.05
    assert out[2, 0, 2] > 0.8


def test_a_band_above_nyquist_has_no_coherence() -> None:
    out = imaginary_coherence(signal(1, 2, 300), rates(1, 50.0), [(30.0, 45.0)], frame_seconds=1.0)
    assert torch.equal(out, torch.zeros(1, 1, 2, 2, dtype=torch.float64))
