"""Terms across modalities beside the contrast: distillation within a domain, and convergence.

Shape letters: M slots, n rows of this rank, N rows of all ranks, K projection width, P pairs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mcsp.config import ObjectiveConfig
from mcsp.kernels.contrastive import Columns, relational_distillation
from mcsp.losses.contrastive import products


def distillation(
    z_MnK: Tensor,
    pairs: Sequence[tuple[int, int]],
    valid_Mn: Tensor,
    subject_n: Tensor,
    site_n: Tensor,
    columns: Columns,
    row_offset: int,
    config: ObjectiveConfig,
) -> Tensor:
    """Each modality's similarities within the batch teach the other's; this rank's share per pair, (P,).

    See :func:`mcsp.kernels.contrastive.relational_distillation`. The columns are those that are kept as negatives, at
    the fixed ``config.distillation_temperature``.
    """
    scale = 1 / config.distillation_temperature
    return relational_distillation(
        z_MnK,
        pairs,
        torch.full((len(pairs),), scale, device=z_MnK.device, dtype=torch.float64),
        valid_Mn=valid_Mn,
        subject_n=subject_n,
        site_n=site_n,
        negatives=config.negatives,
        columns=columns,
        row_offset=row_offset,
        precision=products(config, z_MnK.device),
    )


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
