"""Linear read-outs on Gram matrices, and linear discriminants on short features; all fitted on training units alone.

Several classes are fitted one against the rest; a number by a ridge. The logistic one is a scikit-learn classifier as
well, for pipelines behind a FeatureExtractor.

Shape letters: N units, T tested units, M training units, F features, S seeds, K or O classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import sklearn
from joblib import Parallel, delayed
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from mcsp.evaluate.readout.grams import GramOf, combined, gram, scales
from mcsp.evaluate.readout.task import BINARY, Task
from mcsp.evaluate.splits import Folds

# Inverse strengths of the penalty for Gram matrices of mean diagonal 1, fixed. The logistic loss is flatter than the
# hinge near the boundary, and needs more: chosen on the development people of ABIDE from 0.01 to 100.
SVM_C, LOGISTIC_C = 1.0, 10.0
# Penalties of the ridge, of which the leave-one-out error on the training part chooses: how much of a number can be
# predicted differs too much between labels for one penalty.
RIDGE_PENALTIES = tuple(10.0**k for k in range(-3, 4))
_LEAST_EIGENVALUE = 1e-10  # relative to the largest; double precision does not tell smaller ones from rounding


@dataclass(frozen=True)
class Linear:
    """Score of a unit: inner products with the M training units times ``dual_M``, plus ``bias``."""

    dual_M: np.ndarray
    bias: float


@dataclass(frozen=True)
class Classifier:
    """How the Gram matrix ``(M, M)`` of the training units and labels, 0 and 1 or numbers, give a :class:`Linear`."""

    name: str
    fit: Callable[[np.ndarray, np.ndarray], Linear]
    probabilities: bool  # whether the logistic function of its scores is meant as a probability


def _fit_svm(gram_MM: np.ndarray, y_M: np.ndarray) -> Linear:
    model = SVC(C=SVM_C, kernel="precomputed").fit(gram_MM, y_M)
    dual_M = np.zeros(len(y_M))
    dual_M[model.support_] = model.dual_coef_[0]
    return Linear(dual_M, float(model.intercept_[0]))


def _fit_logistic(gram_MM: np.ndarray, y_M: np.ndarray) -> Linear:
    x_MR, root_R, vector_MR = _features(gram_MM)
    if not len(root_R):  # features that do not vary
        return Linear(np.zeros(len(y_M)), float(np.log((y_M == 1).sum() / (y_M == 0).sum())))
    model = LogisticRegression(C=LOGISTIC_C, tol=1e-6, max_iter=2000).fit(x_MR, y_M)
    return Linear(vector_MR @ (model.coef_[0] / root_R), float(model.intercept_[0]))


def _fit_ridge(gram_MM: np.ndarray, y_M: np.ndarray) -> Linear:
    x_MR, root_R, vector_MR = _features(gram_MM)
    if not len(root_R):
        return Linear(np.zeros(len(y_M)), float(y_M.mean()))
    model = RidgeCV(RIDGE_PENALTIES).fit(x_MR, y_M)
    return Linear(vector_MR @ (model.coef_ / root_R), float(model.intercept_))


def _features(gram_MM: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features ``(M, R)`` of which the matrix is the Gram matrix, roots of its R eigenvalues, and its eigenvectors."""
    value_R, vector_MR = np.linalg.eigh(gram_MM)
    kept = value_R > _LEAST_EIGENVALUE * max(value_R[-1], 1e-300)
    root_R, vector_MR = np.sqrt(value_R[kept]), vector_MR[:, kept]
    return vector_MR * root_R, root_R, vector_MR


SVM = Classifier("linear SVM", _fit_svm, False)
LOGISTIC = Classifier("logistic", _fit_logistic, True)
RIDGE = Classifier("ridge", _fit_ridge, False)


# Scores of the test units (first) from the labelled training units (second) and the labels of all units (third).
Scorer = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
# What a training part (indices) gives without its labels: a way to score.
Readout = Callable[[np.ndarray], Scorer]


def on_grams(classifier: Classifier, gram_of: GramOf, task: Task = BINARY) -> Readout:
    """A classifier, or a ridge, on Gram matrices; scores have the shape that :mod:`mcsp.evaluate.readout.task` says."""

    def fitted(train: np.ndarray) -> Scorer:
        """How to score from a training part."""
        gram_NN = gram_of(train)

        def score(test: np.ndarray, labelled: np.ndarray, y_N: np.ndarray) -> np.ndarray:
            """Scores of ``test`` from what of the part is labelled."""
            gram_MM, gram_TM, y_M = gram_NN[np.ix_(labelled, labelled)], gram_NN[np.ix_(test, labelled)], y_N[labelled]

            def of(y_M: np.ndarray) -> np.ndarray:
                linear = classifier.fit(gram_MM, y_M)
                score_T: np.ndarray = gram_TM @ linear.dual_M + linear.bias
                return score_T

            if task.kind == "classes":
                return one_against_rest(of, y_M, len(task.classes), len(test))
            return with_mean(of(y_M), y_M) if task.kind == "number" else of(y_M)

        return score

    return fitted


def one_against_rest(
    of: Callable[[np.ndarray], np.ndarray], y_M: np.ndarray, n_classes: int, n_tested: int
) -> np.ndarray:
    """Scores ``(T, K)`` by ``of`` labels 0 and 1; a class that the training part lacks is never called."""
    least = np.full(n_tested, -1e9)  # finite: the unit has been scored
    return np.stack([of((y_M == k).astype(int)) if (y_M == k).any() else least for k in range(n_classes)], axis=1)


def with_mean(predicted_T: np.ndarray, y_M: np.ndarray) -> np.ndarray:
    """Predictions beside the mean of the training labels, ``(T, 2)``."""
    return np.stack([predicted_T, np.full(len(predicted_T), y_M.mean())], axis=1)


