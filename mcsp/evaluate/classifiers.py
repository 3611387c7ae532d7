"""Small classifiers on features that stay as they are; whatever is fitted or chosen uses training subjects only.

Shape letters: N units, F features, R directions, C channels, S seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import sklearn
from pyriemann.tangentspace import TangentSpace
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from mcsp.evaluate.harmonize import Combat
from mcsp.evaluate.splits import Folds, inner_folds

C_GRID = tuple(10.0**k for k in range(-3, 4))  # inverse strengths of the L2 penalty, for features of variance about 1
# Of the classifier on one block alone, and the power of its skill that is the weight. On a simulated consortium 4 was a
# little better than 2, and 2 than 1, with all labels and with a tenth of them.
SKILL_C, SKILL_POWER = 1.0, 4
INNER_FOLDS = 3
# The Riemannian mean of many large matrices takes minutes a fold; the arithmetic one is a good reference point too.
RIEMANNIAN_MEAN_CHANNELS = 32


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


@dataclass(frozen=True)
class Classifier:
    """How a row of features becomes a score.

    ``prepare`` makes a fresh transformer without hyper-parameters, ``candidates`` fresh estimators of which inner folds
    choose one by ``loss`` (lower is better; of the decision values and labels of an inner test part). What ``prepare``
    gives is standardised, its ``blocks`` of neighbouring features are weighted, and it is rotated onto the span of the
    training units: an L2-penalised linear solution lies in that span, so the result is exactly that of all F features,
    at the price of N coefficients. Without blocks, none of this is done.
    """

    name: str
    prepare: Callable[[], Pipeline]
    blocks: tuple[int, ...]
    candidates: tuple[Callable[[], Any], ...]
    loss: Callable[[np.ndarray, np.ndarray], float]
    probabilities: bool  # whether the logistic function of its scores is meant as a probability

    def without_labels(self) -> Pipeline:
        """All that comes before the estimator, fresh, with blocks of equal weight."""
        span = [("span", block_span(self.blocks))] if self.blocks else []
        return Pipeline([*self.prepare().steps, *span])


def _as_they_are() -> Pipeline:
    return make_pipeline("passthrough")


def _sigmoid(score_N: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(score_N, -500, 500)))


def _log_loss(score_N: np.ndarray, y_N: np.ndarray) -> float:
    return float(log_loss(y_N, _sigmoid(score_N), labels=[0, 1]))


def _misranked(score_N: np.ndarray, y_N: np.ndarray) -> float:
    return 1 - float(roc_auc_score(y_N, score_N)) if len(set(y_N)) == 2 else 0.5


def _logistic_candidates() -> tuple[Callable[[], Any], ...]:
    return tuple(lambda c=c: LinearClassifier(c) for c in C_GRID)


def logistic(blocks: Sequence[int]) -> Classifier:
    """L2-penalised logistic regression; neighbouring features form blocks that :func:`block_weights` weighs."""
    return Classifier("logistic", _as_they_are, tuple(blocks), _logistic_candidates(), _log_loss, True)


def harmonized(classifier: Classifier) -> Classifier:
    """The same after ComBat, fitted on the training units of each fold; takes the site as an additional last column."""

    def make() -> Pipeline:
        return make_pipeline(Combat(), *(step for _, step in classifier.prepare().steps))

    return replace(classifier, name=f"ComBat + {classifier.name}", prepare=make)


def linear_svm(n_features: int) -> Classifier:
    """Linear support vector machine with squared hinge loss, as LIBLINEAR's with a free intercept."""
    candidates = tuple(lambda c=c: LinearClassifier(c, "squared_hinge") for c in C_GRID)
    return Classifier("linear SVM", _as_they_are, (n_features,), candidates, _misranked, False)


def discriminant() -> Classifier:
    """Linear discriminant analysis with the covariance shrunk as Ledoit and Wolf (2004) say; nothing to choose."""
    candidates = (lambda: LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),)
    return Classifier("LDA", lambda: make_pipeline(StandardScaler()), (), candidates, _log_loss, True)


