"""Fine-tuning: what is trained, what a missing modality does, and a difference that only training can find."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mcsp
from mcsp.batch import collate
from mcsp.config import FinetuneConfig, ModelConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.window_classifier import MCSPClassifier
from mcsp.evaluate.finetune import Finetuning, finetune
from mcsp.evaluate.splits import labelled_part
from mcsp.evaluate.units import Labelled, labels_of, read_labels
from mcsp.explain.explain import load_finetuned
from mcsp.model.mcsp import MCSP
from mcsp.model.weights import write_pretrained
from mcsp.schema import random_key
from tests.security.published import assert_names_no_machine

PREPROCESSING = {"window_seconds": {"eeg": 10.0, "fmri": 30.0}}


@pytest.fixture(scope="module")
def config(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneConfig:
    folder = tmp_path_factory.mktemp("finetune")
    torch.manual_seed(7)
    write_pretrained(MCSP(ModelConfig(domains=("spatial", "spectral"))), folder / "model", PREPROCESSING)
    return FinetuneConfig(
        model_dir=folder / "model", corpus_dir=corpus_dir, out_dir=folder / "out", folds=2, max_passes=2, patience=1,
        windows_per_recording=1, batch_size=16, save_model=False,
    )  # fmt: skip


def sizes(model: MCSP, corpus_dir: Path) -> dict:
    corpus = Corpus(corpus_dir)
    windows = [corpus.read_window(r, 0, round(10 * r.sfreq)) for r in next(iter(corpus.samples().values()))]
    return {m: x.shape[1] for m, x in model.features(collate([windows]).signals).items()}


@pytest.mark.parametrize("depth", ["head", "last_layers", "full"])
def test_only_what_the_protocol_names_is_trained(corpus_dir: Path, depth: str) -> None:
    model = MCSP(ModelConfig())
    classifier = MCSPClassifier(model, 2, sizes(model, corpus_dir), depth)  # type: ignore[arg-type]
    classifier.check_protocol()
    counts = classifier.trainable()
    everything = sum(p.numel() for p in model.parameters())
    assert {"head": counts["encoder"] == 0, "full": counts["encoder"] == everything}.get(depth, True)
    assert depth != "last_layers" or 0 < counts["encoder"] < everything
    assert all(p.requires_grad == (depth == "full") for p in model.projections.parameters())
    with torch.no_grad():
        next(model.parameters()).requires_grad_(depth == "head")
    if depth == "head":
        with pytest.raises(AssertionError):
            classifier.check_protocol()


def test_training_changes_what_it_may_and_nothing_else(config: FinetuneConfig) -> None:
    run = Finetuning(config)
    before = {n: p.clone() for n, p in run.model.state_dict().items()}
    classifier, history = run.train(np.arange(len(run.labelled.units)), 0)
    assert 1 <= len(history) <= 2
    changed = {n for n, p in classifier.model.state_dict().items() if not torch.equal(p, before[n])}
    assert changed
    assert all(".encoder." in n for n in changed)
    assert all(torch.equal(p, before[n]) for n, p in run.model.state_dict().items())  # a copy was trained


def test_a_missing_modality_leaves_the_other_ones_logits(corpus_dir: Path) -> None:
    torch.manual_seed(0)
    model = MCSP(ModelConfig()).eval()
    classifier = MCSPClassifier(model, 2, sizes(model, corpus_dir), "head")
    for parameter in classifier.heads.parameters():
        torch.nn.init.normal_(parameter)
    corpus = Corpus(corpus_dir)
    recordings = next(iter(corpus.samples().values()))
    windows = [corpus.read_window(r, 0, round(10 * r.sfreq)) for r in recordings]
    both, eeg, fmri = (collate([w]).signals for w in (windows, windows[:1], windows[1:]))
    with torch.no_grad():
        together, first, second = (classifier(signals, 1) for signals in (both, eeg, fmri))
        apart = classifier(collate([windows[:1], windows[1:]]).signals, 2)
    torch.testing.assert_close(together, (first + second) / 2)
    torch.testing.assert_close(apart, torch.cat([first, second]))
    classifier.reset_head(5)
    assert classifier(both, 1).shape == (1, 5)


def test_it_stops_without_gain_on_subjects_held_back_and_keeps_the_best_pass(config: FinetuneConfig) -> None:
    run = Finetuning(config.model_copy(update={"max_passes": 12, "patience": 2, "learning_rate": 0.3}))
    rows, labelled = np.arange(len(run.labelled.units)), run.labelled
    classifier, history = run.train(rows, 0)
    losses = [line["inner_loss"] for line in history]
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + 2 < 12
    key = random_key(config.seed, 0) & 0xFFFFFFFF
    held = labelled_part(rows, labelled.y_N, labelled.group_index(), config.inner_fraction, key)
    fitted = np.setdiff1d(rows, held)
    assert not {labelled.subjects[i] for i in held} & {labelled.subjects[i] for i in fitted}
    weight_O = torch.tensor(len(fitted) / (2 * np.bincount(labelled.y_N[fitted])), dtype=torch.float32)
    found = F.cross_entropy(run.logits(classifier, held), torch.tensor(labelled.y_N[held]), weight_O)
    assert float(found) == pytest.approx(losses[best], rel=1e-5)


def test_units_may_lack_a_modality_where_they_train_and_where_they_are_tested(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third of the units has EEG alone, a third BOLD alone."""

    def some(*arguments: Any) -> Labelled:
        whole = labels_of(*arguments)
        kept = [unit.of("eeg") if i % 3 == 0 else unit.of("fmri") if i % 3 == 1 else unit.recordings
                for i, unit in enumerate(whole.units)]  # fmt: skip
        units = [replace(unit, recordings=tuple(r)) for unit, r in zip(whole.units, kept, strict=True)]
        return replace(whole, units=units)

    monkeypatch.setattr("mcsp.evaluate.finetune.labels_of", some)
    results = finetune(config.model_copy(update={"out_dir": tmp_path, "max_passes": 1}))
    (row,) = results["scores"]  # a probe on both modalities at once needs both
    assert row["features"] == "fine-tuned" and 0 <= row["auroc"]["value"] <= 1
    run = Finetuning(config)
    only_eeg = [i for i, unit in enumerate(run.labelled.units) if not unit.of("fmri")]
    assert np.isnan(run.frozen["fmri"][only_eeg]).all() and len(only_eeg) > 5
    with pytest.raises(ValueError, match="fold 0: expected units with fmri to train on, found none"):
        run.train(np.array(only_eeg), 0)


