"""A leak that is put in is found, and an encoder that has seen nobody shows none."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mcsp.config import EvaluateConfig, ModelConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.recording import encode_windows, split_parts
from mcsp.evaluate import evaluate as room
from mcsp.evaluate.evaluate import membership, own_similarity
from mcsp.evaluate.features import learned_parts, read_windows
from mcsp.evaluate.methods import Block, Encoded
from mcsp.evaluate.units import Labelled, read_labels
from mcsp.model.mcsp import MCSP
from mcsp.schema import DOMAINS, Modality


@pytest.fixture(scope="module")
def config(corpus_dir: Path) -> EvaluateConfig:
    return EvaluateConfig(
        model_dir=Path("m"), out_dir=Path("o"), corpus_dir=corpus_dir, windows_per_recording=2,
        window_seconds={"eeg": 10, "fmri": 30},
    )  # fmt: skip


def described(model: MCSP, corpus: Corpus, labelled: Labelled, config: EvaluateConfig) -> Encoded:
    windows: dict[Modality, np.ndarray] = {}
    parts = learned_parts(model, corpus, labelled.units, config, "test", windows)
    return Encoded({m: {name: Block(x_NF) for name, x_NF in of.items()} for m, of in parts.items()}, {}, windows)


def similarity(encoded: Encoded) -> np.ndarray:
    z_NK = [encoded.learned["fmri"][f"{domain}_z"].x_NF for domain in DOMAINS]
    return own_similarity(z_NK, encoded.windows["fmri"])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_encoder_that_has_seen_nobody_shows_none_and_people_who_are_more_alike_are_found_out(
    corpus_dir: Path, config: EvaluateConfig, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Who counts as seen is drawn: the AUROC then has mean 1/2 and the standard deviation of Mann and Whitney."""
    torch.manual_seed(seed)
    corpus, model = Corpus(corpus_dir), MCSP(ModelConfig(modalities=("fmri",))).eval()
    labelled = read_labels(corpus, "diagnosis")
    encoded = described(model, corpus, labelled, config)
    own_N = similarity(encoded)
    subjects, rng = np.array(labelled.subjects), np.random.default_rng(seed)
    assert len(set(subjects)) == len(subjects) == 32

    def found(similarity_N: np.ndarray, seen: np.ndarray) -> dict:
        monkeypatch.setattr(room, "own_similarity", lambda *_: similarity_N)
        (row,) = membership({"any": encoded}, labelled, frozenset(seen))
        assert (row["seen"], row["unseen"]) == (16, 16)
        return row["auroc"]

    draws = [rng.permutation(subjects)[:16] for _ in range(40)]
    rows = [found(own_N, seen) for seen in draws]
    value = np.array([row["value"] for row in rows])
    deviation = np.sqrt(33 / (12 * 16 * 16))
    assert abs(value.mean() - 0.5) < 4 * deviation / np.sqrt(len(draws))
    assert 0.6 * deviation < value.std() < 1.4 * deviation
    assert sum(row["ci_low"] < 0.5 < row["ci_high"] for row in rows) >= 32  # of 40 intervals of 95 %
    others = np.setdiff1d(subjects, draws[0])
    assert found(own_N, others)["value"] == pytest.approx(1 - value[0], abs=1e-12)
    assert found(own_N + np.isin(subjects, draws[0]) * 2, draws[0])["value"] == 1.0


def test_similarity_is_the_cosine_of_windows_and_unknown_groups_give_no_row(
    corpus_dir: Path, config: EvaluateConfig
) -> None:
    corpus, model = Corpus(corpus_dir), MCSP(ModelConfig(modalities=("fmri",))).eval()
    labelled = read_labels(corpus, "diagnosis").part(np.arange(3))
    encoded = described(model, corpus, labelled, config)
    own_N = similarity(encoded)
    for i, unit in enumerate(labelled.units):
        windows = read_windows(corpus, [unit], "fmri", config, "test")
        first, second = (vector_F for _, vector_F in encode_windows(model, "fmri", windows, 2, kind="learned"))
        z = [split_parts(np.stack([first, second]), model.learned_widths("fmri"))[f"{d}_z"] for d in DOMAINS]
        assert own_N[i] == pytest.approx(np.mean([z_2K[0] @ z_2K[1] for z_2K in z]), abs=1e-5)
    one = config.model_copy(update={"windows_per_recording": 1})
    assert np.isnan(similarity(described(model, corpus, labelled, one))).all()
    assert membership({"a": encoded}, labelled, None) == []
    assert membership({"a": encoded}, labelled, frozenset(labelled.subjects[:1])) == []
