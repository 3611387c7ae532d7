"""Blocks of similarities: how large they are, how they are multiplied, and what their gradients mean for embeddings.

Shape letters: M embeddings, n rows of this process, N rows of all processes, D width; J jobs, of which g are in a
block; r and c the rows and columns of a block.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from mcsp.kernels.contrastive.problem import Problem

# A block of this many rows keeps a core's or a GPU's matrix product near its best rate.
GOOD_ROWS = 256


class Job(NamedTuple):
    """Similarities of ``left``'s rows with ``right``'s columns, for one pair; ``both``: its columns are anchors too."""

    pair: int
    left: int
    right: int
    both: bool


class Compared(NamedTuple):
    """What decides which rows and columns of a block are compared."""

    subject_r: Tensor
    subject_c: Tensor
    site_r: Tensor | None  # None: every site's rows are compared
    site_c: Tensor | None
    valid_gr: Tensor | None  # None: all rows and columns are valid
    valid_gc: Tensor | None

    def dropped(self) -> Tensor | None:
        """Bool (g or 1, r, c), True where the block must not be looked at; None where a CPU finds no such place."""
        same = self.subject_r[:, None] == self.subject_c
        if self.site_r is not None:
            same |= self.site_r[:, None] != self.site_c
        dropped = same[None]
        if self.valid_gr is not None and self.valid_gc is not None:
            dropped = dropped | ~self.valid_gr[:, :, None] | ~self.valid_gc[:, None]
        # On a GPU the look would wait for the device.
        return None if dropped.device.type == "cpu" and not bool(dropped.any()) else dropped


class Block(NamedTuple):
    """Some jobs, rows and columns, and what of them is compared."""

    jobs: slice
    rows: slice
    columns: slice
    compared: Compared


class Plan(NamedTuple):
    """How blocks are made: the functions that read and write them, the products' precision, and the memory."""

    epilogue: ModuleType  # `plain` or `fused`
    precision: str
    workspace_bytes: int


