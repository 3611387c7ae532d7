"""Files of this project that run for one recording and for one step of training, in the order of their first use.

python benchmarks/studies/files_touched.py            counts, writes benchmarks/results/files_touched.json, prints
python benchmarks/studies/files_touched.py --table    prints the lists from the result file

A file counts where a function that is written in it is called (sys.setprofile), import of modules apart: no file that
only holds constants or plain dataclasses. Settings and vocabulary (VOCABULARY) count too, and are marked.

* plan: from the folders of two sites to the plan of their shards.
* eeg: from the plan of one EDF recording to its sample in a shard, in the worker and in its reading process.
* bold: the same of a 4-D NIfTI image with a label image.
* step: from collated batches to the optimizer's update of the nano model, one rank on the CPU.
"""

import argparse
import inspect
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from mcsp.config import CorpusConfig, PretrainConfig
from mcsp.data_sharding.bids import write as bids_write
from mcsp.data_sharding.build.plan import make_plan
from mcsp.data_sharding.build.receipts import build_or_keep, claimed, fingerprint_here, private_place
from mcsp.data_sharding.build.seal import settle
from mcsp.data_sharding.build.shards import build_shard
from mcsp.data_sharding.clean import read
from mcsp.data_sharding.demo.sites import SIMULATED_A, write_simulated
from mcsp.data_sharding.store.files import location
from mcsp.provenance import made_by

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "files_touched.json"
VOCABULARY = ("mcsp/config/", "mcsp/schema.py", "mcsp/wording.py", "mcsp/outside.py", "mcsp/provenance.py")
KEY = b"0" * 64
_SHAPE, _VOXEL_MM, _SECONDS = (10, 12, 10), 16.0, 120


class Touched:
    """Files by the time [ns] of the first call of one of their functions."""

    def __init__(self, log: Path | None = None) -> None:
        """Nothing was called yet; with ``log`` a line is added to it for every file."""
        self.first: dict[str, int] = {}
        self._log = log.open("a") if log else None

    def __call__(self, frame: Any, event: str, _: object) -> None:
        """A profile function of sys and threading."""
        name = frame.f_code.co_filename
        if event != "call" or not name.startswith(str(ROOT)) or not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            return
        file = Path(name).resolve().relative_to(ROOT).as_posix()
        if file in self.first or not file.startswith(("mcsp/", "kernels/", "data_sharding/")) or _imported(frame):
            return
        self.first[file] = time.monotonic_ns()
        if self._log:
            print(self.first[file], file, file=self._log, flush=True)


def _imported(frame: Any) -> bool:
    """Whether a function was called because a module of the project is being imported."""
    while frame := frame.f_back:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") != "__main__":
            return True
    return False


@contextmanager
def watched(found: Touched) -> Iterator[None]:
    """Every call of this process inside the block is seen by ``found``."""
    threading.setprofile(found)
    sys.setprofile(found)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def _log_of(process: int) -> Path:
    return Path(tempfile.gettempdir()) / f"files-touched-{process}.txt"


def serve_watched(descriptor: int, memory: int, parent: int) -> None:
    """The reading process; seen are the threads that read one recording each."""
    from mcsp.data_sharding.clean.child import serve

    threading.setprofile(Touched(_log_of(parent)))
    serve(descriptor, memory, parent)


def recording(config: CorpusConfig, modality: str) -> list[str]:
    """Files between the plan of a recording and its sample in a shard."""
    plan, log, found = make_plan(config, KEY), _log_of(os.getpid()), Touched()
    (shard,) = list(plan.shards)[:1]
    assert [ref.modality for sample in shard.samples for ref in sample.recordings] == [modality]
    with claimed(location(config.out_dir), private_place(config), plan), read.ReadingProcess(config) as process:
        process.fingerprint()  # starts the process
        with watched(found):
            build_shard(shard, config, process)
    for line in log.read_text().splitlines():
        began, file = line.split()
        found.first.setdefault(file, int(began))
    log.unlink()
    return sorted(found.first, key=found.first.__getitem__)


