"""Read and clean EEG: every montage, unit and sampling rate becomes float32 microvolts at one rate.

Positions are millimetres in the head frame of MNE: x to the right ear, y to the nasion, z up, the origin between the
ears. Shape letters: T time samples, C channels.
"""

import re
from functools import lru_cache

import mne
import numpy as np

from mcsp.config import EegConfig
from mcsp.data_sharding.bids import RecordingRef, read_json, read_sidecar, read_tsv
from mcsp.data_sharding.recording import (
    CleanRecording,
    RecordingError,
    require_good,
    robust_amplitude,
    spans_of,
    summarise,
)

_READERS = {
    ".edf": mne.io.read_raw_edf,
    ".bdf": mne.io.read_raw_bdf,
    ".vhdr": mne.io.read_raw_brainvision,
    ".set": mne.io.read_raw_eeglab,
    ".fif": mne.io.read_raw_fif,
}
# Old and new names of one place in the 10-20 system.
_ALIASES = {"t3": "T7", "t4": "T8", "t5": "P7", "t6": "P8", "a1": "M1", "a2": "M2"}
_OTHER_CHANNEL = re.compile(r"e[ck]g|eog|emg|resp|status|trig|stim|marker|event|annot|acc|gyro|photic|pulse|spo2", re.I)
# Metres, centimetres, millimetres of coordsystem.json.
_MM_PER_UNIT = {"m": 1000.0, "cm": 10.0, "mm": 1.0}
# Frames of coordsystem.json with their origin between the ears; rows give x, y, z of the head frame.
_TO_HEAD = {
    "captrak": np.eye(3),
    "ctf": np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
    "eeglab": np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
}
# Robust z above which an amplitude is an outlier: 5 as in PREP (Bigdely-Shamlo et al. 2015). The floor of the spread
# (of log amplitude) keeps montages of nearly equal channels from losing some; ours.
_OUTLIER_Z, _MIN_LOG_SPREAD, _MIN_CHANNELS_FOR_OUTLIERS = 5.0, 0.2, 6


def read_eeg(ref: RecordingRef, config: EegConfig, min_seconds: float) -> CleanRecording:
    """Read one EEG file and clean it.

    Notch at PowerLineFrequency, band-pass, marking of bad channels (``channels.tsv``, non-finite, flat, amplitude
    outliers), resampling, average reference over the good channels. Bad channels stay in the array.

    Returns:
        a recording in uV at ``config.sfreq``.

    Raises:
        RecordingError: with the reason.
        Exception: whatever MNE raises on a damaged file; :func:`mcsp.data_sharding.shards.read_recording` catches it.
    """
    sidecar = read_sidecar(ref)
    raw = _READERS[ref.path.suffix](ref.path, preload=True, verbose="ERROR")
    sfreq = float(raw.info["sfreq"])
    stated = _positive_number(sidecar.get("SamplingFrequency"))
    if stated is not None and abs(stated - sfreq) > 0.01 * sfreq:
        raise RecordingError("sfreq-mismatch", f"sidecar says {stated:g} Hz, the file's header {sfreq:g} Hz")
    if raw.n_times < min_seconds * sfreq:
        raise RecordingError("too-short", f"{raw.n_times / sfreq:.1f} s, expected at least {min_seconds:g} s")
    names, marked_bad = _eeg_channels(raw, ref)
    x_CT = raw.get_data(picks=names) * 1e6
    finite_C = np.isfinite(x_CT).all(axis=1)
    x_CT = np.where(finite_C[:, None], x_CT, 0.0)
    good_C = require_good(finite_C, robust_amplitude(x_CT) == 0)
    x_CT = _filter(x_CT, sfreq, config, _positive_number(sidecar.get("PowerLineFrequency")))
    good_C &= _plausible_amplitudes(x_CT, good_C, config) & np.array([name not in marked_bad for name in names])
    if not good_C.any():
        raise RecordingError("no-channels", f"all {len(names)} EEG channels are marked bad")
    if sfreq != config.sfreq:
        x_CT = mne.filter.resample(x_CT, up=config.sfreq, down=sfreq, verbose="ERROR")
    if good_C.sum() >= 2:  # referenced to itself, a single channel would vanish
        x_CT = x_CT - x_CT[good_C].mean(axis=0)
    channels = [normalise_channel(name) for name in names]
    x_TC = np.ascontiguousarray(x_CT.T, dtype=np.float32)
    valid_T = _valid(raw, config.sfreq, len(x_TC))
    return CleanRecording(
        x_TC=x_TC,
        sfreq=config.sfreq,
        channels=channels,
        positions_C3=electrode_positions_mm(ref, names, channels),
        channel_good_C=good_C,
        valid_spans=spans_of(valid_T),
        quality=summarise(robust_amplitude(x_CT), good_C, 1 - valid_T.mean()),
    )


def normalise_channel(name: str) -> str:
    """``EEG FP1-REF`` -> ``Fp1``, ``Fc5.`` -> ``FC5``, ``T3`` -> ``T7``; other names only lose the decoration."""
    bare = re.sub(r"^EEG[\s_-]*", "", name.strip(), flags=re.IGNORECASE).rstrip(".")
    bare = re.sub(r"[\s_-]+(REF|LE)$", "", bare, flags=re.IGNORECASE).strip() or name.strip()
    standard = standard_positions_mm().get(bare.lower())
    return _ALIASES.get(bare.lower(), standard[0] if standard else bare)


