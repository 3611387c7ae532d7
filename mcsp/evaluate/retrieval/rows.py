"""Rows of cross-modal retrieval, each with all of its controls."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from mcsp.config import EvaluateConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.pretrained import PretrainedMCSP
from mcsp.evaluate.methods import PRETRAINED
from mcsp.evaluate.retrieval.controls import Courses, other_minutes, other_people, ridge_similarities
from mcsp.evaluate.retrieval.pairs import PairedCut, Pairs, Scope, find_pairs, similarities, top1
from mcsp.model.mcsp import MCSP
from mcsp.schema import MODALITIES, Split

OTHER_PERSON, OTHER_MINUTE = "EEG of another person, same time", "EEG of the person, another minute"
RIDGES = {"band power": "ridge from band power", "time": "time in the run alone"}
CONTROLS = (OTHER_PERSON, OTHER_MINUTE, *RIDGES.values())
GROUPS: dict[str, tuple[Split, ...]] = {"held out": ("validation", "test"), "training": ("train",)}


def run_retrieval(
    models: Mapping[str, MCSP], corpus: Corpus, config: EvaluateConfig
) -> tuple[list[dict[str, Any]], list[str]]:
    """Cross-modal retrieval on held-out and on training subjects, among candidates of all sites, one site, one person.

    For each model, and for :data:`CONTROLS`, of which the first two use the pretrained one. Where a control cannot be
    made (one person alone, recordings of a minute), the numbers it belongs to are left out, with a note.
    """
    pretrained = models[PRETRAINED]
    if set(pretrained.config.modalities) != set(MODALITIES):
        return [], [f"No cross-modal retrieval: the model knows {', '.join(pretrained.config.modalities)} only."]
    assert config.window_seconds is not None
    assert isinstance(pretrained, PretrainedMCSP)
    delay = float(pretrained.preprocessing.get("hemodynamic_delay_seconds", 0.0))
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    known: dict[tuple[str, str, int], Courses] = {}
    cuts_of = {group: find_pairs(corpus, splits, config.window_seconds, delay) for group, splits in GROUPS.items()}
    for group, cuts in cuts_of.items():
        if len(cuts) < 2:
            notes.append(f"No cross-modal retrieval on {group} subjects: {len(cuts)} simultaneous windows found.")
            continue
        compared: dict[str, tuple[Pairs, np.ndarray | None]] = {
            k: (similarities(m, corpus, cuts, config, f"retrieval, {group}, {k}"), None) for k, m in models.items()
        }
        others = [cut for name, of in cuts_of.items() if name != group for cut in of]
        compared |= controls(compared[PRETRAINED][0], corpus, cuts, others, config, delay, known)
        found, missing = _scored(compared, group, config)
        simulated = {cut.eeg.site: cut.eeg.simulated for cut in cuts}
        rows += [{**row, "simulated": simulated} for row in found]
        notes += missing
    return rows, notes


def controls(
    pairs: Pairs,
    corpus: Corpus,
    cuts: list[PairedCut],
    others: list[PairedCut],
    config: EvaluateConfig,
    delay_seconds: float,
    known: dict[tuple[str, str, int], Courses],
) -> dict[str, tuple[Pairs, np.ndarray | None]]:
    """What each control compares, and which EEG window it asks with; ``others`` are for the regressions alone, and so
    is ``known``, what they measured already.
    """
    assert config.window_seconds is not None
    found: dict[str, tuple[Pairs, np.ndarray | None]] = {
        OTHER_PERSON: (pairs, other_people(cuts)),
        OTHER_MINUTE: (pairs, other_minutes(cuts)),
    }
    if len(set(pairs.subject_N)) > 1:
        ridges = ridge_similarities(corpus, cuts, config.window_seconds, delay_seconds, others, known)
        found |= {RIDGES[k]: (replace(pairs, similarity_NN=x_NN), None) for k, x_NN in ridges.items()}
    return found


def _scored(
    compared: Mapping[str, tuple[Pairs, np.ndarray | None]], group: str, config: EvaluateConfig
) -> tuple[list[dict[str, Any]], list[str]]:
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for scope in get_args(Scope):
        scores = {
            kind: top1(pairs, config.retrieval_size, config.retrieval_draws, scope, query_N)
            for kind, (pairs, query_N) in compared.items()
        }
        missing = [kind for kind in (*compared, *CONTROLS) if scores.get(kind) is None]
        if missing:
            notes.append(f"No retrieval on {group} subjects from {scope}: nothing to make a control of: {missing[0]}.")
            continue
        for kind, score in scores.items():
            rows.append({"subjects_of": group, "candidates_from": scope, "model": kind, **(score or {})})
        fewest = min(score["candidates"] for score in scores.values() if score is not None)
        if scope != "one person" and fewest < config.retrieval_size:
            notes.append(
                f"Retrieval on {group} subjects, {scope}: {config.retrieval_size} candidates were asked for, some "
                f"draws have only {fewest}, all that there are; chance is given for what was drawn."
            )
    return rows, notes
