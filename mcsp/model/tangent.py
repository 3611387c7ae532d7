"""Forms of a correlation matrix that linear models read well: its matrix logarithm, after shrinkage, and its root.

Symmetric positive definite matrices are a curved space; the logarithm at a fixed reference maps them to a flat one,
where means and linear classifiers are right (log-Euclidean metric: Arsigny et al., SIAM J. Matrix Anal. 29:328, 2007;
for connectivity: Varoquaux et al., MICCAI 2010). The reference is the identity, so that nothing has to be fitted.

Both come from eigenvectors, or from products of matrices alone: for programs where eigenvectors are no operator (ONNX),
and for CUDA, where products are the better fit. Inverse scaling and squaring (Higham, Functions of Matrices, SIAM 2008,
chapter 11): square roots until the matrix is near a multiple of the identity, then the series of log(1 - e). The roots
come from the coupled iteration of Newton and Schulz (there, section 6.7), which multiplies and never divides. All
counts follow from the bounds of the eigenvalues, so the graph has no branch.

Shape letters: B rows, A anchors, T time samples.
"""

import math
from collections.abc import Callable
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


# The estimate below takes time samples as independent, which neither BOLD nor EEG are, and anchors outnumber electrodes
# and overlap: without a bound the logarithm would blow up what is rounding. 0.1 bounds it to [-2.3, log A].
LEAST_SHRINKAGE = LEAST_EIGENVALUE
LEAST_NORM = 0.1  # of the entries of a root; those of a hundred anchors have some 5


_FLAT = 1e-12  # variance of an anchor's course, of standardised channels, that counts as none
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
    if _few_samples(x_BAT, by_products):
        return _log_from_samples(x_BAT, valid_BT)
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
    if shrinkage > 0 and _few_samples(x_BAT, by_products):
        factor_BAT, flat_BA, _ = _factor(x_BAT, valid_BT)
        least = math.sqrt(shrinkage)

        def gained(value: Tensor) -> Tensor:
            return (1 - shrinkage) / (((1 - shrinkage) * value + shrinkage).sqrt() + least)

        root_BAA = _of_factor(factor_BAT, gained, least + (1 - least) * flat_BA.double())
        return root_BAA.to(x_BAT.dtype)
    correlation, _, _, identity = _correlation(x_BAT, valid_BT)
    root = root_by_products if _products(x_BAT, by_products) else root_by_eigenvectors
    return root((1 - shrinkage) * correlation + shrinkage * identity, shrinkage).to(x_BAT.dtype)


def _few_samples(x_BAT: Tensor, by_products: bool | None) -> bool:
    """Whether matrices of time samples do the work of those of anchors: they are smaller, as BOLD's windows mostly are.

    Not where a gradient is wanted: that of eigenvectors is infinite where eigenvalues are equal, as zeros are here.
    """
    wanted = x_BAT.requires_grad and torch.is_grad_enabled()
    return not (_products(x_BAT, by_products) or wanted) and x_BAT.shape[-1] < x_BAT.shape[-2]


def _log_from_samples(x_BAT: Tensor, valid_BT: Tensor) -> Tensor:
    """:func:`log_correlation` through the products of samples with each other."""
    factor_BAT, flat_BA, n_B = _factor(x_BAT, valid_BT)
    gram_BTT = factor_BAT.mT @ factor_BAT
    norm2_BT = gram_BTT.diagonal(dim1=-2, dim2=-1) * n_B[:, None]
    fourth_B, squares_B = norm2_BT.square().sum(-1) / n_B, _squares(gram_BTT, flat_BA)
    r_B = _shrinkage(fourth_B, squares_B, n_B, x_BAT.shape[1])
    return _log_of_factor(factor_BAT, gram_BTT, flat_BA, r_B).to(x_BAT.dtype)


def channel_factor(x_BCT: Tensor, scale_BC: Tensor, valid_BT: Tensor) -> tuple[Tensor, Tensor]:
    """R in float64 of ``R R'``, the covariance over valid time of channels z times ``scale``, ``(B, C, C)``; and the
    mean of ``|z_t|^4`` ``(B,)``.

    For :func:`log_correlation_of_mixture`; without a gradient. Products over time are taken in the dtype of ``x_BCT``.
    """
    n_B = valid_BT.sum(-1).clamp_min(1).double()
    scale_BC1 = scale_BC.double()[..., None]
    covariance_BCC = (x_BCT @ x_BCT.mT).double() / n_B[:, None, None] * scale_BC1 * scale_BC1.mT
    value_BC, vector_BCC = _eigenvectors(covariance_BCC)
    norm2_BT = (scale_BC.square()[:, None].to(x_BCT.dtype) @ x_BCT.square())[:, 0]
    fourth_B = torch.linalg.vector_norm(norm2_BT, dim=-1).double().square() / n_B
    return vector_BCC * value_BC.clamp_min(0.0).sqrt()[:, None], fourth_B


