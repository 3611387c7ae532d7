"""Evaluation of an export on a corpus: classifiers beside their baselines, cross-modal retrieval before and after."""

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from mcsp.config import EvaluateConfig, LabelledConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.pretrained import PretrainedMCSP, from_pretrained
from mcsp.evaluate import comparison, scores
from mcsp.evaluate.deploy import FOLDER, deploy_probe
from mcsp.evaluate.features import learned_parts, measured_parts
from mcsp.evaluate.measured import USUAL_COVARIATES, covariate_table, measure
from mcsp.evaluate.methods import PRETRAINED, UNTRAINED, Block, Described, Encoded
from mcsp.evaluate.report.page import write_report
from mcsp.evaluate.retrieval import RETRIEVAL_SEED, run_retrieval
from mcsp.evaluate.scores import BOOTSTRAP_SEED
from mcsp.evaluate.splits import k_fold
from mcsp.evaluate.units import Labelled, labels_of, open_corpus
from mcsp.model.mcsp import MCSP
from mcsp.model.weights import SUBJECTS_FILE, WEIGHTS_FILE
from mcsp.output import write_whole
from mcsp.outside import read_bounded, sha256_file
from mcsp.provenance import versions as versions_of
from mcsp.run_log import read_metrics
from mcsp.schema import KEY_FINGERPRINT, KEY_VARIABLE, MODALITIES, Modality
from mcsp.version import __version__


@dataclass(frozen=True)
class Overlap:
    """What is known of the subjects that both have.

    Attributes:
        seen: "site/subject" of those of the evaluation; None where it could not be found out.
        text: a sentence or two for people; in capitals where it could not.
    """

    seen: frozenset[str] | None
    text: str

    @property
    def count(self) -> int | None:
        """Number of subjects that pretraining has seen; None where unknown."""
        return None if self.seen is None else len(self.seen)


def find_overlap(preprocessing: Mapping[str, Any], model_dir: Path, corpus: Corpus, subjects: Sequence[str]) -> Overlap:
    """Compare the subjects of an evaluation with those of the pretraining.

    Args:
        preprocessing: of the export.
        model_dir: its folder.
        corpus: of the evaluation.
        subjects: "site/subject" of every unit.
    """
    path = model_dir / SUBJECTS_FILE
    if not path.is_file():
        return _unknown(f"the export does not list its pretraining subjects ({SUBJECTS_FILE} is missing)")
    listed, own = frozenset(read_bounded(path).decode().split()), frozenset(subjects)
    seen = listed & own
    if not seen and corpus.index_hash != preprocessing.get("corpus_index_hash"):
        # Equal hashes under different keys do not happen; unequal ones say nothing.
        here, there = corpus.index.get(KEY_FINGERPRINT), preprocessing.get(KEY_FINGERPRINT)
        if not here or not there:
            older = "the corpus" if not here else "the export"
            return _unknown(f"{older} holds no fingerprint of the key that its subjects were hashed under")
        if here != there:
            return _unknown(
                f"its subjects were hashed under another key (fingerprint {here[:8]}) than those of pretraining "
                f"({there[:8]}), so that the same person has two hashes; with the pretraining's key in "
                f"{KEY_VARIABLE} when the corpus is built, or by the holders of both keys, it can be checked"
            )
    text = f"{len(seen) or 'None'} of the {len(own)} subjects {'was' if len(seen) == 1 else 'were'} in the pretraining "
    text += "data."
    new_sites = sorted({s.partition("/")[0] for s in own} - {s.partition("/")[0] for s in listed})
    if new_sites:
        text += (
            f" Hashes depend on the site's name, and pretraining had no site called {', '.join(new_sites)}: its people "
            "are not recognised where they were also recorded at another site."
        )
    return Overlap(seen, text)


def _unknown(why: str) -> Overlap:
    return Overlap(None, f"OVERLAP NOT CHECKED: whether these subjects were in the pretraining data is unknown: {why}.")


FEWEST_SUBJECTS = 5  # of those seen and of those not seen


