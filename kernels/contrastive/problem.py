"""Checked inputs of the losses over pairs, the same for every implementation.

Shape letters: M embeddings, n rows of this process, N rows of all processes, D width, P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Negatives = Literal["all", "within_site"]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Columns:
    """The rows of all processes, in order of rank; rows ``row_offset : row_offset + n`` are this process's own."""

    z_MND: Tensor
    valid_MN: Tensor | None = None  # bool; None: all valid
    subject_N: Tensor | None = None  # int64; None: every row is a subject of its own
    site_N: Tensor | None = None  # int64


@dataclass(frozen=True)
class Problem:
    """Checked inputs. Invalid rows hold anything; :meth:`zeroed` keeps that out of results and gradients."""

    a: list[int]
    b: list[int]
    z_MnD: Tensor
    z_MND: Tensor  # the very same tensor as z_MnD where ``own`` is True
    own: bool  # the columns are this process's rows
    valid_Mn: Tensor
    valid_MN: Tensor
    subject_n: Tensor
    subject_N: Tensor
    site_n: Tensor | None  # None: every site's rows are compared
    site_N: Tensor | None
    row_offset: int
    weight_P: Tensor | None  # None: 1 for every pair
    masked: tuple[bool, bool]  # whether any row, any column may be invalid

    def zeroed(self) -> "Problem":
        """Embeddings in their arithmetic, zeros where not valid; the same memory where neither changes anything."""
        z_MnD = _zeroed(self.z_MnD, self.valid_Mn if self.masked[0] else None)
        z_MND = z_MnD if self.own else _zeroed(self.z_MND, self.valid_MN if self.masked[1] else None)
        return replace(self, z_MnD=z_MnD, z_MND=z_MND)

    def other(self, rows: slice = slice(None), columns: slice = slice(None)) -> Tensor:
        """Bool, True where the column is another subject's (and of the same site, if asked)."""
        other = self.subject_n[rows, None] != self.subject_N[None, columns]
        if self.site_n is not None and self.site_N is not None:
            other &= self.site_n[rows, None] == self.site_N[None, columns]
        return other

    def anchors(self) -> Tensor:
        """Bool (P, n): this process's rows that are valid in both embeddings."""
        return pick(self.valid_Mn, self.a) & pick(self.valid_Mn, self.b)

    def weights(self) -> Tensor:
        """(P, n): at anchors the pair's weight over the number of all processes' anchors, elsewhere 0."""
        anchors_P = (pick(self.valid_MN, self.a) & pick(self.valid_MN, self.b)).sum(1).clamp(min=1)
        weight_Pn = self.anchors().to(arithmetic(self.z_MnD)) / anchors_P[:, None]
        return weight_Pn if self.weight_P is None else weight_Pn * self.weight_P[:, None]

    def valid(self, chosen: list[int]) -> Tensor:
        """Bool (len(chosen), n): valid rows of the chosen embeddings."""
        return pick(self.valid_Mn, chosen)

    def valid_columns(self, chosen: list[int]) -> Tensor:
        """Bool (len(chosen), N): valid columns of the chosen embeddings."""
        return pick(self.valid_MN, chosen)

    def masks(self) -> list[Tensor]:
        """All that decides what is compared."""
        masks = (self.valid_Mn, self.valid_MN, self.subject_n, self.subject_N, self.site_n, self.site_N)
        return [mask for mask in masks if mask is not None]


def pick(x: Tensor, indices: list[int]) -> Tensor:
    """Rows of ``x`` by number, without copying the numbers to a device."""
    return torch.stack([x[i] for i in indices])


