"""Read and clean BOLD: parcellated time series and 4-D images become float32 percent signal change per parcel.

Series that come without their mean, as denoised ones do, keep an arbitrary unit. Confounds are those of fMRIPrep and
xcp_d: motion for the quality, and regressors by the names of nilearn's strategies.

The steps, their constants and sources are in docs/cleaning.md. Positions are millimetres in the space of the
parcellation (MNI as a rule). Time is never resampled.

Shape letters: T volumes, K those that are kept, E evenly spaced ones, P parcels, R regressors.
"""

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import interpolate, signal

from mcsp.config import FmriConfig
from mcsp.data_sharding.bids.reasons import RecordingError, naming
from mcsp.data_sharding.bids.ref import RecordingRef, even_timing, read_sidecar, repetition_time_of_run, siblings
from mcsp.data_sharding.clean.fmri_files import is_image, read_time_series
from mcsp.data_sharding.clean.recording import CleanRecording, require_good, robust_amplitude, spans_of, summarise
from mcsp.data_sharding.parcels.parcellation import Parcels
from mcsp.schema import SCALE_FREE, UNITS

# t_r outside these bounds [s] is no seconds at all: the fastest sequences need some 0.2 s, the slowest about 10 s.
_T_R_BOUNDS = (0.05, 20.0)
# What may be rounding where it is written twice: 0.33 Hz is 3 s.
_T_R_TOLERANCE = 0.02
# Mean over standard deviation (temporal SNR) below which a mean is no baseline. BOLD of a parcel has 30 to 400;
# at 5 the ordinary fluctuation would be 20 % of the signal, which no blood flow explains. Ours.
_MIN_BASELINE = 5.0
# Absolute mean over standard deviation up to which a series has no mean at all. A band-pass, a detrending and a z-score
# leave 1e-6 or less; volumes that were cut out afterwards leave some tenths. What lies between is neither. Ours.
_MAX_CENTRED = 0.5
# Robust amplitude [percent] that BOLD of a parcel can have. Ours.
_AMPLITUDE_PERCENT = (0.01, 20.0)
_PERCENT_UNITS = {"percent", "%", "percent signal change"}
# Order of the Butterworth band-pass, forwards and backwards: nilearn's.
_ORDER = 5
# fMRIPrep's columns with a one at a volume before the steady state; such volumes are always taken out.
_NON_STEADY = "non_steady_state_outlier"


@dataclass(frozen=True)
class Confounds:
    """What is known of the motion of one run, and what is to be regressed out."""

    quality: dict[str, float] = field(default_factory=dict)
    steady_T: np.ndarray | None = None  # bool; False where volumes moved too much or were no steady state
    regressors_TK: np.ndarray | None = None


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
    empty_T = ~(np.abs(x_TP) > 0).any(axis=1)
    if empty_T.any() and not empty_T.all():
        steady_T = steady_T & ~empty_T
    if steady_T.sum() * t_r < min_seconds or steady_T.sum() < 2:
        found = f"{steady_T.sum() * t_r:.1f} s outside of motion"
        raise RecordingError("motion", f"{found}, expected at least {min_seconds:g} s")
    n_volumes = len(x_TP)
    x_TP, good_P, unit = in_unit(x_TP if steady_T.all() else x_TP[steady_T], percent)
    if good_P.sum() < (1 - config.max_bad_fraction) * len(good_P):
        detail = f"{int((~good_P).sum())} of {len(good_P)} parcels have no signal, too many to go on"
        raise RecordingError("parcels-missing", detail)
    x_TP = _zero_where_bad(regress(x_TP, confounds.regressors_TK, steady_T, config, t_r), good_P)
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
        x_TC=np.ascontiguousarray(x_TP, dtype=np.float32), sfreq=1 / t_r, unit=unit, channels=parcels.names,
        positions_C3=parcels.positions_P3, channel_good_C=good_P, valid_spans=spans_of(steady_T),
        quality={**quality, **confounds.quality}, space=parcels.space, repairs=parcels.repairs,
    )  # fmt: skip


