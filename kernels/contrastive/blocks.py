"""Walking over blocks of similarities, and what blocks of their gradients mean for embeddings.

Shape letters: M embeddings, n rows of this process, N rows of all processes, D width; r and c the rows and columns of
a block; X any number of rows of sums.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mcsp.kernels.contrastive.problem import Problem

# Fits in a core's second-level cache beside the rows that it is made of; measured by benchmarks/bench_contrastive.py.
BLOCK_ROWS, BLOCK_COLUMNS = 256, 1024
# A reference of scale - 60 keeps exp(scale - m) times any number of rows within float32.
REFERENCE_MARGIN = 60.0


class Job(NamedTuple):
    """Similarities of ``left``'s rows with ``right``'s columns, for one pair; ``both``: its columns are anchors too."""

    pair: int
    left: int
    right: int
    both: bool


def jobs_of(problem: Problem, one: bool = False) -> list[Job]:
    """One product per pair serves both directions where all rows of a are somewhere met, here or elsewhere, else two.

    They are here where the columns are this process's own rows; with ``one``, other processes meet the others.
    """
    pairs = list(enumerate(zip(problem.a, problem.b, strict=True)))
    if problem.own or one:
        return [Job(p, a, b, True) for p, (a, b) in pairs]
    return [Job(p, *side, False) for p, (a, b) in pairs for side in ((a, b), (b, a))]


class Blocks:
    """Walks over blocks of rows and columns, with memory for ``planes`` blocks that every step uses again."""

    def __init__(self, problem: Problem, planes: int):
        self.problem = problem
        self.n, self.total = problem.z_MnD.shape[1], problem.z_MND.shape[1]
        size = min(BLOCK_ROWS, self.n) * min(BLOCK_COLUMNS, self.total)
        self.memory = problem.z_MnD.new_empty((planes, size))

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor | None]]:
        """Rows, columns, and where they must not be compared (None: nowhere)."""
        for i in range(0, self.n, BLOCK_ROWS):
            for j in range(0, self.total, BLOCK_COLUMNS):
                rows, columns = slice(i, min(i + BLOCK_ROWS, self.n)), slice(j, min(j + BLOCK_COLUMNS, self.total))
                same_rc = ~self.problem.other(rows, columns)
                yield rows, columns, same_rc if same_rc.any() else None

    def plane(self, k: int, rows: slice, columns: slice) -> Tensor:
        """The memory of block ``k`` in the shape of these rows and columns, whatever it holds."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        return self.memory[k, : shape[0] * shape[1]].view(shape)

    def logits(self, k: int, left: int, right: int, scale: float, rows: slice, columns: slice) -> Tensor:
        """scale <left_i, right_j> in plane ``k``."""
        scaled_rD = self.problem.z_MnD[left, rows] * scale
        return torch.mm(scaled_rD, self.problem.z_MND[right, columns].T, out=self.plane(k, rows, columns))


def reference_of(scale: float) -> float:
    """What is subtracted from logits before the exponential [nats]."""
    return max(0.0, scale - REFERENCE_MARGIN)


def unsafe(sum_Xn: Tensor, active_Xn: Tensor) -> Tensor:
    """True per first index where an active sum may have lost small terms to underflow, or any sum is not finite."""
    limits = torch.finfo(sum_Xn.dtype)
    lost_Xn = active_Xn & (sum_Xn < limits.tiny * 1e14)
    return (lost_Xn | ~(sum_Xn < limits.max)).flatten(1).any(1)


class Gradients:
    """Gradients under way: of the rows, of the columns (the same memory where they are the rows) and of the scales."""

    def __init__(self, problem: Problem, scale_P: Tensor):
        self.problem = problem
        self.rows = torch.zeros_like(problem.z_MnD)
        self.columns = self.rows if problem.own else torch.zeros_like(problem.z_MND)
        self.scale = torch.zeros_like(scale_P)

    def add(self, left: int, right: int, pair: int, scale: float, grad_rc: Tensor, rows: slice, columns: slice) -> None:
        """Add what ``grad_rc``, the gradient of logits scale <left_r, right_c>, says about their factors."""
        row_rD, column_cD = self.problem.z_MnD[left, rows], self.problem.z_MND[right, columns]
        product_rD = grad_rc @ column_cD
        # sum_rc grad_rc <row_r, column_c>, from what is there anyway
        self.scale[pair] += (product_rD * row_rD).sum()
        self.rows[left, rows].add_(product_rD, alpha=scale)
        self.columns[right, columns].addmm_(grad_rc.T, row_rD, alpha=scale)
