"""Read and clean BOLD: parcellated time series and 4-D images become float32 percent signal change per parcel.

Series that come without their mean, as denoised ones do, keep an arbitrary unit.

The steps, their constants and sources are in docs/cleaning.md. Positions are millimetres in the space of the
parcellation (MNI as a rule). Time is never resampled. Shape letters: T volumes, P parcels.
"""

import numpy as np

from mcsp.config import FmriConfig
from mcsp.data_sharding.bids.derivatives import repetition_time_of_run
from mcsp.data_sharding.bids.find import RecordingRef, read_sidecar
from mcsp.data_sharding.bids.reasons import RecordingError, naming
from mcsp.data_sharding.clean.fmri_confounds import Confounds, regress, with_confounds
from mcsp.data_sharding.clean.fmri_files import read_time_series
from mcsp.data_sharding.clean.recording import CleanRecording, require_good, robust_amplitude, spans_of, summarise
from mcsp.data_sharding.parcels.parcellation import Parcels
from mcsp.schema import SCALE_FREE, UNITS

# t_r outside these bounds [s] is no seconds at all: the fastest sequences need some 0.2 s, the slowest about 10 s.
_T_R_BOUNDS = (0.05, 20.0)
# What may be rounding where it is written twice.
_T_R_TOLERANCE = 0.01
# Mean over standard deviation (temporal SNR) below which a mean is no baseline. BOLD of a parcel has 30 to 400;
# at 5 the ordinary fluctuation would be 20 % of the signal, which no blood flow explains. Ours.
_MIN_BASELINE = 5.0
# Absolute mean over standard deviation up to which a series has no mean at all. A band-pass, a detrending and a z-score
# leave 1e-6 or less; volumes that were cut out afterwards leave some tenths. What lies between is neither. Ours.
_MAX_CENTRED = 0.5
# Robust amplitude [percent] that BOLD of a parcel can have. Ours.
_AMPLITUDE_PERCENT = (0.01, 20.0)
_PERCENT_UNITS = {"percent", "%", "percent signal change"}


def read_fmri(ref: RecordingRef, config: FmriConfig, min_seconds: float) -> CleanRecording:
    """Read the BOLD time series of one run and turn it into percent signal change of each parcel's mean.

    A run without a mean is divided by its own robust amplitude instead, and its unit is :data:`mcsp.schema.SCALE_FREE`.

    t_r comes from the JSON sidecar, never from an image header alone; the header is checked against it.

    Returns:
        a recording at 1 / t_r. Parcels that are absent, flat, non-finite or without a baseline are zero and
        marked bad, so the list of parcels is the same for every recording of a site. Volumes that are taken out (of
        motion, before the steady state) have no part in any fit, are zero and lie outside of the valid spans.

    Raises:
        RecordingError: with the reason.
        Exception: whatever pandas and nibabel raise on a damaged file; ``child.read_recording`` catches it.
    """
    with naming(ref.path.name):
        sidecar = read_sidecar(ref)
        t_r = repetition_time(sidecar, ref)
        x_TP, parcels = read_time_series(ref, t_r, config)
        x_TP, confounds = with_confounds(ref, x_TP, config)
        require_length(len(x_TP), t_r, min_seconds)
        return clean_bold(x_TP, parcels, t_r, confounds, config, min_seconds, in_percent(sidecar))


def in_percent(sidecar: dict[str, object]) -> bool:
    """Whether a sidecar says that values are percent already."""
    return str(sidecar.get("Units", "")).lower() in _PERCENT_UNITS


def require_length(n_volumes: int, t_r: float, min_seconds: float) -> None:
    """Raise :class:`RecordingError` (``too-short``) where a run lasts less than ``min_seconds``."""
    if n_volumes * t_r < min_seconds:
        raise RecordingError("too-short", f"{n_volumes * t_r:.1f} s, expected at least {min_seconds:g} s")


def clean_bold(
    x_TP: np.ndarray,
    parcels: Parcels,
    t_r: float,
    confounds: Confounds,
    config: FmriConfig,
    min_seconds: float,
    percent: bool,
) -> CleanRecording:
    """As :func:`read_fmri`, of values in memory.

    Args:
        x_TP: scanner units with their mean, percent, or denoised values without a mean; NaN for parcels without data.
        parcels: P names and positions.
        t_r: s.
        confounds: what is known of motion, and regressors.
        config: constants.
        min_seconds: least time outside of motion.
        percent: whether the values are percent already.
    """
    steady_T = np.ones(len(x_TP), dtype=bool) if confounds.steady_T is None else confounds.steady_T
    # Zeros or NaN in every parcel: a volume that was censored or lost.
    if (empty_T := ~(np.abs(x_TP) > 0).any(axis=1)).any() and not empty_T.all():
        steady_T = steady_T & ~empty_T
    if steady_T.sum() * t_r < min_seconds or steady_T.sum() < 2:
        found = f"{steady_T.sum() * t_r:.1f} s outside of motion"
        raise RecordingError("motion", f"{found}, expected at least {min_seconds:g} s")
    n_volumes = len(x_TP)
    x_TP, good_P, unit = in_unit(x_TP if steady_T.all() else x_TP[steady_T], percent)
    if good_P.sum() < (1 - config.max_bad_fraction) * len(good_P):
        detail = f"{int((~good_P).sum())} of {len(good_P)} parcels have no signal, too many to go on"
        raise RecordingError("parcels-missing", detail)
    x_TP = np.where(good_P, regress(x_TP, confounds.regressors_TK, steady_T, config, t_r), 0.0)
    quality = summarise(robust_amplitude(x_TP.T), good_P, 1 - steady_T.mean())
    amplitude = quality["amplitude"]
    if unit == SCALE_FREE:  # the divisor goes into the quality in place of an amplitude
        if not amplitude > 0:
            raise RecordingError("flat", "more than half of the volumes of the median parcel have one value")
        x_TP = x_TP / amplitude
        quality = {**{k: v for k, v in quality.items() if k != "amplitude"}, "robust_scale": amplitude}
    elif not _AMPLITUDE_PERCENT[0] <= amplitude <= _AMPLITUDE_PERCENT[1]:
        low, high = _AMPLITUDE_PERCENT
        detail = f"median amplitude of the parcels is {amplitude:.3g} percent, expected {low:g} to {high:g}"
        raise RecordingError("wrong-unit", f"{detail}: is it percent signal change?")
    if len(x_TP) < n_volumes:
        kept_TP, x_TP = x_TP, np.zeros((n_volumes, x_TP.shape[1]))
        x_TP[steady_T] = kept_TP
    return CleanRecording(
        x_TC=np.ascontiguousarray(x_TP, dtype=np.float32),
        sfreq=1 / t_r,
        unit=unit,
        channels=parcels.names,
        positions_C3=parcels.positions_P3,
        channel_good_C=good_P,
        valid_spans=spans_of(steady_T),
        quality={**quality, **confounds.quality},
        space=parcels.space,
    )


