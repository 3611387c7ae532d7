"""The evaluation's logistic probe as a scikit-learn classifier, for pipelines behind a FeatureExtractor.

Shape letters: N units, F features, O classes (one row for two classes).
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from mcsp.evaluate.readout.classifiers import linear_weights


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
