"""Scores against scikit-learn and against cases whose answer is known."""

from itertools import pairwise

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, roc_auc_score

from mcsp.evaluate import scores
from mcsp.evaluate.comparison import shuffled
from mcsp.evaluate.readout.task import BINARY


def test_weighted_auroc_equals_repetition_of_units() -> None:
    rng = np.random.default_rng(6)
    score_N, y_N = rng.normal(size=25).round(1), rng.integers(0, 2, 25)
    weight_RN = rng.integers(0, 4, (20, 25)).astype(float)
    found = scores.auroc(score_N, y_N, weight_RN)
    for weights, value in zip(weight_RN.astype(int), found, strict=True):
        assert value == pytest.approx(roc_auc_score(np.repeat(y_N, weights), np.repeat(score_N, weights)))


def test_untested_units_are_left_out() -> None:
    y_N = np.array([0, 1, 0, 1])
    assert scores.auroc(np.array([0.1, 0.9, np.nan, np.nan]), y_N, np.ones((1, 4)))[0] == 1.0


def test_the_bootstrap_draws_subjects_and_its_first_row_is_the_data() -> None:
    groups_N = np.array([0, 0, 1, 2, 2, 2])
    weight_RN = scores.subject_weights(groups_N)
    assert weight_RN.shape == (scores.BOOTSTRAP_DRAWS + 1, 6)
    assert (weight_RN[0] == 1).all()
    assert (weight_RN[:, 0] == weight_RN[:, 1]).all()
    assert (weight_RN[:, [0, 2, 3]].sum(1) == 3).all()


def test_the_interval_of_noise_holds_one_half_as_often_as_it_says() -> None:
    """Over 200 experiments without an effect a 95 % interval misses 0.5 in about 10 of them."""
    rng = np.random.default_rng(0)
    y_N = np.arange(60) % 2
    weight_RN = scores.subject_weights(np.arange(60))
    held = 0
    for _ in range(200):
        found = scores.estimate(scores.auroc(rng.normal(size=60), y_N, weight_RN))
        assert found is not None
        held += found["ci_low"] <= 0.5 <= found["ci_high"]
    assert 0.88 <= held / 200 <= 0.99


def test_a_site_offset_raises_no_auroc_within_sites_and_lowers_the_pooled_one() -> None:
    """Scores are right inside each site, but one site's are shifted against its labels."""
    sites = ["a"] * 20 + ["b"] * 20
    y_N = np.tile([0, 1], 20)
    score_SN = (y_N + np.where(np.array(sites) == "a", 5.0, 0.0))[None]
    ones = np.ones((1, 40))
    assert {s: v[0] for s, v in scores.by_site(score_SN, y_N, sites, ones).items()} == {"a": 1.0, "b": 1.0}
    assert scores.pooled(score_SN, y_N, ones)[0] == 0.75
    assert scores.pooled(scores.centred(score_SN, sites), y_N, ones)[0] == 1.0


def test_thresholded_scores_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    y_N = rng.integers(0, 2, 200)
    score_N = 2 * rng.normal(size=200) + y_N
    found = scores.at_threshold(score_N[None], y_N, probabilities=True)
    p_N = 1 / (1 + np.exp(-score_N))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y_N, score_N > 0))
    assert found["sensitivity"] == pytest.approx((score_N[y_N == 1] > 0).mean())
    assert found["specificity"] == pytest.approx((score_N[y_N == 0] <= 0).mean())
    assert found["brier"] == pytest.approx(brier_score_loss(y_N, p_N))
    assert found["calibration_error"] > 0.05  # the scores are twice too sure
    honest = rng.normal(size=20000)
    drawn = (rng.random(20000) < 1 / (1 + np.exp(-honest))).astype(int)
    assert scores.at_threshold(honest[None], drawn, probabilities=True)["calibration_error"] < 0.02
    assert scores.at_threshold(score_N[None], y_N, probabilities=False)["brier"] is None


