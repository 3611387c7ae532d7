"""The fused spectral kernels against float64: run by test_spectral_fused.py in a process of its own.

Under TRITON_INTERPRET=1 the kernels run on the CPU, otherwise on the GPU.
"""

import math
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mcsp.kernels.spectral import BOLD_BANDS_HZ, EEG_BANDS_HZ, log_power, log_power_frames
from tests.kernels import spectral_cases

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
# The interpreter computes in NumPy, which warns of NaN and inf; they are what some cases are about.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Memory that a kernel leaves unwritten holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def signal(*shape: int, seed: int = 0) -> torch.Tensor:
    """EEG-like: 20 uV noise, a drift and an offset."""
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return (20 * noise + noise.cumsum(-1) + 50).to(DEVICE)


def outcome(x: torch.Tensor, sfreq: torch.Tensor, weight: torch.Tensor | None, options: dict[str, Any]) -> Any:
    """Value, gradient and the weight of its loss; frames where they are asked for, else their mean."""
    x = x.clone().requires_grad_()
    options = dict(options)
    call = log_power_frames if options.pop("frames", False) else log_power
    out = call(x, sfreq, **options)
    value = out[0] if isinstance(out, tuple) else out
    if weight is None:
        weight = torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(DEVICE)
    (grad,) = torch.autograd.grad((value * weight).sum(), x)
    return value.detach(), grad, weight, out[1] if isinstance(out, tuple) else None


def check(x: torch.Tensor, rates: list[float], **options: Any) -> None:
    """Value and gradient are as close to float64 as those of the reference in float32."""
    sfreq = torch.tensor(rates, dtype=torch.float64, device=DEVICE)
    exact, exact_grad, weight, exact_mask = outcome(x.double(), sfreq, None, options)
    plain, plain_grad, _, _ = outcome(x, sfreq, weight, options | {"impl": "reference"})
    value, grad, _, mask = outcome(x, sfreq, weight, options | {"impl": "triton"})
    assert value.dtype == torch.float32
    assert grad.dtype == x.dtype
    assert mask is None or torch.equal(mask, exact_mask)

    def rms(error: torch.Tensor) -> float:
        return error.double().square().mean().sqrt().item()

    assert rms(value - exact) <= 1.5 * rms(plain - exact) + 1e-6
    assert (value - exact).abs().max() < 1e-3
    assert rms(grad - exact_grad) <= 1.5 * rms(plain_grad - exact_grad) + 1e-6 * rms(exact_grad)


@pytest.mark.parametrize("length", [7, 118, 295, 421, 1190])
def test_one_frame_of_any_length(length: int) -> None:
    check(signal(1, 3, length), [200.0], freqs_hz_F=[0.0, 3.3, 40.0, 100.0, 120.0])


@pytest.mark.parametrize("seed", range(38))
def test_random_awkward_windows(seed: int) -> None:
    spectral_cases.expect_float64(spectral_cases.case(seed), "triton", DEVICE)


@pytest.mark.parametrize("channels", [1, 17, 33])
def test_channels_that_fit_no_block(channels: int) -> None:
    check(signal(2, channels, 60), [200.0, 90.0], freqs_hz_F=[float(f) for f in range(1, 70)])


@pytest.mark.parametrize(
    ("frames", "seconds", "hop"),
    [(False, 0.5, 0.5), (True, 0.5, 0.5), pytest.param(False, 0.4, 0.11, marks=pytest.mark.slow), (True, 0.3, 0.7)],
)
def test_frames_of_mixed_rates_with_gaps(frames: bool, seconds: float, hop: float) -> None:
    x = signal(3, 2, 130)
    valid = torch.ones(3, 130, dtype=torch.bool, device=DEVICE)
    valid[0, 60] = False
    valid[1, 90:] = False
    valid[2] = False
    options = {"frame_seconds": seconds, "hop_seconds": hop, "time_valid_BT": valid}
    check(x, [100.0, 70.0, 50.0], freqs_hz_F=[5.0, 11.0, 30.0], frames=frames, **options)


def test_what_does_not_count_is_never_read() -> None:
    x = signal(2, 2, 100)
    valid = torch.arange(100, device=DEVICE) < torch.tensor([[100], [61]], device=DEVICE)
    dirty = x.masked_fill(~valid[:, None], math.nan)
    for options in ({}, {"frame_seconds": 0.2}):
        sfreq = torch.tensor([100.0, 80.0], device=DEVICE)
        whole = {"freqs_hz_F": [9.0], "time_valid_BT": valid, "impl": "triton"} | options
        value, grad, weight, _ = outcome(dirty, sfreq, None, whole)
        expected, expected_grad, _, _ = outcome(x, sfreq, weight, whole)
        assert torch.equal(value, expected)
        assert torch.equal(grad, expected_grad)
        assert (grad[1, :, 61:] == 0).all()


