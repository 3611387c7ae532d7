"""The contrast over all pairs, computed in blocks of similarities: O(N D) memory.

Library products make the similarities of a block, again in the backward pass; one function reads a block for the sums
of its rows and columns, another turns it into the gradient of its logits. Sums are relative to running maxima, so no
range of logits is lost, the host reads nothing back and no result depends on the device's order of work. Invalid rows
hold zeros, so they fall out of every product of the backward pass by themselves. Derivation: kernels/README.md.

Shape letters: M embeddings, n rows of this process, N rows of all processes, D width, P pairs, J jobs.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mcsp.kernels.contrastive.blocks import (
    Block,
    Gradients,
    Job,
    Plan,
    Similarities,
    add_to,
    blocks,
    groups,
    merge,
    multiplying,
    operands,
    rounded,
    similarities,
)
from mcsp.kernels.contrastive.problem import Problem, pick

# Blocks of a job in memory at once: logits, exponentials, and what is rounded or masked.
PLANES = 3


def jobs_of(problem: Problem) -> list[Job]:
    """One product per pair serves both directions where the columns are this process's own rows, else two."""
    pairs = list(enumerate(zip(problem.a, problem.b, strict=True)))
    if problem.own:
        return [Job(p, a, b, True) for p, (a, b) in pairs]
    return [Job(p, *side, False) for p, (a, b) in pairs for side in ((a, b), (b, a))]


class _Contrast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_MnD: Tensor, z_MND: Tensor, scale_P: Tensor, problem: Problem, plan: Plan) -> Tensor:
        jobs = jobs_of(problem)
        pairs = [job.pair for job in jobs]
        scale_J, weight_Jn = pick(scale_P, pairs), pick(0.5 * problem.weights(), pairs)
        with multiplying(z_MnD.device, plan.precision):
            sums = _sums(problem, jobs, scale_J, plan)
            positive_Jn = pick(_positives(problem, scale_P, plan), pairs)
        loss_Jn, saved = torch.zeros_like(positive_Jn), []
        for top_Jn, sum_Jn in sums:
            empty_Jn = sum_Jn == 0
            excess_Jn = (sum_Jn.log() + (top_Jn - positive_Jn)).masked_fill(empty_Jn, -torch.inf)
            # Above the threshold softplus is the identity, with an error of exp(-threshold).
            loss_Jn += torch.nn.functional.softplus(excess_Jn, threshold=60.0)
            # Against an infinite reference, rows that are compared with nothing have no weight.
            sigmoid_Jn = torch.sigmoid(excess_Jn)
            share_Jn = (sigmoid_Jn / sum_Jn.masked_fill(empty_Jn, 1)).to(sum_Jn)
            saved += [top_Jn.masked_fill(empty_Jn, torch.inf), share_Jn, sigmoid_Jn]
        ctx.save_for_backward(scale_P, weight_Jn, z_MnD, z_MND, *problem.masks(), *saved)
        ctx.problem, ctx.jobs, ctx.plan, ctx.saved = problem, jobs, plan, len(saved)
        return _by_pair((weight_Jn * loss_Jn).sum(1), len(scale_P)).to(scale_P)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None, None]:
        # The problem has these embeddings and masks; asking for them finds out whether they were changed since.
        scale_P, weight_Jn, z_MnD, *saved = ctx.saved_tensors
        problem: Problem = ctx.problem
        jobs: list[Job] = ctx.jobs
        saved = saved[-ctx.saved :]
        lefts, rights = _sides(jobs)
        scale_J, grad_J = (pick(x, [job.pair for job in jobs]) for x in (scale_P, grad_P))
        weight_Jn = weight_Jn * grad_J[:, None]
        grads, grad_scale_J = Gradients(problem), torch.zeros_like(scale_J, dtype=torch.float64)
        with multiplying(z_MnD.device, ctx.plan.precision):
            sides = [(base, weight_Jn * share) for base, share in zip(saved[::3], saved[1::3], strict=True)]
            for block in blocks(problem, problem.valid(lefts), problem.valid_columns(rights), PLANES, ctx.plan):
                found = _similarities(problem, jobs, scale_J, block, ctx.plan)
                places = (block.rows, block.columns)
                here = [(r[block.jobs, at], s[block.jobs, at]) for (r, s), at in zip(sides, places, strict=False)]
                dtype = found.row_grD.dtype
                grad_grc = ctx.plan.epilogue.contrast_gradient(found.x_grc, found.scale_g, block.compared, here, dtype)
                grad_scale_J[block.jobs].add_(grads.add(block, found, grad_grc))
            scale = _by_pair(grad_scale_J, len(scale_P))
            pull_Pn = -_by_pair(weight_Jn * torch.stack(saved[2::3]).sum(0), len(scale_P))
            _add_positives(problem, pull_Pn, scale_P, grads.rows, scale, ctx.plan)
        return grads.rows, None if problem.own else grads.columns, scale.to(scale_P), None, None


