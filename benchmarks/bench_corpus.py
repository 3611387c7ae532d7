"""Planning, building and indexing a corpus: seconds, memory, recordings per second, beside a bare MNE script.

python benchmarks/bench_corpus.py [--out FILE] [--plan N] [--index N] [--seal N N] [--recordings N N]
                        [--seconds S] [--images N N] [--tables N N] [--repeats N]
                        [--parts plan index seal isolation build images tables]

writes benchmarks/results/corpus_cpu_<yyyymm>.json and prints it; parts that are not asked for stay in the file as they
are, and each part says of which commit and options it is. What is planned, indexed and sealed are recordings that do
not exist (corpus_scale.py). Built ones are EDF files of 64 channels at 500 Hz, 16-bit noise, as the bare script reads,
filters (notch, 0.5-75 Hz), resamples (200 Hz) and saves them as float16 with numpy.save; images are those of
bench_cleaning.py, with nilearn's NiftiLabelsMasker as the bare script. Each figure is the median of the repeats. A
build starts processes that import MNE and nilearn, so few and many recordings are built: what a further recording costs
is the difference, and what remains is the start. Tables are parcel series of 200 columns by 78 to 316 volumes,
without their mean, as C-PAC writes those of ABIDE; the bare script is a loop of pandas and numpy that saves float16,
and both are measured by the processor time of all of their processes, Ray's own services aside. Isolation is a build's
reading through the second process against the same function in this process.
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
from corpus_scale import KEY

from mcsp.provenance import hardware

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("plan", "index", "seal", "isolation", "build", "images", "tables")
CHANNELS, SFREQ = 64, 500


def alone(function: str, *arguments: object) -> dict[str, Any]:
    """Run one of the functions below, or of corpus_scale, in a process of its own: its result and peak memory."""
    run = f"b.measured({'' if function.startswith('s.') else 'b.'}{function}, *json.loads(sys.argv[1]))"
    modules = "import bench_corpus as b, corpus_scale as s"
    code = f"import json, sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); {modules}; {run}"
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


def write_recordings(root: str, n: int, seconds: float) -> dict[str, Any]:
    """``n`` EDF recordings on two sites."""
    from mcsp.data_sharding.bids.write import write_eeg, write_json

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


def write_images(root: str, n: int) -> dict[str, Any]:
    """``n`` images of 200 volumes with 200 labels on two sites."""
    from bench_cleaning import write_image

    for i in range(n):
        write_image(Path(root) / f"site-{i % 2}", (60, 72, 60), volumes=200, subject=str(i), seed=i)
    return {}


def bare_images(root: str) -> dict[str, Any]:
    """What one would write by hand."""
    from nilearn.maskers import NiftiLabelsMasker

    files = sorted(Path(root).rglob("*_bold.nii.gz"))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        for number, file in enumerate(files):
            labels = file.parents[2] / "seg-bench_dseg.nii.gz"
            masker = NiftiLabelsMasker(labels, standardize="psc", detrend=True, t_r=2.0, reports=False, verbose=0)
            np.save(Path(folder) / f"{number}.npy", masker.fit_transform(file).astype(np.float16))
        seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 2), "recordings": len(files)}


def write_tables(root: str, n: int) -> dict[str, Any]:
    """``n`` tables of 200 parcels on 20 sites."""
    from mcsp.data_sharding.bids.write import write_json, write_parcellation, write_tsv

    rng = np.random.default_rng(0)
    names = [f"CC200_{i:03d}" for i in range(1, 201)]
    places_P3 = rng.uniform(-60, 60, (200, 3))
    for i in range(n):
        site = Path(root) / f"site-{i % 20:02d}"
        if i < 20:
            write_json(site / "dataset_description.json", {"Name": "x", "BIDSVersion": "1.10.0"})
            write_json(site / "task-rest_timeseries.json", {"RepetitionTime": 2.0})
            write_parcellation(site, "CC200", names, places_P3)
        x_TP = 10 * rng.standard_normal((rng.integers(78, 317), 200))
        path = site / f"sub-{i:04d}/func/sub-{i:04d}_task-rest_seg-CC200_stat-mean_timeseries.tsv"
        write_tsv(path, names, [[f"{value:.6g}" for value in row] for row in x_TP])
    return {}


def bare_tables(root: str) -> dict[str, Any]:
    """What one would write by hand."""
    import pandas as pd

    files = sorted(Path(root).rglob("*_timeseries.tsv"))
    with tempfile.TemporaryDirectory() as folder:
        start, began = time.perf_counter(), time.process_time()
        for number, file in enumerate(files):
            np.save(Path(folder) / f"{number}.npy", pd.read_csv(file, sep="\t").to_numpy().astype(np.float16))
        seconds, processor = time.perf_counter() - start, time.process_time() - began
    return {"seconds": round(seconds, 2), "processor_seconds": round(processor, 2), "recordings": len(files)}


def processor_seconds() -> float:
    """Processor time so far of this process and of all below it that are alive, without Ray's own services [s]."""
    tick = os.sysconf("SC_CLK_TCK")
    found: dict[int, tuple[int, float]] = {}
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            command = Path(f"/proc/{entry}/cmdline").read_bytes()
        except OSError:  # ended meanwhile
            continue
        service = any(name in command for name in (b"gcs_server", b"raylet/raylet", b"/ray/dashboard", b"log_monitor"))
        found[int(entry)] = (int(stat[1]), 0.0 if service else sum(map(int, stat[11:15])) / tick)

    def below(process: int) -> float:
        return found[process][1] + sum(below(child) for child, (parent, _) in found.items() if parent == process)

    return below(os.getpid())


