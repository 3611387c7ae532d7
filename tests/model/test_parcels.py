"""BOLD that is read at the parcels of its corpus instead of anchors, from the corpus to a laboratory's recording.

Covers: mcsp/model/layers.py, mcsp/config/model.py, mcsp/training/trainer.py
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mcsp.batch import collate
from mcsp.commands.pretrain import export
from mcsp.config import CorpusConfig, ModelConfig
from mcsp.data_sharding.build.corpus import build_corpus
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.pretrained import from_pretrained
from mcsp.evaluate.measured import Points, root_connectivity, series
from mcsp.export.program import EncoderProgram, record
from mcsp.model.layers import LEAST_DISTANCE_MM
from mcsp.model.mcsp import MCSP
from mcsp.schema import Recording
from mcsp.training.trainer import shared_parcels
from tests.model.test_encoders import make_signal, parts
from tests.training.ranks import pretrain


def bold_of(corpus_dir: Path, site: str) -> tuple[Corpus, list[Recording]]:
    corpus = Corpus(corpus_dir)
    return corpus, [r for r in corpus.recordings if (r.modality, r.site) == ("fmri", site)]


def at_parcels(positions_P3: np.ndarray, **settings: object) -> MCSP:
    torch.manual_seed(3)
    places = [[float(v) for v in xyz] for xyz in positions_P3]
    config = ModelConfig.parse({"modalities": ["fmri"], "fmri_parcels": places, **settings}, "test")
    return MCSP(config).eval()


def test_each_parcel_reads_its_own_course(corpus_dir: Path) -> None:
    """The root of a recording is then the one that is measured at its own parcels without a model."""
    corpus, recordings = bold_of(corpus_dir, "simulated-a")
    recording = recordings[0]
    window = corpus.read_window(recording, 0, recording.n_samples)
    model = at_parcels(recording.positions_C3)
    found = parts(model, "fmri", collate([[window]]).signals["fmri"])
    x_TC = series(window, Points(None), standardise=True)
    assert x_TC is not None
    np.testing.assert_allclose(found["root"][0], root_connectivity(x_TC), atol=1e-5)
    assert found["spatial"].shape[1] == 16 * recording.n_channels


def test_the_position_says_which_parcel_it_is(corpus_dir: Path) -> None:
    """Not the place in the table: the same parcels in another order, or without one, or of half the atlas."""
    positions_P3 = bold_of(corpus_dir, "simulated-a")[1][0].positions_C3
    model, count = at_parcels(positions_P3), len(positions_P3)
    signal = make_signal("fmri", rows=2, channels=count)
    signal = signal.replace(position_BC3=torch.from_numpy(positions_P3).expand(2, -1, -1))
    expected = model.features({"fmri": signal})["fmri"]
    mixed = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    moved = signal.replace(x_BCT=signal.x_BCT[:, mixed], position_BC3=signal.position_BC3[:, mixed])
    torch.testing.assert_close(model.features({"fmri": moved})["fmri"], expected, rtol=1e-3, atol=1e-4)
    kept = torch.arange(count) % 2 == 0
    half = signal.replace(channel_valid_BC=signal.channel_valid_BC & kept)
    weights_AC = model.encoder("fmri", "spatial").anchors(half)[0]
    assert torch.equal(weights_AC.argmax(1)[kept], torch.arange(count)[kept])
    nearest_P = np.linalg.norm(positions_P3[:, None] - positions_P3[None, kept.numpy()], axis=-1).argmin(1)
    assert torch.equal(weights_AC.argmax(1), torch.arange(count)[kept][nearest_P])
    assert model.features({"fmri": half})["fmri"].isfinite().all()


def test_only_one_atlas_with_positions_far_enough_apart_will_do(corpus_dir: Path) -> None:
    corpus, recordings = bold_of(corpus_dir, "simulated-a")
    sizes = [f"{r.n_channels} parcels of {r.site}" for r in (recordings[0], bold_of(corpus_dir, "simulated-b")[1][0])]
    with pytest.raises(ValueError, match="expected BOLD of one atlas, found 2") as error:
        shared_parcels(corpus)
    assert all(size in str(error.value) for size in sizes)
    train = [r for r in recordings if r.split == "train"]
    unknown, near = train[0].positions_C3.copy(), train[0].positions_C3.copy()
    unknown[1], near[1] = np.nan, near[0] + [LEAST_DISTANCE_MM - 0.1, 0, 0]
    for positions, message in (
        (unknown, f"found none of {train[0].channels[1]}$"),
        (near, "centres 3 mm apart or more, found two 2.9 apart"),
    ):
        corpus.recordings = [replace(r, positions_mm=positions.ravel().tolist()) for r in train]
        with pytest.raises(ValueError, match=message):
            shared_parcels(corpus)
    corpus.recordings = train
    np.testing.assert_allclose(shared_parcels(corpus), train[0].positions_C3, atol=6e-4)
    corpus.recordings = []
    with pytest.raises(ValueError, match=r"found 0 \(no BOLD\)"):
        shared_parcels(corpus)


def test_a_model_needs_the_positions() -> None:
    with pytest.raises(ValueError, match=r"model.fmri_parcels: expected positions of parcels, found corpus"):
        MCSP(ModelConfig(modalities=("fmri",), fmri_parcels="corpus"))
    with pytest.raises(ValueError, match="fmri_parcels"):
        ModelConfig.parse({"fmri_parcels": [[0, 0, float("nan")]] * 4}, "test")


def test_a_program_reads_parcels_by_their_positions(corpus_dir: Path) -> None:
    """It is compared with the model on other positions than the parcels' by itself."""
    positions_P3 = bold_of(corpus_dir, "simulated-a")[1][0].positions_C3[:6]
    model = at_parcels(positions_P3, domains=["spatial"], spatial_form="root")
    run = record(EncoderProgram(model, "fmri", 0.5), 6, 20).exported.module()
    x_BCT = torch.randn(1, 6, 20, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(1, 6, dtype=torch.bool)
    places = torch.from_numpy(positions_P3)[None]
    turned = torch.arange(5, -1, -1)
    expected = run(x_BCT, places, valid)
    torch.testing.assert_close(run(x_BCT[:, turned], places[:, turned], valid), expected, rtol=1e-3, atol=1e-4)


def test_from_a_corpus_to_a_recording_of_a_laboratory(corpus_dir: Path, corpus_key: None, tmp_path: Path) -> None:
    """Pretrained, continued, exported; then the corpus's own file, and one of another atlas, which a warning names."""
    bids = corpus_dir.parent / "bids"
    shutil.copytree(bids / "simulated-a", tmp_path / "bids" / "simulated-a", ignore=shutil.ignore_patterns("eeg"))
    split = (1.0, 0.0, 0.0)
    build_corpus(
        CorpusConfig(bids_root=tmp_path / "bids", out_dir=tmp_path / "corpus", split_fractions=split, workers=1)
    )
    settings = [
        f"corpus_dir={tmp_path / 'corpus'}", f"run_dir={tmp_path / 'run'}", "batch={paired: 0, eeg: 0, fmri: 4}",
        "window_seconds={fmri: 30}", "warmup_steps=1", "validate_every=0", "model.domains=[spatial]", "steps=2",
        "spatial_start=corpus",
    ]  # fmt: skip
    pretrain(*settings, "model.fmri_parcels=corpus")
    again = pretrain(*settings, "model.fmri_parcels=corpus")
    assert "continues from step-00000002" in again
    refused = [line for line in pretrain(*settings, expect=2).splitlines() if line.startswith("error: ")]
    assert len(refused) == 1 and "model.fmri_parcels" in refused[0]
    export(tmp_path / "run", tmp_path / "model")
    model = from_pretrained(tmp_path / "model")
    assert len(model.config.parcels()) == bold_of(corpus_dir, "simulated-a")[1][0].n_channels
    path = next((bids / "simulated-a").glob("sub-*/func/*_timeseries.tsv"))
    found = model.encode_bold(path, require_known_parcellation=True)
    assert not found.report.warnings
    other = model.encode_bold(next((bids / "simulated-b").glob("sub-*/func/*_timeseries.tsv")))
    assert len(other.features) == len(found.features) and np.isfinite(other.features).all()
    assert any("was not in the pretraining data" in warning for warning in other.report.warnings)
