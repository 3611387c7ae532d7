"""Confounds of fMRIPrep and xcp_d: motion for the quality, and regressors by the names of nilearn's strategies.

Shape letters: T volumes, K those that are kept, E evenly spaced ones, P parcels, R regressors.
"""

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import interpolate, signal

from mcsp.config import FmriConfig
from mcsp.data_sharding.bids.derivatives import siblings
from mcsp.data_sharding.bids.find import RecordingRef
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.clean.fmri_files import is_image

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


def with_confounds(ref: RecordingRef, x_TP: np.ndarray, config: FmriConfig) -> tuple[np.ndarray, Confounds]:
    """The confounds of a run, and its values on the clock of all volumes.

    xcp_d may leave out the volumes that it censors; ``*_outliers.tsv`` has a row for every one. Those that are missing
    are NaN in what is returned, and all that it names are outside of the fit and of the valid spans.

    Raises:
        RecordingError: as :func:`read_confounds`; ``confounds-mismatch`` where volumes are missing otherwise.
    """
    tables = siblings(ref, "_outliers.tsv")
    if not tables:
        return x_TP, read_confounds(ref, len(x_TP), config)
    outlier_T = (_table(tables[0]).apply(pd.to_numeric, errors="coerce").to_numpy() > 0).any(axis=1)
    if len(x_TP) == (~outlier_T).sum() < len(outlier_T):
        kept_TP, x_TP = x_TP, np.full((len(outlier_T), x_TP.shape[1]), np.nan)
        x_TP[~outlier_T] = kept_TP
    if len(x_TP) != len(outlier_T):
        expected = f"expected {len(outlier_T)} volumes, or {(~outlier_T).sum()} without the censored ones"
        raise RecordingError("confounds-mismatch", f"{tables[0].name}: {len(x_TP)} volumes in the series, {expected}")
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
    if kept[-1] - kept[0] + 1 == len(kept) or not x_KP.shape[1]:
        return x_KP
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
            frame, kept = load_confounds(str(ref.path), strategy=list(config.confounds or []), demean=True)
        except ValueError as error:  # nilearn names the missing columns or files
            raise RecordingError("missing-confounds", f"{ref.path.name}: {' '.join(str(error).split())}") from None
    regressors_TK = frame.to_numpy(dtype=np.float64)
    return np.nan_to_num(regressors_TK), np.arange(n_volumes) if kept is None else np.asarray(kept)
