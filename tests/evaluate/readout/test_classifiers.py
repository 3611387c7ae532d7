"""Classifiers find what is there, find nothing where nothing is, and learn from training subjects alone."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from mcsp.evaluate import scores
from mcsp.evaluate.readout.classifiers import (
    LOGISTIC,
    LOGISTIC_C,
    RIDGE,
    RIDGE_PENALTIES,
    SVM,
    SVM_C,
    Readout,
    _features,
    cross_validate,
    discriminant,
    linear_weights,
    on_grams,
    one_against_rest,
)
from mcsp.evaluate.readout.grams import fixed, gram, tangent
from mcsp.evaluate.splits import Folds, k_fold, labelled_part


def labelled(n_subjects: int = 40, sessions: int = 2) -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    """Keys, labels by subject, subjects, subjects as integers."""
    subjects = [f"site/{i // sessions:03d}" for i in range(n_subjects * sessions)]
    y_N = np.array([int(s[-3:]) % 2 for s in subjects])
    return [f"{s}_{i}" for i, s in enumerate(subjects)], y_N, subjects, np.unique(subjects, return_inverse=True)[1]


def auroc(readout: Readout, n_subjects: int = 40, sessions: int = 2, folds: int = 4) -> float:
    keys, y_N, subjects, _ = labelled(n_subjects, sessions)
    score_SN = cross_validate(readout, y_N, k_fold(keys, y_N, subjects, folds, 2))[0]
    assert np.isfinite(score_SN).all()
    return float(scores.pooled(score_SN, y_N, np.ones((1, len(y_N))))[0])


MAKE: dict[str, Callable[[np.ndarray], Readout]] = {
    "svm": lambda x: on_grams(SVM, fixed([gram(x)])),
    "logistic": lambda x: on_grams(LOGISTIC, fixed([gram(x)])),
    "lda": discriminant,
}


@pytest.mark.parametrize("kind", MAKE)
def test_separable_features_score_near_one_and_noise_near_one_half(kind: str) -> None:
    _, y_N, _, _ = labelled()
    noise = np.random.default_rng(0).normal(size=(len(y_N), 30))
    assert auroc(MAKE[kind](noise + 6 * y_N[:, None] * (np.arange(30) < 3))) > 0.98
    assert abs(auroc(MAKE[kind](noise)) - 0.5) < 0.17


@pytest.mark.parametrize("n_channels", [6, 40])
def test_tangent_space_finds_a_difference_in_covariance_alone(n_channels: int) -> None:
    """Channels 1 to 10 follow channel 0 in one class; every variance is the same."""
    _, y_N, _, _ = labelled(40, 1)
    rng = np.random.default_rng(1)
    x_NTC = rng.normal(size=(len(y_N), 1000, n_channels))
    x_NTC[y_N == 1, :, 1:11] = 0.8 * x_NTC[y_N == 1, :, :1] + 0.6 * x_NTC[y_N == 1, :, 1:11]
    x_NCC = x_NTC.swapaxes(1, 2) @ x_NTC / 1000 + 0.01 * np.eye(n_channels)
    assert auroc(on_grams(SVM, tangent(x_NCC)), 40, 1) > 0.95


def test_a_feature_that_names_the_subject_is_worth_nothing() -> None:
    """With a subject on both sides of a fold this would score 1."""
    keys, _, subjects, groups_N = labelled(30, 3)
    y_N = np.random.default_rng(1).permutation(np.repeat([0, 1], 15))[groups_N]
    score_SN = cross_validate(MAKE["svm"](np.eye(30)[groups_N]), y_N, k_fold(keys, y_N, subjects, 5, 1))[0]
    assert scores.pooled(score_SN, y_N, np.ones((1, len(y_N))))[0] < 0.6


@pytest.mark.parametrize("kind", MAKE)
def test_test_labels_and_test_features_of_other_units_change_nothing(kind: str) -> None:
    """A unit's score must not move when labels of its own test part, or features of a unit beside it, do."""
    keys, y_N, subjects, _ = labelled(20, 1)
    x_NF = np.random.default_rng(2).normal(size=(20, 8)) + y_N[:, None]
    folds = k_fold(keys, y_N, subjects, 4, 1)
    train, test = folds.by_seed[0][0]
    before = cross_validate(MAKE[kind](x_NF), y_N, folds)[0, 0, test]
    other_NF, changed = x_NF.copy(), y_N.copy()
    other_NF[test[1:]] += 10.0
    changed[test] = 1 - changed[test]
    after = cross_validate(MAKE[kind](other_NF), changed, folds)[0, 0, test]
    assert after[0] == pytest.approx(before[0], abs=1e-5)  # of rounding in inner products
    assert len(set(train) & set(test)) == 0


