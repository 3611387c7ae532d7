"""Fine-tuning: what is trained, what a missing modality does, and a difference that only training can find."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mcsp.batch import collate
from mcsp.config import FinetuneConfig, ModelConfig
from mcsp.data_sharding.reader import Corpus
from mcsp.downstream.classifier_model import MCSPClassifier
from mcsp.downstream.finetune import Finetuning, finetune
from mcsp.downstream.windows import random_start, window_starts
from mcsp.model.mcsp import MCSP
from mcsp.model.pretrained import write_pretrained

PREPROCESSING = {"window_seconds": {"eeg": 10.0, "fmri": 30.0}}


@pytest.fixture(scope="module")
def config(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneConfig:
    folder = tmp_path_factory.mktemp("finetune")
    torch.manual_seed(7)
    write_pretrained(MCSP(ModelConfig(domains=("spatial", "spectral"))), folder / "model", PREPROCESSING)
    return FinetuneConfig(
        model_dir=folder / "model", corpus_dir=corpus_dir, out_dir=folder / "out", folds=2, max_passes=2, patience=1,
        windows_per_recording=1, batch_size=16,
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
    encoders = sum(p.numel() for p in model.encoders.parameters())
    assert {"head": counts["encoder"] == 0, "full": counts["encoder"] == encoders}.get(depth, True)
    assert depth != "last_layers" or 0 < counts["encoder"] < encoders
    assert all(not p.requires_grad for p in model.projections.parameters())
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


def test_a_random_start_is_one_of_all_starts(corpus_dir: Path) -> None:
    recording = replace(next(iter(Corpus(corpus_dir).recordings)), valid_spans=[3, 10, 20, 26], n_samples=30)
    every = window_starts(recording, 5, 1000)
    assert every == [3, 4, 5, 20, 21]
    assert [random_start(recording, 5, k / 5 + 0.1) for k in range(5)] == every


def test_the_result_is_complete_reproducible_and_beside_the_frozen_probe(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    results = finetune(config)
    assert json.loads((config.out_dir / "results.json").read_text()) == results
    assert [row["features"] for row in results["scores"]] == ["fine-tuned", "frozen"]
    gain = results["scores"][0]["finetuned_minus_frozen"]
    values = [row["auroc"]["value"] for row in results["scores"]]
    assert gain["value"] == pytest.approx(values[0] - values[1])
    assert results["parameters"]["head"] > 0
    assert len(results["passes"]) == 2
    again = finetune(config.model_copy(update={"out_dir": tmp_path, "save_model": True}))
    assert again["scores"] == results["scores"]
    assert (tmp_path / "classifier.safetensors").is_file()
