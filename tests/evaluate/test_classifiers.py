"""Classifiers find what is there, find nothing where nothing is, and learn from training subjects alone."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from mcsp.evaluate import scores
from mcsp.evaluate.classifiers import (
    Classifier,
    LinearClassifier,
    Span,
    block_weights,
    cross_validate,
    discriminant,
    fit,
    linear_svm,
    logistic,
    tangent_logistic,
)
from mcsp.evaluate.splits import inner_folds, k_fold


def labelled(n_subjects: int = 40, sessions: int = 2) -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    """Keys, labels by subject, subjects, subjects as integers."""
    subjects = [f"site/{i // sessions:03d}" for i in range(n_subjects * sessions)]
    y_N = np.array([int(s[-3:]) % 2 for s in subjects])
    return [f"{s}_{i}" for i, s in enumerate(subjects)], y_N, subjects, np.unique(subjects, return_inverse=True)[1]


def auroc(classifier: Classifier, x_N: np.ndarray, n_subjects: int = 40, sessions: int = 2, folds: int = 4) -> float:
    keys, y_N, subjects, groups_N = labelled(n_subjects, sessions)
    score_SN = cross_validate(classifier, x_N, y_N, groups_N, k_fold(keys, y_N, subjects, folds, 2))
    assert np.isfinite(score_SN).all()
    return float(scores.pooled(score_SN, y_N, np.ones((1, len(y_N))))[0])


@pytest.mark.parametrize("classifier", [logistic([30]), linear_svm(30), discriminant()], ids=lambda c: c.name)
def test_separable_features_score_near_one_and_noise_near_one_half(classifier: Classifier) -> None:
    _, y_N, _, _ = labelled()
    noise = np.random.default_rng(0).normal(size=(len(y_N), 30))
    assert auroc(classifier, noise + 6 * y_N[:, None] * (np.arange(30) < 3)) > 0.98
    assert abs(auroc(classifier, noise) - 0.5) < 0.17


@pytest.mark.parametrize("n_channels", [6, 40])
def test_tangent_space_finds_a_difference_in_covariance_alone(n_channels: int) -> None:
    """Channels 1 to 10 follow channel 0 in one class; every variance is the same."""
    _, y_N, _, _ = labelled(40, 1)
    rng = np.random.default_rng(1)
    x_NTC = rng.normal(size=(len(y_N), 1000, n_channels))
    x_NTC[y_N == 1, :, 1:11] = 0.8 * x_NTC[y_N == 1, :, :1] + 0.6 * x_NTC[y_N == 1, :, 1:11]
    x_NCC = x_NTC.swapaxes(1, 2) @ x_NTC / 1000 + 0.01 * np.eye(n_channels)
    assert auroc(tangent_logistic(n_channels), x_NCC, 40, 1) > 0.95


def test_a_feature_that_names_the_subject_is_worth_nothing() -> None:
    """With a subject on both sides of a fold this would score 1."""
    keys, _, subjects, groups_N = labelled(30, 3)
    y_N = np.random.default_rng(1).permutation(np.repeat([0, 1], 15))[groups_N]
    folds = k_fold(keys, y_N, subjects, 5, 1)
    score_SN = cross_validate(logistic([30]), np.eye(30)[groups_N], y_N, groups_N, folds)
    assert scores.pooled(score_SN, y_N, np.ones((1, len(y_N))))[0] < 0.6


def test_test_labels_and_test_features_of_other_units_change_nothing() -> None:
    """A unit's score must not move when labels of its own test part, or features of a unit beside it, do."""
    keys, y_N, subjects, groups_N = labelled(20, 1)
    x_NF = np.random.default_rng(2).normal(size=(20, 8)) + y_N[:, None]
    folds = k_fold(keys, y_N, subjects, 4, 1)
    train, test = folds.by_seed[0][0]
    before = cross_validate(logistic([8]), x_NF, y_N, groups_N, folds)[0, test]
    x_NF[test[1:]] += 100.0
    changed = y_N.copy()
    changed[test] = 1 - changed[test]
    after = cross_validate(logistic([8]), x_NF, changed, groups_N, folds)[0, test]
    assert before[0] == after[0]
    assert len(set(train) & set(test)) == 0


def test_the_same_input_gives_the_same_scores() -> None:
    keys, y_N, subjects, groups_N = labelled(20)
    x_NF = np.random.default_rng(2).normal(size=(len(y_N), 8)) + y_N[:, None]
    folds = k_fold(keys, y_N, subjects, 3, 1)
    for classifier in (logistic([8]), linear_svm(8)):
        first, second = (cross_validate(classifier, x.copy(), y_N, groups_N, folds) for x in (x_NF, x_NF))
        assert np.array_equal(first, second)


