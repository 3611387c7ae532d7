"""Which channels and bands separate the classes, for a probe or a fine-tuned model: numbers, controls, pictures.

A probe is explained on subjects that it was not fitted on, fold by fold. Two controls (Adebayo et al., NeurIPS 2018)
say whether a map comes from what was learned: the same probe on random weights, and a probe of shuffled labels.

Shape letters: N units, C channels, K bands, F features.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mcsp.batch import collate
from mcsp.config import ExplainConfig
from mcsp.encode.deployed import ENCODER, LoadedClassifier
from mcsp.encode.pretrained import PretrainedMCSP, from_pretrained
from mcsp.encode.recording import split_parts
from mcsp.encode.window_classifier import MCSPClassifier
from mcsp.evaluate.comparison import shuffled
from mcsp.evaluate.deploy import FOLDER
from mcsp.evaluate.evaluate import untrained_like, versions, with_windows
from mcsp.evaluate.features import unit_features
from mcsp.evaluate.readout.classifiers import linear_weights
from mcsp.evaluate.splits import k_fold
from mcsp.evaluate.units import Unit, labels_of, open_corpus
from mcsp.explain.attribution import (
    BANDS_HZ,
    FEWEST_UNITS,
    OTHER_BAND,
    Attribution,
    FinetunedScore,
    LinearProbe,
    Score,
    agreement,
    attribute_pair,
    measured,
    pattern,
)
from mcsp.explain.report import write_attribution_report
from mcsp.model.mcsp import MCSP
from mcsp.output import write_whole
from mcsp.schema import Modality, Recording, Window
from mcsp.windows import longest_window, window_starts

_log = logging.getLogger(__name__)

TRAINED, RANDOM_ENCODER, SHUFFLED_LABELS = "trained", "random encoder", "shuffled labels"


@dataclass(frozen=True)
class Pair:
    """Two units of one site and fold: indices into the labelled units."""

    fold: int
    positive: int
    negative: int


class Explanation:
    """What all modalities share."""

    def __init__(self, config: ExplainConfig) -> None:
        """Open everything; ``ValueError`` where something does not fit."""
        self.model: PretrainedMCSP = from_pretrained(config.model_dir)
        self.corpus = open_corpus(config, config.out_dir, self.model)
        self.config = config = with_windows(config, self.model)
        self.labelled = labels_of(self.corpus, config)
        if self.labelled.task.kind != "binary":
            raise ValueError(f"label {config.label!r}: expected two classes to explain, found {self.labelled.classes}")
        self.classifier = None if config.finetuned_dir is None else load_finetuned(config.finetuned_dir)
        self.features = unit_features(self.model, self.corpus, self.labelled.units, config)

    def of(self, modality: Modality) -> dict[str, Any] | None:
        """Maps per site, controls and their correlation, as JSON types; None where no pair can be made."""
        rows = np.flatnonzero(np.isfinite(self.features[modality]).all(axis=1))
        y_N, groups_N = self.labelled.y_N[rows], self.labelled.group_index()[rows]
        keys = [self.labelled.units[i].key for i in rows]
        groups = [self.labelled.groups[i] for i in rows]
        if self.classifier is not None and modality not in self.classifier.n_features:
            return None
        try:
            folds = k_fold(keys, y_N, groups, self.config.folds, 1).by_seed[0]
        except ValueError as error:
            _log.warning("%s is left out: %s", modality, error)
            return None
        pairs = self._pairs(modality, [rows[test] for _, test in folds])
        if not pairs:
            return None
        kinds = [TRAINED]
        if self.config.controls:
            kinds += [RANDOM_ENCODER] if self.classifier is not None else [RANDOM_ENCODER, SHUFFLED_LABELS]
        maps: dict[str, dict[str, Attribution]] = {}
        errors: list[float] = []
        held_out: dict[str, np.ndarray] = {}
        for kind in kinds:
            scores = self._scores(kind, modality, rows, y_N, groups_N, [train for train, _ in folds])
            maps[kind], found = self._maps(scores, pairs, modality, f"{modality}, {kind}")
            errors += found if kind == TRAINED else []
            held_out[kind] = self._held_out(scores, modality, rows, [test for _, test in folds])
        flat = {kind: np.concatenate([m.value_CK.ravel() for m in of.values()]) for kind, of in maps.items()}
        return {
            "patterns": self._patterns(modality, rows, held_out),
            "bands": [*BANDS_HZ[modality], OTHER_BAND],
            "pairs": len(pairs),
            "relative_error": float(np.median(errors)),
            "sites": {site: self._described(site, modality, pairs, maps) for site in maps[TRAINED]},
            "controls": {
                kind: {
                    "rank_correlation": agreement(*(flat[k] for k in (TRAINED, kind))),
                    "difference": float(np.mean([m.difference for m in maps[kind].values()])),
                }
                for kind in kinds[1:]
            },
        }

    def _first(self, index: int, modality: Modality) -> Recording:
        return self.labelled.units[index].of(modality)[0]

    def _pairs(self, modality: Modality, tests: Sequence[np.ndarray]) -> list[Pair]:
        """Pairs within the test part of a fold, of one site and the same channels; ``config.pairs`` of them at most."""
        rng = np.random.default_rng(self.config.seed)
        found: list[Pair] = []
        for fold, test in enumerate(tests):
            alike: dict[tuple[Any, ...], list[int]] = {}
            for i in test.tolist():
                r = self._first(i, modality)
                alike.setdefault((r.site, r.sfreq, *r.channels), []).append(i)
            for members in alike.values():
                high, low = ([i for i in members if self.labelled.y_N[i] == y] for y in (1, 0))
                found += [Pair(fold, a, b) for a in high for b in low]
        chosen = rng.permutation(len(found))[: self.config.pairs]
        return [found[k] for k in sorted(chosen.tolist())]

    def _scores(
        self,
        kind: str,
        modality: Modality,
        rows: np.ndarray,
        y_N: np.ndarray,
        groups_N: np.ndarray,
        trains: Sequence[np.ndarray],
    ) -> list[Score]:
        """A score per fold, of the trained classifier or a control."""
        if self.classifier is not None:
            classifier = self.classifier if kind == TRAINED else with_random_encoder(self.classifier)
            return [FinetunedScore(classifier, modality)] * len(trains)
        x_NF = self.features[modality][rows]
        parts = split_parts(x_NF, self.model.feature_widths(modality))
        encoder: MCSP = untrained_like(self.model) if kind == RANDOM_ENCODER else self.model
        if kind == SHUFFLED_LABELS:
            site_N = np.unique([self.labelled.sites[i] for i in rows], return_inverse=True)[1]
            y_N = shuffled(y_N, groups_N, site_N, np.random.default_rng([self.config.seed, 1]))
        scores: list[Score] = []
        for train in trains:
            weight_F, bias = linear_weights([part_NF[train] for part_NF in parts.values()], y_N[train])
            scores.append(LinearProbe(encoder, modality, torch.from_numpy(weight_F), bias))
        return scores

    def _maps(
        self, scores: Sequence[Score], pairs: Sequence[Pair], modality: Modality, title: str
    ) -> tuple[dict[str, Attribution], list[float]]:
        """The mean map of each site, and how far the sum of each attribution is from the difference of scores."""
        by_site: dict[str, list[Attribution]] = {}
        errors = []
        for pair in tqdm(pairs, desc=title, unit="pair", leave=False):
            units = [self.labelled.units[i] for i in (pair.positive, pair.negative)]
            for positive, negative in zip(*self._windows(units, modality), strict=False):
                found = attribute_pair(scores[pair.fold], positive, negative, modality, self.config.steps)
                by_site.setdefault(self._site(pair, modality), []).append(found)
                errors.append(abs(found.value_CK.sum() - found.difference) / max(abs(found.difference), 1e-12))
        means = {
            site: Attribution(np.mean([a.value_CK for a in of], axis=0), float(np.mean([a.difference for a in of])))
            for site, of in sorted(by_site.items())
        }
        return means, errors

    @torch.no_grad()
    def _held_out(
        self, scores: Sequence[Score], modality: Modality, rows: np.ndarray, tests: Sequence[np.ndarray]
    ) -> np.ndarray:
        """The score ``(N,)`` of each of ``rows`` by the classifier that was not fitted on it, mean over its windows."""
        score_N = np.zeros(len(rows))
        for score, test in zip(scores, tests, strict=True):
            for i in test:
                (windows,) = self._windows([self.labelled.units[rows[i]]], modality)
                score_N[i] = float(score(collate([[w] for w in windows]).signals[modality]).mean())
        return score_N

    def _patterns(self, modality: Modality, rows: np.ndarray, held_out: dict[str, np.ndarray]) -> dict[str, Any]:
        """What correlates with the score among units of the same channels, for the classifier and its controls."""
        alike: dict[tuple[str, ...], list[int]] = {}
        for n, i in enumerate(rows.tolist()):
            alike.setdefault(tuple(self._first(i, modality).channels), []).append(n)
        out: dict[str, Any] = {}
        for members in (m for m in alike.values() if len(m) >= FEWEST_UNITS):
            units = [self.labelled.units[i] for i in rows[members]]
            quantity_NQ = np.stack([measured(next(self._windows([unit], modality)), modality) for unit in units])
            sites = [self.labelled.sites[i] for i in rows[members]]
            found = {kind: pattern(quantity_NQ, score_N[members], sites) for kind, score_N in held_out.items()}
            trained_Q, first = found.pop(TRAINED), self._first(int(rows[members[0]]), modality)
            name = ", ".join(sorted(set(sites)))
            out[name if name not in out else f"{name} ({len(first.channels)} channels)"] = {
                "units": len(members),
                **_channels(first),
                "pattern": trained_Q.round(4).tolist(),
                "controls": {
                    kind: {"pattern": q.round(4).tolist(), "rank_correlation": agreement(trained_Q, q)}
                    for kind, q in found.items()
                },
            }
        return out

    def _site(self, pair: Pair, modality: Modality) -> str:
        """The site's name, with the number of channels where its recordings do not all have the same."""
        site = self.labelled.sites[pair.positive]
        own = tuple(self._first(pair.positive, modality).channels)
        montages = sorted(
            {tuple(r.channels) for u in self.labelled.units for r in u.of(modality)[:1] if r.site == site}
        )
        return site if len(montages) == 1 else f"{site}, montage {montages.index(own) + 1} ({len(own)} channels)"

    def _windows(self, units: Sequence[Unit], modality: Modality) -> Iterator[list[Window]]:
        """Evenly spaced windows of each unit's first recording, as long as the shorter recording allows."""
        assert self.config.window_seconds is not None
        recordings = [unit.of(modality)[0] for unit in units]
        length = min(longest_window(r, self.config.window_seconds[modality]) for r in recordings)
        for r in recordings:
            starts = window_starts(r, length, self.config.windows_per_recording)
            yield [self.corpus.read_window(r, start, length) for start in starts]

    def _described(
        self, site: str, modality: Modality, pairs: Sequence[Pair], maps: dict[str, dict[str, Attribution]]
    ) -> dict[str, Any]:
        of_site = [p for p in pairs if self._site(p, modality) == site]
        first = self._first(of_site[0].positive, modality)
        return {
            "pairs": len(of_site),
            **_channels(first),
            "difference": maps[TRAINED][site].difference,
            "attribution": maps[TRAINED][site].value_CK.tolist(),
            "controls": {kind: m[site].value_CK.tolist() for kind, m in maps.items() if kind != TRAINED},
        }


