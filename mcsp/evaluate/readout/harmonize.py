"""ComBat: shift and scale of each site estimated on training units and taken out, with empirical Bayes shrinkage.

Johnson, Li and Rabinovic (Biostatistics 2007), parametric; Fortin et al. (NeuroImage 2018) for scanners. Own code,
because neuroHarmonize 2.5.2 cannot be installed beside current numpy and pandas, and neurocombat-sklearn 0.1.3 calls an
option that scikit-learn has removed and refuses a site that it was not fitted on.

Three rules keep it from leaking or failing:

* The label is never a covariate, and nothing but sites enters the design.
* It is a step of the classifier's pipeline, so that it is fitted on the training part of every fold, inner ones too.
* A site with fewer than ``MIN_UNITS`` training units, or none (one that is left out, a clinic that joins later), passes
  unchanged: its shift counts as 0 and its scale as 1. Estimating them from its unlabelled units would be transductive.

Where sites differ in the balance of classes, ComBat takes a part of the label away with the site; that is the price of
the first rule.

Shape letters: N units, F features, S sites.
"""

from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

MIN_UNITS = 3  # of a site in training, below which no variance is worth estimating
_TOLERANCE = 1e-4  # relative change at which the iteration ends, as in the authors' code
_MOST_ITERATIONS = 500


class Combat(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Harmonizes features of sites; every call is given the ``sites``, a Pipeline passes them on as metadata. Example::

    sklearn.set_config(enable_metadata_routing=True)
    combat = Combat().set_fit_request(sites=True).set_transform_request(sites=True)
    pipeline = make_pipeline(FeatureExtractor("model", "eeg"), combat, LogisticRegression())
    cross_validate(pipeline, files, labels, params={"sites": sites})
    """

    def fit(self, X: np.ndarray, y: object = None, sites: ArrayLike | None = None) -> Self:
        """Estimate shifts and scales of the sites.

        Args:
            X: features ``(N, F)``.
            y: not used.
            sites: name or number of the site of each row.

        Raises:
            ValueError: no site for each row.
        """
        x_NF = validate_data(self, X, dtype=np.float64)
        site_N = _site_of_each(x_NF, sites)
        known, count_S = np.unique(site_N, return_counts=True)
        self.sites_ = known[count_S >= MIN_UNITS]
        # The mean over sites in proportion to their units is the mean over units.
        self.mean_F_ = x_NF.mean(axis=0)
        means = np.stack([x_NF[site_N == s].mean(axis=0) for s in known])
        residual_NF = x_NF - means[np.searchsorted(known, site_N)]
        varies_F = np.any([_varies(x_NF[site_N == s]) for s in known], axis=0)
        self.scale_F_ = np.where(varies_F, np.sqrt((residual_NF**2).mean(axis=0)), 1.0)
        z_NF = (x_NF - self.mean_F_) / self.scale_F_
        found = [_shrunk(z_NF[site_N == s]) for s in self.sites_]
        self.shift_SF_ = np.array([shift_F for shift_F, _ in found]).reshape(len(found), -1)
        self.variance_SF_ = np.array([variance_F for _, variance_F in found]).reshape(len(found), -1)
        return self

    def transform(self, X: np.ndarray, sites: ArrayLike | None = None) -> np.ndarray:
        """Features ``(N, F)`` without the shift and scale of their site; those of an unknown site as they are."""
        check_is_fitted(self)
        x_NF: np.ndarray = validate_data(self, X, dtype=np.float64, reset=False, copy=True)
        site_N = _site_of_each(x_NF, sites)
        for s, shift_F, variance_F in zip(self.sites_, self.shift_SF_, self.variance_SF_, strict=True):
            rows = site_N == s
            z_NF = (x_NF[rows] - self.mean_F_) / self.scale_F_
            x_NF[rows] = (z_NF - shift_F) / np.sqrt(variance_F) * self.scale_F_ + self.mean_F_
        return x_NF

    def fit_transform(self, X: np.ndarray, y: object = None, sites: ArrayLike | None = None) -> np.ndarray:
        """Both of the same rows."""
        return self.fit(X, y, sites).transform(X, sites)


def _site_of_each(x_NF: np.ndarray, sites: ArrayLike | None) -> np.ndarray:
    site_N = np.asarray(sites)
    if site_N.shape != (len(x_NF),):
        found = "None" if sites is None else f"shape {site_N.shape}"
        raise ValueError(f"sites: expected one for each of {len(x_NF)} rows, found {found}")
    return site_N


def _varies(x_NF: np.ndarray) -> np.ndarray:
    """Which features are not the same in all rows ``(F,)``; a variance of equal values may be above 0 by rounding."""
    varies_F: np.ndarray = np.ptp(x_NF, axis=0) > 0
    return varies_F


def _shrunk(z_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shift and variance ``(F,)`` of one site's standardised features, shrunk towards their distribution over features.

    Normal prior on shifts and inverse gamma prior on variances, both by the method of moments.
    """
    n = len(z_NF)
    shift_F, variance_F = z_NF.mean(axis=0), z_NF.var(axis=0, ddof=1)
    varying = _varies(z_NF)
    out_shift_F, out_variance_F = shift_F.copy(), np.where(varying, variance_F, 1.0)
    if varying.sum() < 2:  # no distribution over features to shrink towards
        return out_shift_F, out_variance_F
    z_NF, own_F, variance_F = z_NF[:, varying], shift_F[varying], variance_F[varying]
    mean, spread = own_F.mean(), own_F.var(ddof=1)
    m, v = variance_F.mean(), max(variance_F.var(ddof=1), 1e-12)
    a, b = (2 * v + m**2) / v, (m * v + m**3) / v
    shift_F = own_F
    for _ in range(_MOST_ITERATIONS):
        new_shift_F = (spread * n * own_F + variance_F * mean) / (spread * n + variance_F)
        new_variance_F = (0.5 * ((z_NF - new_shift_F) ** 2).sum(axis=0) + b) / (n / 2 + a - 1)
        change = max(_change(new_shift_F, shift_F), _change(new_variance_F, variance_F))
        shift_F, variance_F = new_shift_F, new_variance_F
        if change < _TOLERANCE:
            break
    out_shift_F[varying], out_variance_F[varying] = shift_F, variance_F
    return out_shift_F, out_variance_F


def _change(new_F: np.ndarray, old_F: np.ndarray) -> float:
    return float((np.abs(new_F - old_F) / np.maximum(np.abs(old_F), 1e-12)).max())
