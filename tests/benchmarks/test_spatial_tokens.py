"""Scores of the study of spatial tokens on features whose answer is known."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

STUDIES = Path(__file__).parents[2] / "benchmarks" / "people"
SITES = [f"site-{i % 3}" for i in range(60)]


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STUDIES)
        yield importlib.import_module("spatial_tokens")


def test_halves_find_each_other_by_what_a_person_has_of_its_own_alone(study: ModuleType) -> None:
    rng = np.random.default_rng(0)
    own_NF, noise_N2F = rng.normal(size=(60, 1, 30)), rng.normal(size=(60, 2, 30))
    of_site_NF = 50 * rng.normal(size=(3, 30))[[int(site[-1]) for site in SITES]][:, None]
    assert study.identification(of_site_NF + own_NF + 0.1 * noise_N2F, SITES) == 1.0
    assert study.identification(of_site_NF + noise_N2F, SITES) < 0.25, "chance is 0.05"


def test_a_site_is_told_where_features_hold_it(study: ModuleType) -> None:
    noise_NF = np.random.default_rng(1).normal(size=(60, 20))
    of_site_NF = 4 * np.eye(20)[[int(site[-1]) for site in SITES]]
    assert study.site_auroc(noise_NF + of_site_NF, SITES) > 0.95
    assert 0.3 < study.site_auroc(noise_NF, SITES) < 0.7


def test_a_start_made_of_few_people_tells_them_and_one_of_what_all_share_does_not(study: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    alone_N1I = torch.randn(40, 1, 60, generator=generator, dtype=torch.float64)
    shared_2I = torch.randn(2, 60, generator=generator, dtype=torch.float64)
    shared_N8I = torch.randn(40, 8, 2, generator=generator, dtype=torch.float64) @ shared_2I
    for rows, low, high in ((alone_N1I, 0.95, 1.0), (torch.cat([shared_N8I, 0.1 * alone_N1I], 1), 0.3, 0.7)):
        assert low <= study.membership_of_start(rows.mT @ rows, 16 if low > 0.9 else 2) <= high
