"""Evaluation of an export on a corpus: probes beside their baselines, cross-modal retrieval before and after.

Shape letters: N samples, F features.
"""

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from tqdm import tqdm

from mcsp import __version__
from mcsp.config import EvaluateConfig
from mcsp.data_sharding.reader import Corpus
from mcsp.downstream.baselines import classical_features
from mcsp.downstream.features import feature_blocks, sample_features
from mcsp.downstream.probe import BOOTSTRAP_SEED, make_folds, probe
from mcsp.downstream.report import read_curves, write_report
from mcsp.downstream.retrieval import RETRIEVAL_SEED, find_pairs, similarities, top1
from mcsp.model.mcsp import MCSP
from mcsp.model.pretrained import PretrainedMCSP, from_pretrained
from mcsp.schema import MODALITIES, Modality, Split

PRETRAINED, UNTRAINED, CLASSICAL = "pretrained", "random initialisation", "classical"
UNTRAINED_SEED = 0


@dataclass(frozen=True)
class FeatureSet:
    """One description of all labelled samples."""

    x: dict[Modality, np.ndarray]  # (N, F) per modality, NaN rows where missing
    blocks: dict[Modality, list[int]]  # sizes of the parts that get equal weight in a probe

    def joint(self, modalities: Sequence[Modality]) -> tuple[np.ndarray, list[int]] | None:
        """Features of the modalities side by side ``(N, F)``, and their blocks; None where one is absent."""
        if any(m not in self.x for m in modalities):
            return None
        return np.concatenate([self.x[m] for m in modalities], axis=1), [b for m in modalities for b in self.blocks[m]]


@dataclass(frozen=True)
class Labelled:
    """The samples that have a label."""

    keys: list[str]
    y_N: np.ndarray  # 0 or 1, index into classes
    classes: list[str]
    subjects: list[str]  # "site/subject"
    sites: list[str]
    simulated: dict[str, bool]  # per site


def read_labels(corpus: Corpus, label: str) -> Labelled:
    """Samples of any split whose participant has a value in column ``label``.

    Raises:
        ValueError: no sample has the column, or its values are not exactly two.
    """
    first = {key: recordings[0] for key, recordings in corpus.samples().items()}
    found = {key: corpus.participant(r).get(label) for key, r in first.items()}
    values = {key: str(v) for key, v in found.items() if v is not None and str(v).lower() not in ("", "n/a", "nan")}
    if not values:
        known = sorted({column for r in first.values() for column in corpus.participant(r)})
        raise ValueError(
            f"{corpus.path}: no sample has the label {label!r}; found the columns {known}. Name the column in "
            "participants_columns when the corpus is built"
        )
    classes = sorted(set(values.values()))
    if len(classes) != 2:
        raise ValueError(f"{corpus.path}: label {label!r}: expected two classes, found {len(classes)}: {classes[:10]}")
    rows = [first[key] for key in values]
    return Labelled(
        keys=list(values),
        y_N=np.array([classes.index(v) for v in values.values()]),
        classes=classes,
        subjects=[f"{r.site}/{r.subject}" for r in rows],
        sites=[r.site for r in rows],
        simulated={r.site: r.simulated for r in rows},
    )


