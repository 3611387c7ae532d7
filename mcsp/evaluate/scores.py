"""Scores and their intervals, bootstrapped over subjects.

Shape letters: S seeds, N units, R bootstrap draws, G subjects, P and Q units of either class, K sites.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import expit

BOOTSTRAP_DRAWS = 1000
BOOTSTRAP_SEED = 0
CALIBRATION_BINS = 10
_INTERVAL = (2.5, 97.5)


def subject_weights(groups_N: np.ndarray) -> np.ndarray:
    """How often each unit counts in every bootstrap draw of subjects, ``(R + 1, N)``; the first row is the data."""
    n_groups = int(groups_N.max()) + 1
    draws = np.random.default_rng(BOOTSTRAP_SEED).integers(0, n_groups, (BOOTSTRAP_DRAWS, n_groups))
    weight_RG = np.stack([np.ones(n_groups), *(np.bincount(d, minlength=n_groups) for d in draws)])
    return weight_RG[:, groups_N]


def auroc(score_N: np.ndarray, y_N: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
    """AUROC ``(R,)`` under weights of units (Mann-Whitney, ties count half); NaN where a class has no weight.

    Units without a score are left out.
    """
    known = np.isfinite(score_N)
    score_N, y_N, weight_RN = score_N[known], y_N[known], weight_RN[:, known]
    positive, negative = score_N[y_N == 1], score_N[y_N == 0]
    wins_PQ = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    a_RP, b_RQ = weight_RN[:, y_N == 1], weight_RN[:, y_N == 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((a_RP @ wins_PQ) * b_RQ).sum(1) / (a_RP.sum(1) * b_RQ.sum(1))


def pooled(score_SN: np.ndarray, y_N: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
    """AUROC over the units of all test parts together, mean over seeds, ``(R,)``."""
    return mean_of_known([auroc(score_N, y_N, weight_RN) for score_N in score_SN])


def by_site(
    score_SN: np.ndarray,
    y_N: np.ndarray,
    sites: Sequence[str],
    weight_RN: np.ndarray,
    measure: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] = pooled,
) -> dict[str, np.ndarray]:
    """AUROC, or another ``measure``, within each site whose labels differ, mean over seeds, ``(R,)`` each."""
    site_N = np.asarray(sites)
    found = {}
    for site in sorted(set(sites)):
        of_site = site_N == site
        if len(set(y_N[of_site])) > 1 and np.isfinite(score_SN[:, of_site]).any():
            found[site] = measure(score_SN[:, of_site], y_N[of_site], weight_RN[:, of_site])
    return found


def centred(score_SN: np.ndarray, sites: Sequence[str]) -> np.ndarray:
    """Scores minus the mean of their site: uses unlabelled units of the tested site, so it is transductive."""
    out, site_N = score_SN.copy(), np.asarray(sites)
    for site in set(sites):
        of_site = site_N == site
        out[:, of_site] -= mean_of_known(list(out[:, of_site].T))[:, None]
    return out


def mean_of_known(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over ``rows`` without the NaN; NaN where nothing is left."""
    stacked = np.stack(rows)
    count = np.isfinite(stacked).sum(0)
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, np.nansum(stacked, axis=0) / np.maximum(count, 1), np.nan)


def estimate(value_R: np.ndarray) -> dict[str, float] | None:
    """``value`` on the data and the 95 % percentile interval of the draws; None where the data give no value."""
    if not np.isfinite(value_R[0]):
        return None
    low, high = np.nanpercentile(value_R[1:], _INTERVAL)
    return {"value": float(value_R[0]), "ci_low": float(low), "ci_high": float(high)}


def at_threshold(score_SN: np.ndarray, y_N: np.ndarray, probabilities: bool) -> dict[str, float | None]:
    """Balanced accuracy, sensitivity and specificity at score 0; Brier score and calibration error of probabilities.

    Means over seeds. The expected calibration error uses ten equal bins of the predicted probability (Guo et al. 2017).
    """
    rows = []
    for score_N in score_SN:
        known = np.isfinite(score_N)
        score_N, y = score_N[known], y_N[known]
        called = score_N > 0
        sensitivity, specificity = called[y == 1].mean(), (~called[y == 0]).mean()
        p_N = expit(score_N)
        bins = np.minimum((p_N * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        gaps = [abs(p_N[bins == b].mean() - y[bins == b].mean()) * (bins == b).mean() for b in set(bins.tolist())]
        brier = ((p_N - y) ** 2).mean()
        rows.append(((sensitivity + specificity) / 2, sensitivity, specificity, brier, sum(gaps)))
    means = [float(v) for v in np.mean(rows, axis=0)]
    names = ("balanced_accuracy", "sensitivity", "specificity", "brier", "calibration_error")
    return {n: v if probabilities or n not in names[3:] else None for n, v in zip(names, means, strict=True)}


def unseen_weights(subjects: Sequence[str], seen: frozenset[str] | None) -> np.ndarray:
    """1 for units of subjects that pretraining has not seen, ``(N,)``; all 0 where nobody knows who was seen."""
    return np.array([seen is not None and subject not in seen for subject in subjects], dtype=float)


def difference(
    score_SN: np.ndarray, other_SN: np.ndarray, measure: Callable[[np.ndarray], np.ndarray]
) -> dict[str, float] | None:
    """``measure`` of the first minus that of the other, paired: both are taken on the same draws of subjects."""
    return estimate(measure(score_SN) - measure(other_SN))


def roc_curve(
    score_SN: np.ndarray, y_N: np.ndarray, weight_RN: np.ndarray, points: int = 101
) -> dict[str, list[float]]:
    """True-positive rates at evenly spaced false-positive rates 0..1, mean over seeds, as JSON types.

    ``roc`` on the data, ``roc_low`` and ``roc_high`` the 95 % interval of the draws at each rate. Draws that lack a
    class count in no interval.
    """
    grid = np.linspace(0, 1, points)
    both_R = (weight_RN[:, y_N == 1].sum(1) > 0) & (weight_RN[:, y_N == 0].sum(1) > 0)
    weight_RN = weight_RN[both_R]
    mean_RP = np.mean([_roc(score_N, y_N, weight_RN, grid) for score_N in score_SN], axis=0)
    low_P, high_P = np.percentile(mean_RP[1:], _INTERVAL, axis=0)
    curves = {"roc": mean_RP[0], "roc_low": low_P, "roc_high": high_P}
    return {name: [round(float(v), 6) for v in curve_P] for name, curve_P in curves.items()}


def _roc(score_N: np.ndarray, y_N: np.ndarray, weight_RN: np.ndarray, grid: np.ndarray) -> np.ndarray:
    known = np.flatnonzero(np.isfinite(score_N))
    order = known[np.argsort(-score_N[known], kind="stable")]
    ties = np.append(np.flatnonzero(np.diff(score_N[order])), len(order) - 1)
    hits_RT = np.cumsum(weight_RN[:, order] * y_N[order], axis=1)[:, ties]
    alarms_RT = np.cumsum(weight_RN[:, order] * (1 - y_N[order]), axis=1)[:, ties]
    with np.errstate(invalid="ignore"):  # a draw whose tested units lack a class
        tpr_RT = np.nan_to_num(hits_RT / hits_RT[:, -1:])
        fpr_RT = np.nan_to_num(alarms_RT / alarms_RT[:, -1:])
    return np.stack([np.interp(grid, [0, *f], [0, *t]) for f, t in zip(fpr_RT, tpr_RT, strict=True)])
