"""Losses over all pairs of stacked embeddings in plain dense PyTorch: the definition for faster versions.

All functions take this process's rows and compare them with *columns*: the rows of all processes, or, where
``columns`` is omitted, the same rows. Given columns, a result is this process's **share**: the sum over its own
anchors divided by the number of anchors of all processes, so that shares sum to the one-process value, and so do
their gradients. Nothing here knows a process group.

Arithmetic is float64 for float64 embeddings and float32 for all others. Formulas and arguments:
:mod:`mcsp.kernels.contrastive.losses`.

Shape letters: M embeddings, n rows of this process, N rows of all processes, D width, P pairs.
"""

from typing import Any

import torch
from torch import Tensor

from mcsp.kernels.contrastive.blocks import multiplying
from mcsp.kernels.contrastive.problem import Problem


def _sides(problem: Problem, left: list[int], right: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of ``left`` (P, n, D), rows of ``right`` (P, n, D) and columns of ``right`` (P, N, D)."""
    # unbind and stack have a deterministic backward; indexing adds atomically on CUDA and threaded CPUs.
    rows, columns = problem.z_MnD.unbind(0), problem.z_MND.unbind(0)
    return (
        torch.stack([rows[i] for i in left]),
        torch.stack([rows[i] for i in right]),
        torch.stack([columns[i] for i in right]),
    )


def _share(problem: Problem, value_Pn: Tensor) -> Tensor:
    """Sum of ``value_Pn`` over this process's anchors, over the number of all anchors, times weights; (P,)."""
    anchors_P = (problem.valid_MN[problem.a] & problem.valid_MN[problem.b]).sum(1).clamp(min=1)
    share_P = torch.where(problem.anchors(), value_Pn, 0).sum(1) / anchors_P
    return share_P if problem.weight_P is None else share_P * problem.weight_P


def contrast(problem: Problem, scale_P: Tensor) -> Tensor:
    """See :func:`mcsp.kernels.contrastive.losses.contrastive_loss`; (P,)."""
    ab = _direction(problem, problem.a, problem.b, scale_P)
    return _share(problem, 0.5 * (ab + _direction(problem, problem.b, problem.a, scale_P))).to(scale_P)


class _Scaled(torch.autograd.Function):
    """``(similarities (P, n, N), scales (P,) in float64) -> logits``; the scales' gradients are summed in float64."""

    @staticmethod
    def forward(ctx: Any, x_PnN: Tensor, scale_P: Tensor) -> Tensor:
        ctx.save_for_backward(x_PnN, scale_P)
        return x_PnN * scale_P.to(x_PnN)[:, None, None]

    @staticmethod
    def backward(ctx: Any, grad_PnN: Tensor) -> tuple[Tensor, Tensor]:
        x_PnN, scale_P = ctx.saved_tensors
        grad_P = (grad_PnN * x_PnN).sum(2).sum(1, dtype=torch.float64)  # rows in float32: faster, and none is long
        return grad_PnN * scale_P.to(x_PnN)[:, None, None], grad_P


def _direction(problem: Problem, left: list[int], right: list[int], scale_P: Tensor) -> Tensor:
    """Loss of each row as anchor of ``left`` against ``right``; (P, n), 0 without a negative."""
    anchor_PnD, positive_PnD, columns_PND = _sides(problem, left, right)
    keep_PnN = problem.other() & problem.valid_MN[right][:, None]
    some_Pn = keep_PnN.any(-1)
    # In float64, as positives cancel against competitors, and the terms of a scale's gradient against each other.
    scale_P = scale_P.double()
    positive_Pn = (anchor_PnD.double() * positive_PnD.double()).sum(-1) * scale_P[:, None]
    logits_PnN = _Scaled.apply(_similarities(anchor_PnD, columns_PND), scale_P)
    # Rows without negatives get finite logits, as the logarithm of nothing has no gradient; they are dropped below.
    logits_PnN = logits_PnN.masked_fill(~keep_PnN & some_Pn[..., None], -torch.inf)
    # Sums relative to the largest logit: what is rounded is then small where logits are large.
    top_Pn = logits_PnN.detach().amax(-1)
    sum_Pn = (logits_PnN - top_Pn[..., None]).exp().sum(-1)
    excess_Pn = sum_Pn.double().log() + (top_Pn - positive_Pn)
    # Above the threshold softplus is the identity, with an error of exp(-threshold).
    return torch.where(some_Pn, torch.nn.functional.softplus(excess_Pn, threshold=60.0), 0)


def distillation(problem: Problem, scale_P: Tensor) -> Tensor:
    """See :func:`mcsp.kernels.contrastive.losses.relational_distillation`; (P,)."""
    valid_PN = problem.valid_MN[problem.a] & problem.valid_MN[problem.b]
    keep_PnN = problem.other() & valid_PN[:, None]
    some_Pn = keep_PnN.any(-1)
    dropped_PnN = ~keep_PnN & some_Pn[..., None]
    log_shares = []
    for side in (problem.a, problem.b):
        row_PnD, _, columns_PND = _sides(problem, side, side)
        logits_PnN = _similarities(row_PnD, columns_PND) * scale_P[:, None, None]
        log_share = torch.log_softmax(logits_PnN.masked_fill(dropped_PnN, -torch.inf), -1)
        log_shares.append(log_share.masked_fill(~keep_PnN, 0))
    log_a, log_b = log_shares
    teacher_a, teacher_b = log_a.detach(), log_b.detach()
    divergence = teacher_a.exp() * (teacher_a - log_b) + teacher_b.exp() * (teacher_b - log_a)
    return _share(problem, 0.5 * torch.where(keep_PnN, divergence, 0).sum(-1))


@torch.no_grad()
def retrieval(problem: Problem) -> Tensor:
    """See :func:`mcsp.kernels.contrastive.losses.retrieval_accuracy`; (P,)."""
    a, b, own_n = problem.a, problem.b, torch.arange(problem.z_MnD.shape[1], device=problem.z_MnD.device)
    own_n = own_n + problem.row_offset
    hits: list[Tensor] = []
    for left, right in ((a, b), (b, a)):
        anchor_PnD, _, columns_PND = _sides(problem, left, right)
        similarity_PnN = _similarities(anchor_PnD, columns_PND)
        # Taken from the same product as its competitors, so that rounding does not tell equal embeddings apart.
        own_Pn = similarity_PnN.gather(2, own_n.expand(len(left), -1)[..., None])[..., 0]
        keep_PnN = problem.other() & problem.valid_MN[right][:, None]
        hits.append(own_Pn > similarity_PnN.masked_fill(~keep_PnN, -torch.inf).amax(-1))
    return _share(problem, 0.5 * (hits[0].to(problem.z_MnD.dtype) + hits[1].to(problem.z_MnD.dtype)))


def _similarities(rows_PnD: Tensor, columns_PND: Tensor) -> Tensor:
    with multiplying(rows_PnD.device, "fp32"):
        return torch.bmm(rows_PnD, columns_PND.transpose(1, 2))