def test_a_paired_difference_is_surer_than_two_separate_intervals() -> None:
    """Two methods with the same errors but one: the difference is small and certain."""
    rng = np.random.default_rng(2)
    y_N = np.arange(100) % 2
    worse_SN = (rng.normal(size=100) + y_N)[None]
    better_SN = worse_SN + 0.4 * y_N
    weight_RN = scores.subject_weights(np.arange(100))
    gain = scores.difference(better_SN, worse_SN, lambda s: scores.pooled(s, y_N, weight_RN))
    assert gain is not None
    assert gain["ci_low"] > 0
    apart = [scores.estimate(scores.pooled(s, y_N, weight_RN)) for s in (worse_SN, better_SN)]
    assert apart[0] is not None and apart[1] is not None and apart[0]["ci_high"] > apart[1]["ci_low"]


def test_subjects_seen_in_pretraining_are_scored_apart() -> None:
    y_N = np.arange(60) % 2
    unseen_N = (np.arange(60) >= 30).astype(float)
    score_SN = np.where(unseen_N == 0, 10.0 * y_N, np.random.default_rng(5).normal(size=60))[None]
    found = BINARY.all_scores(score_SN, y_N, ["a"] * 60, scores.subject_weights(np.arange(60)), unseen_N, True)
    assert found["auroc"]["value"] > found["auroc_unseen"]["value"] + 0.15
    weight_RN = scores.subject_weights(np.arange(60))
    assert BINARY.all_scores(score_SN, y_N, ["a"] * 60, weight_RN, np.zeros(60), True)["auroc_unseen"] is None


def test_the_roc_curve_rises_from_zero_to_one_and_has_the_area_of_the_auroc() -> None:
    rng = np.random.default_rng(3)
    y_N = rng.integers(0, 2, 300)
    score_N = rng.normal(size=300) + y_N
    curves = scores.roc_curve(score_N[None], y_N, scores.subject_weights(np.arange(300))[:200], points=1001)
    curve = curves["roc"]
    assert all(a <= b <= c for a, b, c in zip(curves["roc_low"], curve, curves["roc_high"], strict=True))
    assert 0.02 < np.trapezoid(curves["roc_high"], dx=1e-3) - np.trapezoid(curve, dx=1e-3) < 0.1
    assert curve[-1] == 1.0
    assert all(b >= a for a, b in pairwise(curve))
    assert np.trapezoid(curve, dx=1e-3) == pytest.approx(roc_auc_score(y_N, score_N), abs=2e-3)


def test_labels_are_shuffled_within_sites_by_subject_or_within_subjects() -> None:
    rng = np.random.default_rng(4)
    groups_N = np.repeat(np.arange(20), 2)
    site_N = (groups_N >= 10).astype(int)
    y_N = (groups_N % 5 == 0).astype(int)
    mixed = shuffled(y_N, groups_N, site_N, rng)
    assert (mixed[::2] == mixed[1::2]).all()
    assert [mixed[site_N == s].sum() for s in (0, 1)] == [y_N[site_N == s].sum() for s in (0, 1)]
    assert (mixed != y_N).any()
    tasks = np.tile([0, 1], 20)
    mixed = shuffled(tasks, groups_N, site_N, rng)
    assert (mixed[::2] + mixed[1::2] == 1).all()
    assert (mixed != tasks).any()


def test_a_thousand_draws_of_one_seed_and_an_interval_of_95_percent() -> None:
    """Written out: another number of draws, seed or interval is another result from the same scores."""
    weight_RN = scores.subject_weights(np.array([0, 1, 1, 2]))
    drawn = np.random.default_rng(0).integers(0, 3, (1000, 3))
    assert weight_RN.shape == (1001, 4)
    np.testing.assert_array_equal(weight_RN[1:, [0, 1, 3]], np.stack([(drawn == g).sum(1) for g in range(3)], axis=1))
    found = scores.estimate(np.concatenate([[-5.0], np.arange(1001.0), [np.nan] * 3]))
    assert found == {"value": -5.0, "ci_low": 25.0, "ci_high": 975.0}
    assert scores.estimate(np.array([np.nan, 1.0, 2.0])) is None


