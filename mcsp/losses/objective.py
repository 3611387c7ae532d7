"""The whole objective: contrast within and across domains, contrast, distillation and convergence across modalities.

For modality m and domain d with views z, z' (L2-normalised projections) and NTXent as in
:func:`mcsp.kernels.contrastive.contrastive_loss`, over the batch of all ranks::

    L = sum_m [ within_domain * sum_d NTXent(z_md, z'_md) + cross_domain * sum_{d<d'} NTXent(z_md, z_md') ]
      + alpha * sum_d [ NTXent(z_fd, z_ed) + beta * KD_d + gamma * mean(1 - cos(z_fd, z_ed)) ]
      + prediction * sum_q e_q

with e_q the mean error of predicting one half of a window from the other (``mcsp/training/prediction.py``).
The first line follows TF-C (arXiv 2206.08496), which contrasts views within a domain and domains within a sample.
Arrangement, sums (not means) over terms and weights are ours; the paper of the method (arXiv 2409.19130) names
cross-domain contrast, cross-modal distillation within a domain and convergence across modalities, and its abstract
gives no formula.

Everything returned is this rank's **share**: shares of all ranks sum to the value that one process would find on the
whole batch, and so do their gradients. Where gradients are averaged over ranks, multiply the loss by ``world_size()``.

Shape letters: M slots, n rows of this rank, N rows of all ranks, K projection width, P contrasted pairs, Q predictions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor

from mcsp.config import ObjectiveConfig
from mcsp.distributed import gather_rows, rank
from mcsp.kernels.contrastive import Columns, contrastive_loss, relational_distillation, retrieval_accuracy
from mcsp.kernels.dispatch import Precision
from mcsp.schema import DOMAINS, MODALITIES, VIEWS, Domain, Modality

Target = Literal["connectivity", "spectrum"]


@dataclass(frozen=True)
class Slot:
    """One embedding of a sample; its place in the list is its index in a stack ``z_MnK``."""

    modality: Modality
    domain: Domain
    view: int


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


@dataclass(frozen=True)
class PairTerm:
    """One contrasted pair of slots."""

    name: str
    a: int
    b: int
    weight: float
    cross_modal: bool


@dataclass(frozen=True)
class PredictionTerm:
    """One target of the other half, predicted from one domain of one modality."""

    name: str
    modality: Modality
    domain: Domain
    target: Target
    slot: int  # one that is valid where the modality is there
    weight: float


def pair_terms(stack: Sequence[Slot], config: ObjectiveConfig) -> list[PairTerm]:
    """The contrasted pairs that the slots allow; a modality or domain that is not there has no terms.

    Names are ``eeg/spatial`` (two views), ``eeg/spatial-temporal`` (two domains, view 0) and ``fmri-eeg/spatial``
    (two modalities, view 0). The order is fixed by the slots, so that temperatures keep their place.
    """
    terms: list[PairTerm] = []
    for (a, left), (b, right) in combinations(enumerate(stack), 2):
        same_modality, same_domain = left.modality == right.modality, left.domain == right.domain
        if same_modality and same_domain:
            terms.append(PairTerm(f"{left.modality}/{left.domain}", a, b, config.within_domain, False))
        elif left.view or right.view:
            continue
        elif same_modality:
            name = f"{left.modality}/{left.domain}-{right.domain}"
            terms.append(PairTerm(name, a, b, config.cross_domain, False))
        elif same_domain:
            name = f"{left.modality}-{right.modality}/{left.domain}"
            terms.append(PairTerm(name, a, b, config.alpha, True))
    return terms


def initial_log_scale(stack: Sequence[Slot], terms: Sequence[PairTerm], config: ObjectiveConfig) -> Tensor:
    """Minus the logarithm of each term's initial temperature, (P,): of its domain, or the mean of its two domains'."""
    log_temperature = {d: math.log(config.domain_temperature.get(d, config.temperature)) for d in DOMAINS}
    pairs = [(stack[term.a].domain, stack[term.b].domain) for term in terms]
    return torch.tensor([-(log_temperature[a] + log_temperature[b]) / 2 for a, b in pairs])


def products(config: ObjectiveConfig, device: torch.device) -> Precision:
    """The precision of products of embeddings: ``config.precision``, and for "auto" that of autocast.

    "auto" is bf16 where autocast computes in bfloat16 on this device, else fp32.
    """
    if config.precision != "auto":
        return config.precision
    autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.bfloat16
    return "bf16" if autocast else "fp32"


def gather_columns(z_MnK: Tensor, valid_Mn: Tensor, subject_n: Tensor, site_n: Tensor) -> Columns:
    """The rows of all ranks, through two collectives: one with gradient for all embeddings, one without for the rest.

    This rank's rows start at ``rank() * n``. The gradient of a column returns to the rank that it came from. All ranks
    must hold the same M, n and K (the schedule gives every rank the same composition of samples).

    Args:
        z_MnK: embeddings.
        valid_Mn: bool.
        subject_n, site_n: int64 keys, equal where the subject or the site is.

    Raises:
        ValueError: shapes that do not fit, found before anything is sent.
    """
    if z_MnK.ndim != 3 or valid_Mn.shape != z_MnK.shape[:2] or valid_Mn.dtype != torch.bool:
        found = f"{tuple(z_MnK.shape)} and {valid_Mn.dtype} {tuple(valid_Mn.shape)}"
        raise ValueError(f"z_MnK and valid_Mn: expected (M, n, K) and bool (M, n), found {found}")
    for name, key_n in (("subject_n", subject_n), ("site_n", site_n)):
        if key_n.shape != z_MnK.shape[1:2] or key_n.dtype != torch.int64:
            found = f"{key_n.dtype} {tuple(key_n.shape)}"
            raise ValueError(f"{name}: expected int64 ({z_MnK.shape[1]},), found {found}")
    z_MNK = gather_rows(z_MnK, dim=1)
    facts = gather_rows(torch.cat([valid_Mn.to(torch.int64), subject_n[None], site_n[None]]), dim=1)
    return Columns(z_MNK, facts[:-2].bool(), facts[-2], facts[-1])


def convergence(z_MnK: Tensor, pairs: Sequence[tuple[int, int]], valid_Mn: Tensor, columns: Columns) -> Tensor:
    """Mean of 1 - cos(z_a, z_b) over rows valid in both, this rank's share of it per pair, (P,); between 0 and 2.

    The alignment term of Wang and Isola (arXiv 2005.10242), halved, taken across modalities. The anchors of
    all ranks, told by the columns, are the divisor; a pair without an anchor is 0.
    """
    assert columns.valid_MN is not None, "gather_columns always fills it"
    z_MnK = z_MnK if z_MnK.dtype == torch.float64 else z_MnK.float()
    shares: list[Tensor] = []
    for a, b in pairs:
        both_n = valid_Mn[a] & valid_Mn[b]
        left, right = (z_MnK[i].masked_fill(~both_n[:, None], 0) for i in (a, b))
        distance_n = 1 - torch.nn.functional.cosine_similarity(left, right, dim=-1)
        anchors = (columns.valid_MN[a] & columns.valid_MN[b]).sum().clamp(min=1)
        shares.append(torch.where(both_n, distance_n, 0).sum() / anchors)
    return torch.stack(shares)


def prediction_loss(error_Qn: Tensor, terms: Sequence[PredictionTerm], valid_Mn: Tensor, columns: Columns) -> Tensor:
    """This rank's share of each prediction's mean error, (Q,); a term without a valid row on any rank is 0."""
    assert columns.valid_MN is not None, "gather_columns always fills it"
    if not terms:
        return error_Qn.sum(1)
    of_term = [term.slot for term in terms]
    counts_Q = columns.valid_MN[of_term].sum(1).clamp(min=1)
    return torch.where(valid_Mn[of_term], error_Qn, 0.0).sum(1) / counts_Q


def objective(
    z_MnK: Tensor,
    valid_Mn: Tensor,
    scale_P: Tensor,
    error_Qn: Tensor,
    subject_n: Tensor,
    site_n: Tensor,
    config: ObjectiveConfig,
    terms: Sequence[PairTerm],
    predictions: Sequence[PredictionTerm] = (),
    retrieval: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """This rank's share of the loss and of each term.

    Args:
        z_MnK: L2-normalised projections, one plane per slot; the arithmetic is float32 (float64 for float64).
        valid_Mn: bool, False where a sample lacks the slot's modality.
        scale_P: inverse temperature of each term.
        error_Qn: each sample's error of each prediction; whatever where a sample lacks the modality. (0, n) without.
        subject_n, site_n: int64 keys, as in :class:`mcsp.batch.Batch`.
        config: weights, distillation temperature, and which negatives are kept.
        terms: from :func:`pair_terms`.
        predictions: from ``prediction_terms`` of that file.
        retrieval: find the accuracies of retrieval too, which takes as long as the contrast.

    Returns:
        The loss, a scalar, and unweighted terms without gradient by name: each pair's contrast, ``distillation/<pair>``
        and ``convergence/<pair>`` (absent where their weight is 0), ``prediction/...``, and
        ``top1/<pair>``, the accuracy of finding a row's partner among other subjects' rows.

    Raises:
        ValueError: shapes that do not fit.
    """
    if error_Qn.shape != (expected := (len(predictions), z_MnK.shape[1])):
        raise ValueError(f"error_Qn: expected {expected}, predictions and rows, found {tuple(error_Qn.shape)}")
    columns = gather_columns(z_MnK, valid_Mn, subject_n, site_n)
    of_rows: dict[str, Any] = {"valid_Mn": valid_Mn, "subject_n": subject_n, "columns": columns}
    of_rows["row_offset"] = rank() * z_MnK.shape[1]
    among = of_rows | {"site_n": site_n, "negatives": config.negatives, "precision": products(config, z_MnK.device)}
    pairs = [(term.a, term.b) for term in terms]
    contrast_P = contrastive_loss(z_MnK, pairs, scale_P, **among)
    parts = {term.name: (term.weight, value) for term, value in zip(terms, contrast_P, strict=True)}
    parts |= _between_modalities(z_MnK, [term for term in terms if term.cross_modal], config, among)
    shares = prediction_loss(error_Qn, predictions, valid_Mn, columns)
    parts |= {term.name: (term.weight, share) for term, share in zip(predictions, shares, strict=True)}
    # Gradient caching asks for the gradient of error_Qn, also where it is (0, n) and no term.
    loss = torch.stack([weight * value for weight, value in parts.values()]).sum() + 0.0 * shares.sum()
    logged = {name: value.detach() for name, (_, value) in parts.items()}
    if retrieval:
        top1_P = retrieval_accuracy(z_MnK, pairs, **of_rows)
        logged |= {f"top1/{term.name}": value for term, value in zip(terms, top1_P, strict=True)}
    return loss, logged


def _between_modalities(
    z_MnK: Tensor, terms: Sequence[PairTerm], config: ObjectiveConfig, among: dict[str, Any]
) -> dict[str, tuple[float, Tensor]]:
    """Weight and share of each distillation and convergence; of none whose weight is 0."""
    pairs, parts = [(term.a, term.b) for term in terms], dict[str, tuple[float, Tensor]]()
    weight_kd, weight_cos = config.alpha * config.beta, config.alpha * config.gamma
    if terms and weight_kd > 0:
        fixed_P = z_MnK.new_full((len(terms),), 1 / config.distillation_temperature, dtype=torch.float64)
        shares = relational_distillation(z_MnK, pairs, fixed_P, **among)
        parts |= {f"distillation/{term.name}": (weight_kd, share) for term, share in zip(terms, shares, strict=True)}
    if terms and weight_cos > 0:
        shares = convergence(z_MnK, pairs, among["valid_Mn"], among["columns"])
        parts |= {f"convergence/{term.name}": (weight_cos, share) for term, share in zip(terms, shares, strict=True)}
    return parts
