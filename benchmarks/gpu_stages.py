"""The stages of ``gpu_day.py``: python benchmarks/gpu_stages.py STAGE --out DIR [--rehearse]"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measured import commit
from torch import Tensor

from mcsp.kernels import dispatch
from mcsp.kernels.contrastive import contrastive_loss, relational_distillation
from mcsp.kernels.dispatch import Impl, Precision

ROOT = Path(__file__).resolve().parents[1]
LOSSES: dict[str, Callable[..., Tensor]] = {
    "contrastive_loss": contrastive_loss,
    "relational_distillation": relational_distillation,
}
BLOCKWISE: tuple[Impl, ...] = ("blocks", "triton")
TESTS = ("interpreted_contrastive.py", "interpreted_spectral.py", "interpreted_cases.py")
Save = Callable[[dict[str, Any]], None]


def seconds_of(call: Callable[[], object], device: str, repeats: int) -> float:
    """Median of so many calls, after two that are not counted."""
    taken = []
    for turn in range(repeats + 2):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        if turn > 1:
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def embeddings(n: int, width: int, device: str, stack: int = 2) -> Tensor:
    """Random rows of norm 1, (stack, n, width)."""
    z = torch.randn(stack, n, width, generator=torch.Generator().manual_seed(n + width))
    return torch.nn.functional.normalize(z, dim=-1).to(device)


def both_passes(name: str, z: Tensor, impl: Impl, precision: Precision) -> list[Tensor]:
    """Loss of one pair of all embeddings in turn, and gradients of embeddings and scales."""
    x = z.detach().requires_grad_()
    pairs = [(i, i + 1) for i in range(len(z) - 1)]
    scale = torch.full((len(pairs),), 14.3, device=z.device, dtype=z.dtype, requires_grad=True)
    value = LOSSES[name](x, pairs, scale, impl=impl, precision=precision)
    return [value.detach(), *torch.autograd.grad(value.sum(), (x, scale))]


def card(save: Save, out: Path, rehearse: bool, seconds: float) -> None:
    """The device, and its measured rates."""
    device = "cpu" if rehearse else "cuda"
    n = 64 if rehearse else 8192
    found: dict[str, Any] = {"device": dispatch.device_name(torch.device(device)), **commit("kernels")}
    found["versions"] = {name: version(name) for name in ("torch", "triton")}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"name": properties.name, "memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    save(found)
    rates = {}
    for dtype, tf32 in ((torch.bfloat16, False), (torch.float32, True), (torch.float32, False)):
        if device == "cuda":
            torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        taken = seconds_of(lambda a=a, b=b: a @ b, device, 3 if rehearse else 30)  # type: ignore[misc]
        rates["tf32" if tf32 else str(dtype).removeprefix("torch.")] = 2e-12 * n**3 / taken
    source = torch.ones(2**12 if rehearse else 2**29, device=device)
    target = torch.empty_like(source)
    taken = seconds_of(lambda: target.copy_(source), device, 3 if rehearse else 30)
    save(found | {"matmul_tflops": rates, "copy_gb_per_second": 8e-9 * source.numel() / taken})


def correctness(save: Save, out: Path, rehearse: bool, seconds: float) -> None:
    """Value tests, and what only a GPU can show."""
    found: dict[str, Any] = {"tests": {}}
    device = "cpu" if rehearse else "cuda"
    for program in TESTS:
        report = out / f"{program}.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", f"--junitxml={report}"]
        command += [str(ROOT / "tests" / "kernels" / program)]
        # A word of the names of a few quick tests.
        command += ["-k", "strides or stride or half_precision or case1-"] if rehearse else []
        try:  # the report comes at the end, so a program that hangs must not take the time of the others
            subprocess.run(command, cwd=ROOT, check=False, timeout=0.27 * seconds)
        except subprocess.TimeoutExpired:
            found["tests"][program] = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0, "failed": ["out of time"]}
            save(found)
            continue
        suite = ElementTree.parse(report).getroot()[0]
        counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
        failed = [f"{case.get('name')}" for case in suite.iter("testcase") if case.find("failure") is not None]
        found["tests"][program] = counts | {"failed": failed}
        save(found)
    z = embeddings(70 if rehearse else 3000, 64, device, 3)
    for name in LOSSES:
        once, again = (both_passes(name, z, "triton", "fp32") for _ in range(2))
        same = all(torch.equal(x, y) for x, y in zip(once, again, strict=True))
        found.setdefault("same_bits", {})[name] = same
    save(found)
    found["beyond_2_31"] = "needs a GPU" if rehearse else far_offsets()
    save(found)
    found["cuda_graph"] = "needs a GPU" if rehearse else cuda_graph(embeddings(256, 64, "cuda"))
    save(found)
    found["sanitizer"] = sanitizer(rehearse)
    save(found)


def far_offsets() -> dict[str, float]:
    """Largest difference of a row's gradient where N D and a block pass 2^31 from what the last rows alone have."""
    n, width = 2**16 + 2**8, 2**15 + 2**7
    z = torch.zeros(2, n, width, device="cuda", dtype=torch.bfloat16)
    z[:, :, 0] = 1
    z[:, -512:] = torch.nn.functional.normalize(torch.randn(2, 512, width, device="cuda"), dim=-1).bfloat16()
    valid = torch.zeros(2, n, dtype=torch.bool, device="cuda")
    valid[:, -512:] = True
    scale, found = torch.full((1,), 14.3, device="cuda"), {}
    for impl in ("blocks", "triton"):
        x, y = z.clone().requires_grad_(), z[:, -512:].clone().requires_grad_()
        contrastive_loss(
            x, [(0, 1)], scale, valid_Mn=valid, impl=impl, precision="bf16", workspace_bytes=2**34
        ).backward()
        contrastive_loss(y, [(0, 1)], scale, impl="reference").backward()
        assert x.grad is not None and y.grad is not None
        found[impl] = float((x.grad[:, -512:].float() - y.grad.float()).norm() / y.grad.float().norm())
    return found