def test_the_same_input_gives_the_same_scores() -> None:
    keys, y_N, subjects, _ = labelled(20)
    x_NF = np.random.default_rng(2).normal(size=(len(y_N), 8)) + y_N[:, None]
    folds = k_fold(keys, y_N, subjects, 3, 1)
    for make in MAKE.values():
        first, second = (cross_validate(make(x), y_N, folds) for x in (x_NF.copy(), x_NF.copy()))
        assert np.array_equal(first, second)


def test_the_fits_are_those_of_scikit_learn_on_the_features() -> None:
    """More features than units, scaled to mean squared length 1."""
    _, y_N, _, _ = labelled(20, 1)
    x_NF = np.random.default_rng(3).normal(size=(27, 200))
    x_NF[:20] += 0.3 * y_N[:, None]
    train, test = np.arange(20), np.arange(20, 27)
    unit_NF = x_NF - x_NF[train].mean(axis=0)
    unit_NF /= np.sqrt((unit_NF[train] ** 2).sum(axis=1).mean())
    theirs = {
        "svm": SVC(C=SVM_C, kernel="linear", tol=1e-8),
        "logistic": LogisticRegression(C=LOGISTIC_C, solver="newton-cholesky", tol=1e-8),
    }
    for kind, model in theirs.items():
        expected = model.fit(unit_NF[train], y_N).decision_function(unit_NF[test])
        found = MAKE[kind](x_NF)(train)(test, train, np.r_[y_N, np.zeros(7, int)])
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_weights_on_features_give_the_scores_of_the_read_out() -> None:
    _, y_N, _, _ = labelled(20, 1)
    rng = np.random.default_rng(4)
    blocks = [rng.normal(size=(20, 50)) + 5.0, 40.0 * rng.normal(size=(20, 3)) + 9.0 * y_N[:, None], np.ones((20, 4))]
    weight_F, bias = linear_weights(blocks, y_N)
    everyone = np.arange(20)
    expected = on_grams(LOGISTIC, fixed([gram(b) for b in blocks]))(everyone)(everyone, everyone, y_N)
    np.testing.assert_allclose(np.hstack(blocks) @ weight_F + bias, expected, atol=1e-9)
    assert (weight_F[-4:] == 0).all()


def test_features_that_do_not_vary_give_everyone_the_same_score() -> None:
    for kind in ("svm", "logistic"):
        found = MAKE[kind](np.ones((20, 3)))(np.arange(16))(np.arange(16, 20), np.arange(16), np.arange(20) % 2)
        assert np.ptp(found) == 0 and np.isfinite(found).all()


def test_blocks_keep_a_short_informative_block_from_drowning() -> None:
    _, y_N, _, _ = labelled(40, 1)
    rng = np.random.default_rng(4)
    short, long = rng.normal(size=(40, 4)) + 1.2 * y_N[:, None], rng.normal(size=(40, 3000))
    alone = auroc(MAKE["svm"](np.hstack([short, long])), 40, 1)
    assert auroc(on_grams(SVM, fixed([gram(short), gram(long)])), 40, 1) > alone + 0.1


