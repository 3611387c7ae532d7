"""No subject is in two parts, no site trains for itself, and digests name the folds."""

import hashlib
import json

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from mcsp.evaluate.splits import (
    _checked,
    described_folds,
    k_fold,
    labelled_part,
    leave_site_out,
    require_disjoint,
    strata,
)


def people(n: int = 40, sessions: int = 2) -> tuple[list[str], np.ndarray, list[str], list[str]]:
    """Keys, labels, subjects, sites: three sites, classes alternate between subjects."""
    subjects = [f"s{i // sessions % 3}/{i // sessions:03d}" for i in range(n * sessions)]
    y_N = np.array([int(s[-3:]) % 2 for s in subjects])
    return [f"{s}_{i}" for i, s in enumerate(subjects)], y_N, subjects, [s[:2] for s in subjects]


def test_no_subject_is_in_two_parts_and_every_unit_is_tested_once_per_seed() -> None:
    keys, y_N, subjects, _ = people()
    folds = k_fold(keys, y_N, subjects, 5, 3)
    assert len(folds.by_seed) == 3
    for splits in folds.by_seed:
        assert sorted(np.concatenate([test for _, test in splits])) == list(range(len(y_N)))
        for train, test in splits:
            assert not {subjects[i] for i in train} & {subjects[i] for i in test}


def test_a_site_left_out_trains_for_others_only() -> None:
    keys, y_N, subjects, sites = people()
    (splits,) = leave_site_out(keys, y_N, subjects, sites).by_seed
    assert [{sites[i] for i in test} for _, test in splits] == [{"s0"}, {"s1"}, {"s2"}]
    for train, test in splits:
        assert not {sites[i] for i in train} & {sites[i] for i in test}


def test_sites_that_cannot_be_left_out() -> None:
    keys, y_N, subjects, _ = people()
    with pytest.raises(ValueError, match="at least two sites that can be left out, found 0 of 1"):
        leave_site_out(keys, y_N, subjects, ["only"] * len(keys))
    by_label = [f"site-{y}" for y in y_N]  # without one of them a single class is left
    with pytest.raises(ValueError, match="found 0 of 2"):
        leave_site_out(keys, y_N, subjects, by_label)


def test_two_sites_can_leave_each_other_out_and_one_without_which_a_class_is_missing_cannot() -> None:
    keys, y_N, subjects, sites = people()
    two = [site if site == "s0" else "s1" for site in sites]
    (splits,) = leave_site_out(keys, y_N, subjects, two).by_seed
    assert [{two[i] for i in test} for _, test in splits] == [{"s0"}, {"s1"}]
    one_sided = ["s0" if y == 1 or site == "s0" else "s1" for y, site in zip(y_N, sites, strict=True)]
    with pytest.raises(ValueError, match="found 1 of 2"):  # s1 has controls alone
        leave_site_out(keys, y_N, subjects, one_sided)


def test_a_subject_on_both_sides_is_refused() -> None:
    keys, _, subjects, _ = people(4, 2)
    with pytest.raises(ValueError, match="subject s0/000 is in the training and in the test part"):
        _checked("kfold", (((np.array([0, 2]), np.array([1, 3])),),), keys, subjects)


def test_the_digest_names_the_folds() -> None:
    keys, y_N, subjects, _ = people()
    same = [k_fold(keys, y_N, subjects, 5, 2).sha256 for _ in range(2)]
    assert same[0] == same[1]
    assert k_fold(keys, y_N, subjects, 4, 2).sha256 != same[0]
    assert k_fold([k + "x" for k in keys], y_N, subjects, 5, 2).sha256 != same[0]


def test_a_part_of_the_labels_is_a_part_of_the_subjects_with_both_classes() -> None:
    _, y_N, subjects, _ = people(40, 2)
    groups_N = np.unique(subjects, return_inverse=True)[1]
    rows = np.arange(len(y_N))
    small, half, whole = (labelled_part(rows, y_N, groups_N, f, seed=1) for f in (0.01, 0.5, 1.0))
    assert set(small) <= set(half) <= set(whole) == set(rows)
    assert np.bincount(y_N[small]).tolist() == [4, 4]  # two subjects of each class, two units each
    assert len(half) == 40
    assert set(labelled_part(rows, y_N, groups_N, 0.5, seed=2)) != set(half)


@pytest.mark.parametrize(
    ("y", "folds", "message"),
    [
        ([1] * 12, 3, "expected labels of two classes, found one class in 12 units"),
        ([0] * 10 + [1] * 2, 3, "folds=3: expected at least that many subjects in each class, found 10 and 2"),
    ],
)
def test_labels_that_allow_no_folds(y: list[int], folds: int, message: str) -> None:
    names = [f"s{i}" for i in range(12)]
    with pytest.raises(ValueError, match=message):
        k_fold(names, np.array(y), names, folds, 1)


