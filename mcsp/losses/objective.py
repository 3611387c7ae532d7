"""The whole objective: contrast within and across domains, contrast, distillation and convergence across modalities.

For modality m and domain d with views z, z' (L2-normalised projections) and NTXent as in
:func:`mcsp.kernels.contrastive.contrastive_loss`, over the batch of all ranks::

    L = sum_m [ sum_d NTXent(z_md, z'_md) + cross_domain * sum_{d<d'} NTXent(z_md, z_md') ]
      + alpha * sum_d [ NTXent(z_fd, z_ed) + beta * KD_d + gamma * mean(1 - cos(z_fd, z_ed)) ]

The first line follows TF-C (arXiv 2206.08496), which contrasts views within a domain and domains within a sample.
Arrangement, sums (not means) over terms and weights are ours; the paper of the method (arXiv 2409.19130) names
cross-domain contrast, cross-modal distillation within a domain and convergence across modalities, and its abstract
gives no formula.

Everything returned is this rank's **share**: shares of all ranks sum to the value that one process would find on the
whole batch, and so do their gradients. Where gradients are averaged over ranks, multiply the loss by ``world_size()``.

Shape letters: M slots, n rows of this rank, K projection width, P contrasted pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from mcsp.config import ObjectiveConfig
from mcsp.distributed import rank
from mcsp.kernels.contrastive import retrieval_accuracy
from mcsp.losses.contrastive import Gather, contrast, gather_columns
from mcsp.losses.cross_modal import convergence, distillation
from mcsp.schema import DOMAINS, MODALITIES, Domain, Modality

VIEWS = (0, 1)


@dataclass(frozen=True)
class Slot:
    """One embedding of a sample; its place in the list is its index in a stack ``z_MnK``."""

    modality: Modality
    domain: Domain
    view: int


@dataclass(frozen=True)
class PairTerm:
    """One contrasted pair of slots."""

    name: str
    a: int
    b: int
    weight: float
    cross_modal: bool


def slots(modalities: Sequence[Modality], domains: Sequence[Domain]) -> list[Slot]:
    """One slot per modality, domain and view, in the order of the schema, whatever the order of the arguments."""
    return [
        Slot(modality, domain, view)
        for modality in MODALITIES
        if modality in modalities
        for domain in DOMAINS
        if domain in domains
        for view in VIEWS
    ]


def pair_terms(stack: Sequence[Slot], config: ObjectiveConfig) -> list[PairTerm]:
    """The contrasted pairs that the slots allow; a modality or domain that is not there has no terms.

    Names are ``eeg/spatial`` (two views), ``eeg/spatial-temporal`` (two domains, view 0) and ``fmri-eeg/spatial``
    (two modalities, view 0). The order is fixed by the slots, so that temperatures keep their place.
    """
    terms: list[PairTerm] = []
    for (a, left), (b, right) in combinations(enumerate(stack), 2):
        same_modality, same_domain = left.modality == right.modality, left.domain == right.domain
        if same_modality and same_domain:
            terms.append(PairTerm(f"{left.modality}/{left.domain}", a, b, 1.0, False))
        elif left.view or right.view:
            continue
        elif same_modality:
            name = f"{left.modality}/{left.domain}-{right.domain}"
            terms.append(PairTerm(name, a, b, config.cross_domain, False))
        elif same_domain:
            name = f"{left.modality}-{right.modality}/{left.domain}"
            terms.append(PairTerm(name, a, b, config.alpha, True))
    return terms


def objective(
    z_MnK: Tensor,
    valid_Mn: Tensor,
    scale_P: Tensor,
    subject_n: Tensor,
    site_n: Tensor,
    config: ObjectiveConfig,
    terms: Sequence[PairTerm],
    gather: Gather | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """This rank's share of the loss and of each term.

    Args:
        z_MnK: L2-normalised projections, one plane per slot; the arithmetic is float32 (float64 for float64).
        valid_Mn: bool, False where a sample lacks the slot's modality.
        scale_P: inverse temperature of each term.
        subject_n, site_n: int64 keys, as in :class:`mcsp.batch.Batch`.
        config: weights, distillation temperature, and which negatives are kept.
        terms: from :func:`pair_terms`.
        gather: how ranks share the contrast's products, default :func:`mcsp.losses.contrastive.gather_mode`.

    Returns:
        The loss, a scalar, and unweighted terms without gradient by name: each pair's contrast, ``distillation/<pair>``
        and ``convergence/<pair>`` (absent where their weight is 0), and ``top1/<pair>``, the accuracy of finding a
        row's partner among other subjects' rows.

    Raises:
        ValueError: shapes that do not fit.
    """
    columns = gather_columns(z_MnK, valid_Mn, subject_n, site_n)
    offset = rank() * z_MnK.shape[1]
    pairs = [(term.a, term.b) for term in terms]
    contrast_P = contrast(z_MnK, pairs, scale_P, valid_Mn, subject_n, site_n, config.negatives, columns, gather)
    parts = {term.name: (term.weight, value) for term, value in zip(terms, contrast_P, strict=True)}
    crossing = [term for term in terms if term.cross_modal]
    cross_pairs = [(term.a, term.b) for term in crossing]
    if crossing and config.alpha * config.beta > 0:
        shares = distillation(z_MnK, cross_pairs, valid_Mn, subject_n, site_n, columns, offset, config)
        weight = config.alpha * config.beta
        parts |= {f"distillation/{term.name}": (weight, share) for term, share in zip(crossing, shares, strict=True)}
    if crossing and config.alpha * config.gamma > 0:
        shares = convergence(z_MnK, cross_pairs, valid_Mn, columns)
        weight = config.alpha * config.gamma
        parts |= {f"convergence/{term.name}": (weight, share) for term, share in zip(crossing, shares, strict=True)}
    loss = torch.stack([weight * value for weight, value in parts.values()]).sum()
    logged = {name: value.detach() for name, (_, value) in parts.items()}
    top1_P = retrieval_accuracy(
        z_MnK, pairs, valid_Mn=valid_Mn, subject_n=subject_n, columns=columns, row_offset=offset
    )
    logged |= {f"top1/{term.name}": value for term, value in zip(terms, top1_P, strict=True)}
    return loss, logged
