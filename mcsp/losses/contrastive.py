"""Contrast across ranks: what every rank's rows are compared with, and how precisely.

Shape letters: M stacked embeddings, n rows of this rank, N rows of all ranks, K projection width, P pairs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mcsp.config import ObjectiveConfig
from mcsp.distributed import gather_rows, rank
from mcsp.kernels.contrastive import Columns, contrastive_loss
from mcsp.kernels.dispatch import Precision


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


def contrast(
    z_MnK: Tensor,
    pairs: Sequence[tuple[int, int]],
    scale_P: Tensor,
    valid_Mn: Tensor,
    subject_n: Tensor,
    site_n: Tensor,
    config: ObjectiveConfig,
    columns: Columns,
) -> Tensor:
    """This rank's shares (P,) of :func:`mcsp.kernels.contrastive.contrastive_loss` over the rows of all ranks.

    Args:
        columns: from :func:`gather_columns`.
    """
    return contrastive_loss(
        z_MnK,
        pairs,
        scale_P,
        valid_Mn=valid_Mn,
        subject_n=subject_n,
        site_n=site_n,
        negatives=config.negatives,
        columns=columns,
        row_offset=rank() * z_MnK.shape[1],
        precision=products(config, z_MnK.device),
    )
