"""Discriminants solved among people are scikit-learn's."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from benchmarks.ablation.discriminants import class_scores


@pytest.mark.parametrize(("features", "classes"), [(300, 4), (300, 2), (12, 3)])
def test_scores_equal_those_of_scikit_learn(features: int, classes: int) -> None:
    rng = np.random.default_rng(0)
    class_N = np.concatenate([np.arange(classes), rng.integers(classes, size=57)])
    mixing = rng.normal(size=(features, features)) / features**0.5
    x_NF = rng.normal(size=(len(class_N), features)) @ mixing * rng.lognormal(size=features)
    x_NF += 0.3 * rng.normal(size=(classes, features))[class_N]
    x_NF[:, 3] = 2.0  # a feature that does not vary
    x_MF = rng.normal(size=(40, features)) @ mixing
    reader = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x_NF, class_N)
    x_MF[:, 3] = 2.0
    scores_MK = class_scores(x_NF, class_N, x_MF)
    theirs = reader.decision_function(x_MF)
    ours = scores_MK[:, 1] - scores_MK[:, 0] if classes == 2 else scores_MK
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    assert (scores_MK.argmax(1) == reader.predict(x_MF)).all()
