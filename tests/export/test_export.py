"""An export is compared before it gets its name, and what fails leaves what was there."""

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mcsp.config import ModelConfig, PretrainConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.pretrained import PretrainedMCSP, from_pretrained
from mcsp.export import export
from mcsp.model.mcsp import MCSP
from mcsp.model.weights import WEIGHTS_FILE
from mcsp.outside import sha256_file
from tests.evaluate.report.results import evaluation

CONFIG = ModelConfig(domains=("temporal",))


@pytest.fixture
def corpus(corpus_dir: Path) -> Corpus:
    return Corpus(corpus_dir)


@pytest.fixture
def manifest(corpus: Corpus, tmp_path: Path) -> dict[str, Any]:
    return {
        "step": 3,
        "config": PretrainConfig(corpus_dir=str(corpus.path), run_dir=tmp_path / "run").dump(),
        "model_config": CONFIG.dump(),
        "index_hash": corpus.index_hash,
        "zero_stage": 1,
    }


def weights(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return MCSP(CONFIG).state_dict()


def test_the_card_says_where_results_are_of_other_weights(
    corpus: Corpus, manifest: dict[str, Any], tmp_path: Path
) -> None:
    export.write_export(weights(1), manifest, [], corpus, tmp_path / "model")
    results = evaluation("text")
    results["classification"][0]["features"] = "pretrained"
    results["model"]["weights_sha256"] = sha256_file(tmp_path / "model" / "model.safetensors")
    for seed, others in ((1, False), (2, True)):
        export.write_export(weights(seed), manifest, [], corpus, tmp_path / "model", evaluation=results)
        card = (tmp_path / "model" / "README.md").read_text()
        assert ("**These are results of other weights**" in card) == others
        assert ("model-index" in card) != others and "| eeg | kfold | pretrained" in card


def test_what_is_loaded_again_with_other_numbers_is_no_export(
    corpus: Corpus, manifest: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight of all is off by a thousandth."""
    out = tmp_path / "model"
    export.write_export(weights(1), manifest, [], corpus, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def damaged(folder: Path) -> PretrainedMCSP:
        model = from_pretrained(folder)
        with torch.no_grad():
            model.get_parameter("encoders.fmri_temporal.embed.weight").view(-1)[0].mul_(1.001)
        return model

    monkeypatch.setattr(export, "from_pretrained", damaged)
    with pytest.raises(ValueError, match="the fmri outputs of the reloaded model differ from those of the checkpoint"):
        export.write_export(weights(2), manifest, [], corpus, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_leaves_the_earlier_export(
    corpus: Corpus, manifest: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model"
    export.write_export(weights(1), manifest, [], corpus, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_sums", full)
    with pytest.raises(OSError, match="No space left"):
        export.write_export(weights(2), manifest, [], corpus, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"modalities": ["eeg", "meg"]}, r"modalities: expected some of \['fmri', 'eeg'\], found \['eeg', 'meg'\]"),
        ({"modalities": []}, r"found \[\]"),
    ],
)
def test_encoders_that_the_model_lacks(
    corpus: Corpus, manifest: dict[str, Any], tmp_path: Path, changed: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        export.write_export(weights(1), manifest, [], corpus, tmp_path / "model", **changed)
    assert not list(tmp_path.iterdir())


def test_projections_are_compared_as_well() -> None:
    """Whoever trains on from an export starts with them."""
    model = MCSP(CONFIG).eval()
    other = copy.deepcopy(model)
    export.check_same(model, other)
    with torch.no_grad():
        next(other.projections["eeg_temporal"].parameters()).mul_(1.001)
    with pytest.raises(ValueError, match="the eeg outputs of the reloaded model differ"):
        export.check_same(model, other)


def test_what_an_export_says_of_its_data_is_that_of_the_training_people_alone(
    corpus: Corpus, manifest: dict[str, Any]
) -> None:
    expected = export.preprocessing_of(manifest, corpus, ("eeg",))
    rows = [r if r.split == "train" else replace(r, sfreq=123.0, unit="mV") for r in corpus.recordings]
    assert any(r.split != "train" and r.modality == "eeg" for r in rows)
    other: Any = SimpleNamespace(recordings=rows, index=corpus.index, index_hash=corpus.index_hash)
    assert export.preprocessing_of(manifest, other, ("eeg",)) == expected
    assert export.pretraining_subjects(other) == sorted({f"{r.site}/{r.subject}" for r in rows if r.split == "train"})


def test_encoders_keep_their_order_whatever_the_order_that_is_asked_for() -> None:
    config, kept = export.only(CONFIG, weights(1), ["eeg", "fmri"])
    assert config.modalities == CONFIG.modalities == ("fmri", "eeg") and kept.keys() == weights(1).keys()
    assert {name.split(".")[1] for name in export.only(CONFIG, weights(1), ["eeg"])[1]} == {"eeg_temporal"}


def test_an_earlier_export_is_there_until_the_new_one_has_its_name_and_every_file_has_its_sum(
    corpus: Corpus, manifest: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model"
    export.write_export(weights(1), manifest, [], corpus, out)
    sums = dict(line.split("  ")[::-1] for line in (out / "SHA256SUMS").read_text().splitlines())
    assert sums == {p.name: sha256_file(p) for p in out.iterdir() if p.name != "SHA256SUMS"} and "README.md" in sums
    before, rename = (out / WEIGHTS_FILE).read_bytes(), Path.rename

    def fails(path: Path, target: Path) -> Path:
        if target == out and not path.name.endswith(".old"):
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="Input/output error"):
        export.write_export(weights(2), manifest, [], corpus, out)
    assert [(p, p.read_bytes()) for p in tmp_path.rglob(WEIGHTS_FILE)] == [(out / WEIGHTS_FILE, before)]