@pytest.mark.slow
def test_size_small_is_fine_tuned_on_a_cpu(config: FinetuneConfig, tmp_path: Path) -> None:
    write_pretrained(MCSP(ModelConfig(size="small")), tmp_path / "model", PREPROCESSING)
    changed = {"model_dir": tmp_path / "model", "out_dir": tmp_path / "out", "max_passes": 1}
    results = finetune(config.model_copy(update=changed))
    assert results["parameters"]["all"] > 10_000_000
    assert 0 < results["parameters"]["encoder"] < results["parameters"]["all"]


def test_the_result_is_complete_reproducible_and_beside_the_frozen_probe(
    config: FinetuneConfig, corpus_dir: Path, tmp_path: Path
) -> None:
    results = finetune(config)
    assert json.loads((config.out_dir / "results.json").read_text()) == results
    assert_names_no_machine(config.out_dir, config.out_dir.parent)
    assert [row["features"] for row in results["scores"]] == ["fine-tuned", "frozen"]
    gain = results["scores"][0]["finetuned_minus_frozen"]
    values = [row["auroc"]["value"] for row in results["scores"]]
    assert gain["value"] == pytest.approx(values[0] - values[1])
    assert results["parameters"]["head"] > 0
    assert len(results["passes"]) == 2
    again = finetune(config.model_copy(update={"out_dir": tmp_path, "save_model": True}))
    assert again["scores"] == results["scores"]
    check_folder(tmp_path / "classifier", results, corpus_dir)


def check_folder(folder: Path, results: dict, corpus_dir: Path) -> None:
    """The head in the folder scores features as the network, trained on all units, scores windows."""
    loaded = mcsp.load_classifier(folder)
    assert loaded.task == {"kind": "classification", "label": "diagnosis", "classes": results["classes"]}
    assert set(loaded.heads) == {"eeg", "fmri"}
    network = load_finetuned(folder.parent)
    corpus = Corpus(corpus_dir)
    unit = read_labels(corpus, "diagnosis").units[0]
    for modality, head in loaded.heads.items():
        assert head.facts["sites"] == {"simulated-a": 16, "simulated-b": 16} and head.facts["subjects"] == 32
        assert head.facts["calibration"]["units"] == 32 and len(head.facts["distances"]) == 21
        recording = unit.of(modality)[0]
        signals = collate([[corpus.read_window(recording, 0, round(10 * recording.sfreq))]]).signals
        with torch.no_grad():
            logits_O = network(signals, 1)[0].double().numpy()
            features_F = network.model.features(signals)[modality][0].double().numpy()
        calibration = head.facts["calibration"]
        expected_O = calibration["slope"] * logits_O + np.array(calibration["bias"])
        np.testing.assert_allclose(head.scores(features_F), expected_O, atol=1e-4)