def test_calibration_is_measured_in_ten_bins_of_equal_width() -> None:
    """Two units in every bin, at a quarter and three quarters of it; each bin's gap by hand."""
    p_N = np.sort(np.concatenate([np.arange(10) / 10 + 0.025, np.arange(10) / 10 + 0.075]))
    y_N = np.array([0, 0, 0, 1, 0, 0, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1])
    gaps = [abs(p_N[2 * b : 2 * b + 2].mean() - y_N[2 * b : 2 * b + 2].mean()) for b in range(10)]
    found = scores.at_threshold(np.log(p_N / (1 - p_N))[None], y_N, probabilities=True)
    assert found["calibration_error"] == pytest.approx(np.mean(gaps))
    certain = scores.at_threshold(np.array([[900.0, 900.0, -900.0]]), np.array([1, 0, 0]), probabilities=True)
    assert (certain["calibration_error"], certain["brier"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


def test_a_score_of_zero_calls_nobody_and_seeds_are_averaged_over_the_units_they_tested() -> None:
    y_N = np.array([1, 1, 0, 0])
    found = scores.at_threshold(np.array([[0.0, 1.0, 0.0, -1.0], [2.0, np.nan, np.nan, 3.0]]), y_N, True)
    assert (found["sensitivity"], found["specificity"]) == (0.75, 0.5)  # 1/2 and 1; 1 and 0
    assert found["balanced_accuracy"] == 0.625
    p = 1 / (1 + np.exp(-np.array([1.0, 2.0, 3.0])))
    of_first = (2 * 0.5**2 + (1 - p[0]) ** 2 + (1 - p[0]) ** 2) / 4
    assert found["brier"] == pytest.approx((of_first + ((1 - p[1]) ** 2 + p[2] ** 2) / 2) / 2)
    plain = scores.at_threshold(np.array([[0.0, 1.0, 0.0, -1.0]]), y_N, False)
    assert [name for name, value in plain.items() if value is None] == ["brier", "calibration_error"]


def test_a_site_of_one_class_or_without_scores_has_none() -> None:
    y_N, sites = np.array([0, 1, 1, 1, 0, 1]), ["a", "a", "b", "b", "c", "c"]
    score_SN = np.array([[1.0, 2.0, 3.0, 4.0, np.nan, np.nan]])
    assert {s: v.tolist() for s, v in scores.by_site(score_SN, y_N, sites, np.ones((2, 6))).items()} == {"a": [1, 1]}
    score_SN = np.stack([np.full(6, np.nan), [2.0, 1.0, 0.0, 0.0, 1.0, 2.0]])
    assert {s: v[0] for s, v in scores.by_site(score_SN, y_N, sites, np.ones((1, 6))).items()} == {"a": 0.0, "c": 1.0}


def test_what_is_not_known_is_left_out_of_means_and_stays_unknown_alone() -> None:
    rows = [np.array([1.0, np.nan, np.nan]), np.array([3.0, 5.0, np.nan])]
    np.testing.assert_array_equal(scores.mean_of_known(rows), [2.0, 5.0, np.nan])
    score_SN = np.array([[1.0, 3.0, np.nan, 10.0], [np.nan, np.nan, 4.0, 6.0]])
    found = scores.centred(score_SN, ["a", "a", "a", "b"])
    np.testing.assert_array_equal(found, [[-1.0, 1.0, np.nan, 0.0], [np.nan, np.nan, 0.0, 0.0]])
    assert score_SN[0, 0] == 1.0, "the scores themselves stay"


def test_unseen_subjects_count_where_it_is_known_who_was_seen() -> None:
    assert scores.unseen_weights(["a", "b", "a"], frozenset("b")).tolist() == [1.0, 0.0, 1.0]
    assert scores.unseen_weights(["a", "b"], frozenset()).tolist() == [1.0, 1.0]
    assert scores.unseen_weights(["a", "b"], None).tolist() == [0.0, 0.0]


def test_draws_without_a_class_are_in_no_interval_of_the_curve() -> None:
    score_SN, y_N = np.array([[0.0, 3.0, 1.0, 2.0]]), np.array([0, 0, 1, 1])
    whole, no_control, no_case = np.ones(4), np.array([0, 0, 2, 2.0]), np.array([2, 2, 0, 0.0])
    expected = scores.roc_curve(score_SN, y_N, np.stack([whole, whole]))
    assert scores.roc_curve(score_SN, y_N, np.stack([whole, no_control, whole, no_case])) == expected
    # One control above both cases, one below: up to a rate of 1/2 none is found, then all.
    assert expected["roc"] == pytest.approx([0.0] * 50 + [1.0] * 51) and expected["roc_low"] == expected["roc_high"]