def _channels(recording: Recording) -> dict[str, Any]:
    return {
        "simulated": recording.simulated,
        "channels": recording.channels,
        "positions_mm": [[round(float(v), 1) for v in xyz] for xyz in np.nan_to_num(recording.positions_C3)],
        "position_known": np.isfinite(recording.positions_C3).all(axis=1).tolist(),
    }


def load_finetuned(folder: Path) -> MCSPClassifier:
    """The classifier that finetune or evaluate wrote into ``folder/classifier``, in evaluation mode on the CPU.

    Raises:
        ValueError: no such classifier, or one of other than two classes.
    """
    loaded = LoadedClassifier(folder / FOLDER)
    if len(loaded.classes) != 2:
        raise ValueError(f"{folder}: expected a classifier of two classes, found {loaded.classes}")
    sizes = {modality: len(head.arrays["mean_F"]) for modality, head in loaded.heads.items()}
    classifier = MCSPClassifier(from_pretrained(folder / FOLDER / ENCODER), 2, sizes, "head")
    state = classifier.state_dict()
    for modality, head in loaded.heads.items():
        names = {"weight_OF": "heads.{}.weight", "bias_O": "heads.{}.bias", "mean_F": "{}_mean", "scale_F": "{}_scale"}
        state |= {place.format(modality): torch.tensor(head.arrays[name]) for name, place in names.items()}
    classifier.load_state_dict(state)
    return classifier.eval()


