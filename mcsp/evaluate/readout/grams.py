"""Gram matrices of features, computed once for all units and shared by all folds.

A block of features, however long, is one matrix of inner products. A feature set is a weighted sum of its blocks' Gram
matrices, each centred at the mean of the training units and divided by their mean squared distance from it, so that no
block counts more for its length or its unit. Nothing is standardised feature by feature and nothing is rotated.

Shape letters: N units, M training units, F features, C channels.
"""

from collections.abc import Callable, Sequence

import numpy as np
from pyriemann.tangentspace import TangentSpace
from scipy.linalg import solve

from mcsp.evaluate.readout.harmonize import Combat

# The Riemannian mean of many large matrices takes minutes a fold; the arithmetic one is a good reference point too.
RIEMANNIAN_MEAN_CHANNELS = 32
DENOISER_PENALTY = 1.0  # of the ridge, relative to the mean squared length of a half without its site's mean

SHUFFLE_SEED = 0

# The Gram matrix (N, N) of all units as seen from training units (their indices): centred, of mean diagonal 1 on them.
GramOf = Callable[[np.ndarray], np.ndarray]


def gram(x_NF: np.ndarray) -> np.ndarray:
    """Inner products of all pairs of units ``(N, N)``, float64; features lose their mean first, for its digits."""
    x_NF = x_NF.astype(np.float64)
    x_NF -= x_NF.mean(axis=0)
    product_NN: np.ndarray = x_NF @ x_NF.T
    return product_NN


def scales(grams: Sequence[np.ndarray], train: np.ndarray, weights: Sequence[float] | None = None) -> list[float]:
    """What each Gram matrix is multiplied with, so that the sum of all is their weighted mean at equal spread.

    The spread is the mean squared distance of the training units from their mean. A block that does not vary among them
    gets 0.
    """
    shares = [1 / len(grams)] * len(grams) if weights is None else [weight / sum(weights) for weight in weights]
    found = []
    for gram_NN, share in zip(grams, shares, strict=True):
        size = float(np.diagonal(gram_NN)[train].mean())
        spread = size - float(gram_NN[np.ix_(train, train)].mean())
        found.append(share / spread if spread > 1e-12 * size else 0.0)
    return found


def combined(grams: Sequence[np.ndarray], train: np.ndarray, weights: Sequence[float] | None = None) -> np.ndarray:
    """Weighted mean of Gram matrices ``(N, N)``, centred at the training units and scaled by :func:`scales`."""
    total_NN = np.zeros_like(grams[0])
    for gram_NN, scale in zip(grams, scales(grams, train, weights), strict=True):
        total_NN += scale * gram_NN
    mean_N = total_NN[train].mean(axis=0)
    total_NN -= mean_N + mean_N[:, None] - mean_N[train].mean()
    return total_NN


def fixed(grams: Sequence[np.ndarray], weights: Sequence[float] | None = None) -> GramOf:
    """Features that are the same in every fold."""
    return lambda train: combined(grams, train, weights)


def weighed(parts: Sequence[tuple[GramOf, float]]) -> GramOf:
    """The weighted sum of what each gives, which has mean diagonal 1 where the weights sum to 1."""
    return lambda train: np.sum([weight * part(train) for part, weight in parts], axis=0)


def without_site_means(gram_NN: np.ndarray, sites: Sequence[str]) -> np.ndarray:
    """The Gram matrix of features without the mean of their site over all units, tested ones included: transductive."""
    site_N = np.asarray(sites)
    return without_means(without_means(gram_NN, site_N).T, site_N)


def harmonized(blocks: Sequence[np.ndarray], sites: Sequence[str], weights: Sequence[float] | None = None) -> GramOf:
    """Blocks of features after ComBat, which is fitted on the training units of each fold."""
    site_N = np.asarray(sites)

    def of(train: np.ndarray) -> np.ndarray:
        after = [Combat().fit(x_NF[train], sites=site_N[train]).transform(x_NF, site_N) for x_NF in blocks]
        return combined([gram(x_NF) for x_NF in after], train, weights)

    return of


