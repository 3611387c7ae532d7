"""The contrast over all pairs in O(N D) memory in plain PyTorch: blocks of similarities are made, used and forgotten.

One exponential per similarity serves its row and its column: with the fixed reference m = max(0, scale - 60) no sum
of normalised embeddings overflows, and pairs where one underflows (or overflows, unnormalised) are done again with
exact maxima. Invalid rows hold zeros, so they fall out of every product of the backward pass by themselves.
Derivation: kernels/README.md.

With ``combine`` only rows of a meet all columns of b. Rows' sums are then whole, columns' are added over processes
between the two phases, sums and losses, and every process makes the gradient of its own rows of similarities: the
gradient of the columns is the sum over processes. Backward has no collective, so all processes must weigh the shares
alike (each grad_P is the same everywhere).

Shape letters: M embeddings, n rows of this process, N rows of all processes, X either, D width, P pairs, J jobs; r and
c the rows and columns of a block.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mcsp.kernels.contrastive.blocks import Blocks, Gradients, Job, jobs_of, reference_of, unsafe
from mcsp.kernels.contrastive.problem import Combine, Problem, pick


class _Contrast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z_MnD: Tensor, z_MND: Tensor, scale_P: Tensor, problem: Problem, combine: Combine | None
    ) -> Tensor:
        jobs, scales = jobs_of(problem, combine is not None), scale_P.tolist()
        pairs, sides = [job.pair for job in jobs], _sides(problem, jobs)
        weights = [pick(0.5 * side.weights(), pairs) for side in sides]
        others = ([job.right for job in jobs], [job.left for job in jobs])
        active = [
            pick(side.some(side.valid_MN), other) & (weight_JX > 0)
            for side, other, weight_JX in zip(sides, others, weights, strict=False)
        ]
        sums, exact = _reliable_sums(problem, jobs, scales, active, combine)
        exact_J1 = torch.tensor(exact, device=scale_P.device)[:, None]
        m_J1 = scale_P.new_tensor([reference_of(scales[p]) for p in pairs])[:, None].masked_fill(exact_J1, 0)
        loss_Jn, saved = scale_P.new_zeros((len(jobs), z_MnD.shape[1])), []
        for side, sum_JX, active_JX, weight_JX, own in zip(sides, sums, active, weights, _own(problem), strict=False):
            log_JX = torch.where(exact_J1, sum_JX, sum_JX.log())
            excess_JX = log_JX - (pick(scale_P, pairs)[:, None] * _cosines(side, jobs) - m_J1)
            excess_JX = excess_JX.masked_fill(~active_JX, -torch.inf)
            # Above the threshold softplus is the identity, with an error of exp(-threshold).
            loss_Jn += (weight_JX * torch.nn.functional.softplus(excess_JX, threshold=60.0))[:, own]
            # Divided by an infinite sum, rows that push nothing away have no weight.
            saved += [excess_JX, weight_JX, sum_JX.masked_fill(~active_JX, torch.inf)]
        ctx.save_for_backward(scale_P, z_MnD, z_MND, *saved)
        ctx.problem, ctx.jobs, ctx.exact = problem, jobs, exact
        return _by_pair(loss_Jn.sum(1), jobs, torch.zeros_like(scale_P))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None, None]:
        # The embeddings of the problem are these; asking for them finds out whether they were changed since.
        scale_P, _, _, *saved = ctx.saved_tensors
        problem: Problem = ctx.problem
        jobs: list[Job] = ctx.jobs
        grad_J1, z_MnD = pick(grad_P, [job.pair for job in jobs])[:, None], problem.z_MnD
        grads = Gradients(problem, scale_P)
        with torch.autocast(z_MnD.device.type, enabled=False):
            pulls = [
                weight_JX * grad_J1 * torch.sigmoid(excess_JX)
                for excess_JX, weight_JX in zip(saved[::3], saved[1::3], strict=True)
            ]
            # Diagonal: the pull of the positives, never rounded through a block.
            own_pulls = [pull_JX[:, own] for pull_JX, own in zip(pulls, _own(problem), strict=False)]
            pull_Jn = -torch.stack(own_pulls).sum(0)
            _by_pair((pull_Jn * _cosines(problem, jobs)).sum(1), jobs, grads.scale)
            for job, pull_n in zip(jobs, pull_Jn, strict=True):
                grads.rows[job.left].addcmul_((scale_P[job.pair] * pull_n)[:, None], z_MnD[job.right])
                grads.rows[job.right].addcmul_((scale_P[job.pair] * pull_n)[:, None], z_MnD[job.left])
            _add_push(problem, jobs, scale_P.tolist(), ctx.exact, pulls, saved[2::3], grads)
        return grads.rows, None if problem.own else grads.columns, grads.scale, None, None


def _sides(problem: Problem, jobs: list[Job]) -> list[Problem]:
    """The anchors of a job: this process's rows, and with ``both`` all columns."""
    return [problem, problem.whole()] if jobs[0].both else [problem]


def _own(problem: Problem) -> tuple[slice, slice]:
    """This process's anchors among those of each side."""
    return slice(None), slice(problem.row_offset, problem.row_offset + problem.z_MnD.shape[1])


def _by_pair(value_J: Tensor, jobs: list[Job], total_P: Tensor) -> Tensor:
    """``total_P`` with the value of each job added, in a fixed order."""
    for job, value in zip(jobs, value_J, strict=True):
        total_P[job.pair] += value
    return total_P


