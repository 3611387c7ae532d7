"""Features and their classical counterparts: windows, averages, missing modalities, common positions.

Covers: mcsp/evaluate/baselines.py, mcsp/encode/windows.py
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mcsp.batch import collate
from mcsp.config import EvaluateConfig, ModelConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.evaluate.baselines import (
    SCALP_REGIONS_MM,
    anchor_connectivity,
    brain_lattice_mm,
    classical_features,
    covariances,
    covariate_table,
    parcel_connectivity,
    same_channels,
    scalp_band_power,
)
from mcsp.evaluate.features import unit_features
from mcsp.evaluate.units import Unit
from mcsp.kernels.spectral import EEG_BANDS_HZ
from mcsp.model.mcsp import MCSP
from mcsp.schema import Recording, Window


def recording(**changes: object) -> Recording:
    """Ten minutes of one EEG channel, all of it valid."""
    plain = Recording(
        key="a_1", shard="train-00000.tar", member="a_1.eeg-0.npy", modality="eeg", site="a", subject="1", session="",
        task="rest", run="", split="train", sfreq=200.0, unit="uV", scale=1.0, n_samples=120000, n_channels=1,
        dtype="float16", byte_offset=0, crc_offset=0, block_samples=2000, simulated=True, onset_seconds=0.0,
        channels=["Cz"], positions_mm=[0.0, 28.0, 140.0], channel_good=[True], valid_spans=[0, 120000],
    )  # fmt: skip
    return replace(plain, **changes)


def window(x_TC: np.ndarray, position_C3: np.ndarray, sfreq: float, **changes: object) -> Window:
    """A window that is a whole recording."""
    n, c = x_TC.shape
    whole = {"channels": [str(i) for i in range(c)], "channel_good": [True] * c, "n_channels": c, "n_samples": n}
    whole |= {"positions_mm": position_C3.ravel().tolist(), "sfreq": sfreq, "valid_spans": [0, n], **changes}
    return Window(x_TC.astype(np.float32), recording(**whole), 0)


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


def test_a_missing_modality_is_a_row_of_nan(corpus_dir: Path, model: MCSP) -> None:
    corpus = Corpus(corpus_dir)
    units = units_of(corpus)[:3]
    units[1] = replace(units[1], recordings=tuple(units[1].of("eeg")))
    for found in (
        unit_features(model, corpus, units, config_for(corpus_dir)),
        classical_features(corpus, units, config_for(corpus_dir)),
        covariances(corpus, units, config_for(corpus_dir)),
    ):
        missing = np.isnan(found["fmri"].reshape(3, -1)).all(axis=1)
        assert missing.tolist() == [False, True, False]
        assert np.isfinite(found["eeg"]).all()


def test_blocks_of_a_model_without_the_spatial_domain(corpus_dir: Path) -> None:
    flat = MCSP(ModelConfig(domains=("temporal", "spectral"), modalities=("fmri",))).eval()
    corpus = Corpus(corpus_dir)
    found = unit_features(flat, corpus, units_of(corpus)[:1], config_for(corpus_dir))
    assert list(flat.feature_widths("fmri")) == ["temporal", "spectral", "temporal_z", "spectral_z", "band_power"]
    assert found["fmri"].shape[1] == sum(flat.feature_widths("fmri").values())


def test_a_modality_without_a_window_length_is_refused(corpus_dir: Path, model: MCSP) -> None:
    config = config_for(corpus_dir, window_seconds={"eeg": 10})
    corpus = Corpus(corpus_dir)
    with pytest.raises(ValueError, match="window_seconds: expected a length for fmri"):
        unit_features(model, corpus, units_of(corpus)[:1], config)


@pytest.mark.parametrize("sfreq", [200.0, 256.0])
def test_band_power_finds_band_and_region(sfreq: float) -> None:
    """10 Hz of 20 uV at the right occipital electrode alone: 200 uV^2 in the alpha band there."""
    positions = np.array(list(SCALP_REGIONS_MM.values()))
    x_TC = np.random.default_rng(0).normal(scale=0.1, size=(round(20 * sfreq), len(positions)))
    region = list(SCALP_REGIONS_MM).index("right occipital")
    x_TC[:, region] += 20 * np.sin(2 * np.pi * 10 * np.arange(len(x_TC)) / sfreq)
    vector = scalp_band_power(window(x_TC, positions, sfreq))
    assert vector is not None
    power_5R = vector.reshape(len(EEG_BANDS_HZ), -1)
    alpha = list(EEG_BANDS_HZ).index("alpha")
    assert np.unravel_index(power_5R.argmax(), power_5R.shape) == (alpha, region)
    single = scalp_band_power(window(x_TC[:, [region]], positions[[region]], sfreq))
    assert single is not None
    np.testing.assert_allclose(single.reshape(5, -1)[alpha], np.log10(200), atol=0.02)


def test_band_power_does_not_depend_on_the_order_of_channels_and_skips_unknown_ones() -> None:
    rng = np.random.default_rng(1)
    positions = np.array(list(SCALP_REGIONS_MM.values()))
    x_TC = rng.normal(size=(2000, 10)) * np.arange(1, 11)
    order = rng.permutation(10)
    expected = scalp_band_power(window(x_TC, positions, 200.0))
    np.testing.assert_allclose(scalp_band_power(window(x_TC[:, order], positions[order], 200.0)), expected)
    wider = np.concatenate([positions, np.full((1, 3), np.nan)])
    loud = np.concatenate([x_TC, 1000 * rng.normal(size=(2000, 1))], axis=1)
    np.testing.assert_allclose(scalp_band_power(window(loud, wider, 200.0)), expected)
    assert scalp_band_power(window(x_TC, np.full((10, 3), np.nan), 200.0)) is None


def test_connectivity_is_pearson_and_flat_parcels_count_as_zero() -> None:
    x_TC = np.random.default_rng(2).normal(size=(60, 6)).cumsum(axis=0)
    fmri = {"modality": "fmri", "unit": "percent"}
    expected = np.arctanh(np.corrcoef(x_TC.T)[np.triu_indices(6, 1)])
    found = parcel_connectivity(window(x_TC, np.zeros((6, 3)), 0.5, **fmri))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    x_TC[:, 0] = 3.0
    found = parcel_connectivity(window(x_TC, np.zeros((6, 3)), 0.5, **fmri))
    assert (found[:5] == 0).all()
    np.testing.assert_allclose(found[5:], expected[5:], rtol=1e-4)


def test_anchor_connectivity_is_comparable_across_parcellations() -> None:
    """Two parcellations of one brain agree with each other far better than either with another brain."""
    lattice = brain_lattice_mm()
    coarse, fine = lattice[::2] + 5.0, lattice[np.random.default_rng(3).permutation(len(lattice))]

    def activity(seed: int, positions: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(seed)
        sources_mm, source_T6 = rng.uniform(-60, 60, (6, 3)), rng.normal(size=(300, 6))
        return source_T6 @ np.exp(-((sources_mm[:, None] - positions[None]) ** 2).sum(-1) / (2 * 40.0**2))

    vectors = [
        anchor_connectivity(window(activity(seed, positions), positions, 0.5))
        for seed, positions in ((0, coarse), (0, fine), (1, coarse))
    ]
    same, other = (np.corrcoef(vectors[0], v)[0, 1] for v in vectors[1:])
    assert len(vectors[0]) == len(lattice) * (len(lattice) - 1) // 2
    assert same > 0.85
    assert other < same - 0.2


def test_own_channels_only_where_names_agree(corpus_dir: Path) -> None:
    corpus = Corpus(corpus_dir)
    units = units_of(corpus)
    of_a = [u for u in units if u.recordings[0].site == "simulated-a"]
    assert same_channels(of_a, "fmri")
    assert not same_channels(units, "fmri")
    n_parcels = of_a[0].of("fmri")[0].n_channels
    assert (
        classical_features(corpus, of_a[:2], config_for(corpus_dir))["fmri"].shape[1]
        == n_parcels * (n_parcels - 1) // 2
    )
    assert covariances(corpus, of_a[:2], config_for(corpus_dir))["fmri"].shape == (2, n_parcels, n_parcels)
    across = covariances(corpus, [units[0], units[-1]], config_for(corpus_dir))
    assert across["fmri"].shape == (2, len(brain_lattice_mm()), len(brain_lattice_mm()))
    assert across["eeg"].shape == (2, len(SCALP_REGIONS_MM), len(SCALP_REGIONS_MM))
    for x_NCC in across.values():
        np.testing.assert_allclose(x_NCC, x_NCC.swapaxes(1, 2))
        assert (np.linalg.eigvalsh(x_NCC) > 0).all()


def test_covariates_come_from_participants_and_from_the_quality_of_recordings(corpus_dir: Path) -> None:
    corpus = Corpus(corpus_dir)
    people = [{"age": 31, "sex": "F"}, {"age": 44.5, "sex": "M"}, {"sex": "F"}]
    units = [
        Unit(str(i), (recording(participant=json.dumps(person), quality=json.dumps({"mean_fd_mm": 0.1 * i})),))
        for i, person in enumerate(people)
    ]
    table = covariate_table(corpus, units, ["age", "sex", "mean_fd_mm"])
    np.testing.assert_allclose(table, [[31, 0, 0], [44.5, 1, 0.1], [np.nan, 0, 0.2]])
    assert covariate_table(corpus, units, []) is None
    with pytest.raises(ValueError, match="'height': expected numbers or two values, found nothing"):
        covariate_table(corpus, units, ["height"])
