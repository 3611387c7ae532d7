"""Spatial domain: functional connectivity on fixed anchor positions, attention over anchors.

Shape letters: B rows, C channels, A anchors, T time samples, K connectivity measures, D width.
"""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from mcsp.batch import Signal
from mcsp.config import ModelConfig
from mcsp.kernels.spectral import EEG_BANDS_HZ, imaginary_coherence
from mcsp.model.layers import SIZES, AnchorWeights, Mask, Masked, TokenEncoder, at_least, standardise
from mcsp.model.tangent import log_by_eigenvectors, log_correlation, upper_triangle
from mcsp.schema import Modality

COHERENCE_FRAME_SECONDS = 2.0  # half a hertz of resolution: two bins and more in the narrowest band
TYPICAL_CONNECTIVITY = 0.25  # root mean square of Fisher z between anchors, for the scale of the first weights


def fisher_z(unit_BCT: Tensor, time_valid_BT: Tensor) -> Tensor:
    """Fisher z of the correlation of standardised channels over valid time ``(B, C, C)``, with a zero diagonal."""
    count = time_valid_BT.sum(-1).clamp_min(1).to(unit_BCT.dtype)[:, None, None]
    correlation = (unit_BCT @ unit_BCT.mT / count).clamp(-0.999, 0.999)
    diagonal = torch.eye(unit_BCT.shape[1], dtype=torch.bool, device=unit_BCT.device)
    return torch.atanh(correlation).masked_fill(diagonal, 0.0)


class Connectivity(NamedTuple):
    """What the spatial domain measures on a window, at the anchors."""

    measures_BKAA: Tensor  # Fisher z of Pearson correlation, and for EEG imaginary coherence of each band
    level_BA: Tensor  # log10 standard deviation
    weights_BAC: Tensor  # from channels to anchors
    unit_BCT: Tensor  # standardised time courses of channels, zero where not valid
    valid_BT: Tensor


class SpatialEncoder(nn.Module):
    """``Signal -> h``: tokens are anchors, each holding its connectivity to all anchors; h keeps them apart.

    Pearson for BOLD; for EEG imaginary coherence per band beside it, which volume conduction cannot produce (Nolte et
    al. 2004). h is ``narrow(x + 0.1 f(x))`` for tokens x that are linear in connectivity: near the identity, so a
    linear probe reads from h what it reads from connectivity, and training adds to that. The skips are measured, not
    learned: connectivity, its tangent-space form (:mod:`mcsp.model.tangent`), and coherence.
    """

    def __init__(self, config: ModelConfig, modality: Modality) -> None:
        super().__init__()
        width = SIZES[config.size][0]
        self.modality = modality
        self.n_anchors = config.eeg_anchors if modality == "eeg" else config.fmri_anchors
        self.logarithm = log_by_eigenvectors
        self.bands_hz = list(EEG_BANDS_HZ.values()) if modality == "eeg" else []
        self.n_measures = 1 + len(self.bands_hz)
        self.anchors = AnchorWeights(modality, self.n_anchors)
        inputs = self.n_measures * self.n_anchors
        self.embed = nn.Linear(inputs, width)
        self.amplitude = nn.Linear(1, width)
        # Tokens of about unit size, of which connectivity is the largest part and amplitude a small one.
        nn.init.normal_(self.embed.weight, std=1 / (TYPICAL_CONNECTIVITY * math.sqrt(inputs)))
        nn.init.normal_(self.amplitude.weight, std=0.1)
        self.place_AD = nn.Parameter(torch.randn(self.n_anchors, width) * 0.02)
        self.encoder = TokenEncoder(config.size, self.n_anchors, resolved=True)
        self.h_width = self.encoder.h_width
        self.source_shape = self.n_anchors, inputs  # tokens, numbers that each is made from
        pairs = self.n_anchors * (self.n_anchors - 1) // 2
        every: dict[str, int] = {"connectivity": pairs, "tangent": pairs + self.n_anchors}
        if modality == "eeg":
            every["coherence"] = len(self.bands_hz) * pairs
        self.skip_widths: dict[str, int] = {name: count for name, count in every.items() if name in config.skips}

    def forward(self, signal: Signal, kept_BAA: Tensor | None = None, mask: Mask | None = None) -> Tensor | Masked:
        """Encode the windows of one modality; connections that are not kept count as zero.

        With a mask also without the connections of some anchors: they are hidden from these anchors' tokens and from
        all others'.
        """
        measured = self.measure(signal)
        seen = _without(measured, kept_BAA)
        if mask is None:
            return self.encode(seen)
        hidden_BA = mask.hide(torch.ones_like(measured.level_BA, dtype=torch.bool))
        shown = _without(seen, ~(hidden_BA[:, :, None] | hidden_BA[:, None]))
        tokens_BAD = torch.where(hidden_BA[..., None], mask.stand_in_D, self._tokens(shown))
        return Masked(self.encode(seen), self._attend(tokens_BAD), _rows(measured), hidden_BA)

    def measure(self, signal: Signal, coherence: bool = True) -> Connectivity:
        """Connectivity of the windows at the anchors; ``coherence=False`` leaves Pearson alone."""
        weights_BAC = self.anchors(signal)
        x_BCT = signal.x_BCT * signal.channel_valid_BC[..., None]
        unit_BCT, log_std_BC = standardise(x_BCT, signal.time_valid_BT)
        measures = fisher_z(unit_BCT, signal.time_valid_BT)[:, None]
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
            measures = torch.cat([measures, coherence_BKCC.to(measures.dtype)], 1)
        return Connectivity(
            torch.einsum("bac,bkcd,bed->bkae", weights_BAC, measures, weights_BAC),
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

    def _attend(self, tokens_BAD: Tensor) -> Tensor:
        return self.encoder.attend(tokens_BAD + self.place_AD, _all_valid(tokens_BAD))

    def skips(self, measured: Connectivity) -> dict[str, Tensor]:
        """The measured part of features, ``(B, F)`` each, where ``config.skips`` names them."""
        found: dict[str, Tensor] = {}
        if "connectivity" in self.skip_widths:
            found["connectivity"] = upper_triangle(measured.measures_BKAA[:, 0])
        if "tangent" in self.skip_widths:
            course_BAT = measured.weights_BAC.to(measured.unit_BCT.dtype) @ measured.unit_BCT
            log_BAA = log_correlation(course_BAT, measured.valid_BT, self.logarithm)
            found["tangent"] = upper_triangle(log_BAA, diagonal=True)
        if "coherence" in self.skip_widths:
            found["coherence"] = upper_triangle(measured.measures_BKAA[:, 1:]).flatten(1)
        return found


def _without(measured: Connectivity, kept_BAA: Tensor | None) -> Connectivity:
    """With zero for the connections that are not kept."""
    if kept_BAA is None:
        return measured
    return measured._replace(measures_BKAA=measured.measures_BKAA * kept_BAA[:, None])


def _rows(measured: Connectivity) -> Tensor:
    return rearrange(measured.measures_BKAA, "b k a e -> b a (k e)")


def _all_valid(tokens_BAD: Tensor) -> Tensor:
    return torch.ones(tokens_BAD.shape[:2], dtype=torch.bool, device=tokens_BAD.device)
