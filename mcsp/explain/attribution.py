"""Integrated gradients of a classifier's score per channel and frequency band, from controls to cases.

Integrated gradients (Sundararajan et al., ICML 2017, through captum) need a starting point. Silence is a bad one: a
spectrum's logarithm has no value there, and connectivity does not change with volume at all. So the path leads from a
window of a unit of the negative class to one of a unit of the positive class, of the same site and channels. The
attributions of a pair sum to the difference of their two scores, and their mean over pairs says which channels and
bands hold the classes apart. Bands add up because a window is the sum of its bands.

The weights of a linear read-out do not say where a signal is: a weight may be there to cancel noise. The forward
pattern does (Haufe et al., NeuroImage 2014): for one score, the covariance of each quantity (band power per electrode,
edges between parcels) with it. Here it is their correlation over units that the classifier was not fitted on, both
without the mean of their site, so that it needs no gradient and holds for any classifier.

Shape letters: B rows, C channels, T time samples, K bands, the last of them all that lies in no other, F features,
N units, Q quantities.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from captum.attr import IntegratedGradients
from scipy.stats import spearmanr
from torch import Tensor, nn

from mcsp.batch import Signal, collate, rows_of
from mcsp.evaluate.measured import Points, connectivity, series
from mcsp.evaluate.readout.grams import without_means
from mcsp.kernels.spectral import BOLD_BANDS_HZ, EEG_BANDS_HZ
from mcsp.model.mcsp import MCSP
from mcsp.schema import Modality, Window

BANDS_HZ: Mapping[Modality, Mapping[str, tuple[float, float]]] = {"eeg": EEG_BANDS_HZ, "fmri": BOLD_BANDS_HZ}
OTHER_BAND = "other"
_ROWS_AT_ONCE = 16  # points of the line that go through the model together
Score = Callable[[Signal], Tensor]  # (B,), higher for the positive class


def split_bands(x_BCT: Tensor, sfreq: float, modality: Modality) -> Tensor:
    """Parts ``(B, K, C, T)`` of a signal that sum to it, cut without overlap in the discrete Fourier transform."""
    hz_F = torch.fft.rfftfreq(x_BCT.shape[-1], 1 / sfreq, dtype=torch.float64)
    spectrum_BCF = torch.fft.rfft(x_BCT)
    parts = [
        torch.fft.irfft(spectrum_BCF * ((hz_F >= low) & (hz_F < high)).to(x_BCT), x_BCT.shape[-1])
        for low, high in BANDS_HZ[modality].values()
    ]
    return torch.stack([*parts, x_BCT - torch.stack(parts).sum(0)], 1)


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier on ``model.features`` of one modality."""

    model: MCSP
    modality: Modality
    weight_F: Tensor  # float64
    bias: float

    def __call__(self, signal: Signal) -> Tensor:
        """Scores ``(B,)``."""
        return self.model.features({self.modality: signal})[self.modality].double() @ self.weight_F + self.bias


@dataclass(frozen=True)
class FinetunedScore:
    """A fine-tuned model on one modality: the difference of its two logits."""

    classifier: nn.Module
    modality: Modality

    def __call__(self, signal: Signal) -> Tensor:
        """Scores ``(B,)``; every row is a unit of its own."""
        rows = len(signal)
        own = signal.replace(sample_B=torch.arange(rows, device=signal.x_BCT.device))
        logits_BO = self.classifier({self.modality: own}, rows)
        return logits_BO[:, 1] - logits_BO[:, 0]


@dataclass(frozen=True)
class Attribution:
    """Of one pair of windows, or of the mean over several."""

    value_CK: np.ndarray  # in units of the score; 0 for a channel that is bad in either window
    difference: float  # score of the positive window minus that of the negative one


def attribute_pair(score: Score, positive: Window, negative: Window, modality: Modality, steps: int) -> Attribution:
    """Integrated gradients along the straight line from the negative to the positive window.

    Both see the channels and time samples that are valid in both.

    Args:
        score: of the classifier.
        positive, negative: windows with the same channels, rate and length.
        modality: of both.
        steps: points of Gauss-Legendre quadrature on the line.

    Raises:
        ValueError: windows that differ in channels, rate or length.
    """
    a, b = positive.recording, negative.recording
    if a.channels != b.channels or a.sfreq != b.sfreq or positive.x_TC.shape != negative.x_TC.shape:
        raise ValueError(
            f"attribution: expected two windows of the same channels, rate and length, found {a.key} with "
            f"{positive.x_TC.shape} at {a.sfreq:g} Hz and {b.key} with {negative.x_TC.shape} at {b.sfreq:g} Hz"
        )
    both = collate([[positive], [negative]]).signals[modality]
    channel_valid_1C = both.channel_valid_BC.all(0, keepdim=True)
    time_valid_1T = both.time_valid_BT.all(0, keepdim=True)
    mask_1CT = channel_valid_1C[:, :, None] & time_valid_1T[:, None]
    parts_BKCT = split_bands(both.x_BCT * mask_1CT, a.sfreq, modality)
    # Masked again: a filter reaches into masked time.
    parts_BKCT = parts_BKCT * mask_1CT[:, None]
    rest = rows_of(both, [0]).replace(
        channel_valid_BC=channel_valid_1C,
        time_valid_BT=time_valid_1T,
        position_valid_BC=both.position_valid_BC.all(0, keepdim=True) & channel_valid_1C,
    )

    def scored(x_BKCT: Tensor) -> Tensor:
        rows = rows_of(rest, [0] * len(x_BKCT))
        return score(rows.replace(x_BCT=x_BKCT.sum(1), sample_B=torch.arange(len(x_BKCT))))

    found = IntegratedGradients(scored).attribute(
        parts_BKCT[:1], baselines=parts_BKCT[1:], n_steps=steps, internal_batch_size=_ROWS_AT_ONCE
    )
    with torch.no_grad():
        high, low = scored(parts_BKCT).tolist()
    return Attribution(found[0].sum(-1).T.double().numpy(), high - low)


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
    q_NQ, s_N = (without_means(np.asarray(v, dtype=float), np.asarray(sites)) for v in (quantity_NQ, score_N))
    scale_Q = np.sqrt((q_NQ**2).sum(0) * (s_N**2).sum())
    covariance_Q = s_N @ q_NQ
    # Rounding leaves constants a spread of about 1e-16 of their size.
    varying_Q = np.isfinite(scale_Q) & (scale_Q > 1e-9 * np.abs(np.nan_to_num(quantity_NQ)).max(0, initial=1e-12))
    return np.divide(covariance_Q, scale_Q, out=np.zeros(len(scale_Q)), where=varying_Q)


def agreement(a_Q: np.ndarray, b_Q: np.ndarray) -> float | None:
    """Spearman's correlation of two patterns or maps; None where one is constant."""
    return float(spearmanr(a_Q, b_Q).statistic) if np.ptp(a_Q) > 0 and np.ptp(b_Q) > 0 else None


def as_matrix(edge_Q: np.ndarray, n_channels: int) -> np.ndarray:
    """Symmetric ``(C, C)`` with a zero diagonal from the pairs above it."""
    out_CC = np.zeros((n_channels, n_channels))
    out_CC[np.triu_indices(n_channels, 1)] = edge_Q
    return out_CC + out_CC.T
