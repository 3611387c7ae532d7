"""Linear heads that predict the other half of a window from h; pretraining needs them, an export does not hold them.

Shape letters: B rows, A anchors, F frequency bins, P frequency patches, E numbers of a target, K numbers
per anchor.
"""

from typing import NamedTuple

import torch
from einops import reduce
from torch import Tensor, nn

from mcsp.losses.prediction import Target
from mcsp.model.mcsp import MCSP, Measured
from mcsp.model.spatial import Channels, Connectivity, SpatialEncoder
from mcsp.model.spectral import BINS_PER_PATCH, SpectralEncoder, Spectrum
from mcsp.model.tangent import upper_triangle
from mcsp.schema import Domain, Modality

# AdamW moves a parameter by about the learning rate in a step, whatever it stands for: times this, the mean over people
# has arrived within some tens of steps.
MEAN_SCALE = 20.0


def connectivity_of(encoder: SpatialEncoder, channels: Channels, weights_BAC: Tensor) -> Tensor:
    """Logarithm, or root, of the correlation of all pairs of anchors, ``(B, A (A - 1) / 2)``, of measured channels."""
    return upper_triangle(encoder.correlation(channels, weights_BAC, encoder.form))


def spectrum_of(measured: Spectrum) -> Tensor:
    """Log10 power at every anchor, averaged over patches of frequencies, ``(B, A * P)``."""
    return reduce(measured.power_BAF, "b a (p f) -> b (a p)", "mean", f=BINS_PER_PATCH)


def target_of(measured: Measured) -> tuple[Target, Tensor] | None:
    """What heads predict of what a domain measured, and its name; None of the temporal domain."""
    if isinstance(measured, Connectivity):  # the first measure is the correlation's form
        return "connectivity", upper_triangle(measured.measures_BKAA[:, 0])
    return ("spectrum", spectrum_of(measured)) if isinstance(measured, Spectrum) else None


class Prediction(NamedTuple):
    """What a head says of h, in float32 at least."""

    predicted_BE: Tensor
    mean_predicted_E: Tensor  # over people
    mean_target_E: Tensor


class PredictionHead(nn.Module):
    """``h -> Prediction`` of ``count`` numbers, linear in h.

    With ``anchors`` h holds that many tokens, and the numbers are the pairs of anchors: the pair (a, b) is then
    ``(w_b . h_a + w_a . h_b) / 2`` with one w per anchor, so that a token has to hold its own anchor's connectivity.
    """

    def __init__(self, h_width: int, count: int, anchors: int = 0) -> None:
        super().__init__()
        self.anchors = anchors
        self.read = nn.Linear(h_width // anchors if anchors else h_width, anchors or count, bias=False)
        self.mean_predicted_E = nn.Parameter(torch.zeros(count))
        self.mean_target_E = nn.Parameter(torch.zeros(count))

    @classmethod
    def of(cls, model: MCSP, modality: Modality, domain: Domain, target: str) -> "PredictionHead":
        """The head that predicts ``target`` from h of one domain of ``model``.

        From the spatial domain's own h it starts with the connectivity that h was made from: the pseudo-inverse of the
        way there, of which only the step through few numbers per anchor loses anything.
        """
        encoder = model.encoder(modality, domain)
        anchors = model.config.anchors(modality)
        if target == "spectrum":
            spectral = model.encoder(modality, "spectral")
            assert isinstance(spectral, SpectralEncoder)
            return cls(encoder.h_width, anchors * spectral.n_patches)
        pairs = anchors * (anchors - 1) // 2
        if not isinstance(encoder, SpatialEncoder):
            return cls(encoder.h_width, pairs)
        head = cls(encoder.h_width, pairs, anchors)
        head.start_at(encoder)
        return head

    @torch.no_grad()
    def start_at(self, encoder: SpatialEncoder) -> None:
        """Undo the way from connectivity to h, as far as it goes."""
        way_KA = encoder.encoder.narrow.weight @ encoder.embed.weight[:, : self.anchors]
        self.read.weight.copy_(torch.linalg.pinv(way_KA))

    def forward(self, h_BD: Tensor) -> Prediction:
        """Predict from the h of each row."""
        wide = torch.float64 if self.mean_target_E.dtype == torch.float64 else torch.float32
        if self.anchors:
            square_BAA = self.read(h_BD.unflatten(1, (self.anchors, -1)))
            predicted_BE = upper_triangle(square_BAA + square_BAA.mT) / 2
        else:
            predicted_BE = self.read(h_BD)
        means = (MEAN_SCALE * mean_E.to(wide) for mean_E in (self.mean_predicted_E, self.mean_target_E))
        return Prediction(predicted_BE.to(wide), *means)
