"""Open EEG files of every format, and check what their headers and sidecars say before anything is read.

Checked here is what the readers let pass or only warn about: files shorter or longer than their headers say, pieces
with gaps, several sampling rates, and sidecars that contradict the file.
"""

import re
import tempfile
import warnings
import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path

import mne
import numpy as np

from mcsp.data_sharding.bids.reasons import RecordingError, reading
from mcsp.data_sharding.bids.ref import RecordingRef, parse_name
from mcsp.data_sharding.bids.tables import number_in, read_columns, require_content, require_inside
from mcsp.data_sharding.clean.eeg_channels import EegChannels, eeg_channels
from mcsp.data_sharding.clean.eeg_headers import (
    EdfHeader,
    brainvision_values,
    check_brainvision,
    check_edf,
    check_eeglab_data,
    check_eeglab_rows,
    check_fif,
    check_mat,
    read_edf_header,
    require_own_values,
)
from mcsp.wording import listed

_READERS = {
    ".edf": mne.io.read_raw_edf,
    ".bdf": mne.io.read_raw_bdf,
    ".vhdr": mne.io.read_raw_brainvision,
    ".set": mne.io.read_raw_eeglab,
    ".fif": mne.io.read_raw_fif,
}
_CHECKS = {".vhdr": check_brainvision, ".fif": check_fif, ".set": check_mat}
# Volts of the units that headers and channels.tsv name, in lower case.
_VOLTS = {
    "v": 1.0, "volt": 1.0, "volts": 1.0, "mv": 1e-3, "millivolt": 1e-3, "millivolts": 1e-3, "uv": 1e-6, "\u00b5v": 1e-6,
    "\u03bcv": 1e-6, "microv": 1e-6, "microvolt": 1e-6, "microvolts": 1e-6, "nv": 1e-9, "nanovolts": 1e-9,
}  # fmt: skip
# Those that MNE's reader of EDF knows; it takes all others for volts.
_KNOWN_TO_MNE = {"uV", "\u00b5V", "\u03bcV", "mV", "V"}
# What RecordingDuration and the file may differ by: a record of EDF is a second as a rule. Ours.
_DURATION_SECONDS, _DURATION_FRACTION = 2.0, 0.01
# The filter smears a jump; this much before and after one is left out. Ours.
_JUMP_SECONDS = 0.5
# Beginnings of what EEGLAB (-99 where its events are numbers), MNE and BrainVision call them.
_JUMPS = ("boundary", "-99", "edge boundary", "new seg")
# A reader that depends on how much is asked for at once shows it within this time. Ours.
_COMPARED_SECONDS = 4.0


@dataclass(frozen=True)
class OpenEeg:
    """A continuous recording that is open and not read, and its EEG channels."""

    raw: mne.io.BaseRaw  # in volts as MNE has it; values do not depend on how much is asked for at once
    channels: EegChannels
    repairs: list[str]
    # Channel -> what its values have to be multiplied by: for certain, and where channels.tsv gives the unit that the
    # file itself lacks.
    header_factors: dict[str, float] = field(default_factory=dict)
    table_factors: dict[str, float] = field(default_factory=dict)