def tangent_logistic(n_channels: int) -> Classifier:
    """Covariances mapped to the tangent space at the mean of the training units, then logistic regression.

    Barachant et al. 2012 for EEG; "tangent" connectivity (Varoquaux et al. 2010) for BOLD: the logarithm of each matrix
    whitened by the mean, as in nilearn's ConnectivityMeasure, whose mean is always the Riemannian one. Takes
    ``(N, C, C)``.
    """
    metric = {"mean": "riemann" if n_channels <= RIEMANNIAN_MEAN_CHANNELS else "euclid", "map": "riemann"}
    blocks = (n_channels * (n_channels + 1) // 2,)

    def make() -> Pipeline:
        return make_pipeline(TangentSpace(metric=metric))

    return Classifier("tangent space + logistic", make, blocks, _logistic_candidates(), _log_loss, True)


def fit(classifier: Classifier, x_N: np.ndarray, y_N: np.ndarray, groups_N: np.ndarray) -> tuple[Pipeline, Any]:
    """The fitted transformer and estimator; the latter is the candidate with the least loss over inner folds.

    What is fitted without labels is fitted on the whole training part and serves its inner folds too.
    """
    prepare = classifier.prepare()
    a_NR = prepare.fit_transform(x_N)
    several = max(len(classifier.candidates), len(classifier.blocks)) > 1
    folds = inner_folds(y_N, groups_N, INNER_FOLDS) if several else []
    if classifier.blocks:
        span = block_span(classifier.blocks, block_weights(a_NR, y_N, classifier.blocks, folds))
        a_NR = span.fit_transform(a_NR)
        prepare = Pipeline([*prepare.steps, ("span", span)])
    loss = np.zeros(len(classifier.candidates))
    for train, test in folds if len(loss) > 1 else []:
        inner = Span()
        train_NR, test_NR = inner.fit_transform(a_NR[train]), inner.transform(a_NR[test])
        for k, make in enumerate(classifier.candidates):
            score_N = make().fit(train_NR, y_N[train]).decision_function(test_NR)
            loss[k] += classifier.loss(score_N, y_N[test]) * len(test)
    return prepare, classifier.candidates[int(loss.argmin())]().fit(a_NR, y_N)


def block_span(blocks: Sequence[int], weight_B: np.ndarray | float = 1.0) -> Span:
    """Rotation onto the span of the training units, of blocks whose total variances are ``weight_B``."""
    return Span(np.repeat(np.sqrt(weight_B / np.asarray(blocks)), blocks))


def block_weights(
    x_NF: np.ndarray, y_N: np.ndarray, blocks: Sequence[int], folds: Sequence[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """How much each block of features counts: its share of the variance, ``(B,)`` of mean 1.

    In proportion to a power of what logistic regression on the block alone is above chance (mean AUROC over the
    given folds, minus 0.5), so that parts that say nothing of the label do not drown those that do. All count alike
    where none is above chance, or where there are no folds.
    """
    skill_B = np.zeros(len(blocks))
    if len(blocks) > 1:
        for b, part_NF in enumerate(np.split(x_NF, np.cumsum(blocks)[:-1], axis=1)):
            part_NR = block_span(blocks[b : b + 1]).fit_transform(part_NF)
            for train, test in folds:
                estimator = LinearClassifier(SKILL_C).fit(part_NR[train], y_N[train])
                skill_B[b] += 0.5 - _misranked(estimator.decision_function(part_NR[test]), y_N[test])
    weight_B = np.maximum(skill_B, 0.0) ** SKILL_POWER
    return weight_B / weight_B.mean() if weight_B.any() else np.ones(len(blocks))


def linear_weights(prepare: Pipeline, estimator: Any) -> tuple[np.ndarray, float]:
    """Weights ``(F,)`` and bias on the features themselves of what :func:`fit` gives for :func:`logistic`."""
    weight_F = prepare[-1].directions_FR @ estimator.coef_[0]
    at_zero = estimator.decision_function(prepare.transform(np.zeros((1, len(weight_F)))))
    return weight_F, float(at_zero[0])


def cross_validate(
    classifier: Classifier,
    x_N: np.ndarray,
    y_N: np.ndarray,
    groups_N: np.ndarray,
    folds: Folds,
    part: Callable[[np.ndarray, int], np.ndarray] | None = None,
) -> np.ndarray:
    """Scores of every unit by a classifier that never saw its subject, ``(S, N)``; NaN where no fold tests a unit.

    Args:
        classifier: what is fitted on each training part.
        x_N: finite features ``(N, F)``, or covariances ``(N, C, C)``.
        y_N: labels 0 or 1.
        groups_N: subject of each unit, as integers.
        folds: from :mod:`mcsp.evaluate.splits`, for the same units.
        part: reduces a training part (rows, seed); None: all of it is used.

    Raises:
        ValueError: features that are not finite.
    """
    if not np.isfinite(x_N).all():
        raise ValueError(f"features: expected finite values, found {int((~np.isfinite(x_N)).sum())} that are not")
    score_SN = np.full((len(folds.by_seed), len(y_N)), np.nan)
    # Thousands of small fits: what scikit-learn checks in each of them takes longer than the fit.
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        for seed, splits in enumerate(folds.by_seed):
            for train, test in splits:
                rows = part(train, seed) if part else train
                prepare, estimator = fit(classifier, x_N[rows], y_N[rows], groups_N[rows])
                score_SN[seed, test] = estimator.decision_function(prepare.transform(x_N[test]))
    return score_SN
