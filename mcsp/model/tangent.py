"""Forms of a correlation matrix that a linear classifier reads: its logarithm, after shrinkage, and its square root.

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
from mcsp.model.matrix_root import root_by_eigenvectors, root_by_products

# The estimate below takes time samples as independent, which neither BOLD nor EEG are, and anchors outnumber electrodes
# and overlap: without a bound the logarithm would blow up what is rounding. 0.1 bounds it to [-2.3, log A].
LEAST_SHRINKAGE = LEAST_EIGENVALUE
LEAST_NORM = 0.1  # of the entries of a root; those of a hundred anchors have some 5


def logarithm_for(device: torch.device) -> Callable[[Tensor], Tensor]:
    """The faster formulation of the matrix logarithm there."""
    return log_by_products if device.type == "cuda" else log_by_eigenvectors


def root_for(device: torch.device) -> Callable[[Tensor], Tensor]:
    """The faster formulation of the matrix square root there."""
    return root_by_products if device.type == "cuda" else root_by_eigenvectors


def log_correlation(x_BAT: Tensor, valid_BT: Tensor, logarithm: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Matrix logarithm of the shrunk correlation of anchors, ``(B, A, A)`` in the dtype of ``x_BAT``.

    S is the correlation over valid time, and the estimate ``(1 - r) S + r I`` with the r of Ledoit and Wolf (J.
    Multivariate Anal. 88:365, 2004) for standardised variables, at least ``LEAST_SHRINKAGE``::

        r = min(1, [mean_t |x_t|^4 - |S|^2] / (n |S - I|^2))

    An anchor whose signal is flat counts as uncorrelated with all others. Arithmetic is float64.

    Args:
        x_BAT: demeaned over valid time and zero elsewhere.
        valid_BT: bool.
        logarithm: of ``(B, A, A)``; default: what :func:`logarithm_for` says of the device.
    """
    x, correlation, n_B = _correlation(x_BAT, valid_BT)
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    fourth_B = x.square().sum(1).square().sum(-1) / n_B
    noise_B = (fourth_B - correlation.square().sum((1, 2))) / n_B
    distance_B = (correlation - identity).square().sum((1, 2))
    shrinkage = (noise_B / distance_B.clamp_min(1e-12)).clamp(LEAST_SHRINKAGE, 1.0)[:, None, None]
    logarithm = logarithm or logarithm_for(x.device)
    return logarithm((1 - shrinkage) * correlation + shrinkage * identity).to(x_BAT.dtype)


def root_correlation(x_BAT: Tensor, valid_BT: Tensor, root: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Matrix square root of the correlation of channels or anchors, ``(B, A, A)`` in the dtype of ``x_BAT``.

    The power metric of Dryden et al. (Ann. Appl. Stat. 3:1102, 2009) with exponent 1/2. It compresses large eigenvalues
    as the logarithm does, but leaves small ones, which are noise in recordings of few samples, small; so nothing has to
    be shrunk, and any number of samples will do. Arguments and flat anchors as in :func:`log_correlation`.
    """
    _, correlation, _ = _correlation(x_BAT, valid_BT)
    return (root or root_for(x_BAT.device))(correlation).to(x_BAT.dtype)


def _correlation(x_BAT: Tensor, valid_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Courses of unit variance, their correlation with a diagonal of 1, and numbers of valid samples; all float64."""
    x = x_BAT.double()
    n_B = valid_BT.sum(-1).clamp_min(1).double()
    variance_BA1 = x.square().sum(-1, keepdim=True) / n_B[:, None, None]
    live_BA1 = variance_BA1 > 1e-12
    x = x * torch.where(live_BA1, variance_BA1, 1.0).rsqrt() * live_BA1
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return x, torch.where(identity > 0, 1.0, x @ x.mT / n_B[:, None, None]), n_B


def unit_triangle(matrix_BAA: Tensor) -> Tensor:
    """Entries above the diagonal without their mean, of length 1: how connections compare within one recording.

    Entries that are all alike, but for rounding, stay near 0.
    """
    entries = upper_triangle(matrix_BAA)
    return torch.nn.functional.normalize(entries - entries.mean(-1, keepdim=True), dim=-1, eps=LEAST_NORM)


def upper_triangle(matrix_BAA: Tensor, diagonal: bool = False) -> Tensor:
    """Entries above the diagonal, ``(B, A (A - 1) / 2)``; with it, ``(B, A (A + 1) / 2)`` with the matrix's norm."""
    size = matrix_BAA.shape[-1]
    rows, columns = torch.triu_indices(size, size, offset=0 if diagonal else 1, device=matrix_BAA.device)
    entries = matrix_BAA[..., rows, columns]
    return entries * torch.where(rows == columns, 1.0, math.sqrt(2)).to(entries) if diagonal else entries
