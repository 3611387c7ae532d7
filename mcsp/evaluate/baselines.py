"""Classical features, computed from the same windows as the model's: what a pretrained model has to beat.

BOLD: functional connectivity (Pearson correlation, Fisher z). EEG: log power of the usual bands over scalp regions.
Sites differ in montage and parcellation, so both are brought to a common set of positions where they have to be.

Shape letters: T time samples, C channels, R regions, A anchors.
"""

import json
from collections.abc import Sequence

import numpy as np
from scipy.signal import welch
from sklearn.covariance import ledoit_wolf

from mcsp.config import LabelledConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.evaluate.features import UnitMean, read_windows
from mcsp.evaluate.units import Unit
from mcsp.kernels.spectral import EEG_BANDS_HZ
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


def classical_features(corpus: Corpus, units: Sequence[Unit], config: LabelledConfig) -> dict[Modality, np.ndarray]:
    """Connectivity for BOLD and band power for EEG, averaged over the windows of each unit.

    BOLD uses the parcels themselves where all units share them, else :func:`anchor_connectivity`.

    Args:
        corpus: where the recordings lie.
        units: a row of the result each.
        config: ``window_seconds`` (set) and ``windows_per_recording``.

    Returns:
        For every modality that any unit has: float64 ``(len(units), F)``, NaN rows where missing or where no position
        is known.
    """
    shared = same_channels(units, "fmri")
    features: dict[Modality, np.ndarray] = {}
    for modality in MODALITIES:
        means = UnitMean(len(units))
        for i, window in read_windows(corpus, units, modality, config, "classical features"):
            if modality == "eeg":
                vector = scalp_band_power(window)
            else:
                vector = parcel_connectivity(window) if shared else anchor_connectivity(window)
            if vector is not None:
                means.add(i, vector)
        mean = means.mean()
        if mean is not None:
            features[modality] = mean
    return features


def covariances(corpus: Corpus, units: Sequence[Unit], config: LabelledConfig) -> dict[Modality, np.ndarray]:
    """Shrunk covariances, averaged over the windows of each unit: float64 ``(len(units), C, C)``, positive definite.

    Ledoit and Wolf (2004). BOLD is standardised before, as nilearn's ConnectivityMeasure does; EEG keeps its amplitude.
    Channels are the recordings' own where all units share them, else scalp regions or points of the brain lattice.
    Arguments as in :func:`classical_features`.
    """
    found: dict[Modality, np.ndarray] = {}
    for modality in MODALITIES:
        shared = same_channels(units, modality)
        points_R3 = np.array(list(SCALP_REGIONS_MM.values())) if modality == "eeg" else brain_lattice_mm()
        sigma_mm = SCALP_SIGMA_MM if modality == "eeg" else BRAIN_SIGMA_MM
        means = UnitMean(len(units))
        for i, window in read_windows(corpus, units, modality, config, "covariance"):
            x_TC = _all_channels(window) if shared else _at_points(window, points_R3, sigma_mm, modality == "fmri")
            if x_TC is not None:
                if modality == "fmri":
                    x_TC = _standardised(x_TC)
                means.add(i, ledoit_wolf(x_TC)[0])
        mean = means.mean()
        if mean is not None:
            found[modality] = mean
    return found


def covariate_table(corpus: Corpus, units: Sequence[Unit], columns: Sequence[str]) -> np.ndarray | None:
    """Numeric columns of participants.tsv or of a recording's quality, ``(len(units), columns)``; NaN where missing.

    Text of exactly two values counts as 0 and 1 (sex, say). None where no column is asked for.

    Raises:
        ValueError: a column that no unit has, or text of more than two values.
    """
    if not columns:
        return None
    table = np.full((len(units), len(columns)), np.nan)
    for k, column in enumerate(columns):
        values = [_covariate(corpus, unit, column) for unit in units]
        texts = sorted({v for v in values if isinstance(v, str)})
        if all(v is None for v in values) or len(texts) not in (0, 2):
            raise ValueError(f"covariates: {column!r}: expected numbers or two values, found {texts[:5] or 'nothing'}")
        for i, value in enumerate(values):
            table[i, k] = np.nan if value is None else texts.index(value) if isinstance(value, str) else value
    return table


def _covariate(corpus: Corpus, unit: Unit, column: str) -> float | str | None:
    for recording in unit.recordings:
        value = corpus.participant(recording).get(column, json.loads(recording.quality).get(column))
        if value not in (None, "", "n/a"):
            return value if isinstance(value, str) else float(value)
    return None