def open_eeg(ref: RecordingRef, sidecar: dict[str, object], own_positions_first: bool = False) -> OpenEeg:
    """Open a file without reading its samples, where the format allows that.

    Raises:
        RecordingError: truncated, wrong-length, not-continuous, missing-file, sfreq-mismatch, several-rates, and what
            :func:`mcsp.data_sharding.clean.eeg_channels.eeg_channels` raises.
        Exception: whatever MNE raises on a damaged file.
    """
    path, repairs = ref.path, list[str]()
    require_content(path)
    suffix = path.suffix.lower()
    if suffix == ".fif" and parse_name(path.name)[0].get("split", "1").strip("0") not in ("", "1"):
        raise RecordingError("missing-file", f"{path.name}: a later part of a recording, whose first one is absent")
    if not path.stat().st_size and suffix != ".vhdr":  # whose header is told below
        raise RecordingError("unreadable", f"{path.name}: an empty file, expected a recording")
    _refuse_trials(path, sidecar)
    header = read_edf_header(path) if suffix in (".edf", ".bdf") else None
    if header is not None:
        check_edf(path, header)
    require_own_values(path)
    if suffix in _CHECKS:
        _CHECKS[suffix](path)
    raw = _read(path, repairs)
    files = [Path(file) for file in raw.filenames if file is not None]
    require_inside(ref.site, files)
    if suffix == ".set":
        check_eeglab_data(path, files, len(raw.ch_names), raw.n_times)
        check_eeglab_rows(path, len(raw.ch_names), raw._data.shape[0] if raw.preload else None)
    for file in files[1:] if suffix == ".fif" else ():
        check_fif(file)
    channels = eeg_channels(raw, ref, repairs, own_positions_first)
    units = _brainvision_units(path) if suffix == ".vhdr" else {}
    if header is not None:
        signals = dict(zip(raw.ch_names, header.signals, strict=True))
        units = {name: header.units[i] for name, i in signals.items()}
        channels = _without_scale(path, header, signals, channels, repairs)
        if len(set(header.rates)) > 1:
            raw = _at_one_rate(path, header, signals, channels)
    _check_times(path, raw, sidecar, channels)
    assumed = 1.0 if header is not None else 1e-6  # volts: what MNE takes a number without a unit for
    volts = {name: _VOLTS.get(units.get(name, "").lower()) for name in channels.names}
    stated = {name: _VOLTS.get(unit.lower()) for name, unit in channels.units.items()}
    without = [] if suffix == ".fif" else [name for name in channels.names if volts[name] is None]
    factors = {n: v for n, v in volts.items() if v is not None and header is not None and units[n] not in _KNOWN_TO_MNE}
    of_table = {name: v / assumed for name in without if (v := stated.get(name)) is not None}
    return OpenEeg(raw, channels, repairs, factors, of_table)


def open_raw(raw: mne.io.BaseRaw, ref: RecordingRef, own_positions_first: bool = False) -> OpenEeg:
    """As :func:`open_eeg` of a Raw that somebody else has opened; it is not changed.

    A Raw whose values depend on how much is asked for (MNE resamples each piece of an EDF of several rates) is read as
    a whole.
    """
    repairs: list[str] = []
    channels = eeg_channels(raw, ref, repairs, own_positions_first)
    length = min(raw.n_times, int(_COMPARED_SECONDS * raw.info["sfreq"]))
    start = (raw.n_times - length) // 2
    first, last = length // 3, 2 * length // 3
    if not raw.preload and first < last:
        picks = [raw.ch_names.index(name) for name in channels.names]
        whole_CT = raw.get_data(picks, start=start, stop=start + length, verbose="ERROR")
        part_CT = raw.get_data(picks, start=start + first, stop=start + last, verbose="ERROR")
        if not np.array_equal(whole_CT[:, first:last], part_CT, equal_nan=True):
            raw = raw.copy().load_data(verbose="ERROR")
    return OpenEeg(raw, channels, repairs)


