"""What surrounds the Triton kernels of ``fused``: operands, reductions of parts, library products, autograd.

All of it stays on the device: no value is read back, and no shape depends on one.

Shape letters: M embeddings, n rows of this process, N rows of all processes, D width, P pairs, J jobs; X 1 side (rows
as anchors) or 2 (columns as well).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mcsp.kernels.contrastive.blocks import REFERENCE_MARGIN, Job, jobs_of, unsafe
from mcsp.kernels.contrastive.fused import INTERPRETED, Tiles, dot_precision, grad_tiles, sum_tiles, tiles_for
from mcsp.kernels.contrastive.problem import Problem, pick, ranks

# Numbers of one band of gradients of similarities; 8192 squared, 128 MiB in bfloat16.
WORKSPACE = 2**26


class _Operands(NamedTuple):
    """Embeddings as the kernels multiply them, and the other arguments that both kernels begin with."""

    z_MnD: Tensor
    z_MND: Tensor
    table_J3: Tensor
    masks: tuple[Tensor, ...]  # valid rows and columns, subjects, sites


def unavailable(problem: Problem) -> str | None:
    """Why the kernels cannot run on these embeddings; None where they can."""
    z = problem.z_MnD
    if z.dtype != torch.float32:
        return f"expected embeddings of 32 bits or fewer, found {z.dtype}"
    if INTERPRETED:
        return None
    if z.device.type != "cuda":
        return f"expected embeddings on a CUDA device, found {z.device}"
    if torch.version.hip is None and torch.cuda.get_device_capability(z.device) < (8, 0):
        return f"expected compute capability 8.0 or newer, found {torch.cuda.get_device_capability(z.device)}"
    return None


def contrast(problem: Problem, scale_P: Tensor, precision: str) -> Tensor:
    """See :func:`mcsp.kernels.contrastive.losses.contrastive_loss`; (P,)."""
    with torch.autocast(scale_P.device.type, enabled=False):
        loss_P: Tensor = _Fused.apply(problem.z_MnD, problem.z_MND, scale_P, problem, precision)
    return loss_P


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_MnD: Tensor, z_MND: Tensor, scale_P: Tensor, problem: Problem, precision: str) -> Tensor:
        jobs, operands = jobs_of(problem), _operands(problem, precision)
        pairs = [job.pair for job in jobs]
        weight_Jn, some_Mn = 0.5 * pick(problem.weights(), pairs), problem.some(problem.valid_MN)
        sides = [[job.right for job in jobs]] + ([[job.left for job in jobs]] if problem.own else [])
        active_JXn = torch.stack([pick(some_Mn, side) for side in sides], 1) & (weight_Jn > 0)[:, None]
        sum_JXn, log_JXn, exact_J = _sums(problem, operands, scale_P, active_JXn, precision)
        reference_J = (pick(scale_P, pairs) - REFERENCE_MARGIN).clamp(min=0)
        reference_J = reference_J.masked_fill(exact_J, 0)
        positive_Jn = pick(scale_P, pairs)[:, None] * _cosines(operands, jobs) - reference_J[:, None]
        excess_JXn = (log_JXn - positive_Jn[:, None]).masked_fill(~active_JXn, -torch.inf)
        loss_JXn = weight_Jn[:, None] * torch.nn.functional.softplus(excess_JXn, threshold=60.0)
        exact_J11 = exact_J[:, None, None]
        # The weight of exp(logit - base): 1 / sum with base m, or 1 with the sum's logarithm as base; 0 if inactive.
        share_JXn = torch.where(exact_J11, 1, 1 / sum_JXn).masked_fill(~active_JXn, 0)
        base_JXn = torch.where(exact_J11, log_JXn.masked_fill(~active_JXn, torch.inf), reference_J[:, None, None])
        ctx.save_for_backward(z_MnD, z_MND, scale_P, weight_Jn, excess_JXn, share_JXn, base_JXn, exact_J)
        ctx.problem, ctx.precision = problem, precision
        return loss_JXn.sum((1, 2)).view(len(problem.a), -1).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None, None]:
        _, _, scale_P, weight_Jn, excess_JXn, share_JXn, base_JXn, exact_J = ctx.saved_tensors
        problem, precision = ctx.problem, ctx.precision
        jobs, operands = jobs_of(problem), _operands(problem, precision)
        pairs, width = [job.pair for job in jobs], problem.z_MnD.shape[2]
        pull_JXn = (weight_Jn * pick(grad_P, pairs)[:, None])[:, None] * torch.sigmoid(excess_JXn)
        rows = torch.zeros_like(problem.z_MnD)
        columns = rows if problem.own else torch.zeros_like(problem.z_MND)
        cosine_Jn, positive_Jn = _cosines(operands, jobs), -pull_JXn.sum(1)
        scale_grad_J = (positive_Jn * cosine_Jn).sum(1)
        with torch.autocast(grad_P.device.type, enabled=False), _library_precision(precision):
            for k, job in enumerate(jobs):
                scale, pull_n1 = scale_P[job.pair], (scale_P[job.pair] * positive_Jn[k])[:, None]
                rows[job.left].addcmul_(pull_n1, operands.z_MnD[job.right, :, :width].float())
                rows[job.right].addcmul_(pull_n1, operands.z_MnD[job.left, :, :width].float())
                state = ((pull_JXn * share_JXn)[k], base_JXn[k], exact_J[k : k + 1])
                for band, grad_rN, part in _bands(problem, operands, scale_P, k, state, precision):
                    product_rD = _product(grad_rN, operands.z_MND[job.right])
                    rows[job.left, band].addcmul_(product_rD[:, :width], scale)
                    product_ND = _product(grad_rN.T, operands.z_MnD[job.left, band])
                    columns[job.right].addcmul_(product_ND[:, :width], scale)
                    scale_grad_J[k] += part / scale
        scale_grad_P = scale_grad_J.view(len(problem.a), -1).sum(1)
        return rows, None if problem.own else columns, scale_grad_P, None, None


def _operands(problem: Problem, precision: str) -> _Operands:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    # Rows of a multiple of 16 numbers are loaded in wide pieces; zeros change no product.
    margin = (0, -problem.z_MnD.shape[2] % 16)
    z_MnD = torch.nn.functional.pad(problem.z_MnD.to(dtype), margin).contiguous()
    z_MND = z_MnD if problem.own else torch.nn.functional.pad(problem.z_MND.to(dtype), margin).contiguous()
    masks = [valid.contiguous().view(torch.uint8) for valid in (problem.valid_Mn, problem.valid_MN)]
    # Ranks instead of keys: half as wide, and so are the registers that they take.
    subjects = [ranks(key, problem.subject_N).int() for key in (problem.subject_n, problem.subject_N)]
    sites = subjects  # not looked at
    if problem.site_n is not None and problem.site_N is not None:
        sites = [ranks(key, problem.site_N).int() for key in (problem.site_n, problem.site_N)]
    return _Operands(z_MnD, z_MND, _table(tuple(jobs_of(problem)), z_MnD.device), (*masks, *subjects, *sites))


@cache
def _table(jobs: tuple[Job, ...], device: torch.device) -> Tensor:
    """Left, right and pair of each job, on the device; kept, so that later calls copy nothing to it."""
    return torch.tensor([(job.left, job.right, job.pair) for job in jobs], dtype=torch.int64, device=device)


def _tiles(problem: Problem, precision: str, gradient: bool) -> Tiles:
    device = problem.z_MnD.device
    nvidia = device.type == "cuda" and torch.version.hip is None
    return tiles_for(precision, nvidia and torch.cuda.get_device_capability(device) >= (9, 0), gradient)


def _constants(problem: Problem, operands: _Operands, precision: str, tiles: Tiles) -> dict[str, Any]:
    """What both kernels are compiled for."""
    return {
        "D": operands.z_MnD.shape[2],
        "BM": tiles.rows,
        "BC": tiles.columns,
        "BD": tiles.depth,
        "BOTH": problem.own,
        "SITES": problem.site_n is not None,
        "PRECISION": dot_precision(precision, torch.version.hip is not None),
        "UPCAST": INTERPRETED,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
        "enable_fp_fusion": True,
    }


def _sums(
    problem: Problem, operands: _Operands, scale_P: Tensor, active_JXn: Tensor, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of exp(logit - m) and their logarithms, both (J, X, n), and which jobs' are exact, without m; (J,)."""
    tiles, jobs = _tiles(problem, precision, gradient=False), len(operands.table_J3)
    n, total = problem.z_MnD.shape[1], problem.z_MND.shape[1]
    spans, bands = -(-total // (tiles.columns * tiles.span)), -(-n // tiles.rows)
    row_JSn = scale_P.new_zeros((jobs, spans, n))
    column_JBN = scale_P.new_zeros((jobs, bands, total) if problem.own else (1,))

    def launch(exact: bool, marked_J: Tensor) -> list[Tensor]:
        sum_tiles[(bands, spans, jobs)](
            operands.z_MnD, operands.z_MND, operands.table_J3, scale_P, marked_J.view(torch.uint8), *operands.masks,
            row_JSn, column_JBN, n, total, SPAN=tiles.span, EXACT=exact,
            **_constants(problem, operands, precision, tiles),
        )  # fmt: skip
        return [row_JSn, column_JBN] if problem.own else [row_JSn]

    sum_JXn = torch.stack([part.sum(1) for part in launch(False, active_JXn)], 1)
    exact_J = unsafe(sum_JXn, active_JXn)
    # Jobs that are fine as they are leave this launch at once, and their parts as they were.
    log_JXn = torch.stack([part.logsumexp(1) for part in launch(True, exact_J)], 1)
    return sum_JXn, torch.where(exact_J[:, None, None], log_JXn, sum_JXn.log()), exact_J


def _bands(
    problem: Problem,
    operands: _Operands,
    scale_P: Tensor,
    k: int,
    state: tuple[Tensor, Tensor, Tensor],
    precision: str,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Bands of rows of job ``k``, the gradient of their logits (r, N), in memory that is used again, and sum of both.

    The sum is of gradient times logit, before the gradient is rounded.
    """
    tiles = _tiles(problem, precision, gradient=True)
    n, total = problem.z_MnD.shape[1], problem.z_MND.shape[1]
    size = min(n, max(1, WORKSPACE // (total * tiles.rows)) * tiles.rows)
    pull_Xn, base_Xn, exact_1 = state
    workspace = operands.z_MnD.new_empty((size, total))
    for start in range(0, n, size):
        stop = min(start + size, n)
        grid = (-(-(stop - start) // tiles.rows), -(-total // tiles.columns))
        part = scale_P.new_empty(grid)
        grad_tiles[grid](
            operands.z_MnD, operands.z_MND, operands.table_J3[k], scale_P, exact_1.view(torch.uint8), *operands.masks,
            pull_Xn[0], base_Xn[0], pull_Xn[-1], base_Xn[-1], workspace, part, start, stop, n, total,
            **_constants(problem, operands, precision, tiles),
        )  # fmt: skip
        yield slice(start, stop), workspace[: stop - start], part.sum()


def _cosines(operands: _Operands, jobs: list[Job]) -> Tensor:
    """<left_i, right_i> of this process's rows, of the same rounded operands that the kernels multiply; (J, n)."""
    z_MnD = operands.z_MnD
    return torch.stack([(z_MnD[job.left].float() * z_MnD[job.right].float()).sum(-1) for job in jobs])


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in float32, from operands as they are."""
    if left.dtype == torch.float32:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


@contextmanager
def _library_precision(precision: str) -> Iterator[None]:
    """Let float32 library products use TF32 for ``precision="tf32"`` only, whatever the process chose for itself."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
