"""Kinds of labels (two classes, several, a number) and their scores.

Scores of two classes are ``(S, N)``; of K classes ``(S, N, K)``, each against the rest; of a number ``(S, N, 2)``: the
prediction, and what the mean of the training labels would have said.

Shape letters: S seeds, N units, R bootstrap draws, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mcsp.evaluate import scores

# Values (R,) from scores, labels and weights (R, N); row 0 of the weights is the data.
Measure = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _of_scores(measure: Measure, y_N: np.ndarray, weight_RN: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda score: measure(score, y_N, weight_RN)


@dataclass(frozen=True)
class Task:
    """Two classes, the second of which is the positive one; several classes; or, without any, a number."""

    classes: tuple[str, ...]

    @property
    def kind(self) -> Literal["binary", "classes", "number"]:
        """Which of the three."""
        return "number" if not self.classes else "binary" if len(self.classes) == 2 else "classes"

    @property
    def measures(self) -> Mapping[str, Measure]:
        """By name; the first is the one that the reports lead with, and 0.5 (``auroc``) or 0 (``r2``) is chance."""
        return _MEASURES[self.kind]

    @property
    def main(self) -> str:
        """Name of the first of :attr:`measures`."""
        return next(iter(self.measures))

    @property
    def within(self) -> tuple[str, Measure]:
        """What is measured inside a site: a rank or a correlation, which the site's own level cannot change."""
        return ("r", correlation) if self.kind == "number" else (self.main, self.measures[self.main])

    def by_site(
        self, score: np.ndarray, y_N: np.ndarray, sites: Sequence[str], weight_RN: np.ndarray
    ) -> dict[str, np.ndarray]:
        """:attr:`within` of each site whose labels differ, ``(R,)`` each."""
        return scores.by_site(score, y_N, sites, weight_RN, self.within[1])

    def site_mean(self, score: np.ndarray, y_N: np.ndarray, weight_RN: np.ndarray, sites: Sequence[str]) -> np.ndarray:
        """Mean of :meth:`by_site`, ``(R,)``; NaN where there is none."""
        found = self.by_site(score, y_N, sites, weight_RN)
        return scores.mean_of_known(list(found.values())) if found else np.full(len(weight_RN), np.nan)

    def compared(
        self, y_N: np.ndarray, sites: Sequence[str], weight_RN: np.ndarray
    ) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        """Measures of scores alone, for paired differences: all of :attr:`measures`, and the mean over sites."""
        found: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            name: _of_scores(measure, y_N, weight_RN) for name, measure in self.measures.items()
        }
        found[f"{self.within[0]}_sites"] = lambda score: self.site_mean(score, y_N, weight_RN, sites)
        return found

    def all_scores(
        self,
        score: np.ndarray,
        y_N: np.ndarray,
        sites: Sequence[str],
        weight_RN: np.ndarray,
        unseen_N: np.ndarray,
        probabilities: bool,
    ) -> dict[str, Any]:
        """Everything that is reported of one row, as JSON types; None is what is not defined.

        Of two classes: ``auroc`` pools the units of all test parts; ``auroc_sites`` is the mean over sites of the AUROC
        within a site; ``auroc_centred`` pools after each site's mean score is subtracted (transductive);
        ``auroc_unseen`` pools the subjects that pretraining has not seen. Of several: the same names, with the mean
        over classes against the rest for an AUROC, ``per_class``, and ``confusion``, how many units of each class
        (rows) were called which (columns), mean over seeds. Of a number: ``r2`` (1 - squared error / that of the
        training mean), ``r``, ``mae`` and ``mae_of_mean``, of the training mean; ``r_sites``, ``per_site`` (r) and
        ``r2_unseen``.
        """
        of_site = self.by_site(score, y_N, sites, weight_RN)
        values = {name: scores.estimate(m(score, y_N, weight_RN)) for name, m in self.measures.items()}
        main = self.measures[self.main]
        per_seed = [float(main(score_1N, y_N, weight_RN[:1])[0]) for score_1N in score[:, None]]
        shared: dict[str, Any] = {
            **values,
            f"{self.main}_sd_over_seeds": float(np.std(per_seed)) if len(per_seed) > 1 else None,
            f"{self.within[0]}_sites": scores.estimate(scores.mean_of_known([*of_site.values()])) if of_site else None,
            f"{self.main}_unseen": scores.estimate(main(score, y_N, weight_RN * unseen_N)),
            "per_site": {site: scores.estimate(value_R) for site, value_R in of_site.items()},
        }
        if self.kind == "number":
            return {**shared, "mae_of_mean": scores.estimate(mean_absolute_error(score[..., ::-1], y_N, weight_RN))}
        of_class = [score] if self.kind == "binary" else np.moveaxis(score, -1, 0)
        centred = np.stack([scores.centred(score_SN, sites) for score_SN in of_class], axis=-1).reshape(score.shape)
        shared["auroc_centred"] = scores.estimate(main(centred, y_N, weight_RN)) if of_site else None
        if self.kind == "binary":
            return shared | scores.at_threshold(score, y_N, probabilities)
        return {
            **shared,
            "per_class": {
                name: scores.estimate(scores.pooled(score[..., k], (y_N == k).astype(int), weight_RN))
                for k, name in enumerate(self.classes)
            },
            **self._called(score, y_N),
        }

    def _called(self, score_SNK: np.ndarray, y_N: np.ndarray) -> dict[str, Any]:
        """What the largest score calls: confusion, mean recall; no threshold, so no sensitivity of one class."""
        n = len(self.classes)
        counts_SKK = np.zeros((len(score_SNK), n, n))
        for counts_KK, score_NK in zip(counts_SKK, score_SNK, strict=True):
            known = np.isfinite(score_NK).all(axis=1)
            np.add.at(counts_KK, (y_N[known], score_NK[known].argmax(axis=1)), 1)
        of_class_SK = counts_SKK.sum(axis=2)
        recall_SK = np.diagonal(counts_SKK, axis1=1, axis2=2)[of_class_SK > 0] / of_class_SK[of_class_SK > 0]
        right = np.trace(counts_SKK, axis1=1, axis2=2) / of_class_SK.sum(axis=1)
        return {
            "confusion": counts_SKK.mean(axis=0).round(6).tolist(),
            "accuracy": float(right.mean()),
            "balanced_accuracy": float(recall_SK.mean()),
            **dict.fromkeys(("sensitivity", "specificity", "brier", "calibration_error")),
        }


