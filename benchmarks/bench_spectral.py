"""Log-power of this project beside FFTs in PyTorch, SciPy and nnAudio: time, peak memory, error against float64.

python benchmarks/bench_spectral.py [--out FILE] [--samples N] [--table]

writes benchmarks/results/spectral_<device>_<yyyymm>.json and prints a table; --table prints that of the file that is
there instead. nnAudio comes with the `bench` extra.

Every contender gives log10 density at the same bins of the same frames: demeaned, Hann window, one-sided. In one run,
contenders take turns, so that a busy machine slows all of them. On a machine with a CUDA GPU, that is what is measured,
beside the bandwidth of a copy, and the two targets at T = 200 are computed.
"""

import argparse
import ctypes
import datetime
import json
import os
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from measured import commit, resident_mib
from scipy.signal import welch
from torch import Tensor

from mcsp.kernels.spectral import log_power
from mcsp.provenance import hardware
from mcsp.training.engine import keep_freed_memory

ROOT = Path(__file__).resolve().parents[1]
SFREQ, CHANNELS, REPEATS, MOST_BINS = 200.0, 19, 21, 45
# Samples of a window, and of a frame and its hop where a window has more than one.
LENGTHS = (64, 118, 200, 256, 295, 400, 512, 1000, 1190, 1200, 4000, 6000)
CASES = [(length, length, length) for length in LENGTHS] + [(6000, 400, 200)]
# Compiling takes longer than all the rest; on a CPU these have to do.
COMPILED_ON_CPU = (200, 1190)
NO_GRADIENT = "scipy.signal.welch"
# The plain expression of what log_power gives: as it is without a gradient, and as it is where one is wanted.
SAME, SAME_WIDE = "torch.fft, same numbers", "torch.fft, same numbers, float64"
FLOORS = (1e-6, 0.0)  # of what has one, and of the others
HEAD = "| T, frame | contender | forward / with backward [ms] | peak [MiB] | rms error |\n|---|---|---|---|---|"
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
    basis = windowed_waves(frame, bins).to(device)

    def ours(x: Tensor, impl: Any, precision: Any = "fp32") -> Tensor:
        seconds: dict[str, Any] = (
            {"frame_seconds": frame / SFREQ, "hop_seconds": hop / SFREQ} if hop < x.shape[-1] else {}
        )
        return log_power(x, sfreq, freqs, impl=impl, precision=precision, **seconds)

    def rfft(x: Tensor) -> Tensor:
        frames = x.unfold(-1, frame, hop)
        spectrum = torch.fft.rfft((frames - frames.mean(-1, keepdim=True)) * window)[..., bins_there]
        return torch.log10((spectrum.abs().square().mean(2)) * scale * edge)

    def same_numbers(x: Tensor) -> Tensor:
        """The plain expression of what ``log_power`` gives: mean removed twice, floor relative to the variance."""
        frames = x.unfold(-1, frame, hop)
        frames = frames - frames.mean(-1, keepdim=True)
        frames = frames - frames.mean(-1, keepdim=True)
        level = frames.square().mean(-1, keepdim=True) * (2 / SFREQ)
        spectrum = torch.fft.rfft(frames * window)[..., 1 : len(bins) + 1]
        density = (spectrum.real.square() + spectrum.imag.square()) * (scale * edge)
        return torch.log10((density + 1e-6 * level).mean(2) + 1e-20)

    def stft(x: Tensor) -> Tensor:
        # torch.stft does not demean frames: the window's mean is taken out, which is the same for one frame only.
        flat = (x - x.mean(-1, keepdim=True)).flatten(0, 1)
        spectrum = torch.stft(flat, frame, hop, window=window, center=False, return_complex=True)[:, bins_there]
        return torch.log10((spectrum.abs().square().mean(-1)) * scale * edge).unflatten(0, x.shape[:2])

    def scipy_welch(x: Tensor) -> Tensor:
        _, density = welch(x.numpy(), fs=SFREQ, nperseg=frame, noverlap=frame - hop)
        return torch.from_numpy(density[..., bins.numpy()]).log10()

    def real_view(x: Tensor) -> Tensor:
        frames = x.unfold(-1, frame, hop)
        spectrum = torch.view_as_real(torch.fft.rfft((frames - frames.mean(-1, keepdim=True)) * window))
        return torch.log10(spectrum.square().sum(-1).mean(2)[..., 1 : len(bins) + 1] * scale * edge)

    def product(x: Tensor) -> Tensor:
        frames = x.unfold(-1, frame, hop)
        re, im = ((frames - frames.mean(-1, keepdim=True)) @ basis).chunk(2, -1)
        return torch.log10((re.square() + im.square()).mean(2) * scale * edge)

    calls: dict[str, Contender] = {"mcsp reference": lambda x: ours(x, "reference")}
    if device == "cuda":
        calls["mcsp triton"] = lambda x: ours(x, "triton")
        calls["mcsp triton bf16x3"] = lambda x: ours(x, "triton", "bf16x3")
    calls |= {SAME: same_numbers, SAME_WIDE: lambda x: same_numbers(x.double()).float()}
    calls |= {"torch.fft.rfft": rfft, "torch.stft": stft, "matmul": product}
    if device == "cuda" or frame in COMPILED_ON_CPU:
        calls["compiled view_as_real"] = torch.compile(real_view)
    if device == "cpu":
        calls[NO_GRADIENT] = scipy_welch
    nnaudio = nnaudio_power(frame, hop, bins_there, scale * edge, window.device)
    return calls | ({"nnAudio": nnaudio} if nnaudio else {})


