"""Features of units: windows, averages, whole recordings, missing modalities.

Covers: mcsp/encode/recording.py
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mcsp.batch import collate
from mcsp.config import EvaluateConfig, ModelConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.recording import OF_WINDOWS, encode_windows, split_parts
from mcsp.evaluate.features import learned_parts, measured_parts, unit_features
from mcsp.evaluate.measured import measure
from mcsp.evaluate.units import Unit
from mcsp.model.mcsp import MCSP
from mcsp.schema import Recording, Window
from tests.test_batch import window


def recording(**changes: object) -> Recording:
    """Ten minutes of one EEG channel, all of it valid."""
    plain = Recording(
        key="a_1", shard="train-00000.tar", member="a_1.eeg-0.npy", modality="eeg", site="a", subject="1", session="",
        task="rest", run="", split="train", sfreq=200.0, unit="uV", scale=1.0, n_samples=120000, n_channels=1,
        dtype="float16", byte_offset=0, crc_offset=0, block_samples=2000, simulated=True, onset_seconds=0.0,
        channels=["Cz"], positions_mm=[0.0, 28.0, 140.0], channel_good=[True], valid_spans=[0, 120000],
    )  # fmt: skip
    return replace(plain, **changes)


def config_for(corpus_dir: Path, **changes: object) -> EvaluateConfig:
    values = {"window_seconds": {"eeg": 10, "fmri": 30}, "windows_per_recording": 2, **changes}
    return EvaluateConfig(model_dir=Path("m"), out_dir=Path("o"), corpus_dir=corpus_dir, **values)


def units_of(corpus: Corpus) -> list[Unit]:
    return [Unit(key, tuple(recordings)) for key, recordings in corpus.samples().items()]


@pytest.fixture(scope="module")
def model() -> MCSP:
    torch.manual_seed(0)
    return MCSP(ModelConfig()).eval()


def test_features_are_the_mean_over_windows_whatever_the_batch_size(corpus_dir: Path, model: MCSP) -> None:
    corpus = Corpus(corpus_dir)
    units = units_of(corpus)[::8]
    config = config_for(corpus_dir)
    found = unit_features(model, corpus, units, config)
    assert found.keys() == {"eeg", "fmri"}
    alone = unit_features(model, corpus, units, config_for(corpus_dir, batch_size=1))
    for modality, x_NF in found.items():
        assert x_NF.shape[0] == len(units)
        assert sum(model.feature_widths(modality).values()) == x_NF.shape[1]
        np.testing.assert_allclose(x_NF, alone[modality], rtol=1e-3, atol=1e-3)
    eeg = units[1].of("eeg")[0]
    length = round(10 * eeg.sfreq)
    windows = [corpus.read_window(eeg, s, length) for s in (0, eeg.n_samples - length)]
    with torch.inference_mode():
        parts = [model.features(collate([[w]]).signals)["eeg"][0].numpy() for w in windows]
    np.testing.assert_allclose(found["eeg"][1], np.mean(parts, axis=0), rtol=1e-3, atol=1e-3)


def test_learned_parts_are_means_over_windows_and_measured_ones_are_of_the_whole_recording(
    corpus_dir: Path, model: MCSP
) -> None:
    corpus = Corpus(corpus_dir)
    units = units_of(corpus)[:2]
    config = config_for(corpus_dir)
    of_windows = unit_features(model, corpus, units, config)
    learned, measured = (
        learned_parts(model, corpus, units, config, "learned"),
        measured_parts(model, corpus, units, config),
    )
    for modality in ("eeg", "fmri"):
        assert list(learned[modality]) + list(measured[modality]) == list(model.feature_widths(modality))
        first = np.hstack(list(learned[modality].values()))
        np.testing.assert_allclose(first, of_windows[modality][:, : first.shape[1]], rtol=1e-3, atol=1e-3)
        recording = units[1].of(modality)[0]
        whole = corpus.read_window(recording, 0, recording.n_samples)
        with torch.inference_mode():
            expected = model.features(collate([[whole]]).signals)[modality][0, first.shape[1] :].numpy()
        of_whole = split_parts(expected[None], model.measured_widths(modality))
        in_windows = split_parts(of_windows[modality][1:2, first.shape[1] :], model.measured_widths(modality))
        for name, x_NF in measured[modality].items():
            same, other = (in_windows, of_whole) if name in OF_WINDOWS else (of_whole, in_windows)
            np.testing.assert_allclose(x_NF[1], same[name][0], atol=1e-4)
            assert np.abs(x_NF[1] - other[name][0]).max() > 1e-3


def test_no_measured_part_tells_how_long_a_recording_is(model: MCSP) -> None:
    """Noise of 20 s and of 60 s: means over people differ by chance alone."""
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(16, 3))
    positions *= 90 / np.linalg.norm(positions, axis=1, keepdims=True)
    for name in [n for n in model.measured_widths("eeg") if n not in OF_WINDOWS]:
        means = []
        for seconds in (20, 60):
            found = []
            for _ in range(6):
                n = 200 * seconds
                whole = {"n_channels": 16, "channels": [str(i) for i in range(16)], "channel_good": [True] * 16}
                whole |= {"positions_mm": positions.ravel().tolist(), "n_samples": n, "valid_spans": [0, n]}
                window = Window(rng.normal(size=(n, 16)).astype(np.float32) * 10, recording(**whole), 0)
                with torch.inference_mode():
                    measured = model.measured({"eeg": collate([[window]]).signals["eeg"]})["eeg"].numpy()
                found.append(split_parts(measured, model.measured_widths("eeg"))[name][0])
            means.append(np.mean(found, axis=0))
        # The logarithm of a mean power grows by 0.007 with the number of frames; people differ by some 0.3.
        bound = 0.02 if name.endswith("power") else 0.35 * np.std(found, axis=0).mean()
        assert abs((means[0] - means[1]).mean()) < bound, name


def test_a_missing_modality_is_a_row_of_nan(corpus_dir: Path, model: MCSP) -> None:
    corpus = Corpus(corpus_dir)
    units = units_of(corpus)[:3]
    units[1] = replace(units[1], recordings=tuple(units[1].of("eeg")))
    learned = learned_parts(model, corpus, units, config_for(corpus_dir), "learned")
    at_anchors = measured_parts(model, corpus, units, config_for(corpus_dir))
    for found in (
        unit_features(model, corpus, units, config_for(corpus_dir)),
        {m: np.hstack(list(parts.values())) for m, parts in learned.items()},
        {m: np.hstack(list(parts.values())) for m, parts in at_anchors.items()},
        {m: np.hstack(list(of.features.values())) for m, of in measure(corpus, units).items()},
        {m: of.covariance_NCC for m, of in measure(corpus, units).items()},
    ):
        missing = np.isnan(found["fmri"].reshape(3, -1)).all(axis=1)
        assert missing.tolist() == [False, True, False]
        assert np.isfinite(found["eeg"]).all()


def test_blocks_of_a_model_without_the_spatial_domain(corpus_dir: Path) -> None:
    flat = MCSP(ModelConfig(domains=("temporal", "spectral"), modalities=("fmri",))).eval()
    corpus = Corpus(corpus_dir)
    found = unit_features(flat, corpus, units_of(corpus)[:1], config_for(corpus_dir))
    assert list(flat.feature_widths("fmri")) == [
        *("temporal", "spectral", "temporal_z", "spectral_z", "band_power", "relative_power")
    ]
    assert found["fmri"].shape[1] == sum(flat.feature_widths("fmri").values())


def test_a_modality_without_a_window_length_is_refused(corpus_dir: Path, model: MCSP) -> None:
    config = config_for(corpus_dir, window_seconds={"eeg": 10})
    corpus = Corpus(corpus_dir)
    with pytest.raises(ValueError, match="window_seconds: expected a length for fmri"):
        unit_features(model, corpus, units_of(corpus)[:1], config)


def test_windows_that_hold_nothing_are_left_out_and_named_and_the_others_keep_their_owner(
    caplog: pytest.LogCaptureFixture,
) -> None:
    windows = [(n, window("eeg", 2000, 4, seed=n)) for n in range(5)]
    windows[1] = 1, replace(windows[1][1], x_TC=np.zeros((2000, 4), np.float32))
    windows[4] = 4, replace(windows[4][1], x_TC=np.zeros((2000, 4), np.float32))
    model = MCSP(ModelConfig()).eval()
    found = dict(encode_windows(model, "eeg", windows, 2, lambda n: f"file {n}"))
    assert list(found) == [0, 2, 3] and [r.args[0] for r in caplog.records] == ["file 1", "file 4"]  # type: ignore[index]
    [(_, alone_F)] = encode_windows(model, "eeg", [windows[3]], 1)
    np.testing.assert_allclose(found[3], alone_F, rtol=1e-4, atol=1e-5)
