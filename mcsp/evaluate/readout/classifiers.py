"""Linear classifiers on Gram matrices, and linear discriminants on short features; all fitted on training units alone.

Shape letters: N units, M training units, F features, S seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import sklearn
from joblib import Parallel, delayed
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from mcsp.evaluate.readout.grams import GramOf, combined, gram, scales
from mcsp.evaluate.splits import Folds

# Inverse strengths of the penalty for Gram matrices of mean diagonal 1, fixed. The logistic loss is flatter than the
# hinge near the boundary, and needs more: chosen on the development people of ABIDE from 0.01 to 100.
SVM_C, LOGISTIC_C = 1.0, 10.0
_LEAST_EIGENVALUE = 1e-10  # relative to the largest; double precision does not tell smaller ones from rounding


@dataclass(frozen=True)
class Linear:
    """Score of a unit: inner products with the M training units times ``dual_M``, plus ``bias``."""

    dual_M: np.ndarray
    bias: float


@dataclass(frozen=True)
class Classifier:
    """How labels 0 and 1 and the Gram matrix ``(M, M)`` of the training units give a :class:`Linear`."""

    name: str
    fit: Callable[[np.ndarray, np.ndarray], Linear]
    probabilities: bool  # whether the logistic function of its scores is meant as a probability


def _fit_svm(gram_MM: np.ndarray, y_M: np.ndarray) -> Linear:
    model = SVC(C=SVM_C, kernel="precomputed").fit(gram_MM, y_M)
    dual_M = np.zeros(len(y_M))
    dual_M[model.support_] = model.dual_coef_[0]
    return Linear(dual_M, float(model.intercept_[0]))


def _fit_logistic(gram_MM: np.ndarray, y_M: np.ndarray) -> Linear:
    value_R, vector_MR = np.linalg.eigh(gram_MM)
    kept = value_R > _LEAST_EIGENVALUE * max(value_R[-1], 1e-300)
    root_R, vector_MR = np.sqrt(value_R[kept]), vector_MR[:, kept]
    if not kept.any():  # features that do not vary
        return Linear(np.zeros(len(y_M)), float(np.log((y_M == 1).sum() / (y_M == 0).sum())))
    model = LogisticRegression(C=LOGISTIC_C, tol=1e-6, max_iter=2000).fit(vector_MR * root_R, y_M)
    return Linear(vector_MR @ (model.coef_[0] / root_R), float(model.intercept_[0]))


def _all(train: np.ndarray, seed: int) -> np.ndarray:
    return train


SVM = Classifier("linear SVM", _fit_svm, False)
LOGISTIC = Classifier("logistic", _fit_logistic, True)


# Scores of the test units (first) from the labelled training units (second) and the labels of all units (third).
Scorer = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
# What a training part (indices) gives without its labels: a way to score.
Readout = Callable[[np.ndarray], Scorer]


def on_grams(classifier: Classifier, gram_of: GramOf) -> Readout:
    """A classifier of Gram matrices."""

    def fitted(train: np.ndarray) -> Scorer:
        gram_NN = gram_of(train)

        def score(test: np.ndarray, labelled: np.ndarray, y_N: np.ndarray) -> np.ndarray:
            linear = classifier.fit(gram_NN[np.ix_(labelled, labelled)], y_N[labelled])
            score_N: np.ndarray = gram_NN[np.ix_(test, labelled)] @ linear.dual_M + linear.bias
            return score_N

        return score

    return fitted


def discriminant(x_NF: np.ndarray) -> Readout:
    """Linear discriminant analysis with the covariance shrunk as Ledoit and Wolf (2004) say; for short features."""

    def score(test: np.ndarray, labelled: np.ndarray, y_N: np.ndarray) -> np.ndarray:
        model = make_pipeline(StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"))
        score_N: np.ndarray = model.fit(x_NF[labelled], y_N[labelled]).decision_function(x_NF[test])
        return score_N

    return lambda train: score


def cross_validate(
    readout: Readout, y_N: np.ndarray, folds: Folds, parts: Sequence[Callable[[np.ndarray, int], np.ndarray]] = (_all,)
) -> np.ndarray:
    """Scores of every unit by a classifier that never saw its subject, ``(P, S, N)``; NaN where no fold tests a unit.

    What is fitted without labels is fitted on the whole training part once, whatever part of it has labels. Folds run
    on all cores, in threads; no result depends on how many there are.

    Args:
        readout: what is fitted on each training part.
        y_N: labels 0 or 1.
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
    score_PSN = np.full((len(parts), len(folds.by_seed), len(y_N)), np.nan)
    for (_, test, seed), scores in zip(jobs, found, strict=True):
        for p, score_T in enumerate(scores):
            score_PSN[p, seed, test] = score_T
    return score_PSN


def linear_weights(blocks: Sequence[np.ndarray], y_M: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights ``(F,)`` and bias of logistic regression on blocks ``(M, F_b)`` that stand side by side.

    The same classifier as on the Gram matrices of the blocks, written out for features.
    """
    everyone = np.arange(len(y_M))
    grams = [gram(x_MF) for x_MF in blocks]
    fitted = LOGISTIC.fit(combined(grams, everyone), y_M)
    means = [x_MF.mean(axis=0) for x_MF in blocks]
    weights = [
        scale * (fitted.dual_M @ (x_MF - mean_F))
        for x_MF, mean_F, scale in zip(blocks, means, scales(grams, everyone), strict=True)
    ]
    weight_F = np.concatenate(weights)
    return weight_F, fitted.bias - float(weight_F @ np.concatenate(means))
