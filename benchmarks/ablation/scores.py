"""Scores of one run of an ablation.

Scores are of all features and of the learned ones alone (h and z of every domain), because measured ones that pass
unchanged would make all variants look alike; with two modalities, of both together and of each alone, because one may
win what the other loses.

Shape letters: N units, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from mcsp.config import EvaluateConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.recording import encode_windows
from mcsp.evaluate import scores
from mcsp.evaluate.features import read_windows
from mcsp.evaluate.methods import MAIN
from mcsp.evaluate.readout.classifiers import cross_validate, on_grams
from mcsp.evaluate.readout.grams import fixed, gram
from mcsp.evaluate.retrieval import find_pairs, similarities, top1
from mcsp.evaluate.splits import labelled_part, leave_site_out
from mcsp.evaluate.units import Labelled, Unit, read_labels
from mcsp.model.mcsp import MCSP
from mcsp.schema import MODALITIES, Modality

from .discriminants import class_scores
from .settings import AblateConfig

SITE_FOLDS = 5


@dataclass(frozen=True)
class Windows:
    """Features of the windows of all units, of one modality."""

    unit_W: np.ndarray
    x_WF: np.ndarray
    widths: list[int]
    n_learned: int  # the first so many parts are h and z

    def parts(self, learned: bool) -> list[int]:
        """Widths of the parts, of h alone if ``learned``."""
        return self.widths[: self.n_learned] if learned else self.widths

    def means(self, n_units: int, learned: bool) -> np.ndarray:
        """``(N, F)``, zero (the mean over units) where a unit has no window."""
        columns = sum(self.parts(learned))
        sum_NF = np.zeros((n_units, columns))
        np.add.at(sum_NF, self.unit_W, self.x_WF[:, :columns])
        count_N1 = np.bincount(self.unit_W, minlength=n_units)[:, None]
        mean_NF = sum_NF / np.maximum(count_N1, 1)
        return np.where(count_N1 > 0, mean_NF - mean_NF[count_N1[:, 0] > 0].mean(0), 0.0)

    def ends(self, units: np.ndarray) -> np.ndarray:
        """Learned features of the first and the last window of each unit, ``(2, N, F)``."""
        rows = [np.flatnonzero(self.unit_W == unit)[[0, -1]] for unit in units]
        return self.x_WF[np.array(rows).T, : sum(self.parts(True))]


def score_model(
    model: MCSP, config: AblateConfig, evaluation: EvaluateConfig, delay_seconds: float
) -> dict[str, float | None]:
    """Leave-site-out AUROC, few-label AUROC, identification, cross-modal retrieval and site decoding of one model.

    Args:
        model: in evaluation mode.
        config: corpus, label and few labels.
        evaluation: the same as the functions of the evaluation want it, with ``window_seconds``.
        delay_seconds: how much later than its EEG a BOLD window begins.

    Returns:
        ``auroc``, ``auroc_learned`` (means over sites of the AUROC within a site), ``auroc_pooled``,
        ``auroc_learned_pooled`` (all test parts in one, which an offset between sites spoils), ``auroc_few_labels``
        (learned features, within sites), ``identification``, ``site`` (lower is better; with ``chance_<name>``) and
        ``site_variance``; with two modalities all of them again as ``<name>_<modality>``. ``retrieval`` and
        ``chance_retrieval`` are across modalities. None where a score is not defined.
    """
    corpus = Corpus(config.corpus_dir)
    labelled = read_labels(corpus, config.label)
    windows = describe(model, corpus, labelled, evaluation)
    found = _scores(windows, labelled, config, evaluation.window_seconds or {})
    if len(windows) > 1:
        for modality, alone in windows.items():
            own = _scores({modality: alone}, labelled, config, evaluation.window_seconds or {})
            found |= {f"{key}_{modality}": value for key, value in own.items()}
    return {**found, **_retrieval(model, corpus, evaluation, delay_seconds)}


def _scores(
    windows: dict[Modality, Windows], labelled: Labelled, config: AblateConfig, seconds: dict[Modality, float]
) -> dict[str, float | None]:
    """Of the units that have any of the modalities in ``windows``."""
    rows = np.unique(np.concatenate([w.unit_W for w in windows.values()]))
    all_NF, learned_NF = (_joint(windows, len(labelled.units), learned)[rows] for learned in (False, True))
    blocks, learned_blocks = (_blocks(windows, learned) for learned in (False, True))
    described = labelled.part(rows)
    auroc, pooled = left_out_aurocs(all_NF, blocks, described)
    learned, learned_pooled = left_out_aurocs(learned_NF, learned_blocks, described)
    few = [
        left_out_aurocs(learned_NF, learned_blocks, described, config.few_labels, draw)[0]
        for draw in range(config.few_label_draws)
    ]
    return {
        "auroc": auroc,
        "auroc_pooled": pooled,
        "auroc_learned": learned,
        "auroc_learned_pooled": learned_pooled,
        "auroc_few_labels": float(np.mean(few)),
        **identification(windows, labelled, _held_out(labelled), seconds),
        **site_decoding(learned_NF, described.sites),
    }


def describe(model: MCSP, corpus: Corpus, labelled: Labelled, evaluation: EvaluateConfig) -> dict[Modality, Windows]:
    """Features of every window of the labelled units."""
    described: dict[Modality, Windows] = {}
    for modality in model.config.modalities:
        windows = read_windows(corpus, labelled.units, modality, evaluation, "features")
        name_of = [unit.key for unit in labelled.units].__getitem__
        found = list(encode_windows(model, modality, windows, evaluation.batch_size, name_of))
        if found:
            widths = list(model.feature_widths(modality).values())
            x_WF = np.stack([vector for _, vector in found])
            unit_W = np.array([i for i, _ in found])
            described[modality] = Windows(unit_W, x_WF, widths, len(model.learned_widths(modality)))
    return described


def _joint(windows: dict[Modality, Windows], n_units: int, learned: bool) -> np.ndarray:
    return np.concatenate([w.means(n_units, learned) for w in windows.values()], axis=1)


def _blocks(windows: dict[Modality, Windows], learned: bool) -> list[int]:
    return [width for w in windows.values() for width in w.parts(learned)]


def left_out_aurocs(
    x_NF: np.ndarray, blocks: Sequence[int], labelled: Labelled, fraction: float = 1.0, draw: int = 0
) -> tuple[float, float]:
    """AUROC of sites left out, by the evaluation's classifier on ``fraction`` of the subjects elsewhere.

    Returns:
        the mean over sites of the AUROC within a site, and the AUROC of all test parts in one.
    """
    keys = [unit.key for unit in labelled.units]
    folds = leave_site_out(keys, labelled.y_N, labelled.subjects, labelled.sites)
    groups_N, y_N = labelled.group_index(), labelled.y_N
    readout = on_grams(MAIN, fixed([gram(part_NF) for part_NF in np.split(x_NF, np.cumsum(blocks)[:-1], axis=1)]))

    def part(train: np.ndarray, seed: int) -> np.ndarray:
        return labelled_part(train, y_N, groups_N, fraction, draw) if fraction < 1 else train

    score_1N = cross_validate(readout, y_N, folds, [part])[0]
    once_1N = np.ones((1, len(y_N)))
    of_site = scores.by_site(score_1N, y_N, labelled.sites, once_1N)
    within = float(np.mean([value_R[0] for value_R in of_site.values()]))
    return within, float(scores.pooled(score_1N, y_N, once_1N)[0])


def _held_out(labelled: Labelled) -> np.ndarray:
    """Units that pretraining on this corpus does not see; all of them where there are none."""
    kept = np.array([unit.recordings[0].split != "train" for unit in labelled.units])
    return np.flatnonzero(kept) if kept.any() else np.arange(len(kept))


def identification(
    windows: dict[Modality, Windows], labelled: Labelled, units_H: np.ndarray, seconds: dict[Modality, float]
) -> dict[str, float | None]:
    """Top-1 accuracy of finding a person's last window from the first one among people of the same site.

    By the cosine of standardised learned features, mean over modalities; units whose first and last window would
    overlap are left out. ``units_H`` are the units it is asked of.
    """
    hits: list[bool] = []
    chance: list[float] = []
    site_N = np.array(labelled.sites)
    for modality, found in windows.items():
        least = 2 * seconds[modality]
        long_H = np.array([i for i in units_H if _shortest(labelled.units[i], modality) >= least], dtype=int)
        for site in np.unique(site_N):
            of_site_H = long_H[site_N[long_H] == site]
            if len(of_site_H) < 2:
                continue
            ends_2NF = found.ends(of_site_H)
            ends_2NF = (ends_2NF - ends_2NF.mean((0, 1))) / (ends_2NF.std((0, 1)) + 1e-12)
            first_NF, last_NF = ends_2NF / np.linalg.norm(ends_2NF, axis=-1, keepdims=True)
            hits += ((first_NF @ last_NF.T).argmax(1) == np.arange(len(of_site_H))).tolist()
            chance += [1 / len(of_site_H)] * len(of_site_H)
    if not hits:
        return {"identification": None, "chance_identification": None}
    return {"identification": float(np.mean(hits)), "chance_identification": float(np.mean(chance))}


def _shortest(unit: Unit, modality: Modality) -> float:
    return min((recording.seconds for recording in unit.of(modality)), default=0.0)


def _retrieval(
    model: MCSP, corpus: Corpus, evaluation: EvaluateConfig, delay_seconds: float
) -> dict[str, float | None]:
    """Across modalities, of held-out subjects, among candidates of one site."""
    nothing: dict[str, float | None] = {"retrieval": None, "chance_retrieval": None}
    if set(model.config.modalities) != set(MODALITIES):
        return nothing
    cuts = find_pairs(corpus, ("validation", "test"), evaluation.window_seconds or {}, delay_seconds)
    if len(cuts) < 4:
        return nothing
    pairs = similarities(model, corpus, cuts, evaluation, "retrieval")
    found = top1(pairs, evaluation.retrieval_size, evaluation.retrieval_draws, "one site")
    return {"retrieval": found["top1"], "chance_retrieval": found["chance"]} if found else nothing


def site_decoding(x_NF: np.ndarray, sites: Sequence[str]) -> dict[str, float]:
    """How much of the site there is in features; lower is better.

    ``site``: balanced accuracy of telling the site, by shrunken linear discriminants in folds of people.
    ``site_variance``: the share of the variance that lies between sites, mean over features; it still tells features
    apart where the site is always found.
    """
    x_NF = np.asarray(x_NF, dtype=np.float64)
    folds = StratifiedKFold(SITE_FOLDS, shuffle=True, random_state=0)
    site_N = np.unique(np.asarray(sites), return_inverse=True)[1]
    told_N = np.empty_like(site_N)
    for train, test in folds.split(x_NF, site_N):
        scale = StandardScaler().fit(x_NF[train])
        told_N[test] = class_scores(scale.transform(x_NF[train]), site_N[train], scale.transform(x_NF[test])).argmax(1)
    z_NF = StandardScaler().fit_transform(x_NF)
    between_F = sum((site_N == s).mean() * z_NF[site_N == s].mean(0) ** 2 for s in range(site_N.max() + 1))
    return {
        "site": float(balanced_accuracy_score(site_N, told_N)),
        "chance_site": 1 / (site_N.max() + 1),
        "site_variance": float(np.mean(between_F)),
    }