def repetition_time(sidecar: dict[str, object], ref: RecordingRef | None = None) -> float:
    """t_r [s] of a sidecar: RepetitionTime, else 1 / SamplingFrequency, else RepetitionTime of an image of the run.

    What is there of them has to agree.

    Raises:
        RecordingError: ``missing-t_r``, ``t_r-mismatch``.
    """
    stated: dict[str, float] = {}
    for key in ("RepetitionTime", "SamplingFrequency"):
        value = sidecar.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            t_r = float(value) if key == "RepetitionTime" else 1 / float(value)
            stated[f"{key} of the sidecar"] = plausible_t_r(t_r, f"{key} of the sidecar gives t_r")
    if ref is not None and (of_run := repetition_time_of_run(ref)) is not None:
        what = "RepetitionTime of an image of the run"
        stated[what] = plausible_t_r(of_run, f"{what} gives t_r")
    if not stated:
        found = f", found {sidecar['RepetitionTime']!r}" if "RepetitionTime" in sidecar else ""
        detail = f"no RepetitionTime in the JSON sidecar or in that of an image of the run{found}, expected seconds"
        raise RecordingError("missing-t_r", detail)
    if max(stated.values()) > (1 + _T_R_TOLERANCE) * min(stated.values()):
        told = " and ".join(f"{t_r:g} s by {what}" for what, t_r in stated.items())
        raise RecordingError("t_r-mismatch", f"t_r is {told}, expected one")
    return next(iter(stated.values()))


def plausible_t_r(t_r: float, what: str = "t_r") -> float:
    """``t_r`` [s] itself; raise :class:`RecordingError` where no scanner has it."""
    if not _T_R_BOUNDS[0] <= t_r <= _T_R_BOUNDS[1]:
        milliseconds = " (milliseconds?)" if _T_R_BOUNDS[0] <= t_r / 1000 <= _T_R_BOUNDS[1] else ""
        bounds = f"{_T_R_BOUNDS[0]:g} to {_T_R_BOUNDS[1]:g} s"
        raise RecordingError("t_r-mismatch", f"{what} {t_r:g}{milliseconds}, expected {bounds}")
    return t_r


def in_unit(x_TP: np.ndarray, already_percent: bool = False) -> tuple[np.ndarray, np.ndarray, str]:
    """Percent of each parcel's mean where there is one, else the values as they are; the mean is removed from both.

    Args:
        x_TP: scanner units with their mean; denoised values without; or percent (``already_percent``).

    Returns:
        values ``(T, P)``, zero for bad parcels; which parcels are good, bool ``(P,)``; and the unit, percent or
        :data:`mcsp.schema.SCALE_FREE`.

    Raises:
        RecordingError: non-finite or flat, or with a mean that is neither a baseline nor zero (``no-baseline``).
    """
    finite_P = np.isfinite(x_TP).all(axis=0)
    x_TP = x_TP if finite_P.all() else np.where(finite_P, x_TP, 0.0)
    mean_P, spread_P = x_TP.mean(axis=0), x_TP.std(axis=0)
    good_P = require_good(finite_P, np.ptp(x_TP, axis=0) == 0)
    if already_percent:
        return np.where(good_P, x_TP - mean_P, 0.0), good_P, UNITS["fmri"]
    baseline_P = mean_P / np.where(good_P, spread_P, 1.0)
    median = float(np.median(baseline_P[good_P]))
    if median >= _MIN_BASELINE:
        good_P &= baseline_P >= _MIN_BASELINE
        return np.where(good_P, 100.0 * (x_TP / np.where(good_P, mean_P, 1.0) - 1.0), 0.0), good_P, UNITS["fmri"]
    if float(np.median(np.abs(baseline_P[good_P]))) > _MAX_CENTRED:
        detail = f"median mean/deviation of the parcels is {median:.2g}, expected raw BOLD with at least"
        raise RecordingError("no-baseline", f"{detail} {_MIN_BASELINE:g}, or a series without its mean (0)")
    good_P &= np.abs(baseline_P) < _MIN_BASELINE
    return np.where(good_P, x_TP - mean_P, 0.0), good_P, SCALE_FREE