def with_random_encoder(classifier: MCSPClassifier) -> MCSPClassifier:
    """The same head and constants on an encoder of random weights."""
    other = MCSPClassifier(untrained_like(classifier.model), 2, classifier.n_features, classifier.depth)
    encoder = {n: t for n, t in other.state_dict().items() if n.startswith("model.")}
    other.load_state_dict({**classifier.state_dict(), **encoder})
    return other.eval()


def explain(config: ExplainConfig) -> dict[str, Any]:
    """Write ``attribution.json``, pictures and ``report.html`` into ``config.out_dir``; the content of the first.

    The same export, corpus and configuration give the same numbers.

    Raises:
        ValueError: an unusable export, corpus or fine-tuned model, or labels from which no folds or pairs can be made.
    """
    shared = Explanation(config)
    found = {m: shared.of(m) for m in shared.features}
    maps = {m: found_m for m, found_m in found.items() if found_m is not None}
    if not maps:
        raise ValueError(
            f"{shared.corpus.path}: expected units of both classes at one site, enough for folds={config.folds} and "
            "of a modality that the classifier knows; found none"
        )
    results = {
        "versions": versions(),
        "config": shared.config.published(),
        "corpus_index_hash": shared.corpus.index_hash,
        "classes": shared.labelled.classes,
        "explained": "probe, on subjects outside its folds" if config.finetuned_dir is None else "fine-tuned model",
        "modalities": maps,
    }
    config.out_dir.mkdir(parents=True, exist_ok=True)
    write_whole(config.out_dir / "attribution.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    write_attribution_report(config.out_dir, results)
    return results