def log_correlation_of_mixture(
    mixing_BAC: Tensor, x_BCT: Tensor, scale_BC: Tensor, factor_BCC: Tensor, fourth_B: Tensor, valid_BT: Tensor
) -> Tensor:
    """:func:`log_correlation` of ``mixing @ (scale x)`` for fewer channels than anchors, without its time courses.

    Args:
        mixing_BAC: weights of channels at anchors.
        x_BCT: channels, demeaned over valid time and zero elsewhere.
        scale_BC: makes them of about unit variance.
        factor_BCC, fourth_B: of these by :func:`channel_factor`; one for all mixtures of a window.
        valid_BT: bool.
    """
    n_B = valid_BT.sum(-1).clamp_min(1).double()
    factor_BAC = mixing_BAC.double() @ factor_BCC
    variance_BA = factor_BAC.square().sum(-1)
    flat_BA = variance_BA <= _FLAT
    scale_BA = torch.where(flat_BA, 1.0, variance_BA).rsqrt() * ~flat_BA
    factor_BAC = factor_BAC * scale_BA[..., None]
    unit_BAC = (mixing_BAC * scale_BA[..., None]).to(x_BCT.dtype)
    form_BCC = unit_BAC.mT @ unit_BAC  # |x_t|^2 at the anchors is this quadratic form of the channels
    gram_BCC = factor_BAC.mT @ factor_BAC
    squares_B = _squares(gram_BCC, flat_BA)
    # The shrinkage is mostly far below the least, which a bound of the fourth moment shows without a pass over time: no
    # eigenvalue is above a sum of magnitudes in a row. The moment itself is found where the bound does not settle it.
    largest_B = form_BCC.abs().sum(-1).amax(-1).double()
    bound_B = 1.01 * largest_B.square() * fourth_B
    open_B = _shrinkage(bound_B, squares_B, n_B, factor_BAC.shape[1]) > LEAST_SHRINKAGE
    if bool(open_B.any()):
        of_channels = scale_BC[open_B, :, None] * form_BCC[open_B] * scale_BC[open_B, None]
        some_BCT = x_BCT[open_B]
        norm2_BT = (of_channels @ some_BCT).mul_(some_BCT).sum(1)
        bound_B[open_B] = norm2_BT.double().square().sum(-1) / n_B[open_B]
    r_B = _shrinkage(bound_B, squares_B, n_B, factor_BAC.shape[1])
    return _log_of_factor(factor_BAC, gram_BCC, flat_BA, r_B).to(x_BCT.dtype)


def _squares(gram_BKK: Tensor, flat_BA: Tensor) -> Tensor:
    """``|S|^2`` of ``S = F F' + diag(flat)`` from the gram F' F: its squares sum to those of S, but for the ones."""
    return gram_BKK.square().sum((1, 2)) + flat_BA.sum(1)


def _shrinkage(fourth_B: Tensor, squares_B: Tensor, n_B: Tensor, anchors: int) -> Tensor:
    """r of :func:`log_correlation` from the mean of ``|x_t|^4`` and ``|S|^2``."""
    noise_B, distance_B = (fourth_B - squares_B) / n_B, squares_B - anchors
    return (noise_B / distance_B.clamp_min(1e-12)).clamp(LEAST_SHRINKAGE, 1.0)


def _log_of_factor(factor_BAK: Tensor, gram_BKK: Tensor, flat_BA: Tensor, r_B: Tensor) -> Tensor:
    """The logarithm from F of ``S = F F' + diag(flat)``, its gram F' F and the shrinkage."""
    r_B1 = r_B[:, None]

    def gained(value_BK: Tensor) -> Tensor:
        some_BK = value_BK.clamp_min(1e-12)
        return torch.log1p((1 - r_B1) / r_B1 * some_BK) / some_BK

    return _of_factor(factor_BAK, gained, torch.where(flat_BA, 0.0, r_B1.log()), gram_BKK)


def _factor(x_BAT: Tensor, valid_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """F of ``S = F F' + diag(flat)`` in float64, which anchors are flat, and valid time samples."""
    n_B = valid_BT.sum(-1).clamp_min(1).double()
    x_BAT = x_BAT.double() * n_B.rsqrt()[:, None, None]
    variance_BA = x_BAT.square().sum(-1)
    flat_BA = variance_BA <= _FLAT
    scale_BA = torch.where(flat_BA, 1.0, variance_BA).rsqrt() * ~flat_BA
    return x_BAT * scale_BA[..., None], flat_BA, n_B


def _of_factor(
    factor_BAT: Tensor, gained: Callable[[Tensor], Tensor], diagonal_BA: Tensor, gram_BTT: Tensor | None = None
) -> Tensor:
    """``F g(F' F) F' + diag``: a function f of ``F F' + c I`` where g(v) is ``(f(v + c) - f(c)) / v`` and diag f(c)."""
    gram_BTT = factor_BAT.mT @ factor_BAT if gram_BTT is None else gram_BTT
    value_BT, vector_BTT = _eigenvectors(gram_BTT)
    wide_BAT = factor_BAT @ vector_BTT
    found_BAA = (wide_BAT * gained(value_BT.clamp_min(0.0))[:, None]) @ wide_BAT.mT
    found_BAA.diagonal(dim1=-2, dim2=-1).add_(diagonal_BA)
    return found_BAA


def _eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """As ``torch.linalg.eigh``, which ends the program where a matrix is not finite; what else is made of it is not."""
    value, vector = torch.linalg.eigh(matrix.nan_to_num(0.0, 0.0, 0.0))
    return value, vector


def _products(x: Tensor, by_products: bool | None) -> bool:
    return x.device.type == "cuda" if by_products is None else by_products


def _correlation(x_BAT: Tensor, valid_BT: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """S, float64; what scales each anchor to unit variance, 0 where it is flat; valid time samples; the identity."""
    n_B = valid_BT.sum(-1).clamp_min(1).double()
    covariance_BAA = (x_BAT @ x_BAT.mT).double() / n_B[:, None, None]
    variance_BA = covariance_BAA.diagonal(dim1=-2, dim2=-1)
    live_BA = variance_BA > _FLAT
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