def _read(path: Path, repairs: list[str], **options: object) -> mne.io.BaseRaw:
    reader, suffix = _READERS[path.suffix.lower()], path.suffix.lower()
    if path.suffix != suffix and suffix in (".vhdr", ".set"):  # whose readers know small letters alone
        return _read_linked(path, repairs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names and dates; what matters is checked here
        try:
            return reader(path, preload=False, verbose="ERROR", **options)
        except FileNotFoundError as error:
            named = re.search(r"[^/\s]+\.(fdt|eeg|vmrk|fif)", str(error.filename or error), re.IGNORECASE)
            absent = named[0] if named else "a file"
            raise RecordingError("missing-file", f"{path.name} needs {absent}, which is absent") from None
        except TypeError as error:
            if suffix == ".set" and "trials" in str(error):
                raise RecordingError(
                    "not-continuous", f"{path.name}: holds trials, expected one continuous recording"
                ) from None
            raise
        except Exception as error:  # MNE's own, of no class of its own
            if suffix == ".fif" and "No raw data" in str(error):
                raise RecordingError(
                    "not-continuous", f"{path.name}: holds trials or averages, expected one continuous recording"
                ) from None
            if "latin1" not in str(error) or "encoding" in options:
                raise
    raw = _read(path, repairs, encoding="latin1", **options)
    repairs.append(f"{path.name}: annotations are not UTF-8, read as Latin-1")
    return raw


def _read_linked(path: Path, repairs: list[str]) -> mne.io.BaseRaw:
    """Read a file by a link in small letters, beside links to its neighbours, which last as long as the Raw."""
    folder = tempfile.TemporaryDirectory(prefix="mcsp-eeg-")
    for beside in path.parent.iterdir():
        suffix = path.suffix.lower() if beside.name == path.name else beside.suffix
        Path(folder.name, beside.stem + suffix).symlink_to(beside.absolute())
    with reading(Path(folder.name), path.name):
        raw = _read(Path(folder.name, path.stem + path.suffix.lower()), repairs)
    weakref.finalize(raw, folder.cleanup)
    return raw


def _at_one_rate(path: Path, header: EdfHeader, signals: dict[str, int], channels: EegChannels) -> mne.io.BaseRaw:
    """The EEG channels of an EDF file of several rates alone: MNE would resample them piece by piece."""
    at: dict[float, list[str]] = {}
    for name in channels.names:
        at.setdefault(header.rates[signals[name]], []).append(name)
    if len(at) > 1:
        found = " and ".join(f"{rate:g} Hz ({', '.join(names[:3])})" for rate, names in sorted(at.items()))
        raise RecordingError("several-rates", f"{path.name}: EEG at {found}, expected one rate")
    labels = [header.labels[signals[name]] for name in channels.names]
    alone = _read(path, [], include=labels)
    if len(alone.ch_names) != len(labels):
        raise RecordingError("several-rates", f"{path.name}: a label is at several rates, expected each name once")
    return alone.rename_channels(dict(zip(alone.ch_names, channels.names, strict=True)), verbose="ERROR")


def _refuse_trials(path: Path, sidecar: dict[str, object]) -> None:
    """``RecordingType`` of BIDS: trials that lie one after the other in a file are no continuous recording."""
    kind = str(sidecar.get("RecordingType", "")).strip().lower()
    trial_seconds = positive_number(sidecar.get("EpochLength"))
    duration = positive_number(sidecar.get("RecordingDuration"))
    if kind == "epoched" or (not kind and trial_seconds and trial_seconds < (duration or np.inf) / 2):
        found = f"RecordingType {kind or 'n/a'!r}" + (f", trials of {trial_seconds:g} s" if trial_seconds else "")
        raise RecordingError("not-continuous", f"{path.name}: {found} in the sidecar, expected a continuous recording")


def _without_scale(
    path: Path, header: EdfHeader, signals: dict[str, int], channels: EegChannels, repairs: list[str]
) -> EegChannels:
    """Mark channels bad of which the header does not say what a step is; MNE takes the whole range for one unit.

    Exporters leave the range of a constant channel empty; where that of most is, it says nothing of any amplitude.
    """
    found = [name for name in channels.names if header.unscaled[signals[name]]]
    if not found:
        return channels
    ranges = "an empty physical range or a digital one that does not rise"
    told = f"{path.name}: {len(found)} of {len(channels.names)} channels have {ranges}"
    if len(found) > len(channels.names) / 2:
        raise RecordingError("wrong-unit", f"{told} in the header, expected that of the amplifier")
    repairs.append(f"{told} and are marked bad: {listed(found)}")
    return replace(channels, marked_bad=channels.marked_bad | set(found))


def _check_times(path: Path, raw: mne.io.BaseRaw, sidecar: dict[str, object], channels: EegChannels) -> None:
    """Compare rate, length and jumps of the file with what the sidecar, or else channels.tsv, says of them."""
    sfreq = float(raw.info["sfreq"])
    stated, who = positive_number(sidecar.get("SamplingFrequency")), "sidecar"
    if stated is None:
        stated, who = channels.sfreq, "channels.tsv"
    if stated is not None and abs(stated - sfreq) > 0.01 * sfreq:
        raise RecordingError("sfreq-mismatch", f"{path.name}: {who} says {stated:g} Hz, the file's header {sfreq:g} Hz")
    seconds, stated = raw.n_times / sfreq, positive_number(sidecar.get("RecordingDuration"))
    if stated is not None and abs(stated - seconds) > _DURATION_SECONDS + _DURATION_FRACTION * stated:
        reason = "truncated" if seconds < stated else "wrong-length"
        raise RecordingError(reason, f"{path.name}: lasts {seconds:.1f} s, expected the sidecar's {stated:g} s")
    marked = any(a["onset"] > raw.first_time and a["description"].lower().startswith(_JUMPS) for a in raw.annotations)
    if str(sidecar.get("RecordingType", "")).strip().lower() == "discontinuous" and not marked:
        found = "RecordingType 'discontinuous' in the sidecar, and no mark in the file where its pieces meet"
        raise RecordingError("not-continuous", f"{path.name}: {found}, expected a continuous recording")


def valid_times(raw: mne.io.BaseRaw, ref: RecordingRef, sfreq: float, n_samples: int, repairs: list[str]) -> np.ndarray:
    """Samples at ``sfreq`` outside of "bad" spans and of jumps, bool ``(n_samples,)``.

    Spans are the annotations of the file and the rows of ``events.tsv`` whose ``trial_type`` or ``value`` begins with
    "bad", as MNE means it; one without a time or length leaves nothing out, as in MNE, and is listed. Jumps are where
    EEGLAB, BrainVision or MNE put pieces together. Events beyond the end are ignored and listed.

    Raises:
        RecordingError: ``bad-table`` where bad spans stand among times that are no seconds of this recording.
    """
    # With or without a date, MNE counts onsets from the start of the measurement, not from that of the file.
    spans = [
        (a["onset"] - raw.first_time, a["duration"], a["description"].lower().removeprefix("comment/"))  # BrainVision's
        for a in raw.annotations
    ]
    spans += _spans_of_events(ref, n_samples / sfreq, repairs)
    valid_T, without_length = np.ones(n_samples, dtype=bool), 0
    for onset, duration, kind in spans:
        if kind.startswith(_JUMPS):
            if onset <= 0:  # BrainVision marks the start as well
                continue
            onset, duration = onset - _JUMP_SECONDS, 2 * _JUMP_SECONDS
        elif not kind.startswith("bad"):
            continue
        elif not duration > 0:
            without_length += 1
        start, stop = onset * sfreq, (onset + duration) * sfreq
        valid_T[max(int(np.floor(start)), 0) : max(int(np.ceil(stop)), 0)] = False
    if without_length:
        repairs.append(f"{ref.path.name}: {without_length} bad spans without a length leave nothing out")
    return valid_T


def _spans_of_events(ref: RecordingRef, seconds: float, repairs: list[str]) -> list[tuple[float, float, str]]:
    """Onset [s], length [s] and text, in small letters, of the events of a recording of ``seconds``."""
    if (table := ref.companion("events.tsv")) is None:
        return []
    spans, beyond, bad = [], 0, False
    rows = read_columns(table, ("onset",), repairs)
    for number, row in enumerate(rows, 1):
        onset, duration = number_in(table, number, row, "onset"), number_in(table, number, row, "duration", 0.0)
        texts = [row.get(column, "").lower() for column in ("trial_type", "value")]
        kind = next((text for text in texts if text.startswith(("bad", *_JUMPS))), texts[0])
        bad |= kind.startswith("bad")
        beyond += onset > seconds
        if not onset > seconds:
            is_known = np.isfinite(onset) and np.isfinite(duration)
            spans.append((onset, duration, kind) if is_known else (0.0, 0.0, kind))
    if bad and beyond > len(rows) / 2:  # samples or milliseconds: what is bad would pass for sound
        found = f"{beyond} of {len(rows)} events begin after the end at {seconds:.1f} s, and some are bad spans"
        raise RecordingError("bad-table", f"{table.name}: {found}, expected onsets in seconds of this recording")
    if beyond:
        repairs.append(f"{table.name}: {beyond} events begin after the end at {seconds:.1f} s and are ignored")
    return spans


def _brainvision_units(path: Path) -> dict[str, str]:
    """Unit of each channel by the file's own header, "" where it says none."""
    rows = [value.split(",") for key, value in brainvision_values(path).items() if re.fullmatch(r"ch\d+", key)]
    return {row[0].replace(r"\1", ","): row[3] if len(row) > 3 else "" for row in rows if len(row) > 2}


def positive_number(value: object) -> float | None:
    """A sidecar's number, or None for "n/a" and the like."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) and number > 0 else None