def checked(
    z_MnD: Tensor,
    pairs_P2: Tensor | Sequence[tuple[int, int]],
    valid_Mn: Tensor | None,
    subject_n: Tensor | None,
    site_n: Tensor | None,
    negatives: Negatives,
    columns: Columns | None,
    row_offset: int,
    weight_P: Tensor | None = None,
) -> Problem:
    """Check shapes and types and fill in defaults; nothing here reads a value of an embedding.

    Raises:
        ValueError: shapes or types that do not fit, a pair index out of range, or within_site without sites.
    """
    if z_MnD.ndim != 3 or min(z_MnD.shape) < 1 or z_MnD.dtype not in DTYPES:
        found = f"{z_MnD.dtype} {tuple(z_MnD.shape)}"
        raise ValueError(f"z_MnD: expected (M, n, D) of {', '.join(map(str, DTYPES))}, found {found}")
    stack, n, width = z_MnD.shape
    pairs = [(int(a), int(b)) for a, b in (pairs_P2.tolist() if isinstance(pairs_P2, Tensor) else pairs_P2)]
    if not pairs or any(not 0 <= i < stack for pair in pairs for i in pair):
        raise ValueError(f"pairs_P2: expected at least one pair of indices from 0 to {stack - 1}, found {pairs}")
    columns = columns or Columns(z_MnD, valid_Mn, subject_n, site_n)
    total = columns.z_MND.shape[1]
    _expect("columns.z_MND", columns.z_MND, (stack, total, width))
    if columns.z_MND.dtype != z_MnD.dtype or columns.z_MND.device != z_MnD.device:
        found = f"{columns.z_MND.dtype} on {columns.z_MND.device}"
        raise ValueError(f"columns.z_MND: expected {z_MnD.dtype} on {z_MnD.device} like z_MnD, found {found}")
    if not 0 <= row_offset <= total - n:
        raise ValueError(f"row_offset: expected 0 to {total - n} ({n} rows of {total} columns), found {row_offset}")
    if weight_P is not None:
        weight_P = _expect("weight_P", weight_P, (len(pairs),)).detach().to(z_MnD.device, arithmetic(z_MnD))
    keys = _keys(subject_n, site_n, negatives, columns, n, row_offset)
    own = columns.z_MND is z_MnD and (columns.valid_MN is None) == (valid_Mn is None)
    mask_Mn = _mask("valid_Mn", valid_Mn, z_MnD)
    mask_MN = _mask("columns.valid_MN", columns.valid_MN, columns.z_MND)
    a, b = [a for a, _ in pairs], [b for _, b in pairs]
    masked = (valid_Mn is not None, columns.valid_MN is not None)
    return Problem(a, b, z_MnD, columns.z_MND, own, mask_Mn, mask_MN, *keys, row_offset, weight_P, masked)


def _keys(
    subject_n: Tensor | None, site_n: Tensor | None, negatives: str, columns: Columns, n: int, row_offset: int
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Subjects of rows and columns, and sites where they matter."""
    total, site_N = columns.z_MND.shape[1], columns.site_N
    if (subject_n is None) != (columns.subject_N is None):
        raise ValueError("columns.subject_N: expected exactly where subject_n is given")
    if subject_n is None or columns.subject_N is None:
        subject_N = torch.arange(total, device=columns.z_MND.device)
        subject_n = subject_N[row_offset : row_offset + n]
    else:
        _expect("subject_n", subject_n, (n,))
        subject_N = _expect("columns.subject_N", columns.subject_N, (total,))
    if negatives == "all":
        return subject_n, subject_N, None, None
    if negatives != "within_site":
        raise ValueError(f"negatives: expected 'all' or 'within_site', found {negatives!r}")
    if site_n is None or site_N is None:
        raise ValueError("negatives='within_site': expected site_n (and columns.site_N), found None")
    return subject_n, subject_N, _expect("site_n", site_n, (n,)), _expect("columns.site_N", site_N, (total,))


def check_values(problem: Problem) -> None:
    """Read all valid embeddings: finite, and of norm 1 as far as their type tells.

    Raises:
        ValueError: the first row that is not.
    """
    for name, z, valid in (
        ("z_MnD", problem.z_MnD, problem.valid_Mn),
        ("columns.z_MND", problem.z_MND, problem.valid_MN),
    ):
        norms = torch.linalg.vector_norm(z.detach(), dim=-1, dtype=arithmetic(z))
        wrong = valid & ~((norms - 1).abs() <= 1e-2)  # also where not finite
        if wrong.any():
            m, i = wrong.nonzero()[0].tolist()
            found = f"norm {norms[m, i].item():.4g} in row {i} of embedding {m}"
            raise ValueError(f"{name}: expected finite rows of norm 1, found {found}")


def checked_scale(scale_P: Tensor, problem: Problem) -> Tensor:
    """One scale per pair, in the arithmetic of the embeddings.

    Raises:
        ValueError: another number of scales.
    """
    pairs = len(problem.a)
    if scale_P.shape != (pairs,):
        raise ValueError(f"scale_P: expected shape ({pairs},), one per pair, found {tuple(scale_P.shape)}")
    return scale_P.to(problem.z_MnD.device, arithmetic(problem.z_MnD))


def arithmetic(z: Tensor) -> torch.dtype:
    """The type of sums and results: float64 for float64 embeddings, else float32."""
    return torch.float64 if z.dtype == torch.float64 else torch.float32


def _zeroed(z: Tensor, valid: Tensor | None) -> Tensor:
    """Embeddings in their arithmetic, 0 where not valid; the caller's own memory where neither changes anything."""
    z = z.to(arithmetic(z))
    return z if valid is None else z.masked_fill(~valid[..., None], 0)


def _mask(name: str, valid: Tensor | None, z: Tensor) -> Tensor:
    if valid is None:
        return torch.ones(z.shape[:2], dtype=torch.bool, device=z.device)
    if valid.dtype != torch.bool:
        raise ValueError(f"{name}: expected bool, found {valid.dtype}")
    return _expect(name, valid, tuple(z.shape[:2]))


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, found {tuple(tensor.shape)}")
    return tensor