def untrained_like(model: MCSP) -> MCSP:
    """The same architecture with its random initial weights (seed 0), on the same device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(UNTRAINED_SEED)
        untrained = MCSP(model.config)
    return untrained.to(next(model.parameters()).device).eval()


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate an export; write ``results.json`` and ``report.html`` into ``config.out_dir``.

    Returns:
        The content of ``results.json``. The same export, corpus and configuration give the same numbers.

    Raises:
        ValueError: an unusable export or corpus, or labels from which no folds can be made; one line.
    """
    model = from_pretrained(config.model_dir)
    corpus = Corpus(config.corpus_dir)
    config = with_windows(config, model)
    labelled = read_labels(corpus, config.label)
    make_folds(labelled.keys, labelled.y_N, labelled.subjects, config.folds, 1)  # fails before the slow part
    if config.run_dir is not None and not read_curves(config.run_dir):
        raise ValueError(f"{config.run_dir}: expected a pretraining run with metrics.jsonl, found none")
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    untrained = untrained_like(model)
    seen = read_seen(config.model_dir)
    features = describe(model, untrained, corpus, labelled.keys, config)
    probes, splits, notes = run_probes(features, labelled, config, seen)
    retrieval, more_notes = run_retrieval({PRETRAINED: model, UNTRAINED: untrained}, corpus, config)
    results = {
        "versions": versions(),
        "config": config.dump(),
        "corpus_index_hash": corpus.index_hash,
        "model": {"parameters": sum(p.numel() for p in model.parameters()), "config": model.config.dump()},
        "label": {"name": config.label, "classes": labelled.classes, "samples": np.bincount(labelled.y_N).tolist()},
        "sites": {
            s: {"simulated": simulated, "samples": labelled.sites.count(s)}
            for s, simulated in sorted(labelled.simulated.items())
        },
        "subjects": len(set(labelled.subjects)),
        "subjects_seen_in_pretraining": len(set(labelled.subjects) & seen),
        "seeds": {
            "folds": list(range(config.seeds)),
            "untrained_weights": UNTRAINED_SEED,
            "bootstrap": BOOTSTRAP_SEED,
            "retrieval": RETRIEVAL_SEED,
        },
        "splits_sha256": splits,
        "probes": probes,
        "site_probes": run_site_probes(features, labelled, config),
        "retrieval": retrieval,
        "notes": notes + more_notes,
    }
    config.out_dir.mkdir(parents=True, exist_ok=True)
    (config.out_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    report = config.out_dir / "report.html"
    write_report(report, results, features[PRETRAINED].x, labelled.y_N, labelled.sites, config.run_dir)
    return results


def describe(
    model: MCSP, untrained: MCSP, corpus: Corpus, keys: Sequence[str], config: EvaluateConfig
) -> dict[str, FeatureSet]:
    """The three feature sets that are compared, from the same windows."""
    sets = {}
    for kind, encoder in ((PRETRAINED, model), (UNTRAINED, untrained)):
        x = sample_features(encoder, corpus, keys, config, kind)
        sets[kind] = FeatureSet(x, {m: feature_blocks(encoder, x_NF.shape[1]) for m, x_NF in x.items()})
    x = classical_features(corpus, keys, config)
    sets[CLASSICAL] = FeatureSet(x, {m: [x_NF.shape[1]] for m, x_NF in x.items()})
    return sets


def with_windows(config: EvaluateConfig, model: PretrainedMCSP) -> EvaluateConfig:
    """``config`` with ``window_seconds`` of the pretraining where it names none, for both modalities."""
    seconds = {**model.preprocessing.get("window_seconds", {}), **(config.window_seconds or {})}
    missing = [m for m in model.config.modalities if m not in seconds]
    if missing:
        raise ValueError(
            f"{config.model_dir}: preprocessing.json has no window_seconds for {missing}; set window_seconds"
        )
    # Baselines need a length for a modality that the model lacks; one modality's length serves both then.
    seconds = {m: seconds.get(m, max(seconds.values())) for m in MODALITIES}
    return config.model_copy(update={"window_seconds": seconds})


def read_seen(model_dir: Path) -> frozenset[str]:
    """``site/subject`` of the subjects that the export names as its pretraining data; empty where it names none."""
    path = model_dir / "pretraining_subjects.txt"
    return frozenset(path.read_text().splitlines()) if path.is_file() else frozenset()


def run_probes(
    features: dict[str, FeatureSet], labelled: Labelled, config: EvaluateConfig, seen: frozenset[str]
) -> tuple[list[dict[str, Any]], dict[str, str], list[str]]:
    """One probe per feature set for EEG, fMRI and both; within each of these all feature sets share samples and folds.

    Returns:
        Scores, the digest of the folds per set of modalities, and a note for each set that could not be evaluated.
    """
    scores, splits, notes = [], {}, []
    for name, modalities in (("eeg", ("eeg",)), ("fmri", ("fmri",)), ("both", MODALITIES)):
        joint = {kind: x for kind, f in features.items() if (x := f.joint(modalities)) is not None}
        if CLASSICAL not in joint:
            notes.append(f"No probe on {name}: no labelled sample has the recordings for it.")
            continue
        rows = np.flatnonzero(np.all([np.isfinite(x_NF).all(axis=1) for x_NF, _ in joint.values()], axis=0))
        y_N, subjects = labelled.y_N[rows], [labelled.subjects[i] for i in rows]
        try:
            folds = make_folds([labelled.keys[i] for i in rows], y_N, subjects, config.folds, config.seeds)
        except ValueError as error:
            notes.append(f"No probe on {name}: {error}.")
            continue
        splits[name] = folds.sha256
        for kind, (x_NF, blocks) in tqdm(joint.items(), desc=f"probes, {name}", unit="probe", leave=False):
            score = probe(x_NF[rows], y_N, subjects, folds, blocks, seen)
            scores.append({"modalities": name, "features": kind, **score.dump()})
    return scores, splits, notes


def run_site_probes(
    features: dict[str, FeatureSet], labelled: Labelled, config: EvaluateConfig
) -> list[dict[str, Any]]:
    """How well the site can be told from the same features: AUROC of one site against the rest, mean over sites.

    Sites with fewer subjects than folds are left out; empty where fewer than two remain.
    """
    scores = []
    for modality in MODALITIES:
        for kind, described in features.items():
            joint = described.joint([modality])
            if joint is None:
                continue
            x_NF, blocks = joint
            rows = np.flatnonzero(np.isfinite(x_NF).all(axis=1))
            by_site = {s: {labelled.subjects[i] for i in rows if labelled.sites[i] == s} for s in set(labelled.sites)}
            sites = sorted(s for s, subjects in by_site.items() if len(subjects) >= config.folds)
            rows = np.array([i for i in rows if labelled.sites[i] in sites], dtype=int)
            keys, subjects = [labelled.keys[i] for i in rows], [labelled.subjects[i] for i in rows]
            values = []
            for site in sites[: 1 if len(sites) == 2 else None] if len(sites) > 1 else []:
                y_N = np.array([int(labelled.sites[i] == site) for i in rows])
                folds = make_folds(keys, y_N, subjects, config.folds, 1)
                values.append(probe(x_NF[rows], y_N, subjects, folds, blocks).auroc)
            if values:
                auroc = float(np.mean(values))
                scores.append({"modalities": modality, "features": kind, "auroc": auroc, "sites": sites})
    return scores


def run_retrieval(
    models: dict[str, MCSP], corpus: Corpus, config: EvaluateConfig
) -> tuple[list[dict[str, Any]], list[str]]:
    """Cross-modal retrieval on held-out and on training subjects, over all sites and within one, for each model."""
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    pretrained = models[PRETRAINED]
    if set(pretrained.config.modalities) != set(MODALITIES):
        return [], [f"No cross-modal retrieval: the model knows {', '.join(pretrained.config.modalities)} only."]
    assert config.window_seconds is not None
    assert isinstance(pretrained, PretrainedMCSP)
    delay = float(pretrained.preprocessing.get("hemodynamic_delay_seconds", 0.0))
    groups: dict[str, tuple[Split, ...]] = {"held out": ("validation", "test"), "training": ("train",)}
    for group, splits in groups.items():
        cuts = find_pairs(corpus, splits, config.window_seconds, delay)
        if len(cuts) < 2:
            notes.append(f"No cross-modal retrieval on {group} subjects: {len(cuts)} simultaneous windows found.")
            continue
        simulated = {cut.eeg.site: cut.eeg.simulated for cut in cuts}
        pairs = {k: similarities(m, corpus, cuts, config, f"retrieval, {group}, {k}") for k, m in models.items()}
        for within_site in (False, True):
            for kind in models:
                score = top1(pairs[kind], config.retrieval_size, config.retrieval_draws, within_site)
                scope = "one site" if within_site else "all sites"
                row = {"subjects_of": group, "candidates_from": scope, "model": kind, "simulated": simulated}
                rows.append({**row, **score})
        short = [r for r in rows if r["subjects_of"] == group and r["candidates"] < r["requested"]]
        if short:
            fewest = min(r["candidates"] for r in short)
            notes.append(
                f"Retrieval on {group} subjects: {config.retrieval_size} candidates were asked for, some draws have "
                f"only {fewest}, all that there are; chance is given for what was drawn."
            )
    return rows, notes


def versions() -> dict[str, str]:
    """Of everything that the numbers may depend on."""
    return {
        "mcsp": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
    }