@pytest.mark.parametrize("changed", ["x", "sfreq", "valid"])
def test_what_is_changed_before_the_backward_pass_is_noticed(changed: str) -> None:
    given = {"x": signal(1, 2, 60), "sfreq": torch.tensor([100.0], device=DEVICE)}
    given["valid"] = torch.ones(1, 60, dtype=torch.bool, device=DEVICE)
    value = log_power(given["x"].requires_grad_(), given["sfreq"], [9.0], time_valid_BT=given["valid"], impl="triton")
    with torch.no_grad():
        given[changed][..., 0] = 0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


def test_bands_follow_each_rows_rate_and_length() -> None:
    valid = torch.arange(300, device=DEVICE) < torch.tensor([[300], [300], [211]], device=DEVICE)
    bands = list(BOLD_BANDS_HZ.values())
    check(signal(3, 1, 300), [0.5, 1 / 0.72, 0.3], bands_hz=bands, time_valid_BT=valid)
    check(signal(2, 1, 210), [200.0, 64.0], bands_hz=list(EEG_BANDS_HZ.values()), frame_seconds=1.0, frames=True)


def test_flat_channels_hold_the_floor_without_gradient() -> None:
    x = signal(1, 3, 133)
    x[0, 0], x[0, 1] = 0.0, 123.456
    sfreq = torch.tensor([100.0], device=DEVICE)
    value, grad, _, _ = outcome(x, sfreq, None, {"freqs_hz_F": [0.0, 5.0], "impl": "triton"})
    assert (value[0, :2] == -20).all()
    assert (grad[0, :2] == 0).all()
    assert grad[0, 2].abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_and_not_computed_with(dtype: torch.dtype) -> None:
    # A product of bfloat16 numbers is wrong by orders of magnitude in Triton's interpreter; this fails if there is one.
    x = signal(1, 3, 118).to(dtype)
    sfreq = torch.tensor([100.0], device=DEVICE)
    freqs = [2.0, 5.5]
    with torch.autocast(DEVICE, torch.bfloat16):
        value, grad, weight, _ = outcome(x, sfreq, None, {"freqs_hz_F": freqs, "impl": "triton"})
    expected, expected_grad, _, _ = outcome(x.float(), sfreq, weight, {"freqs_hz_F": freqs, "impl": "triton"})
    assert torch.equal(value, expected)
    torch.testing.assert_close(grad.float(), expected_grad, rtol=2**-7, atol=1e-7)


def test_the_same_input_gives_the_same_bits_from_any_layout() -> None:
    x = signal(2, 4, 90)
    sfreq = torch.tensor([100.0, 90.0], device=DEVICE)
    options = {"freqs_hz_F": [5.0, 20.0], "frame_seconds": 0.4, "impl": "triton"}
    value, grad, weight, _ = outcome(x, sfreq, None, options)
    for other in (x, x.transpose(0, 1).contiguous().transpose(0, 1), x.transpose(1, 2).contiguous().transpose(1, 2)):
        again, grad_again, _, _ = outcome(other, sfreq, weight, options)
        assert torch.equal(value, again)
        assert torch.equal(grad, grad_again)


def test_bands_that_overlap_or_hold_nothing() -> None:
    bands = [(30.0, 45.0), (1.0, 30.0), (4.0, 8.0), (48.0, 60.0)]
    check(signal(2, 3, 200), [200.0, 90.0], bands_hz=bands)


def test_an_offset_ten_thousand_times_the_signal_does_not_show() -> None:
    x, sfreq = (
        1e4 + torch.randn(1, 2, 400, generator=torch.Generator().manual_seed(4)).to(DEVICE),
        torch.tensor([200.0]),
    )
    exact = log_power(x.double(), sfreq.to(DEVICE), [5.0, 40.0])
    assert (log_power(x, sfreq.to(DEVICE), [5.0, 40.0], impl="triton") - exact).abs().max() < 2e-4


def test_extreme_scales() -> None:
    for scale in (1e-6, 1e6):
        x, sfreq = signal(1, 2, 118) * scale, torch.tensor([200.0], device=DEVICE)
        for options in ({"freqs_hz_F": [3.3, 40.0]}, {"bands_hz": [(4.0, 8.0)]}):
            exact, exact_grad, weight, _ = outcome(x.double(), sfreq, None, options)
            value, grad, _, _ = outcome(x, sfreq, weight, options | {"impl": "triton"})
            torch.testing.assert_close(value.double(), exact, rtol=0, atol=1e-4)
            assert (grad - exact_grad).norm() < 1e-4 * exact_grad.norm()


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter multiplies in float32 whatever is asked for")
@pytest.mark.parametrize(("precision", "most"), [("bf16x3", 2e-3), ("tf32", 0.1)])
def test_lower_precision_is_no_worse_than_the_table_says(precision: str, most: float) -> None:
    x, sfreq = signal(2, 5, 200), torch.tensor([200.0, 200.0], device=DEVICE)
    freqs = [float(f) for f in range(1, 46)]
    exact = log_power(x.double(), sfreq, freqs, impl="reference")
    assert (log_power(x, sfreq, freqs, impl="triton", precision=precision) - exact).abs().median() < most
