"""Read and clean BOLD: parcellated time series and 4-D images become float32 percent signal change per parcel.

The steps, their constants and sources are in docs/cleaning.md. Positions are millimetres in the space of the
parcellation (MNI as a rule). Time is never resampled. Shape letters: T volumes, P parcels.
"""

import numpy as np

from mcsp.config import FmriConfig
from mcsp.data_sharding.bids.find import RecordingRef, read_sidecar
from mcsp.data_sharding.bids.reasons import RecordingError, naming
from mcsp.data_sharding.clean.fmri_confounds import Confounds, read_confounds, regress
from mcsp.data_sharding.clean.fmri_files import read_time_series
from mcsp.data_sharding.clean.fmri_parcels import Parcels
from mcsp.data_sharding.clean.recording import CleanRecording, require_good, robust_amplitude, spans_of, summarise

# t_r outside these bounds [s] is no seconds at all: the fastest sequences need some 0.2 s, the slowest about 10 s.
_T_R_BOUNDS = (0.05, 20.0)
# Mean over standard deviation (temporal SNR) below which a mean is no baseline. BOLD of a parcel has 30 to 400;
# at 5 the ordinary fluctuation would be 20 % of the signal, which no blood flow explains. Ours.
_MIN_BASELINE = 5.0
_PERCENT_UNITS = {"percent", "%", "percent signal change"}


def read_fmri(ref: RecordingRef, config: FmriConfig, min_seconds: float) -> CleanRecording:
    """Read the BOLD time series of one run and turn it into percent signal change of each parcel's mean.

    t_r comes from the JSON sidecar, never from an image header alone; the header is checked against it.

    Returns:
        a recording in percent at 1 / t_r. Parcels that are absent, flat, non-finite or without a baseline are zero and
        marked bad, so the list of parcels is the same for every recording of a site. Volumes of motion are outside of
        the valid spans.

    Raises:
        RecordingError: with the reason.
        Exception: whatever pandas and nibabel raise on a damaged file; see ``reading.read_recording``.
    """
    with naming(ref.path.name):
        return _read_fmri(ref, config, min_seconds)


def _read_fmri(ref: RecordingRef, config: FmriConfig, min_seconds: float) -> CleanRecording:
    sidecar = read_sidecar(ref)
    t_r = repetition_time(sidecar)
    x_TP, parcels = read_time_series(ref, t_r, config.min_parcel_coverage)
    require_length(len(x_TP), t_r, min_seconds)
    confounds = read_confounds(ref, len(x_TP), config)
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
        x_TP: scanner units with their mean, or percent; NaN for parcels without data.
        parcels: P names and positions.
        t_r: s.
        confounds: what is known of motion, and regressors.
        config: constants.
        min_seconds: least time outside of motion.
        percent: whether the values are percent already.
    """
    x_TP, good_P = percent_signal_change(x_TP, already_percent=percent)
    if good_P.sum() < (1 - config.max_bad_fraction) * len(good_P):
        detail = f"{int((~good_P).sum())} of {len(good_P)} parcels have no signal, too many to go on"
        raise RecordingError("parcels-missing", detail)
    x_TP = np.where(good_P, regress(x_TP, confounds.regressors_TK, config, t_r), 0.0)
    steady_T = np.ones(len(x_TP), dtype=bool) if confounds.steady_T is None else confounds.steady_T
    if steady_T.sum() * t_r < min_seconds:
        found = f"{steady_T.sum() * t_r:.1f} s outside of motion"
        raise RecordingError("motion", f"{found}, expected at least {min_seconds:g} s")
    return CleanRecording(
        x_TC=np.ascontiguousarray(x_TP, dtype=np.float32),
        sfreq=1 / t_r,
        channels=parcels.names,
        positions_C3=parcels.positions_P3,
        channel_good_C=good_P,
        valid_spans=spans_of(steady_T),
        quality={**summarise(robust_amplitude(x_TP.T), good_P, 1 - steady_T.mean()), **confounds.quality},
    )


def repetition_time(sidecar: dict[str, object]) -> float:
    """t_r [s] of a sidecar: RepetitionTime, else 1 / SamplingFrequency; raise :class:`RecordingError`."""
    for key in ("RepetitionTime", "SamplingFrequency"):
        value = sidecar.get(key)
        if isinstance(value, int | float) and value > 0:
            return plausible_t_r(
                float(value) if key == "RepetitionTime" else 1 / float(value), f"{key} of the sidecar gives t_r"
            )
    raise RecordingError("missing-t_r", "no RepetitionTime in the JSON sidecar, expected seconds")


def plausible_t_r(t_r: float, what: str = "t_r") -> float:
    """``t_r`` [s] itself; raise :class:`RecordingError` where no scanner has it."""
    if not _T_R_BOUNDS[0] <= t_r <= _T_R_BOUNDS[1]:
        milliseconds = " (milliseconds?)" if _T_R_BOUNDS[0] <= t_r / 1000 <= _T_R_BOUNDS[1] else ""
        bounds = f"{_T_R_BOUNDS[0]:g} to {_T_R_BOUNDS[1]:g} s"
        raise RecordingError("t_r-mismatch", f"{what} {t_r:g}{milliseconds}, expected {bounds}")
    return t_r


def percent_signal_change(x_TP: np.ndarray, already_percent: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Percent of each parcel's mean, with the mean removed.

    Args:
        x_TP: scanner units with their mean; or percent (``already_percent``), of which only the mean is removed.

    Returns:
        percent ``(T, P)``, zero for bad parcels, and which parcels are good, bool ``(P,)``.

    Raises:
        RecordingError: non-finite, flat, or demeaned values (``no-baseline``).
    """
    finite_P = np.isfinite(x_TP).all(axis=0)
    x_TP = np.where(finite_P, x_TP, 0.0)
    mean_P, spread_P = x_TP.mean(axis=0), x_TP.std(axis=0)
    good_P = require_good(finite_P, np.ptp(x_TP, axis=0) == 0)
    if already_percent:
        return np.where(good_P, x_TP - mean_P, 0.0), good_P
    baseline_P = mean_P / np.where(good_P, spread_P, 1.0)
    median = float(np.median(baseline_P[good_P]))
    if median < _MIN_BASELINE:
        detail = (
            f"median mean/deviation of the parcels is {median:.2g}, expected raw BOLD with at least {_MIN_BASELINE:g}"
        )
        raise RecordingError("no-baseline", detail)
    good_P &= baseline_P >= _MIN_BASELINE
    return np.where(good_P, 100.0 * (x_TP / np.where(good_P, mean_P, 1.0) - 1.0), 0.0), good_P