def same_channels(units: Sequence[Unit], modality: Modality) -> bool:
    """Whether all recordings of one modality have the same channels in the same order."""
    return len({tuple(r.channels) for unit in units for r in unit.of(modality)}) == 1


def scalp_band_power(window: Window) -> np.ndarray | None:
    """log10 power per band and scalp region, ``(5 * 10,)``; None where no electrode position is known.

    Welch's estimate per channel (2 s frames), summed over the band, log10 of uV^2, then the mean over channels with
    Gaussian weights of the distance to the region.
    """
    x_TC, position_C3 = _usable(window)
    if x_TC.shape[1] == 0:
        return None
    frame = min(len(x_TC), round(WELCH_SECONDS * window.recording.sfreq))
    hz_F, density_FC = welch(x_TC, fs=window.recording.sfreq, nperseg=frame, axis=0)
    bands = [(hz_F >= low) & (hz_F < high) for low, high in EEG_BANDS_HZ.values()]
    power_5C = np.stack([density_FC[band].sum(axis=0) * (hz_F[1] - hz_F[0]) for band in bands])
    weights_RC = _gaussian_weights(np.array(list(SCALP_REGIONS_MM.values())), position_C3, SCALP_SIGMA_MM)
    return (np.log10(power_5C + 1e-6) @ weights_RC.T).ravel()


def parcel_connectivity(window: Window) -> np.ndarray:
    """Fisher z of the correlation of all pairs of parcels, ``(C * (C - 1) / 2,)``; 0 where a parcel is bad or flat."""
    return _fisher_z(_all_channels(window))


def anchor_connectivity(window: Window) -> np.ndarray | None:
    """The same between points of a lattice in MNI space, ``(A * (A - 1) / 2,)``; None where no position is known.

    Each parcel is standardised; a point's time course is the mean of parcels with Gaussian weights of their distance.
    """
    x_TA = _at_points(window, brain_lattice_mm(), BRAIN_SIGMA_MM, standardise=True)
    return None if x_TA is None else _fisher_z(x_TA)


def brain_lattice_mm() -> np.ndarray:
    """Points of a cubic lattice inside an ellipsoid about the size of the MNI152 brain, ``(A, 3)`` mm.

    Centre (0, -18, 10) and semi-axes (70, 88, 65) mm are read off the template's extent.
    """
    steps = np.arange(-3.5, 4.0) * BRAIN_SPACING_MM
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    return grid[((grid / [70.0, 88.0, 65.0]) ** 2).sum(axis=1) < 1.0] + [0.0, -18.0, 10.0]


def _usable(window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Good, finite, varying channels with a known position: ``x_TC`` float64 and ``position_C3`` mm."""
    position_C3 = window.recording.positions_C3
    usable_C = (
        np.asarray(window.recording.channel_good, dtype=bool)
        & np.isfinite(window.x_TC).all(axis=0)
        & (window.x_TC.std(axis=0) > 0)
        & np.isfinite(position_C3).all(axis=1)
    )
    return window.x_TC[:, usable_C].astype(np.float64), position_C3[usable_C].astype(np.float64)


def _all_channels(window: Window) -> np.ndarray:
    """``x_TC`` float64 of every channel; zero where a channel is bad."""
    good_C = np.asarray(window.recording.channel_good, dtype=bool) & np.isfinite(window.x_TC).all(axis=0)
    return np.where(good_C, window.x_TC, 0.0).astype(np.float64)


def _at_points(window: Window, points_R3: np.ndarray, sigma_mm: float, standardise: bool) -> np.ndarray | None:
    """Time courses of points as weighted means of channels, ``(T, R)``; None where no position is known."""
    x_TC, position_C3 = _usable(window)
    if x_TC.shape[1] == 0:
        return None
    x_TC = _standardised(x_TC) if standardise else x_TC
    return x_TC @ _gaussian_weights(points_R3, position_C3, sigma_mm).T


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


def _fisher_z(x_TC: np.ndarray) -> np.ndarray:
    """Upper triangle of arctanh(Pearson), correlations limited to 0.999; 0 for flat channels."""
    x_TC = x_TC - x_TC.mean(axis=0)
    norm_C = np.linalg.norm(x_TC, axis=0)
    x_TC = x_TC / np.where(norm_C > 0, norm_C, 1.0)
    correlation_CC = np.clip(x_TC.T @ x_TC, -0.999, 0.999)
    return np.arctanh(correlation_CC[np.triu_indices(x_TC.shape[1], 1)])
