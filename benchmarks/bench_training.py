"""Training on this machine: what our loop costs, what two ranks gain, and (with CUDA) the utilisation of the GPU.

python benchmarks/bench_training.py [--out FILE] [--steps K] [--parts]

writes benchmarks/results/training_<cpu or cuda>_<yyyymm>.json; with --parts the parts of a step alone, to
benchmarks/results/step_parts_<cpu or cuda>_<yyyymm>.json.

* overhead: steps of :class:`mcsp.training.run.Run` (DeepSpeed, health, clock, watchdog, metrics, progress line) against
  the barest torch loop: the same module, objective and AdamW on the same batches (so the same views), ``zero_grad,
  backward, clip, step``. The two take turns, so that a slow spell of the machine meets both. What our loop adds is so
  many milliseconds per step, whatever the batch, mostly DeepSpeed's handling of each parameter; so it is measured with
  a batch too small to train with, 8, and with one of ordinary size, 32.
* weak scaling: one rank with a batch, then two ranks with twice that batch; the share of communication in a step.
* parts: where a plain step of the nano model goes (views, measures, encoders, heads, contrast, backward, optimizer), on
  16 recordings of one modality, windows of 30 s of EEG and of 60 s of BOLD; and what the bare operations of measuring
  EEG take.
* mfu (CUDA only): small and base, model FLOP/s over the peak of the GPU.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
BATCH = 32  # paired samples per rank
OVERHEAD = ((8, 1), (8, 0), (BATCH, 1), (BATCH, 0))  # paired samples and ZeRO stage of one rank
WINDOWS = "window_seconds={eeg: 10, fmri: 30}"


def make_corpus(folder: Path) -> Path:
    """Two simulated sites, built as any corpus is."""
    from dataclasses import replace

    from mcsp.config import CorpusConfig
    from mcsp.data_sharding.build.corpus import build_corpus
    from mcsp.data_sharding.demo.sites import SIMULATED_A, SIMULATED_B, write_simulated

    os.environ.setdefault("MCSP_SUBJECT_KEY", b"mcsp training benchmark, public".hex().ljust(64, "0"))
    for site in (SIMULATED_A, SIMULATED_B):
        write_simulated(folder / "bids" / site.name, replace(site, n_subjects=24, seconds=100.0))
    build_corpus(CorpusConfig(bids_root=folder / "bids", out_dir=folder / "corpus", workers=2, allow_public_key=True))
    return folder / "corpus"


def config_for(corpus: Path, run_dir: Path, samples: int, steps: int, *more: str) -> Any:
    """A short run of the smallest model, ``samples`` in the global batch."""
    from mcsp.config import PretrainConfig

    batch = f"batch={{paired: {samples}, eeg: 0, fmri: 0}}"
    overrides = [f"corpus_dir={corpus}", f"run_dir={run_dir}", f"steps={steps}", batch, WINDOWS]
    return PretrainConfig.load(None, [*overrides, "checkpoint_every=100000", "warmup_steps=2", *more])


def overhead(corpus: Path, folder: Path, steps: int, samples: int, stage: int) -> dict[str, Any]:
    """Seconds per step of the barest loop and of ours, measured in turn."""
    from mcsp.batch import Batch
    from mcsp.losses.objective import objective
    from mcsp.training import engine
    from mcsp.training.clock import Clock
    from mcsp.training.pretrainer import Output, Pretrainer
    from mcsp.training.run import Run
    from mcsp.training.trainer import Trainer
    from mcsp.training.watchdog import Watchdog

    more = [f"deepspeed=configs/deepspeed/zero{stage}.json", "watchdog_seconds=36000"]
    config = config_for(corpus, folder / f"overhead-{samples}-{stage}", samples, steps, *more)
    engine.start_process_group()
    clock = Clock(engine.device())
    trainer = Trainer(config, clock)
    Watchdog(config.run_dir, 0, 1, config.watchdog_seconds, clock).start()
    bare = Pretrainer(trainer.config.model, config.objective, config.augmentation).to(trainer.device)
    groups = engine.parameter_groups(bare, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
    seconds: dict[str, list[float]] = {"bare": [], "ours": []}

    def bare_step(batch: Batch) -> None:
        optimizer.zero_grad()
        output: Output = bare(batch)
        loss, _ = objective(*output, batch.subject_N, batch.site_N, config.objective, bare.terms, bare.predictions)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(bare.parameters(), config.gradient_clipping)
        optimizer.step()
        loss.item()

    class Alternating(type(trainer.dataset)):  # type: ignore[misc]
        """Takes a bare step on the batch that our loop is about to take, outside of what is timed for ours."""

        handed_over: float

        def __getitem__(self, step: int) -> list[Batch]:
            if step:
                seconds["ours"].append(time.perf_counter() - self.handed_over)
            batches: list[Batch] = super().__getitem__(step)
            begin = time.perf_counter()
            bare_step(batches[0])
            seconds["bare"].append(time.perf_counter() - begin)
            self.handed_over = time.perf_counter()
            return batches

    trainer.dataset.__class__ = Alternating
    Run(trainer).go()
    warm = 3
    ours, bare_seconds = seconds["ours"][warm:], seconds["bare"][warm : len(seconds["ours"])]
    ratios = [a / b for a, b in zip(ours, bare_seconds, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "batch": samples,
        "zero_stage": stage,
        "steps": len(ratios),
        "bare_seconds_per_step": statistics.median(bare_seconds),
        "our_seconds_per_step": statistics.median(ours),
        "added_seconds_per_step": statistics.median(a - b for a, b in zip(ours, bare_seconds, strict=True)),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [quartiles[0], quartiles[2]],
    }


def run_ranks(corpus: Path, folder: Path, ranks: int, steps: int, stage: int) -> dict[str, Any]:
    """A run of the launcher on this machine's cores; medians of its own metrics, without the first steps."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_dir = folder / f"ranks{ranks}-zero{stage}-{time.monotonic_ns()}"
    arguments = [
        f"corpus_dir={corpus}", f"run_dir={run_dir}", f"steps={steps}", "checkpoint_every=100000", WINDOWS,
        f"batch={{paired: {BATCH * ranks}, eeg: 0, fmri: 0}}", f"deepspeed=configs/deepspeed/zero{stage}.json",
    ]  # fmt: skip
    processes = []
    for rank in range(ranks):
        env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        command = [sys.executable, str(ROOT / "launchers" / "pretrain.py"), *arguments]
        processes.append(subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.DEVNULL))
    if any([process.wait() for process in processes]):
        raise RuntimeError(f"a rank of {run_dir} failed")
    from mcsp.run_log import read_metrics

    lines = read_metrics(run_dir)[3:]

    def median(name: str) -> float:
        return statistics.median(line[name] for line in lines)

    split = {name: median(f"seconds/{name}") for name in ("data", "forward", "backward", "communication", "optimizer")}
    seconds = median("seconds_per_step")
    return {
        "ranks": ranks,
        "zero_stage": stage,
        "samples_per_second": median("samples_per_second"),
        "seconds_per_step": seconds,
        "split_seconds": split,
        "communication_share": split["communication"] / seconds,
        "memory_gib_of_rank_0": max(line["memory_gib"] for line in lines),
        "gflops_per_rank": median("tflops") * 1000,
    }