def test_folds_of_another_splitter_are_checked_too() -> None:
    from sklearn.model_selection import GroupKFold, KFold

    subjects = ["a", "a", "b", "b", "c", "c"]
    require_disjoint(list(GroupKFold(3).split(np.zeros(6), groups=subjects)), subjects)
    with pytest.raises(ValueError, match="subject a is in the training and in the test part of one fold"):
        require_disjoint(list(KFold(6).split(np.zeros(6))), subjects)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([-1, 2], r"classes 0, 1, ... as integers, found \[-1\]"),
        (["a", "b"], r"classes 0, 1, ... as integers, found \['a', 'b'\]"),
        ([1.0, np.inf], r"expected labels that are finite numbers, .* found \[inf\]"),
        ([2.5, 2.5], "expected numbers that differ, found 2.5 in all of 2 units"),
        ([1.0, 2.0], "folds=2: expected at least 4 subjects, found 2"),
    ],
)
def test_labels_that_are_neither_classes_nor_numbers(y: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        k_fold(["a", "b"], np.array(y), ["a", "b"], 2, 1)


def test_three_classes_and_numbers_are_balanced_over_folds_and_families_stay_together() -> None:
    keys, _, subjects, _ = people(60, 2)
    number = np.array([int(s[-3:]) for s in subjects])
    families = [f"family {n // 2}" for n in number]
    for y_N in (number % 3, number * 1.5):
        for train, test in k_fold(keys, y_N, families, 3, 1).by_seed[0]:
            assert not {families[i] for i in train} & {families[i] for i in test}
            assert {n % 2 for n in number[test]} == {0, 1}  # a family is two subjects
            if y_N.dtype.kind == "f":
                assert abs(np.median(y_N[test]) - np.median(y_N)) < 10  # of 0 to 90
            else:
                assert np.ptp(np.bincount(y_N[test])) <= 4
    with pytest.raises(
        ValueError, match=r"folds=8: expected at least that many subjects in each class, found \[7, 7, 6\]"
    ):
        k_fold(keys[:40], (number % 3)[:40], subjects[:40], 8, 1)


def test_a_site_with_a_class_of_its_own_is_not_left_out_and_numbers_need_two_that_differ() -> None:
    keys = list("abcdefghi")
    sites = [f"site-{i // 3}" for i in range(9)]
    (splits,) = leave_site_out(keys, np.array([0, 1, 2, 0, 1, 0, 0, 1, 2]), keys, sites).by_seed
    assert [sites[test[0]] for _, test in splits] == ["site-0", "site-1", "site-2"]
    with pytest.raises(ValueError, match="expected every class at the sites that can be left out, found 2 of 3 there"):
        leave_site_out(keys, np.array([0, 1, 1, 0, 1, 0, 0, 1, 2]), keys, sites)  # no score of class 2 is defined
    with pytest.raises(ValueError, match="found 1 of 2 there"):
        leave_site_out(keys, np.array([0, 0, 0, 0, 0, 0, 0, 1, 1]), keys, sites)
    (splits,) = leave_site_out(keys, np.array([1.0] * 6 + [2.0, 3.0, 1.0]), keys, sites).by_seed
    assert [sites[test[0]] for _, test in splits] == ["site-0", "site-1"]


def test_a_part_of_numbers_has_some_of_each_fifth() -> None:
    y_N, groups_N = np.linspace(20, 80, 50), np.arange(50)
    part = labelled_part(np.arange(50), y_N, groups_N, 0.1, seed=1)
    assert np.bincount((y_N[part] - 20).astype(int) // 12).tolist()[:5] == [2] * 5
    assert set(part) <= set(labelled_part(np.arange(50), y_N, groups_N, 0.5, seed=1))


def test_numbers_are_balanced_by_rank_in_parts_of_one_size_and_classes_as_they_are() -> None:
    number = np.array([30.0, 10.0, 20.0, 50.0, 40.0, 60.0, 20.0, 80.0, 70.0, 90.0])
    assert strata(number).tolist() == [1, 0, 0, 2, 2, 3, 1, 4, 3, 4]  # two of each fifth; ties in their order
    assert strata(number, 2).tolist() == [0, 0, 0, 1, 0, 1, 0, 1, 1, 1]
    assert strata(number, 1).tolist() == strata(number, 0).tolist() == [0] * 10
    assert strata(np.arange(7.0), 3).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert strata(np.array([2, 0, 1]), 1).tolist() == [2, 0, 1]


def test_the_folds_are_scikit_learns_of_the_seeds_from_zero_on() -> None:
    """Anybody can make them again; numbers are in fifths, or in as many parts as there are subjects for each fold."""
    keys, y_N, subjects, _ = people(24, 2)
    number = np.random.default_rng(0).normal(size=48)
    for label_N, folds, parts in ((y_N, 4, None), (number, 3, 5), (number, 8, 3), (number, 12, 2)):
        balanced = y_N if parts is None else np.argsort(np.argsort(number)) * parts // 48
        found = k_fold(keys, label_N, subjects, folds, 2)
        assert found.protocol == "kfold" and [len(of_seed) for of_seed in found.by_seed] == [folds] * 2
        for seed, of_seed in enumerate(found.by_seed):
            expected = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(keys, balanced, subjects)
            for (train, test), (their_train, their_test) in zip(of_seed, expected, strict=True):
                assert train.tolist() == their_train.tolist() and test.tolist() == their_test.tolist()
        tested = [sorted(keys[i] for i in test) for of_seed in found.by_seed for _, test in of_seed]
        assert found.sha256 == hashlib.sha256(json.dumps(tested).encode()).hexdigest()
        described = described_folds(found, keys)
        assert described == {"sha256": found.sha256, "units": 48, "test": [tested[:folds], tested[folds:]]}


def test_exactly_enough_subjects_are_enough() -> None:
    names = list("abcdefgh")
    assert len(k_fold(names, np.array([0, 1] * 4), names, 4, 1).by_seed[0]) == 4
    with pytest.raises(ValueError, match="folds=5: expected at least that many subjects in each class, found 4 and 4"):
        k_fold(names, np.array([0, 1] * 4), names, 5, 1)
    assert len(k_fold(names, np.arange(8.0), names, 4, 1).by_seed[0]) == 4
    with pytest.raises(ValueError, match="folds=5: expected at least 10 subjects, found 8"):
        k_fold(names, np.arange(8.0), names, 5, 1)
    two_each = ["a", "a", "b", "b", "c", "c", "d", "d"]  # subjects count, not units
    with pytest.raises(ValueError, match="folds=3: expected at least that many subjects in each class, found 2 and 2"):
        k_fold(names, np.array([0, 0, 0, 0, 1, 1, 1, 1]), two_each, 3, 1)
    with pytest.raises(ValueError, match="folds=3: expected at least 6 subjects, found 4"):
        k_fold(names, np.arange(8.0), two_each, 3, 1)


def test_labels_as_booleans_are_classes_and_five_wrong_ones_are_named() -> None:
    names = list("abcd")
    assert len(k_fold(names, np.array([True, False, False, True]), names, 2, 1).by_seed[0]) == 2
    with pytest.raises(ValueError, match=r"found \[-1, -2, -3, -4, -5\]$"):
        k_fold(["u"] * 9, np.arange(-9, 0), ["u"] * 9, 2, 1)


def test_a_part_of_the_labels_rounds_to_whole_subjects_and_has_two_at_least() -> None:
    """Of eleven subjects of one class and three of the other, two units each."""
    groups_N = np.repeat(np.arange(14), 2)
    y_N = (groups_N >= 11).astype(int)
    rows = np.arange(28)
    for fraction, first, second in ((0.0, 2, 2), (0.3, 3, 2), (0.6, 7, 2), (0.9, 10, 3), (1.0, 11, 3)):
        part = labelled_part(rows, y_N, groups_N, fraction, seed=0)
        assert part.tolist() == sorted(part.tolist()) and (np.bincount(groups_N[part], minlength=14) % 2 == 0).all()
        assert np.bincount(y_N[part]).tolist() == [2 * first, 2 * second], fraction
    one = labelled_part(np.array([3, 2, 27]), y_N, groups_N, 0.1, seed=0)
    assert one.tolist() == [3, 2, 27], "a subject alone in its class is taken"


def test_a_part_of_the_labels_is_the_one_of_its_seed() -> None:
    """Written out: another draw is another learning curve from the same features."""
    groups_N = np.arange(20)
    y_N = groups_N % 2
    for seed in (0, 3):
        of_class = [np.flatnonzero(y_N == c)[np.random.default_rng([seed, c]).permutation(10)[:4]] for c in (0, 1)]
        found = labelled_part(np.arange(20), y_N, groups_N, 0.4, seed)
        assert found.tolist() == sorted(np.concatenate(of_class).tolist())


def test_leaving_sites_out_has_one_seed_and_every_other_site_trains() -> None:
    keys, y_N, subjects, sites = people(12, 1)
    found = leave_site_out(keys, y_N, subjects, sites)
    assert found.protocol == "leave_site_out" and len(found.by_seed) == 1
    for train, test in found.by_seed[0]:
        assert sorted([*train, *test]) == list(range(12))
