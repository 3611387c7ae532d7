"""Label efficiency of a method, and how well its features predict the site.

Shape letters: N units, P parts of the labels, S seeds.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from tqdm import tqdm

from mcsp.config import EvaluateConfig
from mcsp.evaluate import scores
from mcsp.evaluate.comparison import make_folds
from mcsp.evaluate.methods import COVARIATES, PRETRAINED, TANGENT, Described, Method, complete_rows, main_of, methods
from mcsp.evaluate.readout.classifiers import cross_validate
from mcsp.evaluate.readout.task import BINARY, Task
from mcsp.evaluate.splits import Folds, labelled_part
from mcsp.evaluate.units import Labelled
from mcsp.schema import MODALITIES


def _shown(described: Described, recordings: str, task: Task) -> list[Method]:
    """One row of each feature set; tangent space is left out, because it takes minutes and no sample is smaller."""
    found = [m for m in methods(described, recordings, task) if m.classifier == main_of(task).name]
    return [m for m in found if m.features not in (COVARIATES, TANGENT)]


def label_efficiency(described: Described, labelled: Labelled, config: EvaluateConfig) -> list[dict[str, Any]]:
    """AUROC, or R2, where only a fraction of the training subjects has labels, mean over draws of who has one.

    On sites left out where there are some, else on new subjects. What needs no labels is fitted on all training people.
    Each row has the paired difference to the pretrained encoder with the same labels, with its interval over people.
    """
    out: list[dict[str, Any]] = []
    for recordings in ("eeg", "fmri", "both"):
        compared = _shown(described, recordings, labelled.task)
        if not compared or not config.label_fractions:
            continue
        rows = complete_rows(compared)
        all_folds, _ = make_folds(labelled, rows, config)  # the comparison has notes on those that cannot be made
        if all_folds:
            out += _curves(recordings, compared, labelled, rows, all_folds[-1], config)
    return out


def _curves(
    recordings: str,
    compared: Sequence[Method],
    labelled: Labelled,
    rows: np.ndarray,
    folds: Folds,
    config: EvaluateConfig,
) -> list[dict[str, Any]]:
    task, y_N, groups_N = labelled.task, labelled.y_N[rows], labelled.part(rows).group_index()
    weight_RN = scores.subject_weights(groups_N)
    sites = [labelled.sites[i] for i in rows]
    main, within = task.measures[task.main], f"{task.within[0]}_sites"
    fractions = sorted(config.label_fractions)
    # Folds of sites are the same for every seed, so that draws of labels are all there is to repeat.
    draws = config.seeds if len(folds.by_seed) == 1 else 1
    parts = [_part(y_N, groups_N, fraction, draw) for fraction in fractions for draw in range(draws)]
    score_of = {
        m.features: cross_validate(m.readout(rows), y_N, folds, parts)
        for m in tqdm(compared, desc=f"{recordings}, few labels", unit="method", leave=False)
    }
    score_of = {name: x.reshape(len(fractions), -1, *x.shape[2:]) for name, x in score_of.items()}
    out: list[dict[str, Any]] = []
    for f, fraction in enumerate(fractions):
        used = [len(parts[f * draws](train, 0)) for train, _ in folds.by_seed[0]]
        for features, score_FSN in score_of.items():
            per_draw = [float(main(score_N[None], y_N, weight_RN[:1])[0]) for score_N in score_FSN[f]]
            of_site = task.by_site(score_FSN[f], y_N, sites, weight_RN[:1])
            row: dict[str, Any] = {
                "recordings": recordings, "protocol": folds.protocol, "features": features, "fraction": fraction,
                "training_units": float(np.mean(used)), "draws": len(per_draw), task.main: float(np.mean(per_draw)),
                "sd": float(np.std(per_draw)),
                within: float(np.mean([value_R[0] for value_R in of_site.values()])) if of_site else None,
            }  # fmt: skip
            if PRETRAINED in score_of and features != PRETRAINED:
                measure = task.compared(y_N, sites, weight_RN)[task.main]
                row["pretrained_minus_this"] = scores.difference(score_of[PRETRAINED][f], score_FSN[f], measure)
            out.append(row)
    return out


def _part(y_N: np.ndarray, groups_N: np.ndarray, fraction: float, draw: int) -> Callable[[np.ndarray, int], np.ndarray]:
    return lambda train, seed: labelled_part(train, y_N, groups_N, fraction, seed + draw)


def site_decoding(described: Described, labelled: Labelled, config: EvaluateConfig) -> list[dict[str, Any]]:
    """How well the features predict the site: AUROC of one site against the rest, mean over sites.

    In folds of subjects that all sites share. Sites with fewer subjects than folds are left out; empty where fewer than
    two remain. Lower is better: features that tell the site apart let a classifier use it.
    """
    out: list[dict[str, Any]] = []
    for recordings in MODALITIES:
        for m in _shown(described, recordings, BINARY):
            rows, sites = _of_large_sites(labelled, complete_rows([m]), config.folds)
            if len(sites) < 2:
                continue
            site_N = np.array([labelled.sites[i] for i in rows])
            auroc = _site_auroc(m, site_N, labelled.part(rows).group_index(), rows, config.folds)
            out.append({"recordings": recordings, "features": m.features, "auroc": auroc, "sites": sites})
    return out


def _of_large_sites(labelled: Labelled, rows: Sequence[int] | np.ndarray, least: int) -> tuple[np.ndarray, list[str]]:
    members = {s: {labelled.subjects[i] for i in rows if labelled.sites[i] == s} for s in set(labelled.sites)}
    sites = sorted(s for s, subjects in members.items() if len(subjects) >= least)
    return np.array([i for i in rows if labelled.sites[i] in sites], dtype=int), sites


def _site_auroc(method: Method, site_N: np.ndarray, groups_N: np.ndarray, rows: np.ndarray, folds: int) -> float:
    """Pooled over folds for each site, then the mean over sites."""
    names, readout = np.unique(site_N), method.readout(rows)
    score_SN = np.full((len(names), len(rows)), np.nan)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    for train, test in splitter.split(np.zeros((len(rows), 1)), site_N, groups_N):
        score = readout(train)
        for k, name in enumerate(names):
            score_SN[k, test] = score(test, train, (site_N == name).astype(int))
    return float(np.mean([roc_auc_score(site_N == name, score_SN[k]) for k, name in enumerate(names)]))
