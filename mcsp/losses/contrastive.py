"""What is compared: one embedding per modality, domain and view, of the rows of all ranks; and how precisely.

Shape letters: M slots, n rows of this rank, N rows of all ranks, K projection width, P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcsp.config import ObjectiveConfig
from mcsp.distributed import gather_rows
from mcsp.kernels.contrastive import Columns
from mcsp.kernels.dispatch import Precision
from mcsp.schema import DOMAINS, MODALITIES, VIEWS, Domain, Modality


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
