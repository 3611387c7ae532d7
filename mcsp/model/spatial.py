"""Spatial domain: functional connectivity between fixed anchor positions, attention over anchors.

Shape letters: B rows, C channels, A anchors, T time samples, K connectivity measures, D width.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from mcsp.batch import Signal
from mcsp.config import ModelConfig
from mcsp.kernels.spectral import EEG_BANDS_HZ, imaginary_coherence
from mcsp.model.layers import SIZES, AnchorWeights, TokenEncoder, at_least, standardise
from mcsp.model.tangent import log_correlation, root_correlation, unit_triangle, upper_triangle
from mcsp.schema import Modality

COHERENCE_FRAME_SECONDS = 2.0  # half a hertz of resolution: two bins and more in the narrowest band
TYPICAL_LOG = 0.15  # root mean square of the log-correlation between anchors, for the scale of the first weights


def fisher_z(unit_BCT: Tensor, time_valid_BT: Tensor) -> Tensor:
    """Fisher z of the correlation of standardised channels over valid time ``(B, C, C)``, with a zero diagonal."""
    count = time_valid_BT.sum(-1).clamp_min(1).to(unit_BCT.dtype)[:, None, None]
    correlation = (unit_BCT @ unit_BCT.mT / count).clamp(-0.999, 0.999)
    diagonal = torch.eye(unit_BCT.shape[1], dtype=torch.bool, device=unit_BCT.device)
    return torch.atanh(correlation).masked_fill(diagonal, 0.0)


class Connectivity(NamedTuple):
    """What the spatial domain measures on a window, at the anchors."""

    measures_BKAA: Tensor  # log-correlation, and for EEG imaginary coherence of each band
    level_BA: Tensor  # log10 standard deviation
    weights_BAC: Tensor  # from channels to anchors
    unit_BCT: Tensor  # standardised time courses of channels, zero where not valid
    valid_BT: Tensor


class SpatialEncoder(nn.Module):
    """``Signal -> h``: tokens are anchors, each holding its connectivity to all anchors; h keeps them apart.

    Connectivity is the matrix logarithm of the anchors' correlation (:mod:`mcsp.model.tangent`); for EEG imaginary
    coherence per band beside it, which volume conduction cannot produce (Nolte et al. 2004). h is ``narrow(x + 0.1
    f(x))`` for tokens x that are linear in connectivity: near the identity, so a linear probe reads from h what it
    reads from connectivity, and training adds to that. The skips are measured, not learned: Pearson correlation, its
    square root, its logarithm, and coherence.
    """

    def __init__(self, config: ModelConfig, modality: Modality) -> None:
        super().__init__()
        width = SIZES[config.size][0]
        self.modality = modality
        self.n_anchors = config.anchors(modality)
        # Other formulations than the device's own.
        self.logarithm: Callable[[Tensor], Tensor] | None = None
        self.root: Callable[[Tensor], Tensor] | None = None
        self.bands_hz = list(EEG_BANDS_HZ.values()) if modality == "eeg" else []
        self.n_measures = 1 + len(self.bands_hz)
        self.anchors = AnchorWeights(modality, self.n_anchors)
        inputs = self.n_measures * self.n_anchors
        self.embed = nn.Linear(inputs, width)
        self.amplitude = nn.Linear(1, width)
        # Tokens of about unit size, of which connectivity is the largest part and amplitude a small one.
        nn.init.normal_(self.embed.weight, std=1 / (TYPICAL_LOG * math.sqrt(inputs)))
        nn.init.normal_(self.amplitude.weight, std=0.1)
        self.place_AD = nn.Parameter(torch.randn(self.n_anchors, width) * 0.02)
        self.encoder = TokenEncoder(config.size, self.n_anchors, resolved=True)
        self.h_width = self.encoder.h_width
        pairs = self.n_anchors * (self.n_anchors - 1) // 2
        every: dict[str, int] = {"connectivity": pairs, "root": pairs, "tangent": pairs + self.n_anchors}
        if modality == "eeg":
            every["coherence"] = len(self.bands_hz) * pairs
        self.skip_widths: dict[str, int] = {name: count for name, count in every.items() if name in config.skips}

    def forward(self, signal: Signal) -> Tensor:
        """Encode the windows of one modality."""
        return self.encode(self.measure(signal))

    def measure(self, signal: Signal, coherence: bool = True) -> Connectivity:
        """Connectivity of the windows at the anchors; ``coherence=False`` leaves the log-correlation alone."""
        weights_BAC = self.anchors(signal)
        x_BCT = signal.x_BCT * signal.channel_valid_BC[..., None]
        unit_BCT, log_std_BC = standardise(x_BCT, signal.time_valid_BT)
        course_BAT = weights_BAC.to(unit_BCT.dtype) @ unit_BCT
        measures_BKAA = log_correlation(course_BAT, signal.time_valid_BT, self.logarithm)[:, None]
        if self.bands_hz and coherence:
            framed = at_least(signal, COHERENCE_FRAME_SECONDS)
            coherence_BKCC = imaginary_coherence(
                framed.x_BCT * framed.channel_valid_BC[..., None],
                framed.sfreq_B,
                self.bands_hz,
                time_valid_BT=framed.time_valid_BT,
                frame_seconds=COHERENCE_FRAME_SECONDS,
                hop_seconds=COHERENCE_FRAME_SECONDS,
            )
            coherence_BKAA = _at_anchors(weights_BAC, coherence_BKCC.to(measures_BKAA.dtype))
            measures_BKAA = torch.cat([measures_BKAA, coherence_BKAA], 1)
        return Connectivity(
            measures_BKAA,
            torch.einsum("bac,bc->ba", weights_BAC, log_std_BC),
            weights_BAC,
            unit_BCT,
            signal.time_valid_BT,
        )

    def encode(self, measured: Connectivity) -> Tensor:
        """``h`` of what :meth:`measure` found, ``(B, A * k)``."""
        tokens_BAD = self._tokens(measured)
        h: Tensor = self.encoder(tokens_BAD + self.place_AD, _all_valid(tokens_BAD))
        return h

    def _tokens(self, measured: Connectivity) -> Tensor:
        dtype = self.embed.weight.dtype
        tokens_BAD: Tensor = self.embed(_rows(measured).to(dtype))
        return tokens_BAD + self.amplitude(measured.level_BA[..., None].to(dtype))

    def skips(self, measured: Connectivity) -> dict[str, Tensor]:
        """The measured part of features, ``(B, F)`` each, where ``config.skips`` names them."""
        found: dict[str, Tensor] = {}
        if "connectivity" in self.skip_widths:
            pearson_BCC = fisher_z(measured.unit_BCT, measured.valid_BT)
            found["connectivity"] = upper_triangle(_at_anchors(measured.weights_BAC, pearson_BCC[:, None])[:, 0])
        if "root" in self.skip_widths:
            course_BAT = measured.weights_BAC.to(measured.unit_BCT.dtype) @ measured.unit_BCT
            found["root"] = unit_triangle(root_correlation(course_BAT, measured.valid_BT, self.root))
        if "tangent" in self.skip_widths:
            found["tangent"] = upper_triangle(measured.measures_BKAA[:, 0], diagonal=True)
        if "coherence" in self.skip_widths:
            found["coherence"] = upper_triangle(measured.measures_BKAA[:, 1:]).flatten(1)
        return found


def _rows(measured: Connectivity) -> Tensor:
    """What each anchor's token is made from; without the diagonal of the logarithm, much of which all windows share."""
    diagonal = torch.eye(measured.measures_BKAA.shape[-1], dtype=torch.bool, device=measured.level_BA.device)
    return rearrange(measured.measures_BKAA.masked_fill(diagonal, 0.0), "b k a e -> b a (k e)")


def _at_anchors(weights_BAC: Tensor, measures_BKCC: Tensor) -> Tensor:
    return torch.einsum("bac,bkcd,bed->bkae", weights_BAC, measures_BKCC, weights_BAC)


def _all_valid(tokens_BAD: Tensor) -> Tensor:
    return torch.ones(tokens_BAD.shape[:2], dtype=torch.bool, device=tokens_BAD.device)