def membership(
    encoders: Mapping[str, Encoded], labelled: Labelled, seen: frozenset[str] | None
) -> list[dict[str, Any]]:
    """AUROC of telling subjects seen in pretraining from others, per encoder and modality; 0.5 is no leak.

    By the cosine of z between a unit's windows, mean over domains and pairs. Empty where it is not known who was seen,
    or where either group is small.
    """
    member_N = np.array([subject in (seen or ()) for subject in labelled.subjects])
    subjects = np.asarray(labelled.subjects)
    if seen is None or min(len(set(subjects[member_N])), len(set(subjects[~member_N]))) < FEWEST_SUBJECTS:
        return []
    weight_RN = scores.subject_weights(labelled.group_index())
    out: list[dict[str, Any]] = []
    for name, encoded in encoders.items():
        for modality, blocks in encoded.learned.items():
            z_NK = [block.x_NF for part, block in blocks.items() if part.endswith("_z")]
            own_N = own_similarity(z_NK, encoded.windows[modality])
            known = np.isfinite(own_N)
            if len(set(member_N[known])) == 2:
                auroc_R = scores.auroc(own_N, member_N.astype(int), weight_RN)
                row = {"model": name, "modality": modality, "seen": int((member_N & known).sum())}
                out.append({**row, "unseen": int((~member_N & known).sum()), "auroc": scores.estimate(auroc_R)})
    return out


def own_similarity(mean_z: Sequence[np.ndarray], count_N: np.ndarray) -> np.ndarray:
    """Mean cosine between the windows of each unit ``(N,)``, mean over domains; NaN where a unit has fewer than two.

    Of n vectors of length 1 with the mean m, ``n^2 |m|^2`` is n plus twice the sum of the cosines of all pairs.

    Args:
        mean_z: of each domain, z averaged over the windows of each unit, ``(N, K)``.
        count_N: windows of each unit.
    """
    square_N = np.mean([(z_NK**2).sum(axis=1) for z_NK in mean_z], axis=0)
    return np.where(count_N > 1, (count_N * square_N - 1) / np.maximum(count_N - 1, 1), np.nan)


UNTRAINED_SEED = 0
AnyLabelled = TypeVar("AnyLabelled", bound=LabelledConfig)


def untrained_like(model: MCSP) -> MCSP:
    """The same architecture with its random initial weights (seed 0), on the same device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(UNTRAINED_SEED)
        untrained = MCSP(model.config)
    return untrained.to(next(model.parameters()).device).eval()


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate an export; write ``results.json``, ``splits.json`` and ``report.html`` into ``config.out_dir``.

    Of every further label the same, into a folder of its name there.

    Returns:
        The content of ``results.json``, with that of further labels under ``more_labels``. The same export, corpus and
        configuration give the same numbers.

    Raises:
        ValueError: an unusable export or corpus, or labels from which no folds can be made; one line.
    """
    model = from_pretrained(config.model_dir)
    labels = [config.label, *config.more_labels]
    columns = [*config.more_labels, *(config.covariates or USUAL_COVARIATES)]
    corpus = open_corpus(config, config.out_dir, model, columns)
    config = with_windows(config, model)
    runs = {config.label: config.model_copy(update={"more_labels": ()})}
    for label, folder in label_folders(config.more_labels).items():
        own: dict[str, Any] = {"label": label, "out_dir": config.out_dir / folder}
        own |= {"more_labels": (), "classes": None, "label_kind": None, "run_dir": None}
        runs[label] = config.model_copy(update=own)
    if len(runs) < len(labels):
        raise ValueError(f"more_labels: expected other labels than {config.label!r}, each once, found {labels[1:]}")
    # What fails does so before the slow part.
    every = {label: labels_of(corpus, run) for label, run in runs.items()}
    for label, labelled in every.items():
        k_fold([u.key for u in labelled.units], labelled.y_N, labelled.groups, config.folds, 1)
        covariate_table(corpus, labelled, config.covariates, label)
    if config.run_dir is not None and not read_metrics(config.run_dir):
        raise ValueError(f"{config.run_dir}: expected a pretraining run with metrics.jsonl, found none")
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    found = {label: evaluate_label(model, corpus, every[label], run) for label, run in runs.items()}
    results = found.pop(config.label)
    if found:
        results = {**results, "config": config.published(), "more_labels": found}
        _write(config.out_dir / "results.json", results)
    return results


def label_folders(labels: Sequence[str]) -> dict[str, str]:
    """A name of a folder for each label, which no other label and no other output has."""
    found: dict[str, str] = {}
    for label in labels:
        folder = re.sub(r"[^\w-]", "_", label)
        while folder in ("corpus", FOLDER, *found.values()):
            folder += "_"
        found[label] = folder
    return found


