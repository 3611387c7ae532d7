"""Which domain finds what: three labels in the same recordings, each carried in one way alone.

Shape letters: N subjects, C channels, T time samples.
"""

import numpy as np
import pytest
import torch

from mcsp.batch import Batch, Signal
from mcsp.config import ModelConfig
from mcsp.model.mcsp import MCSP
from mcsp.schema import DOMAINS, Domain
from tests.claims.planted import SFREQ, auroc, encoded, positions_of, rows_of, signal_of, three_labels, train

N = 160
FOUND, CHANCE = 0.85, 0.7  # chance has a standard error of 0.046 at 160 people
# What a domain cannot know by construction: the temporal one sees waveforms and so may see everything.
BLIND: list[tuple[Domain, Domain]] = [
    ("spatial", "spectral"),
    ("spatial", "temporal"),
    ("spectral", "spatial"),
    ("spectral", "temporal"),
]


@pytest.fixture(scope="module")
def people() -> tuple[Signal, dict[Domain, np.ndarray]]:
    x_NCT, labels = three_labels(N, seed=1)
    return signal_of(x_NCT, SFREQ, positions_of()), labels


def read(model: MCSP, people: tuple[Signal, dict[Domain, np.ndarray]]) -> dict[tuple[Domain, Domain], float]:
    """AUROC by (domain that reads, label that is read)."""
    signal, labels = people
    found = {}
    for domain in DOMAINS:
        x_NF = encoded(model, "eeg", domain, signal)
        found |= {(domain, label): auroc(x_NF, y_N) for label, y_N in labels.items()}
    return found


def check(found: dict[tuple[Domain, Domain], float]) -> None:
    assert {d: found[d, d] for d in DOMAINS if found[d, d] < FOUND} == {}
    assert {pair: found[pair] for pair in BLIND if not 1 - CHANCE < found[pair] < CHANCE} == {}


def test_each_domain_finds_what_it_is_for_and_no_other_before_training(people) -> None:
    torch.manual_seed(0)
    check(read(MCSP(ModelConfig(modalities=("eeg",))).eval(), people))


@pytest.mark.slow
def test_training_keeps_what_each_domain_finds(people) -> None:
    """Trained on other people without their labels, then read as before."""
    x_NCT, _ = three_labels(128, seed=2)
    signal = signal_of(x_NCT, SFREQ, positions_of())

    def batch_of(step: int) -> Batch:
        rows = np.random.default_rng(step).choice(len(signal), 24, replace=False)
        subject = torch.from_numpy(rows)
        return Batch({"eeg": rows_of(signal, rows, step)}, subject, torch.zeros_like(subject), tuple("k" * 24))

    check(read(train(ModelConfig(modalities=("eeg",)), batch_of, 40), people))
