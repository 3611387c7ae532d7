"""The probe is an estimator as scikit-learn wants it, and the classifier of the evaluation."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

from mcsp.evaluate.readout.classifiers import LOGISTIC, LinearProbe, on_grams
from mcsp.evaluate.readout.grams import fixed, gram


def test_it_passes_the_checks_of_scikit_learn() -> None:
    check_estimator(LinearProbe(), on_skip=None)


def test_it_scores_as_the_evaluation_does_on_gram_matrices() -> None:
    rng = np.random.default_rng(0)
    y_N = np.arange(40) % 2
    blocks = [rng.standard_normal((40, 30)) + 0.5 * y_N[:, None], 100 * rng.standard_normal((40, 5))]
    train, test = np.arange(30), np.arange(30, 40)
    expected_N = on_grams(LOGISTIC, fixed([gram(x_NF) for x_NF in blocks]))(train)(test, train, y_N)
    x_NF = np.hstack(blocks)
    probe = LinearProbe([30, 5]).fit(x_NF[train], np.array(["a control", "case"])[y_N[train]])
    assert probe.classes_.tolist() == ["a control", "case"]
    np.testing.assert_allclose(probe.decision_function(x_NF[test]), expected_N, atol=1e-6)
    p_N2 = probe.predict_proba(x_NF[test])
    np.testing.assert_allclose(p_N2.sum(axis=1), 1)
    assert (probe.predict(x_NF[test]) == probe.classes_[(p_N2[:, 1] > 0.5).astype(int)]).all()
    with pytest.raises(ValueError, match="blocks: expected widths that sum to 35 features, found 34"):
        clone(probe).set_params(blocks=[30, 4]).fit(x_NF, y_N)


def test_several_classes_are_told_apart_in_a_pipeline() -> None:
    rng = np.random.default_rng(1)
    y_N = np.arange(60) % 3
    x_NF = np.eye(3)[y_N] * 3 + rng.standard_normal((60, 3))
    pipeline = make_pipeline(FunctionTransformer(), LinearProbe()).fit(x_NF[:45], y_N[:45])
    p_N3 = pipeline.predict_proba(x_NF[45:])
    assert p_N3.shape == (15, 3) and np.allclose(p_N3.sum(axis=1), 1)
    assert (pipeline.predict(x_NF[45:]) == y_N[45:]).mean() > 0.8


def test_blocks_start_where_the_one_before_ends_and_one_block_is_the_default() -> None:
    rng = np.random.default_rng(2)
    y_N = np.arange(30) % 2
    x_NF = rng.standard_normal((30, 6)) * [1, 1, 1, 50, 50, 9] + y_N[:, None]
    by_hand = on_grams(LOGISTIC, fixed([gram(x_NF[:, :3]), gram(x_NF[:, 3:5]), gram(x_NF[:, 5:])]))
    everyone = np.arange(30)
    np.testing.assert_allclose(
        LinearProbe([3, 2, 1]).fit(x_NF, y_N).decision_function(x_NF), by_hand(everyone)(everyone, everyone, y_N),
        atol=1e-6,
    )  # fmt: skip
    np.testing.assert_array_equal(LinearProbe().fit(x_NF, y_N).coef_, LinearProbe([6]).fit(x_NF, y_N).coef_)


def test_rows_that_every_class_finds_impossible_have_finite_probabilities() -> None:
    x_NF, y_N = (
        np.eye(3)[np.arange(30) % 3] + 0.1 * np.random.default_rng(3).standard_normal((30, 3)),
        np.arange(30) % 3,
    )
    probe = LinearProbe().fit(x_NF, y_N)
    probe.intercept_ = np.array([-800.0, -900.0, -1000.0])
    assert probe.predict_proba(x_NF).tolist() == np.zeros((30, 3)).tolist()
    probe.intercept_ = np.array([-50.0, -60.0, -70.0])
    np.testing.assert_allclose(probe.predict_proba(0 * x_NF[:1]), [[1, np.exp(-10), np.exp(-20)]], rtol=1e-4)
