"""Log-power of this project beside FFTs in PyTorch and SciPy: time and error against float64.

python benchmarks/bench_spectral.py [--out FILE] [--samples N]

writes benchmarks/results/spectral_<device>_<yyyymm>.json.

Every contender gives log10 density at the same bins of the same frames: demeaned, Hann window, one-sided. In one run,
contenders take turns, so that a busy machine slows all of them. On a machine with a CUDA GPU, that is what is measured.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from fresh_machine import hardware
from scipy.signal import welch
from torch import Tensor

from mcsp.kernels.spectral import log_power

ROOT = Path(__file__).resolve().parents[1]
SFREQ, CHANNELS, REPEATS, MOST_BINS = 200.0, 19, 9, 45
# Samples of a window, and of a frame and its hop where a window has more than one.
CASES = [(length, length, length) for length in (118, 200, 295, 400, 1190, 6000)] + [(6000, 400, 200)]
Contender = Callable[[Tensor], Tensor]


def signals(rows: int, length: int) -> Tensor:
    """EEG-like in float64, uV: 1/f^2 noise, 10 uV of white noise, an alpha rhythm, line noise and an offset."""
    draw = torch.Generator().manual_seed(0)
    time_s = torch.arange(length, dtype=torch.float64) / SFREQ
    white = torch.randn(rows, CHANNELS, length, generator=draw, dtype=torch.float64)
    walk = torch.randn(rows, CHANNELS, length, generator=draw, dtype=torch.float64).cumsum(-1)
    rhythm = 8 * torch.sin(2 * torch.pi * 10 * time_s) + 10 * torch.sin(2 * torch.pi * 50 * time_s)
    return (10 * white + 5 * walk + rhythm + 100).float().double()


def contenders(rows: int, frame: int, hop: int, bins: Tensor, device: str) -> dict[str, Contender]:
    """Each takes x (B, C, T) and gives log10 density (B, C, F), averaged over frames."""
    sfreq = torch.full((rows,), SFREQ)
    freqs = bins.double() * SFREQ / frame
    window = torch.hann_window(frame, device=device)
    scale = 2 / (SFREQ * window.double().square().sum().item())
    bins_there = bins.to(device)
    edge = torch.where(bins_there * 2 == frame, 0.5, 1.0)

    def ours(x: Tensor, impl: Any) -> Tensor:
        seconds = {"frame_seconds": frame / SFREQ, "hop_seconds": hop / SFREQ}
        return log_power(x, sfreq, freqs, eps=0.0, impl=impl, **seconds)

    def rfft(x: Tensor) -> Tensor:
        frames = x.unfold(-1, frame, hop)
        spectrum = torch.fft.rfft((frames - frames.mean(-1, keepdim=True)) * window)[..., bins_there]
        return torch.log10((spectrum.abs().square().mean(2)) * scale * edge)

    def stft(x: Tensor) -> Tensor:
        # torch.stft does not demean frames: the window's mean is taken out, which is the same for one frame only.
        flat = (x - x.mean(-1, keepdim=True)).flatten(0, 1)
        spectrum = torch.stft(flat, frame, hop, window=window, center=False, return_complex=True)[:, bins_there]
        return torch.log10((spectrum.abs().square().mean(-1)) * scale * edge).unflatten(0, x.shape[:2])

    def scipy_welch(x: Tensor) -> Tensor:
        _, density = welch(x.numpy(), fs=SFREQ, nperseg=frame, noverlap=frame - hop)
        return torch.from_numpy(density[..., bins.numpy()]).log10()

    own: dict[str, Contender] = {"mcsp reference": lambda x: ours(x, "reference")}
    if device == "cuda":
        return own | {"mcsp triton": lambda x: ours(x, "triton"), "torch.fft.rfft": rfft, "torch.stft": stft}
    return own | {"torch.fft.rfft": rfft, "torch.stft": stft, "scipy.signal.welch": scipy_welch}


def seconds_of(call: Contender, x: Tensor, backward: bool) -> float:
    """One call; ``backward`` includes the gradient of the sum."""
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    if backward:
        x = x.detach().requires_grad_()
        call(x).sum().backward()
    else:
        call(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def spread(times: list[float]) -> dict[str, float]:
    """Milliseconds at the 20th, 50th and 80th percentile."""
    low, *_, high = statistics.quantiles(times, n=5)
    return {"p20": round(1e3 * low, 3), "p50": round(1e3 * statistics.median(times), 3), "p80": round(1e3 * high, 3)}


def measure(length: int, frame: int, hop: int, samples: int, device: str) -> list[dict[str, Any]]:
    """All contenders on one shape."""
    rows = max(1, samples // (CHANNELS * length))
    x = signals(rows, length)
    bins = torch.arange(1, frame // 2 + 1)[:MOST_BINS]
    calls = contenders(rows, frame, hop, bins, device)
    seconds = {"frame_seconds": frame / SFREQ, "hop_seconds": hop / SFREQ}
    exact = log_power(x, torch.full((rows,), SFREQ), bins.double() * SFREQ / frame, eps=0.0, **seconds)
    x32 = x.float().to(device)
    forward: dict[str, list[float]] = {name: [] for name in calls}
    both: dict[str, list[float]] = {name: [] for name in calls if name != "scipy.signal.welch"}
    for turn in range(REPEATS + 2):
        for name, call in calls.items():
            taken = seconds_of(call, x32, False)
            with_gradient = seconds_of(call, x32, True) if name in both else 0.0
            if turn >= 2:  # the first two turns warm up
                forward[name].append(taken)
                both.get(name, []).append(with_gradient)
    results = []
    for name, call in calls.items():
        error = (call(x32).double().cpu() - exact).abs()
        shape = {"B": rows, "C": CHANNELS, "T": length, "frame": frame, "hop": hop, "F": len(bins)}
        errors = {
            "median": error.median().item(),
            "rms": error.square().mean().sqrt().item(),
            "max": error.max().item(),
        }
        entry = {"contender": name, "shape": shape, "forward_ms": spread(forward[name]), "log10_power_error": errors}
        results.append(entry | ({"forward_backward_ms": spread(both[name])} if name in both else {}))
        print(f"T={length:5d} frame={frame:5d} {name:20s} {json.dumps(results[-1]['forward_ms'])}", flush=True)
    return results


def main() -> None:
    """Measure and write the result file."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    today = datetime.datetime.now(tz=datetime.UTC)
    default = ROOT / "benchmarks" / "results" / f"spectral_{device}_{today:%Y%m}.json"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--samples", type=int, default=2**20, help="samples of all channels and rows together")
    options = parser.parse_args()
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    report = {
        "hardware": hardware(),
        "threads": 1,
        "versions": {name: version(name) for name in ("torch", "scipy", "numpy")},
        "commit": commit.strip(),
        "date": f"{today:%Y-%m-%d}",
        "repeats": REPEATS,
        "results": [entry for case in CASES for entry in measure(*case, options.samples, device)],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
