"""Several classes and numbers: measures beside scikit-learn's, read-outs on planted features, paired intervals."""

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.linear_model import RidgeCV
from sklearn.metrics import confusion_matrix, mean_absolute_error, roc_auc_score

from mcsp.evaluate import scores
from mcsp.evaluate.readout import task as tasks
from mcsp.evaluate.readout.classifiers import (
    LOGISTIC,
    RIDGE,
    RIDGE_PENALTIES,
    SVM,
    cross_validate,
    discriminant,
    on_grams,
)
from mcsp.evaluate.readout.grams import combined, fixed, gram
from mcsp.evaluate.readout.task import BINARY, Task
from mcsp.evaluate.splits import k_fold, labelled_part, leave_site_out

THREE, NUMBER = Task(("control", "mild", "severe")), Task(())
N = 90
SITES = [f"site-{i % 3}" for i in range(N)]
KEYS = [f"{site}/{i:03d}" for i, site in enumerate(SITES)]
ONES = np.ones((1, N))


def planted(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of which the first carries three classes, the second an age; the rest is noise."""
    rng = np.random.default_rng(seed)
    y_N, age_N = np.arange(N) // 3 % 3, rng.uniform(20, 80, N)
    x_NF = rng.standard_normal((N, 40))
    x_NF[:, :3] += 3 * np.eye(3)[y_N]
    x_NF[:, 3] += (age_N - 50) / 8
    return x_NF, y_N, age_N


def test_kinds_and_what_leads() -> None:
    assert [(t.kind, t.main, t.within[0]) for t in (BINARY, THREE, NUMBER)] == [
        ("binary", "auroc", "auroc"),
        ("classes", "auroc", "auroc"),
        ("number", "r2", "r"),
    ]


@pytest.mark.parametrize("protocol", ["kfold", "leave_site_out"])
@pytest.mark.parametrize("kind", ["svm", "logistic", "discriminant"])
def test_three_planted_classes_are_found_in_subjects_and_sites_left_out(kind: str, protocol: str) -> None:
    x_NF, y_N, _ = planted()
    folds = leave_site_out(KEYS, y_N, KEYS, SITES) if protocol == "leave_site_out" else k_fold(KEYS, y_N, KEYS, 5, 2)
    of_grams = {"svm": SVM, "logistic": LOGISTIC}
    readout = on_grams(of_grams[kind], fixed([gram(x_NF)]), THREE) if kind in of_grams else discriminant(x_NF, THREE)
    score_SNK = cross_validate(readout, y_N, folds)[0]
    assert score_SNK.shape == (len(folds.by_seed), N, 3)
    found = THREE.all_scores(score_SNK, y_N, SITES, scores.subject_weights(np.arange(N)), np.ones(N), False)
    assert found["auroc"]["value"] > 0.9 and found["auroc"]["ci_low"] > 0.8
    expected = roc_auc_score(y_N, softmax(score_SNK[0]), multi_class="ovr")
    by_scores = np.mean([roc_auc_score(y_N == k, score_SNK[0, :, k]) for k in range(3)])
    assert tasks.macro(score_SNK[:1], y_N, ONES)[0] == pytest.approx(by_scores) and abs(by_scores - expected) < 0.05
    assert set(found["per_class"]) == set(THREE.classes)
    assert np.mean([v["value"] for v in found["per_class"].values()]) == pytest.approx(found["auroc"]["value"])
    called = np.mean([confusion_matrix(y_N, s.argmax(1)) for s in score_SNK], axis=0)
    np.testing.assert_allclose(found["confusion"], called, atol=1e-6)
    assert found["accuracy"] == pytest.approx(np.trace(called) / N) and found["balanced_accuracy"] > 0.7
    assert set(found["per_site"]) == set(SITES)
    shuffled = np.random.default_rng(1).permutation(y_N)
    again = cross_validate(readout, shuffled, k_fold(KEYS, shuffled, KEYS, 5, 1))[0]
    assert abs(tasks.macro(again, shuffled, ONES)[0] - 0.5) < 0.12


def softmax(score_NK: np.ndarray) -> np.ndarray:
    e = np.exp(score_NK - score_NK.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_an_age_is_found_in_years_beside_the_training_mean() -> None:
    x_NF, _, age_N = planted()
    folds = k_fold(KEYS, age_N, KEYS, 5, 1)
    score_SN2 = cross_validate(on_grams(RIDGE, fixed([gram(x_NF)]), NUMBER), age_N, folds)[0]
    for train, test in folds.by_seed[0]:
        np.testing.assert_allclose(score_SN2[0, test, 1], age_N[train].mean())
    predicted_N, mean_N = score_SN2[0].T
    found = NUMBER.all_scores(score_SN2, age_N, SITES, scores.subject_weights(np.arange(N)), np.zeros(N), False)
    assert found["r"]["value"] == pytest.approx(pearsonr(age_N, predicted_N)[0]) and found["r"]["value"] > 0.7
    assert found["mae"]["value"] == pytest.approx(mean_absolute_error(age_N, predicted_N))
    assert found["mae_of_mean"]["value"] == pytest.approx(mean_absolute_error(age_N, mean_N))
    r2 = 1 - ((age_N - predicted_N) ** 2).sum() / ((age_N - mean_N) ** 2).sum()
    assert found["r2"]["value"] == pytest.approx(r2) and 0.5 < r2 < 1
    assert found["r2"]["ci_low"] < r2 < found["r2"]["ci_high"]
    assert found["r2_unseen"] is None  # nobody knows who was seen
    of_site = [pearsonr(age_N[i::3], predicted_N[i::3])[0] for i in range(3)]
    assert [v["value"] for v in found["per_site"].values()] == pytest.approx(of_site)
    assert found["r_sites"]["value"] == pytest.approx(np.mean(of_site))


def test_what_says_nothing_scores_zero_and_a_prediction_by_the_mean_exactly_zero() -> None:
    x_NF, _, age_N = planted()
    folds = k_fold(KEYS, age_N, KEYS, 5, 1)
    noise = cross_validate(on_grams(RIDGE, fixed([gram(x_NF[:, 4:])]), NUMBER), age_N, folds)[0]
    assert abs(tasks.r2(noise, age_N, ONES)[0]) < 0.15
    flat = cross_validate(on_grams(RIDGE, fixed([np.zeros((N, N))]), NUMBER), age_N, folds)[0]
    assert tasks.r2(flat, age_N, ONES)[0] == pytest.approx(0, abs=1e-12)
    assert np.isnan(tasks.correlation(np.full((1, N, 2), 50.0), age_N, ONES)[0])


def test_the_ridge_is_scikit_learns_on_the_features() -> None:
    x_NF, _, age_N = planted()
    train, test = np.arange(60), np.arange(60, N)
    scale = np.sqrt(((x_NF[train] - x_NF[train].mean(0)) ** 2).sum(1).mean())
    z_NF = (x_NF - x_NF[train].mean(0)) / scale
    expected = RidgeCV(RIDGE_PENALTIES).fit(z_NF[train], age_N[train]).predict(z_NF[test])
    linear = RIDGE.fit(combined([gram(x_NF)], train)[np.ix_(train, train)], age_N[train])
    found = combined([gram(x_NF)], train)[np.ix_(test, train)] @ linear.dual_M + linear.bias
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_few_labels_predict_worse_and_the_mean_is_that_of_the_few() -> None:
    x_NF, y_N, age_N = planted()
    groups_N = np.arange(N)
    for label_N, task, classifier in ((age_N, NUMBER, RIDGE), (y_N, THREE, SVM)):
        parts = [lambda t, s, f=f, y=label_N: labelled_part(t, y, groups_N, f, s) for f in (0.1, 1.0)]
        folds = leave_site_out(KEYS, label_N, KEYS, SITES)
        score_PSN = cross_validate(on_grams(classifier, fixed([gram(x_NF)]), task), label_N, folds, parts)
        few, all_ = (task.measures[task.main](score_SN, label_N, ONES)[0] for score_SN in score_PSN)
        assert few < all_
        if task is NUMBER:
            train, test = folds.by_seed[0][0]
            np.testing.assert_allclose(score_PSN[0, 0, test, 1], label_N[parts[0](train, 0)].mean())


def test_differences_are_paired_on_the_same_draws_of_subjects() -> None:
    x_NF, _, age_N = planted()
    folds = k_fold(KEYS, age_N, KEYS, 5, 1)
    good, poor = (
        cross_validate(on_grams(RIDGE, fixed([gram(x)]), NUMBER), age_N, folds)[0]
        for x in (x_NF[:, :8], x_NF + 0.0 * x_NF)
    )
    weight_RN = scores.subject_weights(np.arange(N))
    compared = NUMBER.compared(age_N, SITES, weight_RN)
    assert list(compared) == ["r2", "r", "mae", "r_sites"]
    gain = scores.difference(good, poor, compared["r2"])
    of_one = scores.estimate(tasks.r2(good, age_N, weight_RN))
    assert gain is not None and of_one is not None and gain["value"] > 0
    assert gain["ci_high"] - gain["ci_low"] < of_one["ci_high"] - of_one["ci_low"]


def test_a_draw_without_a_class_has_no_macro_auroc_and_a_site_of_two_classes_has_one() -> None:
    score_SNK = np.random.default_rng(0).standard_normal((1, 6, 3))
    y_N = np.array([0, 0, 1, 1, 2, 2])
    without_2 = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    assert np.isfinite(tasks.macro(score_SNK, y_N, without_2)).tolist() == [True, False]
    by_site = THREE.by_site(score_SNK, y_N, ["a"] * 4 + ["b"] * 2, np.ones((1, 6)))
    of_two = [roc_auc_score(y_N[:4] == k, score_SNK[0, :4, k]) for k in (0, 1)]
    assert {site: v[0] for site, v in by_site.items()} == {"a": pytest.approx(np.mean(of_two))}


def test_units_that_no_fold_has_tested_are_called_nothing() -> None:
    y_N = np.array([0, 1, 2, 2])
    score_SNK = np.stack([np.eye(3)[[0, 1, 2, 0]]] * 2)
    score_SNK[0, 3] = score_SNK[1, 1] = np.nan
    found = THREE.all_scores(score_SNK, y_N, ["a"] * 4, np.ones((3, 4)), np.ones(4), False)
    assert found["confusion"] == [[1, 0, 0], [0, 0.5, 0], [0.5, 0, 1]]
    assert found["accuracy"] == pytest.approx((1 + 2 / 3) / 2)


def test_the_spread_over_seeds_needs_two() -> None:
    y_N, score_SN = np.array([0, 1, 0, 1]), np.array([[0.0, 1, 2, 3], [0.0, 3, 1, 2]])
    weights = np.ones((3, 4))
    two, one = (
        BINARY.all_scores(score, y_N, ["a"] * 4, weights, np.ones(4), False) for score in (score_SN, score_SN[:1])
    )
    assert two["auroc_sd_over_seeds"] == pytest.approx(0.125) and one["auroc_sd_over_seeds"] is None


def test_weights_of_units_are_repetitions_of_units() -> None:
    rng = np.random.default_rng(2)
    y_N, score_SN2 = rng.normal(50, 10, 12), rng.normal(50, 10, (2, 12, 2))
    weight_RN = rng.integers(0, 4, (5, 12)).astype(float)
    for measure in NUMBER.measures.values():
        for weights, value in zip(weight_RN.astype(int), measure(score_SN2, y_N, weight_RN), strict=True):
            again = measure(np.repeat(score_SN2, weights, axis=1), np.repeat(y_N, weights), np.ones((1, weights.sum())))
            assert value == pytest.approx(again[0])
    mae = np.abs(y_N - score_SN2[..., 0]).mean()
    assert tasks.mean_absolute_error(score_SN2, y_N, np.ones((1, 12)))[0] == pytest.approx(mae)


def test_numbers_of_units_without_a_prediction_and_draws_without_a_unit_are_not_known() -> None:
    y_N = np.array([1.0, 2.0, 4.0, 8.0])
    score_SN2 = np.stack([y_N + np.array([1, -1, 1, -1]), np.full(4, 3.0)], axis=1)[None].copy()
    score_SN2[0, 3, 0] = np.nan
    weight_RN = np.array([[1.0, 1, 1, 1], [0, 0, 0, 5], [1, 1, 1, 0]])
    for measure in NUMBER.measures.values():
        whole, nothing, same = measure(score_SN2, y_N, weight_RN)
        assert np.isnan(nothing) and whole == same
    assert tasks.r2(score_SN2, y_N, weight_RN)[0] == pytest.approx(1 - 3 / (4 + 1 + 1))
    assert tasks.mean_absolute_error(score_SN2, y_N, weight_RN)[0] == 1.0


def test_a_prediction_that_differs_by_rounding_alone_has_no_correlation() -> None:
    y_N = np.array([10.0, 20.0, 30.0, 40.0])
    for spread, known in ((1e-14, False), (1e-6, True)):
        score_SN2 = np.stack([50 + spread * np.array([-1, 0, 1, 2.0]), np.full(4, 25.0)], axis=1)[None]
        assert np.isfinite(tasks.correlation(score_SN2, y_N, np.ones((1, 4)))[0]) == known
    assert np.isnan(tasks.correlation(score_SN2, np.full(4, 30.0), np.ones((1, 4)))[0])


def test_names_of_all_scores_and_what_is_not_defined_without_a_site_of_two_labels() -> None:
    weights, alone = np.ones((3, 4)), ["a", "b", "c", "d"]
    shared = {"auroc", "auroc_sd_over_seeds", "auroc_sites", "auroc_unseen", "per_site", "auroc_centred"}
    called = {"balanced_accuracy", "sensitivity", "specificity", "brier", "calibration_error"}
    y_N, score_SN = np.array([0, 1, 0, 1]), np.array([[0.0, 1, 2, 3]])
    found = BINARY.all_scores(score_SN, y_N, alone, weights, np.ones(4), True)
    assert set(found) == shared | called
    assert (found["auroc_sites"], found["auroc_centred"], found["per_site"]) == (None, None, {})
    assert found["auroc"]["value"] == 0.75 and found["auroc_unseen"] == found["auroc"]
    assert np.isnan(BINARY.site_mean(score_SN, y_N, weights, alone)).tolist() == [True] * 3
    pairs = BINARY.all_scores(score_SN + np.array([0, 0, 9, 9]), y_N, ["a", "a", "b", "b"], weights, np.ones(4), False)
    assert pairs["auroc"]["value"] == 0.75 and pairs["auroc_sites"]["value"] == pairs["auroc_centred"]["value"] == 1.0
    three = THREE.all_scores(np.eye(3)[[0, 1, 2, 1]][None], np.array([0, 1, 2, 2]), alone, weights, np.ones(4), False)
    assert set(three) == shared | called | {"per_class", "confusion", "accuracy"} and three["auroc_sites"] is None
    assert [three[name] for name in ("sensitivity", "specificity", "brier", "calibration_error")] == [None] * 4
    age = NUMBER.all_scores(np.ones((1, 4, 2)), np.arange(4.0), alone, weights, np.ones(4), False)
    names = {"r2", "r", "mae", "mae_of_mean", "r2_sd_over_seeds", "r_sites", "r2_unseen", "per_site"}
    assert set(age) == names and age["r_sites"] is None


def test_the_confusion_is_the_mean_of_seeds_and_a_class_without_units_has_no_recall() -> None:
    y_N = np.array([0, 0, 1])
    score_SNK = np.eye(3)[[[0, 0, 1], [0, 2, 1], [0, 0, 2]]]
    found = THREE._called(score_SNK, y_N)
    assert found["confusion"] == [[1.666667, 0, 0.333333], [0, 0.666667, 0.333333], [0, 0, 0]]
    assert found["accuracy"] == pytest.approx(7 / 9)
    assert found["balanced_accuracy"] == pytest.approx((1 + 1 + 0.5 + 1 + 1 + 0) / 6)


def test_several_classes_are_centred_class_by_class() -> None:
    rng = np.random.default_rng(3)
    score_SNK, y_N = rng.normal(size=(2, 30, 3)), np.arange(30) % 3
    sites = ["a"] * 12 + ["b"] * 18
    centred = np.concatenate(
        [s - s.mean(axis=1, keepdims=True) for s in (score_SNK[:, :12], score_SNK[:, 12:])], axis=1
    )
    weights = np.ones((3, 30))
    found = THREE.all_scores(score_SNK, y_N, sites, weights, np.ones(30), False)
    assert found["auroc_centred"]["value"] == pytest.approx(tasks.macro(centred, y_N, weights)[0])
    assert found["auroc_centred"]["value"] != pytest.approx(found["auroc"]["value"], abs=1e-6)
    of_site = [v["value"] for v in found["per_site"].values()]
    assert found["auroc_sites"]["value"] == pytest.approx(np.mean(of_site))
    assert THREE.site_mean(score_SNK, y_N, weights, sites)[0] == pytest.approx(np.mean(of_site))
