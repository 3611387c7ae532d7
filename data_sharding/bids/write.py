"""Write small BIDS datasets: EEG as EDF, BOLD as parcellated time series, with sidecars.

File bytes depend on the arguments alone: no clock, no machine. Names follow BIDS 1.10, those of parcellated time series
follow xcp_d. Shape letters: C electrodes, P parcels, T time samples.
"""

import datetime
import json
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import edfio
import numpy as np

GENERATOR = "mcsp demo_sites"
EDF_STEP_UV = 0.05  # one digital step, so 16 bits span +-1638 uV
EDF_DAY = datetime.date(2000, 1, 1)  # EDF needs a start date; this one says nothing
SAME_INSTANT = "2000-01-01T00:00:00"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """One JSON object, indented, in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tsv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A BIDS table: tab-separated, one header line, cells as ``str`` makes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(str(cell) for cell in row) for row in [columns, *rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_eeg(
    root: Path, subject: str, task: str, uv_CT: np.ndarray, channels: Sequence[str], sidecar: dict[str, Any]
) -> Path:
    """Write ``sub-<subject>/eeg/*_eeg.edf`` with ``*_eeg.json`` and ``*_channels.tsv``; return the EDF's path.

    ``uv_CT`` is in microvolts and is rounded to 0.05 uV. ``sidecar`` must hold ``SamplingFrequency`` [Hz], an integer
    number of samples per second. Raises ``ValueError`` where a value does not fit into EDF's 16 bits.
    """
    stem = root / f"sub-{subject}" / "eeg" / f"sub-{subject}_task-{task}"
    limit_uv = EDF_STEP_UV * 32767
    if not np.abs(uv_CT).max() <= limit_uv:
        raise ValueError(f"{stem}_eeg.edf: expected finite EEG within +-{limit_uv:.0f} uV, found {np.abs(uv_CT).max()}")
    sfreq = sidecar["SamplingFrequency"]
    signals = [
        edfio.EdfSignal(
            row.astype(np.float64),
            sfreq,
            label=channel,
            physical_dimension="uV",
            physical_range=(-EDF_STEP_UV * 32768, limit_uv),
        )
        for channel, row in zip(channels, uv_CT, strict=True)
    ]
    path = Path(f"{stem}_eeg.edf")
    path.parent.mkdir(parents=True, exist_ok=True)
    record_seconds = math.gcd(uv_CT.shape[1], round(sfreq)) / sfreq  # EDF holds whole records only
    recording = edfio.Recording(startdate=EDF_DAY)
    edfio.Edf(signals, recording=recording, data_record_duration=record_seconds).write(path)
    write_json(Path(f"{stem}_eeg.json"), {"TaskName": task, "EEGChannelCount": len(channels), **sidecar})
    write_tsv(
        Path(f"{stem}_channels.tsv"), ("name", "type", "units", "status"), [(c, "EEG", "uV", "good") for c in channels]
    )
    return path


def write_parcellated_bold(
    root: Path, subject: str, segmentation: str, names: Sequence[str], bold_PT: np.ndarray, sidecar: dict[str, Any]
) -> Path:
    """Write ``sub-<subject>/func/*_timeseries.tsv`` (a column per parcel, a row per volume) and its sidecar.

    ``sidecar`` must hold ``RepetitionTime`` [s]. Values keep three decimals. Returns the table's path.
    """
    entities = f"task-rest_space-MNI152NLin2009cAsym_seg-{segmentation}_stat-mean"
    path = root / f"sub-{subject}" / "func" / f"sub-{subject}_{entities}_timeseries.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, bold_PT.T, fmt="%.3f", delimiter="\t", header="\t".join(names), comments="", encoding="utf-8")
    write_json(path.with_suffix(".json"), {"TaskName": "rest", "Units": "arbitrary", **sidecar})
    return path


def write_parcellation(root: Path, segmentation: str, names: Sequence[str], positions_P3: np.ndarray) -> None:
    """Write ``seg-<segmentation>_dseg.tsv``: index from 1, name and centre x, y, z [mm] of every parcel."""
    rows = [(i, name, *np.round(xyz, 2)) for i, (name, xyz) in enumerate(zip(names, positions_P3, strict=True), 1)]
    write_tsv(root / f"seg-{segmentation}_dseg.tsv", ("index", "name", "x", "y", "z"), rows)


def write_participants(root: Path, columns: dict[str, Any], rows: Iterable[Sequence[Any]]) -> None:
    """Write ``participants.tsv`` and ``participants.json``; ``columns`` describes those after ``participant_id``."""
    write_tsv(root / "participants.tsv", ("participant_id", *columns), rows)
    write_json(root / "participants.json", {"participant_id": {"Description": "subject of this dataset"}, **columns})


def build_once(
    root: Path,
    description: dict[str, Any],
    readme: str,
    parameters: dict[str, Any],
    write: Callable[[Path], None],
    generator: str = GENERATOR,
) -> bool:
    """Make the dataset ``root`` with ``write(folder)``, complete or not at all; return False if it was there already.

    The folder appears by a rename when all is written. ``dataset_description.json`` keeps ``parameters``; a dataset
    that was made with the same ones is left as it is, one made with others is replaced. Raises ``ValueError`` if
    ``root`` exists and is not a dataset written by this function.
    """
    parameters = json.loads(json.dumps(parameters))
    if root.exists() and _parameters_of(root, generator) == parameters:
        return False
    partial = root.with_name(f".{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write(partial)
        generated = [{"Name": generator, "Parameters": parameters}]
        content = {"BIDSVersion": "1.10.0", **description, "GeneratedBy": generated}
        write_json(partial / "dataset_description.json", content)
        (partial / "README").write_text(readme.strip() + "\n", encoding="utf-8")
        if root.exists():
            shutil.rmtree(root)
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _parameters_of(root: Path, generator: str) -> Any:
    path = root / "dataset_description.json"
    try:
        generated = json.loads(path.read_text(encoding="utf-8"))["GeneratedBy"][0]
        if generated["Name"] == generator:
            return generated["Parameters"]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        pass
    what = "a demo site" if generator == GENERATOR else f"written by {generator}"
    raise ValueError(f"{root}: exists and is not {what}; expected one or no such folder, so that nothing is lost")