def weak_scaling(corpus: Path, folder: Path, steps: int) -> dict[str, Any]:
    """One rank against two with twice the batch, in turn; efficiency is speed per rank over that of one."""
    runs = [run_ranks(corpus, folder, ranks, steps, 1) for _ in range(2) for ranks in (1, 2)]
    pairs = list(zip(runs[::2], runs[1::2], strict=True))
    efficiencies = [two["samples_per_second"] / 2 / one["samples_per_second"] for one, two in pairs]
    return {"runs": runs, "efficiency": statistics.mean(efficiencies), "efficiency_of_each_pair": efficiencies}


def mfu(corpus: Path, folder: Path, steps: int) -> list[dict[str, Any]]:
    """Small and base on one GPU."""
    from mcsp.run_log import read_metrics
    from mcsp.training.run import Run
    from mcsp.training.trainer import Trainer

    results, samples = [], 32
    for size in ("small", "base"):
        config = config_for(corpus, folder / f"mfu-{size}", samples, steps, f"model.size={size}", "workers=4")
        Run(Trainer(config)).go()
        lines = read_metrics(config.run_dir)[3:]
        found = {name: statistics.median(line[name] for line in lines) for name in ("tflops", "seconds_per_step")}
        known = [line["mfu"] for line in lines if "mfu" in line]
        results.append({"size": size, "batch": samples, **found, "mfu": statistics.median(known) if known else None})
    return results


