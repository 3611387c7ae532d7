"""Spectra against SciPy, float64 and their own invariances.

Covers: kernels/spectral/framing.py, kernels/spectral/power.py, kernels/spectral/reference.py
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import periodogram, welch

from mcsp.kernels.spectral import BOLD_BANDS_HZ, EEG_BANDS_HZ, imaginary_coherence, log_power, log_power_frames

LENGTHS = (7, 118, 295, 421, 1190)


def signal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    """EEG-like: 20 uV noise, a drift and an offset."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(*shape, generator=draw, dtype=torch.float64)
    return (20 * noise + noise.cumsum(-1) + 50).to(dtype)


def rates(rows: int, sfreq: float) -> torch.Tensor:
    return torch.full((rows,), sfreq, dtype=torch.float64)


def test_two_frames_are_scipys_welch() -> None:
    x = signal(1, 2, 300)
    freqs, density = welch(x.numpy(), fs=200.0, window="hann", nperseg=200, noverlap=100, detrend="constant")
    ours = log_power(x, rates(1, 200.0), freqs, frame_seconds=1.0, hop_seconds=0.5, eps=0.0)
    np.testing.assert_allclose(ours.numpy(), np.log10(density), atol=1e-9)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("sfreq", [200.0, 1 / 0.72])
def test_one_frame_is_scipys_periodogram(length: int, sfreq: float) -> None:
    x = signal(2, 3, length)
    freqs, density = periodogram(x.numpy(), fs=sfreq, window="hann", detrend="constant")
    ours = log_power(x, rates(2, sfreq), freqs, eps=0.0)
    np.testing.assert_allclose(ours.numpy(), np.log10(density), atol=1e-9)