def test_what_needs_no_labels_is_fitted_on_all_of_the_training_part_once() -> None:
    keys, y_N, subjects, groups_N = labelled(40, 1)
    folds = k_fold(keys, y_N, subjects, 4, 1)
    seen: list[int] = []

    def readout(train: np.ndarray):
        seen.append(len(train))
        return lambda test, labelled, y: np.full(len(test), float(len(labelled)))

    parts = [lambda train, seed: train, lambda train, seed: labelled_part(train, y_N, groups_N, 0.2, seed)]
    found = cross_validate(readout, y_N, folds, parts)
    assert seen == [30] * 4
    assert found.shape == (2, 1, 40) and set(found[0].ravel()) == {30.0} and set(found[1].ravel()) == {6.0}


def test_a_class_that_training_lacks_is_never_called_however_unlikely_the_others_are() -> None:
    score_TK = one_against_rest(lambda y_M: np.full(2, -1000.0 - y_M.sum()), np.array([0, 2, 2]), 4, 2)
    assert score_TK.argmax(axis=1).tolist() == [0, 0] and np.isfinite(score_TK).all()
    assert score_TK[0, [0, 2]].tolist() == [-1001.0, -1002.0]


def test_units_that_no_fold_tests_have_no_score() -> None:
    train, test = np.arange(4), np.array([5])
    folds = Folds("kfold", (((train, test),), ((train, np.array([4])),)), "")
    score_SN = cross_validate(discriminant(np.arange(12.0).reshape(6, 2) % 5), np.array([0, 1, 0, 1, 0, 1]), folds)[0]
    assert np.isfinite(score_SN).tolist() == [[i == 5 for i in range(6)], [i == 4 for i in range(6)]]


def test_features_that_do_not_vary_give_the_odds_of_the_classes() -> None:
    linear = LOGISTIC.fit(np.zeros((4, 4)), np.array([1, 0, 1, 1]))
    assert linear.bias == pytest.approx(np.log(3)) and not linear.dual_M.any()


def test_directions_that_rounding_alone_fills_are_left_out() -> None:
    x_MF = np.random.default_rng(0).normal(size=(8, 2)) @ np.random.default_rng(1).normal(size=(2, 30))
    x_MR, root_R, vector_MR = _features(x_MF @ x_MF.T)
    assert x_MR.shape == vector_MR.shape == (8, 2) and len(root_R) == 2
    np.testing.assert_allclose(x_MR @ x_MR.T, x_MF @ x_MF.T, atol=1e-9)
    assert _features(np.zeros((4, 4)))[0].shape == (4, 0)


def test_penalties_are_written_out_and_only_the_logistic_gives_probabilities() -> None:
    assert (SVM_C, LOGISTIC_C) == (1.0, 10.0)
    np.testing.assert_allclose(RIDGE_PENALTIES, [0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0])
    assert [c.probabilities for c in (SVM, LOGISTIC, RIDGE)] == [False, True, False]


@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e8])
def test_directions_of_a_ten_billionth_of_the_largest_are_left_out(scale: float) -> None:
    _, root_R, vector_MR = _features(scale * np.diag([0.9e-10, 1.0, 1.1e-10, 0.0]))
    np.testing.assert_allclose(root_R, np.sqrt(scale * np.array([1.1e-10, 1.0])))
    assert np.abs(vector_MR).argmax(axis=0).tolist() == [2, 1]


def test_the_logistic_fit_has_converged() -> None:
    """At its end the gradient of the penalised loss is nothing, also where classes are far apart."""
    rng = np.random.default_rng(6)
    y_M = np.arange(30) % 2
    x_MF = rng.normal(size=(30, 6)) + 5 * y_M[:, None]
    linear = LOGISTIC.fit(x_MF @ x_MF.T, y_M)
    weight_F = linear.dual_M @ x_MF
    error_M = 1 / (1 + np.exp(-(x_MF @ weight_F + linear.bias))) - y_M
    np.testing.assert_allclose(10.0 * (error_M @ x_MF) + weight_F, 0, atol=2e-4)
    assert abs(10.0 * error_M.sum()) < 2e-4
