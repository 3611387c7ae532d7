"""Contrast across ranks: what every rank's rows are compared with, and how often.

Shape letters: M stacked embeddings, n rows of this rank, N rows of all ranks, K projection width, P pairs.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mcsp.distributed import gather_rows, over_ranks, rank, world_size
from mcsp.kernels.contrastive import Columns, Negatives, contrastive_loss

Gather = Literal["both", "one"]
# What one CPU core multiplies [1/s], what an all-reduce between processes takes [s], and what it passes on [bytes/s].
# Orders of magnitude; a factor of ten in any of them moves the choice to batches where the two differ by little.
FLOPS, LATENCY, BANDWIDTH = 3e10, 1e-3, 1e9


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


def gather_mode(rows: int, total: int, pairs: int, width: int, device: str) -> Gather:
    """Whether rows of both embeddings of a pair (a, b) meet all columns of the other, or only rows of a those of b.

    A product is 2 n N K operations. "both" makes two per pair forward and six backward (similarities again, gradient
    of rows, gradient of columns, for two directions), "one" one and three, so it saves 8 P n N K operations. It pays
    with one more collective, the all-reduce of P (N + 1) sums, each of which passes a process twice in 4 bytes; (the
    rare redo of extreme logits takes two more). Gathering embeddings and returning their gradients is the same in both,
    since one collective serves all pairs and nearly every embedding stands on either side of some pair. So "one" where

        8 P n N K / FLOPS  >  LATENCY + 8 P (N + 1) / BANDWIDTH

    With the constants that is about when P n N K exceeds 4 million. On a GPU it is always "both": the Triton version
    has no other, and nobody measured the rest there. The answer rests on what is equal on all ranks.
    """
    if device != "cpu":
        return "both"
    saved = 8 * pairs * rows * total * width / FLOPS
    return "one" if saved > LATENCY + 8 * pairs * (total + 1) / BANDWIDTH else "both"


def contrast(
    z_MnK: Tensor,
    pairs: Sequence[tuple[int, int]],
    scale_P: Tensor,
    valid_Mn: Tensor,
    subject_n: Tensor,
    site_n: Tensor,
    negatives: Negatives,
    columns: Columns,
    gather: Gather | None = None,
) -> Tensor:
    """This rank's shares (P,) of :func:`mcsp.kernels.contrastive.contrastive_loss` over the rows of all ranks.

    Args:
        columns: from :func:`gather_columns`.
        gather: default :func:`gather_mode` of the sizes. "one" takes no Triton, and has a collective in the forward
            pass; all ranks must then hold equal ``scale_P`` and weigh their shares alike.
    """
    rows, width = z_MnK.shape[1:]
    gather = gather or gather_mode(rows, columns.z_MND.shape[1], len(pairs), width, z_MnK.device.type)
    return contrastive_loss(
        z_MnK,
        pairs,
        scale_P,
        valid_Mn=valid_Mn,
        subject_n=subject_n,
        site_n=site_n,
        negatives=negatives,
        columns=columns,
        row_offset=rank() * rows,
        combine=over_ranks if gather == "one" and world_size() > 1 else None,
    )
