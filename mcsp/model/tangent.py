"""Tangent-space form of a covariance: its matrix logarithm, after shrinkage.

Symmetric positive definite matrices are a curved space; the logarithm at a fixed reference maps them to a flat one,
where means and linear classifiers are right (log-Euclidean metric: Arsigny et al., SIAM J. Matrix Anal. 29:328, 2007;
for connectivity: Varoquaux et al., MICCAI 2010). The reference is the identity, so that nothing has to be fitted.

Shape letters: B rows, A anchors, T time samples.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mcsp.model.matrix_log import LEAST_EIGENVALUE, log_by_eigenvectors, log_by_products

# The estimate below takes time samples as independent, which neither BOLD nor EEG are, and anchors outnumber electrodes
# and overlap: without a bound the logarithm would blow up what is rounding. 0.1 bounds it to [-2.3, log A].
LEAST_SHRINKAGE = LEAST_EIGENVALUE


def logarithm_for(device: torch.device) -> Callable[[Tensor], Tensor]:
    """The faster formulation of the matrix logarithm there."""
    return log_by_products if device.type == "cuda" else log_by_eigenvectors


def log_correlation(x_BAT: Tensor, valid_BT: Tensor, logarithm: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Matrix logarithm of the shrunk correlation of anchors, ``(B, A, A)`` in the dtype of ``x_BAT``.

    S is the correlation over valid time, and the estimate ``(1 - r) S + r I`` with the r of Ledoit and Wolf (J.
    Multivariate Anal. 88:365, 2004) for standardised variables, at least ``LEAST_SHRINKAGE``::

        r = min(1, [mean_t |x_t|^4 - |S|^2] / (n |S - I|^2))

    An anchor whose signal is flat counts as uncorrelated with all others. Products over time are taken in the dtype of
    ``x_BAT``, what is made of matrices of anchors in float64.

    Args:
        x_BAT: demeaned over valid time and zero elsewhere.
        valid_BT: bool.
        logarithm: of ``(B, A, A)``; default: what :func:`logarithm_for` says of the device.
    """
    n_B11 = valid_BT.sum(-1).clamp_min(1).double()[:, None, None]
    covariance_BAA = (x_BAT @ x_BAT.mT).double() / n_B11
    variance_BA = covariance_BAA.diagonal(dim1=-2, dim2=-1)
    live_BA = variance_BA > 1e-12
    scale_BA = torch.where(live_BA, variance_BA, 1.0).rsqrt() * live_BA
    identity = torch.eye(x_BAT.shape[1], dtype=torch.float64, device=x_BAT.device)
    correlation = torch.where(identity > 0, 1.0, covariance_BAA * scale_BA[:, :, None] * scale_BA[:, None])
    # |x_t|^2 of anchors scaled to unit variance, without a scaled copy of their time courses.
    norm2_BT = (scale_BA.square()[:, None].to(x_BAT.dtype) @ x_BAT.square())[:, 0]
    fourth_B = norm2_BT.double().square().sum(-1) / n_B11[:, 0, 0]
    noise_B = (fourth_B - correlation.square().sum((1, 2))) / n_B11[:, 0, 0]
    distance_B = (correlation - identity).square().sum((1, 2))
    shrinkage = (noise_B / distance_B.clamp_min(1e-12)).clamp(LEAST_SHRINKAGE, 1.0)[:, None, None]
    logarithm = logarithm or logarithm_for(x_BAT.device)
    return logarithm((1 - shrinkage) * correlation + shrinkage * identity).to(x_BAT.dtype)


def upper_triangle(matrix_BAA: Tensor, diagonal: bool = False) -> Tensor:
    """Entries above the diagonal, ``(B, A (A - 1) / 2)``; with it, ``(B, A (A + 1) / 2)`` with the matrix's norm."""
    size = matrix_BAA.shape[-1]
    rows, columns = torch.triu_indices(size, size, offset=0 if diagonal else 1, device=matrix_BAA.device)
    entries = matrix_BAA[..., rows, columns]
    return entries * torch.where(rows == columns, 1.0, math.sqrt(2)).to(entries) if diagonal else entries
