"""Correlation of measured quantities with a classifier's score: band power per electrode, edges between parcels.

The weights of a linear read-out do not say where a signal is: a weight may be there to cancel noise. The forward
pattern does (Haufe et al., NeuroImage 2014): for one score, the covariance of each quantity with it. Here it is their
correlation over units that the classifier was not fitted on, both without the mean of their site, so that it needs no
gradient and holds for any classifier.

Shape letters: N units, C channels, T time samples, K bands, Q quantities.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import spearmanr

from mcsp.evaluate.measured import Points, connectivity, series
from mcsp.explain.attribution import BANDS_HZ, split_bands
from mcsp.schema import Modality, Window

FEWEST_UNITS = 8  # that a correlation is taken over


def measured(windows: Sequence[Window], modality: Modality) -> np.ndarray:
    """Mean over windows of log10 band power ``(C * K,)`` [log10 uV^2], or of Fisher z between all pairs of parcels.

    Pairs are in the order of ``np.triu_indices(C, 1)``. A channel that is bad or flat has NaN power and edges of 0.
    """
    return np.mean([_of_window(window, modality) for window in windows], axis=0)


def _of_window(window: Window, modality: Modality) -> np.ndarray:
    if modality == "fmri":
        x_TC = series(window, Points(None), standardise=True)
        assert x_TC is not None
        return connectivity(x_TC)
    x_1CT = torch.from_numpy(window.x_TC.T.astype(np.float64) * window.scale)[None]
    power_KC = split_bands(x_1CT, window.recording.sfreq, "eeg")[0, : len(BANDS_HZ["eeg"])].square().mean(-1).numpy()
    usable_C = np.asarray(window.recording.channel_good, dtype=bool) & (window.x_TC.std(axis=0) > 0)
    with np.errstate(divide="ignore"):
        return np.where(usable_C, np.log10(power_KC), np.nan).T.ravel()


def pattern(quantity_NQ: np.ndarray, score_N: np.ndarray, sites: Sequence[str]) -> np.ndarray:
    """Correlation ``(Q,)`` of each quantity with the score, within sites; 0 where a quantity is missing or constant."""
    site_N = np.unique(np.asarray(sites), return_inverse=True)[1]
    q_NQ, s_N = (_without_site_mean(np.asarray(v, dtype=float), site_N) for v in (quantity_NQ, score_N))
    scale_Q = np.sqrt((q_NQ**2).sum(0) * (s_N**2).sum())
    covariance_Q = s_N @ q_NQ
    # Rounding leaves constants a spread of about 1e-16 of their size.
    varying_Q = np.isfinite(scale_Q) & (scale_Q > 1e-9 * np.abs(np.nan_to_num(quantity_NQ)).max(0, initial=1e-12))
    return np.divide(covariance_Q, scale_Q, out=np.zeros(len(scale_Q)), where=varying_Q)


def _without_site_mean(v_N: np.ndarray, site_N: np.ndarray) -> np.ndarray:
    out = v_N.copy()
    for site in np.unique(site_N):
        out[site_N == site] -= v_N[site_N == site].mean(0)
    return out


def agreement(a_Q: np.ndarray, b_Q: np.ndarray) -> float | None:
    """Spearman's correlation of two patterns or maps; None where one is constant."""
    return float(spearmanr(a_Q, b_Q).statistic) if np.ptp(a_Q) > 0 and np.ptp(b_Q) > 0 else None


def as_matrix(edge_Q: np.ndarray, n_channels: int) -> np.ndarray:
    """Symmetric ``(C, C)`` with a zero diagonal from the pairs above it."""
    out_CC = np.zeros((n_channels, n_channels))
    out_CC[np.triu_indices(n_channels, 1)] = edge_Q
    return out_CC + out_CC.T