def tangent(x_NCC: np.ndarray) -> GramOf:
    """Covariances in the tangent space at the mean of the training units.

    The logarithm of each matrix whitened by the mean (Barachant et al. 2012 for EEG; Varoquaux et al. 2010 for BOLD),
    as nilearn's ConnectivityMeasure has it, whose mean is always the Riemannian one.
    """
    metric = {"mean": "riemann" if x_NCC.shape[1] <= RIEMANNIAN_MEAN_CHANNELS else "euclid", "map": "riemann"}
    return lambda train: combined([gram(TangentSpace(metric=metric).fit(x_NCC[train]).transform(x_NCC))], train)


def denoised(gram_3N3N: np.ndarray, sites: Sequence[str], shuffled: bool = False) -> GramOf:
    """Features after a ridge from one half of a recording to the other, within sites, fitted without labels.

    With A the halves of the training people without their site's mean, first ones above second ones, and B the same
    with the two exchanged, features x become ``(x - mean) A' (A A' + penalty)^-1 B``: what of a person is the same in
    both halves stays. All of it follows from inner products.

    Args:
        gram_3N3N: inner products; rows and columns are all whole recordings, all first halves, all second halves.
        sites: of the N units.
        shuffled: a control: the second half is that of another person of the site.
    """
    site_N = np.asarray(sites)

    def of(train: np.ndarray) -> np.ndarray:
        """The ridge of one training part, on all units."""
        own_AA, every_A = within_sites(gram_3N3N, site_N, train, shuffled)
        penalty = DENOISER_PENALTY * np.trace(own_AA) / len(own_AA)
        ridge_NA = solve(own_AA + penalty * np.eye(len(own_AA)), every_A[: len(site_N)].T, assume_a="pos").T
        exchanged_AA = np.roll(own_AA, (len(train), len(train)), axis=(0, 1))  # B B'
        return combined([ridge_NA @ exchanged_AA @ ridge_NA.T], train)

    return of


def within_sites(
    gram_3N3N: np.ndarray, site_N: np.ndarray, train: np.ndarray, shuffled: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Inner products of the training halves without their site's mean with each other, ``A A'`` of :func:`denoised`,
    first halves first; and of all recordings and halves, without the mean of the halves, with them, ``(3 N, A)``.

    Where every training unit has a site of its own, all count as of one: else nothing would be left.
    """
    n_units = len(site_N)
    if len(np.unique(site_N[train])) == len(train):
        site_N = np.zeros(n_units, dtype=int)
    second = others_of_site(train, site_N) if shuffled else train
    chosen = np.concatenate([n_units + train, 2 * n_units + second])
    site_A = np.concatenate([site_N[train], site_N[train]])
    site_A = np.char.add(site_A.astype(str), np.repeat([" 1", " 2"], len(train)))  # halves have means of their own
    halves_AA = gram_3N3N[np.ix_(chosen, chosen)]
    own_AA = without_means(without_means(halves_AA, site_A).T, site_A)
    return own_AA, without_means((gram_3N3N[:, chosen] - halves_AA.mean(axis=0)).T, site_A).T


def others_of_site(train: np.ndarray, site_N: np.ndarray) -> np.ndarray:
    """Another unit of the same site for each, where there is one; drawn, and always the same."""
    out, rng = train.copy(), np.random.default_rng(SHUFFLE_SEED)
    for site in np.unique(site_N[train]):
        ring = rng.permutation(np.flatnonzero(site_N[train] == site))
        out[ring] = train[np.roll(ring, 1)]
    return out


def without_means(x_AB: np.ndarray, group_A: np.ndarray) -> np.ndarray:
    """Rows minus the mean of their group."""
    out_AB = x_AB.copy()
    for group in np.unique(group_A):
        out_AB[group_A == group] -= x_AB[group_A == group].mean(axis=0)
    return out_AB