def windowed_waves(frame: int, bins: Tensor) -> Tensor:
    """Cosines and sines of the bins under a Hann window, ``(frame, 2 F)``; a product is a Fourier transform."""
    turns = torch.outer(torch.arange(frame, dtype=torch.float64), bins.double()) / frame
    angle = 2 * torch.pi * (turns - turns.floor())
    return (torch.cat([angle.cos(), angle.sin()], 1) * torch.hann_window(frame).double()[:, None]).float()


def nnaudio_power(frame: int, hop: int, bins: Tensor, scale_F: Tensor, device: torch.device) -> Contender | None:
    """Its STFT, a convolution with all bins up to the last wanted; None where it is not installed."""
    try:
        from nnAudio.features.stft import STFT
    except ModuleNotFoundError:
        return None
    transform = STFT(
        n_fft=frame, hop_length=hop, freq_bins=len(bins) + 1, center=False, output_format="Complex", verbose=False
    ).to(device)

    def power(x: Tensor) -> Tensor:
        # As torch.stft it does not demean frames.
        flat = (x - x.mean(-1, keepdim=True)).flatten(0, 1)
        spectrum = transform(flat)[:, bins].square().sum(-1).mean(-1)
        return torch.log10(spectrum * scale_F).unflatten(0, x.shape[:2])

    return power


def seconds_of(call: Contender, x: Tensor, backward: bool) -> float:
    """One call, on a GPU the mean of ten; ``backward`` includes the gradient of the sum."""
    calls = 10 if x.is_cuda else 1
    if x.is_cuda:
        torch.cuda.synchronize()
    clock = time.perf_counter if x.is_cuda else time.process_time  # one thread; what else runs does not count
    start = clock()
    for _ in range(calls):
        once(call, x, backward)
    if x.is_cuda:
        torch.cuda.synchronize()
    return (clock() - start) / calls


def once(call: Contender, x: Tensor, backward: bool) -> None:
    """Value, or value and gradient."""
    if backward:
        call(x.detach().requires_grad_()).sum().backward()
    else:
        call(x)


