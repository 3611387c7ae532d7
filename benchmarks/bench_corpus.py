"""Planning, building and indexing a corpus: seconds, memory, recordings per second, beside a bare MNE script.

python benchmarks/bench_corpus.py [--out FILE] [--plan N] [--index N] [--recordings N] [--seconds S] [--repeats N]
                        [--parts plan index isolation build]

writes benchmarks/results/corpus_cpu_<yyyymm>.json and prints it; parts that are not asked for stay in the file as they
are, and each part says of which commit and options it is. Planned recordings are empty files with BIDS names on
50 sites. Built ones are EDF files of 64 channels at 500 Hz, 16-bit noise, as the bare script reads, filters (notch,
0.5-75 Hz), resamples (200 Hz) and saves them as float16 with numpy.save. Each figure is the median of the repeats.
Isolation is a build's reading through the second process against the same function in this process.
"""

import argparse
import datetime
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from fresh_machine import hardware

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("plan", "index", "isolation", "build")
CHANNELS, SFREQ, SITES = 64, 500, 50
KEY = "the key of a benchmark, no secret"


def alone(function: str, *arguments: object) -> dict[str, Any]:
    """Run one of the functions below in a process of its own: its result, seconds and peak memory."""
    run = f"b.measured(b.{function}, *json.loads(sys.argv[1]))"
    code = f"import json, sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import bench_corpus as b; {run}"
    command = [sys.executable, "-c", code, json.dumps([str(a) if isinstance(a, Path) else a for a in arguments])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MCSP_SUBJECT_KEY": KEY}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"error: {function}: {result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def measured(function: Callable[..., dict[str, Any]], *arguments: Any) -> None:
    """Print the result of ``function`` with its own peak memory [MB]."""
    result = function(*arguments)
    result["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(result))


def write_names(root: str, n: int) -> dict[str, Any]:
    """Empty recordings of ``n`` subjects on 50 sites."""
    for site in range(SITES):
        folder = Path(root) / f"site-{site:02d}"
        folder.mkdir(parents=True)
        (folder / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
        for subject in range(site, n, SITES):
            name = f"sub-{subject:07d}"
            (folder / name / "eeg").mkdir(parents=True)
            (folder / name / "eeg" / f"{name}_task-rest_eeg.edf").touch()
    return {}


def plan(root: str) -> dict[str, Any]:
    """Plan everything below ``root``."""
    from mcsp.config import CorpusConfig
    from mcsp.data_sharding.plan import make_plan

    config = CorpusConfig(bids_root=Path(root), out_dir=Path(root) / "out")
    baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    made = make_plan(config, KEY.encode())
    seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 2), "shards": len(made.names), "recordings": sum(made.found.values()),
            "mb_before": round(baseline)}  # fmt: skip


def index(root: str, n: int) -> dict[str, Any]:
    """Write and open the index of ``n`` recordings on 64 channels, as the end of a build does."""
    from mcsp.data_sharding.index import make_index, read_index, write_index
    from mcsp.data_sharding.reader import Corpus
    from mcsp.schema import Recording

    positions = np.random.default_rng(0).normal(0, 60, 3 * CHANNELS).round(3).tolist()
    names = [f"E{c}" for c in range(CHANNELS)]

    def rows() -> Any:
        for i in range(n):
            site, key = f"site-{i % SITES:02d}", f"site-{i % SITES:02d}_{i:016x}"
            yield Recording(
                key=key, shard=f"train-{i // 64:07d}-000000000000.tar", member=f"{key}.eeg-0.npy", modality="eeg",
                site=site, subject=f"{i:016x}", session="", task="rest", run="", split="train", sfreq=200.0, unit="uV",
                scale=0.0078125, n_samples=120_000 + i % 1000, n_channels=CHANNELS, dtype="float16", byte_offset=1024,
                crc_offset=0, block_samples=2000, simulated=False, onset_seconds=float("nan"), channels=names,
                positions_mm=positions, channel_good=[True] * CHANNELS, valid_spans=[0, 120_000], participant="{}",
                quality='{"amplitude": 10.0}',
            )  # fmt: skip

    shards = [{"name": f"train-{i:07d}-000000000000.tar", "sha256": f"{i:064x}", "bytes": 1, "samples": 64,
               "recordings": 64} for i in range(-(-n // 64))]  # fmt: skip
    described = {"config": {}, "software": {}, "fingerprint": "", "shards": shards,
                 "simulated": {f"site-{s:02d}": False for s in range(SITES)}}  # fmt: skip
    start = time.perf_counter()
    content, tables = make_index(described, rows(), [], [])
    write_index(Path(root), content, tables)
    written = time.perf_counter() - start
    start = time.perf_counter()
    assert len(Corpus(root).recordings) == n == read_index(Path(root))["totals"]["all"]["recordings"]
    opened = time.perf_counter() - start
    n_bytes = sum(p.stat().st_size for p in Path(root).iterdir())
    return {"write_seconds": round(written, 1), "open_seconds": round(opened, 2), "mb": round(n_bytes / 1e6)}


def write_recordings(root: str, n: int, seconds: float) -> dict[str, Any]:
    """``n`` EDF recordings on two sites."""
    from mcsp.data_sharding.bids_write import write_eeg, write_json

    rng = np.random.default_rng(0)
    for i in range(n):
        site = Path(root) / f"site-{i % 2}"
        write_json(site / "dataset_description.json", {"Name": "x", "BIDSVersion": "1.10.0"})
        x_CT = rng.normal(0, 20, (CHANNELS, round(seconds * SFREQ)))
        sidecar = {"SamplingFrequency": SFREQ, "PowerLineFrequency": 50}
        write_eeg(site, f"{i:03d}", "rest", x_CT, montage(), sidecar)
    return {}


def montage() -> list[str]:
    """64 names of the 10-05 system."""
    import mne

    return mne.channels.make_standard_montage("biosemi64").ch_names


def bare(root: str) -> dict[str, Any]:
    """What one would write by hand."""
    import mne

    mne.set_log_level("ERROR")
    files = sorted(Path(root).rglob("*.edf"))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        for number, file in enumerate(files):
            raw = mne.io.read_raw_edf(file, preload=True)
            raw.notch_filter([50]).filter(0.5, 75).resample(200).set_eeg_reference("average")
            np.save(Path(folder) / f"{number}.npy", (raw.get_data().T * 1e6).astype(np.float16))
        seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 2), "recordings": len(files)}


def isolation(root: str) -> dict[str, Any]:
    """Reading here against reading through the second process, in turns, without its start."""
    from mcsp.config import CorpusConfig
    from mcsp.data_sharding.bids import find_recordings, find_sites
    from mcsp.data_sharding.isolation import ReadingProcess
    from mcsp.data_sharding.samples import read_recording

    config = CorpusConfig(bids_root=Path(root), out_dir=Path("unused"))
    refs = [ref for site in find_sites(config) for ref in find_recordings(site)][:6]
    here, there = [], []
    with ReadingProcess(config) as process:
        process.read(refs[0]), read_recording(refs[0], config)
        for ref in refs:
            for times, read in ((here, lambda r: read_recording(r, config)), (there, process.read)):
                start = time.perf_counter()
                read(ref)
                times.append(time.perf_counter() - start)
    return {"here_seconds": round(statistics.median(here), 4), "isolated_seconds": round(statistics.median(there), 4),
            "overhead": round(statistics.median(t / h for t, h in zip(there, here, strict=True)) - 1, 4)}  # fmt: skip


def build(root: str, out: str, workers: int) -> dict[str, Any]:
    """Build, and once more; without the start of Ray and of its workers."""
    from mcsp.config import CorpusConfig
    from mcsp.data_sharding import corpus

    config = CorpusConfig(bids_root=Path(root), out_dir=Path(out), workers=workers, samples_per_shard=4)
    with corpus.ray_session(workers):
        start = time.perf_counter()
        index, _ = corpus.build_corpus(config)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        assert corpus.build_corpus(config)[1]
        again = time.perf_counter() - start
    status = json.loads((Path(out) / ".build" / "status.json").read_text())
    started, updated = (datetime.datetime.fromisoformat(status[name]).timestamp() for name in ("started", "updated"))
    shutil.rmtree(out)
    counts = index["totals"]["all"]
    return {"seconds": round(seconds, 2), "again_seconds": round(again, 2), "recordings": counts["recordings"],
            "hours": counts["hours"], "tasks_seconds": updated - started}  # fmt: skip


def main() -> None:
    """Measure what is asked for and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    today = datetime.date.today()
    default = ROOT / "benchmarks" / "results" / f"corpus_cpu_{today:%Y%m}.json"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--plan", type=int, default=100_000, help="recordings to plan")
    parser.add_argument("--index", type=int, default=1_000_000, help="rows of the index")
    parser.add_argument("--recordings", type=int, default=16, help="recordings to build")
    parser.add_argument("--seconds", type=float, default=300, help="length of each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    arguments = parser.parse_args()
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    options = {k: v for k, v in vars(arguments).items() if k not in ("out", "parts")}
    made = {"date": str(today), "commit": git.stdout.strip(), "options": options}
    with tempfile.TemporaryDirectory(prefix="bench-corpus-") as folder:
        results = {part: {**made, **found} for part, found in measure(arguments, Path(folder))}
    packages = {name: version(name) for name in ("mne", "numpy", "scipy", "ray", "pyarrow", "webdataset")}
    before = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    content = {**before, "what": __doc__, "hardware": hardware(), "versions": packages, **results}
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def measure(arguments: argparse.Namespace, root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each part that is asked for, with what was measured; inputs are made below ``root``."""
    if "plan" in arguments.parts:
        alone("write_names", root / "names", arguments.plan)
        yield "plan", alone("plan", root / "names")
        shutil.rmtree(root / "names")
    if "index" in arguments.parts:
        (root / "index").mkdir()
        yield "index", {"rows": arguments.index, **alone("index", root / "index", arguments.index)}
        shutil.rmtree(root / "index")
    if not {"isolation", "build"} & set(arguments.parts):
        return
    alone("write_recordings", root / "bids", arguments.recordings, arguments.seconds)
    if "isolation" in arguments.parts:
        yield "isolation", alone("isolation", root / "bids")
    if "build" in arguments.parts:
        runs: dict[str, list[dict[str, Any]]] = {"bare": [], "one_worker": [], "two_workers": []}
        for _ in range(arguments.repeats):
            runs["bare"].append(alone("bare", root / "bids"))
            runs["one_worker"].append(alone("build", root / "bids", root / "corpus", 1))
            runs["two_workers"].append(alone("build", root / "bids", root / "corpus", 2))
        yield "build", summarised(runs, arguments.recordings * arguments.seconds / 3600)


def summarised(runs: dict[str, list[dict[str, Any]]], hours: float) -> dict[str, Any]:
    """Medians with the fastest and slowest run, and what follows from them."""
    rows: dict[str, Any] = {}
    for name, found in runs.items():
        times = [run["seconds"] for run in found]
        cores = 2 if name == "two_workers" else 1
        median = statistics.median(times)
        rows[name] = {
            "seconds": median, "fastest": min(times), "slowest": max(times),
            "recordings_per_second": round(found[0]["recordings"] / median, 3),
            "eeg_hours_per_core_hour": round(hours / (median / 3600) / cores, 1),
            "driver_peak_mb": max(run["peak_mb"] for run in found),
        }  # fmt: skip
    rows["again_seconds"] = statistics.median(run["again_seconds"] for run in runs["one_worker"])
    rows["one_worker_to_bare"] = round(rows["one_worker"]["seconds"] / rows["bare"]["seconds"], 3)
    rows["scaling_1_to_2"] = round(rows["one_worker"]["seconds"] / rows["two_workers"]["seconds"], 3)
    return rows


if __name__ == "__main__":
    main()
