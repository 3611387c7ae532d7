"""Encode one recording of either modality: features of windows, computed in batches, of the whole, and a report.

Shape letters: T time samples, C channels, W windows, F features.
"""

import logging
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from importlib.util import find_spec
from itertools import islice
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from mcsp.batch import collate, valid_times
from mcsp.config.base import Config
from mcsp.config.evaluate import WINDOWS_PER_RECORDING
from mcsp.data_sharding.clean.recording import CleanRecording
from mcsp.model.mcsp import MCSP
from mcsp.model.weights import ExportedMCSP
from mcsp.schema import Modality, Recording, Window
from mcsp.windows import longest_window, no_window, seconds_in_no_window, window_starts
from mcsp.wording import listed

Owner = TypeVar("Owner")

_log = logging.getLogger(__name__)

# Coherence is the larger the less time it is measured over, by chance alone. Of whole recordings it would tell how long
# they are: on eegmat, with 180 s of rest and 60 s of arithmetic, with an AUROC of 0.99. Windows have one length.
OF_WINDOWS = ("coherence",)


def encode_windows(
    model: MCSP,
    modality: Modality,
    windows: Iterable[tuple[Owner, Window]],
    batch_size: int,
    name_of: Callable[[Owner], str] = str,
    kind: Literal["features", "learned", "measured"] = "features",
) -> Iterator[tuple[Owner, np.ndarray]]:
    """``model.features`` of each window in order, float64 ``(F,)``, computed in batches on the model's device.

    Windows that hold nothing (:func:`mcsp.batch.collate_signal` says when) are left out, and named in the log.

    Args:
        model: in evaluation mode.
        modality: of all windows.
        windows: each with its owner, which comes back with the features; read as they are needed.
        batch_size: windows in memory at once.
        name_of: the owner's name in errors.
        kind: ``model.learned`` or ``model.measured`` instead; a whole recording may be the window of the latter.

    Raises:
        ValueError: features that are not finite, with the owner's name.
    """
    device = next(model.parameters()).device
    pairs = iter(windows)
    while batch := list(islice(pairs, batch_size)):
        signals = collate([[window] for _, window in batch]).to(device).signals
        holds_W = signals[modality].row_valid_B.tolist()
        with torch.inference_mode():
            x_WF = getattr(model, kind)(signals)[modality].double().cpu().numpy()
        for (owner, window), vector_F, holds in zip(batch, x_WF, holds_W, strict=True):
            if not holds:
                at = f"{modality} window at {window.start / window.recording.sfreq:.1f} s"
                _log.warning("%s: %s is flat or too loud, left out", name_of(owner), at)
                continue
            if not np.isfinite(vector_F).all():
                raise ValueError(f"{name_of(owner)}: expected finite {modality} features, found NaN or infinity")
            yield owner, vector_F


def split_parts(x_NF: np.ndarray, widths: dict[str, int]) -> dict[str, np.ndarray]:
    """Neighbouring columns by name."""
    return dict(zip(widths, np.split(x_NF, np.cumsum(list(widths.values()))[:-1], axis=1), strict=True))


def recording_features(model: MCSP, whole: Window, features_WF: np.ndarray) -> np.ndarray:
    """Features ``(F,)`` of a recording: learned ones averaged over windows, measured ones of the whole of it.

    Args:
        model: in evaluation mode.
        whole: the recording as one window.
        features_WF: of its windows.
    """
    modality = whole.recording.modality
    parts = split_parts(features_WF.mean(axis=0, keepdims=True), model.feature_widths(modality))
    for _, vector_F in encode_windows(model, modality, [(0, whole)], 1, kind="measured"):
        measured = split_parts(vector_F[None], model.measured_widths(modality))
        parts |= {name: x_1F for name, x_1F in measured.items() if name not in OF_WINDOWS}
    features_1F: np.ndarray = np.hstack(list(parts.values()))
    return features_1F[0]


# Fewer channels with a position say too little of a montage or a parcellation; ours.
MIN_CHANNELS = 4
_TITLE_WIDTH, _LINE_WIDTH = 13, 110
_NO_LIMIT = ("min_seconds", 0)