def _cosines(problem: Problem, jobs: list[Job]) -> Tensor:
    """<left_i, right_i> of each job's rows, (J, n)."""
    return torch.stack([(problem.z_MnD[job.left] * problem.z_MnD[job.right]).sum(-1) for job in jobs])


def _reliable_sums(
    problem: Problem, jobs: list[Job], scales: list[float], active: list[Tensor], combine: Combine | None
) -> tuple[list[Tensor], list[bool]]:
    """The sums of each side (J, n or N), and which jobs had to be done again and hold logarithms without reference.

    A row's sum is whole. A column's is that of this process's rows until ``combine`` adds it over processes, in the
    same collective with how many processes have an unsafe row: all of them redo the same jobs.
    """
    sums = _sums(problem, jobs, scales)
    unsafe_J = unsafe(sums[0], active[0])
    if jobs[0].both:
        if combine:
            packed = combine(torch.cat([sums[1], unsafe_J.to(sums[1])[:, None]], 1), "sum")
            sums[1], unsafe_J = packed[:, :-1], packed[:, -1] > 0
        unsafe_J = unsafe_J | unsafe(sums[1], active[1])
    exact: list[bool] = unsafe_J.tolist()
    again = [j for j, redo in enumerate(exact) if redo]
    if again:
        logs = _exact_logs(problem, [jobs[j] for j in again], scales)
        if combine:
            largest = combine(logs[1], "max")
            largest = largest.masked_fill(largest == -torch.inf, 0)
            logs[1] = largest + combine((logs[1] - largest).exp(), "sum").log()
        for sum_JX, log_JX in zip(sums, logs, strict=True):
            sum_JX[again] = log_JX
    return sums, exact


def _sums(problem: Problem, jobs: list[Job], scales: list[float]) -> list[Tensor]:
    """Of each job the sums of exp(logit - m) over columns, (J, n), and with ``both`` over rows, (J, N)."""
    sums = _filled(problem, jobs, 0.0)
    valid_Mn, valid_MN = problem.valid_Mn.to(problem.z_MnD), problem.valid_MN.to(problem.z_MnD)
    blocks = Blocks(problem, 1)
    for rows, columns, same_rc in blocks:
        for j, job in enumerate(jobs):
            e_rc = _exponentials(blocks, job, scales[job.pair], rows, columns, same_rc)
            sums[0][j, rows] += e_rc @ valid_MN[job.right, columns]
            if job.both:
                sums[1][j, columns] += valid_Mn[job.left, rows] @ e_rc
    return sums


def _filled(problem: Problem, jobs: list[Job], value: float) -> list[Tensor]:
    """One number per job and anchor of each side."""
    return [problem.z_MnD.new_full((len(jobs), side.z_MnD.shape[1]), value) for side in _sides(problem, jobs)]


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


def _exact_logs(problem: Problem, jobs: list[Job], scales: list[float]) -> list[Tensor]:
    """Logarithms of the sums that :func:`_sums` makes, without reference, whatever the range of the logits."""
    logs = _filled(problem, jobs, -torch.inf)
    blocks = Blocks(problem, 1)
    for rows, columns, same_rc in blocks:
        for j, job in enumerate(jobs):
            logit_rc = _kept_logits(blocks, job, scales[job.pair], rows, columns, same_rc)
            logs[0][j, rows] = torch.logaddexp(logs[0][j, rows], logit_rc.logsumexp(1))
            if job.both:
                logs[1][j, columns] = torch.logaddexp(logs[1][j, columns], logit_rc.logsumexp(0))
    return logs


def _add_push(
    problem: Problem,
    jobs: list[Job],
    scales: list[float],
    exact: list[bool],
    pulls: Sequence[Tensor],
    sums: Sequence[Tensor],
    grads: Gradients,
) -> None:
    """The push of the negatives, each anchor's pull shared out among them, block by block.

    G_ij = pull_i exp(s_ij - m) / sum_i [+ pull_j exp(s_ij - m) / sum_j]; with ``exact``, sums are logarithms and m = 0.
    """
    blocks = Blocks(problem, 2)
    for rows, columns, same_rc in blocks:
        for j, (job, is_exact) in enumerate(zip(jobs, exact, strict=True)):
            at = (blocks, job, scales[job.pair], rows, columns, same_rc)
            pull_r, sum_r = pulls[0][j, rows], sums[0][j, rows]
            if is_exact:
                logit_rc = _kept_logits(*at)
                grad_rc = pull_r[:, None] * (logit_rc - sum_r[:, None]).exp()
                if job.both:
                    grad_rc += pulls[1][j, columns] * (logit_rc - sums[1][j, columns]).exp()
            else:
                weight_rc = (pull_r / sum_r)[:, None]
                if job.both:
                    weight_c = pulls[1][j, columns] / sums[1][j, columns]
                    weight_rc = torch.add(weight_rc, weight_c, out=blocks.plane(1, rows, columns))
                grad_rc = _exponentials(*at).mul_(weight_rc)
            grads.add(job.left, job.right, job.pair, scales[job.pair], grad_rc, rows, columns)


def contrast(problem: Problem, scale_P: Tensor, combine: Combine | None = None) -> Tensor:
    """See :func:`mcsp.kernels.contrastive.losses.contrastive_loss`; (P,)."""
    with torch.autocast(problem.z_MnD.device.type, enabled=False):
        loss_P: Tensor = _Contrast.apply(problem.z_MnD, problem.z_MND, scale_P, problem, combine)
    return loss_P