@pytest.mark.parametrize("length", LENGTHS)
def test_float32_is_as_good_as_an_fft_in_float32(length: int) -> None:
    x = signal(4, 8, length)
    freqs = torch.arange(1, length // 2 + 1, dtype=torch.float64) * 200 / length
    exact = log_power(x, rates(4, 200.0), freqs)
    ours = log_power(x.float(), rates(4, 200.0), freqs)
    window = torch.hann_window(length)
    x32 = x.float()
    x32 = x32 - x32.mean(-1, keepdim=True)
    density = torch.fft.rfft(x32 * window).abs().square()[..., 1:] * 2 / (200 * window.square().sum())
    if length % 2 == 0:
        density[..., -1] /= 2
    fft = torch.log10(density + 1e-6 * x32.square().mean(-1, keepdim=True) / 100)
    assert ours.dtype == torch.float32
    rms = (ours - exact).square().mean().sqrt()
    assert rms <= 1.5 * (fft - exact).square().mean().sqrt() + 1e-6
    assert (ours - exact).abs().max() < 2e-3


def test_frames_are_scipys_welch() -> None:
    x = signal(2, 3, 1190)
    freqs, density = welch(x.numpy(), fs=200.0, window="hann", nperseg=200, noverlap=130, detrend="constant")
    ours = log_power(x, rates(2, 200.0), freqs, frame_seconds=1.0, hop_seconds=0.35, eps=0.0)
    np.testing.assert_allclose(ours.numpy(), np.log10(density), atol=1e-9)


@pytest.mark.parametrize("bands", [EEG_BANDS_HZ, BOLD_BANDS_HZ])
def test_bands_hold_the_mean_density_of_scipys_bins(bands: dict[str, tuple[float, float]]) -> None:
    sfreq, length, frame = (200.0, 1190, 1.5) if bands is EEG_BANDS_HZ else (0.5, 421, None)
    x = signal(2, 3, length)
    samples = length if frame is None else round(frame * sfreq)
    freqs, density = welch(x.numpy(), fs=sfreq, window="hann", nperseg=samples, detrend="constant")
    ours = log_power(x, rates(2, sfreq), bands_hz=list(bands.values()), frame_seconds=frame, eps=0.0)
    assert ours.shape == (2, 3, len(bands))
    for k, (low, high) in enumerate(bands.values()):
        mean = density[..., (freqs >= low) & (freqs < high)].mean(-1)
        np.testing.assert_allclose(ours[..., k].numpy(), np.log10(mean), atol=1e-9)


def test_bands_follow_each_rows_rate_and_valid_length() -> None:
    x = signal(4, 2, 421)
    sfreq = torch.tensor([0.5, 1 / 0.72, 0.5, 0.25], dtype=torch.float64)
    lengths = torch.tensor([421, 300, 295, 421])
    valid = torch.arange(421) < lengths[:, None]
    bands = list(BOLD_BANDS_HZ.values())
    out = log_power(x, sfreq, bands_hz=bands, time_valid_BT=valid)
    for b, length in enumerate(lengths.tolist()):
        alone = log_power(x[b : b + 1, :, :length], sfreq[b : b + 1], bands_hz=bands)
        torch.testing.assert_close(out[b], alone[0], rtol=0, atol=1e-9)
    floor = torch.log10(1e-6 * x[3].var(-1, unbiased=False) / 0.125)
    torch.testing.assert_close(out[3, :, 3], floor, rtol=0, atol=1e-9)  # slow-2 begins above 0.125 Hz


def test_bands_of_frames_are_those_of_one_frame_each() -> None:
    x = signal(1, 2, 400)
    bands = list(EEG_BANDS_HZ.values())
    value, _ = log_power_frames(x, rates(1, 200.0), bands_hz=bands, frame_seconds=1.0, hop_seconds=1.0)
    for p in range(2):
        alone = log_power(x[..., 200 * p : 200 * (p + 1)], rates(1, 200.0), bands_hz=bands)
        torch.testing.assert_close(value[:, :, p], alone, rtol=0, atol=1e-9)


def test_a_transform_for_all_bins_and_one_for_a_few_agree() -> None:
    x = signal(2, 3, 1190)
    many = torch.arange(1, 46, dtype=torch.float64)
    whole = log_power(x, rates(2, 200.0), many, frame_seconds=2.0, hop_seconds=1.0)
    scattered = torch.cat([many[::7], torch.arange(60, 90, dtype=torch.float64)])
    for freqs in (many[:5], many[10:15] + 1e-10, scattered):
        part = log_power(x, rates(2, 200.0), freqs, frame_seconds=2.0, hop_seconds=1.0)
        same = [i for i, f in enumerate(freqs.round().tolist()) if f <= 45]
        expected = whole[..., [int(f) - 1 for f in freqs.round().tolist() if f <= 45]]
        torch.testing.assert_close(part[..., same], expected, rtol=0, atol=1e-7)


def test_a_large_batch_is_its_rows() -> None:
    x = signal(40, 19, 1200, dtype=torch.float32)
    freqs = torch.arange(1, 46)
    sfreq = torch.tensor([200.0, 100.0]).repeat(20)
    out = log_power(x, sfreq, freqs, frame_seconds=2.0)
    for b in (0, 1, 23, 39):
        torch.testing.assert_close(out[b], log_power(x[b : b + 1], sfreq[b : b + 1], freqs, frame_seconds=2.0)[0])


def test_a_sine_between_bins_has_the_power_of_its_amplitude() -> None:
    sfreq, hz, amplitude, length = 250.0, 10.3, 30.0, 1190
    x = amplitude * torch.sin(2 * math.pi * hz * torch.arange(length, dtype=torch.float64) / sfreq)
    density = 10 ** log_power(x[None, None], rates(1, sfreq), [hz]).item()
    noise_bandwidth = 1.5 * sfreq / length  # of a Hann window (Harris 1978)
    assert density * noise_bandwidth == pytest.approx(amplitude**2 / 2, rel=1e-3)


def test_rows_of_mixed_rates_equal_separate_calls() -> None:
    x = signal(4, 3, 421)
    sfreq = torch.tensor([200.0, 128.0, 200.0, 0.5], dtype=torch.float64)
    freqs = [0.1, 4.0, 10.0, 30.0]
    mixed = log_power(x, sfreq, freqs)
    for b in range(4):
        torch.testing.assert_close(mixed[b], log_power(x[b : b + 1], sfreq[b : b + 1], freqs)[0], rtol=0, atol=1e-12)


def test_frequencies_above_nyquist_hold_the_floor_instead_of_aliases() -> None:
    x = signal(1, 1, 500)
    out = log_power(x, rates(1, 100.0), [40.0, 60.0, 90.0])
    floor = math.log10(1e-6 * x.var(unbiased=False).item() / 50)
    assert out[0, 0, 0] > floor + 2
    np.testing.assert_allclose(out[0, 0, 1:].numpy(), floor, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(40, 300),
    padding=st.integers(0, 90),
    framed=st.booleans(),
    content=st.sampled_from([0.0, 1e6, math.nan, math.inf]),
)
def test_padding_changes_nothing(length: int, padding: int, framed: bool, content: float) -> None:
    x = signal(2, 2, length, seed=length)
    padded = torch.cat([x, torch.full((2, 2, padding), content, dtype=torch.float64)], -1)
    padded = torch.cat([padded, torch.zeros(2, 1, length + padding, dtype=torch.float64)], 1)
    valid = (torch.arange(length + padding) < length).expand(2, -1)
    frame = 0.2 if framed else None
    plain = log_power(x, rates(2, 200.0), [8.0, 20.0], frame_seconds=frame)
    other = log_power(padded, rates(2, 200.0), [8.0, 20.0], frame_seconds=frame, time_valid_BT=valid)
    torch.testing.assert_close(other[:, :2], plain, rtol=0, atol=1e-9)


def test_rows_of_ragged_length_equal_separate_calls() -> None:
    lengths = [118, 295, 421]
    x = torch.zeros(3, 2, 421)
    valid = torch.zeros(3, 421, dtype=torch.bool)
    for b, length in enumerate(lengths):
        x[b, :, :length], valid[b, :length] = signal(2, length, dtype=torch.float32, seed=b), True
    bands = [(8.0, 13.0)]
    for frame in (None, 0.5):
        out = log_power(x, rates(3, 200.0), [6.0, 12.0], time_valid_BT=valid, frame_seconds=frame)
        for b, length in enumerate(lengths):
            alone = log_power(x[b : b + 1, :, :length], rates(1, 200.0), [6.0, 12.0], frame_seconds=frame)
            torch.testing.assert_close(out[b], alone[0], rtol=0, atol=1e-5)
    out = imaginary_coherence(x, rates(3, 200.0), bands, time_valid_BT=valid, frame_seconds=0.25)
    for b, length in enumerate(lengths):
        alone = imaginary_coherence(x[b : b + 1, :, :length], rates(1, 200.0), bands, frame_seconds=0.25)
        torch.testing.assert_close(out[b], alone[0], rtol=0, atol=1e-6)


def test_frames_are_marked_where_a_sample_is_missing() -> None:
    x = signal(2, 3, 500)
    valid = torch.ones(2, 500, dtype=torch.bool)
    valid[0, 210] = False
    value, mask = log_power_frames(
        x, torch.tensor([100.0, 50.0]), [10.0], frame_seconds=1.0, hop_seconds=1.0, time_valid_BT=valid
    )
    assert value.shape == (2, 3, 10, 1)
    assert mask[0].tolist() == [True, True, False, True, True] + [False] * 5
    assert mask[1].all()
    _, density = periodogram(x[0, :, 300:400].numpy(), fs=100.0, window="hann", detrend="constant")
    np.testing.assert_allclose(value[0, :, 3, 0].numpy(), np.log10(density[:, 10]), atol=1e-3)
    mean = log_power(x, torch.tensor([100.0, 50.0]), [10.0], frame_seconds=1.0, hop_seconds=1.0, time_valid_BT=valid)
    np.testing.assert_allclose((10 ** value[0, :, mask[0]]).mean(1).numpy(), 10 ** mean[0].numpy(), rtol=1e-9)
    assert (value.permute(0, 2, 1, 3)[~mask] == -20).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("frame", [None, 0.3])
def test_flat_channels_are_finite_without_gradient(dtype: torch.dtype, frame: float | None) -> None:
    x = signal(1, 4, 133, dtype=dtype)
    x[0, 0], x[0, 1], x[0, 2] = 0.0, 123.456, 1e4 / 3
    x.requires_grad_()
    out = log_power(x, rates(1, 100.0), [0.0, 5.0, 50.0], frame_seconds=frame)
    bands = imaginary_coherence(x, rates(1, 100.0), [(4.0, 30.0)], frame_seconds=0.3)
    (out.sum() + bands.sum()).backward()
    assert x.grad is not None
    assert out.isfinite().all()
    assert (out[0, :3] == -20).all()
    assert (bands[0, 0, :3] == 0).all()
    assert (x.grad[0, :3] == 0).all()
    assert x.grad[0, 3].isfinite().all()
    assert x.grad[0, 3].abs().max() > 0


def test_a_call_without_gradients_leaves_nothing_that_forbids_them() -> None:
    x, freqs = signal(1, 2, 77), [3.0, 11.0]
    with torch.inference_mode():
        expected = log_power(x, rates(1, 90.0), freqs)
    again = log_power(x.requires_grad_(), rates(1, 90.0), freqs)
    again.sum().backward()
    assert torch.equal(again, expected)


def test_a_row_without_a_valid_sample_is_finite() -> None:
    x = signal(2, 2, 64, dtype=torch.float32).requires_grad_()
    valid = torch.ones(2, 64, dtype=torch.bool)
    valid[1] = False
    for frame in (None, 0.2):
        out = log_power(x, rates(2, 100.0), [10.0], time_valid_BT=valid, frame_seconds=frame)
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert (out[1] == -20).all()
        assert grad.isfinite().all()
        assert (grad[1] == 0).all()


@pytest.mark.parametrize("frame", [None, 0.3])
def test_gradients(frame: float | None) -> None:
    x = signal(2, 2, 23).requires_grad_()
    valid = torch.arange(23) < torch.tensor([[23], [18]])
    sfreq = torch.tensor([30.0, 25.0], dtype=torch.float64)

    def power(x: torch.Tensor) -> torch.Tensor:
        return log_power(x, sfreq, [2.0, 7.5], time_valid_BT=valid, frame_seconds=frame)

    def coherence(x: torch.Tensor) -> torch.Tensor:
        return imaginary_coherence(x, sfreq, [(3.0, 11.0)], time_valid_BT=valid, frame_seconds=0.3)

    def bands(x: torch.Tensor) -> torch.Tensor:
        bands_hz = [(3.0, 9.0), (9.0, 14.0)]
        return log_power(x, sfreq, bands_hz=bands_hz, time_valid_BT=valid, frame_seconds=frame)

    def every_bin(x: torch.Tensor) -> torch.Tensor:
        return log_power(x, sfreq[:1], torch.arange(1, 26) * 30 / 60, frame_seconds=2.0)

    assert torch.autograd.gradcheck(power, (x,))
    assert torch.autograd.gradcheck(bands, (x,))
    assert torch.autograd.gradcheck(every_bin, (signal(1, 1, 63).requires_grad_(),))
    assert torch.autograd.gradcheck(coherence, (x,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_inputs_and_autocast_do_not_lower_the_arithmetic(dtype: torch.dtype) -> None:
    x = signal(2, 3, 300, dtype=dtype)
    expected = log_power(x.float(), rates(2, 200.0), [5.0, 11.0], frame_seconds=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(log_power(x, rates(2, 200.0), [5.0, 11.0], frame_seconds=0.5), expected)
    for call in (
        lambda y: log_power(y, rates(2, 200.0), [5.0, 11.0], frame_seconds=0.5),
        lambda y: imaginary_coherence(y, rates(2, 200.0), [(5.0, 90.0)], frame_seconds=0.3),
    ):
        grads = []
        for y, autocast in ((x.float().requires_grad_(), False), (x.clone().requires_grad_(), True)):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                grads += torch.autograd.grad(call(y).sum(), y)
        assert torch.equal(grads[0].to(dtype), grads[1])


@pytest.mark.parametrize("frame", [None, 0.5])
@pytest.mark.parametrize("freqs", [[5.0, 11.0, 40.0], [float(f) for f in range(2, 99, 2)]], ids=["product", "fft"])
def test_an_offset_ten_thousand_times_the_signal_does_not_show(frame: float | None, freqs: list) -> None:
    noise = torch.randn(2, 3, 1000, generator=torch.Generator().manual_seed(4))
    x = 1e4 + noise
    exact = log_power(x.double(), rates(2, 200.0), freqs, frame_seconds=frame)
    assert (log_power(x, rates(2, 200.0), freqs, frame_seconds=frame) - exact).abs().max() < 2e-4
