"""The comparison: every method on the same units and folds, scored the same way, with paired differences.

Beside it how few labels a method needs, and how well its features predict the site.

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
from mcsp.evaluate.methods import (
    COVARIATES,
    PRETRAINED,
    PRETRAINED_LEARNED,
    TANGENT,
    UNTRAINED_LEARNED,
    Described,
    Method,
    complete_rows,
    corrected,
    main_of,
    methods,
)
from mcsp.evaluate.readout.classifiers import LOGISTIC, cross_validate
from mcsp.evaluate.readout.task import BINARY, Task
from mcsp.evaluate.splits import Folds, described_folds, k_fold, labelled_part, leave_site_out
from mcsp.evaluate.units import Labelled
from mcsp.schema import MODALITIES


def make_folds(labelled: Labelled, rows: np.ndarray, config: EvaluateConfig) -> tuple[list[Folds], list[str]]:
    """The folds of every protocol that these units allow, and a note for each that they do not."""
    keys = [labelled.units[i].key for i in rows]
    groups, sites = [labelled.groups[i] for i in rows], [labelled.sites[i] for i in rows]
    folds, notes = [], []
    for protocol in config.protocols:
        try:
            if protocol == "kfold":
                folds.append(k_fold(keys, labelled.y_N[rows], groups, config.folds, config.seeds))
            else:
                folds.append(leave_site_out(keys, labelled.y_N[rows], groups, sites))
        except ValueError as error:
            notes.append(f"{protocol}: {error}.")
    return folds, notes


def compare(
    described: Described, labelled: Labelled, config: EvaluateConfig, seen: frozenset[str] | None
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]], list[str]]:
    """Score every method on EEG, fMRI and both, under every protocol; ``seen`` in pretraining, None where unknown.

    Returns:
        Rows of JSON types, the folds by "<recordings>/<protocol>", and notes on what could not be done.
    """
    rows_out: list[dict[str, Any]] = []
    splits: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for recordings in ("eeg", "fmri", "both"):
        compared = methods(described, recordings, labelled.task)
        if not compared:
            notes.append(f"Nothing on {recordings}: no labelled unit has the recordings for it.")
            continue
        compared += corrected(described, recordings, config.site_correction, labelled.task)
        rows = complete_rows(compared)
        all_folds, problems = make_folds(labelled, rows, config)
        notes += [f"Nothing on {recordings}, {problem}" for problem in problems]
        for folds in all_folds:
            splits[f"{recordings}/{folds.protocol}"] = described_folds(folds, [labelled.units[i].key for i in rows])
            rows_out += _score_block(recordings, compared, labelled, rows, folds, seen, config)
    return rows_out, splits, notes


def _score_block(
    recordings: str,
    compared: Sequence[Method],
    labelled: Labelled,
    rows: np.ndarray,
    folds: Folds,
    seen: frozenset[str] | None,
    config: EvaluateConfig,
) -> list[dict[str, Any]]:
    task, y_N, sites = labelled.task, labelled.y_N[rows], [labelled.sites[i] for i in rows]
    subjects = [labelled.subjects[i] for i in rows]
    weight_RN = scores.subject_weights(labelled.part(rows).group_index())
    unseen_N = scores.unseen_weights(subjects, seen)
    title = f"{recordings}, {folds.protocol}"
    score_of = {
        m.name: cross_validate(m.readout(rows), y_N, folds)[0]
        for m in tqdm(compared, desc=title, unit="method", leave=False)
    }
    measures = task.compared(y_N, sites, weight_RN)
    out = []
    for m in compared:
        score_SN = score_of[m.name]
        row: dict[str, Any] = {
            "recordings": recordings, "protocol": folds.protocol, "features": m.features,
            "classifier": m.classifier, "transductive": m.transductive, "units": len(rows),
            "subjects": len(set(subjects)), "n_features": m.n_features,
            **task.all_scores(score_SN, y_N, sites, weight_RN, unseen_N, m.probabilities),
            **(scores.roc_curve(score_SN, y_N, weight_RN) if task.kind == "binary" else {}),
        }  # fmt: skip
        better = _pretrained_for(m, compared, task)
        if better is not None:
            row["pretrained_minus_this"] = {
                name: scores.difference(score_of[better.name], score_SN, measure) for name, measure in measures.items()
            }
        if m is compared[0] and m.features == PRETRAINED and config.permutations:
            row["permuted"] = permuted(m, rows, labelled, folds, config.permutations, row[task.main])
        out.append(row)
    return out


def _pretrained_for(method: Method, compared: Sequence[Method], task: Task) -> Method | None:
    """The pretrained row that a row is compared with: of the same classifier where there is one, like with like for the
    learned part; None for that row itself.
    """
    like = PRETRAINED_LEARNED if method.features == UNTRAINED_LEARNED else PRETRAINED
    main = main_of(task).name
    plain = (main, LOGISTIC.name)
    of_like = {m.classifier: m for m in compared if m.features == like and m.classifier in plain}
    found = of_like.get(method.classifier, of_like.get(main))
    return None if found is method else found


def permuted(
    method: Method, rows: np.ndarray, labelled: Labelled, folds: Folds, count: int, observed: dict[str, float] | None
) -> dict[str, float]:
    """AUROC of shuffled labels, with folds as those of the first seed: it has to be about 0.5; R2 of numbers, about 0.

    Labels are shuffled among the subjects of a site, which keeps what a site says about the label; labels that differ
    within subjects (tasks, say) are shuffled within them. Stratified folds are made for each draw: in those of the
    labels the classes of a draw are out of balance, and where a test part has more cases, fewer are left to train on.

    Returns:
        ``mean``, ``sd`` and number of ``draws``, and ``p``, how often they do as well as the labels: (1 + hits) /
        (1 + draws).
    """
    subjects = [labelled.subjects[i] for i in rows]
    groups_N = np.unique(np.asarray(subjects), return_inverse=True)[1]
    site_N = np.unique(np.asarray([labelled.sites[i] for i in rows]), return_inverse=True)[1]
    one_seed = Folds(folds.protocol, folds.by_seed[:1], folds.sha256)
    readout, measure, found = method.readout(rows), labelled.task.measures[labelled.task.main], []
    for draw in tqdm(range(count), desc="permutations", leave=False):
        y_N = shuffled(labelled.y_N[rows], groups_N, site_N, np.random.default_rng([scores.BOOTSTRAP_SEED, draw]))
        if folds.protocol == "kfold":
            one_seed = k_fold(subjects, y_N, subjects, len(folds.by_seed[0]), 1)
        score_SN = cross_validate(readout, y_N, one_seed)[0]
        found.append(float(measure(score_SN, y_N, np.ones((1, len(rows))))[0]))
    hits = sum(value >= observed["value"] for value in found) if observed is not None else count
    return {"mean": float(np.mean(found)), "sd": float(np.std(found)), "draws": count, "p": (1 + hits) / (1 + count)}


def shuffled(y_N: np.ndarray, groups_N: np.ndarray, site_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels exchanged among subjects of a site, or within subjects where a subject has both.

    Numbers are exchanged among subjects; how a subject's own differ (age, from session to session) stays.
    """
    out = y_N.copy()
    first = np.unique(groups_N, return_index=True)[1]
    if y_N.dtype.kind != "f" and any(len(set(y_N[groups_N == g])) > 1 for g in range(len(first))):
        for g in range(len(first)):
            out[groups_N == g] = rng.permutation(y_N[groups_N == g])
        return out
    label_G, site_G = y_N[first].copy(), site_N[first]
    for site in np.unique(site_G):
        label_G[site_G == site] = rng.permutation(label_G[site_G == site])
    return label_G[groups_N] if y_N.dtype.kind != "f" else out + (label_G - y_N[first])[groups_N]


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
