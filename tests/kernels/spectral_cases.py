"""Random windows with something awkward each, and their log-power in NumPy; for the tests beside it."""

import math
from typing import Any

import numpy as np
import torch

from mcsp.kernels.spectral import log_power

PRIMES = (7, 61, 101, 127, 211)
EPS, FLAT = 1e-6, 1e-20


def case(seed: int) -> dict[str, Any]:
    """Arguments of ``log_power``. All of the kinds below occur among 38 seeds, most of them together with others."""
    draw = torch.Generator().manual_seed(seed)

    def some(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=draw))

    def often(share: float) -> bool:
        return float(torch.rand((), generator=draw)) < share

    rows, channels = some(1, 4), some(1, 6)
    n_times = PRIMES[some(0, len(PRIMES))] if often(0.4) else some(8, 230)
    rates = [float([100.0, 64.0, 250.0, 77.7][some(0, 4)]) for _ in range(rows)]
    if often(0.5):
        rates = rates[:1] * rows
    noise = torch.randn(rows, channels, n_times, generator=draw, dtype=torch.float64)
    x = 20 * noise + (noise.cumsum(-1) if often(0.5) else 0)
    if often(0.3):
        x = x + 1e4 * 20 * torch.randn(rows, channels, 1, generator=draw, dtype=torch.float64)  # offsets
    if often(0.3):
        x = x + 30 * torch.arange(n_times, dtype=torch.float64)  # lines
    if often(0.2):
        x[:, 0] = 7.25  # a flat channel
    x = x.float()
    valid = None
    if often(0.6):
        valid = torch.rand(rows, n_times, generator=draw) > (0.4 if often(0.5) else 0.02)
        valid[:, n_times - some(0, n_times // 3 + 1) :] = False
        if often(0.2):
            valid[0] = False
        if often(0.5):
            x = x.masked_fill(~valid[:, None], math.nan if often(0.5) else math.inf)
    if often(0.25):  # what counts is not finite
        x[-1, -1, n_times // 2] = math.nan if often(0.5) else math.inf
    layout = some(0, 4)
    if layout == 1:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    elif layout == 2:
        x = torch.stack([x, x], -1).flatten(-2)[..., ::2]  # every second value in memory
    elif layout == 3:
        x = x[:, :1].expand(rows, channels, n_times)
    most = max(rates) / 2
    freqs = [some(0, 1 + int(10 * most)) / 10 for _ in range(some(1, 8))] + [most] * often(0.3) + [0.0] * often(0.3)
    p: dict[str, Any] = {"x_BCT": x, "freqs_hz_F": freqs, "time_valid_BT": valid}
    p["sfreq_B"] = torch.tensor(rates, dtype=torch.float64)
    least = min(rates)
    if often(0.5) and n_times > 20:
        p |= {"frame_seconds": some(8, n_times - 8) / max(rates), "hop_seconds": some(3, n_times) / least}
    return p


def truth(p: dict[str, Any]) -> np.ndarray:
    """Log-power ``(B, C, F)`` by sums over single frames in float64; written from the definition, not from the code."""
    x_BCT = p["x_BCT"].double().numpy()
    rows, channels, n_times = x_BCT.shape
    valid_BT = np.ones((rows, n_times), bool) if p["time_valid_BT"] is None else p["time_valid_BT"].numpy()
    out = np.full((rows, channels, len(p["freqs_hz_F"])), math.log10(FLAT))
    for b, rate in enumerate(p["sfreq_B"].tolist()):
        if "frame_seconds" in p:
            length, hop = round(p["frame_seconds"] * rate), max(1, round(p["hop_seconds"] * rate))
            starts = range(0, n_times - length + 1, hop)
            frames = [np.arange(s, s + length) for s in starts if valid_BT[b, s : s + length].all()]
        else:
            there = np.flatnonzero(valid_BT[b])
            frames = [there] if len(there) >= 2 else []
        for c in range(channels):
            powers = [_density(x_BCT[b, c], at, rate, p["freqs_hz_F"]) for at in frames]
            if powers:
                out[b, c] = np.log10(np.mean(powers, axis=0) + FLAT)
    return out


def _density(x_T: np.ndarray, at: np.ndarray, rate: float, freqs: list[float]) -> np.ndarray:
    """One-sided density and its floor, from the samples ``at`` of one frame."""
    x, n = x_T[at], at[-1] - at[0] + 1
    with np.errstate(invalid="ignore"):
        x = x - x.mean()
        size = np.abs(x_T[at]).max()
        if np.sqrt(x @ x) <= 1e-9 * size * len(x):
            x = np.zeros_like(x)
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * (at - at[0]) / n)
        found = []
        for f in freqs:
            nyquist = abs(f - rate / 2) < 1e-6 * rate
            sides = 0.0 if f > rate / 2 and not nyquist else 1.0 if f == 0 or nyquist else 2.0
            wave = np.exp(-2j * np.pi * f * at / rate)
            found.append(0.0 if sides == 0 else sides * abs((hann * x) @ wave) ** 2 / (rate * max(hann @ hann, 1e-300)))
        return np.array(found) + EPS * (x @ x) / len(x) * 2 / rate


def outcome(
    p: dict[str, Any], dtype: torch.dtype, device: str = "cpu", **how: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Value and gradient, float64 on the CPU; the signal in ``dtype``."""
    on_device = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in p.items()}
    x = on_device["x_BCT"].to(dtype).detach().requires_grad_()
    value = log_power(**on_device | {"x_BCT": x}, **how)
    weight = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype, device=device).reshape(value.shape)
    (grad,) = torch.autograd.grad((value * weight).sum(), x)
    return value.detach().double().cpu(), grad.double().cpu()


def expect_float64(p: dict[str, Any], impl: str, device: str = "cpu") -> None:
    """Float32 on a device: values to 2e-5 decades of the sums above, gradients to a millionth of those in float64."""
    exact, (_, exact_grad) = torch.from_numpy(truth(p)), outcome(p, torch.float64, impl="reference")
    value, grad = outcome(p, torch.float32, device, impl=impl)
    with torch.no_grad():
        on_device = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in p.items()}
        alone = log_power(**on_device, impl=impl).double().cpu()  # type: ignore[arg-type]
    for name, ours, true in (("value", value, exact), ("value alone", alone, exact), ("gradient", grad, exact_grad)):
        finite = true.isfinite()
        assert torch.equal(ours.isfinite(), finite), name
        norm, bound = (2, 1e-6 * float(true[finite].norm())) if name == "gradient" else (math.inf, 2e-5)
        error = float(torch.linalg.vector_norm((ours - true)[finite], norm)) if finite.any() else 0.0
        assert error <= bound, f"{name}: {error}, expected at most {bound}"
