"""Encode the trials of one EEG recording (``mne.Epochs``): one row of features per trial.

Shape letters: N trials, C channels, T time samples, F features.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from mcsp.config import EegConfig
from mcsp.encode.eeg import encode_raw
from mcsp.encode.recording import Options, Report, cleaning_of, require_packages, window_seconds_of

if TYPE_CHECKING:
    import mne

    from mcsp.model.weights import ExportedMCSP

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
    model: "ExportedMCSP",
    trials: "mne.BaseEpochs",
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
    require_packages("mne")
    import mne

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
