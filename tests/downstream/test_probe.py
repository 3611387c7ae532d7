"""The probe finds what is there, finds nothing where nothing is, and never mixes subjects."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from mcsp.downstream.probe import _auroc, _fit, make_folds, probe


def labelled(n_subjects: int = 40, sessions: int = 2) -> tuple[list[str], np.ndarray, list[str]]:
    """Keys, labels by subject, subjects."""
    subjects = [f"site/{i // sessions:03d}" for i in range(n_subjects * sessions)]
    y_N = np.array([int(s[-3:]) % 2 for s in subjects])
    return [f"{s}_{i}" for i, s in enumerate(subjects)], y_N, subjects


def test_separable_features_score_near_one_and_noise_near_one_half() -> None:
    keys, y_N, subjects = labelled()
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(len(y_N), 30))
    folds = make_folds(keys, y_N, subjects, 5, 2)
    score = probe(noise + 6 * y_N[:, None] * (np.arange(30) < 3), y_N, subjects, folds)
    assert score.auroc > 0.98
    assert score.ci_low > 0.9
    assert score.ci_low <= score.auroc <= score.ci_high
    chance = probe(noise, y_N, subjects, folds)
    assert abs(chance.auroc - 0.5) < 0.15
    assert chance.ci_low < 0.5 < chance.ci_high
    assert (score.n_samples, score.n_subjects, score.n_features, score.n_folds) == (80, 40, 30, 10)


def test_a_feature_that_names_the_subject_is_worth_nothing() -> None:
    """With a subject on both sides of a fold this would score 1."""
    keys, _, subjects = labelled(30, 3)
    labels = np.random.default_rng(1).permutation(np.repeat([0, 1], 15))
    y_N = labels[[int(s[-3:]) for s in subjects]]
    identity = np.eye(30)[[int(s[-3:]) for s in subjects]]
    assert probe(identity, y_N, subjects, make_folds(keys, y_N, subjects, 5, 1)).auroc < 0.6


def test_no_subject_is_in_two_parts_and_every_sample_is_tested_once_per_seed() -> None:
    keys, y_N, subjects = labelled()
    folds = make_folds(keys, y_N, subjects, 5, 3)
    assert len(folds.splits) == 15
    for seed in range(3):
        of_seed = folds.splits[5 * seed : 5 * seed + 5]
        assert sorted(np.concatenate([test for _, test in of_seed])) == list(range(len(y_N)))
        for train, test in of_seed:
            assert not {subjects[i] for i in train} & {subjects[i] for i in test}


def test_the_digest_names_the_folds() -> None:
    keys, y_N, subjects = labelled()
    same = [make_folds(keys, y_N, subjects, 5, 2).sha256 for _ in range(2)]
    assert same[0] == same[1]
    assert make_folds(keys, y_N, subjects, 4, 2).sha256 != same[0]
    assert make_folds([k + "x" for k in keys], y_N, subjects, 5, 2).sha256 != same[0]


def test_the_same_input_gives_the_same_score() -> None:
    keys, y_N, subjects = labelled(20)
    x_NF = np.random.default_rng(2).normal(size=(len(y_N), 8)) + y_N[:, None]
    folds = make_folds(keys, y_N, subjects, 3, 1)
    assert probe(x_NF, y_N, subjects, folds) == probe(x_NF.copy(), y_N, subjects, folds)


def test_the_rotation_changes_no_prediction() -> None:
    """More features than samples: the probe's fit equals logistic regression on the standardised features."""
    _, y_N, _ = labelled(20, 1)
    rng = np.random.default_rng(3)
    x_NF, test_NF = rng.normal(size=(20, 200)) + 0.5 * y_N[:, None], rng.normal(size=(7, 200))
    weight_F = np.full(200, 200**-0.5)
    model, rotate = _fit(x_NF, y_N, np.arange(20), weight_F)
    scaler = StandardScaler().fit(x_NF)
    plain = LogisticRegression(C=model.C, solver="newton-cholesky", tol=1e-8).fit(
        scaler.transform(x_NF) * weight_F, y_N
    )
    expected = plain.decision_function(scaler.transform(test_NF) * weight_F)
    np.testing.assert_allclose(model.decision_function(rotate.transform(test_NF)), expected, rtol=1e-2)


def test_blocks_keep_a_short_informative_block_from_drowning() -> None:
    keys, y_N, subjects = labelled(40, 1)
    rng = np.random.default_rng(4)
    x_NF = np.concatenate([rng.normal(size=(40, 4)) + 1.2 * y_N[:, None], rng.normal(size=(40, 3000))], axis=1)
    folds = make_folds(keys, y_N, subjects, 4, 1)
    assert probe(x_NF, y_N, subjects, folds, [4, 3000]).auroc > probe(x_NF, y_N, subjects, folds).auroc + 0.1
    with pytest.raises(ValueError, match="expected sizes that sum to 3004"):
        probe(x_NF, y_N, subjects, folds, [4, 2])


def test_subjects_seen_in_pretraining_are_scored_apart() -> None:
    """The features know the label of seen subjects only, so the score of unseen ones must stay near chance."""
    keys, y_N, subjects = labelled(60, 1)
    seen = frozenset(subjects[:30])
    known = np.array([s in seen for s in subjects])
    x_NF = np.random.default_rng(5).normal(size=(60, 2))
    x_NF[:, 0] += 8 * known * (2 * y_N - 1)
    score = probe(x_NF, y_N, subjects, make_folds(keys, y_N, subjects, 3, 2), seen=seen)
    assert score.auroc_unseen is not None
    assert score.auroc > score.auroc_unseen + 0.15
    folds = make_folds(keys, y_N, subjects, 3, 1)
    assert probe(x_NF, y_N, subjects, folds, seen=frozenset(subjects)).auroc_unseen is None


def test_weighted_auroc_equals_repetition_of_samples() -> None:
    rng = np.random.default_rng(6)
    score_N, y_N = rng.normal(size=25).round(1), rng.integers(0, 2, 25)
    weight_RN = rng.integers(0, 4, (20, 25)).astype(float)
    found = _auroc(score_N, y_N, weight_RN)
    for weights, value in zip(weight_RN.astype(int), found, strict=True):
        assert value == pytest.approx(roc_auc_score(np.repeat(y_N, weights), np.repeat(score_N, weights)))


@pytest.mark.parametrize(
    ("y", "folds", "message"),
    [
        ([1] * 12, 3, "expected labels of two classes, found one class in 12 samples"),
        ([0] * 10 + [1] * 2, 3, "folds=3: expected at least that many subjects in each class, found 10 and 2"),
    ],
)
def test_labels_that_allow_no_folds(y: list[int], folds: int, message: str) -> None:
    names = [f"s{i}" for i in range(12)]
    with pytest.raises(ValueError, match=message):
        make_folds(names, np.array(y), names, folds, 1)


def test_features_that_are_not_finite_are_refused() -> None:
    keys, y_N, subjects = labelled(20, 1)
    x_NF = np.full((20, 2), np.nan)
    with pytest.raises(ValueError, match="expected finite values, found 40"):
        probe(x_NF, y_N, subjects, make_folds(keys, y_N, subjects, 2, 1))