def discriminant(x_NF: np.ndarray, task: Task = BINARY) -> Readout:
    """Linear discriminant analysis with the covariance shrunk as Ledoit and Wolf (2004) say; for short features."""

    def score(test: np.ndarray, labelled: np.ndarray, y_N: np.ndarray) -> np.ndarray:
        def of(y_M: np.ndarray) -> np.ndarray:
            model = make_pipeline(StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"))
            score_T: np.ndarray = model.fit(x_NF[labelled], y_M).decision_function(x_NF[test])
            return score_T

        y_M = y_N[labelled]
        return one_against_rest(of, y_M, len(task.classes), len(test)) if task.kind == "classes" else of(y_M)

    return lambda train: score


def cross_validate(
    readout: Readout,
    y_N: np.ndarray,
    folds: Folds,
    parts: Sequence[Callable[[np.ndarray, int], np.ndarray]] = (lambda train, seed: train,),
) -> np.ndarray:
    """Scores of every unit by a read-out that never saw its subject; NaN where no fold tests a unit.

    ``(P, S, N)``, with a last axis where the task's scores have one.

    What is fitted without labels is fitted on the whole training part once, whatever part of it has labels. Folds run
    on all cores, in threads; no result depends on how many there are.

    Args:
        readout: what is fitted on each training part.
        y_N: classes 0, 1, ..., or numbers.
        folds: from :mod:`mcsp.evaluate.splits`, for the same units.
        parts: P rules which of a training part (rows, seed) have labels.
    """

    def one(train: np.ndarray, test: np.ndarray, seed: int) -> list[np.ndarray]:
        # Many small fits: what scikit-learn checks in each of them takes longer than the fit.
        with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
            score = readout(train)
            return [score(test, part(train, seed), y_N) for part in parts]

    jobs = [(train, test, seed) for seed, splits in enumerate(folds.by_seed) for train, test in splits]
    with threadpool_limits(limits=1):
        found = Parallel(n_jobs=-1, prefer="threads")(delayed(one)(*job) for job in jobs)
    score_PSN = np.full((len(parts), len(folds.by_seed), len(y_N), *found[0][0].shape[1:]), np.nan)
    for (_, test, seed), scores in zip(jobs, found, strict=True):
        for p, score_T in enumerate(scores):
            score_PSN[p, seed, test] = score_T
    return score_PSN


def linear_weights(
    blocks: Sequence[np.ndarray], y_M: np.ndarray, classifier: Classifier = LOGISTIC
) -> tuple[np.ndarray, float]:
    """Weights ``(F,)`` and bias of a classifier, or ridge, on blocks ``(M, F_b)`` that stand side by side.

    The same as on the Gram matrices of the blocks, written out for features.
    """
    everyone = np.arange(len(y_M))
    grams = [gram(x_MF) for x_MF in blocks]
    fitted = classifier.fit(combined(grams, everyone), y_M)
    means = [x_MF.mean(axis=0) for x_MF in blocks]
    weights = [
        scale * (fitted.dual_M @ (x_MF - mean_F))
        for x_MF, mean_F, scale in zip(blocks, means, scales(grams, everyone), strict=True)
    ]
    weight_F = np.concatenate(weights)
    return weight_F, fitted.bias - float(weight_F @ np.concatenate(means))


class LinearProbe(ClassifierMixin, BaseEstimator):
    """Logistic regression in which every block of features counts alike; several classes one against the rest.

    The same classifier, penalty included, as the rows "logistic" of the evaluation. Example::

        widths = mcsp.from_pretrained("model").feature_widths("eeg")
        probe = make_pipeline(FeatureExtractor("model", "eeg"), LinearProbe(list(widths.values())))
        probe.fit(files, labels).predict_proba(new_files)

    Args:
        blocks: numbers of neighbouring features that belong together; None: all are one block.
    """

    def __init__(self, blocks: Sequence[int] | None = None) -> None:
        self.blocks = blocks

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:
        """Fit on features ``(N, F)`` and labels of two classes or more.

        Raises:
            ValueError: features that are not finite, one class, or blocks that do not sum to F.
        """
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, y_N = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"expected labels of two classes or more, found one class: {self.classes_[0]!r}")
        widths = [X.shape[1]] if self.blocks is None else list(self.blocks)
        if sum(widths) != X.shape[1]:
            raise ValueError(f"blocks: expected widths that sum to {X.shape[1]} features, found {sum(widths)}")
        blocks = np.split(X, np.cumsum(widths)[:-1], axis=1)
        positive = [1] if len(self.classes_) == 2 else range(len(self.classes_))
        fitted = [linear_weights(blocks, (y_N == c).astype(int)) for c in positive]
        self.coef_ = np.stack([weight_F for weight_F, _ in fitted])
        self.intercept_ = np.array([bias for _, bias in fitted])
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Log-odds: ``(N,)`` of the second of two classes, else ``(N, O)`` of each against the rest."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        score_NO: np.ndarray = X @ self.coef_.T + self.intercept_
        return score_NO[:, 0] if len(self.classes_) == 2 else score_NO

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Probabilities ``(N, classes)``; those of several classes are normalised. Not calibrated."""
        p = expit(self.decision_function(X))
        if p.ndim == 1:
            return np.stack([1 - p, p], axis=1)
        normalised_NO: np.ndarray = p / p.sum(axis=1, keepdims=True).clip(1e-300)
        return normalised_NO

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The most probable class of each row."""
        p_NO = self.predict_proba(X)
        labels_N: np.ndarray = self.classes_[p_NO.argmax(axis=1)]
        return labels_N
