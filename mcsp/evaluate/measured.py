"""What is measured of a whole recording, over all of its valid time and without any weights: the classical features.

BOLD: functional connectivity (Pearson correlation) and its square root. EEG: log power of the usual bands, absolute and
relative. Both: covariance. Arithmetic is float64.

Shape letters: T time samples, C channels, K bands, R points.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.signal import welch
from sklearn.covariance import ledoit_wolf

from mcsp.batch import valid_times
from mcsp.data_sharding.store.reader import Corpus
from mcsp.evaluate.features import UnitMean, read_whole
from mcsp.evaluate.units import Labelled, Unit
from mcsp.kernels.spectral import EEG_BANDS_HZ
from mcsp.model.tangent import root_correlation, unit_triangle
from mcsp.outside import parse_json
from mcsp.schema import MODALITIES, Modality, Window

# Scalp regions [mm, MNE head frame]: the 10-20 electrodes F3, C3, T7, P3, O1 of MNE's standard_1005 montage, rounded
# and mirrored.
SCALP_REGIONS_MM: dict[str, tuple[float, float, float]] = {
    f"{side} {name}": (sign * x, y, z)
    for side, sign in (("left", -1.0), ("right", 1.0))
    for name, (x, y, z) in {
        "frontal": (51.0, 87.0, 78.0),
        "central": (66.0, 24.0, 105.0),
        "temporal": (85.0, 15.0, 31.0),
        "parietal": (55.0, -44.0, 100.0),
        "occipital": (30.0, -80.0, 55.0),
    }.items()
}
SCALP_SIGMA_MM = 25.0  # about half the distance between neighbours of the 10-20 system
BRAIN_SIGMA_MM = 15.0  # half the lattice spacing
BRAIN_SPACING_MM = 30.0
WELCH_SECONDS = 2.0  # 0.5 Hz resolution, enough for the delta band
_LOWEST_POWER = 1e-6  # uV^2


@dataclass(frozen=True)
class Points:
    """Where channels are brought to: their own places, or common ones where recordings differ in their channels."""

    places_R3: np.ndarray | None  # mm; None: the channels as they are
    sigma_mm: float = 1.0


def common_points(modality: Modality) -> Points:
    """Scalp regions, or a lattice in the brain."""
    if modality == "eeg":
        return Points(np.array(list(SCALP_REGIONS_MM.values())), SCALP_SIGMA_MM)
    return Points(brain_lattice_mm(), BRAIN_SIGMA_MM)


def brain_lattice_mm() -> np.ndarray:
    """Points of a cubic lattice inside an ellipsoid about the size of the MNI152 brain, ``(R, 3)`` mm.

    Centre (0, -18, 10) and semi-axes (70, 88, 65) mm are read off the template's extent.
    """
    steps = np.arange(-3.5, 4.0) * BRAIN_SPACING_MM
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    return grid[((grid / [70.0, 88.0, 65.0]) ** 2).sum(axis=1) < 1.0] + [0.0, -18.0, 10.0]


def series(window: Window, points: Points, standardise: bool) -> np.ndarray | None:
    """Time courses ``(T, R)`` of a recording at points, over its valid time; None where no position is known.

    The channels themselves are zero where they are bad or not finite. At other places a course is the mean of the good
    channels that have a position, with Gaussian weights of their distance.
    """
    x_TC = window.x_TC[valid_times(window)].astype(np.float64) * window.scale
    good_C = np.asarray(window.recording.channel_good, dtype=bool) & np.isfinite(x_TC).all(axis=0)
    x_TC = np.where(good_C, x_TC, 0.0)
    if points.places_R3 is not None:
        usable_C = good_C & (x_TC.std(axis=0) > 0) & np.isfinite(window.recording.positions_C3).all(axis=1)
        if not usable_C.any():
            return None
        x_TC = _standardised(x_TC[:, usable_C]) if standardise else x_TC[:, usable_C]
        position_C3 = window.recording.positions_C3[usable_C].astype(np.float64)
        x_TC = x_TC @ _gaussian_weights(points.places_R3, position_C3, points.sigma_mm).T
    return _standardised(x_TC) if standardise else x_TC


def connectivity(x_TC: np.ndarray) -> np.ndarray:
    """Fisher z of the correlation of all pairs, limited to 0.999, ``(C (C - 1) / 2,)``; 0 where a channel is flat."""
    unit_TC = _standardised(x_TC)
    correlation_CC = np.clip(unit_TC.T @ unit_TC / len(unit_TC), -0.999, 0.999)
    return np.arctanh(correlation_CC[np.triu_indices(x_TC.shape[1], 1)])


def root_connectivity(x_TC: np.ndarray) -> np.ndarray:
    """Square root of the correlation matrix, above the diagonal, less its mean and of length 1; see mcsp.model.tangent.

    At a lattice or at parcels what the model's part ``root`` is at anchors.
    """
    x_1CT = torch.from_numpy(np.ascontiguousarray(_standardised(x_TC).T))[None]
    root_1CC = root_correlation(x_1CT, torch.ones(1, len(x_TC), dtype=torch.bool), shrinkage=0.0)
    triangle: np.ndarray = unit_triangle(root_1CC)[0].numpy()
    return triangle


def covariance(x_TC: np.ndarray) -> np.ndarray:
    """Shrunk as Ledoit and Wolf (2004) say, ``(C, C)``, positive definite."""
    shrunk_CC: np.ndarray = ledoit_wolf(x_TC)[0]
    return shrunk_CC


def band_power(window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Power [uV^2] per band and channel ``(K, C)``, Welch's estimate over valid time, and which channels are good.

    Frames of 2 s that overlap by half lie inside valid spans; where none is so long, one frame is the longest span.
    """
    sfreq = window.recording.sfreq
    valid_T = valid_times(window)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], valid_T, [False]]).astype(int))).reshape(-1, 2)
    frame = min(round(WELCH_SECONDS * sfreq), max((int(b - a) for a, b in edges), default=len(valid_T)))
    x_TC = window.x_TC.astype(np.float64) * window.scale
    good_C = np.asarray(window.recording.channel_good, dtype=bool) & np.isfinite(x_TC).all(axis=0)
    x_TC = np.where(good_C, x_TC, 0.0)
    total_FC, frames = np.zeros((frame // 2 + 1, x_TC.shape[1])), 0
    for a, b in edges if len(edges) else [(0, len(x_TC))]:
        if b - a >= frame:
            _, density_FC = welch(x_TC[a:b], fs=sfreq, nperseg=frame, axis=0)
            count = 1 + (b - a - frame) // (frame - frame // 2)
            total_FC, frames = total_FC + count * density_FC, frames + count
    hz_F = np.fft.rfftfreq(frame, 1 / sfreq)
    bands = [(hz_F >= low) & (hz_F < high) for low, high in EEG_BANDS_HZ.values()]
    power_KC = np.stack([total_FC[band].sum(axis=0) for band in bands]) * (hz_F[1] - hz_F[0]) / frames
    return power_KC, good_C & (power_KC.sum(axis=0) > 0)


def log_band_power(window: Window, points: Points) -> tuple[np.ndarray, np.ndarray] | None:
    """Log10 power [uV^2] and log10 share of all bands, ``(K * R,)`` each; None where no position is known.

    At common places the logarithm is the mean of the good channels' with Gaussian weights of their distance; so it is
    at a channel that is bad.
    """
    power_KC, good_C = band_power(window)
    log_KC = np.log10(power_KC + _LOWEST_POWER)
    share_KC = log_KC - np.log10((power_KC + _LOWEST_POWER).sum(axis=0))
    position_C3 = window.recording.positions_C3.astype(np.float64)
    placed_C = good_C & np.isfinite(position_C3).all(axis=1)
    if points.places_R3 is None and good_C.all():
        return log_KC.ravel(), share_KC.ravel()
    if not placed_C.any():
        return None
    if points.places_R3 is not None:
        weights_RC = _gaussian_weights(points.places_R3, position_C3[placed_C], points.sigma_mm)
        return (log_KC[:, placed_C] @ weights_RC.T).ravel(), (share_KC[:, placed_C] @ weights_RC.T).ravel()
    if not np.isfinite(position_C3[~good_C]).all():
        return None
    weights_RC = _gaussian_weights(position_C3[~good_C], position_C3[placed_C], SCALP_SIGMA_MM)
    for values_KC in (log_KC, share_KC):
        values_KC[:, ~good_C] = values_KC[:, placed_C] @ weights_RC.T
    return log_KC.ravel(), share_KC.ravel()


def _standardised(x_TC: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance of each channel; flat ones stay zero."""
    x_TC = x_TC - x_TC.mean(axis=0)
    std_C = x_TC.std(axis=0)
    return x_TC / np.where(std_C > 0, std_C, 1.0)


def _gaussian_weights(points_R3: np.ndarray, position_C3: np.ndarray, sigma_mm: float) -> np.ndarray:
    """Weights ``(R, C)`` that sum to one for each point; the nearest channel always counts."""
    squared_RC = ((points_R3[:, None] - position_C3[None]) ** 2).sum(axis=-1)
    weights_RC = np.exp(-(squared_RC - squared_RC.min(axis=1, keepdims=True)) / (2 * sigma_mm**2))
    return weights_RC / weights_RC.sum(axis=1, keepdims=True)


# Covariates that are used where the corpus holds them and none are asked for.
USUAL_COVARIATES = ("age", "sex", "mean_fd_mm")


@dataclass(frozen=True)
class Measured:
    """Of one modality, over all valid time of every recording; NaN rows where missing or where no position is known.

    Attributes:
        own: whether the channels are the recordings' own, which all units share; else they are common places.
        features: float64 ``(N, F)`` by name: connectivity and root of BOLD, band_power and relative_power of EEG.
        halves: root of the first and of the second half in time, BOLD only.
        covariance_NCC: of BOLD after standardising, as nilearn's ConnectivityMeasure does; EEG keeps its amplitude.
    """

    own: bool
    features: dict[str, np.ndarray]
    halves: tuple[np.ndarray, np.ndarray] | None
    covariance_NCC: np.ndarray


def measure(corpus: Corpus, units: Sequence[Unit]) -> dict[Modality, Measured]:
    """Everything that is measured, for every modality that any unit has; mean over recordings of a unit."""
    found: dict[Modality, Measured] = {}
    for modality in MODALITIES:
        own = same_channels(units, modality)
        points = Points(None) if own else common_points(modality)
        of = _of_bold if modality == "fmri" else _of_eeg
        means: dict[str, UnitMean] = {}
        for i, window in read_whole(corpus, units, modality, "measured without a model"):
            for name, value in of(window, points).items():
                means.setdefault(name, UnitMean(len(units))).add(i, value)
        tables = {name: table for name, mean in means.items() if (table := mean.mean()) is not None}
        if tables:
            covariance_NCC = tables.pop("covariance")
            halves = (tables.pop("first half"), tables.pop("second half")) if modality == "fmri" else None
            found[modality] = Measured(own, tables, halves, covariance_NCC)
    return found


def _of_bold(window: Window, points: Points) -> dict[str, np.ndarray]:
    x_TC = series(window, points, standardise=True)
    if x_TC is None:
        return {}
    first_TC, second_TC = x_TC[: len(x_TC) // 2], x_TC[len(x_TC) // 2 :]
    return {
        "connectivity": connectivity(x_TC),
        "root": root_connectivity(x_TC),
        "first half": root_connectivity(first_TC),
        "second half": root_connectivity(second_TC),
        "covariance": covariance(x_TC),
    }


def _of_eeg(window: Window, points: Points) -> dict[str, np.ndarray]:
    x_TC = series(window, points, standardise=False)
    power = log_band_power(window, points)
    if x_TC is None or power is None:
        return {}
    return {"band_power": power[0], "relative_power": power[1], "covariance": covariance(x_TC)}


def covariate_table(corpus: Corpus, labelled: Labelled, columns: Sequence[str] | None, label: str) -> np.ndarray:
    """Site and columns of participants.tsv or of a recording's quality, ``(N, columns)``; the mean where missing.

    Text of exactly two values counts as 0 and 1 (sex, say), a site as one column of 0 and 1. Where ``columns`` is None,
    they are those of :data:`USUAL_COVARIATES` that the corpus holds in a usable form. ``label`` itself is never one.

    Raises:
        ValueError: a column that no unit has, or text of more than two values.
    """
    sites = sorted(set(labelled.sites))
    table = [[float(site == name) for site in labelled.sites] for name in (sites if len(sites) > 1 else [])]
    for column in [c for c in (USUAL_COVARIATES if columns is None else columns) if c != label]:
        values = [_covariate(corpus, unit, column) for unit in labelled.units]
        texts = sorted({v for v in values if isinstance(v, str)})
        usable = any(v is not None for v in values) and len(texts) in (0, 2)
        usable &= not texts or not any(isinstance(v, float) for v in values)
        if not usable and columns is not None:
            raise ValueError(f"covariates: {column!r}: expected numbers or two values, found {texts[:5] or 'nothing'}")
        if usable:
            numbers = [np.nan if v is None else texts.index(v) if isinstance(v, str) else v for v in values]
            table.append(np.where(np.isnan(numbers), np.nanmean(numbers), numbers).tolist())
    return np.array(table, dtype=float).reshape(len(table), len(labelled.units)).T


def _covariate(corpus: Corpus, unit: Unit, column: str) -> float | str | None:
    for recording in unit.recordings:
        value = corpus.participant(recording).get(column, parse_json(recording.quality).get(column))
        if value not in (None, "", "n/a"):
            return value if isinstance(value, str) else float(value)
    return None


def same_channels(units: Sequence[Unit], modality: Modality) -> bool:
    """Whether all recordings of one modality have the same channels in the same order."""
    return len({tuple(r.channels) for unit in units for r in unit.of(modality)}) == 1
