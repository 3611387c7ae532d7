"""Contrast, forward and backward: blocks (on CUDA also Triton) against dense torch; time, peak memory, errors.

python benchmarks/bench_contrastive.py [--out FILE] [--repeats K] [--only NAME ...] [--sizes N,D ...] [--table]

writes benchmarks/results/contrastive_<cpu or cuda>_<yyyymm>.json after each size; --table prints the file that is there
instead. On a CPU, times are processor time of the one thread, so that what else runs does not count.

Two dense rivals: ``reference``, the definition, masks and all; and ``lean``, what is usually written: one product,
two cross-entropies, no masks. Other packages' losses are those of ``contrast_peers.py``. The implementations take
turns, so that a slow spell of the machine meets all of them. Embeddings are as late in training: pairs at a cosine of
about 0.9, one row per subject.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from contrast_peers import PEERS, Loss, versions, why_not
from measured import commit, resident_mib
from torch import Tensor

from mcsp.kernels.contrastive import contrastive_loss

ROOT = Path(__file__).resolve().parents[1]
SCALE = 14.3  # 1 / 0.07
CPU_GRID = [(n, width) for n in (512, 1024, 2048, 4096) for width in (128, 512)]
CUDA_GRID = [(n, width) for n in (2048, 8192, 32768) for width in (128, 256, 512, 1024)]


def embeddings(n: int, width: int, device: str) -> Tensor:
    """Two aligned embeddings (2, n, D), normalised."""
    draw = torch.Generator().manual_seed(n + width)
    first = torch.nn.functional.normalize(torch.randn(n, width, generator=draw), dim=-1)
    second = first + 0.5 * torch.nn.functional.normalize(torch.randn(n, width, generator=draw), dim=-1)
    return torch.stack([first, torch.nn.functional.normalize(second, dim=-1)]).to(device)


def lean(z: Tensor, scale: Tensor) -> Tensor:
    """The usual dense loss: a product and its two cross-entropies."""
    logits, own = scale * z[0] @ z[1].T, torch.arange(z.shape[1], device=z.device)
    return 0.5 * (torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own))


@cache
def peer(name: str) -> Loss:
    """One of :data:`contrast_peers.PEERS`, or ``compiled lean``; made once, as making takes long."""
    if name in PEERS:
        return PEERS[name][0]()
    return torch.compile(lambda a, b, scale: lean(torch.stack([a, b]), scale))


def implementation(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Loss of (2, n, D) embeddings and a scale (1,); a name like ``triton-bf16`` carries its precision."""
    if name == "lean":
        return lambda z, scale: lean(z, scale[0])
    if name in PEERS or name == "compiled lean":
        return lambda z, scale: peer(name)(z[0], z[1], scale[0])
    impl, _, precision = name.partition("-")
    keywords = {"precision": precision} if precision else {}
    return lambda z, scale: contrastive_loss(z, [(0, 1)], scale, impl=impl, **keywords).sum()  # type: ignore[arg-type]


def once(name: str, z: Tensor, scale: Tensor) -> float:
    """Seconds of one forward and backward pass."""
    z.grad = scale.grad = None
    if z.is_cuda:
        torch.cuda.synchronize()
    clock = time.perf_counter if z.is_cuda else time.process_time
    start = clock()
    implementation(name)(z, scale).backward()
    if z.is_cuda:
        torch.cuda.synchronize()
    return clock() - start


def peak_mib(name: str, n: int, width: int, device: str) -> float:
    """Peak memory [MiB] beyond inputs and gradients of the first pass; on a CPU in a fresh process, from its peak."""
    if device == "cuda":
        z, scale = inputs(n, width, device)
        once(name, z, scale)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once(name, z, scale)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    command = [sys.executable, __file__, "--peak", name, str(n), str(width)]
    # Else memory that earlier tensors left to the allocator is taken again and raises no peak.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


def peak_of_this_process(name: str, n: int, width: int) -> float:
    """How far one pass raises this process's peak [MiB], less the gradient of the embeddings."""
    # A small pass first loads what every pass needs once.
    once(name, *inputs(64, width, "cpu"))
    z, scale = inputs(n, width, "cpu")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is there
    before = resident_mib("VmRSS")
    once(name, z, scale)
    raised = resident_mib("VmHWM") - before
    return raised - z.numel() * z.element_size() / 2**20