def isolation(root: str) -> dict[str, Any]:
    """Reading here against reading through the second process, in turns, without its start."""
    from mcsp.config import CorpusConfig
    from mcsp.data_sharding.bids.find import find_recordings, find_sites
    from mcsp.data_sharding.clean.child import read_recording
    from mcsp.data_sharding.clean.read import ReadingProcess

    config = CorpusConfig(bids_root=Path(root), out_dir=Path("unused"))
    refs = [ref for site in find_sites(config) for ref in find_recordings(site)][:6]
    here: list[float] = []
    there: list[float] = []
    with ReadingProcess(config) as process:
        process.read(refs[0]), read_recording(refs[0], config)
        for ref in refs:
            for times, read in ((here, lambda r: read_recording(r, config)), (there, process.read)):
                start = time.perf_counter()
                read(ref)
                times.append(time.perf_counter() - start)
    return {"here_seconds": round(statistics.median(here), 4), "isolated_seconds": round(statistics.median(there), 4),
            "overhead": round(statistics.median(t / h for t, h in zip(there, here, strict=True)) - 1, 4)}  # fmt: skip


def build(root: str, out: str, workers: int, samples: int = 1) -> dict[str, Any]:
    """Build, and once more; without the start of Ray."""
    from mcsp.config import CorpusConfig
    from mcsp.data_sharding.build import corpus

    config = CorpusConfig(
        bids_root=Path(root), out_dir=Path(out), workers=workers, samples_per_shard=samples, allow_public_key=True
    )
    with corpus.ray_session(workers):
        start, began = time.perf_counter(), processor_seconds()
        index, _ = corpus.build_corpus(config)
        seconds, processor = time.perf_counter() - start, processor_seconds() - began
        start = time.perf_counter()
        assert corpus.build_corpus(config)[1]
        again = time.perf_counter() - start
    shutil.rmtree(out)
    counts = index["totals"]["all"]
    return {"seconds": round(seconds, 2), "again_seconds": round(again, 2), "recordings": counts["recordings"],
            "processor_seconds": round(processor, 2)}  # fmt: skip


def main() -> None:
    """Measure what is asked for and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    today = datetime.date.today()
    default = ROOT / "benchmarks" / "results" / f"corpus_cpu_{today:%Y%m}.json"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--plan", type=int, default=100_000, help="recordings to plan")
    parser.add_argument("--index", type=int, default=1_000_000, help="rows of the index")
    parser.add_argument("--seal", type=int, nargs="+", default=[50_000, 250_000], help="recordings to seal")
    parser.add_argument("--images", type=int, nargs=2, default=[2, 8], help="images to build: few and many")
    parser.add_argument("--tables", type=int, nargs=2, default=[20, 1033], help="tables to build: few and many")
    parser.add_argument("--recordings", type=int, nargs=2, default=[4, 20], help="recordings to build: few and many")
    parser.add_argument("--seconds", type=float, default=300, help="length of each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    arguments = parser.parse_args()
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    options = {k: v for k, v in vars(arguments).items() if k not in ("out", "parts")}
    made = {"date": str(today), "commit": git.stdout.strip(), "options": options}
    with tempfile.TemporaryDirectory(prefix="bench-corpus-") as folder:
        results = {part: {**made, **found} for part, found in measure(arguments, Path(folder))}
    packages = {name: version(name) for name in ("mne", "numpy", "scipy", "ray", "pyarrow", "nilearn")}
    before = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    content = {**before, "what": __doc__, "hardware": hardware(), "versions": packages, **results}
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def measure(arguments: argparse.Namespace, root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each part that is asked for, with what was measured; inputs are made below ``root``."""
    if "plan" in arguments.parts:
        alone("s.write_names", root / "names", arguments.plan)
        yield "plan", alone("s.plan", root / "names")
        shutil.rmtree(root / "names")
    if "index" in arguments.parts:
        (root / "index").mkdir()
        found = {"rows": arguments.index, **alone("s.index", root / "index", arguments.index)}
        found |= {what: alone("s.use", root / "index", what) for what in ("report", "lint", "privacy")}
        yield "index", found
        shutil.rmtree(root / "index")
    if "seal" in arguments.parts:
        sealed = []
        for n in arguments.seal:
            alone("s.write_receipts", root / "receipts", n)
            sealed.append(alone("s.seal", root / "receipts", n))
            shutil.rmtree(root / "receipts")
        yield "seal", {"runs": sealed}
    if {"isolation", "build"} & set(arguments.parts):
        few, many = arguments.recordings
        alone("write_recordings", root / "few", few, arguments.seconds)
        if "isolation" in arguments.parts:
            yield "isolation", alone("isolation", root / "few")
        if "build" in arguments.parts:
            alone("write_recordings", root / "many", many, arguments.seconds)
            yield "build", builds(arguments.repeats, "bare", root, few, many, arguments.seconds / 3600)
            shutil.rmtree(root / "many")
        shutil.rmtree(root / "few")
    if "images" in arguments.parts:
        few, many = arguments.images
        alone("write_images", root / "few", few)
        alone("write_images", root / "many", many)
        yield "images", builds(arguments.repeats, "bare_images", root, few, many, 400 / 3600)
    if "tables" in arguments.parts:
        few, many = arguments.tables
        alone("write_tables", root / "few-tables", few)
        alone("write_tables", root / "many-tables", many)
        yield "tables", tables(arguments.repeats, root, few, many)


