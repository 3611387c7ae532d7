"""Long frames, bfloat16, and what the host must not do; run by test_spectral_fused.py as interpreted_spectral.py is."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from mcsp.kernels.spectral import EEG_BANDS_HZ, fft_tables, log_power, log_power_frames, tables
from tests.kernels.interpreted_spectral import DEVICE, check, outcome, poisoned_memory, signal  # noqa: F401

BANDS = list(EEG_BANDS_HZ.values())


@pytest.mark.parametrize("detrend", ["constant", "linear"])
@pytest.mark.parametrize("length", [1009, 1190])
def test_one_long_frame_of_any_length(length: int, detrend: str) -> None:
    own = [k * 200 / length for k in (0, 1, 17, 50, length // 2)]
    # Whole hertz are no bins of either length, but of 1,200 or 1,400 samples.
    for freqs in (own, [*map(float, range(1, 46)), 100.0, 120.0]):
        check(signal(1, 2, length), [200.0], freqs_hz_F=freqs, detrend=detrend)


@pytest.mark.parametrize(
    ("frames", "hop"), [pytest.param(False, 0.37, marks=pytest.mark.slow), (True, 0.9), (False, 2.5)]
)
def test_long_frames_of_mixed_rates_with_gaps(frames: bool, hop: float) -> None:
    x = signal(4, 2, 2500)
    valid = torch.ones(4, 2500, dtype=torch.bool, device=DEVICE)
    valid[0, 1200] = False
    valid[1, 2000:] = False
    valid[3] = False
    options: dict[str, Any] = {"frame_seconds": 1.0, "hop_seconds": hop, "time_valid_BT": valid, "frames": frames}
    rates = [800.0, 500.0, 800.0, 600.0]
    check(x, rates, freqs_hz_F=[0.0, 5.0, 11.0, 300.0], detrend="linear", **options)
    check(x, rates, bands_hz=BANDS, **options)


def test_bands_of_long_rows_whose_valid_parts_differ() -> None:
    t = torch.arange(1300, device=DEVICE)
    first, end = torch.tensor([[0, 1300], [0, 1000], [290, 1267], [900, 1300]], device=DEVICE).T[:, :, None]
    valid = (t >= first) & (t < end)
    valid[2, 500:520] = False
    check(signal(4, 2, 1300), [200.0, 200.0, 180.0, 200.0], bands_hz=BANDS, time_valid_BT=valid, detrend="linear")


@pytest.mark.parametrize("detrend", ["constant", "linear"])
def test_long_flat_channels_and_extreme_scales(detrend: str) -> None:
    x = signal(1, 5, 1000)
    x[0, 0], x[0, 1], x[0, 3], x[0, 4] = 0.0, 123.456, x[0, 2] * 1e-6, x[0, 2] * 1e6
    sfreq = torch.tensor([200.0], device=DEVICE)
    options: dict[str, Any] = {"freqs_hz_F": [0.0, 5.0, 20.0], "detrend": detrend}
    value, grad, weight, _ = outcome(x, sfreq, None, options | {"impl": "triton"})
    assert (value[0, :2] == -20).all()
    assert (grad[0, :2] == 0).all()
    exact, exact_grad, _, _ = outcome(x.double(), sfreq, weight, options)
    torch.testing.assert_close(value[0, 2:].double(), exact[0, 2:], rtol=0, atol=1e-4)
    error = (grad[0, 2:] - exact_grad[0, 2:]).norm(dim=-1)
    assert (error < 1e-4 * exact_grad[0, 2:].norm(dim=-1)).all()


def test_long_rows_do_not_read_what_does_not_count_and_repeat_bit_for_bit() -> None:
    x = signal(2, 2, 1100)
    valid = torch.arange(1100, device=DEVICE) < torch.tensor([[1100], [861]], device=DEVICE)
    dirty = x.masked_fill(~valid[:, None], math.nan)
    sfreq = torch.tensor([100.0, 80.0], device=DEVICE)
    options: dict[str, Any] = {"freqs_hz_F": [9.0], "time_valid_BT": valid, "impl": "triton"}
    value, grad, weight, _ = outcome(x, sfreq, None, options)
    for same in (dirty, dirty.transpose(0, 1).contiguous().transpose(0, 1), dirty.mT.contiguous().mT):
        again, grad_again, _, _ = outcome(same, sfreq, weight, options)
        assert torch.equal(again, value)
        assert torch.equal(grad_again, grad)
        assert (grad_again[1, :, 861:] == 0).all()


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    length=st.integers(2, 1400),
    rows=st.integers(1, 3),
    channels=st.integers(1, 18),
    framed=st.booleans(),
    banded=st.booleans(),
    linear=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape(length: int, rows: int, channels: int, framed: bool, banded: bool, linear: bool, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    valid = torch.arange(length) < torch.randint(length // 2, length + 1, (rows, 1), generator=draw)
    rates = (100 + 100 * torch.rand(rows, generator=draw)).tolist()
    wanted: dict[str, Any] = {"bands_hz": [(0.0, 500.0)]} if banded else {"freqs_hz_F": [0.0, 7.0, 31.0]}
    frame = max(2, length // 3) / min(rates) if framed and length >= 6 else None
    check(
        signal(rows, channels, length, seed=seed),
        rates,
        time_valid_BT=valid.to(DEVICE),
        frame_seconds=frame,
        detrend="linear" if linear else "constant",
        **wanted,
    )


def test_bfloat16_products_are_asked_for_and_never_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    x, sfreq = signal(2, 5, 200), torch.tensor([200.0, 200.0], device=DEVICE)
    freqs = [float(f) for f in range(1, 46)]
    if DEVICE == "cpu":
        from triton.runtime import interpreter

        create_dot = interpreter.InterpreterBuilder.create_dot

        def watched(self: Any, a: Any, b: Any, *rest: Any) -> Any:
            assert "bf16" not in (str(a.dtype), str(b.dtype)), "a bf16 product is wrong in the interpreter"
            return create_dot(self, a, b, *rest)

        monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", watched)
    exact = log_power(x.double(), sfreq, freqs, impl="reference")
    for options in ({"freqs_hz_F": freqs}, {"bands_hz": BANDS}):
        outcome(x, sfreq, None, options | {"impl": "triton", "precision": "bf16"})
    rounded = log_power(x, sfreq, freqs, impl="triton", precision="bf16")
    assert 1e-4 < (rounded - exact).abs().median() < 0.1


class NothingIsReadBack(TorchDispatchMode):
    """Fails where the host would wait for a GPU, or copy to it, which a CUDA graph cannot hold."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select"), name
        assert name not in ("lift_fresh", "lift_fresh_copy"), f"{name}: a table is made again"
        indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        assert not any(i is not None and i.dtype == torch.bool for i in indices), f"{name} with a mask"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [118, 1000])
