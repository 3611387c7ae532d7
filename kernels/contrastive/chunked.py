"""The contrast over all pairs in O(N D) memory in plain PyTorch: blocks of similarities are made, used and forgotten.

One exponential per similarity serves its row and its column: with the fixed reference m = max(0, scale - 60) no sum
of normalised embeddings overflows, and pairs where one underflows (or overflows, unnormalised) are done again with
exact maxima. Invalid rows hold zeros, so they fall out of every product of the backward pass by themselves.
Derivation: kernels/README.md.

Shape letters: M embeddings, n rows of this process, N rows of all processes, D width, P pairs, J jobs; r and c the
rows and columns of a block.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mcsp.kernels.contrastive.blocks import Blocks, Gradients, Job, jobs_of, reference_of, unsafe
from mcsp.kernels.contrastive.problem import Problem


class _Contrast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_MnD: Tensor, z_MND: Tensor, scale_P: Tensor, problem: Problem) -> Tensor:
        jobs, scales = jobs_of(problem), scale_P.tolist()
        weight_Pn, some_Mn = 0.5 * problem.weights(), problem.some(problem.valid_MN)
        loss_P, exact, saved = torch.zeros_like(scale_P), [], []
        for job, sum_Xn in zip(jobs, _sums(problem, jobs, scales), strict=True):
            scale, weight_n = scales[job.pair], weight_Pn[job.pair]
            # Rows and columns are the same where columns are anchors too, and so is what they may be compared with.
            active_Xn = torch.stack([some_Mn[job.right], some_Mn[job.left]][: len(sum_Xn)]) & (weight_n > 0)
            exact.append(bool(unsafe(sum_Xn, active_Xn).any()))
            if exact[-1]:
                log_Xn, m = _exact_logs(problem, job, scale), 0.0
            else:
                log_Xn, m = sum_Xn.log(), reference_of(scale)
            excess_Xn = log_Xn - (scale_P[job.pair] * _cosines(problem, job) - m)
            excess_Xn = excess_Xn.masked_fill(~active_Xn, -torch.inf)
            # Above the threshold softplus is the identity, with an error of exp(-threshold).
            loss_n = torch.nn.functional.softplus(excess_Xn, threshold=60.0).sum(0)
            loss_P[job.pair] += (weight_n * loss_n).sum()
            # Divided by an infinite sum, rows that push nothing away have no weight.
            saved += [excess_Xn, (log_Xn if exact[-1] else sum_Xn).masked_fill(~active_Xn, torch.inf)]
        ctx.save_for_backward(scale_P, z_MnD, z_MND, *saved)
        ctx.problem, ctx.exact, ctx.weight_Pn = problem, exact, weight_Pn
        return loss_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None]:
        # The embeddings of the problem are these; asking for them finds out whether they were changed since.
        scale_P, _, _, *saved = ctx.saved_tensors
        problem: Problem = ctx.problem
        weight_Pn, z_MnD = ctx.weight_Pn * grad_P[:, None], problem.z_MnD
        grads, pulls = Gradients(problem, scale_P), []
        with torch.autocast(z_MnD.device.type, enabled=False):
            for job, excess_Xn in zip(jobs_of(problem), saved[::2], strict=True):
                # Diagonal: the pull of the positives, never rounded through a block.
                pulls.append(weight_Pn[job.pair] * torch.sigmoid(excess_Xn))
                pull_n = -pulls[-1].sum(0)
                grads.rows[job.left].addcmul_((scale_P[job.pair] * pull_n)[:, None], z_MnD[job.right])
                grads.rows[job.right].addcmul_((scale_P[job.pair] * pull_n)[:, None], z_MnD[job.left])
                grads.scale[job.pair] += (pull_n * _cosines(problem, job)).sum()
            _add_push(problem, scale_P.tolist(), ctx.exact, pulls, saved[1::2], grads)
        return grads.rows, None if problem.own else grads.columns, grads.scale, None


def _cosines(problem: Problem, job: Job) -> Tensor:
    """<left_i, right_i> of this process's rows, (n,)."""
    return (problem.z_MnD[job.left] * problem.z_MnD[job.right]).sum(-1)


