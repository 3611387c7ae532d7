"""Prediction across windows: from one half of a window, the other half's connectivity and spectrum.

For a prediction p_n and the target y_n of sample n, both E numbers, and their means over people, m_p and m_y::

    e_n = 1 - corr(p_n - m_p, y_n - m_y)        L_q = mean_n e_n, over samples that have the modality

corr is Pearson's correlation over the E numbers, so e is 1 where nothing of what sets a person apart from the average
is predicted, and 0 where its pattern is predicted in full. The means are parameters that follow predictions and
targets, each with the gradient of ``|y_n - m|^2 / (2 E)`` alone; without them a term would be small as soon as the
average over people is known. Targets have no gradient. They are measured on the other half of the window as it is,
without augmentation, by all of its channels.

Predicting one window from another is an old idea (for EEG: relative positioning and contrastive predictive coding of
Banville et al., arXiv 2007.16104); what is predicted here, and this loss, are ours. Telling people apart by two of
their windows is nearly solved before training, and so teaches little; this is not.

The heads are linear in h; pretraining needs them, an export does not hold them.

Shape letters: B rows of a modality, A anchors, F frequency bins, P frequency patches, E numbers of a target, K numbers
per anchor.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import reduce
from torch import Tensor, nn

from mcsp.config import ObjectiveConfig
from mcsp.losses.objective import PredictionTerm, Slot, Target
from mcsp.model.mcsp import MCSP, Measured
from mcsp.model.spatial import Channels, Connectivity, SpatialEncoder
from mcsp.model.spectral import BINS_PER_PATCH, SpectralEncoder, Spectrum
from mcsp.model.tangent import upper_triangle
from mcsp.schema import Domain, Modality

MEASURED_IN: dict[Target, Domain] = {"connectivity": "spatial", "spectrum": "spectral"}
# What h of a domain predicts: what it is made from, and of the course in time both.
TARGETS: dict[Domain, tuple[Target, ...]] = {
    "spatial": ("connectivity",),
    "temporal": ("connectivity", "spectrum"),
    "spectral": ("spectrum",),
}
# AdamW moves a parameter by about the learning rate in a step, whatever it stands for: times this, the mean over people
# has arrived within some tens of steps.
MEAN_SCALE = 20.0


def prediction_terms(stack: Sequence[Slot], config: ObjectiveConfig, halves: Sequence[Domain]) -> list[PredictionTerm]:
    """Predictions of the domains whose views are opposite halves; none where their weight is 0.

    A target that belongs to a domain that the model does not have is left out. Names are like
    ``prediction/eeg/temporal-spectrum``.
    """
    domains = {slot.domain for slot in stack}
    return [
        PredictionTerm(
            f"prediction/{slot.modality}/{slot.domain}-{target}",
            slot.modality,
            slot.domain,
            target,
            i,
            config.prediction,
        )
        for i, slot in enumerate(stack)
        if config.prediction > 0 and slot.view == 0 and slot.domain in halves
        for target in TARGETS[slot.domain]
        if MEASURED_IN[target] in domains
    ]


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


def prediction_error(
    predicted_BE: Tensor, target_BE: Tensor, mean_predicted_E: Tensor, mean_target_E: Tensor
) -> Tensor:
    """``e`` of the module's docstring for each row, (B,), between 0 and 2, with the gradients of the means added."""
    target_BE = target_BE.detach()
    sides = [predicted_BE - mean_predicted_E.detach(), target_BE - mean_target_E.detach()]
    a_BE, b_BE = (side - side.mean(1, keepdim=True) for side in sides)
    error_B = 1 - torch.nn.functional.cosine_similarity(a_BE, b_BE, dim=1, eps=1e-6)
    follow_B = (mean_target_E - target_BE).square().mean(1) / 2
    follow_B = follow_B + (mean_predicted_E - predicted_BE.detach()).square().mean(1) / 2
    return error_B + (follow_B - follow_B.detach())