def test_the_rotation_changes_no_prediction() -> None:
    """More features than units: the fit equals logistic regression on the standardised features."""
    _, y_N, _, groups_N = labelled(20, 1)
    rng = np.random.default_rng(3)
    x_NF, test_NF = rng.normal(size=(20, 200)) + 0.5 * y_N[:, None], rng.normal(size=(7, 200))
    prepare, model = fit(logistic([200]), x_NF, y_N, groups_N)
    scaler = StandardScaler().fit(x_NF)
    plain = LogisticRegression(C=model.C, solver="newton-cholesky", tol=1e-8).fit(
        scaler.transform(x_NF) * 200**-0.5, y_N
    )
    expected = plain.decision_function(scaler.transform(test_NF) * 200**-0.5)
    np.testing.assert_allclose(model.decision_function(prepare.transform(test_NF)), expected, rtol=1e-2)


@pytest.mark.parametrize("C", [0.1, 1.0, 100.0])
def test_the_fits_are_those_of_scikit_learn(C: float) -> None:
    """LIBLINEAR penalises the intercept; a large scale of it makes that penalty small."""
    _, y_N, _, _ = labelled(40, 1)
    x_NF = np.random.default_rng(5).normal(size=(40, 12)) + 0.7 * y_N[:, None]
    theirs = (
        LogisticRegression(C=C, solver="newton-cholesky", tol=1e-8),
        LinearSVC(C=C, dual=False, tol=1e-8, intercept_scaling=100, max_iter=10_000),
    )
    ours = (LinearClassifier(C), LinearClassifier(C, "squared_hinge"))
    for a, b in zip(theirs, ours, strict=True):
        expected_N = a.fit(x_NF, y_N).decision_function(x_NF)
        error_N = b.fit(x_NF, y_N).decision_function(x_NF) - expected_N
        assert np.abs(error_N).max() < 2e-3 * np.abs(expected_N).max()


def test_features_that_do_not_vary_in_training_have_no_part() -> None:
    x_NF = np.random.default_rng(6).normal(size=(12, 3))
    x_NF[:, 1] = 0.1
    span = Span(np.ones(3))
    coordinates_NR = span.fit_transform(x_NF)
    assert coordinates_NR.shape == (12, 2)
    other_NF = x_NF.copy()
    other_NF[:, 1] = 7.0
    np.testing.assert_allclose(span.transform(other_NF), coordinates_NR, atol=1e-12)
    z_NF = (x_NF - x_NF.mean(0)) @ span.directions_FR
    np.testing.assert_allclose(z_NF, coordinates_NR, atol=1e-12)


def test_blocks_keep_a_short_informative_block_from_drowning() -> None:
    _, y_N, _, _ = labelled(40, 1)
    rng = np.random.default_rng(4)
    x_NF = np.concatenate([rng.normal(size=(40, 4)) + 1.2 * y_N[:, None], rng.normal(size=(40, 3000))], axis=1)
    assert auroc(logistic([4, 3000]), x_NF, 40, 1) > auroc(logistic([3004]), x_NF, 40, 1) + 0.1


def test_blocks_that_say_nothing_get_no_weight() -> None:
    _, y_N, _, groups_N = labelled(80, 1)
    rng = np.random.default_rng(5)
    telling_NF = rng.normal(size=(80, 30)) + 0.35 * y_N[:, None]
    x_NF = np.concatenate([telling_NF, np.ones((80, 7)), rng.normal(size=(80, 2000))], axis=1)
    blocks = [30, 7, 500, 500, 500, 500]
    weight_B = block_weights(x_NF, y_N, blocks, inner_folds(y_N, groups_N, 3))
    assert weight_B.mean() == pytest.approx(1) and weight_B[0] > 4 and weight_B[1] == 0
    weighted, alone = auroc(logistic(blocks), x_NF, 80, 1), auroc(logistic([30]), telling_NF, 80, 1)
    equal_NF = (x_NF - x_NF.mean(0)) / (x_NF.std(0) + 1e-12) / np.sqrt(np.repeat(blocks, blocks))
    assert weighted > alone - 0.03 and weighted > auroc(logistic([]), equal_NF, 80, 1)


def test_features_that_are_not_finite_are_refused() -> None:
    keys, y_N, subjects, groups_N = labelled(20, 1)
    with pytest.raises(ValueError, match="expected finite values, found 40"):
        cross_validate(logistic([2]), np.full((20, 2), np.nan), y_N, groups_N, k_fold(keys, y_N, subjects, 2, 1))
