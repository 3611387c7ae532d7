"""Who trains and who tests: folds grouped by subject, or one site left out at a time."""

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


def k_fold(keys: Sequence[str], y_N: np.ndarray, subjects: Sequence[str], folds: int, seeds: int) -> Folds:
    """Stratified folds with every subject on one side only, repeated with seeds 0, 1, ...

    Args:
        keys: unit keys, for the digest.
        y_N: labels 0 or 1.
        subjects: subject of each unit.
        folds: per seed.
        seeds: repetitions.

    Raises:
        ValueError: labels other than 0 and 1, one class only, or fewer subjects in a class than folds.
    """
    unknown = set(np.unique(y_N).tolist()) - {0, 1}
    if unknown:
        raise ValueError(f"expected labels 0 and 1, found {sorted(unknown, key=str)[:5]}")
    count = {c: len({s for s, y in zip(subjects, y_N, strict=True) if y == c}) for c in (0, 1)}
    if min(count.values()) == 0:
        raise ValueError(f"expected labels of two classes, found one class in {len(y_N)} units")
    if min(count.values()) < folds:
        raise ValueError(
            f"folds={folds}: expected at least that many subjects in each class, found {count[0]} and {count[1]}"
        )
    by_seed = []
    for seed in range(seeds):
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        by_seed.append(tuple(splitter.split(np.zeros((len(y_N), 1)), y_N, groups=np.asarray(subjects))))
    return _checked("kfold", tuple(by_seed), keys, subjects)


def leave_site_out(keys: Sequence[str], y_N: np.ndarray, subjects: Sequence[str], sites: Sequence[str]) -> Folds:
    """One fold per site: trained on all others, tested on this one. Nothing is drawn, so there is one seed.

    A site whose absence leaves a single class to train on is not tested.

    Raises:
        ValueError: fewer than two sites can be tested.
    """
    site_N = np.asarray(sites)
    folds = []
    for site in sorted(set(sites)):
        train, test = np.flatnonzero(site_N != site), np.flatnonzero(site_N == site)
        if len(set(y_N[train])) == 2:
            folds.append((train, test))
    if len(folds) < 2:
        raise ValueError(f"expected at least two sites that can be left out, found {len(folds)} of {len(set(sites))}")
    return _checked("leave_site_out", (tuple(folds),), keys, subjects)


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


def inner_folds(y_N: np.ndarray, groups_N: np.ndarray, folds: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds inside a training part, grouped by subject, for the choice of hyper-parameters; empty where too few."""
    folds = min(folds, *(len(set(groups_N[y_N == c])) for c in (0, 1)))
    if folds < 2:
        return []
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    return [(a, b) for a, b in splitter.split(np.zeros((len(y_N), 1)), y_N, groups_N) if len(set(y_N[a])) == 2]


def labelled_part(rows: np.ndarray, y_N: np.ndarray, groups_N: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """The rows of a random ``fraction`` of their subjects, at least two of each class; for label-efficiency curves.

    Smaller fractions of one seed are parts of larger ones.
    """
    chosen: list[np.ndarray] = []
    for c in (0, 1):
        subjects = np.unique(groups_N[rows[y_N[rows] == c]])
        order = np.random.default_rng([seed, c]).permutation(len(subjects))
        count = min(len(subjects), max(2, round(fraction * len(subjects))))
        chosen.append(subjects[order[:count]])
    return rows[np.isin(groups_N[rows], np.concatenate(chosen))]
