"""Our reading and cleaning against the bare MNE and nilearn scripts on the same files, on one core.

    .venv/bin/python benchmarks/bench_cleaning.py                 # to benchmarks/results/cleaning_cpu_202611.json

EEG: 10 minutes of 64 channels at 500 Hz as EDF. The bare script reads, notches, band-passes, resamples and
re-references; ours also checks the header, looks for bad channels and masks artefacts. fMRI: a compressed 4-D image
with 200 labels; the bare script is nilearn's NiftiLabelsMasker with percent signal change and detrending; ours also
checks header, coverage and baseline. Repetitions are interleaved; medians and quartiles of processor time are reported.
"""

import argparse
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import edfio
import mne
import nibabel
import numpy as np
from nilearn.maskers import NiftiLabelsMasker
from threadpoolctl import threadpool_limits

from mcsp.config import EegConfig, FmriConfig
from mcsp.data_sharding.bids.find import find_recordings
from mcsp.data_sharding.bids.ref import RecordingRef, Site
from mcsp.data_sharding.bids.write import write_json
from mcsp.data_sharding.clean.eeg import read_eeg
from mcsp.data_sharding.clean.eeg_channels import standard_positions_mm
from mcsp.data_sharding.clean.fmri import read_fmri

RESULTS = Path(__file__).parent / "results" / "cleaning_cpu_202611.json"
SFREQ, CHANNELS, T_R = 500, 64, 2.0


def write_eeg_file(root: Path, seconds: int) -> RecordingRef:
    """Noise with a 1/f spectrum and a power line."""
    rng = np.random.default_rng(0)
    n = seconds * SFREQ
    names = [name for name, _ in standard_positions_mm().values()][:CHANNELS]
    shape = np.sqrt(np.maximum(np.fft.rfftfreq(n, 1 / SFREQ), 0.5))
    line = 10 * np.sin(2 * np.pi * 50 * np.arange(n) / SFREQ)
    signals = []
    for name in names:
        x = np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) / shape, n=n)
        values = np.clip(20 * x / x.std() + line, -1600, 1600)
        signals.append(
            edfio.EdfSignal(values, SFREQ, label=name, physical_dimension="uV", physical_range=(-1638.4, 1638.35))
        )
    path = root / "sub-1/eeg/sub-1_task-rest_eeg.edf"
    path.parent.mkdir(parents=True)
    edfio.Edf(signals).write(path)
    write_json(path.with_suffix(".json"), {"SamplingFrequency": SFREQ, "PowerLineFrequency": 50})
    (ref,) = find_recordings(Site("bench", root, False, None))
    return ref


def bare_mne(ref: RecordingRef) -> np.ndarray:
    """The script that a user writes."""
    raw = mne.io.read_raw_edf(ref.path, preload=True, verbose="ERROR")
    raw.notch_filter([50.0], verbose="ERROR")
    raw.filter(0.5, 75.0, verbose="ERROR")
    raw.resample(200.0, verbose="ERROR")
    raw.set_eeg_reference("average", verbose="ERROR")
    return raw.get_data().astype(np.float32)


def write_image(
    root: Path, shape: tuple[int, int, int], volumes: int, subject: str = "1", seed: int = 0
) -> RecordingRef:
    """A brain-sized ellipsoid of noise over a mean of 10,000, as int16, with 200 labels."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    brain = (grid**2).sum(axis=0) < 0.8
    labels = np.where(brain, 1 + np.cumsum(brain.ravel()).reshape(shape) * 200 // (brain.sum() + 1), 0)
    values = np.where(brain[..., None], 10_000 + 100 * rng.standard_normal((*shape, volumes)), 0).astype(np.int16)
    affine = np.diag([3.0, 3, 3, 1])
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((3.0, 3.0, 3.0, T_R))
    name = f"sub-{subject}_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
    path = root / f"sub-{subject}" / "func" / name
    path.parent.mkdir(parents=True)
    nibabel.save(image, path)
    nibabel.save(nibabel.Nifti1Image(labels.astype(np.int16), affine), root / "seg-bench_dseg.nii.gz")
    write_json(root / "task-rest_bold.json", {"RepetitionTime": T_R})
    write_json(root / "dataset_description.json", {"Name": "bench", "BIDSVersion": "1.10.0"})
    return next(ref for ref in find_recordings(Site("bench", root, False, None)) if ref.path == path)


def bare_nilearn(ref: RecordingRef) -> np.ndarray:
    """The script that a user writes."""
    masker = NiftiLabelsMasker(
        ref.companions["dseg.nii.gz"][0], standardize="psc", detrend=True, t_r=T_R, reports=False, verbose=0
    )
    return masker.fit_transform(ref.path).astype(np.float32)


def compare(ours: Callable[[], object], bare: Callable[[], object], repeats: int) -> dict[str, object]:
    """Seconds of processor time of both, interleaved; the first run of each is not counted."""
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    for repeat in range(repeats + 1):
        for name, run in (("ours", ours), ("bare", bare)):
            start = time.process_time()
            run()
            if repeat:
                seconds[name].append(time.process_time() - start)
    quartiles = {name: [round(float(q), 4) for q in np.percentile(s, [25, 50, 75])] for name, s in seconds.items()}
    ratio = float(np.median(np.array(seconds["ours"]) / np.array(seconds["bare"])))
    return {"seconds_quartiles": quartiles, "ours_over_bare": round(ratio, 4)}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    packages = ("mne", "nilearn", "nibabel", "numpy", "scipy", "edfio")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    cpu = next(
        (s.split(":")[1].strip() for s in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in s), ""
    )
    result: dict[str, object] = {
        "hardware": {"cpu": cpu or platform.processor(), "cores_used": 1},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "commit": commit,
        "repeats": arguments.repeats,
        "what": "processor seconds per file, first and third quartile around the median; repetitions interleaved",
    }
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        eeg = write_eeg_file(Path(folder) / "eeg", seconds=600)
        measured = compare(lambda: read_eeg(eeg, EegConfig(), 10.0), lambda: bare_mne(eeg), arguments.repeats)
        median = measured["seconds_quartiles"]["ours"][1]  # type: ignore[index]
        hours = {name: q[1] for name, q in measured["seconds_quartiles"].items()}  # type: ignore[attr-defined]
        result["eeg"] = {
            "file": {"seconds": 600, "channels": CHANNELS, "sfreq": SFREQ, "format": "EDF"},
            **measured,
            "hours_per_core_hour": {name: round(600 / s, 1) for name, s in hours.items()},
        }
        print(f"EEG: ours {median:.3f} s, {result['eeg']}")
        fmri = write_image(Path(folder) / "fmri", (60, 72, 60), volumes=200)
        result["fmri"] = {
            "file": {"shape": [60, 72, 60, 200], "labels": 200, "format": "nii.gz int16"},
            **compare(lambda: read_fmri(fmri, FmriConfig(), 10.0), lambda: bare_nilearn(fmri), arguments.repeats),
        }
        print(f"fMRI: {result['fmri']}")
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
