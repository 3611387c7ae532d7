"""A leak that is put in is found, and an encoder that has seen nobody shows none."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mcsp.config import EvaluateConfig, ModelConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.evaluate import membership as room
from mcsp.evaluate.membership import membership, own_similarity
from mcsp.evaluate.units import Labelled, read_labels
from mcsp.model.mcsp import MCSP


@pytest.fixture(scope="module")
def config(corpus_dir: Path) -> EvaluateConfig:
    return EvaluateConfig(
        model_dir=Path("m"), out_dir=Path("o"), corpus_dir=corpus_dir, windows_per_recording=2,
        window_seconds={"eeg": 10, "fmri": 30},
    )  # fmt: skip


def test_people_whose_windows_are_more_alike_are_found_out(
    corpus_dir: Path, config: EvaluateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    corpus, model = Corpus(corpus_dir), MCSP(ModelConfig(modalities=("fmri",))).eval()
    labelled = read_labels(corpus, "diagnosis")
    seen = frozenset(labelled.subjects[::2])
    real = own_similarity

    def leaky(model: MCSP, corpus: Corpus, labelled: Labelled, *rest: object) -> np.ndarray:
        own_N = real(model, corpus, labelled, *rest)  # type: ignore[arg-type]
        return own_N + np.array([s in seen for s in labelled.subjects])

    (plain,) = membership({"untrained": model}, corpus, labelled, seen, config)
    assert plain["auroc"]["ci_low"] < 0.5 < plain["auroc"]["ci_high"]
    assert (plain["seen"], plain["unseen"]) == (16, 16)
    monkeypatch.setattr(room, "own_similarity", leaky)
    (found,) = membership({"pretrained": model}, corpus, labelled, seen, config)
    assert found["auroc"]["value"] == 1.0


def test_similarity_is_the_cosine_of_windows_and_unknown_groups_give_no_row(
    corpus_dir: Path, config: EvaluateConfig
) -> None:
    corpus, model = Corpus(corpus_dir), MCSP(ModelConfig(modalities=("fmri",))).eval()
    labelled = read_labels(corpus, "diagnosis").part(np.arange(3))
    own_N = own_similarity(model, corpus, labelled, "fmri", config)
    assert ((own_N > -1) & (own_N < 1)).all()
    one = config.model_copy(update={"windows_per_recording": 1})
    assert np.isnan(own_similarity(model, corpus, labelled, "fmri", one)).all()
    assert membership({"a": model}, corpus, labelled, None, config) == []
    assert membership({"a": model}, corpus, labelled, frozenset(labelled.subjects[:1]), config) == []