def blocks(problem: Problem, valid_Jn: Tensor, valid_JN: Tensor, planes: int, plan: Plan) -> Iterator[Block]:
    """Walk over all similarities of all jobs; ``planes`` of a block's size are in memory at once."""
    (jobs, n), total = valid_Jn.shape, valid_JN.shape[1]
    room = max(1, plan.workspace_bytes // (planes * problem.z_MnD.element_size()))
    height = min(n, max(room // total, GOOD_ROWS))
    width = min(total, max(room // height, GOOD_ROWS))
    group = max(1, room // (n * total)) if (height, width) == (n, total) else 1
    for i in range(0, n, height):
        for j in range(0, total, width):
            rows, columns = slice(i, min(i + height, n)), slice(j, min(j + width, total))
            sites: tuple[Tensor | None, Tensor | None] = (None, None)
            if problem.site_n is not None and problem.site_N is not None:
                sites = (problem.site_n[rows], problem.site_N[columns])
            keys = (problem.subject_n[rows], problem.subject_N[columns], *sites)
            for start in range(0, jobs, group):
                some = slice(start, min(start + group, jobs))
                valid = (valid_Jn[some, rows], valid_JN[some, columns])
                masks = valid if any(problem.masked) else (None, None)
                yield Block(some, rows, columns, Compared(*keys, *masks))


def groups(problem: Problem, plan: Plan) -> Iterator[tuple[slice, slice]]:
    """Pairs and rows, as many at a time as fit into the memory in float64; all rows first."""
    pairs, (n, width) = len(problem.a), problem.z_MnD.shape[1:]
    room = max(1, plan.workspace_bytes // (8 * width))
    height, step = min(n, max(room, GOOD_ROWS)), max(1, room // n)
    for start in range(0, pairs, step):
        for i in range(0, n, height):
            yield slice(start, min(start + step, pairs)), slice(i, min(i + height, n))


def operands(z: Tensor, chosen: list[int], places: slice) -> Tensor:
    """Rows ``places`` of the chosen embeddings, (g, r, D); one embedding is not copied."""
    return z[chosen[0], places][None] if len(chosen) == 1 else torch.stack([z[i, places] for i in chosen])


def factor_type(dtype: torch.dtype, precision: str) -> torch.dtype:
    """The type of factors of products."""
    return torch.bfloat16 if precision == "bf16" and dtype != torch.float64 else dtype


def rounded(x: Tensor, precision: str) -> Tensor:
    """A factor of a product."""
    return x.to(factor_type(x.dtype, precision))


def product(left: Tensor, right: Tensor) -> Tensor:
    """(g, a, b) times (g, b, c), added up and given in float32 or float64."""
    if left.dtype != torch.bfloat16:
        return torch.bmm(left, right)
    if left.device.type == "cpu":  # which has no such product; in float32 those of numbers of 8 bits are exact
        return torch.bmm(left.float(), right.float())
    return torch.bmm(left, right, out_dtype=torch.float32)


@contextmanager
def multiplying(device: torch.device, precision: str) -> Iterator[None]:
    """Without autocast; on CUDA, float32 is multiplied in TF32 where that is asked for, and only there."""
    if not torch.amp.is_autocast_available(device.type):
        yield
        return
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        matmul = torch.backends.cuda.matmul
        before = matmul.fp32_precision
        matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = before


class Similarities(NamedTuple):
    """The products of a block and what they are made of; ``scale_g`` times them are logits."""

    x_grc: Tensor
    row_grD: Tensor
    column_gcD: Tensor
    lefts: list[int]
    rights: list[int]
    scale_g: Tensor


def similarities(
    problem: Problem, lefts: list[int], rights: list[int], scale_g: Tensor, block: Block, plan: Plan
) -> Similarities:
    """<left_r, right_c> of so many products."""
    row_grD = rounded(operands(problem.z_MnD, lefts, block.rows), plan.precision)
    column_gcD = rounded(operands(problem.z_MND, rights, block.columns), plan.precision)
    x_grc = product(row_grD, column_gcD.transpose(1, 2))
    return Similarities(x_grc, row_grD, column_gcD, lefts, rights, scale_g)


class Gradients:
    """Gradients under way: of the rows and of the columns (the same memory where they are the rows)."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.rows = torch.zeros_like(problem.z_MnD)
        self.columns = self.rows if problem.own else torch.zeros_like(problem.z_MND)

    def add(self, block: Block, found: Similarities, grad_grc: Tensor) -> Tensor:
        """Add what the gradient of logits says about their factors; what it says about the scales, (g,)."""
        scale_g11 = found.scale_g[:, None, None]
        product_grD = product(grad_grc, found.column_gcD)
        # sum_rc grad_rc <row_r, column_c>, from what is there anyway
        scale_g = (product_grD * found.row_grD).sum((1, 2), dtype=torch.float64)
        add_to(self.rows[:, block.rows], found.lefts, product_grD.mul_(scale_g11))
        if len(found.rights) == 1 and grad_grc.dtype == self.columns.dtype:
            row_rD = found.row_grD[0] * found.scale_g
            self.columns[found.rights[0], block.columns].addmm_(grad_grc[0].T, row_rD)
        else:
            product_gcD = product(grad_grc.transpose(1, 2), found.row_grD).mul_(scale_g11)
            add_to(self.columns[:, block.columns], found.rights, product_gcD)
        return scale_g


def add_to(totals: Tensor, places: list[int], parts: Tensor) -> None:
    """Add each part to ``totals[place]``, in their order: the parts of all places together, one of each at a time."""
    waiting = list(zip(places, parts.unbind(0), strict=True))
    while waiting:
        now = dict(reversed(waiting))  # of each place the first that waits
        torch._foreach_add_([totals[place] for place in now], list(now.values()))
        waiting = [(place, part) for place, part in waiting if part is not now[place]]


def merge(top: Tensor, sums: list[Tensor], new_top: Tensor, new_sums: list[Tensor]) -> None:
    """Add sums of exp(logit - top) of one block to those of the blocks before it, in place."""
    highest = torch.maximum(top, new_top)
    base = finite(highest)
    before, now = (top - base).exp(), (new_top - base).exp()
    for total, new in zip(sums, new_sums, strict=True):
        total.mul_(before).addcmul_(new, now)
    top.copy_(highest)


def finite(top: Tensor) -> Tensor:
    """A maximum to subtract: 0 where nothing was compared, since -inf - -inf is no number."""
    return top.masked_fill(top == -torch.inf, 0)