def tables(repeats: int, root: Path, few: int, many: int) -> dict[str, Any]:
    """Processor time of the bare loop and of builds by one and by two workers, in turns."""
    runs: dict[str, list[list[dict[str, Any]]]] = {"bare": [], "one_worker": [], "two_workers": []}
    for _ in range(repeats):
        for name, workers in (("bare", 0), ("one_worker", 1), ("two_workers", 2)):
            sizes = [root / "few-tables", root / "many-tables"]
            build_options = (root / "corpus", workers, 64)
            calls = [alone("build", size, *build_options) if workers else alone("bare_tables", size) for size in sizes]
            runs[name].append(calls)
    rows: dict[str, Any] = {"recordings": {"few": few, "many": many}}
    for name, pairs in runs.items():
        spent = [[run["processor_seconds"] for run in of_size] for of_size in zip(*pairs, strict=True)]
        further = [(b - a) / (many - few) for a, b in zip(*spent, strict=True)]
        rows[name] = {
            "processor_seconds": {"few": spent[0], "many": spent[1]},
            "wall_seconds": [pair[1]["seconds"] for pair in pairs],
            "processor_ms_per_further_recording": round(1000 * statistics.median(further), 3),
        }
    cost = {name: rows[name]["processor_ms_per_further_recording"] for name in runs}
    rows["one_worker_to_bare"] = round(cost["one_worker"] / cost["bare"], 3)
    rows["two_workers_to_bare"] = round(cost["two_workers"] / cost["bare"], 3)
    return rows


def builds(repeats: int, bare_script: str, root: Path, few: int, many: int, hours: float) -> dict[str, Any]:
    """The bare script and builds of the same files by one and by two workers, in turns; of ``hours`` each."""
    calls = {"bare": (bare_script, 1), "one_worker": ("build", 1), "two_workers": ("build", 2)}
    runs: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, (function, cores) in calls.items():
            options = (root / "corpus", cores) if function == "build" else ()
            runs[name].append([alone(function, root / size, *options) for size in ("few", "many")])
    rows: dict[str, Any] = {}
    for name, pairs in runs.items():
        seconds = [[run["seconds"] for run in runs_of_size] for runs_of_size in zip(*pairs, strict=True)]
        further = statistics.median((b - a) / (many - few) for a, b in zip(*seconds, strict=True))
        rows[name] = {
            "seconds": {"few": seconds[0], "many": seconds[1]},
            "start_seconds": round(statistics.median(seconds[0]) - few * further, 2),
            "seconds_per_further_recording": round(further, 4),
            "recordings_per_second": round(1 / further, 3),
            "hours_per_core_hour": round(hours * 3600 / further / calls[name][1], 1),
            "peak_mb": max(run["peak_mb"] for pair in pairs for run in pair),
        }
    rows["again_seconds"] = statistics.median(pair[1]["again_seconds"] for pair in runs["one_worker"])
    cost = {name: rows[name]["seconds_per_further_recording"] for name in calls}
    rows["one_worker_to_bare"] = round(cost["one_worker"] / cost["bare"], 3)
    rows["scaling_1_to_2"] = round(cost["one_worker"] / cost["two_workers"], 3)
    return {"recordings": {"few": few, "many": many}, **rows}


if __name__ == "__main__":
    main()