def cuda_graph(z: Tensor) -> dict[str, bool]:
    """Whether a captured step replayed on other embeddings gives what a plain step gives."""
    found = {}
    for name, impl in itertools.product(LOSSES, BLOCKWISE):
        held = z.clone()
        for _ in range(3):
            both_passes(name, held, impl, "fp32")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = both_passes(name, held, impl, "fp32")
        held.copy_(z.flip(1))
        graph.replay()
        plain = both_passes(name, z.flip(1), impl, "fp32")
        found[f"{name} {impl}"] = all(torch.equal(x, y) for x, y in zip(captured, plain, strict=True))
    return found


def sanitizer(rehearse: bool) -> str:
    """What compute-sanitizer says of a small step."""
    tool = shutil.which("compute-sanitizer")
    if tool is None or rehearse:
        return "compute-sanitizer is not installed" if tool is None else "needs a GPU"
    code = "import sys; sys.path.insert(0, 'benchmarks'); import gpu_stages as g\n"
    code += "for name in g.LOSSES: g.both_passes(name, g.embeddings(300, 64, 'cuda'), 'triton', 'bf16')"
    run = subprocess.run([tool, sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    return run.stdout.strip().splitlines()[-1]


def tuner(save: Save, out: Path, rehearse: bool, seconds: float) -> None:
    """Tiles, then implementations."""
    from mcsp.kernels.contrastive import fused

    device = "cpu" if rehearse else "cuda"
    repeats = 1 if rehearse else 20
    found: dict[str, Any] = {"tiles": {}, "implementations": []}
    names = {"contrast": "contrastive_loss", "relations": "relational_distillation"}
    for what, tiles in fused.CANDIDATES.items():
        for n, width in [(64, 16)] if rehearse else [(1024, 128), (16384, 256)]:
            z, timed = embeddings(n, width, device), {}
            for tile in tiles:
                fused.TILES[what] = tile
                timed[str(list(tile))] = seconds_of(
                    lambda z=z, what=what: both_passes(names[what], z, "triton", "bf16"),  # type: ignore[misc]
                    device,
                    repeats,
                )
            found["tiles"].setdefault(what, {})[f"{n} x {width}"] = timed
            save(found)
        sums = [sum(by_size[str(list(tile))] for by_size in found["tiles"][what].values()) for tile in tiles]
        fused.TILES[what] = tiles[sums.index(min(sums))]
        found.setdefault("best", {})[what] = list(fused.TILES[what])
    widths = (16,) if rehearse else (128, 512)
    sizes = (48,) if rehearse else (512, 4096, 32768)
    precisions = ("fp32",) if rehearse else ("bf16", "tf32", "fp32")
    for name, precision, width, n in itertools.product(LOSSES, precisions, widths, sizes):
        z = embeddings(n, width, device)
        impls = ("blocks", "triton", "reference") if n <= 4096 else ("blocks", "triton")
        taken = {
            impl: seconds_of(lambda z=z, i=impl, m=name, p=precision: both_passes(m, z, i, p), device, repeats)  # type: ignore[misc]
            for impl in impls
        }
        row = {"operation": name, "precision": precision, "width": width, "n": n, "seconds": taken}
        found["implementations"].append(row)
        save(found)


def bench(save: Save, out: Path, rehearse: bool, seconds: float) -> None:
    """The two benchmarks, which write after each shape."""
    contrast = [["512,128", "64,16"][rehearse], "8192,128", "8192,512", "32768,512", "65536,768"]
    commands = {
        "contrastive": ["--sizes", *contrast[: 1 if rehearse else None], "--repeats", "2" if rehearse else "20"],
        "spectral": ["--lengths", "64", "--samples", "4000"]
        if rehearse
        else ["--lengths", "200", "400", "1000", "6000"],
    }
    found: dict[str, Any] = {"ended": {}, "absent": {"siglip-kernel": absent("siglip-kernel")}}
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    for name, more in commands.items():
        path = out / f"bench_{name}.json"
        command = [sys.executable, str(ROOT / "benchmarks" / f"bench_{name}.py"), "--out", str(path), *more]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        found["ended"][name] = done.returncode
        found[name] = json.loads(path.read_text()) if path.exists() else None
        save(found)
    if any(found["ended"].values()):
        raise SystemExit(f"benchmarks ended with {found['ended']}")


def absent(package: str) -> str:
    """Why a package takes no part."""
    try:
        return (
            f"{package} {version(package)}: a loss of pairs by sigmoids, not this one; its own benchmark has its times"
        )
    except ModuleNotFoundError:
        return "not installed"


def train(save: Save, out: Path, rehearse: bool, seconds: float) -> None:
    """One step of every size in bfloat16 autocast."""
    found: dict[str, Any] = {"steps": []}
    for size in ("nano",) if rehearse else ("nano", "small", "base", "large", "huge"):
        for impl in ("blocks", "triton"):
            try:
                found["steps"].append(one_step(size, impl, 4 if rehearse else 64, rehearse))
            except torch.OutOfMemoryError as error:
                found["steps"].append({"size": size, "impl": impl, "error": str(error).splitlines()[0]})
            save(found)


def noise(shapes: dict[str, tuple[int, int, float]], rows: int) -> Any:
    """A batch of random windows; of each modality channels, time samples and rate [Hz]."""
    from mcsp.batch import Batch, Signal

    draw = torch.Generator().manual_seed(0)
    signals = {}
    for modality, (c, t, hz) in shapes.items():
        signals[modality] = Signal(
            x_BCT=10 * torch.randn(rows, c, t, generator=draw),
            sfreq_B=torch.full((rows,), hz),
            channel_valid_BC=torch.ones(rows, c, dtype=torch.bool),
            time_valid_BT=torch.ones(rows, t, dtype=torch.bool),
            position_BC3=40 * torch.randn(rows, c, 3, generator=draw),
            position_valid_BC=torch.ones(rows, c, dtype=torch.bool),
            sample_B=torch.arange(rows),
            key_B=torch.randint(2**62, (rows,), generator=draw),
        )
    return Batch(signals, torch.arange(rows), torch.zeros(rows, dtype=torch.int64), tuple(map(str, range(rows))))  # type: ignore[arg-type]


def one_step(size: str, impl: str, rows: int, rehearse: bool) -> dict[str, Any]:
    """Seconds of a whole step and of its losses; windows of noise from both modalities."""
    from mcsp.config import PretrainConfig
    from mcsp.losses.objective import objective
    from mcsp.training.pretrainer import Output, Pretrainer
    from mcsp.training.throughput import VIEWS, peak_memory_gib, peak_tflops, window_flops

    device = torch.device("cpu" if rehearse else "cuda")
    table: Any = dispatch.TABLE
    dispatch.TABLE = tuple(row._replace(impl=impl) if row.operation in LOSSES else row for row in table)
    config = PretrainConfig.load(None, ["corpus_dir=none", "run_dir=none", f"model.size={size}"])
    shapes = (
        {"fmri": (12, 40, 0.5), "eeg": (8, 2000, 200.0)}
        if rehearse
        else {"fmri": (400, 120, 0.5), "eeg": (64, 6000, 200.0)}
    )
    batch = noise(shapes, rows)
    batch, module = batch.to(device), Pretrainer(config.model, config.objective, config.augmentation).to(device)

    def losses(output: Output) -> Tensor:
        keys = (batch.subject_N, batch.site_N)
        return objective(*output, *keys, config.objective, module.terms, module.predictions)[0]

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=not rehearse):
            losses(module(batch)).backward()
        module.zero_grad()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    whole = seconds_of(step, device.type, 1 if rehearse else 10)
    memory = peak_memory_gib(device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=not rehearse):
        output = module(batch)
    output = type(output)(*(x.requires_grad_() if x.is_floating_point() else x for x in output))
    share = seconds_of(lambda: losses(output).backward(), device.type, 1 if rehearse else 10)
    rates = {m: hz for m, (_, _, hz) in shapes.items()}
    flops = window_flops(config.model, {m: (c, t) for m, (c, t, _) in shapes.items()}, rates)  # type: ignore[misc, arg-type]
    tflops = len(VIEWS) * rows * sum(flops.values()) / whole / 1e12
    peak = peak_tflops(device)
    return {
        "size": size,
        "impl": impl,
        "rows": rows,
        "seconds": whole,
        "seconds_of_losses": share,
        "share_of_losses": share / whole,
        "tokens_per_second": len(VIEWS) * rows * len(shapes) * len(config.model.domains) / whole,
        "tflops": tflops,
        "mfu": tflops / peak if peak else None,
        "memory_gib": memory,
    }


def verdict(save: Save, out: Path, rehearse: bool, seconds: float) -> None:
    """What to set, from the files of the other stages."""
    said = {stage: json.loads((out / f"{stage}.json").read_text()) for stage in ("card", "correctness", "tuner")}
    device, checked = said["card"].get("device", "unknown"), said["correctness"]
    wrong = [f"{stage}: {found['ended']}" for stage, found in said.items() if found["ended"] != "done"]
    wrong += [
        f"{p}: {n}" for p, c in checked.get("tests", {}).items() for n in c["failed"] or ["errors"] * bool(c["errors"])
    ]
    of_checks = {name: checked.get(name) for name in ("same_bits", "cuda_graph", "beyond_2_31")}
    same, graph, far = (of if isinstance(of, dict) else {} for of in of_checks.values())
    wrong += [f"{name}: other bits the second time" for name, is_same in same.items() if not is_same]
    wrong += [f"{name}: another result in a CUDA graph" for name, is_same in graph.items() if not is_same]
    wrong += [f"{name}: wrong beyond 2^31" for name, error in far.items() if not error < 0.02]
    lines = ["REHEARSAL: these numbers mean nothing."] if rehearse else []
    if wrong:
        lines += ["Set nothing; these failed:", *wrong]
        save({"lines": lines, "rows": []})
        return
    rows = []
    for name, precision in sorted({(r["operation"], r["precision"]) for r in said["tuner"]["implementations"]}):
        timed = [r for r in said["tuner"]["implementations"] if (r["operation"], r["precision"]) == (name, precision)]
        # Triton where it is the faster one at every size; a doubtful case stays with the library.
        triton = all(r["seconds"]["triton"] < 0.97 * r["seconds"]["blocks"] for r in timed)
        row = dispatch.Row(name, device, (precision,), None, "triton" if triton else "blocks", "gpu_day_<yyyymm>.json")
        rows.append(row)
    lines += ["Rows for the table of kernels/dispatch.py, before the row of any device:", *map(repr, rows)]
    lines += ["Tiles to stand first in kernels/contrastive/fused.py:", json.dumps(said["tuner"]["best"])]
    save({"lines": lines, "rows": [row._asdict() for row in rows]})


STAGES = {stage.__name__: stage for stage in (card, correctness, tuner, bench, train, verdict)}


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--seconds", type=float, default=1800.0, help="that the stage has")
    options = parser.parse_args()
    if not options.rehearse and not torch.cuda.is_available():
        raise SystemExit("expected an NVIDIA GPU, found none; --rehearse needs none")

    def save(found: dict[str, Any]) -> None:
        (options.out / f"{options.stage}.json").write_text(json.dumps(found, indent=1) + "\n")

    if options.rehearse:
        torch.set_num_threads(1)
    STAGES[options.stage](save, options.out, options.rehearse, options.seconds)


if __name__ == "__main__":
    main()
