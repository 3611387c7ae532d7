"""Relational distillation over all pairs in O(N D) memory in plain PyTorch.

Both choices of the teacher together weigh (t_ij - s_ij)(A_ij - B_ij), with A and B the logits of the two embeddings
and t and s their softmaxes: the logarithms of the norms cancel, so one pass over blocks makes the loss.

Shape letters: n rows of this process, D width, P pairs; r and c the rows and columns of a block.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mcsp.kernels.contrastive.blocks import Blocks, Gradients, reference_of, unsafe
from mcsp.kernels.contrastive.problem import Problem


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_MnD: Tensor, z_MND: Tensor, scale_P: Tensor, problem: Problem) -> Tensor:
        scales, weight_Pn = scale_P.tolist(), 0.5 * problem.weights()
        some_Pn = problem.some(problem.valid_MN[problem.a] & problem.valid_MN[problem.b])
        active_Pn = some_Pn & (weight_Pn > 0)
        reference_P = scale_P.new_tensor([reference_of(scale) for scale in scales])
        reference_P2n = reference_P[:, None, None].repeat(1, 2, z_MnD.shape[1])
        sum_P4n = _sums(problem, scales, reference_P2n, list(range(len(scales))))
        again = unsafe(sum_P4n[:, :2], active_Pn[:, None]).nonzero()[:, 0].tolist()
        if again:
            reference_P2n[again] = _row_maxima(problem, scales, again)
            sum_P4n[again] = _sums(problem, scales, reference_P2n, again)
        sum_P2n, difference_P2n = sum_P4n[:, :2], sum_P4n[:, 2:]
        mean_P2n = torch.where(active_Pn[:, None], difference_P2n / sum_P2n, 0)
        # Against an infinite reference, rows that teach nothing have zero softmaxes.
        reference_P2n.masked_fill_(~active_Pn[:, None], torch.inf)
        share_P2n = torch.where(active_Pn[:, None], 1 / sum_P2n, 0)
        ctx.save_for_backward(scale_P, z_MnD, z_MND, reference_P2n, share_P2n)
        ctx.problem, ctx.weight_Pn = problem, weight_Pn
        return (weight_Pn * (mean_P2n[:, 0] - mean_P2n[:, 1])).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None]:
        scale_P, _, _, reference_P2n, share_P2n = ctx.saved_tensors
        problem: Problem = ctx.problem
        weight_Pn, scales = ctx.weight_Pn * grad_P[:, None], scale_P.tolist()
        grads, blocks = Gradients(problem, scale_P), Blocks(problem, 2)
        with torch.autocast(scale_P.device.type, enabled=False):
            for rows, columns, same_rc in blocks:
                for p, (a, b) in enumerate(zip(problem.a, problem.b, strict=True)):
                    dropped_rc = _dropped(problem, a, b, columns, same_rc)
                    shares = []
                    for k, side in enumerate((a, b)):
                        logit_rc = blocks.logits(k, side, side, scales[p], rows, columns)
                        logit_rc.sub_(reference_P2n[p, k, rows, None]).masked_fill_(dropped_rc, -torch.inf)
                        shares.append(logit_rc.exp_().mul_(share_P2n[p, k, rows, None]))
                    grad_rc = shares[0].sub_(shares[1]).mul_(weight_Pn[p, rows, None])
                    grads.add(a, a, p, scales[p], grad_rc, rows, columns)
                    grads.add(b, b, p, scales[p], grad_rc.neg_(), rows, columns)
        return grads.rows, None if problem.own else grads.columns, grads.scale, None


def _dropped(problem: Problem, a: int, b: int, columns: slice, same_rc: Tensor | None) -> Tensor:
    """Bool (r or 1, c): columns that are not valid in both, or that a row must not be compared with."""
    invalid_1c = ~(problem.valid_MN[a, columns] & problem.valid_MN[b, columns])[None]
    return invalid_1c if same_rc is None else invalid_1c | same_rc


def _sums(problem: Problem, scales: list[float], reference_P2n: Tensor, chosen: list[int]) -> Tensor:
    """Per chosen pair (4, n): sums of e_a, e_b, e_a (A - B) and e_b (A - B), where e is exp(logit - reference)."""
    sums_P4n = problem.z_MnD.new_zeros((len(chosen), 4, problem.z_MnD.shape[1]))
    blocks = Blocks(problem, 3)
    for rows, columns, same_rc in blocks:
        for sum_4n, p in zip(sums_P4n, chosen, strict=True):
            a, b = problem.a[p], problem.b[p]
            dropped_rc = _dropped(problem, a, b, columns, same_rc)
            logits = [blocks.logits(k, side, side, scales[p], rows, columns) for k, side in enumerate((a, b))]
            difference_rc = torch.sub(*logits, out=blocks.plane(2, rows, columns))
            for k, logit_rc in enumerate(logits):
                logit_rc.sub_(reference_P2n[p, k, rows, None]).masked_fill_(dropped_rc, -torch.inf)
                e_rc = logit_rc.exp_()
                sum_4n[k, rows] += e_rc.sum(1)
                sum_4n[2 + k, rows] += e_rc.mul_(difference_rc).sum(1)
    return sums_P4n


def _row_maxima(problem: Problem, scales: list[float], chosen: list[int]) -> Tensor:
    """Per chosen pair (2, n): each row's largest kept logit; 0 for a row without any."""
    largest_P2n = problem.z_MnD.new_full((len(chosen), 2, problem.z_MnD.shape[1]), -torch.inf)
    blocks = Blocks(problem, 1)
    for rows, columns, same_rc in blocks:
        for largest_2n, p in zip(largest_P2n, chosen, strict=True):
            sides = (problem.a[p], problem.b[p])
            dropped_rc = _dropped(problem, *sides, columns, same_rc)
            for k, side in enumerate(sides):
                logit_rc = blocks.logits(0, side, side, scales[p], rows, columns).masked_fill_(dropped_rc, -torch.inf)
                largest_2n[k, rows] = torch.maximum(largest_2n[k, rows], logit_rc.amax(1))
    return largest_P2n.masked_fill(largest_P2n == -torch.inf, 0)


def distillation(problem: Problem, scale_P: Tensor) -> Tensor:
    """See :func:`mcsp.kernels.contrastive.losses.relational_distillation`; (P,)."""
    with torch.autocast(scale_P.device.type, enabled=False):
        loss_P: Tensor = _Distillation.apply(problem.z_MnD, problem.z_MND, scale_P, problem)
    return loss_P
