"""Ways to learn from halves, on people whose answer is known."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mcsp.evaluate.readout.grams import combined, gram

PEOPLE = Path(__file__).parents[2] / "benchmarks" / "people"
SITES = np.array([f"site-{i % 3}" for i in range(36)])


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PEOPLE)
        patch.syspath_prepend(PEOPLE.parent)
        yield importlib.import_module("levers")


@pytest.fixture(scope="module")
def own_NF() -> np.ndarray:
    """What 36 people have of their own, in four directions."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(36, 4)) @ rng.normal(size=(4, 300))


def stacked(first_NF: np.ndarray, second_NF: np.ndarray) -> np.ndarray:
    return gram(np.concatenate([(first_NF + second_NF) / 2, first_NF, second_NF]))


@pytest.fixture(scope="module")
def gram_3N3N(own_NF: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(1)
    return stacked(*(own_NF + 2 * rng.normal(size=own_NF.shape) for _ in range(2)))


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_layer_of_all_numbers_is_the_denoiser_to_the_whole(
    study: ModuleType, gram_3N3N: np.ndarray, shuffled: bool
) -> None:
    train = np.arange(30)
    span = study.Span(gram_3N3N, SITES, train, shuffled, True)
    found_NN = combined([gram(span.whole_NP @ span.denoiser(10**6)[0])], train)
    np.testing.assert_allclose(found_NN, study.to_whole(gram_3N3N, SITES, shuffled)(train), atol=1e-8)


def test_the_whole_of_another_person_is_another_target(study: ModuleType, gram_3N3N: np.ndarray) -> None:
    own, other = (study.Span(gram_3N3N, SITES, np.arange(30), shuffled, True) for shuffled in (False, True))
    np.testing.assert_array_equal(own.halves_AP, other.halves_AP)

    def alike(span: object) -> np.ndarray:
        """Cosines of halves and targets."""
        x_AP, y_AP = (x / np.linalg.norm(x, axis=1)[:, None] for x in (span.halves_AP, span.target_AP))
        return np.sum(x_AP * y_AP, axis=1)

    assert alike(own).min() > 0.5 and np.abs(alike(other)).mean() < 0.3


def test_people_stand_out_by_what_both_halves_have_and_sites_do_not_count(
    study: ModuleType, own_NF: np.ndarray, gram_3N3N: np.ndarray
) -> None:
    rng, rows = np.random.default_rng(2), np.arange(36)
    of_site_NF = 50 * rng.normal(size=(3, 300))[[int(site[-1]) for site in SITES]]
    noise = stacked(*(of_site_NF + rng.normal(size=own_NF.shape) for _ in range(2)))
    assert abs(study.found_again(noise, SITES, rows)) < 0.5
    plain = study.found_again(gram_3N3N, SITES, rows)
    assert plain > 2
    moved = stacked(*(of_site_NF + own_NF + 2 * rng.normal(size=own_NF.shape) for _ in range(2)))
    assert study.found_again(moved, SITES, rows) == pytest.approx(plain, rel=0.2)


def test_the_share_is_large_where_something_of_people_is_learned_and_none_where_it_is_against_it(
    study: ModuleType, own_NF: np.ndarray, gram_3N3N: np.ndarray
) -> None:
    rng, train, asked = np.random.default_rng(3), np.arange(30), []

    def learned_of(rows: np.ndarray) -> np.ndarray:
        asked.append(set(rows))
        return clean

    clean = stacked(own_NF, own_NF)
    assert study.Shared(gram_3N3N, SITES, learned_of).share(train) > 0.5
    assert not asked[0] & asked[1] and asked[0] | asked[1] == set(train), "two parts, each judged by the other"
    noise = stacked(*(rng.normal(size=own_NF.shape) for _ in range(2)))
    shared = study.Shared(gram_3N3N, SITES, lambda rows: noise)
    assert shared.share(train) < 0.5
    against = stacked(*(sign * own_NF + rng.normal(size=own_NF.shape) for sign in (1, -1)))
    shared = study.Shared(gram_3N3N, SITES, lambda rows: against)
    assert shared.share(train) == 0
    np.testing.assert_allclose(shared.of(train), combined([gram_3N3N[:36, :36]], train), atol=1e-9)