@lru_cache(maxsize=1)
def standard_positions_mm() -> dict[str, tuple[str, np.ndarray]]:
    """Lower-case 10-05 name -> (name, position [mm, head frame]) of MNE's standard_1005 template (Colin27)."""
    # MNE 1.13 gave the template another name; older versions know only the old one.
    name = "colin27_1005" if "colin27_1005" in mne.channels.get_builtin_montages() else "standard_1005"
    montage = mne.channels.transform_to_head(mne.channels.make_standard_montage(name))
    return {k.lower(): (k, np.round(xyz * 1e3, 3)) for k, xyz in montage.get_positions()["ch_pos"].items()}


def electrode_positions_mm(ref: RecordingRef, names: list[str], channels: list[str]) -> np.ndarray:
    """Positions [mm, head frame], float64 ``(C, 3)``: ``*_electrodes.tsv``, else the 10-05 template, else NaN.

    ``names`` are those of the file, ``channels`` the normalised ones. A table of electrodes counts only where its
    ``coordsystem.json`` gives a unit and a frame whose origin lies between the ears (CapTrak, CTF, EEGLAB).
    """
    table, coordsystem = ref.companion("electrodes.tsv"), ref.companion("coordsystem.json")
    measured: dict[str, np.ndarray] = {}
    if table is not None and coordsystem is not None:
        system = read_json(coordsystem)
        rotation = _TO_HEAD.get(str(system.get("EEGCoordinateSystem", "")).lower())
        scale = _MM_PER_UNIT.get(str(system.get("EEGCoordinateUnits", "")))
        if rotation is not None and scale is not None:
            for row in read_tsv(table):
                if {"name", "x", "y", "z"} <= set(row):
                    measured[row["name"]] = rotation @ np.array([float(row[axis]) for axis in "xyz"]) * scale
    unknown = ("", np.full(3, np.nan))
    standard = [standard_positions_mm().get(channel.lower(), unknown)[1] for channel in channels]
    return np.array([measured.get(name, xyz) for name, xyz in zip(names, standard, strict=True)])


def _eeg_channels(raw: mne.io.BaseRaw, ref: RecordingRef) -> tuple[list[str], set[str]]:
    """Names of the EEG channels in the file's order, and those that ``channels.tsv`` calls bad."""
    table = ref.companion("channels.tsv")
    rows = {row["name"]: row for row in read_tsv(table) if "name" in row} if table else {}
    names = []
    for name, kind in zip(raw.ch_names, raw.get_channel_types(), strict=True):
        row = rows.get(name, {})
        is_eeg = row["type"].upper() == "EEG" if "type" in row else kind == "eeg" and not _OTHER_CHANNEL.search(name)
        if is_eeg:
            names.append(name)
    if not names:
        raise RecordingError("no-channels", f"none of {len(raw.ch_names)} channels is EEG")
    return names, {name for name, row in rows.items() if row.get("status", "").lower() == "bad"} | set(raw.info["bads"])


def _filter(x_CT: np.ndarray, sfreq: float, config: EegConfig, line_hz: float | None) -> np.ndarray:
    """Zero-phase FIR notch and band-pass with MNE's default widths."""
    ceiling = min(config.lowpass_hz, sfreq / 2 - 2)
    harmonics = np.arange(line_hz, ceiling, line_hz) if line_hz else np.array([])
    if harmonics.size:
        x_CT = mne.filter.notch_filter(x_CT, sfreq, harmonics, verbose="ERROR")
    lowpass = config.lowpass_hz if config.lowpass_hz < sfreq / 2 - 2 else None
    return mne.filter.filter_data(x_CT, sfreq, config.highpass_hz or None, lowpass, verbose="ERROR")


def _plausible_amplitudes(x_CT: np.ndarray, good_C: np.ndarray, config: EegConfig) -> np.ndarray:
    """Channels whose amplitude is like that of the others, bool ``(C,)``; a wrong unit rejects the recording."""
    amplitude_C = robust_amplitude(x_CT)
    median = float(np.median(amplitude_C[good_C]))
    if not config.min_amplitude_uv <= median <= config.max_amplitude_uv:
        expected = f"{config.min_amplitude_uv:g} to {config.max_amplitude_uv:g} uV"
        raise RecordingError("wrong-unit", f"median channel amplitude {median:.3g} uV, expected {expected}")
    if good_C.sum() < _MIN_CHANNELS_FOR_OUTLIERS:
        return np.ones(len(good_C), dtype=bool)
    log_C = np.log(np.maximum(amplitude_C, 1e-12))
    centre = np.median(log_C[good_C])
    spread = max(1.4826 * float(np.median(np.abs(log_C[good_C] - centre))), _MIN_LOG_SPREAD)
    return np.abs(log_C - centre) <= _OUTLIER_Z * spread


def _valid(raw: mne.io.BaseRaw, sfreq: float, n_samples: int) -> np.ndarray:
    """Samples at ``sfreq`` outside the annotations whose description begins with "bad", as MNE means it."""
    valid = np.ones(n_samples, dtype=bool)
    for annotation in raw.annotations:
        if annotation["description"].lower().startswith("bad"):
            onset = annotation["onset"] - (raw.first_time if raw.annotations.orig_time is not None else 0.0)
            start, stop = onset * sfreq, (onset + annotation["duration"]) * sfreq
            valid[max(int(np.floor(start)), 0) : max(int(np.ceil(stop)), 0)] = False
    return valid


def _positive_number(value: object) -> float | None:
    """A sidecar's number, or None for "n/a" and the like."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) and number > 0 else None
