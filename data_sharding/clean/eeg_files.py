"""Open EEG files of every format, and check what their headers and sidecars say before anything is read.

Checked here is what the readers let pass or only warn about: files shorter or longer than their headers say, pieces
with gaps, and sidecars that contradict the file.
"""

import re
import warnings
from pathlib import Path

import mne
import numpy as np

from mcsp.data_sharding.bids.find import RecordingRef, read_tsv
from mcsp.data_sharding.bids.reasons import RecordingError

_READERS = {
    ".edf": mne.io.read_raw_edf,
    ".bdf": mne.io.read_raw_bdf,
    ".vhdr": mne.io.read_raw_brainvision,
    ".set": mne.io.read_raw_eeglab,
    ".fif": mne.io.read_raw_fif,
}
# What RecordingDuration and the file may differ by: a record of EDF is a second as a rule. Ours.
_DURATION_SECONDS, _DURATION_FRACTION = 2.0, 0.01
# The filter smears a jump; this much before and after one is left out. Ours.
_JUMP_SECONDS = 0.5
_JUMPS = ("boundary", "edge boundary", "new seg")  # beginnings of what EEGLAB, MNE and BrainVision call them


def open_eeg(ref: RecordingRef, sidecar: dict[str, object]) -> mne.io.BaseRaw:
    """Open a file without reading its samples, where the format allows that.

    Raises:
        RecordingError: truncated, wrong-length, not-continuous, missing-file, sfreq-mismatch.
        Exception: whatever MNE raises on a damaged file.
    """
    path = ref.path
    if path.suffix in (".edf", ".bdf"):
        _check_edf(path)
    if path.suffix == ".vhdr":
        _check_brainvision(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names and dates; what matters is checked here
        try:
            raw = _READERS[path.suffix](path, preload=False, verbose="ERROR")
        except FileNotFoundError as error:
            raise RecordingError(
                "missing-file", f"{path.name} needs {Path(str(error.filename)).name}, which is absent"
            ) from None
        except TypeError as error:
            if path.suffix == ".set" and "trials" in str(error):
                raise RecordingError(
                    "not-continuous", f"{path.name}: holds trials, expected one continuous recording"
                ) from None
            raise
    sfreq = float(raw.info["sfreq"])
    stated = positive_number(sidecar.get("SamplingFrequency"))
    if stated is not None and abs(stated - sfreq) > 0.01 * sfreq:
        raise RecordingError(
            "sfreq-mismatch", f"{path.name}: sidecar says {stated:g} Hz, the file's header {sfreq:g} Hz"
        )
    seconds, stated = raw.n_times / sfreq, positive_number(sidecar.get("RecordingDuration"))
    if stated is not None and abs(stated - seconds) > _DURATION_SECONDS + _DURATION_FRACTION * stated:
        reason = "truncated" if seconds < stated else "wrong-length"
        raise RecordingError(reason, f"{path.name}: lasts {seconds:.1f} s, expected the sidecar's {stated:g} s")
    return raw


def valid_times(raw: mne.io.BaseRaw, ref: RecordingRef, sfreq: float, n_samples: int, repairs: list[str]) -> np.ndarray:
    """Samples at ``sfreq`` outside of "bad" spans and of jumps, bool ``(n_samples,)``.

    Spans are the annotations of the file and the rows of ``events.tsv`` whose text begins with "bad", as MNE means it.
    Jumps are where EEGLAB, BrainVision or MNE put pieces together. Events beyond the end are ignored and listed.
    """
    shift = raw.first_time if raw.annotations.orig_time is not None else 0.0
    spans = [(a["onset"] - shift, a["duration"], a["description"]) for a in raw.annotations]
    table = ref.companion("events.tsv")
    beyond = 0
    for row in read_tsv(table) if table is not None else []:
        try:
            onset, duration = float(row.get("onset", "nan")), float(row.get("duration", 0))
        except ValueError:
            raise RecordingError(
                "bad-table",
                f"{table.name}: onset {row.get('onset')!r}, expected seconds",  # type: ignore[union-attr]
            ) from None
        if onset > n_samples / sfreq:
            beyond += 1
        elif np.isfinite(onset):
            spans.append((onset, duration, row.get("trial_type", "")))
    if beyond and table is not None:
        repairs.append(
            f"{table.name}: {beyond} events begin after the end at {n_samples / sfreq:.1f} s and are ignored"
        )
    valid_T = np.ones(n_samples, dtype=bool)
    for onset, duration, text in spans:
        kind = text.lower()
        if kind.startswith(_JUMPS):
            if onset <= 0:  # BrainVision marks the start as well
                continue
            onset, duration = onset - _JUMP_SECONDS, 2 * _JUMP_SECONDS
        elif not kind.startswith("bad"):
            continue
        start, stop = onset * sfreq, (onset + duration) * sfreq
        valid_T[max(int(np.floor(start)), 0) : max(int(np.ceil(stop)), 0)] = False
    return valid_T


def _check_edf(path: Path) -> None:
    """Compare the size of an EDF or BDF file with its header (https://www.edfplus.info/specs/edf.html)."""
    with open(path, "rb") as file:
        fixed = file.read(256)
        try:
            n_header, n_records, n_signals = (int(fixed[a:b]) for a, b in ((184, 192), (236, 244), (252, 256)))
            file.seek(256 + 216 * n_signals)
            n_samples = sum(int(file.read(8)) for _ in range(n_signals))
        except ValueError:
            raise RecordingError("unreadable", f"{path.name}: no numbers where an EDF header has them") from None
    if n_samples <= 0:
        raise RecordingError("unreadable", f"{path.name}: header says {n_samples} samples per record, expected some")
    if fixed[192:197] in (b"EDF+D", b"BDF+D"):
        raise RecordingError(
            "not-continuous", f"{path.name}: {fixed[192:197].decode()} with gaps, expected a continuous file"
        )
    record_bytes = n_samples * (3 if path.suffix == ".bdf" else 2)
    found = (path.stat().st_size - n_header) / record_bytes
    if n_records >= 0 and found < n_records:  # -1: the recorder did not know yet, and the size says it
        raise RecordingError("truncated", f"{path.name}: holds {found:.1f} records, its header says {n_records}")
    if n_records >= 0 and found >= n_records + 1:
        raise RecordingError("wrong-length", f"{path.name}: holds {found:.1f} records, its header says {n_records}")


def _check_brainvision(path: Path) -> None:
    """Compare the size of a BrainVision data file with what its header says."""
    header = path.read_bytes().decode("utf-8", errors="replace")
    values = dict(re.findall(r"^(DataFile|NumberOfChannels|BinaryFormat|DataPoints)=(.*?)\s*$", header, re.MULTILINE))
    data = path.with_name(values.get("DataFile", "").replace("$b", path.stem))
    if not data.is_file():
        raise RecordingError("missing-file", f"{path.name} needs {data.name}, which is absent")
    width = {"INT_16": 2, "UINT_16": 2, "IEEE_FLOAT_32": 4}.get(values.get("BinaryFormat", ""))
    if width is None or not values.get("NumberOfChannels", "").isdigit():
        return
    size, sample = data.stat().st_size, width * int(values["NumberOfChannels"])
    if size % sample:
        raise RecordingError("truncated", f"{data.name}: ends inside a sample ({size} bytes, {sample} per sample)")
    if values.get("DataPoints", "").isdigit() and size // sample != int(values["DataPoints"]):
        reason = "truncated" if size // sample < int(values["DataPoints"]) else "wrong-length"
        raise RecordingError(
            reason, f"{data.name}: holds {size // sample} samples, its header says {values['DataPoints']}"
        )


def positive_number(value: object) -> float | None:
    """A sidecar's number, or None for "n/a" and the like."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) and number > 0 else None
