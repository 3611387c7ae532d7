"""Logistic probe on frozen features: subject-grouped folds, the same for every feature set.

Shape letters: N samples, F features, R bootstrap draws, P and Q samples of either class.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

C_GRID = tuple(10.0**k for k in range(-3, 4))  # inverse strengths of the L2 penalty, for features of variance about 1
INNER_FOLDS = 3
BOOTSTRAP_DRAWS = 1000
BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Folds:
    """Train and test rows of every fold of every seed."""

    splits: tuple[tuple[np.ndarray, np.ndarray], ...]
    sha256: str  # of the test keys of every fold, so that two results can be told to be comparable


@dataclass(frozen=True)
class ProbeScore:
    """AUROC over seeds x folds; the interval is a bootstrap over subjects of that same mean."""

    auroc: float
    sd: float  # over seeds x folds
    ci_low: float  # 2.5 %
    ci_high: float  # 97.5 %
    auroc_unseen: float | None  # the same over test subjects that pretraining has not seen; None where too few
    n_samples: int
    n_subjects: int
    n_features: int
    n_folds: int  # folds whose test part holds both classes

    def dump(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


def make_folds(keys: Sequence[str], y_N: np.ndarray, subjects: Sequence[str], folds: int, seeds: int) -> Folds:
    """Stratified folds with every subject on one side only, repeated with seeds 0, 1, ...

    Args:
        keys: sample keys, for the digest.
        y_N: labels 0 or 1.
        subjects: subject of each sample.
        folds: per seed.
        seeds: repetitions.

    Raises:
        ValueError: one class only, or fewer subjects in a class than folds.
    """
    count = {c: len({s for s, y in zip(subjects, y_N, strict=True) if y == c}) for c in (0, 1)}
    if min(count.values()) == 0:
        raise ValueError(f"expected labels of two classes, found one class in {len(y_N)} samples")
    if min(count.values()) < folds:
        raise ValueError(
            f"folds={folds}: expected at least that many subjects in each class, found {count[0]} and {count[1]}"
        )
    splits = []
    for seed in range(seeds):
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        splits += list(splitter.split(np.zeros((len(y_N), 1)), y_N, groups=np.asarray(subjects)))
    described = json.dumps([sorted(keys[i] for i in test) for _, test in splits])
    return Folds(tuple(splits), hashlib.sha256(described.encode()).hexdigest())


def probe(
    x_NF: np.ndarray,
    y_N: np.ndarray,
    subjects: Sequence[str],
    folds: Folds,
    blocks: Sequence[int] | None = None,
    seen: frozenset[str] = frozenset(),
) -> ProbeScore:
    """Fit and test a logistic probe on every fold; features stay as they are, only the probe is fitted.

    Args:
        x_NF: finite features.
        y_N: labels 0 or 1.
        subjects: subject of each sample.
        folds: from :func:`make_folds` for the same samples.
        blocks: numbers of neighbouring features that form one block each; every block gets the same total variance, so
            that a long one does not drown a short one. None: one block.
        seen: subjects whose recordings (not labels) were used in pretraining.

    Raises:
        ValueError: features that are not finite, blocks that do not add up, or no fold whose test part has both
            classes.
    """
    if not np.isfinite(x_NF).all():
        raise ValueError(f"features: expected finite values, found {int((~np.isfinite(x_NF)).sum())} that are not")
    blocks = blocks or [x_NF.shape[1]]
    if sum(blocks) != x_NF.shape[1]:
        raise ValueError(f"blocks: expected sizes that sum to {x_NF.shape[1]} features, found {list(blocks)}")
    weight_F = np.repeat(np.asarray(blocks, dtype=float) ** -0.5, blocks)
    groups = np.unique(np.asarray(subjects), return_inverse=True)[1]
    draws = np.random.default_rng(BOOTSTRAP_SEED).integers(0, groups.max() + 1, (BOOTSTRAP_DRAWS, groups.max() + 1))
    weight_RG = np.stack([np.bincount(d, minlength=groups.max() + 1) for d in draws]).astype(float)
    unseen_N = np.array([[subject not in seen for subject in subjects]], dtype=float)
    scores, resampled, unseen = [], [], []
    for train, test in folds.splits:
        if len(set(y_N[test])) < 2:
            continue
        model, rotate = _fit(x_NF[train], y_N[train], groups[train], weight_F)
        score_N = model.decision_function(rotate.transform(x_NF[test]))
        scores.append(float(_auroc(score_N, y_N[test], np.ones((1, len(test))))[0]))
        resampled.append(_auroc(score_N, y_N[test], weight_RG[:, groups[test]]))
        unseen.append(float(_auroc(score_N, y_N[test], unseen_N[:, test])[0]))
    if not scores:
        raise ValueError(f"expected test folds with both classes, found none in {len(folds.splits)} folds")
    known = [score for score in unseen if np.isfinite(score)]
    low, high = np.nanpercentile(np.nanmean(np.stack(resampled), axis=0), [2.5, 97.5])
    return ProbeScore(
        auroc=float(np.mean(scores)),
        sd=float(np.std(scores)),
        ci_low=float(low),
        ci_high=float(high),
        auroc_unseen=float(np.mean(known)) if known else None,
        n_samples=len(y_N),
        n_subjects=int(groups.max() + 1),
        n_features=x_NF.shape[1],
        n_folds=len(scores),
    )


def _fit(
    x_NF: np.ndarray, y_N: np.ndarray, groups_N: np.ndarray, weight_F: np.ndarray
) -> tuple[LogisticRegression, Pipeline]:
    """A logistic regression whose penalty is chosen on inner folds of the training subjects, and its input pipeline."""
    n_inner = min(INNER_FOLDS, *(len(set(groups_N[y_N == c])) for c in (0, 1)))
    loss = np.zeros(len(C_GRID))
    if n_inner >= 2:
        inner = StratifiedGroupKFold(n_inner, shuffle=True, random_state=0).split(x_NF, y_N, groups_N)
        for train, test in inner:
            if len(set(y_N[train])) < 2:
                continue
            rotate = _rotation(weight_F).fit(x_NF[train])
            a_NF, b_NF = rotate.transform(x_NF[train]), rotate.transform(x_NF[test])
            for k, c in enumerate(C_GRID):
                predicted = _logistic(c).fit(a_NF, y_N[train]).predict_proba(b_NF)
                loss[k] += log_loss(y_N[test], predicted, labels=[0, 1]) * len(test)
    rotate = _rotation(weight_F).fit(x_NF)
    return _logistic(C_GRID[int(loss.argmin())]).fit(rotate.transform(x_NF), y_N), rotate


def _weigh(x_NF: np.ndarray, weight_F: np.ndarray) -> np.ndarray:
    return x_NF * weight_F


def _rotation(weight_F: np.ndarray) -> Pipeline:
    """Standardise, weigh, then rotate onto the span of the training samples.

    An L2-penalised solution lies in that span, so the result is exactly that without the rotation, at the price
    of N instead of F coefficients.
    """
    weigh = FunctionTransformer(_weigh, kw_args={"weight_F": weight_F})
    return make_pipeline(StandardScaler(), weigh, PCA(svd_solver="full"))


def _logistic(c: float) -> LogisticRegression:
    return LogisticRegression(C=c, solver="newton-cholesky", max_iter=100)


def _auroc(score_N: np.ndarray, y_N: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
    """AUROC ``(R,)`` under sample weights (Mann-Whitney, ties count half); NaN where a class has no weight."""
    positive, negative = score_N[y_N == 1], score_N[y_N == 0]
    wins_PQ = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    a_RP, b_RQ = weight_RN[:, y_N == 1], weight_RN[:, y_N == 0]
    with np.errstate(invalid="ignore"):
        return np.einsum("rp,pq,rq->r", a_RP, wins_PQ, b_RQ, optimize=True) / (a_RP.sum(1) * b_RQ.sum(1))
