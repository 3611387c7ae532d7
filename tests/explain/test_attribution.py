"""Attributions add up, and find where a simulated effect was planted.

Covers: mcsp/explain/explain.py, mcsp/explain/report.py
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mcsp.batch import collate
from mcsp.commands.main import run
from mcsp.config import ModelConfig
from mcsp.data_sharding.demo.simulate import CASE_PAIR, SOURCE_POSITIONS_MM, electrode_positions_mm
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.deployed import Head, write_classifier
from mcsp.encode.pretrained import from_pretrained
from mcsp.encode.window_classifier import MCSPClassifier
from mcsp.evaluate.deploy import heads_of
from mcsp.explain.attribution import BANDS_HZ, OTHER_BAND, FinetunedScore, agreement, attribute_pair, split_bands
from mcsp.explain.explain import RANDOM_ENCODER, SHUFFLED_LABELS, load_finetuned, with_random_encoder
from mcsp.explain.report import strongest
from mcsp.model.mcsp import MCSP
from mcsp.model.weights import write_pretrained
from tests.security.published import assert_names_no_machine

CHANGED = slice(2 * CASE_PAIR, 2 * CASE_PAIR + 2)


def test_bands_sum_to_the_signal_and_hold_their_own_oscillation() -> None:
    t = torch.arange(2000, dtype=torch.float64) / 200
    x_BCT = torch.stack([torch.sin(2 * np.pi * f * t) for f in (10.0, 20.0)])[None]
    parts_BKCT = split_bands(x_BCT, 200.0, "eeg")
    torch.testing.assert_close(parts_BKCT.sum(1), x_BCT)
    power_KC = parts_BKCT[0].square().mean(-1)
    names = [*BANDS_HZ["eeg"], OTHER_BAND]
    assert [names[int(k)] for k in power_KC.argmax(0)] == ["alpha", "beta"]
    assert float(power_KC.max()) == pytest.approx(0.5, rel=1e-6)


def test_the_attributions_of_a_power_difference_are_that_difference(corpus_dir: Path) -> None:
    """A score of log power has a known answer: each channel's share is its own difference of log power."""
    corpus = Corpus(corpus_dir)
    recordings = [r for r in corpus.recordings if r.modality == "eeg" and r.site == "simulated-a"][:2]
    a, b = (corpus.read_window(r, 0, 2000) for r in recordings)

    def log_power(x_BCT: torch.Tensor) -> torch.Tensor:
        return (x_BCT - x_BCT.mean(-1, keepdim=True)).square().mean(-1).log()

    found = attribute_pair(lambda s: log_power(s.x_BCT)[:, [0, 3]].sum(1), a, b, "eeg", steps=32)
    x_BCT = torch.stack([torch.from_numpy(w.x_TC.astype(np.float32)).T * w.scale for w in (a, b)])
    expected_C = (log_power(x_BCT)[0] - log_power(x_BCT)[1]).numpy()
    np.testing.assert_allclose(found.value_CK.sum(1)[[0, 3]], expected_C[[0, 3]], atol=0.02)
    assert np.abs(found.value_CK[[1, 2, 4]]).max() < 1e-6
    assert found.value_CK.sum() == pytest.approx(found.difference, abs=0.02)
    with pytest.raises(ValueError, match="expected two windows of the same channels"):
        attribute_pair(lambda s: s.x_BCT.sum((1, 2)), a, corpus.read_window(recordings[1], 0, 1000), "eeg", 4)