def parts(corpus: Path, folder: Path, steps: int) -> dict[str, Any]:
    """Median seconds of each part of a step, by modality."""
    from mcsp.data_sharding.store.reader import Corpus
    from mcsp.training.check import seconds_of_parts, table
    from mcsp.training.engine import keep_freed_memory, parameter_groups
    from mcsp.training.pretrainer import Pretrainer
    from mcsp.training.reading.loader import StepDataset
    from mcsp.training.trainer import schedule_of

    found: dict[str, Any] = {}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keep_freed_memory()  # as a run on a CPU does
    for modality in ("eeg", "fmri"):
        quota = {"paired": 0, "eeg": 0, "fmri": 0, modality: 16}
        more = [f"model.modalities=[{modality}]", "window_seconds={eeg: 30, fmri: 60}", f"batch={quota}"]
        config = config_for(corpus, folder / f"parts-{modality}", 16, steps, *more)
        opened = Corpus(corpus)
        alone = [r for r in opened.recordings if r.modality == modality]
        opened.recordings = type(opened.recordings).of(alone)  # a corpus of this modality, so not paired
        (batch,) = StepDataset(opened, schedule_of(config, opened), 0, 1)[0]
        torch.manual_seed(0)
        module = Pretrainer(config.model, config.objective, config.augmentation).to(device)
        optimizer = torch.optim.AdamW(parameter_groups(module, config.weight_decay), lr=config.learning_rate)
        clock = (
            time.perf_counter if device.type == "cuda" else time.process_time
        )  # of this process alone, in one thread
        seconds = seconds_of_parts(module, batch.to(device), config.objective, optimizer, steps, clock)
        x_BCT = batch.signals[modality].x_BCT
        found[modality] = {"rows_channels_samples": list(x_BCT.shape), "seconds": seconds}
        if modality == "eeg":
            found[modality]["seconds_of_bare_work"] = bare_work(x_BCT, steps, clock)
        shape = found[modality]["rows_channels_samples"]
        print(f"{modality}, {shape}\n{table(seconds)}")
    return found


def bare_work(x_BCT: torch.Tensor, steps: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of the bare operations that measuring both views of a step's EEG at 200 Hz is made of.

    Each as one call for some rows that a cache holds, without a mask, a mean, a scale, or a copy between them: what no
    way of measuring the same quantities with torch goes below.

    * transforms: seconds of the course of both views, frames of two seconds for the power spectrum, which overlap by
      half, and for coherence, which do not;
    * logarithms of the power of the first two;
    * products of both halves: the covariance of channels, and for the shrinkage of a view and of what is predicted
      the size of each time sample at the anchors;
    * eigenvectors of each half's covariance and of these two;
    * courses: both views read noise, are scaled, and are written as patches.
    """
    rows, channels, samples = x_BCT.shape
    cuts = ((200, 200), (200, 200), (400, 200), (400, 400))  # samples of a frame, and from frame to frame
    frames = [x_BCT.unfold(-1, length, hop).contiguous().split(4) for length, hop in cuts]
    power = [torch.rand(rows, channels, n, 45).split(4) for n in (samples // 200, samples // 200)]
    halves = [half.contiguous() for of in x_BCT.split(4) for half in of.chunk(2, -1)]
    forms = [torch.rand(len(half), channels, channels) for half in halves]
    square = torch.rand(3 * 2 * rows, channels, channels, dtype=torch.float64)
    square, gain_B11 = square @ square.mT, torch.rand(rows, 1, 1)

    def products() -> None:
        for half, form in zip(halves, forms, strict=True):
            half @ half.mT
            for _ in range(2):
                (form @ half).mul_(half).sum(1)

    def courses() -> None:
        for _ in range(2):
            for some, gain in zip(x_BCT.split(4), gain_B11.split(4), strict=True):
                torch.addcmul(some, some, gain).mul_(gain)

    work: dict[str, Callable[[], object]] = {
        "transforms": lambda: [torch.fft.rfft(of) for cut in frames for of in cut],
        "logarithms": lambda: [of.log10() for some in power for of in some],
        "products": products,
        "eigenvectors": lambda: torch.linalg.eigh(square),
        "courses": courses,
    }
    found = {}
    for name, run in work.items():
        seconds = []
        for _ in range(steps + 1):
            begin = clock()
            run()
            seconds.append(clock() - begin)
        found[name] = statistics.median(seconds[1:])
    return found


def commit() -> str:
    """The commit that is measured."""
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip()


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--parts", action="store_true", help="the parts of a step alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder))
        results: dict[str, Any] = {"parts": parts(corpus, Path(folder), arguments.steps)}
        if not arguments.parts:
            results["overhead"] = [overhead(corpus, Path(folder), arguments.steps, *case) for case in OVERHEAD]
            whole = mfu if kind == "cuda" else weak_scaling
            results["mfu" if kind == "cuda" else "weak_scaling"] = whole(corpus, Path(folder), arguments.steps)
    device = torch.cuda.get_device_name() if kind == "cuda" else platform.processor() or platform.machine()
    origin = {
        "script": "benchmarks/bench_training.py", "date": date.today().isoformat(), "commit": commit(),
        "device": device, "cores": os.cpu_count(), "load_average_before_and_after": [load, os.getloadavg()[0]],
        "python": platform.python_version(),
        "versions": {package: version(package) for package in ("torch", "deepspeed")},
        "model": "nano", "batch_per_rank_in_weak_scaling": BATCH, "windows": WINDOWS,
    }  # fmt: skip
    name = f"{'step_parts' if arguments.parts else 'training'}_{kind}_{date.today():%Y%m}.json"
    out = arguments.out or ROOT / "benchmarks" / "results" / name
    out.write_text(json.dumps({**origin, **results}, indent=1) + "\n")
    print(json.dumps(results, indent=1))
    print(f"results: {out}")


if __name__ == "__main__":
    main()