def peak_mib(call: Contender, x: Tensor, backward: bool) -> float:
    """Peak memory [MiB] beyond the signal of one call; on a CPU in a fork of this process (Linux)."""
    if x.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        once(call, x, backward)
        return round((torch.cuda.max_memory_allocated() - allocated) / 2**20, 1)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        once(call, x, backward)  # the code that it needs is loaded before
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system, so that using it again is seen
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is there
        before = resident_mib("VmRSS")
        once(call, x, backward)
        os.write(writing, str(resident_mib("VmHWM") - before).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as result:
        found = result.read()
    os.waitpid(child, 0)
    return round(float(found), 1)


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
    seconds: dict[str, Any] = {"frame_seconds": frame / SFREQ, "hop_seconds": hop / SFREQ}
    freqs = bins.double() * SFREQ / frame
    exact = {
        eps: log_power(x, torch.full((rows,), SFREQ), freqs, eps=eps, impl="reference", **seconds) for eps in FLOORS
    }
    x32 = x.float().to(device)
    del x
    forward: dict[str, list[float]] = {name: [] for name in calls}
    both: dict[str, list[float]] = {name: [] for name in calls if name != NO_GRADIENT}
    for turn in range(REPEATS + 2):
        for name, call in calls.items():
            taken = seconds_of(call, x32, False)
            with_gradient = seconds_of(call, x32, True) if name in both else 0.0
            if turn >= 2:  # the first two turns warm up
                forward[name].append(taken)
                both.get(name, []).append(with_gradient)
    results = []
    for name, call in calls.items():
        value = call(x32).detach()
        floor = FLOORS[0] if name in (SAME, SAME_WIDE) or name.startswith("mcsp") else FLOORS[1]
        error = (value.double().cpu() - exact[floor]).abs()
        entry: dict[str, Any] = {
            "contender": name,
            "shape": {"B": rows, "C": CHANNELS, "T": length, "frame": frame, "hop": hop, "F": len(bins)},
            "forward_ms": spread(forward[name]),
            "forward_peak_mib": peak_mib(call, x32, False),
            "log10_power_error": {
                "median": error.median().item(),
                "rms": error.square().mean().sqrt().item(),
                "max": error.max().item(),
            },
        }
        # What has to be moved at the least: the signal in and the result out.
        entry["forward_gb_per_s"] = round(4e-6 * (x32.numel() + value.numel()) / entry["forward_ms"]["p50"], 2)
        if name in both:
            entry |= {"forward_backward_ms": spread(both[name]), "forward_backward_peak_mib": peak_mib(call, x32, True)}
        results.append(entry)
        print(line(entry), flush=True)
    return results


def line(entry: dict[str, Any]) -> str:
    """A row of the table."""
    shape, both = entry["shape"], entry.get("forward_backward_ms", {"p50": float("nan")})["p50"]
    memory = f"{entry['forward_peak_mib']:.0f} / {entry.get('forward_backward_peak_mib', float('nan')):.0f}"
    times = f"{entry['forward_ms']['p50']:.2f} / {both:.2f}"
    error = f"{entry['log10_power_error']['rms']:.1e}"
    return f"| {shape['T']}, {shape['frame']} | {entry['contender']} | {times} | {memory} | {error} |"


def table(results: list[dict[str, Any]]) -> str:
    """Markdown of a result file: a row per shape, a column per contender (milliseconds and MiB, both of value and
    gradient where there is one)."""
    names = list(dict.fromkeys(entry["contender"] for entry in results))
    lines = ["| T, frame | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for shape in dict.fromkeys((e["shape"]["T"], e["shape"]["frame"]) for e in results):
        cells = [f"{shape[0]}, {shape[1]}"]
        for name in names:
            found = [e for e in results if e["contender"] == name and (e["shape"]["T"], e["shape"]["frame"]) == shape]
            cells.append("".join(f"{_last(e, 'ms')['p50']:.1f}, {_last(e, 'peak_mib'):.0f}" for e in found))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _last(entry: dict[str, Any], what: str) -> Any:
    return entry.get(f"forward_backward_{what}", entry[f"forward_{what}"])


def ratios(results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By shape, how many times the time of the plain expression this project's takes: forward and with a gradient
    beside the one with the same numbers, and with a gradient beside the one in float32."""
    found: dict[str, dict[str, float]] = {}
    beside = {"forward": ("forward_ms", SAME), "with_gradient": ("forward_backward_ms", SAME_WIDE)}
    beside["with_gradient_over_float32"] = ("forward_backward_ms", SAME)
    for ours in (entry for entry in results if entry["contender"] == "mcsp reference"):
        there = {entry["contender"]: entry for entry in results if entry["shape"] == ours["shape"]}
        times = {name: round(ours[ms]["p50"] / there[other][ms]["p50"], 2) for name, (ms, other) in beside.items()}
        found[f"{ours['shape']['T']}, {ours['shape']['frame']}"] = times
    return found


def copy_gb_per_s() -> float:
    """Bytes read and written per second by a copy of 1 GiB on the GPU."""
    source = torch.ones(2**28, device="cuda")
    target = torch.empty_like(source)
    times = [seconds_of(lambda x: target.copy_(x), source, False) for _ in range(REPEATS)]
    return 2e-9 * source.numel() * 4 / statistics.median(times)


def targets(results: list[dict[str, Any]], bandwidth: float) -> dict[str, Any]:
    """At T = 200: share of the copy's bandwidth (target 0.6) and speed over eager torch.fft.rfft (target 3)."""
    there = {entry["contender"]: entry for entry in results if entry["shape"]["T"] == 200}
    triton, eager = there["mcsp triton"], there["torch.fft.rfft"]
    over = {name: round(eager[name]["p50"] / triton[name]["p50"], 2) for name in ("forward_ms", "forward_backward_ms")}
    return {"share_of_copy_bandwidth": round(triton["forward_gb_per_s"] / bandwidth, 3), "over_eager": over}


def versions() -> dict[str, str | None]:
    """Of what takes part; None for what is not installed."""
    found: dict[str, str | None] = {}
    for name in ("torch", "triton", "scipy", "numpy", "nnAudio"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def main() -> None:
    """Measure and write the result file."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    today = datetime.datetime.now(tz=datetime.UTC)
    default = ROOT / "benchmarks" / "results" / f"spectral_{device}_{today:%Y%m}.json"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=default)
    most = 2**26 if device == "cuda" else 2**20
    parser.add_argument("--samples", type=int, default=most, help="samples of all channels and rows together")
    parser.add_argument("--lengths", type=int, nargs="*", help="windows of so many samples only")
    parser.add_argument("--table", action="store_true", help="print the table of the file that is there")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.out.read_text())["results"]))
        return
    torch.set_num_threads(1)
    if device == "cpu":
        keep_freed_memory()  # as a run on a CPU does; else each contender pays for what the one before it freed
    print(HEAD)
    report: dict[str, Any] = {
        "hardware": hardware(),
        "threads": 1,
        "clock": "wall" if device == "cuda" else "processor time of the one thread",
        "versions": versions(),
        **commit("kernels/spectral"),
        "date": f"{today:%Y-%m-%d}",
        "repeats": REPEATS,
        "results": [],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        if not options.lengths or case[0] in options.lengths:
            report["results"] += measure(*case, options.samples, device)
            report["same_numbers"] = ratios(report["results"])
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    if device == "cuda":
        bandwidth = copy_gb_per_s()
        report["copy_gb_per_s"] = round(bandwidth, 1)
        report["targets_at_T_200"] = targets(report["results"], bandwidth)
        print(f"copy: {bandwidth:.0f} GB/s; T = 200: {json.dumps(report['targets_at_T_200'])}")
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
