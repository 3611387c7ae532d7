"""The comparison: every method on the same units and folds, scored the same way, with paired differences.

Shape letters: N units, S seeds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from mcsp.config import EvaluateConfig
from mcsp.evaluate import scores
from mcsp.evaluate.methods import (
    PRETRAINED,
    PRETRAINED_LEARNED,
    UNTRAINED_LEARNED,
    Described,
    Method,
    complete_rows,
    corrected,
    main_of,
    methods,
)
from mcsp.evaluate.readout.classifiers import LOGISTIC, cross_validate
from mcsp.evaluate.readout.task import Task
from mcsp.evaluate.splits import Folds, described_folds, k_fold, leave_site_out
from mcsp.evaluate.units import Labelled


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