def _sums(problem: Problem, jobs: list[Job], scales: list[float]) -> list[Tensor]:
    """Of each job the sums of exp(logit - m) over columns and, with ``both``, over rows; (1 or 2, n)."""
    sums = [problem.z_MnD.new_zeros((1 + job.both, problem.z_MnD.shape[1])) for job in jobs]
    valid_Mn, valid_MN = problem.valid_Mn.to(problem.z_MnD), problem.valid_MN.to(problem.z_MnD)
    blocks = Blocks(problem, 1)
    for rows, columns, same_rc in blocks:
        for job, sum_Xn in zip(jobs, sums, strict=True):
            e_rc = _exponentials(blocks, job, scales[job.pair], rows, columns, same_rc)
            sum_Xn[0, rows] += e_rc @ valid_MN[job.right, columns]
            if job.both:
                sum_Xn[1, columns] += valid_Mn[job.left, rows] @ e_rc
    return sums


def _exponentials(
    blocks: Blocks, job: Job, scale: float, rows: slice, columns: slice, same_rc: Tensor | None
) -> Tensor:
    """exp(logit - m), 0 where rows and columns must not be compared; exp(-m) where either is invalid."""
    logit_rc = blocks.logits(0, job.left, job.right, scale, rows, columns)
    if reference_of(scale) > 0:
        logit_rc.sub_(reference_of(scale))
    e_rc = logit_rc.exp_()
    return e_rc if same_rc is None else e_rc.masked_fill_(same_rc, 0)


def _kept_logits(blocks: Blocks, job: Job, scale: float, rows: slice, columns: slice, same_rc: Tensor | None) -> Tensor:
    """Logits, -inf where anything forbids the comparison."""
    problem = blocks.problem
    keep_rc = problem.valid_Mn[job.left, rows, None] & problem.valid_MN[job.right, None, columns]
    if same_rc is not None:
        keep_rc &= ~same_rc
    return blocks.logits(0, job.left, job.right, scale, rows, columns).masked_fill_(~keep_rc, -torch.inf)


def _exact_logs(problem: Problem, job: Job, scale: float) -> Tensor:
    """Logarithms of the sums that :func:`_sums` makes, without reference, whatever the range of the logits."""
    log_Xn = problem.z_MnD.new_full((1 + job.both, problem.z_MnD.shape[1]), -torch.inf)
    blocks = Blocks(problem, 1)
    for rows, columns, same_rc in blocks:
        logit_rc = _kept_logits(blocks, job, scale, rows, columns, same_rc)
        log_Xn[0, rows] = torch.logaddexp(log_Xn[0, rows], logit_rc.logsumexp(1))
        if job.both:
            log_Xn[1, columns] = torch.logaddexp(log_Xn[1, columns], logit_rc.logsumexp(0))
    return log_Xn


def _add_push(
    problem: Problem,
    scales: list[float],
    exact: list[bool],
    pulls: list[Tensor],
    sums: list[Tensor],
    grads: Gradients,
) -> None:
    """The push of the negatives, each anchor's pull shared out among them, block by block.

    G_ij = pull_i exp(s_ij - m) / sum_i [+ pull_j exp(s_ij - m) / sum_j]; with ``exact``, sums are logarithms and m = 0.
    """
    jobs, blocks = jobs_of(problem), Blocks(problem, 2)
    for rows, columns, same_rc in blocks:
        for job, pull_Xn, sum_Xn, is_exact in zip(jobs, pulls, sums, exact, strict=True):
            at = (blocks, job, scales[job.pair], rows, columns, same_rc)
            if is_exact:
                logit_rc = _kept_logits(*at)
                grad_rc = pull_Xn[0, rows, None] * (logit_rc - sum_Xn[0, rows, None]).exp()
                if job.both:
                    grad_rc += pull_Xn[1, columns] * (logit_rc - sum_Xn[1, columns]).exp()
            else:
                weight_rc = (pull_Xn[0, rows] / sum_Xn[0, rows])[:, None]
                if job.both:
                    weight_c = pull_Xn[1, columns] / sum_Xn[1, columns]
                    weight_rc = torch.add(weight_rc, weight_c, out=blocks.plane(1, rows, columns))
                grad_rc = _exponentials(*at).mul_(weight_rc)
            grads.add(job.left, job.right, job.pair, scales[job.pair], grad_rc, rows, columns)


def contrast(problem: Problem, scale_P: Tensor) -> Tensor:
    """See :func:`mcsp.kernels.contrastive.losses.contrastive_loss`; (P,)."""
    with torch.autocast(problem.z_MnD.device.type, enabled=False):
        loss_P: Tensor = _Contrast.apply(problem.z_MnD, problem.z_MND, scale_P, problem)
    return loss_P
