"""Losses over all pairs of stacked embeddings in plain dense PyTorch: the definition for faster versions.

All functions take this process's rows and compare them with *columns*: the rows of all processes, or, where
``columns`` is omitted, the same rows. Given columns, a result is this process's **share**: the sum over its own
anchors divided by the number of anchors of all processes, so that shares sum to the one-process value, and so do
their gradients. Nothing here knows a process group.

Arithmetic is float64 for float64 embeddings and float32 for all others.

Shape letters: M embeddings, n rows of this process, N rows of all processes, D width, P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Negatives = Literal["all", "within_site"]


@dataclass(frozen=True)
class Columns:
    """The rows of all processes, in order of rank; rows ``row_offset : row_offset + n`` are this process's own."""

    z_MND: Tensor
    valid_MN: Tensor | None = None  # bool; None: all valid
    subject_N: Tensor | None = None  # int64; None: every row is a subject of its own
    site_N: Tensor | None = None  # int64


@dataclass(frozen=True)
class _Rows:
    """Checked inputs: rows and columns of the P pairs, and what may be compared with what."""

    a: list[int]
    b: list[int]
    z_MnD: Tensor
    z_MND: Tensor
    valid_Mn: Tensor
    valid_MN: Tensor
    other_nN: Tensor  # True where the column is another subject's (and of the same site, if asked)

    def sides(self, left: list[int], right: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of ``left`` (P, n, D), rows of ``right`` (P, n, D) and columns of ``right`` (P, N, D)."""
        # unbind and stack have a deterministic backward; indexing adds atomically on CUDA and threaded CPUs.
        rows, columns = self.z_MnD.unbind(0), self.z_MND.unbind(0)
        return (
            torch.stack([rows[i] for i in left]),
            torch.stack([rows[i] for i in right]),
            torch.stack([columns[i] for i in right]),
        )

    def share(self, value_Pn: Tensor) -> Tensor:
        """Sum of ``value_Pn`` over this process's anchors, over the number of all anchors; (P,)."""
        anchor_Pn = self.valid_Mn[self.a] & self.valid_Mn[self.b]
        anchors_P = (self.valid_MN[self.a] & self.valid_MN[self.b]).sum(1).clamp(min=1)
        return torch.where(anchor_Pn, value_Pn, 0).sum(1) / anchors_P


def contrastive_loss(
    z_MnD: Tensor,
    pairs_P2: Tensor | Sequence[tuple[int, int]],
    scale_P: Tensor,
    *,
    valid_Mn: Tensor | None = None,
    subject_n: Tensor | None = None,
    site_n: Tensor | None = None,
    negatives: Negatives = "all",
    columns: Columns | None = None,
    row_offset: int = 0,
) -> Tensor:
    """Symmetric InfoNCE (arXiv 1807.03748, 2103.00020) of each pair (a, b) of embeddings, masked.

    For an anchor i (valid in a and in b) and the direction a -> b, with similarities s_ij = scale <a_i, b_j>::

        l_i = -log( exp s_ii / (exp s_ii + sum_j exp s_ij) ),   j valid in b, of another subject [, of the same site]

    and the loss is the mean of l_i over anchors and over both directions. It is computed as
    softplus(logsumexp_j s_ij - s_ii), which keeps its relative accuracy when the positive dominates.
    A row without a negative contributes 0, and a pair without an anchor is 0.

    Args:
        z_MnD: embeddings, L2-normalised by the caller; values of invalid rows do not matter.
        pairs_P2: indices (a, b) into M.
        scale_P: inverse temperatures; differentiable.
        valid_Mn: bool, default all True.
        subject_n: int64; rows of one subject are never negatives of each other. Default: all differ.
        site_n: int64, needed for ``negatives="within_site"``.
        negatives: "all", or "within_site" to keep the scanner's signature from telling rows apart.
        columns: rows of all processes; the result is then this process's share (see the module).
        row_offset: position of this process's first row within the columns.

    Returns:
        (P,) losses or shares, float32 or float64.

    Raises:
        ValueError: shapes that do not fit, a pair index out of range, or within_site without sites.
    """
    rows = _checked(z_MnD, pairs_P2, valid_Mn, subject_n, site_n, negatives, columns, row_offset)
    scale_P = _checked_scale(scale_P, len(rows.a), rows.z_MnD)
    loss_Pn = 0.5 * (_direction(rows, rows.a, rows.b, scale_P) + _direction(rows, rows.b, rows.a, scale_P))
    return rows.share(loss_Pn)


def _direction(rows: _Rows, left: list[int], right: list[int], scale_P: Tensor) -> Tensor:
    """Loss of each row as anchor of ``left`` against ``right``; (P, n), 0 without a negative."""
    anchor_PnD, positive_PnD, columns_PND = rows.sides(left, right)
    keep_PnN = rows.other_nN & rows.valid_MN[right][:, None]
    some_Pn = keep_PnN.any(-1)
    positive_Pn = (anchor_PnD * positive_PnD).sum(-1) * scale_P[:, None]
    logits_PnN = _similarities(anchor_PnD, columns_PND) * scale_P[:, None, None]
    # Rows without negatives get finite logits, as logsumexp of nothing has no gradient; they are dropped below.
    logits_PnN = logits_PnN.masked_fill(~keep_PnN & some_Pn[..., None], -torch.inf)
    excess_Pn = torch.logsumexp(logits_PnN, -1) - positive_Pn
    # Above the threshold softplus is the identity, with an error of exp(-threshold).
    return torch.where(some_Pn, torch.nn.functional.softplus(excess_Pn, threshold=60.0), 0)


def relational_distillation(
    z_MnD: Tensor,
    pairs_P2: Tensor | Sequence[tuple[int, int]],
    scale_P: Tensor,
    *,
    valid_Mn: Tensor | None = None,
    subject_n: Tensor | None = None,
    site_n: Tensor | None = None,
    negatives: Negatives = "all",
    columns: Columns | None = None,
    row_offset: int = 0,
) -> Tensor:
    """Each embedding's similarities within the batch teach those of the other embedding of its pair.

    For a row i valid in both embeddings of (a, b) and the columns j valid in both and kept as in
    :func:`contrastive_loss` (never i itself or its subject)::

        t = softmax_j(scale <a_i, a_j>),  s = softmax_j(scale <b_i, b_j>),  l_i = KL(t || s),  no gradient through t

    and the loss is the mean over such rows and over both choices of the teacher; a row without columns contributes 0.
    Distillation by similarity structure follows Relational Knowledge Distillation (arXiv 1904.05068) and SEED
    (arXiv 2101.04731); taking each modality as the other's teacher is our choice. Arguments, result and errors are
    those of :func:`contrastive_loss`; ``scale_P`` is the inverse distillation temperature.
    """
    rows = _checked(z_MnD, pairs_P2, valid_Mn, subject_n, site_n, negatives, columns, row_offset)
    scale_P = _checked_scale(scale_P, len(rows.a), rows.z_MnD)
    keep_PnN = rows.other_nN & (rows.valid_MN[rows.a] & rows.valid_MN[rows.b])[:, None]
    some_Pn = keep_PnN.any(-1)
    dropped_PnN = ~keep_PnN & some_Pn[..., None]
    log_shares = []
    for side in (rows.a, rows.b):
        row_PnD, _, columns_PND = rows.sides(side, side)
        logits_PnN = _similarities(row_PnD, columns_PND) * scale_P[:, None, None]
        log_share = torch.log_softmax(logits_PnN.masked_fill(dropped_PnN, -torch.inf), -1)
        log_shares.append(log_share.masked_fill(~keep_PnN, 0))
    log_a, log_b = log_shares
    teacher_a, teacher_b = log_a.detach(), log_b.detach()
    divergence = teacher_a.exp() * (teacher_a - log_b) + teacher_b.exp() * (teacher_b - log_a)
    return rows.share(0.5 * torch.where(keep_PnN, divergence, 0).sum(-1))


@torch.no_grad()
def retrieval_accuracy(
    z_MnD: Tensor,
    pairs_P2: Tensor | Sequence[tuple[int, int]],
    *,
    valid_Mn: Tensor | None = None,
    subject_n: Tensor | None = None,
    columns: Columns | None = None,
    row_offset: int = 0,
) -> Tensor:
    """Top-1 accuracy of finding a row's own b among other subjects' b by its a, and the other way round; (P,).

    The mean over anchors and both directions, or this process's share of it. A tie is a miss, so that collapsed
    embeddings score 0; a row without a competitor is a hit. Arguments and errors as in :func:`contrastive_loss`.
    """
    rows = _checked(z_MnD, pairs_P2, valid_Mn, subject_n, None, "all", columns, row_offset)
    hits: list[Tensor] = []
    for left, right in ((rows.a, rows.b), (rows.b, rows.a)):
        anchor_PnD, _, columns_PND = rows.sides(left, right)
        similarity_PnN = _similarities(anchor_PnD, columns_PND)
        own_n = torch.arange(row_offset, row_offset + z_MnD.shape[1], device=z_MnD.device)
        # Taken from the same product as its competitors, so that rounding does not tell equal embeddings apart.
        own_Pn = similarity_PnN.gather(2, own_n.expand(len(left), -1)[..., None])[..., 0]
        keep_PnN = rows.other_nN & rows.valid_MN[right][:, None]
        hits.append(own_Pn > similarity_PnN.masked_fill(~keep_PnN, -torch.inf).amax(-1))
    return rows.share(0.5 * (hits[0].to(rows.z_MnD.dtype) + hits[1].to(rows.z_MnD.dtype)))


def _similarities(rows_PnD: Tensor, columns_PND: Tensor) -> Tensor:
    with torch.autocast(rows_PnD.device.type, enabled=False):
        return torch.bmm(rows_PnD, columns_PND.transpose(1, 2))


def _checked_scale(scale_P: Tensor, pairs: int, like: Tensor) -> Tensor:
    if scale_P.shape != (pairs,):
        raise ValueError(f"scale_P: expected shape ({pairs},), one per pair, found {tuple(scale_P.shape)}")
    return scale_P.to(like)


def _checked(
    z_MnD: Tensor,
    pairs_P2: Tensor | Sequence[tuple[int, int]],
    valid_Mn: Tensor | None,
    subject_n: Tensor | None,
    site_n: Tensor | None,
    negatives: Negatives,
    columns: Columns | None,
    row_offset: int,
) -> _Rows:
    """Check shapes and fill in defaults; zero invalid rows, so that whatever they hold stays out of gradients."""
    if z_MnD.ndim != 3 or min(z_MnD.shape) < 1 or not z_MnD.is_floating_point():
        raise ValueError(f"z_MnD: expected a floating tensor (M, n, D), found {z_MnD.dtype} {tuple(z_MnD.shape)}")
    stack, n, width = z_MnD.shape
    pairs = [(int(a), int(b)) for a, b in (pairs_P2.tolist() if isinstance(pairs_P2, Tensor) else pairs_P2)]
    if not pairs or any(not 0 <= i < stack for pair in pairs for i in pair):
        raise ValueError(f"pairs_P2: expected at least one pair of indices from 0 to {stack - 1}, found {pairs}")
    columns = columns or Columns(z_MnD, valid_Mn, subject_n, site_n)
    total = columns.z_MND.shape[1]
    _expect("columns.z_MND", columns.z_MND, (stack, total, width))
    if not 0 <= row_offset <= total - n:
        raise ValueError(f"row_offset: expected 0 to {total - n} ({n} rows of {total} columns), found {row_offset}")
    if (subject_n is None) != (columns.subject_N is None):
        raise ValueError("columns.subject_N: expected exactly where subject_n is given")
    if subject_n is None or columns.subject_N is None:
        subject_N = torch.arange(total, device=z_MnD.device)
        subject_n = subject_N[row_offset : row_offset + n]
    else:
        subject_N = columns.subject_N
    other_nN = _expect("subject_n", subject_n, (n,))[:, None] != _expect("columns.subject_N", subject_N, (total,))
    if negatives == "within_site":
        if site_n is None or columns.site_N is None:
            raise ValueError("negatives='within_site': expected site_n (and columns.site_N), found None")
        other_nN &= _expect("site_n", site_n, (n,))[:, None] == _expect("columns.site_N", columns.site_N, (total,))
    elif negatives != "all":
        raise ValueError(f"negatives: expected 'all' or 'within_site', found {negatives!r}")
    valid_Mn = _mask("valid_Mn", valid_Mn, z_MnD)
    valid_MN = _mask("columns.valid_MN", columns.valid_MN, columns.z_MND)
    dtype = torch.float64 if z_MnD.dtype == torch.float64 else torch.float32
    z_MnD = z_MnD.to(dtype).masked_fill(~valid_Mn[..., None], 0)
    z_MND = columns.z_MND.to(dtype).masked_fill(~valid_MN[..., None], 0)
    return _Rows([a for a, _ in pairs], [b for _, b in pairs], z_MnD, z_MND, valid_Mn, valid_MN, other_nN)


def _mask(name: str, valid: Tensor | None, z: Tensor) -> Tensor:
    if valid is None:
        return torch.ones(z.shape[:2], dtype=torch.bool, device=z.device)
    if valid.dtype != torch.bool:
        raise ValueError(f"{name}: expected bool, found {valid.dtype}")
    return _expect(name, valid, tuple(z.shape[:2]))


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, found {tuple(tensor.shape)}")
    return tensor