def repetition_time(sidecar: dict[str, object], ref: RecordingRef | None = None) -> float:
    """t_r [s] of a sidecar (RepetitionTime, 1 / SamplingFrequency, VolumeTiming), else of that of an image of the run.

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
    if (of_volumes := even_timing(sidecar, "the sidecar")) is not None:
        stated["VolumeTiming of the sidecar"] = plausible_t_r(of_volumes, "VolumeTiming of the sidecar gives t_r")
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
    good_P = require_good(finite_P, x_TP.max(axis=0) == x_TP.min(axis=0))
    if already_percent:
        return _zero_where_bad(x_TP - mean_P, good_P), good_P, UNITS["fmri"]
    baseline_P = mean_P / np.where(good_P, spread_P, 1.0)
    median = float(np.median(baseline_P[good_P]))
    if median >= _MIN_BASELINE:
        good_P &= baseline_P >= _MIN_BASELINE
        return np.where(good_P, 100.0 * (x_TP / np.where(good_P, mean_P, 1.0) - 1.0), 0.0), good_P, UNITS["fmri"]
    if float(np.median(np.abs(baseline_P[good_P]))) > _MAX_CENTRED:
        detail = f"median mean/deviation of the parcels is {median:.2g}, expected raw BOLD with at least"
        raise RecordingError("no-baseline", f"{detail} {_MIN_BASELINE:g}, or a series without its mean (0)")
    good_P &= np.abs(baseline_P) < _MIN_BASELINE
    return _zero_where_bad(x_TP - mean_P, good_P), good_P, SCALE_FREE


def _zero_where_bad(x_TP: np.ndarray, good_P: np.ndarray) -> np.ndarray:
    return x_TP if good_P.all() else np.where(good_P, x_TP, 0.0)


def with_confounds(ref: RecordingRef, x_TP: np.ndarray, config: FmriConfig) -> tuple[np.ndarray, Confounds]:
    """The confounds of a run, and its values on the clock of all volumes.

    xcp_d may leave out the volumes that it censors; ``*_outliers.tsv`` has a row for every one. Those that are missing
    are NaN in what is returned, and all that it names are outside of the fit and of the valid spans.

    Raises:
        RecordingError: as :func:`read_confounds`; ``confounds-mismatch`` where volumes are missing otherwise.
    """
    table = next(iter(siblings(ref, "_outliers.tsv")), None)
    if table is None:
        return x_TP, read_confounds(ref, len(x_TP), config)
    outlier_T = (_table(table).apply(pd.to_numeric, errors="coerce").to_numpy() > 0).any(axis=1)
    if len(x_TP) == (~outlier_T).sum() < len(outlier_T):
        kept_TP, x_TP = x_TP, np.full((len(outlier_T), x_TP.shape[1]), np.nan)
        x_TP[~outlier_T] = kept_TP
    if len(x_TP) != len(outlier_T):
        expected = f"expected {len(outlier_T)} volumes, or {(~outlier_T).sum()} without the censored ones"
        raise RecordingError("confounds-mismatch", f"{table.name}: {len(x_TP)} volumes in the series, {expected}")
    confounds = read_confounds(ref, len(x_TP), config)
    steady_T = ~outlier_T if confounds.steady_T is None else confounds.steady_T & ~outlier_T
    return x_TP, replace(confounds, steady_T=steady_T)


def read_confounds(ref: RecordingRef, n_volumes: int, config: FmriConfig) -> Confounds:
    """Read the confounds of a run; empty where there are none.

    Raises:
        RecordingError: ``missing-confounds`` where the configuration needs them, ``confounds-mismatch``, ``bad-table``.
    """
    file = ref.confounds()
    regresses = bool(config.confounds) and is_image(ref.path)
    if file is None:
        if regresses or config.max_fd_mm is not None:
            raise RecordingError("missing-confounds", f"{ref.path.name}: no *_desc-confounds_timeseries.tsv beside it")
        return Confounds()
    frame = _table(file)
    if len(frame) != n_volumes:
        detail = f"{file.name}: {len(frame)} rows, expected one for each of {n_volumes} volumes"
        raise RecordingError("confounds-mismatch", detail)
    quality: dict[str, float] = {}
    steady_T = np.ones(n_volumes, dtype=bool)
    fd_T = _numbers(frame, "framewise_displacement")
    if fd_T is not None:
        quality["mean_fd_mm"], quality["max_fd_mm"] = float(np.nanmean(fd_T)), float(np.nanmax(fd_T))
        if config.max_fd_mm is not None:
            steady_T &= ~(fd_T > config.max_fd_mm)
    elif config.max_fd_mm is not None:
        raise RecordingError("missing-confounds", f"{file.name}: no column framewise_displacement, max_fd_mm needs it")
    for name in (column for column in frame if str(column).startswith(_NON_STEADY)):
        steady_T &= ~(pd.to_numeric(frame[name], errors="coerce").to_numpy() > 0)
    dvars_T = _numbers(frame, "std_dvars")
    if dvars_T is not None:
        quality["mean_dvars"] = float(np.nanmean(dvars_T))
    regressors_TK = None
    if regresses:
        regressors_TK, kept = _strategies(ref, config, n_volumes)
        steady_T[np.setdiff1d(np.arange(n_volumes), kept)] = False
    return Confounds({k: round(v, 6) for k, v in quality.items()}, steady_T, regressors_TK)


def regress(
    x_KP: np.ndarray, regressors_TR: np.ndarray | None, kept_T: np.ndarray, config: FmriConfig, t_r: float
) -> np.ndarray:
    """Detrend, band-pass and regress, in the order of ``nilearn.signal.clean``: the regressors get the same filters.

    Volumes that are taken out have no part in it. Where a filter needs an even spacing, those between others are
    interpolated for the filter alone, by a cubic spline as nilearn does; those at the ends are left out.

    Args:
        x_KP: the values of the volumes that are kept.
        regressors_TR: of all volumes.
        kept_T: which volumes are kept, bool.
        config: constants.
        t_r: s.

    Written as sums (Gram-Schmidt, twice), because results of BLAS depend on the machine.
    """
    regressors_KR = np.empty((len(x_KP), 0)) if regressors_TR is None else regressors_TR[kept_T]
    if config.bandpass_hz is not None:
        x_KP, regressors_KR = evenly(x_KP, kept_T), evenly(regressors_KR, kept_T)
    if config.detrend:
        x_KP, regressors_KR = detrend(x_KP), detrend(regressors_KR)
    if config.bandpass_hz is not None:
        nyquist = 0.5 / t_r
        low, high = config.bandpass_hz
        if high >= nyquist:
            raise RecordingError(
                "t_r-mismatch", f"bandpass_hz up to {high:g} Hz, expected below {nyquist:g} Hz at this t_r"
            )
        sos = signal.butter(_ORDER, [low / nyquist, high / nyquist], btype="bandpass", output="sos")
        inside_K = np.flatnonzero(kept_T) - np.flatnonzero(kept_T)[0]
        x_KP = signal.sosfiltfilt(sos, x_KP, axis=0)[inside_K]
        if regressors_KR.shape[1]:
            regressors_KR = signal.sosfiltfilt(sos, regressors_KR, axis=0)[inside_K]
    return project_out(x_KP, regressors_KR - regressors_KR.mean(axis=0))


def evenly(x_KP: np.ndarray, kept_T: np.ndarray) -> np.ndarray:
    """Values at every volume from the first to the last that is kept; those between are of a cubic spline."""
    kept = np.flatnonzero(kept_T)
    every = np.arange(kept[0], kept[-1] + 1)
    found_EP = interpolate.CubicSpline(kept, x_KP, axis=0)(every)
    found_EP[kept - kept[0]] = x_KP
    return found_EP


def project_out(x_TP: np.ndarray, regressors_TK: np.ndarray) -> np.ndarray:
    """What is orthogonal to the regressors; sums, twice."""
    basis: list[np.ndarray] = []
    for column_T in regressors_TK.T:
        length = np.sqrt((column_T**2).sum())
        for _ in range(2):
            for unit_T in basis:
                column_T = column_T - unit_T * (unit_T * column_T).sum()
        rest = np.sqrt((column_T**2).sum())
        if rest > 1e-8 * length:  # others are sums of those before
            basis.append(column_T / rest)
    for _ in range(2):
        for unit_T in basis:
            x_TP = x_TP - unit_T[:, None] * (unit_T[:, None] * x_TP).sum(axis=0)
    return x_TP


def detrend(x_TP: np.ndarray) -> np.ndarray:
    """Remove each column's least-squares line; written as sums, because BLAS results depend on the machine."""
    t_T1 = np.arange(len(x_TP), dtype=np.float64)[:, None] - (len(x_TP) - 1) / 2
    slope_P = (t_T1 * x_TP).sum(axis=0) / (t_T1**2).sum()
    return x_TP - x_TP.mean(axis=0) - t_T1 * slope_P