def write_sites(root: Path) -> None:
    """One simulated site of six people, and one of a single person's 4-D image with a label image."""
    write_simulated(root / "simulated", replace(SIMULATED_A, n_subjects=6, seconds=float(_SECONDS)))
    site = root / "images"
    bids_write.write_json(site / "dataset_description.json", {"Name": "images", "BIDSVersion": "1.10.0"})
    affine = np.diag([_VOXEL_MM, _VOXEL_MM, _VOXEL_MM, 1.0])
    affine[:3, 3] = -_VOXEL_MM * (np.array(_SHAPE) - 1) / 2
    labels = np.zeros(_SHAPE, dtype=np.int16)
    labels[2:8, 2:10, 2:8] = 1 + np.arange(6 * 8 * 6).reshape(6, 8, 6) // 24
    noise = np.random.default_rng(0).standard_normal((*_SHAPE, _SECONDS // 2))
    for name, values in (("space-MNI152NLin6Asym_dseg", labels), ("", 10_000 + 100 * noise.cumsum(-1))):
        stem = name or "sub-1/func/sub-1_task-rest_space-MNI152NLin6Asym_desc-preproc_bold"
        image = nibabel.Nifti1Image(values.astype(np.int16 if name else np.float32), affine)
        image.header.set_zooms((_VOXEL_MM,) * 3 + (() if name else (2.0,)))
        image.set_sform(affine, 4)
        image.set_qform(affine, 4)
        (site / stem).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(image, site / f"{stem}.nii.gz")
    bids_write.write_json(site / f"{stem}.json", {"RepetitionTime": 2.0})


def planned(config: CorpusConfig) -> list[str]:
    """Files from the folders of all sites to their plan."""
    found = Touched()
    with watched(found):
        make_plan(config, KEY)
    return sorted(found.first, key=found.first.__getitem__)


def step(config: CorpusConfig, folder: Path) -> list[str]:
    """Files of the first step of a run on the simulated site."""
    plan = make_plan(config, KEY)
    with claimed(location(config.out_dir), private_place(config), plan):
        fingerprint = fingerprint_here(config)
        for shard in plan.shards:
            build_or_keep(shard, None, config, fingerprint, deep=True)
        settle(plan, config, location(config.out_dir), fingerprint, KEY, lambda shards, names: [])
    os.environ |= {
        "DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost",
        "MASTER_PORT": "29577",
    }  # fmt: skip
    from mcsp.training.trainer import Trainer

    overrides = [
        f"corpus_dir={config.out_dir}", f"run_dir={folder / 'run'}", "batch={paired: 4, eeg: 0, fmri: 0}",
        "window_seconds={eeg: 10, fmri: 30}",
    ]  # fmt: skip
    trainer, found = Trainer(PretrainConfig.load(None, overrides)), Touched()
    batches = trainer.dataset[0]
    with watched(found):
        trainer.train_step(batches)
    return sorted(found.first, key=found.first.__getitem__)


def measure() -> dict[str, Any]:
    """Every list, each in a folder of its own."""
    read._CHILD = "benchmarks.studies.files_touched"
    counts: dict[str, Callable[[CorpusConfig, Path], list[str]]] = {
        "plan": lambda config, _: planned(config),
        "eeg": lambda config, _: recording(config, "eeg"),
        "bold": lambda config, _: recording(config, "fmri"),
        "step": step,
    }
    files: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as place:
        bids = Path(place) / "bids"
        write_sites(bids)
        for name, count in counts.items():
            site = {"bold": "images"}.get(name, "simulated")
            overrides = [f"out_dir={place}/{name}", "split_fractions=[1, 0, 0]", "samples_per_shard=1"]
            overrides += [f"bids_root={bids}"] if name == "plan" else [f"sites={{{site}: {{path: {bids / site}}}}}"]
            overrides += ["exclude=['*/func/*']"] if name == "eeg" else []
            files[name] = count(CorpusConfig.load(None, overrides), Path(place))
    return {"counts": {name: len(found) for name, found in files.items()}, "files": files,
            "vocabulary": VOCABULARY, **made_by([])}  # fmt: skip


def table(content: dict[str, Any]) -> str:
    """Counts, and below each its files; ``*`` marks vocabulary."""
    lines = []
    for name, files in content["files"].items():
        lines.append(f"{name}: {len(files)} files, {sum(not f.startswith(VOCABULARY) for f in files)} without *")
        lines += [f"  {'*' if file.startswith(VOCABULARY) else ' '} {file}" for file in files]
    return "\n".join(lines)


def main() -> None:
    """Count, or print what was counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the result file")
    if not parser.parse_args().table:
        RESULT.write_text(json.dumps(measure(), indent=1) + "\n")
    print(table(json.loads(RESULT.read_text())))


if __name__ == "__main__":
    if len(sys.argv) == 4:
        serve_watched(*map(int, sys.argv[1:]))
    else:
        main()
