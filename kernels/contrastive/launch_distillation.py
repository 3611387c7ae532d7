"""What surrounds the Triton kernels of ``fused_distillation``: memory, grids, autograd; six launches in all.

Shape letters: M embeddings, n rows of this process, N rows of all processes, P pairs.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mcsp.kernels.contrastive.fused_distillation import (
    close_distillation,
    distillation_grad_tiles,
    distillation_tiles,
)
from mcsp.kernels.contrastive.fused_losses import close_scales
from mcsp.kernels.contrastive.launch import BLOCK, constants, operands_of, pairs_of, tiles_of
from mcsp.kernels.contrastive.problem import Problem


def distillation(problem: Problem, scale_P: Tensor, precision: str) -> Tensor:
    """See :func:`mcsp.kernels.contrastive.losses.relational_distillation`; (P,)."""
    loss_P: Tensor = _Fused.apply(problem.z_MnD, problem.z_MND, scale_P, problem, precision)
    return loss_P


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_MnD: Tensor, z_MND: Tensor, scale_P: Tensor, problem: Problem, precision: str) -> Tensor:
        o, pairs, weight_P = operands_of(problem, precision), len(problem.a), problem.weight_P
        pair_P2 = pairs_of(tuple(problem.a), tuple(problem.b), o.z_MND.device)
        tiles = tiles_of(o, precision, "relations")
        blocks, spans = -(-o.n // BLOCK), -(-o.total // (tiles.columns * tiles.span))
        part = scale_P.new_empty((pairs, spans, 6, o.n), dtype=torch.float32)
        share_P4n, loss_PB = part.new_empty((pairs, 4, o.n)), part.new_empty((pairs, blocks))
        distillation_tiles[(-(-o.n // tiles.rows), spans, pairs)](
            o.z_MND, pair_P2, scale_P, o.valid_MN, o.key_2N, part, o.n, o.total, o.offset,
            **constants(problem, o, precision, tiles),
        )  # fmt: skip
        close_distillation[(blocks, pairs)](
            pair_P2, scale_P if weight_P is None else weight_P, o.valid_MN, part, share_P4n, loss_PB, o.n, o.total,
            o.offset, spans, BM=BLOCK, WEIGHTED=weight_P is not None,
        )  # fmt: skip
        ctx.save_for_backward(z_MnD, z_MND, scale_P, share_P4n)
        ctx.problem, ctx.precision, ctx.operands = problem, precision, o
        return loss_PB.sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None, None]:
        _, _, scale_P, share_P4n = ctx.saved_tensors
        problem, o = ctx.problem, ctx.operands
        tiles = tiles_of(o, ctx.precision, "relations' gradient")
        entries, first = _entries(tuple(problem.a), tuple(problem.b), o.stack, problem.own, o.z_MND.device)
        rows = torch.empty_like(problem.z_MnD, memory_format=torch.contiguous_format)
        columns = rows if problem.own else torch.empty_like(problem.z_MND, memory_format=torch.contiguous_format)
        row_tiles = -(-o.n // tiles.rows)
        part = scale_P.new_empty((len(problem.a), row_tiles), dtype=torch.float32)
        grid = (row_tiles + (0 if problem.own else -(-o.total // tiles.rows)), o.stack, -(-o.width // tiles.span))
        distillation_grad_tiles[grid](
            o.z_MND, entries, first, scale_P, o.valid_MN, o.key_2N, share_P4n, grad_P, rows, columns, part, o.n,
            o.total, o.offset, row_tiles, o.width, grad_P.stride(0), **constants(problem, o, ctx.precision, tiles),
        )  # fmt: skip
        scale = torch.empty_like(scale_P)
        close_scales[(len(problem.a),)](
            grad_P, scale_P, part, scale, row_tiles, grad_P.stride(0), BM=BLOCK, SLOPED=False
        )
        return rows, None if problem.own else columns, scale, None, None


@cache
def _entries(
    a: tuple[int, ...], b: tuple[int, ...], stack: int, own: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What each embedding's gradient is made of, for own rows and then for columns; see the kernel."""
    entries: list[list[tuple[int, ...]]] = [[] for _ in range(2 * stack)]
    for p, pair in enumerate(zip(a, b, strict=True)):
        for which, (mine, other) in enumerate((pair, pair[::-1])):
            entries[mine].append((other, p, which, 3 if own else 1, -1 if which else p))
            if not own:
                entries[stack + mine].append((other, p, which, 2, -1))
    first = torch.tensor([0, *map(len, entries)], device=device).cumsum(0)
    return torch.tensor([entry for some in entries for entry in some], device=device), first
