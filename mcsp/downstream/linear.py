"""Penalised linear classifiers for a few hundred to thousands of units, and the coordinates that make them fast.

The objectives are those of scikit-learn's LogisticRegression and LinearSVC (squared hinge). An evaluation fits one some
ten thousand times; in orthogonal coordinates, scaled by the square root of a bound of the Hessian's diagonal, L-BFGS
needs tens of products with the matrix, where Newton's method needs a factorisation in every iteration.

Shape letters: N units, F features, R directions.
"""

from typing import Literal

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.base import BaseEstimator, TransformerMixin

_GRADIENT = 1e-5  # largest entry of the gradient, in scaled coordinates, at which a fit ends
_MOST_ITERATIONS = 2000


class Span(TransformerMixin, BaseEstimator):
    """Rotates centred features onto the span of the training units, through whichever Gram matrix is the smaller.

    Directions below 1e-12 of the largest variance are left out: double precision does not tell them from rounding.
    Features can be hundreds of megabytes, so each call copies them once.
    """

    def __init__(self, weight_F: np.ndarray | None = None) -> None:
        """With ``weight_F``, features get unit variance and are multiplied with it before; constant ones become 0."""
        self.weight_F = weight_F

    def fit(self, x_NF: np.ndarray, y: object = None) -> "Span":
        """Find an orthonormal basis ``(F, R)``, kept as a product of two factors."""
        self.fit_transform(x_NF)
        return self

    def fit_transform(self, x_NF: np.ndarray, y: object = None) -> np.ndarray:
        """Fit, and coordinates ``(N, R)`` of the same units, which come with the decomposition."""
        self.mean_F_ = x_NF.mean(axis=0)
        centred_NF = x_NF - self.mean_F_
        self.scale_F_ = np.ones(x_NF.shape[1])
        if self.weight_F is not None:
            std_F = np.sqrt(np.einsum("nf,nf->f", centred_NF, centred_NF) / len(x_NF))
            varying = std_F > 10 * np.finfo(float).eps * np.abs(self.mean_F_)
            self.scale_F_ = np.divide(self.weight_F, std_F, out=np.zeros_like(std_F), where=varying)
            centred_NF *= self.scale_F_
        wide = x_NF.shape[1] > x_NF.shape[0]
        variance, vectors = np.linalg.eigh(centred_NF @ centred_NF.T if wide else centred_NF.T @ centred_NF)
        kept = variance > 1e-12 * variance[-1]
        variance_R, vectors = variance[kept], vectors[:, kept]
        self.factors_ = (centred_NF.T, vectors / np.sqrt(variance_R)) if wide else (vectors,)
        return vectors * np.sqrt(variance_R) if wide else centred_NF @ vectors

    def transform(self, x_NF: np.ndarray) -> np.ndarray:
        """Coordinates ``(N, R)``."""
        x = x_NF - self.mean_F_
        x *= self.scale_F_
        for factor in self.factors_:
            x = x @ factor
        return x

    @property
    def directions_FR(self) -> np.ndarray:
        """What a centred row of features is multiplied with."""
        basis = self.factors_[0] if len(self.factors_) == 1 else self.factors_[0] @ self.factors_[1]
        return self.scale_F_[:, None] * basis


class LinearClassifier(BaseEstimator):
    """L2-penalised logistic regression or support vector machine; the intercept carries no penalty."""

    def __init__(self, C: float = 1.0, loss: Literal["logistic", "squared_hinge"] = "logistic") -> None:
        """``C`` is the inverse strength of the penalty, as in scikit-learn."""
        self.C = C
        self.loss = loss

    def fit(self, x_NR: np.ndarray, y_N: np.ndarray) -> "LinearClassifier":
        """Minimise ``C * sum(loss) + |w|^2 / 2`` for labels 0 and 1."""
        sign_N = np.where(np.asarray(y_N) == 1, 1.0, -1.0)
        bound = 0.25 if self.loss == "logistic" else 2.0  # of the loss's second derivative
        scale_R = 1 / np.sqrt(bound * (x_NR**2).sum(axis=0) + 1 / self.C)
        shift = 1 / np.sqrt(bound * len(x_NR))
        x_NR, ridge_R = x_NR * scale_R, scale_R**2 / self.C

        def objective(v: np.ndarray) -> tuple[float, np.ndarray]:
            margin_N = sign_N * (x_NR @ v[:-1] + v[-1] * shift)
            if self.loss == "logistic":
                value, slope_N = np.logaddexp(0, -margin_N).sum(), -sign_N * expit(-margin_N)
            else:
                short_N = np.maximum(1 - margin_N, 0)
                value, slope_N = (short_N**2).sum(), -2 * sign_N * short_N
            gradient = np.append(slope_N @ x_NR + ridge_R * v[:-1], slope_N.sum() * shift)
            return value + 0.5 * (ridge_R * v[:-1] ** 2).sum(), gradient

        options = {"maxiter": _MOST_ITERATIONS, "gtol": _GRADIENT, "ftol": 0.0, "maxcor": 20}
        v = minimize(objective, np.zeros(x_NR.shape[1] + 1), jac=True, method="L-BFGS-B", options=options).x
        self.coef_ = (v[:-1] * scale_R)[None]
        self.intercept_ = np.array([v[-1] * shift])
        return self

    def decision_function(self, x_NR: np.ndarray) -> np.ndarray:
        """Scores ``(N,)``, positive for label 1."""
        return x_NR @ self.coef_[0] + self.intercept_[0]
