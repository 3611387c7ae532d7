"""Classical features, computed from the same windows as the model's: what a pretrained model has to beat.

BOLD: functional connectivity (Pearson correlation, Fisher z). EEG: log power of the usual bands over scalp regions.
Sites differ in montage and parcellation, so both are brought to a common set of positions where they have to be.

Shape letters: T time samples, C channels, R regions, A anchors.
"""

from collections.abc import Sequence

import numpy as np
from scipy.signal import welch

from mcsp.config import EvaluateConfig
from mcsp.data_sharding.reader import Corpus
from mcsp.downstream.features import SampleMean, read_windows
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


def classical_features(corpus: Corpus, keys: Sequence[str], config: EvaluateConfig) -> dict[Modality, np.ndarray]:
    """Connectivity for BOLD and band power for EEG, averaged over the windows of each sample.

    BOLD uses the parcels themselves where all samples share them, else :func:`anchor_connectivity`.

    Args:
        corpus: where the samples lie.
        keys: sample keys; a row of the result each.
        config: ``window_seconds`` (set) and ``windows_per_recording``.

    Returns:
        For every modality that any sample has: float64 ``(len(keys), F)``, NaN rows where missing or where no position
        is known.
    """
    shared = shared_parcels(corpus, keys)
    features: dict[Modality, np.ndarray] = {}
    for modality in MODALITIES:
        means = SampleMean(len(keys))
        for i, window in read_windows(corpus, keys, modality, config, "classical features"):
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


def shared_parcels(corpus: Corpus, keys: Sequence[str]) -> bool:
    """Whether all BOLD recordings of the samples have the same parcels in the same order."""
    samples = corpus.samples()
    return len({tuple(r.channels) for key in keys for r in samples[key] if r.modality == "fmri"}) == 1


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
    good_C = np.asarray(window.recording.channel_good, dtype=bool) & np.isfinite(window.x_TC).all(axis=0)
    return _fisher_z(np.where(good_C, window.x_TC, 0.0))


def anchor_connectivity(window: Window) -> np.ndarray | None:
    """The same between points of a lattice in MNI space, ``(A * (A - 1) / 2,)``; None where no position is known.

    Each parcel is standardised; a point's time course is the mean of parcels with Gaussian weights of their distance.
    """
    x_TC, position_C3 = _usable(window)
    if x_TC.shape[1] == 0:
        return None
    x_TC = (x_TC - x_TC.mean(axis=0)) / x_TC.std(axis=0)
    return _fisher_z(x_TC @ _gaussian_weights(brain_lattice_mm(), position_C3, BRAIN_SIGMA_MM).T)


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
