"""The square root of symmetric matrices that may be singular, by eigenvectors, and from products of matrices alone.

Shape letters: B rows, A anchors.
"""

from typing import Any

import torch
from torch import Tensor

# An eigenvalue x of the scaled matrix starts at sqrt(x) of its root and gains a factor 1.5 a step until it is near.
# After 34 steps those above 1e-12 are there, and what smaller ones leave is below 1e-6.
_STEPS = 34
_LEAST_SUM = 1e-6  # of two roots in the gradient, which is infinite where both are 0


class _Root(torch.autograd.Function):
    """By eigenvectors; gradient by divided differences: (sqrt a - sqrt b) / (a - b) = 1 / (sqrt a + sqrt b)."""

    @staticmethod
    def forward(ctx: Any, matrix_BAA: Tensor) -> Tensor:
        value_BA, vector_BAA = torch.linalg.eigh(matrix_BAA)
        root_BA = value_BA.clamp_min(0.0).sqrt()
        ctx.save_for_backward(root_BA, vector_BAA)
        return (vector_BAA * root_BA[:, None]) @ vector_BAA.mT

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        root_BA, vector_BAA = ctx.saved_tensors
        ratio_BAA = 1 / (root_BA[:, :, None] + root_BA[:, None]).clamp_min(_LEAST_SUM)
        symmetric_BAA = (grads[0] + grads[0].mT) / 2
        return vector_BAA @ (ratio_BAA * (vector_BAA.mT @ symmetric_BAA @ vector_BAA)) @ vector_BAA.mT


def root_by_eigenvectors(matrix_BAA: Tensor) -> Tensor:
    """Square root of symmetric matrices without negative eigenvalues; those that rounding makes count as 0."""
    found: Tensor = _Root.apply(matrix_BAA)
    return found


def root_by_products(matrix_BAA: Tensor) -> Tensor:
    """The same of matrices with a unit diagonal, by the coupled iteration of Newton and Schulz.

    Higham, Functions of Matrices, SIAM 2008, section 6.7; for covariances in networks Li et al., CVPR 2018. The trace
    bounds the largest eigenvalue. In float64 the result is within 1e-6 of the eigenvectors' (relative Frobenius norm),
    which a test holds it to.
    """
    size = matrix_BAA.shape[-1]
    identity = torch.eye(size, dtype=matrix_BAA.dtype, device=matrix_BAA.device)
    root_BAA, inverse_BAA = matrix_BAA / size, identity.expand_as(matrix_BAA)
    for _ in range(_STEPS):
        step_BAA = 1.5 * identity - 0.5 * (inverse_BAA @ root_BAA)
        root_BAA, inverse_BAA = root_BAA @ step_BAA, step_BAA @ inverse_BAA
    return root_BAA * size**0.5
