"""Which domain finds what: three labels in the same recordings, each carried in one way alone.

Shape letters: N subjects, C channels, T time samples.
"""

import numpy as np
import pytest
import torch

from mcsp.batch import Batch, Signal
from mcsp.config import ModelConfig
from mcsp.model.mcsp import MCSP
from mcsp.schema import DOMAINS, MODALITIES, Domain, Modality
from tests.claims.planted import auroc, encoded, rows_of, three_labels, train

N = 160
FOUND, CHANCE = 0.85, 0.7  # chance has a standard error of 0.046 at 160 people
# What a domain cannot know by construction: the temporal one sees waveforms and so may see everything.
BLIND: list[tuple[Domain, Domain]] = [
    ("spatial", "spectral"),
    ("spatial", "temporal"),
    ("spectral", "spatial"),
    ("spectral", "temporal"),
]


def small(modality: Modality) -> ModelConfig:
    """With as many anchors for BOLD as for EEG: the probe has fewer numbers to fit."""
    return ModelConfig(modalities=(modality,), fmri_anchors=32)


People = tuple[Modality, Signal, dict[Domain, np.ndarray]]


@pytest.fixture(scope="module", params=MODALITIES)
def people(request: pytest.FixtureRequest) -> People:
    return request.param, *three_labels(request.param, N, seed=1)


def read(model: MCSP, people: People) -> dict[tuple[Domain, Domain], float]:
    """AUROC by (domain that reads, label that is read)."""
    modality, signal, labels = people
    found = {}
    for domain in DOMAINS:
        x_NF = encoded(model, modality, domain, signal)
        found |= {(domain, label): auroc(x_NF, y_N) for label, y_N in labels.items()}
    return found


def check(found: dict[tuple[Domain, Domain], float]) -> None:
    assert {d: found[d, d] for d in DOMAINS if found[d, d] < FOUND} == {}
    assert {pair: found[pair] for pair in BLIND if not 1 - CHANCE < found[pair] < CHANCE} == {}


def test_each_domain_finds_what_it_is_for_and_no_other_before_training(people: People) -> None:
    torch.manual_seed(0)
    check(read(MCSP(small(people[0])).eval(), people))


@pytest.mark.slow
def test_training_keeps_what_each_domain_finds(people: People) -> None:
    """Trained on other people without their labels, then read as before."""
    modality = people[0]
    signal, _ = three_labels(modality, 128, seed=2)

    def batch_of(step: int) -> Batch:
        rows = np.random.default_rng(step).choice(len(signal), 24, replace=False)
        subject = torch.from_numpy(rows)
        return Batch({modality: rows_of(signal, rows, step)}, subject, torch.zeros_like(subject), tuple("k" * 24))

    check(read(train(small(modality), batch_of, 40), people))
