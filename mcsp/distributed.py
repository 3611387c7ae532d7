"""Ranks, and collectives that gradients pass through. Without a process group everything is one rank."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

# Every collective runs inside ``around_collectives()``: training measures with it how long they take.
around_collectives: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
_alone = False


def _grouped() -> bool:
    return not _alone and dist.is_available() and dist.is_initialized()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process is one rank of one: it computes on whole batches what ranks compute shares of."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def rank() -> int:
    """Number of this process, 0 without a process group."""
    return dist.get_rank() if _grouped() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if _grouped() else 1


def is_main() -> bool:
    """True on the one rank that prints and writes files."""
    return rank() == 0


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        return _all_gather(x, dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _reduce_scatter(grads[0], ctx.dim), None


def _all_gather(x: Tensor, dim: int) -> Tensor:
    rows_first = x.movedim(dim, 0).contiguous()
    out = rows_first.new_empty((world_size() * rows_first.shape[0], *rows_first.shape[1:]))
    with around_collectives():
        dist.all_gather_into_tensor(out, rows_first)
    return out.movedim(0, dim).contiguous()


def _reduce_scatter(x: Tensor, dim: int) -> Tensor:
    """This rank's rows of the sum of ``x`` over all ranks: half of what an all-reduce would send."""
    rows_first = x.movedim(dim, 0).contiguous()
    out = rows_first.new_empty((rows_first.shape[0] // world_size(), *rows_first.shape[1:]))
    # Renamed in torch 2.13; before, only the second name is there.
    reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    with around_collectives():
        reduce_scatter(out, rows_first)
    return out.movedim(0, dim).contiguous()


def gather_rows(x: Tensor, dim: int = 0) -> Tensor:
    """Concatenate the rows of all ranks along ``dim``, in order of rank; differentiable where ``x`` needs gradients.

    Every rank must hold as many rows as every other (the schedule gives all ranks the same composition) and must call
    this and its backward equally often: it is a collective in both directions. The gradient of a rank's rows is the
    sum over all ranks of what their losses say about them, so local losses must be *shares* that sum to the whole loss.
    Without a process group, or with one rank, ``x`` itself is returned.
    """
    if world_size() == 1:
        return x
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _all_gather(x.detach(), dim)
    gathered: Tensor = _GatherRows.apply(x, dim)
    return gathered


@torch.no_grad()
def over_ranks(x: Tensor, operation: Literal["sum", "max"]) -> Tensor:
    """The sum or the largest over all ranks of each number of ``x``, on every rank, without gradient; ``x`` stays."""
    total = x.detach().clone(memory_format=torch.contiguous_format)
    if world_size() > 1:
        with around_collectives():
            dist.all_reduce(total, dist.ReduceOp.SUM if operation == "sum" else dist.ReduceOp.MAX)
    return total


def gather_objects(value: Any) -> list[Any]:
    """``value`` of every rank, in order of rank, on every rank. Pickled in between: for small facts among own ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with around_collectives():
        dist.all_gather_object(values, value)
    return values