BINARY = Task(("0", "1"))


def macro(score_SNK: np.ndarray, y_N: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
    """AUROC of each class against the rest, mean over the classes that the labels hold, ``(R,)``."""
    classes = np.unique(y_N).tolist()
    found = [scores.pooled(score_SNK[..., k], (y_N == k).astype(int), weight_RN) for k in classes]
    return np.mean(found, axis=0)


def r2(score_SN2: np.ndarray, y_N: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
    """1 - squared error / squared error of the training mean, mean over seeds, ``(R,)``: 0 where no better than it."""

    def of_seed(error_N: np.ndarray, of_mean_N: np.ndarray, _: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
        return 1 - (weight_RN @ error_N**2) / (weight_RN @ of_mean_N**2)

    return _over_seeds(of_seed, score_SN2, y_N, weight_RN)


def mean_absolute_error(score_SN2: np.ndarray, y_N: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
    """Mean absolute error in the label's own unit, mean over seeds, ``(R,)``."""

    def of_seed(error_N: np.ndarray, _: np.ndarray, __: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
        return (weight_RN @ np.abs(error_N)) / weight_RN.sum(axis=1)

    return _over_seeds(of_seed, score_SN2, y_N, weight_RN)


def correlation(score_SN2: np.ndarray, y_N: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
    """Pearson's r of prediction and label, mean over seeds, ``(R,)``; NaN where either does not vary."""

    def of_seed(error_N: np.ndarray, _: np.ndarray, y_N: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
        share_RN = weight_RN / weight_RN.sum(axis=1, keepdims=True)
        both_2N = np.stack([y_N - error_N, y_N])
        a_RN, b_RN = (x_N - (share_RN @ x_N)[:, None] for x_N in both_2N)
        spread_R = np.sqrt((share_RN * a_RN**2).sum(1) * (share_RN * b_RN**2).sum(1))
        return (share_RN * a_RN * b_RN).sum(1) / np.where(spread_R > 1e-12 * np.abs(both_2N).max(), spread_R, np.nan)

    return _over_seeds(of_seed, score_SN2, y_N, weight_RN)


def _over_seeds(of_seed: Callable, score_SN2: np.ndarray, y_N: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
    """Mean of a measure of errors over seeds; units without a prediction are left out."""
    found = []
    for score_N2 in score_SN2:
        known = np.isfinite(score_N2).all(axis=1)
        error_2N = y_N[known] - score_N2[known].T
        with np.errstate(invalid="ignore", divide="ignore"):  # a draw without any of the units
            found.append(of_seed(*error_2N, y_N[known], weight_RN[:, known]))
    return scores.mean_of_known(found)


_MEASURES: dict[str, dict[str, Measure]] = {
    "binary": {"auroc": scores.pooled},
    "classes": {"auroc": macro},
    "number": {"r2": r2, "r": correlation, "mae": mean_absolute_error},
}