def evaluate_label(model: PretrainedMCSP, corpus: Corpus, labelled: Labelled, config: EvaluateConfig) -> dict[str, Any]:
    """One label: the content of its ``results.json``, written beside ``splits.json`` and ``report.html``."""
    untrained = untrained_like(model)
    overlap = find_overlap(model.preprocessing, config.model_dir, corpus, labelled.subjects)
    at_anchors = measured_parts(model, corpus, labelled.units, config)
    described = describe({PRETRAINED: model, UNTRAINED: untrained}, corpus, labelled, config, at_anchors)
    rows, splits, notes = comparison.compare(described, labelled, config, overlap.seen)
    if config.save_model:
        named = {
            m: {name: block.x_NF for name, block in parts.items()} | at_anchors.get(m, {})
            for m, parts in described.encoders[PRETRAINED].learned.items()
        }
        facts = {"overlap": overlap.text, "corpus_index_hash": corpus.index_hash}
        notes += deploy_probe(config, model, labelled, named, facts)
    retrieval, more_notes = run_retrieval({PRETRAINED: model, UNTRAINED: untrained}, corpus, config)
    results = {
        "versions": versions(),
        "config": config.published(),
        "corpus_index_hash": corpus.index_hash,
        "model": {
            "parameters": sum(p.numel() for p in model.parameters()),
            "config": model.config.dump(),
            "weights_sha256": sha256_file(config.model_dir / WEIGHTS_FILE),
        },
        "label": labelled.described(config.label),
        "sites": {
            s: {"simulated": simulated, "units": labelled.sites.count(s)}
            for s, simulated in sorted(labelled.simulated.items())
        },
        "subjects": len(set(labelled.subjects)),
        "subjects_seen_in_pretraining": overlap.count,
        "overlap": overlap.text,
        "seeds": {
            "folds": list(range(config.seeds)),
            "untrained_weights": UNTRAINED_SEED,
            "bootstrap": BOOTSTRAP_SEED,
            "retrieval": RETRIEVAL_SEED,
        },
        "splits_sha256": {name: folds["sha256"] for name, folds in splits.items()},
        "classification": rows,
        "label_efficiency": comparison.label_efficiency(described, labelled, config),
        "site_decoding": comparison.site_decoding(described, labelled, config),
        "membership": membership(described.encoders, labelled, overlap.seen),
        "retrieval": retrieval,
        "notes": [*labelled.notes, *notes, *more_notes],
    }
    config.out_dir.mkdir(parents=True, exist_ok=True)
    _write(config.out_dir / "results.json", results)
    write_whole(config.out_dir / "splits.json", json.dumps(splits, indent=1) + "\n")
    learned = {
        m: np.hstack([b.x_NF for b in parts.values()]) for m, parts in described.encoders[PRETRAINED].learned.items()
    }
    write_report(config.out_dir / "report.html", results, learned, labelled, config.run_dir)
    return results


def _write(path: Path, results: dict[str, Any]) -> None:
    write_whole(path, json.dumps(results, indent=2, allow_nan=False) + "\n")


def describe(
    models: dict[str, MCSP],
    corpus: Corpus,
    labelled: Labelled,
    config: EvaluateConfig,
    at_anchors: dict[Modality, dict[str, np.ndarray]] | None = None,
) -> Described:
    """Everything that is compared: learned features of the same windows, measured ones of whole recordings.

    What is measured at the recordings' own channels, where all share them, stands in for the same at anchors: it is
    finer.

    ``at_anchors`` are those of ``mcsp.evaluate.features.measured_parts``, where they are known already.
    """
    units = labelled.units
    rulers = measure(corpus, units)
    if at_anchors is None:
        at_anchors = measured_parts(next(iter(models.values())), corpus, units, config)
    measured: dict[Modality, dict[str, Block]] = {}
    for modality, parts in at_anchors.items():
        finer = rulers[modality].features if modality in rulers and rulers[modality].own else {}
        measured[modality] = {name: Block(finer.get(name, x_NF)) for name, x_NF in parts.items()}
    encoders = {}
    for name, model in models.items():
        windows: dict[Modality, np.ndarray] = {}
        parts_of = learned_parts(model, corpus, units, config, name, windows)
        learned = {m: {part: Block(x_NF) for part, x_NF in parts.items()} for m, parts in parts_of.items()}
        encoders[name] = Encoded(learned, measured, windows)
    covariates_NF = covariate_table(corpus, labelled, config.covariates, config.label)
    return Described(encoders, rulers, covariates_NF, labelled.sites)


def with_windows(config: AnyLabelled, model: PretrainedMCSP) -> AnyLabelled:
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


def versions() -> dict[str, str | None]:
    """Of everything that the numbers may depend on."""
    packages = ("torch", "numpy", "scikit-learn", "pyriemann")
    return {"mcsp": __version__, "python": platform.python_version(), **versions_of(packages)}