def _table(file: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(file, sep="\t", na_values=["n/a"])
    except UnicodeDecodeError as error:
        raise RecordingError("bad-encoding", f"{file.name}: byte {error.start} is not UTF-8") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise RecordingError("bad-table", f"{file.name}: {' '.join(str(error).split())}") from None


def _numbers(frame: pd.DataFrame, column: str) -> np.ndarray | None:
    if column not in frame:
        return None
    values_T = pd.to_numeric(frame[column], errors="coerce").to_numpy(dtype=np.float64)
    return values_T if np.isfinite(values_T).any() else None


def _strategies(ref: RecordingRef, config: FmriConfig, n_volumes: int) -> tuple[np.ndarray, np.ndarray]:
    """Regressors ``(T, K)`` of nilearn's ``load_confounds``, and the volumes that it keeps."""
    # Costs seconds (scikit-learn), which sites without strategies need not pay.
    from nilearn.interfaces.fmriprep import load_confounds

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            frame, kept = load_confounds(str(ref.path), strategy=list(config.confounds or []))
        except ValueError as error:  # nilearn names the missing columns or files
            raise RecordingError("missing-confounds", f"{ref.path.name}: {' '.join(str(error).split())}") from None
    regressors_TK = frame.to_numpy(dtype=np.float64)
    return np.nan_to_num(regressors_TK), np.arange(n_volumes) if kept is None else np.asarray(kept)
