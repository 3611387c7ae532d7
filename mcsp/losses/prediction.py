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

Shape letters: M slots, n rows of this rank, B rows of a modality, Q predictions, E numbers of a target.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mcsp.config import ObjectiveConfig
from mcsp.kernels.contrastive import Columns
from mcsp.losses.contrastive import Slot
from mcsp.schema import Domain, Modality

Target = Literal["connectivity", "spectrum"]
MEASURED_IN: dict[Target, Domain] = {"connectivity": "spatial", "spectrum": "spectral"}
# What h of a domain predicts: what it is made from, and of the course in time both.
TARGETS: dict[Domain, tuple[Target, ...]] = {
    "spatial": ("connectivity",),
    "temporal": ("connectivity", "spectrum"),
    "spectral": ("spectrum",),
}


@dataclass(frozen=True)
class PredictionTerm:
    """One target of the other half, predicted from one domain of one modality."""

    name: str
    modality: Modality
    domain: Domain
    target: Target
    slot: int  # one that is valid where the modality is there
    weight: float


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


def prediction_loss(error_Qn: Tensor, terms: Sequence[PredictionTerm], valid_Mn: Tensor, columns: Columns) -> Tensor:
    """This rank's share of each prediction's mean error, (Q,); a term without a valid row on any rank is 0."""
    assert columns.valid_MN is not None, "gather_columns always fills it"
    if not terms:
        return error_Qn.sum(1)
    of_term = [term.slot for term in terms]
    counts_Q = columns.valid_MN[of_term].sum(1).clamp(min=1)
    return torch.where(valid_Mn[of_term], error_Qn, 0.0).sum(1) / counts_Q
