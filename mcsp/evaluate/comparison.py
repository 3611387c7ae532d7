"""The comparison: every method on the same units and folds, scored the same way, with paired differences.

Shape letters: N units, F features, C channels, S seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from mcsp.config import EvaluateConfig
from mcsp.evaluate import scores
from mcsp.evaluate.classifiers import (
    Classifier,
    cross_validate,
    discriminant,
    harmonized,
    linear_svm,
    logistic,
    tangent_logistic,
)
from mcsp.evaluate.harmonize import site_centred
from mcsp.evaluate.splits import Folds, described_folds, k_fold, leave_site_out
from mcsp.evaluate.units import Labelled
from mcsp.schema import MODALITIES, Modality

PRETRAINED, UNTRAINED = "pretrained", "untrained"
PRETRAINED_LEARNED, UNTRAINED_LEARNED = "pretrained, learned part", "untrained, learned part"
CLASSICAL: dict[str, str] = {"eeg": "band power", "fmri": "connectivity", "both": "connectivity + band power"}
COVARIANCE, COVARIATES = "covariance", "covariates"


@dataclass(frozen=True)
class FeatureSet:
    """One description of all units."""

    x: dict[Modality, np.ndarray]  # (N, F) per modality, NaN rows where missing
    blocks: dict[Modality, list[int]]  # sizes of the parts that a penalised classifier weighs
    n_learned: int = 0  # so many parts of each modality, the first ones, are an encoder's; the others are measured

    def joint(self, modalities: Sequence[Modality]) -> tuple[np.ndarray, list[int]] | None:
        """Features of the modalities side by side ``(N, F)``, and their blocks; None where one is absent."""
        if any(m not in self.x for m in modalities):
            return None
        return np.concatenate([self.x[m] for m in modalities], axis=1), [b for m in modalities for b in self.blocks[m]]

    def learned_part(self) -> "FeatureSet":
        """The same without the parts that need no weights."""
        blocks = {m: of[: self.n_learned] for m, of in self.blocks.items()}
        return FeatureSet({m: x_NF[:, : sum(blocks[m])] for m, x_NF in self.x.items()}, blocks, self.n_learned)


@dataclass(frozen=True)
class Described:
    """All descriptions of the units."""

    pretrained: FeatureSet
    untrained: FeatureSet
    classical: FeatureSet
    covariance: dict[Modality, np.ndarray]  # (N, C, C) per modality, NaN where missing
    covariates: np.ndarray | None  # (N, F), NaN where missing


@dataclass(frozen=True)
class Method:
    """One row of the table: features and what is fitted on them."""

    features: str
    classifier: Classifier
    x_N: np.ndarray  # (N, F) or (N, C, C)
    n_features: int
    transductive: bool = False  # whether unlabelled units of the tested site have a part in the features

    @property
    def name(self) -> str:
        """For the keys of ``differences``."""
        return f"{self.features}, {self.classifier.name}"


def methods(described: Described, recordings: str) -> list[Method]:
    """What is compared on ``recordings`` ("eeg", "fmri" or "both"); empty where no unit has them.

    The untrained encoder has the pretrained one's read-out, so their difference is what pretraining learned. Measured
    features that both pass on (connectivity, say) can hide it, so the learned parts of both stand beside them.
    """
    modalities = _modalities(recordings)
    classical = described.classical.joint(modalities)
    if classical is None:
        return []
    encoders = {
        PRETRAINED: described.pretrained,
        UNTRAINED: described.untrained,
        PRETRAINED_LEARNED: described.pretrained.learned_part(),
        UNTRAINED_LEARNED: described.untrained.learned_part(),
    }
    found: list[Method] = []
    for name, features in encoders.items():
        joint = features.joint(modalities)
        if joint is not None:
            found.append(_method(name, logistic(joint[1]), joint[0]))
    x_NF, blocks = classical
    found.append(_method(CLASSICAL[recordings], logistic(blocks), x_NF))
    if recordings == "fmri":
        found.append(_method(CLASSICAL["fmri"], linear_svm(x_NF.shape[1]), x_NF))
    if recordings == "eeg":
        found.append(_method(CLASSICAL["eeg"], discriminant(), x_NF))
    if recordings in described.covariance:
        x_NCC = described.covariance[modalities[0]]
        found.append(_method(COVARIANCE, tangent_logistic(x_NCC.shape[1]), x_NCC))
    if described.covariates is not None:
        found.append(_method(COVARIATES, logistic([1] * described.covariates.shape[1]), described.covariates))
    return found


def corrected(described: Described, recordings: str, sites: list[str], corrections: Sequence[str]) -> list[Method]:
    """The pretrained and the classical features again, without what tells their site; see mcsp.evaluate.harmonize."""
    site_N = np.unique(np.asarray(sites), return_inverse=True)[1]
    found: list[Method] = []
    for name, features in ((PRETRAINED, described.pretrained), (CLASSICAL[recordings], described.classical)):
        joint = features.joint(_modalities(recordings))
        if joint is None or len(set(sites)) < 2:
            continue
        x_NF, blocks = joint
        if "combat" in corrections:
            found.append(Method(name, harmonized(logistic(blocks)), np.c_[x_NF, site_N], x_NF.shape[1]))
        if "centred" in corrections:
            centred_NF = site_centred(x_NF, sites)
            found.append(Method(f"{name}, site-centred", logistic(blocks), centred_NF, x_NF.shape[1], True))
    return found


def _modalities(recordings: str) -> tuple[Modality, ...]:
    return MODALITIES if recordings == "both" else (recordings,)  # type: ignore[return-value]


def _method(features: str, classifier: Classifier, x_N: np.ndarray) -> Method:
    return Method(features, classifier, x_N, int(np.prod(x_N.shape[1:])))


def complete_rows(compared: Sequence[Method]) -> np.ndarray:
    """Units that every method can describe, so that all are scored on the same ones."""
    finite = [np.isfinite(m.x_N.reshape(len(m.x_N), -1)).all(axis=1) for m in compared]
    return np.flatnonzero(np.all(finite, axis=0))


def make_folds(labelled: Labelled, rows: np.ndarray, config: EvaluateConfig) -> tuple[list[Folds], list[str]]:
    """The folds of every protocol that these units allow, and a note for each that they do not."""
    keys = [labelled.units[i].key for i in rows]
    subjects, sites = [labelled.subjects[i] for i in rows], [labelled.sites[i] for i in rows]
    folds, notes = [], []
    for protocol in config.protocols:
        try:
            if protocol == "kfold":
                folds.append(k_fold(keys, labelled.y_N[rows], subjects, config.folds, config.seeds))
            else:
                folds.append(leave_site_out(keys, labelled.y_N[rows], subjects, sites))
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
        compared = methods(described, recordings)
        if not compared:
            notes.append(f"Nothing on {recordings}: no labelled unit has the recordings for it.")
            continue
        compared += corrected(described, recordings, labelled.sites, config.site_correction)
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
    y_N, sites = labelled.y_N[rows], [labelled.sites[i] for i in rows]
    subjects = [labelled.subjects[i] for i in rows]
    groups_N = np.unique(np.asarray(subjects), return_inverse=True)[1]
    weight_RN = scores.subject_weights(groups_N)
    unseen_N = scores.unseen_weights(subjects, seen)
    title = f"{recordings}, {folds.protocol}"
    score_of = {
        m.name: cross_validate(m.classifier, m.x_N[rows], y_N, groups_N, folds)
        for m in tqdm(compared, desc=title, unit="method", leave=False)
    }
    measures = {
        "auroc": partial(scores.pooled, y_N=y_N, weight_RN=weight_RN),
        "auroc_sites": partial(_site_mean, y_N=y_N, sites=sites, weight_RN=weight_RN),
    }
    out = []
    for m in compared:
        score_SN = score_of[m.name]
        row: dict[str, Any] = {
            "recordings": recordings, "protocol": folds.protocol, "features": m.features,
            "classifier": m.classifier.name, "transductive": m.transductive, "units": len(rows),
            "subjects": len(set(subjects)), "n_features": m.n_features,
            **scores.all_scores(score_SN, y_N, sites, weight_RN, unseen_N, m.classifier.probabilities),
            **scores.roc_curve(score_SN, y_N, weight_RN),
        }  # fmt: skip
        better = _pretrained_for(m, compared)
        if better is not None:
            row["pretrained_minus_this"] = {
                name: scores.difference(score_of[better.name], score_SN, measure) for name, measure in measures.items()
            }
        if m is compared[0] and m.features == PRETRAINED and config.permutations:
            row["permutation_p"] = permutation_p(m, rows, labelled, folds, config.permutations, row["auroc"]["value"])
        out.append(row)
    return out


def _pretrained_for(method: Method, compared: Sequence[Method]) -> Method | None:
    """The pretrained row that a row is compared with: like with like for the learned part; None for that row itself."""
    like = PRETRAINED_LEARNED if method.features == UNTRAINED_LEARNED else PRETRAINED
    found = next((m for m in compared if m.features == like), None)
    return None if found is method else found


def _site_mean(score_SN: np.ndarray, y_N: np.ndarray, sites: Sequence[str], weight_RN: np.ndarray) -> np.ndarray:
    per_site = scores.by_site(score_SN, y_N, sites, weight_RN)
    return np.nanmean(np.stack(list(per_site.values())), axis=0) if per_site else np.full(len(weight_RN), np.nan)


def permutation_p(
    method: Method, rows: np.ndarray, labelled: Labelled, folds: Folds, count: int, observed: float
) -> float:
    """How often shuffled labels do as well: (1 + hits) / (1 + count), with the folds of the first seed.

    Labels are shuffled among the subjects of a site, which keeps what a site says about the label; labels that differ
    within subjects (tasks, say) are shuffled within them.
    """
    groups_N = np.unique(np.asarray([labelled.subjects[i] for i in rows]), return_inverse=True)[1]
    site_N = np.unique(np.asarray([labelled.sites[i] for i in rows]), return_inverse=True)[1]
    one_seed = Folds(folds.protocol, folds.by_seed[:1], folds.sha256)
    hits = 0
    for draw in tqdm(range(count), desc="permutations", leave=False):
        y_N = shuffled(labelled.y_N[rows], groups_N, site_N, np.random.default_rng([scores.BOOTSTRAP_SEED, draw]))
        score_SN = cross_validate(method.classifier, method.x_N[rows], y_N, groups_N, one_seed)
        hits += float(scores.pooled(score_SN, y_N, np.ones((1, len(rows))))[0]) >= observed
    return (1 + hits) / (1 + count)


def shuffled(y_N: np.ndarray, groups_N: np.ndarray, site_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels exchanged among subjects of a site, or within subjects where a subject has both."""
    out = y_N.copy()
    first = np.unique(groups_N, return_index=True)[1]
    if any(len(set(y_N[groups_N == g])) > 1 for g in range(len(first))):
        for g in range(len(first)):
            out[groups_N == g] = rng.permutation(y_N[groups_N == g])
        return out
    label_G, site_G = y_N[first].copy(), site_N[first]
    for site in np.unique(site_G):
        label_G[site_G == site] = rng.permutation(label_G[site_G == site])
    return label_G[groups_N]
