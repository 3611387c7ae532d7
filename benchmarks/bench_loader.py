"""The loader beside a plain WebDataset pipeline on the same shards; start, memory and waiting at a million recordings.

python benchmarks/bench_loader.py [--out FILE] [--recordings N]

writes benchmarks/results/loader_cpu_<yyyymm>.json and prints it. Shards are read from the page cache: this measures the
software. Windows have 256,000 bytes: 64 channels, 10 s at 200 Hz, float16. Contenders take turns.

WebDataset reads and decodes whole recordings, one after the other. "every window" cuts each into all of its 30 windows,
the best that a sequential reader can do; "one window" takes one of each, as a pass of pretraining does.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from loader_corpus import CHANNELS, SFREQ, write_million, write_shards

from mcsp.config import BatchConfig
from mcsp.data_sharding.store import reader
from mcsp.data_sharding.store.index import SHARDS_NAME
from mcsp.data_sharding.store.reader import Corpus
from mcsp.provenance import hardware
from mcsp.run_log import read_metrics
from mcsp.schema import BLOCK_SAMPLES, Modality
from mcsp.training.reading.loader import StepDataset, batches
from mcsp.training.reading.schedule import Schedule

ROOT = Path(__file__).resolve().parents[1]
BATCH, REPEATS, SECONDS = 64, 7, 10.0
LENGTH = round(SECONDS * SFREQ)
WINDOW_BYTES = LENGTH * CHANNELS * 2
BUFFER = np.empty(2 * WINDOW_BYTES, np.uint8)
Contender = Callable[[], int]


def dataset(path: Path) -> StepDataset:
    """Batches of 64 EEG windows of a corpus, by one rank."""
    corpus = Corpus(path)
    schedule = Schedule(
        corpus.recordings, index_hash=corpus.index_hash, seed=0, quota=BatchConfig(paired=0, eeg=BATCH, fmri=0),
        window_seconds={"eeg": SECONDS}, delay_seconds=0.0,
    )  # fmt: skip
    return StepDataset(corpus, schedule, 0, 1)


def our_windows(data: StepDataset, steps: Iterator[int], verify: bool) -> int:
    """Read the stored windows of two steps, from what the schedule says to the array."""
    draws = [draw for _ in range(2) for draw in data.schedule.draws(next(steps))]
    for draw in draws:
        for cut in draw.cuts:
            data.corpus.read_stored(cut.recording, cut.start, cut.n_samples, verify, BUFFER)
    return len(draws)


def our_batches(data: StepDataset, steps: Iterator[int]) -> int:
    """Two batches of float32 tensors in physical units, ready for the model."""
    return sum(len(batch) for _ in range(2) for batch in data[next(steps)])


def their_recordings(path: Path) -> Iterator[np.ndarray]:
    """Decoded recordings of a plain pipeline."""
    shards = [str(p) for p in sorted((path / SHARDS_NAME).glob("*.tar"))]
    for sample in webdataset.WebDataset(shards[:2], shardshuffle=False).decode():
        yield sample["eeg-0.npy"]


def their_windows(path: Path, every: bool) -> int:
    """Windows of two shards: all that fit, or one per recording."""
    n = 0
    for x_TC in their_recordings(path):
        for start in range(0, len(x_TC) - LENGTH + 1, LENGTH) if every else (LENGTH,):
            n += x_TC[start : start + LENGTH].shape[0] == LENGTH
    return n


def their_batches(path: Path) -> int:
    """All windows of two shards as float32 tensors (B, C, T), scaled; by the fastest way we know."""
    n, batch = 0, torch.zeros(BATCH, CHANNELS, LENGTH)
    for x_TC in their_recordings(path):
        for start in range(0, len(x_TC) - LENGTH + 1, LENGTH):
            batch[n % BATCH].copy_((torch.from_numpy(x_TC[start : start + LENGTH]).float() * 2.0**-8).T)
            n += 1
            if n % BATCH == 0:
                batch = torch.zeros(BATCH, CHANNELS, LENGTH)
    return n


def speeds(path: Path) -> dict[str, Any]:
    """Windows per second of one process for every contender."""
    data, steps = dataset(path), iter(range(10**9))
    contenders: dict[str, Contender] = {
        "windows, CRC checked": lambda: our_windows(data, steps, True),
        "windows, CRC not checked": lambda: our_windows(data, steps, False),
        "batches, CRC checked": lambda: our_batches(data, steps),
        "webdataset windows, every window": lambda: their_windows(path, True),
        "webdataset windows, one window": lambda: their_windows(path, False),
        "webdataset batches, every window": lambda: their_batches(path),
    }
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(REPEATS + 1):  # the first warms up
        for name, contender in contenders.items():
            begin = time.perf_counter()
            n = contender()
            if repeat:
                found[name].append(n / (time.perf_counter() - begin))
    return {
        name: spread(values) | {"gb_per_s": statistics.median(values) * WINDOW_BYTES / 1e9}
        for name, values in found.items()
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median and the 20th and 80th percentile."""
    p20, p50, p80 = np.percentile(values, [20, 50, 80]).tolist()
    return {"p20": p20, "p50": p50, "p80": p80}


def crc_speed() -> dict[str, Any]:
    """CRC-32 in GB/s, on blocks as they are stored: the reader's and zlib's."""
    size = BLOCK_SAMPLES["eeg"] * CHANNELS * 2
    block = os.urandom(size)
    found: dict[str, Any] = {"block_bytes": size}
    for name, crc32 in (("reader", reader.crc32), ("zlib", zlib.crc32)):
        values = []
        for _ in range(REPEATS):
            begin = time.perf_counter()
            for _ in range(2000):
                crc32(block)
            values.append(2000 * size / (time.perf_counter() - begin) / 1e9)
        found[name] = spread(values)
    return found