def inputs(n: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    """Embeddings and scale that want gradients."""
    return embeddings(n, width, device).requires_grad_(), torch.full((1,), SCALE, device=device, requires_grad=True)


def error(name: str, n: int, width: int, device: str) -> dict[str, float]:
    """Errors in norm of loss and gradient, relative to dense float64; on the first rows where n is large."""
    z = embeddings(n, width, device)[:, :1024].contiguous()
    passes = []
    for way, dtype in ((name, torch.float32), ("lean", torch.float64)):
        x, scale = z.to(dtype).requires_grad_(), torch.full((1,), SCALE, dtype=dtype, device=device)
        loss = implementation(way)(x, scale)
        (grad,) = torch.autograd.grad(loss, x)
        passes.append((loss.detach().double(), grad.double()))
    (loss, grad), (true_loss, true_grad) = passes
    return {
        "loss": float((loss - true_loss).abs() / true_loss.abs()),
        "gradient": float((grad - true_grad).norm() / true_grad.norm()),
    }


def measure(n: int, width: int, names: list[str], repeats: int, device: str) -> list[dict[str, object]]:
    """One row per implementation, timed in turns."""
    z, scale = inputs(n, width, device)
    for name in names:
        once(name, z, scale)
    turns = [[once(name, z, scale) for name in names] for _ in range(repeats)]
    rows: list[dict[str, object]] = []
    for name, seconds in zip(names, zip(*turns, strict=True), strict=True):
        row = {
            "n": n,
            "width": width,
            "implementation": name,
            "seconds_median": statistics.median(seconds),
            "seconds_least": min(seconds),
            "seconds_most": max(seconds),
            "peak_extra_mib": round(peak_mib(name, n, width, device), 1),
            "relative_error": error(name, n, width, device),
        }
        rows.append(row)
        print(f"{n:6} {width:5} {name:20} {row['seconds_median']:9.4f} s {row['peak_extra_mib']:8} MiB", flush=True)
    return rows


def where() -> dict[str, object]:
    """Hardware, versions and commit."""
    found: dict[str, object] = {"python": platform.python_version(), "torch": torch.__version__}
    try:
        found["triton"] = version("triton")
    except PackageNotFoundError:
        found["triton"] = None
    found |= versions()
    cpu = next(
        (x.split(":")[1] for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), ""
    )
    return found | {
        "cpu": cpu.strip(),
        "threads": torch.get_num_threads(),
        "clock": "wall" if torch.cuda.is_available() else "processor time of the one thread",
        "load_average": os.getloadavg(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **commit("kernels/contrastive"),
    }


def table(rows: list[dict[str, object]]) -> str:
    """Markdown of a result file's rows: medians with least and most [ms], and peak memory [MiB]."""
    names = list(dict.fromkeys(row["implementation"] for row in rows))
    lines = [
        "| N | D | " + " | ".join(f"{name} ms | MiB" for name in names) + " |",
        "|---" * (2 + 2 * len(names)) + "|",
    ]
    for n, width in dict.fromkeys((row["n"], row["width"]) for row in rows):
        cells = [f"{n}", f"{width}"]
        for name in names:
            row = next(r for r in rows if (r["n"], r["width"], r["implementation"]) == (n, width, name))
            median, least, most = (1e3 * float(row[f"seconds_{x}"]) for x in ("median", "least", "most"))  # type: ignore[arg-type]
            cells += [f"{median:.0f} ({least:.0f}-{most:.0f})", f"{row['peak_extra_mib']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure the grid of this machine's device and write the file."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT / "benchmarks" / "results" / f"contrastive_{device}_{date.today():%Y%m}.json"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--repeats", type=int, default=5 if device == "cpu" else 50)
    parser.add_argument("--only", nargs="*", help="implementations, as they stand in the table")
    parser.add_argument("--sizes", nargs="*", metavar="N,D", help="rows and width, instead of the grid")
    parser.add_argument("--table", action="store_true", help="print the table of the file that is there")
    parser.add_argument("--peak", nargs=3, metavar=("NAME", "N", "D"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        name, n, width = options.peak
        print(peak_of_this_process(name, int(n), int(width)))
        return
    if options.table:
        report = json.loads(options.out.read_text())
        print(table(report["rows"]))
        print("\nNot run: " + "; ".join(f"{name} ({reason})" for name, reason in report.get("not_run", {}).items()))
        return
    names = ["lean", "reference", "blocks"]
    if device == "cuda":
        names += ["blocks-bf16", "blocks-tf32", "compiled lean", "triton-bf16", "triton-tf32", "triton-fp32"]
    not_run = {name: reason for name in PEERS if (reason := why_not(name, device))}
    names += [name for name in PEERS if name not in not_run]
    names = [name for name in names if not options.only or name in options.only]
    grid = CUDA_GRID if device == "cuda" else CPU_GRID
    sizes = [tuple(map(int, size.split(","))) for size in options.sizes] if options.sizes else grid
    if device == "cpu":
        torch.set_num_threads(1)
    report = {"measured_on": where(), "repeats": options.repeats, "not_run": not_run, "rows": []}
    for n, width in sizes:
        report["rows"] += measure(n, width, names, options.repeats, device)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