def _sides(jobs: list[Job]) -> tuple[list[int], list[int]]:
    return [job.left for job in jobs], [job.right for job in jobs]


def _similarities(problem: Problem, jobs: list[Job], scale_J: Tensor, block: Block, plan: Plan) -> Similarities:
    return similarities(problem, *_sides(jobs[block.jobs]), scale_J[block.jobs], block, plan)


def _by_pair(value_J: Tensor, pairs: int) -> Tensor:
    """The sum over each pair's jobs, which stand together; (J, ...) to (P, ...)."""
    return value_J.unflatten(0, (pairs, -1)).sum(1)


def _partners(problem: Problem, plan: Plan) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Some pairs and rows of both of their embeddings, (g, r, D), as their competitors are multiplied; in float64."""
    for some, rows in groups(problem, plan):
        sides = (operands(problem.z_MnD, side[some], rows) for side in (problem.a, problem.b))
        a_grD, b_grD = (rounded(x, plan.precision).double() for x in sides)
        yield some, rows, a_grD, b_grD


def _positives(problem: Problem, scale_P: Tensor, plan: Plan) -> Tensor:
    """Logits of rows with their own partners, (P, n), in float64: they cancel against those of the competitors."""
    logit_Pn = scale_P.new_empty((len(problem.a), problem.z_MnD.shape[1]), dtype=torch.float64)
    for some, rows, a_grD, b_grD in _partners(problem, plan):
        logit_Pn[some, rows] = (a_grD * b_grD).sum(-1)
    return logit_Pn.mul_(scale_P[:, None])


def _add_positives(
    problem: Problem, pull_Pn: Tensor, scale_P: Tensor, rows_MnD: Tensor, grad_scale_P: Tensor, plan: Plan
) -> None:
    """The pull of the positives, never rounded through a block."""
    for some, rows, a_grD, b_grD in _partners(problem, plan):
        pull_gr1 = pull_Pn[some, rows, None]
        to_a_grD = pull_gr1 * b_grD
        grad_scale_P[some].add_((to_a_grD * a_grD).sum((1, 2)))
        scale_g11 = scale_P[some, None, None]
        add_to(rows_MnD[:, rows], problem.a[some], to_a_grD.mul_(scale_g11))
        add_to(rows_MnD[:, rows], problem.b[some], (pull_gr1 * a_grD).mul_(scale_g11))


def _sums(problem: Problem, jobs: list[Job], scale_J: Tensor, plan: Plan) -> list[tuple[Tensor, Tensor]]:
    """Largest logit and sum of exp(logit - largest) of each job's rows, (J, n), and with ``both`` of its columns."""
    lefts, rights = _sides(jobs)
    both = jobs[0].both
    shape = (len(jobs), problem.z_MnD.shape[1])
    sums = [(scale_J.new_full(shape, -torch.inf), scale_J.new_zeros(shape)) for _ in range(1 + both)]
    for block in blocks(problem, problem.valid(lefts), problem.valid_columns(rights), PLANES, plan):
        found = _similarities(problem, jobs, scale_J, block, plan)
        new = plan.epilogue.contrast_sums(found.x_grc, found.scale_g, block.compared, both)
        for (top, total), at, part in zip(sums, (block.rows, block.columns), new, strict=False):
            merge(top[block.jobs, at], [total[block.jobs, at]], *part)
    return sums


def contrast(problem: Problem, scale_P: Tensor, plan: Plan) -> Tensor:
    """See :func:`mcsp.kernels.contrastive.losses.contrastive_loss`; (P,)."""
    loss_P: Tensor = _Contrast.apply(problem.z_MnD, problem.z_MND, scale_P, problem, plan)
    return loss_P
