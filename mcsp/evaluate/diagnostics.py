"""Two questions beside the comparison: how many labels a method needs, and how much of the site its features carry.

Shape letters: N units.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from tqdm import tqdm

from mcsp.config import EvaluateConfig
from mcsp.evaluate import scores
from mcsp.evaluate.classifiers import LinearClassifier, cross_validate
from mcsp.evaluate.comparison import COVARIATES, Described, Method, complete_rows, methods
from mcsp.evaluate.splits import Folds, k_fold, labelled_part
from mcsp.evaluate.units import Labelled
from mcsp.schema import MODALITIES


def _logistic(described: Described, recordings: str) -> list[Method]:
    found = [m for m in methods(described, recordings) if m.classifier.name == "logistic"]
    return [m for m in found if m.features != COVARIATES]


def _groups(labelled: Labelled, rows: np.ndarray) -> np.ndarray:
    return np.unique(np.asarray([labelled.subjects[i] for i in rows]), return_inverse=True)[1]


def label_efficiency(described: Described, labelled: Labelled, config: EvaluateConfig) -> list[dict[str, Any]]:
    """Pooled AUROC of logistic regression where only a fraction of the training subjects has labels.

    For the pretrained and the untrained encoder and the classical features, in subject-grouped folds.
    """
    out: list[dict[str, Any]] = []
    for recordings in ("eeg", "fmri", "both"):
        compared = _logistic(described, recordings)
        if not compared or not config.label_fractions:
            continue
        rows = complete_rows(compared)
        keys, subjects = [labelled.units[i].key for i in rows], [labelled.subjects[i] for i in rows]
        try:
            folds = k_fold(keys, labelled.y_N[rows], subjects, config.folds, config.seeds)
        except ValueError:  # the comparison has a note on it
            continue
        for fraction in sorted(config.label_fractions):
            title = f"{recordings}, {fraction:.0%} of labels"
            for m in tqdm(compared, desc=title, unit="method", leave=False):
                score = _with_fraction(m, labelled, rows, folds, fraction)
                out.append({"recordings": recordings, "features": m.features, "fraction": fraction, **score})
    return out


def _with_fraction(
    method: Method, labelled: Labelled, rows: np.ndarray, folds: Folds, fraction: float
) -> dict[str, float]:
    y_N, groups_N = labelled.y_N[rows], _groups(labelled, rows)
    part = partial(labelled_part, y_N=y_N, groups_N=groups_N, fraction=fraction)
    used = [len(part(train, seed=seed)) for seed, splits in enumerate(folds.by_seed) for train, _ in splits]
    score_SN = cross_validate(
        method.classifier, method.x_N[rows], y_N, groups_N, folds, lambda train, seed: part(train, seed=seed)
    )
    per_seed = [float(scores.auroc(score_N, y_N, np.ones((1, len(rows))))[0]) for score_N in score_SN]
    return {"training_units": float(np.mean(used)), "auroc": float(np.mean(per_seed)), "sd": float(np.std(per_seed))}


def site_decoding(described: Described, labelled: Labelled, config: EvaluateConfig) -> list[dict[str, Any]]:
    """How well the site can be told from the same features: AUROC of one site against the rest, mean over sites.

    By logistic regression of one fixed penalty, in folds of subjects that all sites share. Sites with fewer subjects
    than folds are left out; empty where fewer than two remain. Lower is better: features that tell the site apart let a
    classifier use it.
    """
    out: list[dict[str, Any]] = []
    for recordings in MODALITIES:
        for m in _logistic(described, recordings):
            rows, sites = _of_large_sites(labelled, complete_rows([m]), config.folds)
            if len(sites) < 2:
                continue
            site_N = np.array([labelled.sites[i] for i in rows])
            auroc = _site_auroc(m, site_N, _groups(labelled, rows), rows, config.folds)
            out.append({"recordings": recordings, "features": m.features, "auroc": auroc, "sites": sites})
    return out


def _of_large_sites(labelled: Labelled, rows: Sequence[int] | np.ndarray, least: int) -> tuple[np.ndarray, list[str]]:
    members = {s: {labelled.subjects[i] for i in rows if labelled.sites[i] == s} for s in set(labelled.sites)}
    sites = sorted(s for s, subjects in members.items() if len(subjects) >= least)
    return np.array([i for i in rows if labelled.sites[i] in sites], dtype=int), sites


def _site_auroc(method: Method, site_N: np.ndarray, groups_N: np.ndarray, rows: np.ndarray, folds: int) -> float:
    """Pooled over folds for each site, then the mean over sites."""
    x_N, names = method.x_N[rows], np.unique(site_N)
    score_SN = np.full((len(names), len(rows)), np.nan)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    for train, test in splitter.split(x_N, site_N, groups_N):
        prepare = method.classifier.without_labels()
        train_NR, test_NR = prepare.fit_transform(x_N[train]), prepare.transform(x_N[test])
        for k, name in enumerate(names):
            score_SN[k, test] = LinearClassifier().fit(train_NR, site_N[train] == name).decision_function(test_NR)
    return float(np.mean([roc_auc_score(site_N == name, score_SN[k]) for k, name in enumerate(names)]))
