"""Relational distillation over all pairs, computed in blocks of similarities: O(N D) memory.

Both choices of the teacher together weigh (t_ij - s_ij)(A_ij - B_ij), with A and B the logits of the two embeddings
and t and s their softmaxes: the logarithms of the norms cancel, so one walk over blocks makes the loss.

Shape letters: n rows of this process, D width, P pairs; S = 2 sides, the two embeddings of a pair; g pairs, r rows and
c columns of a block.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mcsp.kernels.contrastive.blocks import (
    Block,
    Gradients,
    Plan,
    Similarities,
    blocks,
    merge,
    multiplying,
    similarities,
)
from mcsp.kernels.contrastive.problem import Problem

# Blocks of a pair in memory at once: products of both sides, their difference, and a product of two of these.
PLANES = 5


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_MnD: Tensor, z_MND: Tensor, scale_P: Tensor, problem: Problem, plan: Plan) -> Tensor:
        weight_Pn = 0.5 * problem.weights()
        top_SPn = weight_Pn.new_full((2, *weight_Pn.shape), -torch.inf)
        sum_SPn, difference_SPn = torch.zeros_like(top_SPn), torch.zeros_like(top_SPn)
        with multiplying(z_MnD.device, plan.precision):
            for block in blocks(problem, *_valid(problem), PLANES, plan):
                x_Sgrc, _ = _similarities(problem, scale_P, block, plan)
                here = (slice(None), block.jobs, block.rows)
                new = plan.epilogue.relation_sums(x_Sgrc, scale_P[block.jobs], block.compared)
                merge(top_SPn[here], [sum_SPn[here], difference_SPn[here]], *new)
        empty_SPn = sum_SPn == 0
        sum_SPn.masked_fill_(empty_SPn, 1)
        # Against an infinite reference, rows that are compared with nothing have zero softmaxes.
        top_SPn.masked_fill_(empty_SPn, torch.inf)
        ctx.save_for_backward(scale_P, weight_Pn, z_MnD, z_MND, *problem.masks(), top_SPn, sum_SPn)
        ctx.problem, ctx.plan = problem, plan
        mean_SPn = difference_SPn / sum_SPn
        return (weight_Pn * (mean_SPn[0] - mean_SPn[1])).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None, None]:
        # The problem has these embeddings and masks; asking for them finds out whether they were changed since.
        scale_P, weight_Pn, *_, top_SPn, sum_SPn = ctx.saved_tensors
        problem: Problem = ctx.problem
        share_SPn = weight_Pn * grad_P[:, None] / sum_SPn
        grads, grad_scale_P = Gradients(problem), torch.zeros_like(scale_P)
        with multiplying(scale_P.device, ctx.plan.precision):
            for block in blocks(problem, *_valid(problem), PLANES, ctx.plan):
                x_Sgrc, found = _similarities(problem, scale_P, block, ctx.plan)
                here = (slice(None), block.jobs, block.rows)
                dtype = found.row_grD.dtype
                grad_Sgrc = ctx.plan.epilogue.relation_gradient(
                    x_Sgrc, scale_P[block.jobs], block.compared, top_SPn[here], share_SPn[here], dtype
                )
                scale_Sg = grads.add(block, found, grad_Sgrc.flatten(0, 1)).unflatten(0, (2, -1))
                grad_scale_P[block.jobs].add_(scale_Sg.sum(0))
        return grads.rows, None if problem.own else grads.columns, grad_scale_P, None, None


def _valid(problem: Problem) -> tuple[Tensor, Tensor]:
    """Rows and columns that are valid in both embeddings of each pair."""
    a, b = problem.a, problem.b
    return problem.valid(a) & problem.valid(b), problem.valid_columns(a) & problem.valid_columns(b)


def _similarities(problem: Problem, scale_P: Tensor, block: Block, plan: Plan) -> tuple[Tensor, Similarities]:
    """Of rows with columns of the same embedding, first of all pairs' first, then of all pairs' second ones."""
    both = problem.a[block.jobs] + problem.b[block.jobs]
    found = similarities(problem, both, both, scale_P[block.jobs].repeat(2), block, plan)
    return found.x_grc.unflatten(0, (2, -1)), found


def distillation(problem: Problem, scale_P: Tensor, plan: Plan) -> Tensor:
    """See :func:`mcsp.kernels.contrastive.losses.relational_distillation`; (P,)."""
    loss_P: Tensor = _Distillation.apply(problem.z_MnD, problem.z_MND, scale_P, problem, plan)
    return loss_P