def test_a_second_call_reads_nothing_back(length: int, masked: bool) -> None:
    x = signal(2, 2, length).requires_grad_()
    sfreq = torch.tensor([100.0, 90.0])
    valid = (torch.arange(length, device=DEVICE) < length - 9).expand(2, -1) if masked else None
    options: dict[str, Any] = {"time_valid_BT": valid, "impl": "triton"}
    calls = [
        lambda: log_power(x, sfreq, [5.0, 20.0], **options),
        lambda: log_power_frames(x, sfreq, bands_hz=[(3.0, 9.0)], frame_seconds=length / 100, **options)[0],
    ]
    if not masked:  # the span of a mask decides the bins of a band
        calls.append(lambda: log_power(x, sfreq, bands_hz=[(3.0, 9.0), (9.0, 30.0)], **options))
    for call in calls:
        first = torch.autograd.grad(call().sum(), x)[0]
        made = tables._whole.cache_info().misses, fft_tables.fft_tables.cache_info().misses
        with NothingIsReadBack():
            again = torch.autograd.grad(call().sum(), x)[0]
        assert torch.equal(first, again)
        assert made == (tables._whole.cache_info().misses, fft_tables.fft_tables.cache_info().misses)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("length", [200, 1000])
def test_a_cuda_graph_replays_on_other_signals(length: int) -> None:
    x, sfreq = signal(2, 5, length), torch.tensor([200.0, 100.0], device=DEVICE)
    still = x.clone().requires_grad_()

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        value = log_power(still, sfreq, [5.0, 20.0], impl="triton")
        return value, torch.autograd.grad(value.sum(), still)[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        both()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value, grad = both()
    still.data.copy_(x.flip(0) + 3)
    graph.replay()
    expected, expected_grad = both()
    assert torch.equal(value, expected)
    assert torch.equal(grad, expected_grad)
