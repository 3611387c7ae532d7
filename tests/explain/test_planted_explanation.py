"""An effect planted at one electrode, in one band, and at the edges among six parcels is shown there and nowhere else.

Shape letters: C channels, K bands, Q edges.

Covers: mcsp/explain/attribution.py
"""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from mcsp.config import ExplainConfig, ModelConfig
from mcsp.explain.attribution import as_matrix, pattern
from mcsp.explain.explain import RANDOM_ENCODER, SHUFFLED_LABELS
from mcsp.model.mcsp import MCSP
from mcsp.model.weights import write_pretrained
from tests.explain.planted_corpus import (
    ELECTRODES,
    PARCELS,
    PLANTED_BAND,
    PLANTED_ELECTRODE,
    PLANTED_PARCELS,
    PlantedCorpus,
)

EEG_BANDS = ("delta", "theta", "alpha", "beta", "gamma")


def explanation(folder: Path, model: ModelConfig, pairs: int) -> dict:
    """Of an encoder of random weights: its probe must be enough."""
    explain = importlib.import_module("mcsp.explain.explain")
    torch.manual_seed(7)
    write_pretrained(MCSP(model), folder / "model", {"window_seconds": {"eeg": 10.0, "fmri": 240.0}})
    config = ExplainConfig(
        model_dir=folder / "model", corpus_dir=folder, out_dir=folder / "out", label="diagnosis", folds=4,
        windows_per_recording=1, pairs=pairs, steps=6,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explain, "open_corpus", lambda *_: PlantedCorpus(subjects=32))
        return explain.explain(config)["modalities"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("planted")


@pytest.fixture(scope="module")
def explained(folder: Path) -> dict:
    """With what is measured beside the encoder's own features."""
    return explanation(folder, ModelConfig(), pairs=24)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Nothing is measured: all that is explained comes from the weights."""
    return explanation(tmp_path_factory.mktemp("learned"), ModelConfig(skips=()), pairs=16)


def mean_map(found: dict, kind: str | None = None) -> np.ndarray:
    """``(C, K)``, mean over sites, of the probe or of a control."""
    sites = found["sites"].values()
    return np.mean([s["attribution"] if kind is None else s["controls"][kind] for s in sites], axis=0)


def correlations(planted: np.ndarray, maps: dict[str | None, np.ndarray]) -> dict[str | None, float]:
    return {kind: float(np.corrcoef(planted.ravel(), m.ravel())[0, 1]) for kind, m in maps.items()}


def test_the_planted_electrode_and_band_stand_out_of_the_attribution(explained: dict) -> None:
    eeg = explained["eeg"]
    maps = {kind: mean_map(eeg, kind) for kind in (None, RANDOM_ENCODER, SHUFFLED_LABELS)}
    place = ELECTRODES.index(PLANTED_ELECTRODE), eeg["bands"].index(PLANTED_BAND)
    value_CK = maps[None]
    assert np.unravel_index(value_CK.argmax(), value_CK.shape) == place
    assert value_CK[place] > 4 * np.sort(np.abs(value_CK), axis=None)[-2]
    planted_CK = np.zeros_like(value_CK)
    planted_CK[place] = 1
    found = correlations(planted_CK, maps)
    assert found[None] > 0.85
    assert value_CK[place] > 2 * maps[SHUFFLED_LABELS][place]
    assert value_CK[place] > maps[RANDOM_ENCODER][place]  # which keeps the measured features
    assert found[None] > found[SHUFFLED_LABELS]


def test_an_attribution_to_the_electrode_falls_with_the_weights_it_comes_from(learned: dict) -> None:
    eeg = learned["eeg"]
    maps = {kind: mean_map(eeg, kind) for kind in (None, RANDOM_ENCODER, SHUFFLED_LABELS)}
    place = ELECTRODES.index(PLANTED_ELECTRODE), eeg["bands"].index(PLANTED_BAND)
    planted_CK = np.zeros_like(maps[None])
    planted_CK[place] = 1
    assert maps[None].argmax() == planted_CK.argmax()
    found = correlations(planted_CK, maps)
    assert found[None] > 0.85
    assert maps[None][place] > 2 * max(maps[kind][place] for kind in (RANDOM_ENCODER, SHUFFLED_LABELS))
    assert found[None] > max(found[kind] for kind in (RANDOM_ENCODER, SHUFFLED_LABELS))


def test_an_attribution_to_parcels_and_edges_falls_with_the_weights_it_comes_from(learned: dict) -> None:
    fmri = learned["fmri"]
    maps = {kind: mean_map(fmri, kind).sum(1) for kind in (None, RANDOM_ENCODER, SHUFFLED_LABELS)}
    first = np.argsort(-maps[None])[: len(PLANTED_PARCELS)]
    assert len(set(first) & set(PLANTED_PARCELS)) >= 4
    found = correlations(np.isin(np.arange(len(PARCELS)), PLANTED_PARCELS), maps)
    assert found[None] > max(found[kind] for kind in (RANDOM_ENCODER, SHUFFLED_LABELS)) + 0.4
    (edges,) = fmri["patterns"].values()
    planted_Q, patterns = edges_of(edges)
    hits = {kind: int(planted_Q[np.argsort(-q)[:15]].sum()) for kind, q in patterns.items()}
    assert hits[None] >= 10 and max(hits[RANDOM_ENCODER], hits[SHUFFLED_LABELS]) <= 3
    found = correlations(planted_Q, patterns)
    assert found[None] > max(found[kind] for kind in (RANDOM_ENCODER, SHUFFLED_LABELS)) + 0.1


def edges_of(pattern: dict) -> tuple[np.ndarray, dict[str | None, np.ndarray]]:
    """Which edges are planted ``(Q,)``, and the patterns of the probe and of its controls."""
    a, b = np.triu_indices(len(PARCELS), 1)
    planted_Q = np.isin(a, PLANTED_PARCELS) & np.isin(b, PLANTED_PARCELS)
    controls = {kind: np.array(c["pattern"]) for kind, c in pattern["controls"].items()}
    return planted_Q, {None: np.array(pattern["pattern"]), **controls}


def test_the_planted_parcels_are_among_the_first_of_the_attribution(explained: dict) -> None:
    fmri = explained["fmri"]
    maps = {kind: mean_map(fmri, kind).sum(1) for kind in (None, RANDOM_ENCODER, SHUFFLED_LABELS)}
    first = np.argsort(-maps[None])[: len(PLANTED_PARCELS)]
    assert len(set(first) & set(PLANTED_PARCELS)) >= 5
    found = correlations(np.isin(np.arange(len(PARCELS)), PLANTED_PARCELS), maps)
    assert found[None] > 0.7
    assert found[None] > found[SHUFFLED_LABELS] + 0.4
    # What is measured has no weights to randomise: that control has a like map, of a smaller size.
    size = {kind: m[list(PLANTED_PARCELS)].sum() for kind, m in maps.items()}
    assert size[None] > 1.2 * size[RANDOM_ENCODER]


def test_the_planted_edges_are_the_first_of_the_pattern(explained: dict) -> None:
    (fmri,) = explained["fmri"]["patterns"].values()
    assert fmri["units"] == 64
    planted_Q, patterns = edges_of(fmri)
    hits = {kind: int(planted_Q[np.argsort(-q)[:15]].sum()) for kind, q in patterns.items()}
    assert hits[None] >= 14
    assert hits[SHUFFLED_LABELS] <= 3
    found = correlations(planted_Q, patterns)
    assert found[None] > found[SHUFFLED_LABELS] + 0.1  # the random encoder's measured parts find them too


def test_the_planted_band_power_is_the_first_of_the_pattern(explained: dict) -> None:
    (eeg,) = explained["eeg"]["patterns"].values()
    pattern_CK = np.reshape(eeg["pattern"], (len(ELECTRODES), len(EEG_BANDS)))
    place = ELECTRODES.index(PLANTED_ELECTRODE), EEG_BANDS.index(PLANTED_BAND)
    assert np.unravel_index(pattern_CK.argmax(), pattern_CK.shape) == place
    assert pattern_CK[place] > 1.5 * np.sort(np.abs(pattern_CK), axis=None)[-2]
    shuffled_CK = np.reshape(eeg["controls"][SHUFFLED_LABELS]["pattern"], pattern_CK.shape)
    assert abs(shuffled_CK[place]) < 0.5 * pattern_CK[place]


def test_both_pictures_of_each_modality_are_in_the_report(explained: dict, folder: Path) -> None:
    out = folder / "out"
    names = {"attribution.json", "report.html", *(f"{m}{k}.png" for m in ("eeg", "fmri") for k in ("", "_patterns"))}
    assert {p.name for p in out.iterdir()} == names
    text = (out / "report.html").read_text()
    assert text.count("What correlates with the score") == 2
    assert (text.count("<img"), text.count("<svg")) == (4, 2)  # maps, and sums by band


def test_a_pattern_ignores_sites_constants_and_missing_quantities() -> None:
    rng = np.random.default_rng(0)
    score_N = rng.normal(size=40)
    sites = ["a"] * 20 + ["b"] * 20
    shift_N = np.repeat([0.0, 50.0], 20)
    quantity_NQ = np.c_[score_N + shift_N, -score_N, np.full(40, 3.3), np.where(np.arange(40) == 3, np.nan, score_N)]
    np.testing.assert_allclose(pattern(quantity_NQ, score_N + 7 * shift_N, sites), [1, -1, 0, 0], atol=1e-9)
    matrix_CC = as_matrix(np.array([1.0, 2.0, 3.0]), 3)
    assert matrix_CC.tolist() == [[0, 1, 2], [1, 0, 3], [2, 3, 0]]
