"""Tied scores: units of one score are called together, so a curve goes through their corner and not around it."""

import numpy as np
import pytest
from sklearn.metrics import roc_curve as expected_curve

from mcsp.evaluate import scores


@pytest.mark.parametrize("order", ["positives first", "negatives first"])
def test_the_curve_of_equal_scores_is_the_diagonal(order: str) -> None:
    y_N = np.repeat([1, 0] if order == "positives first" else [0, 1], 20)
    curves = scores.roc_curve(np.zeros((1, 40)), y_N, scores.subject_weights(np.arange(40))[:50])
    np.testing.assert_allclose(curves["roc"], np.linspace(0, 1, 101), atol=1e-6)
    assert scores.auroc(np.zeros(40), y_N, np.ones((1, 40)))[0] == 0.5


def test_coarse_scores_give_scikit_learns_curve_whatever_their_order() -> None:
    rng = np.random.default_rng(8)
    y_N = rng.integers(0, 2, 200)
    score_N = (rng.normal(size=200) + y_N).round()
    grid = np.linspace(0, 1, 101)
    for order in (np.argsort(y_N, kind="stable"), np.argsort(-y_N, kind="stable"), rng.permutation(200)):
        found = scores.roc_curve(score_N[None, order], y_N[order], np.ones((2, 200)))["roc"]
        false, true, _ = expected_curve(y_N, score_N, drop_intermediate=False)
        np.testing.assert_allclose(found, np.interp(grid, false, true), atol=1e-6)
