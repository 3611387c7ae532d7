"""Imaginary coherence against SciPy, and what it must and must not see."""

import numpy as np
import pytest
import torch
from scipy.signal import csd, welch
from torch.utils._python_dispatch import TorchDispatchMode

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


def naive(x_BCT: torch.Tensor, sfreq: float, bands: list[tuple[float, float]], length: int, hop: int) -> torch.Tensor:
    """All cross-spectra of all bins at once, (B, C, C, F), in the precision of ``x_BCT``."""
    frames = x_BCT.unfold(-1, length, hop)
    frames = frames - frames.mean(-1, keepdim=True)
    window = torch.hann_window(length, dtype=torch.float64).to(x_BCT)
    spectrum = torch.fft.rfft(frames * window)
    cross = torch.einsum("bipf,bjpf->bijf", spectrum, spectrum.conj())
    power = torch.einsum("bipf,bipf->bif", spectrum, spectrum.conj()).real
    # A one-sided density doubles all bins but the first and the last; the floor is relative to that.
    freqs = torch.arange(length // 2 + 1, dtype=torch.float64) * sfreq / length
    double = torch.where((freqs == 0) | (freqs == sfreq / 2), 1.0, 2.0).to(x_BCT)
    density = power * double / (sfreq * window.square().sum())
    level = frames.square().mean(-1).sum(-1, keepdim=True) * 2 / sfreq
    root = (density / (density + 1e-6 * level + 1e-20)).sqrt() / power.sqrt()
    coherency = cross.imag * root[:, :, None] * root[:, None]
    picked = [(freqs >= low) & (freqs < high) for low, high in bands]
    return torch.stack([coherency[..., some].mean(-1).abs() for some in picked], 1)


def both(call: object, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Value, and gradient of a weighted sum."""
    x = x.clone().requires_grad_()
    value = call(x)  # type: ignore[operator]
    weight = torch.randn(value.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weight.diagonal(dim1=-2, dim2=-1).zero_()
    return value.detach(), torch.autograd.grad((value * weight).sum(), x)[0]


@pytest.mark.parametrize(("length", "frame", "hop"), [(118, 40, 20), (295, 101, 30), (421, 64, 64), (1190, 400, 200)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_values_and_gradients_are_those_of_all_cross_spectra(length: int, frame: int, hop: int, scale: float) -> None:
    x = signal(2, 5, length) * scale
    bands = [(10.0, 40.0), (20.0, 30.0), (30.0, 100.0)]

    def ours(x: torch.Tensor) -> torch.Tensor:
        seconds = {"frame_seconds": frame / 200, "hop_seconds": hop / 200}
        return imaginary_coherence(x, rates(2, 200.0), bands, **seconds)

    def plain(x: torch.Tensor) -> torch.Tensor:
        return naive(x, 200.0, bands, frame, hop)

    value, grad = both(ours, x)
    exact, exact_grad = both(plain, x)
    torch.testing.assert_close(value, exact, rtol=0, atol=1e-9)
    torch.testing.assert_close(grad, exact_grad, rtol=1e-7, atol=1e-9 / scale)
    value32, grad32 = both(ours, x.float())
    plain32, plain_grad32 = both(plain, x.float())
    for found, rival, truth in ((value32, plain32, exact), (grad32, plain_grad32, exact_grad)):
        assert (found - truth).norm() <= 1.5 * (rival - truth).norm() + 1e-6 * truth.norm()


def test_rows_of_mixed_rates_with_gaps_equal_separate_calls() -> None:
    x = signal(4, 3, 600)
    valid = torch.ones(4, 600, dtype=torch.bool)
    valid[0, 250:260] = False
    valid[2, 400:] = False
    valid[3] = False
    sfreq = torch.tensor([200.0, 128.0, 100.0, 200.0], dtype=torch.float64)
    options = {"frame_seconds": 0.5, "hop_seconds": 0.25}
    dirty = x.masked_fill(~valid[:, None], float("nan"))
    out = imaginary_coherence(dirty, sfreq, [(4.0, 8.0), (30.0, 45.0)], time_valid_BT=valid, **options)
    assert (out[3] == 0).all()
    alone = imaginary_coherence(x[1:2], sfreq[1:2], [(4.0, 8.0), (30.0, 45.0)], **options)
    torch.testing.assert_close(out[1:2], alone, rtol=0, atol=1e-12)
    alone = imaginary_coherence(x[2:3, :, :400], sfreq[2:3], [(4.0, 8.0), (30.0, 45.0)], **options)
    torch.testing.assert_close(out[2:3], alone, rtol=0, atol=1e-12)
    # A frame with a gap counts for nothing: frames of half a second at 200 Hz, a quarter apart.
    kept = torch.cat([x[:1, :, s : s + 100] for s in range(0, 501, 50) if s + 100 <= 250 or s >= 260], -1)
    alone = imaginary_coherence(kept, sfreq[:1], [(4.0, 8.0), (30.0, 45.0)], frame_seconds=0.5, hop_seconds=0.5)
    torch.testing.assert_close(out[:1], alone, rtol=0, atol=1e-9)


def test_no_tensor_holds_all_pairs_at_all_bins() -> None:
    channels, seconds = 24, 2.0
    x = signal(1, channels, 1600, dtype=torch.float32)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: object, types: object, args: object = (), kwargs: object = None) -> object:
            nonlocal largest
            out = func(*args, **(kwargs or {}))  # type: ignore[operator, misc]
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        imaginary_coherence(x, rates(1, 200.0), list(EEG_BANDS_HZ.values()), frame_seconds=seconds, hop_seconds=2.0)
    pairs, bins = channels**2, 2 * (45 - 1)
    assert largest <= x.numel() < pairs * bins
