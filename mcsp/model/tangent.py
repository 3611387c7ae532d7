"""Forms of a correlation matrix that linear models read well: its matrix logarithm, after shrinkage, and its root.

Symmetric positive definite matrices are a curved space; the logarithm at a fixed reference maps them to a flat one,
where means and linear classifiers are right (log-Euclidean metric: Arsigny et al., SIAM J. Matrix Anal. 29:328, 2007;
for connectivity: Varoquaux et al., MICCAI 2010). The reference is the identity, so that nothing has to be fitted.

Shape letters: B rows, A anchors, T time samples.
"""

import math

import torch
from torch import Tensor

from mcsp.model.matrix_log import (
    LEAST_EIGENVALUE,
    log_by_eigenvectors,
    log_by_products,
    root_by_eigenvectors,
    root_by_products,
)

# The estimate below takes time samples as independent, which neither BOLD nor EEG are, and anchors outnumber electrodes
# and overlap: without a bound the logarithm would blow up what is rounding. 0.1 bounds it to [-2.3, log A].
LEAST_SHRINKAGE = LEAST_EIGENVALUE
LEAST_NORM = 0.1  # of the entries of a root; those of a hundred anchors have some 5


# Of the root. It takes little of the smallest eigenvalues, as their root is small anyway, and bounds the gradient.
ROOT_SHRINKAGE = 0.01


def log_correlation(x_BAT: Tensor, valid_BT: Tensor, by_products: bool | None = None) -> Tensor:
    """Matrix logarithm of the shrunk correlation of anchors, ``(B, A, A)`` in the dtype of ``x_BAT``.

    S is the correlation over valid time, and the estimate ``(1 - r) S + r I`` with the r of Ledoit and Wolf (J.
    Multivariate Anal. 88:365, 2004) for standardised variables, at least ``LEAST_SHRINKAGE``::

        r = min(1, [mean_t |x_t|^4 - |S|^2] / (n |S - I|^2))

    An anchor whose signal is flat counts as uncorrelated with all others. Products over time are taken in the dtype of
    ``x_BAT``, what is made of matrices of anchors in float64.

    Args:
        x_BAT: demeaned over valid time and zero elsewhere.
        valid_BT: bool.
        by_products: the logarithm from products of matrices instead of eigenvectors; default: on CUDA, where it is the
            faster one.
    """
    correlation, scale_BA, n_B, identity = _correlation(x_BAT, valid_BT)
    # |x_t|^2 of anchors scaled to unit variance, without a scaled copy of their time courses.
    norm2_BT = (scale_BA.square()[:, None].to(x_BAT.dtype) @ x_BAT.square())[:, 0]
    fourth_B = norm2_BT.double().square().sum(-1) / n_B
    noise_B = (fourth_B - correlation.square().sum((1, 2))) / n_B
    distance_B = (correlation - identity).square().sum((1, 2))
    shrinkage = (noise_B / distance_B.clamp_min(1e-12)).clamp(LEAST_SHRINKAGE, 1.0)[:, None, None]
    logarithm = log_by_products if _products(x_BAT, by_products) else log_by_eigenvectors
    return logarithm((1 - shrinkage) * correlation + shrinkage * identity).to(x_BAT.dtype)


def root_correlation(
    x_BAT: Tensor, valid_BT: Tensor, by_products: bool | None = None, shrinkage: float = ROOT_SHRINKAGE
) -> Tensor:
    """Matrix root of ``(1 - r) S + r I`` with r = ``shrinkage``; all else as :func:`log_correlation`.

    The power metric of Dryden et al. (Ann. Appl. Stat. 3:1102, 2009) with exponent 1/2. It compresses large eigenvalues
    as the logarithm does, but leaves small ones, which are noise in recordings of few samples, small; so a feature
    needs no shrinkage, and any number of samples will do.
    """
    correlation, _, _, identity = _correlation(x_BAT, valid_BT)
    root = root_by_products if _products(x_BAT, by_products) else root_by_eigenvectors
    return root((1 - shrinkage) * correlation + shrinkage * identity, shrinkage).to(x_BAT.dtype)


def _products(x: Tensor, by_products: bool | None) -> bool:
    return x.device.type == "cuda" if by_products is None else by_products


def _correlation(x_BAT: Tensor, valid_BT: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """S, float64; what scales each anchor to unit variance, 0 where it is flat; valid time samples; the identity."""
    n_B = valid_BT.sum(-1).clamp_min(1).double()
    covariance_BAA = (x_BAT @ x_BAT.mT).double() / n_B[:, None, None]
    variance_BA = covariance_BAA.diagonal(dim1=-2, dim2=-1)
    live_BA = variance_BA > 1e-12
    scale_BA = torch.where(live_BA, variance_BA, 1.0).rsqrt() * live_BA
    identity = torch.eye(x_BAT.shape[1], dtype=torch.float64, device=x_BAT.device)
    correlation_BAA = torch.where(identity > 0, 1.0, covariance_BAA * scale_BA[:, :, None] * scale_BA[:, None])
    return correlation_BAA, scale_BA, n_B, identity


def unit_triangle(matrix_BAA: Tensor) -> Tensor:
    """Entries above the diagonal without their mean, of length 1: how connections compare within one recording.

    Entries that are all alike, but for rounding, stay near 0.
    """
    # The mean of thousands of entries that are alike is not theirs in float32, and LEAST_NORM would show what is left.
    entries = upper_triangle(matrix_BAA).double()
    unit = torch.nn.functional.normalize(entries - entries.mean(-1, keepdim=True), dim=-1, eps=LEAST_NORM)
    return unit.to(matrix_BAA.dtype)


def upper_triangle(matrix_BAA: Tensor, diagonal: bool = False) -> Tensor:
    """Entries above the diagonal, ``(B, A (A - 1) / 2)``; with it, ``(B, A (A + 1) / 2)`` with the matrix's norm."""
    size = matrix_BAA.shape[-1]
    rows, columns = torch.triu_indices(size, size, offset=0 if diagonal else 1, device=matrix_BAA.device)
    entries = matrix_BAA[..., rows, columns]
    return entries * torch.where(rows == columns, 1.0, math.sqrt(2)).to(entries) if diagonal else entries
