"""The matrix logarithm and root of symmetric matrices, by eigenvectors, and from products of matrices alone.

Products are for programs where eigenvectors are no operator (ONNX), and for CUDA, where they are the better fit.
Inverse scaling and squaring (Higham, Functions of Matrices, SIAM 2008, chapter 11): square roots until the matrix is
near a multiple of the identity, then the series of log(1 - e). The roots come from the coupled iteration of Newton and
Schulz (there, section 6.7), which multiplies and never divides. All counts follow from the bounds of the eigenvalues,
so the graph has no branch.

Shape letters: B rows, A anchors.
"""

import math
from typing import Any

import torch
from torch import Tensor

LEAST_EIGENVALUE = 0.1
_LARGEST_REST = 0.15  # of the series' argument; smaller takes more roots and loses digits, larger takes more terms
_ROUNDING = 2.0**-53
# Eigenvalues below this count as none: more iterations would make rounding of it.
_NOTHING = 1e-10
_LEAST_SUM = 1e-6  # of two roots in the gradient, which is infinite where both are 0


class _Logarithm(torch.autograd.Function):
    """By eigenvectors; gradient by divided differences (Daleckii and Krein), which equal eigenvalues do not spoil."""

    @staticmethod
    def forward(ctx: Any, matrix_BAA: Tensor) -> Tensor:
        value_BA, vector_BAA = torch.linalg.eigh(matrix_BAA)
        # Rounding may leave an eigenvalue below the bound that shrinkage gives it.
        value_BA = value_BA.clamp_min(LEAST_EIGENVALUE)
        ctx.save_for_backward(value_BA, vector_BAA)
        return (vector_BAA * value_BA.log()[:, None]) @ vector_BAA.mT

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        value_BA, vector_BAA = ctx.saved_tensors
        # (log a - log b) / (a - b) with e = (a - b) / (a + b): log a - log b = 2 artanh e.
        total_BAA = value_BA[:, :, None] + value_BA[:, None]
        e_BAA = (value_BA[:, :, None] - value_BA[:, None]) / total_BAA
        ratio_BAA = torch.where(e_BAA.abs() < 1e-6, 1.0, e_BAA.atanh() / e_BAA) * 2 / total_BAA
        symmetric_BAA = (grads[0] + grads[0].mT) / 2
        return vector_BAA @ (ratio_BAA * (vector_BAA.mT @ symmetric_BAA @ vector_BAA)) @ vector_BAA.mT


def log_by_eigenvectors(matrix_BAA: Tensor) -> Tensor:
    """Matrix logarithm of symmetric matrices whose eigenvalues are ``LEAST_EIGENVALUE`` at least."""
    found: Tensor = _Logarithm.apply(matrix_BAA)
    return found


class _Root(torch.autograd.Function):
    """By eigenvectors, as :class:`_Logarithm`; the divided difference of a root is one over the sum of both roots."""

    @staticmethod
    def forward(ctx: Any, matrix_BAA: Tensor, least: float) -> Tensor:
        value_BA, vector_BAA = torch.linalg.eigh(matrix_BAA)
        root_BA = value_BA.clamp_min(least).sqrt()
        ctx.save_for_backward(root_BA, vector_BAA)
        return (vector_BAA * root_BA[:, None]) @ vector_BAA.mT

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        root_BA, vector_BAA = ctx.saved_tensors
        ratio_BAA = 1 / (root_BA[:, :, None] + root_BA[:, None]).clamp_min(_LEAST_SUM)
        symmetric_BAA = (grads[0] + grads[0].mT) / 2
        return vector_BAA @ (ratio_BAA * (vector_BAA.mT @ symmetric_BAA @ vector_BAA)) @ vector_BAA.mT, None


def root_by_eigenvectors(matrix_BAA: Tensor, least: float) -> Tensor:
    """Matrix root of symmetric matrices whose eigenvalues are ``least`` at least, which may be 0."""
    found: Tensor = _Root.apply(matrix_BAA, least)
    return found


def root_by_products(matrix_BAA: Tensor, least: float) -> Tensor:
    """The same with a unit diagonal; in float64 as near to the eigenvectors' as the logarithm is.

    Where ``least`` is 0 the result is within 1e-6 of theirs (relative Frobenius norm).
    """
    size = matrix_BAA.shape[-1]
    identity = torch.eye(size, dtype=matrix_BAA.dtype, device=matrix_BAA.device)
    return math.sqrt(size) * _square_root(matrix_BAA / size, identity, max(least, _NOTHING) / size)


def log_by_products(matrix_BAA: Tensor, least: float = LEAST_EIGENVALUE) -> Tensor:
    """Matrix logarithm of symmetric matrices with a unit diagonal and eigenvalues of ``least`` and more.

    The trace bounds the largest eigenvalue by A. In float64 the result is within 1e-12 of the eigenvectors' (relative
    Frobenius norm), which a test holds it to.
    """
    size = matrix_BAA.shape[-1]
    identity = torch.eye(size, dtype=matrix_BAA.dtype, device=matrix_BAA.device)
    root_BAA, low, roots = matrix_BAA / size, least / size, 0
    while (1 - low) / (1 + low) > _LARGEST_REST:
        root_BAA, low, roots = _square_root(root_BAA, identity, low), math.sqrt(low), roots + 1
    centre, rest = (1 + low) / 2, (1 - low) / (1 + low)
    terms = next(n for n in range(1, 100) if rest ** (n + 1) / (n + 1) < _ROUNDING)
    e_BAA = identity - root_BAA / centre
    series_BAA = identity / terms  # of -log(1 - e) = e (1 + e (1/2 + e (1/3 + ...))), from the inside
    for n in range(terms - 1, 0, -1):
        series_BAA = identity / n + e_BAA @ series_BAA
    scale = 2.0**roots
    return (math.log(size) + scale * math.log(centre)) * identity - scale * (e_BAA @ series_BAA)


def _square_root(matrix_BAA: Tensor, identity: Tensor, low: float) -> Tensor:
    """Of symmetric matrices with eigenvalues in [``low``, 1]."""
    root_BAA, inverse_BAA = matrix_BAA, identity.expand_as(matrix_BAA)
    for _ in range(_iterations(low)):
        step_BAA = 1.5 * identity - 0.5 * (inverse_BAA @ root_BAA)
        root_BAA, inverse_BAA = root_BAA @ step_BAA, step_BAA @ inverse_BAA
    return root_BAA


def _iterations(low: float) -> int:
    """Until the smallest eigenvalue, the slowest, has converged; the error is squared in each of the last steps."""
    count, product = 0, low
    while 1 - product > 1e-9:
        product *= (1.5 - 0.5 * product) ** 2
        count += 1
    return count + 1
