"""Spectra without a gradient, in fewer passes, against those with one and in float64.

Covers: kernels/spectral/transforms.py
"""

import pytest
import torch
from torch import Tensor

from mcsp.kernels.spectral import imaginary_coherence, log_power, log_power_frames
from mcsp.kernels.spectral.transforms import fits, transformed

# Samples per frame and from frame to frame, and bins: folded, whole, of an odd length, up to just below the last.
CASES = [
    (400, 200, range(2, 92, 2)),
    (400, 400, range(2, 90)),
    (200, 200, range(1, 46)),
    (101, 40, range(1, 50)),
    (100, 50, range(20, 50)),
    (100, 50, range(2, 50, 2)),
]
IDS = [f"{length}-{hop}-{bins.step}" for length, hop, bins in CASES]


def signal(samples: int, dtype: torch.dtype) -> Tensor:
    """Noise with drifts of a hundred times its size, an offset in some channels, and flat ones."""
    noise = torch.randn(3, 5, samples, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = 20 * noise + 5 * noise.cumsum(-1)
    x[0, 1] += 2000
    x[1, 2], x[1, 3] = 0.0, 123.456
    return x.to(dtype)


def by_hand(x: Tensor, length: int, hop: int, bins: range) -> Tensor:
    frames = x.double().unfold(-1, length, hop)
    frames = frames - frames.mean(-1, keepdim=True)
    return torch.fft.rfft(frames * torch.hann_window(length, dtype=torch.float64))[..., list(bins)]


@pytest.mark.parametrize(("length", "hop", "bins"), CASES, ids=IDS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_they_are_those_of_demeaned_windowed_frames(
    length: int, hop: int, bins: range, dtype: torch.dtype, bound: float
) -> None:
    x = signal(1013, dtype)
    assert fits(length, hop, list(bins)) == bins
    found = transformed(x, torch.hann_window(length, dtype=torch.float64).to(dtype), hop, bins)
    exact = by_hand(x, length, hop, bins)
    off = (found.spectrum_bCPF - exact).abs() * found.lively_bCP[..., None]
    frames = x.double().unfold(-1, length, hop)
    norm = torch.linalg.vector_norm(frames - frames.mean(-1, keepdim=True), dim=-1)
    assert (off <= bound * norm[..., None] * length**0.5).all()
    torch.testing.assert_close(found.norm_bCP * found.lively_bCP, norm.to(dtype), rtol=10 * bound, atol=1e-12)
    flat = torch.zeros(3, 5, dtype=torch.bool)
    flat[1, 2:4] = True
    assert torch.equal(found.lively_bCP, ~flat[..., None].expand_as(found.lively_bCP))


@pytest.mark.parametrize("bins", [[0, 1, 2], [1, 3, 5], [3, 2, 1], [2, 4, 7], [48, 49, 50]])
def test_other_bins_do_not_fit(bins: list[int]) -> None:
    assert fits(100, 50, bins) is None


def test_even_bins_fit_where_frames_overlap_by_half() -> None:
    assert fits(100, 50, [2, 4, 6]) is not None
    assert fits(100, 40, [2, 4, 6]) is None


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_measures_are_those_with_a_gradient(masked: bool, dtype: torch.dtype, bound: float) -> None:
    x, sfreq, freqs = signal(1013, dtype), torch.full((3,), 100.0), [float(f) for f in range(1, 31)]
    valid = torch.ones(3, 1013, dtype=torch.bool)
    if masked:
        valid[0, 210:260], valid[2, 700:] = False, False
        x[0, :, 210:260], x[2, :, 700:] = float("nan"), 1e6
    options = {"frame_seconds": 2.0, "hop_seconds": 1.0, "time_valid_BT": valid}
    ours = (
        log_power(x, sfreq, freqs, **options),
        log_power_frames(x, sfreq, freqs, **{**options, "frame_seconds": 1.0})[0],
        imaginary_coherence(x, sfreq, [(4.0, 8.0), (8.0, 30.0)], **options),
    )
    wide = x.double().requires_grad_()  # which frames are demeaned and windowed for first
    exact = (
        log_power(wide, sfreq, freqs, **options),
        log_power_frames(wide, sfreq, freqs, **{**options, "frame_seconds": 1.0})[0],
        imaginary_coherence(wide, sfreq, [(4.0, 8.0), (8.0, 30.0)], **options),
    )
    for found, truth in zip(ours, exact, strict=True):
        assert found.isfinite().all()
        torch.testing.assert_close(found.double(), truth.detach(), rtol=0, atol=bound)
    assert (ours[0][1, 2:4] == -20).all()


def test_a_row_does_not_depend_on_an_offset_in_another() -> None:
    x = signal(1013, torch.float32)
    window = torch.hann_window(200)
    apart = transformed(x[2:], window, 100, range(2, 92, 2)).spectrum_bCPF
    x[:2] += 1e5
    assert torch.equal(transformed(x, window, 100, range(2, 92, 2)).spectrum_bCPF[2:], apart)