def amplification() -> dict[str, float]:
    """Bytes read per byte of a window, since whole blocks are checked: mean over starts, for several block lengths."""

    def mean(block: int, length: int) -> float:
        starts = np.arange(block)
        return float(((-(-(starts + length) // block) * block - starts // block * block) / length).mean())

    cases: list[tuple[Modality, str, int]] = [
        ("eeg", "EEG 10 s at 200 Hz", 2000), ("eeg", "EEG 30 s at 200 Hz", 6000),
        ("fmri", "BOLD 60 s at t_r 2 s", 30), ("fmri", "BOLD 60 s at t_r 0.72 s", 83),
    ]  # fmt: skip
    others = {"eeg": (200, 400, 1000, 2000), "fmri": (5, 10, 20, 100)}
    return {f"{name}, blocks of {b}": mean(b, n) for m, name, n in cases for b in (*others[m],)}


FIRST_BATCH = """
import sys, time
begin = time.perf_counter()
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from bench_loader import dataset
imported = time.perf_counter()
data = dataset(Path(sys.argv[1]))
opened = time.perf_counter()
data[0]
print(imported - begin, opened - imported, time.perf_counter() - imported)
"""


def first_batch(path: Path) -> dict[str, Any]:
    """Seconds from opening the corpus to the first batch, in fresh processes; imports apart."""
    found = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", FIRST_BATCH, str(path), str(ROOT / "benchmarks"), str(ROOT)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found.append([float(value) for value in done.stdout.split()])
    names = ("imports_s", "open_and_schedule_s", "first_batch_s")
    return {name: spread([row[i] for row in found]) for i, name in enumerate(names)}


def workers(path: Path, n: int = 2, steps: int = 60) -> dict[str, Any]:
    """What reaches the training process through ``n`` workers, and the memory of each after it."""
    data = dataset(path)
    stream = batches(data, 0, steps, n, False)
    next(stream)
    begin = time.perf_counter()
    memory: list[dict[str, float]] = []
    for number, _ in enumerate(stream):
        if number == steps // 2:
            memory = [_memory(worker.pid) for worker in stream._workers]  # type: ignore[attr-defined]
    seconds = time.perf_counter() - begin
    return {"workers": n, "windows_per_s": (steps - 1) * BATCH / seconds, "memory_mb": memory}


def _memory(pid: int) -> dict[str, float]:
    """Private and proportional memory of a process [MB]. What is shared with the others: files (the mapped table and
    libraries, which the system drops where memory is short) and shared memory (batches on their way)."""
    values = dict(line.split()[:2] for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    private = int(values["Private_Clean:"]) + int(values["Private_Dirty:"])
    parts = {name.lower(): int(values[f"Pss_{name}:"]) / 1e3 for name in ("Anon", "File", "Shmem")}
    return {"private": private / 1e3, "pss": int(values["Pss:"]) / 1e3} | {f"pss_{n}": mb for n, mb in parts.items()}


def data_wait(path: Path, folder: Path, ranks: int, steps: int = 34) -> dict[str, Any]:
    """The share of a step that a real run waits for data: nano model, eight windows and one worker per CPU rank.

    On two cores one rank has a core for its worker, as ranks of a GPU machine have; two ranks share theirs with both.
    """
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    command = [
        launcher, "--num_accelerators", str(ranks), str(ROOT / "launchers/pretrain.py"),
        f"corpus_dir={path}", f"run_dir={folder}", f"steps={steps}", "workers=1", "checkpoint_every=1000",
        f"batch={{paired: 0, eeg: {8 * ranks}, fmri: 0}}", "window_seconds={eeg: 10}",
    ]  # fmt: skip
    env = {**os.environ, "DS_ACCELERATOR": "cpu", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(command, check=True, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = read_metrics(folder)[4:]  # workers start during the first
    step = spread([row["seconds_per_step"] for row in rows])
    wait = sum(row["seconds/data"] for row in rows) / sum(row["seconds_per_step"] for row in rows)
    each = spread([row["data_wait_fraction"] for row in rows])
    return {"data_wait_fraction": wait, "data_wait_fraction_of_steps": each, "seconds_per_step": step}


def main() -> None:
    """Measure and write the result file."""
    today = datetime.datetime.now(tz=datetime.UTC)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / f"benchmarks/results/loader_cpu_{today:%Y%m}.json")
    parser.add_argument("--recordings", type=int, default=1_000_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        shards, million = Path(temporary) / "shards", Path(temporary) / "million"
        rows = write_shards(shards)
        write_million(million, shards, rows, options.recordings)
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        report = {
            "hardware": hardware(),
            "versions": {p: version(p) for p in ("torch", "numpy", "pyarrow", "webdataset", "deepspeed", "isal")}
            | {"zlib": zlib.ZLIB_RUNTIME_VERSION},
            "commit": commit.stdout.strip(),
            "date": f"{today:%Y-%m-%d}",
            "repeats": REPEATS,
            "window_bytes": WINDOW_BYTES,
            "recordings": options.recordings,
            "windows_per_s_per_process": speeds(shards),
            "crc32_gb_per_s": crc_speed(),
            "bytes_read_per_window_byte": amplification(),
            "table_mb": (million / "recordings.arrow").stat().st_size / 1e6,
            "start_at_these_recordings": first_batch(million),
            "through_workers_at_these_recordings": workers(million),
            "training_run": {
                f"{ranks} ranks": data_wait(million, Path(temporary) / f"run{ranks}", ranks) for ranks in (1, 2)
            },
        }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
