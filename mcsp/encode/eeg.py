"""Encode one EEG recording, a file, an MNE Raw or its trials, cleaned exactly as those of the pretraining corpus.

Shape letters: N trials, C channels, T time samples, F features.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import mne
import numpy as np

from mcsp.config import EegConfig
from mcsp.data_sharding.bids.reasons import naming, reading
from mcsp.data_sharding.bids.ref import EEG_EXTENSIONS, RecordingRef, Site, read_sidecar, ref_of_file
from mcsp.data_sharding.clean.eeg import EegDetails, clean_eeg
from mcsp.data_sharding.clean.eeg_channels import NO_POSITION
from mcsp.data_sharding.clean.eeg_files import OpenEeg, open_eeg, open_raw
from mcsp.data_sharding.clean.recording import CleanRecording
from mcsp.encode.recording import (
    ChannelStatus,
    EncodedRecording,
    Options,
    Report,
    as_recording,
    cleaning_of,
    encode_clean,
    min_seconds_of,
    recording_features,
    require_positions,
    window_seconds_of,
    window_steps,
)
from mcsp.model.weights import ExportedMCSP
from mcsp.schema import Window
from mcsp.wording import listed

_MIN_SECONDS = 10.0
_EXPECTED_POSITIONS = "channel names of the 10-05 system, or positions (raw.set_montage, or electrodes.tsv in BIDS)"


@dataclass(frozen=True)
class _Source:
    opened: OpenEeg
    n_channels: int  # of the file
    ref: RecordingRef
    sidecar: dict[str, Any]


def encode_raw(
    model: ExportedMCSP,
    raw: mne.io.BaseRaw | str | Path,
    line_hz: float | None = None,
    measured_positions: bool = False,
    options: Options | None = None,
) -> EncodedRecording:
    """Clean an EEG recording as the pretraining corpus was cleaned, cut windows, encode them, average.

    Args:
        model: of :func:`mcsp.from_pretrained`.
        raw: a file (EDF, BDF, BrainVision .vhdr, EEGLAB .set, FIF), whose BIDS sidecars and tables are used where it
            lies in a BIDS dataset; or an MNE Raw, in volts as MNE has it, which is not changed. A Raw should not be
            filtered or re-referenced before; both are done here.
        line_hz: power line frequency for the notch; None: ``PowerLineFrequency`` of the sidecar, or
            ``raw.info["line_freq"]``.
        measured_positions: positions of the Raw or the file come before those of the 10-05 template, for
            electrodes that were digitised. Without, they serve channels whose name the template does not know.
        options: windows and limits.

    Raises:
        ValueError: one line that says what is wrong with the recording: an implausible unit, NaN, too few channels with
            a position, too short, damaged; its type is ``RecordingError``, with a ``reason``, where a corpus would have
            refused it too.
    """
    options = options or Options()
    config = cleaning_of(model, "eeg", EegConfig).model_copy(update={"gain": 1.0})
    source = _open(raw, measured_positions)
    name = source.ref.path.name
    sidecar = source.sidecar if line_hz is None else {**source.sidecar, "PowerLineFrequency": line_hz}
    min_seconds = min_seconds_of(model, "eeg", options, _MIN_SECONDS)
    with naming(name), reading(source.ref.site.root, name):
        clean, details = clean_eeg(source.opened, source.ref, sidecar, config, min_seconds)
    require_positions(clean, name, options.min_channels, _EXPECTED_POSITIONS)
    features_WF, starts_W, seconds = encode_clean(model, "eeg", clean, name, options)
    windows, warnings = window_steps(model, "eeg", clean, starts_W, seconds)
    report = _report(source, clean, details, config, windows, warnings)
    features_F = recording_features(model, Window(clean.x_TC, as_recording(clean, "eeg"), 0), features_WF)
    return EncodedRecording(features_F, features_WF, starts_W, seconds, report)


def raw_of_array(
    x_CT: np.ndarray, sfreq: float, channels: Sequence[str] | None = None, positions_mm: np.ndarray | None = None
) -> mne.io.BaseRaw:
    """An MNE Raw of values in microvolts.

    Args:
        x_CT: ``(C, T)`` in uV.
        sfreq: Hz.
        channels: C names; those of the 10-05 system have positions by their name.
        positions_mm: ``(C, 3)`` in MNE's head frame, for channels whose name says nothing.
    """
    x_CT = np.asarray(x_CT, dtype=np.float64)
    if x_CT.ndim != 2:
        raise ValueError(f"EEG array: expected shape (channels, time samples), found {x_CT.shape}")
    if channels is None and positions_mm is None:
        raise ValueError("EEG array: expected channel names or positions_mm, found neither")
    names = list(channels) if channels is not None else [f"channel-{i}" for i in range(1, len(x_CT) + 1)]
    if len(names) != len(x_CT):
        raise ValueError(f"EEG array: {len(names)} channel names, expected one for each of {len(x_CT)} rows")
    raw = mne.io.RawArray(x_CT * 1e-6, mne.create_info(names, float(sfreq), "eeg"), verbose="ERROR")
    if positions_mm is not None:
        if np.shape(positions_mm) != (len(names), 3):
            raise ValueError(f"positions_mm: expected shape ({len(names)}, 3), found {np.shape(positions_mm)}")
        places = {n: xyz * 1e-3 for n, xyz in zip(names, np.asarray(positions_mm, float), strict=True)}
        known = {n: xyz for n, xyz in places.items() if np.isfinite(xyz).all()}
        if known:
            raw.set_montage(mne.channels.make_dig_montage(known, coord_frame="head"), on_missing="ignore")
    return raw


def _open(raw: mne.io.BaseRaw | str | Path, measured_positions: bool) -> _Source:
    if isinstance(raw, mne.io.BaseRaw):
        files = [Path(file).name for file in raw.filenames if file is not None]
        ref = RecordingRef(Site("", Path("."), False, None), Path(files[0] if files else "Raw"), "eeg", {}, {})
        line_hz = raw.info["line_freq"]
        sidecar = {} if line_hz is None else {"PowerLineFrequency": float(line_hz)}
        with naming(ref.path.name), reading(ref.site.root, ref.path.name):
            return _Source(open_raw(raw, ref, measured_positions), len(raw.ch_names), ref, sidecar)
    if not isinstance(raw, str | Path):
        raise ValueError(f"EEG recording: expected a path or a continuous mne.io.Raw, found {type(raw).__name__}")
    path = Path(raw)
    if path.suffix.lower() not in EEG_EXTENSIONS:
        known = ", ".join(EEG_EXTENSIONS)
        raise ValueError(f"{path.name}: expected {known}; read other formats with MNE and pass the Raw")
    if not path.is_file() and not path.is_symlink():
        raise ValueError(f"{path}: no such file")
    with naming(path.name), reading(path.parent, path.name):
        ref = ref_of_file(path, "eeg")
        stated = read_sidecar(ref)
        opened = open_eeg(ref, stated, measured_positions)
        return _Source(opened, len(opened.channels.names) + len(opened.channels.others), ref, stated)


def _report(
    source: _Source,
    clean: CleanRecording,
    details: EegDetails,
    config: EegConfig,
    windows: str,
    warnings: list[str],
) -> Report:
    statuses = _statuses(clean, details)
    bad = [f"{f.name} ({f.reason})" for f in statuses if f.channel and not f.used]
    unplaced = [f.name for f in statuses if f.reason == NO_POSITION]
    renamed = [f"{f.name} -> {f.channel}" for f in statuses if f.channel and f.channel != f.name]
    others = [f"{f.name} ({f.reason})" for f in statuses if not f.channel and f.reason != NO_POSITION]
    places = Counter(f.position_from for f in statuses if f.position_from)
    seconds, used = clean.seconds, sum(f.used for f in statuses)
    masked = clean.quality["artefact_fraction"] * seconds
    low, high = details.band_hz
    notch = "no notch" if not details.notches_hz else f"notch at {listed([f'{hz:g}' for hz in details.notches_hz])} Hz"
    steps = {
        "read": f"{seconds:.1f} s at {details.sfreq:g} Hz, {source.n_channels} channels",
        "channels": f"{used} used; {len(bad)} bad, {len(unplaced)} without position, {len(others)} left out",
        "renamed": listed(renamed, 12),
        "bad": listed(bad),
        "no position": listed(unplaced),
        "left out": listed(others),
        "positions": ", ".join(f"{count} from {place}" for place, count in places.items()),
        "filters": f"{low:g} to {high:g} Hz, {notch}",
        "resampled": f"{details.sfreq:g} to {clean.sfreq:g} Hz" if details.sfreq != clean.sfreq else "",
        "reference": f"average of the {int(clean.channel_good_C.sum())} good channels",
        "amplitude": f"{clean.quality['amplitude']:.1f} uV, median over good channels",
        "bad spans": f"{masked:.1f} of {seconds:.1f} s are masked",
        "repaired": "; ".join(clean.repairs),
        "windows": windows,
    }
    warnings = [*warnings, *_warnings(source, details, config, used, len(clean.channels))]
    return Report(source.ref.path.name, "eeg", statuses, {k: v for k, v in steps.items() if v}, tuple(warnings))


def _statuses(clean: CleanRecording, details: EegDetails) -> tuple[ChannelStatus, ...]:
    statuses = []
    for c, (name, channel) in enumerate(zip(details.names, clean.channels, strict=True)):
        reason = details.bad[c]
        statuses.append(ChannelStatus(name, channel, not reason, reason, details.position_from[c]))
    statuses += [ChannelStatus(name, "", False, reason, "") for name, reason in details.others.items()]
    return tuple(statuses)


def _warnings(source: _Source, details: EegDetails, config: EegConfig, used: int, n_channels: int) -> list[str]:
    found = []
    if not details.notches_hz and details.sfreq > 104:  # slower recordings hold no power line
        found.append("no power line frequency is known, so there was no notch: pass line_hz=50 or line_hz=60")
    if used < n_channels / 2:
        found.append(f"only {used} of {n_channels} EEG channels are used")
    if details.band_hz[1] < min(config.lowpass_hz, config.sfreq / 2):
        found.append(f"nothing above {details.band_hz[1]:g} Hz; the model knows up to {config.lowpass_hz:g} Hz")
    before_low, before_high = (source.opened.raw.info[edge] for edge in ("highpass", "lowpass"))
    if before_high is not None and before_high < min(config.lowpass_hz, 0.9 * details.sfreq / 2):
        found.append(f"low-passed at {before_high:g} Hz before; the model knows up to {config.lowpass_hz:g} Hz")
    if before_low is not None and math.isfinite(before_low) and before_low > 2 * max(config.highpass_hz, 0.1):
        found.append(f"high-passed at {before_low:g} Hz before; the model knows from {config.highpass_hz:g} Hz")
    return found


# Shorter trials hold no whole patch of the temporal encoder and hardly any of the slow bands; ours.
LEAST_SECONDS = 1.0


@dataclass(frozen=True)
class EncodedTrials:
    """Features of the trials of one recording.

    Attributes:
        features: float64 ``(N, F)``, in the order of the trials; NaN where a trial could not be used.
        reasons: N texts, why a trial could not be used, else "".
        report: what was done to the first trial that was used.
    """

    features: np.ndarray
    reasons: list[str]
    report: Report


def encode_epochs(
    model: ExportedMCSP,
    trials: mne.BaseEpochs,
    line_hz: float | None = None,
    measured_positions: bool = False,
    options: Options | None = None,
    on_error: Literal["raise", "nan"] = "raise",
) -> EncodedTrials:
    """Clean and encode every trial by itself, as :func:`mcsp.encode.eeg.encode_raw` does a recording.

    A trial is as long as it was cut: ``min_seconds`` is its length unless ``options`` says otherwise, and a trial that
    is shorter than the pretraining's window is one window. Filters see no more than the trial, so that what is slower
    than it is not removed as in a whole recording: where the recording is at hand, encode that.

    Args:
        model: of :func:`mcsp.from_pretrained`.
        trials: in volts as MNE has it, best not filtered; bad ones are dropped before.
        line_hz: as of ``encode_raw``, and so are the two below.
        measured_positions: positions of the trials' info before those of the template.
        options: windows and limits.
        on_error: what a trial does that cannot be used: ``"raise"``, or ``"nan"``, a row of NaN with its reason.

    Raises:
        ValueError: not trials, trials shorter than a second, or one that cannot be used, with its number; with
            ``"nan"`` only where none can.
    """
    if not isinstance(trials, mne.BaseEpochs):
        raise ValueError(f"trials: expected mne.Epochs, found {type(trials).__name__}; a Raw goes to encode_raw")
    seconds = len(trials.times) / float(trials.info["sfreq"])
    if seconds < LEAST_SECONDS:
        raise ValueError(f"trials of {seconds:.3g} s: expected at least {LEAST_SECONDS:g} s")
    options = options or Options()
    if options.min_seconds is None:  # resampling rounds the length
        options = replace(options, min_seconds=seconds - 1 / cleaning_of(model, "eeg", EegConfig).sfreq)
    if seconds < 2 * window_seconds_of(model, "eeg", options):  # further windows would overlap
        options = replace(options, windows_per_recording=1)
    rows: list[np.ndarray | None] = []
    reasons: list[str] = []
    report = None
    for n, x_CT in enumerate(trials.get_data(verbose="ERROR")):
        raw = mne.io.RawArray(x_CT, trials.info, verbose="ERROR")
        try:
            encoded = encode_raw(model, raw, line_hz, measured_positions, options)
        except ValueError as error:
            if on_error == "raise":
                raise ValueError(f"trial {n}: {error}") from error
            rows.append(None)
            reasons.append(str(error))
            continue
        report = report or encoded.report
        rows.append(encoded.features)
        reasons.append("")
    known = [row for row in rows if row is not None]
    if not known or report is None:
        raise ValueError(f"none of {len(rows)} trials can be used: {reasons[0] if reasons else 'there are none'}")
    features_NF = np.stack([np.full(len(known[0]), np.nan) if row is None else row for row in rows])
    return EncodedTrials(features_NF, reasons, report)
