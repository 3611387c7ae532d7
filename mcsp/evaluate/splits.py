"""Folds: grouped by subject or family, or with one site left out."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

Protocol = Literal["kfold", "leave_site_out"]


@dataclass(frozen=True)
class Folds:
    """Train and test rows of every fold of every seed."""

    protocol: Protocol
    by_seed: tuple[tuple[tuple[np.ndarray, np.ndarray], ...], ...]  # seed -> folds -> (train, test)
    sha256: str  # of the test keys of every fold, so that two results can be told to be comparable


def strata(y_N: np.ndarray, most: int = 5) -> np.ndarray:
    """What folds keep in balance, int64 ``(N,)``: classes as they are, numbers by rank in so many parts of one size."""
    if y_N.dtype.kind != "f":
        return y_N
    return np.argsort(np.argsort(y_N, kind="stable"), kind="stable") * max(most, 1) // len(y_N)


def k_fold(keys: Sequence[str], y_N: np.ndarray, groups: Sequence[str], folds: int, seeds: int) -> Folds:
    """Stratified folds with every group on one side only, repeated with seeds 0, 1, ...

    Args:
        keys: unit keys, for the digest.
        y_N: classes 0, 1, ... as integers, or numbers as floats.
        groups: subject of each unit, or what else stays together, a family say.
        folds: per seed.
        seeds: repetitions.

    Raises:
        ValueError: negative or infinite labels, one class only, or fewer subjects than folds, in a class or at all.
    """
    _require_labels(y_N)
    subjects = np.asarray(groups)
    balanced_N = strata(y_N, min(5, len(set(groups)) // folds))
    count = [len(set(subjects[balanced_N == c])) for c in np.unique(balanced_N)]
    if y_N.dtype.kind == "f":
        if len(set(y_N.tolist())) < 2:
            raise ValueError(f"expected numbers that differ, found {y_N[0]:g} in all of {len(y_N)} units")
        if len(set(groups)) < 2 * folds:
            raise ValueError(f"folds={folds}: expected at least {2 * folds} subjects, found {len(set(groups))}")
    elif len(count) < 2:
        raise ValueError(f"expected labels of two classes, found one class in {len(y_N)} units")
    elif min(count) < folds:
        found = " and ".join(map(str, count)) if len(count) == 2 else str(count)
        raise ValueError(f"folds={folds}: expected at least that many subjects in each class, found {found}")
    by_seed = []
    for seed in range(seeds):
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        by_seed.append(tuple(splitter.split(np.zeros((len(y_N), 1)), balanced_N, groups=subjects)))
    return _checked("kfold", tuple(by_seed), keys, groups)


def _require_labels(y_N: np.ndarray) -> None:
    wrong = y_N[~np.isfinite(y_N)] if y_N.dtype.kind == "f" else y_N[y_N < 0] if y_N.dtype.kind in "iub" else y_N
    if len(wrong):
        expected = "finite numbers, or classes 0, 1, ... as integers"
        raise ValueError(f"expected labels that are {expected}, found {sorted(set(wrong.tolist()), key=str)[:5]}")


def leave_site_out(keys: Sequence[str], y_N: np.ndarray, groups: Sequence[str], sites: Sequence[str]) -> Folds:
    """One fold per site: trained on all others, tested on this one. Nothing is drawn, so there is one seed.

    A site whose absence leaves a class, or all but one number, without anyone to train on is not tested.

    Raises:
        ValueError: fewer than two sites can be tested, or their units lack a class, so that no score is defined.
    """
    site_N = np.asarray(sites)
    classes = set(y_N.tolist())
    folds = []
    for site in sorted(set(sites)):
        train, test = np.flatnonzero(site_N != site), np.flatnonzero(site_N == site)
        known = set(y_N[train].tolist())
        if len(known) > 1 and (y_N.dtype.kind == "f" or known == classes):
            folds.append((train, test))
    if len(folds) < 2:
        raise ValueError(f"expected at least two sites that can be left out, found {len(folds)} of {len(set(sites))}")
    tested = set(y_N[np.concatenate([test for _, test in folds])].tolist())
    if y_N.dtype.kind != "f" and tested < classes:
        raise ValueError(
            f"expected every class at the sites that can be left out, found {len(tested)} of {len(classes)} there"
        )
    return _checked("leave_site_out", (tuple(folds),), keys, groups)


def described_folds(folds: Folds, keys: Sequence[str]) -> dict[str, Any]:
    """JSON types from which anyone can make the same folds: the keys of every test part; all others train."""
    return {
        "sha256": folds.sha256,
        "units": len(keys),
        "test": [[sorted(keys[i] for i in test) for _, test in of_seed] for of_seed in folds.by_seed],
    }


def require_disjoint(folds: Iterable[tuple[np.ndarray, np.ndarray]], subjects: Sequence[str]) -> None:
    """Raise ``ValueError`` if any subject is in the training and in the test part of one fold."""
    subject_N = np.asarray(subjects)
    for train, test in folds:
        both = set(subject_N[train]) & set(subject_N[test])
        if both:
            raise ValueError(f"subject {min(both)} is in the training and in the test part of one fold")


def _checked(protocol: Protocol, by_seed: tuple, keys: Sequence[str], subjects: Sequence[str]) -> Folds:
    for folds in by_seed:
        require_disjoint(folds, subjects)
    described = json.dumps([sorted(keys[i] for i in test) for folds in by_seed for _, test in folds])
    return Folds(protocol, by_seed, hashlib.sha256(described.encode()).hexdigest())


def labelled_part(rows: np.ndarray, y_N: np.ndarray, groups_N: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """The rows of a random ``fraction`` of their subjects, at least two of each class, for label-efficiency curves.

    Of numbers at least two of each fifth. Smaller fractions of one seed are parts of larger ones.
    """
    chosen: list[np.ndarray] = []
    balanced_N = strata(y_N)
    for c in np.unique(balanced_N):
        subjects = np.unique(groups_N[rows[balanced_N[rows] == c]])
        order = np.random.default_rng([seed, c]).permutation(len(subjects))
        count = min(len(subjects), max(2, round(fraction * len(subjects))))
        chosen.append(subjects[order[:count]])
    return rows[np.isin(groups_N[rows], np.concatenate(chosen))]