AnyConfig = TypeVar("AnyConfig", bound=Config)


@dataclass(frozen=True)
class Options:
    """How a recording is cut and what is asked of it.

    Attributes:
        windows_per_recording: evenly spaced over what is free of artefacts; features are averaged over them.
        window_seconds: length of a window; None: as in pretraining.
        batch_size: windows encoded at once.
        min_seconds: shorter recordings are refused; None: as in the pretraining corpus.
        min_channels: least good channels that have a position.
    """

    windows_per_recording: int = WINDOWS_PER_RECORDING
    window_seconds: float | None = None
    batch_size: int = 32
    min_seconds: float | None = None
    min_channels: int = MIN_CHANNELS

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where a value is no positive number."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not (value > 0 and math.isfinite(value)) and (field.name, value) != _NO_LIMIT:
                raise ValueError(f"{field.name}: expected a positive number, found {value}")


@dataclass(frozen=True)
class ChannelStatus:
    """What became of one channel of the file."""

    name: str  # in the file
    channel: str  # what it is called here; "" where it was left out
    used: bool
    reason: str  # why it is not used, else ""
    position_from: str  # what its position is from, "" where it has none


@dataclass(frozen=True)
class Report:
    """What was done to a recording before the model saw it; ``print`` it.

    Attributes:
        source: the file's name.
        modality: of the recording.
        channels: in the order of the file, those left out last.
        steps: title -> what was done, in order.
        warnings: what a user should know before trusting the features.
    """

    source: str
    modality: Modality
    channels: tuple[ChannelStatus, ...]
    steps: dict[str, str]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.modality}"]
        pairs = [*self.steps.items(), *(("WARNING", warning) for warning in self.warnings)]
        for title, text in pairs:
            hanging = " " * (_TITLE_WIDTH + 2)
            lines.append(
                textwrap.fill(text, _LINE_WIDTH, initial_indent=f"  {title:<{_TITLE_WIDTH}}", subsequent_indent=hanging)
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class EncodedRecording:
    """Features of one recording.

    Attributes:
        features: float64 ``(F,)``, learned ones averaged over the windows, measured ones of the whole recording.
        window_features: float64 ``(W, F)``.
        window_starts_seconds: ``(W,)``, from the start of the recording.
        window_seconds: length of each window.
        report: what was done.
    """

    features: np.ndarray
    window_features: np.ndarray
    window_starts_seconds: np.ndarray
    window_seconds: float
    report: Report


def require_packages(*modules: str) -> None:
    """Raise ``ImportError`` with one line if packages of the ``lab`` extra are absent."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        named = ", ".join(missing)
        told = f"{named} not installed, expected for recordings: pip install 'mcsp-pretraining[lab]'"
        raise ModuleNotFoundError(told, name=missing[0])


def cleaning_of(model: ExportedMCSP, modality: Modality, kind: type[AnyConfig]) -> AnyConfig:
    """The constants with which the pretraining corpus was cleaned.

    Raises:
        ValueError: the export has no encoder of the modality, or does not say how its recordings were cleaned.
    """
    if modality not in model.config.modalities:
        raise ValueError(f"the model encodes {list(model.config.modalities)}, found a recording of {modality}")
    values = model.preprocessing.get("cleaning", {}).get(modality)
    if values is None:
        raise ValueError(f"preprocessing.json: expected cleaning.{modality}, found {sorted(model.preprocessing)}")
    return kind.parse({k: v for k, v in values.items() if k in kind.model_fields}, "preprocessing.json")


def window_seconds_of(model: ExportedMCSP, modality: Modality, options: Options) -> float:
    """Length of a window: that of ``options``, else that of pretraining."""
    if options.window_seconds is not None:
        return options.window_seconds
    return float(model.preprocessing["window_seconds"][modality])


def min_seconds_of(model: ExportedMCSP, modality: Modality, options: Options, default: float) -> float:
    """Least length of a recording: that of ``options``, else that of the pretraining corpus, else ``default``."""
    if options.min_seconds is not None:
        return options.min_seconds
    return float(model.preprocessing.get("min_seconds", {}).get(modality, default))


def require_positions(clean: CleanRecording, source: str, min_channels: int, expected: str) -> None:
    """Raise ``ValueError`` unless enough good channels have a position; ``expected`` says how to give them one."""
    placed_C = np.isfinite(clean.positions_C3).all(axis=1) & clean.channel_good_C
    if placed_C.sum() < min_channels:
        names = [name for name, placed in zip(clean.channels, placed_C, strict=True) if placed]
        raise ValueError(
            f"{source}: {len(names)} of {len(placed_C)} channels are good and have a position "
            f"({listed(names) or 'none'}), expected at least {min_channels}: {expected}"
        )


def encode_clean(
    model: ExportedMCSP, modality: Modality, clean: CleanRecording, source: str, options: Options
) -> tuple[np.ndarray, np.ndarray, float]:
    """Features ``(W, F)``, starts [s] ``(W,)`` and length [s] of the windows of a clean recording.

    Raises:
        ValueError: no window holds enough valid time.
    """
    recording = as_recording(clean, modality)
    length = longest_window(recording, window_seconds_of(model, modality, options))
    starts = window_starts(recording, length, options.windows_per_recording)
    if not starts:
        raise ValueError(no_window(recording, length, source))
    windows = ((start, Window(clean.x_TC[start : start + length], recording, start)) for start in starts)
    found = dict(encode_windows(model, modality, windows, options.batch_size, lambda _: source))
    if not found:
        raise ValueError(f"{source}: all {len(starts)} windows are flat or too loud, expected a signal in {clean.unit}")
    return np.stack(list(found.values())), np.array(list(found)) / clean.sfreq, length / clean.sfreq


def window_steps(
    model: ExportedMCSP, modality: Modality, clean: CleanRecording, starts_W: np.ndarray, seconds: float
) -> tuple[str, list[str]]:
    """The report's line on the windows, and warnings about them."""
    at = listed([f"{start:.0f}" for start in starts_W])
    warnings = []
    usual = float(model.preprocessing["window_seconds"][modality])
    if seconds < 0.99 * usual:
        warnings.append(f"windows of {seconds:.1f} s; in pretraining they had {usual:g} s")
    recording = as_recording(clean, modality)
    length = longest_window(recording, seconds)
    left_out = seconds_in_no_window(recording, length)
    valid = [
        valid_times(Window(clean.x_TC[s : s + length], recording, s)).mean()
        for s in (starts_W * clean.sfreq).round().astype(int).tolist()
    ]
    if min(valid) < 1:
        warnings.append(
            f"no clean span is as long as a window: {sum(v < 1 for v in valid)} of {len(valid)} windows hold masked "
            f"time, up to {1 - min(valid):.0%} of a window"
        )
    line = f"{len(starts_W)} of {seconds:g} s from {at} s on, learned features averaged"
    if left_out > 0:
        line += f"; {left_out:.1f} of {recording.seconds:.1f} s are in no window, for lack of valid time"
    return line, warnings


def as_recording(clean: CleanRecording, modality: Modality) -> Recording:
    """A row as a corpus has it, of a recording in memory."""
    n_samples, n_channels = clean.x_TC.shape
    where: dict[str, Any] = dict.fromkeys(("key", "shard", "member", "site", "subject", "session", "task", "run"), "")
    return Recording(
        **where,
        modality=modality,
        split="test",
        sfreq=clean.sfreq,
        unit=clean.unit,
        scale=1.0,
        n_samples=n_samples,
        n_channels=n_channels,
        dtype="float32",
        byte_offset=0,
        crc_offset=0,
        block_samples=n_samples,
        simulated=False,
        onset_seconds=float("nan"),
        channels=clean.channels,
        positions_mm=[round(float(value), 3) for value in clean.positions_C3.ravel()],
        channel_good=[bool(good) for good in clean.channel_good_C],
        valid_spans=clean.valid_spans or [0, 0],  # none is valid; in a corpus an empty list would say all are
        space=clean.space,
    )