@pytest.fixture(scope="module")
def explained(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("explain")
    torch.manual_seed(7)
    preprocessing = {"window_seconds": {"eeg": 10.0, "fmri": 60.0}}
    write_pretrained(MCSP(ModelConfig()), folder / "model", preprocessing)
    options = {
        "model_dir": folder / "model", "corpus_dir": corpus_dir, "out_dir": folder / "out", "folds": 4,
        "windows_per_recording": 1, "pairs": 32, "steps": 6,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mcsp", "explain", *(f"{name}={value}" for name, value in options.items())])
        assert run() == 0
    return folder / "out", json.loads((folder / "out" / "attribution.json").read_text())


def test_the_attribution_lies_in_the_planted_band_and_near_the_planted_pair(explained: tuple[Path, dict]) -> None:
    """In space it is broad: the average reference spreads a source, and 24 subjects make a noisy probe."""
    _, results = explained
    eeg = results["modalities"]["eeg"]
    assert eeg["bands"] == ["delta", "theta", "alpha", "beta", "gamma", "other"]
    for site in eeg["sites"].values():
        value_CK = np.array(site["attribution"])
        assert eeg["bands"][int(value_CK.sum(0).argmax())] == "beta"
        places_C3 = electrode_positions_mm(tuple(site["channels"]), head_frame=False)
        distance_C = np.linalg.norm(places_C3[:, None] - SOURCE_POSITIONS_MM[CHANGED], axis=2).min(1)
        weight_C = value_CK[:, 3].clip(min=0)
        assert weight_C @ distance_C / weight_C.sum() < distance_C.mean() - 3
    total_K = sum(np.sum(s["attribution"], axis=0) for s in eeg["sites"].values())
    assert total_K[3] > 2 * np.sort(total_K)[-2]


def test_the_parcels_with_the_largest_attribution_lie_near_the_planted_pair(explained: tuple[Path, dict]) -> None:
    _, results = explained
    for site in results["modalities"]["fmri"]["sites"].values():
        value_C = np.sum(site["attribution"], axis=1)
        distance_CS = np.linalg.norm(np.array(site["positions_mm"])[:, None] - SOURCE_POSITIONS_MM[CHANGED], axis=2)
        nearest_C = distance_CS.min(1)
        assert value_C[nearest_C < 35].mean() > value_C[nearest_C > 60].mean()


def test_controls_differ_from_the_map_and_files_hold_what_was_returned(explained: tuple[Path, dict]) -> None:
    out, results = explained
    assert json.loads((out / "attribution.json").read_text()) == results
    assert_names_no_machine(out, out.parent)
    pictures = {f"{m}{k}.png" for m in ("eeg", "fmri") for k in ("", "_patterns")}
    assert {p.name for p in out.iterdir()} == {"attribution.json", "report.html", *pictures}
    for found in results["modalities"].values():
        assert set(found["controls"]) == {RANDOM_ENCODER, SHUFFLED_LABELS}
        assert found["controls"][SHUFFLED_LABELS]["rank_correlation"] < 0.6
        trained = np.mean([s["difference"] for s in found["sites"].values()])
        assert found["controls"][SHUFFLED_LABELS]["difference"] < 0.5 * trained
        assert found["relative_error"] < 0.2
    assert len(strongest(results)) == 4
    assert "simulated" in (out / "report.html").read_text()


def test_a_constant_map_has_no_correlation() -> None:
    assert agreement(np.arange(6.0), np.arange(6.0)) == pytest.approx(1.0)
    assert agreement(np.arange(6.0), np.zeros(6)) is None


def test_a_fine_tuned_model_is_loaded_and_explained_like_a_probe(corpus_dir: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = MCSP(ModelConfig(domains=("spectral",))).eval()
    write_pretrained(model, tmp_path / "model", {"window_seconds": {"eeg": 10.0, "fmri": 30.0}})
    sizes = {m: sum(model.feature_widths(m).values()) for m in model.config.modalities}
    classifier = MCSPClassifier(model, 2, sizes, "head").eval()
    for parameter in classifier.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    with pytest.raises(ValueError, match="expected a classifier, a folder with"):
        load_finetuned(tmp_path)
    facts = {
        "calibration": {"slope": 1.0, "bias": [0.0, 0.0]}, "measured_of": "windows", "distances": [0.5, 1.0],
        "threshold": 0.5, "channels": {}, "simulated": [],
        "skill": {"measure": "AUROC", "chance": 0.5, "estimate": None},
    }  # fmt: skip
    training = {m: dict.fromkeys(("centre_F", "spread_F"), np.ones(size)) for m, size in sizes.items()}
    heads = {m: Head({**arrays, **training[m]}, facts) for m, arrays in heads_of(classifier).items()}
    task = {"kind": "classification", "label": "diagnosis", "classes": ["control", "case"]}
    write_classifier(tmp_path / "classifier", from_pretrained(tmp_path / "model"), heads, task, {}, "")
    loaded = load_finetuned(tmp_path)
    corpus = Corpus(corpus_dir)
    recordings = [r for r in corpus.recordings if r.modality == "eeg" and r.site == "simulated-a"]
    a, b = (corpus.read_window(r, 0, 2000) for r in recordings[:2])
    signals = collate([[a], [b]]).signals
    with torch.no_grad():
        logits_NO = classifier(signals, 2)
        found = attribute_pair(FinetunedScore(loaded, "eeg"), a, b, "eeg", steps=32)
    margin_N = logits_NO[:, 1] - logits_NO[:, 0]
    assert found.difference == pytest.approx(float(margin_N[0] - margin_N[1]), abs=1e-4)
    assert found.value_CK.sum() == pytest.approx(found.difference, abs=0.1 * abs(found.difference) + 0.02)
    other = with_random_encoder(loaded)
    assert torch.equal(other.heads["eeg"].weight, loaded.heads["eeg"].weight)
    assert not torch.equal(next(other.model.parameters()), next(loaded.model.parameters()))
