"""Measures without labels, against what they are by definition and by fitting once for each person left out."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from mcsp.training.validation.measures import effective_rank, half_error, identification, site_accuracy
from mcsp.training.validation.validate import _of_domain


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_effective_rank_counts_directions() -> None:
    assert effective_rank(torch.ones(10, 4)) == pytest.approx(1.0)
    assert effective_rank(torch.eye(6)) == pytest.approx(6.0)
    assert effective_rank(torch.diag(torch.tensor([1.0, 1.0, 0.0]))) == pytest.approx(2.0)
    assert effective_rank(torch.zeros(4, 3)) == 1.0


def test_of_nobody_there_is_nothing_to_say() -> None:
    """The rank of no rows was 1, as if all were alike."""
    nobody = torch.zeros(0, dtype=torch.int64)
    assert _of_domain(torch.zeros(2, 0, 4), torch.zeros(0, 3), [torch.zeros(2, 0, 5)], nobody) == {}


def test_people_are_found_again_by_what_sets_them_apart() -> None:
    person, common = noise(20, 8), 50 * noise(1, 8, seed=1)
    halves = [person + common + 0.1 * noise(20, 8, seed=s) for s in (2, 3)]
    assert identification(*halves) == 1.0
    assert identification(halves[0], torch.ones(20, 8)) == pytest.approx(1 / 20)
    assert identification(noise(20, 8, seed=4), noise(20, 8, seed=5)) < 0.2


def test_error_across_halves_is_that_of_fitting_without_the_person() -> None:
    h, target = noise(2, 12, 5), noise(2, 12, 7, seed=1)
    target[..., :2] += 3 * h.flip(0)[..., :2]
    rows, goal, person = h.flatten(0, 1).numpy(), target.flip(0).flatten(0, 1).numpy(), np.tile(np.arange(12), 2)
    # In closed form centre and strength are those of all rows: here they are given to the explicit fits.
    strength = ((rows - rows.mean(0)) ** 2).sum(1).mean()
    error = base = 0.0
    for p in range(12):
        out = person == p
        fit = Ridge(alpha=strength).fit(rows[~out], goal[~out])
        error += ((goal[out] - fit.predict(rows[out])) ** 2).sum()
        base += ((goal[out] - goal[~out].mean(0)) ** 2).sum()
    assert half_error(h, target) == pytest.approx(error / base, rel=1e-9)


def test_error_across_halves_is_one_where_h_says_nothing() -> None:
    person = noise(1, 40, 6)
    target = person + 0.3 * noise(2, 40, 6, seed=1)
    assert half_error(torch.ones(2, 40, 3), target) == pytest.approx(1.0)
    assert half_error(noise(2, 40, 6, seed=3), target) > 0.9
    assert half_error(person + 0.1 * noise(2, 40, 6, seed=2), target) < 0.5


def test_site_is_told_where_it_is_in_the_embedding() -> None:
    site = torch.tensor([0] * 30 + [1] * 6 + [2] * 4)
    x = noise(40, 10)
    assert site_accuracy(x, site) == pytest.approx(1 / 3, abs=0.2)
    assert site_accuracy(x + 8 * torch.eye(10, dtype=torch.float64)[site], site) > 0.95
    assert site_accuracy(x, torch.tensor([7] * 38 + [8, 8])) is None, "one site of two people"
    assert site_accuracy(x, torch.tensor([7] * 37 + [8, 8, 8])) is not None, "three are enough"
    assert site_accuracy(x, torch.tensor([7] * 40)) is None


def test_effective_rank_is_the_exponential_of_an_entropy() -> None:
    share = np.array([0.75, 0.25])
    expected = np.exp(-(share * np.log(share)).sum())
    assert effective_rank(torch.diag(torch.tensor([-6.0, 2.0]))) == pytest.approx(expected)
    assert effective_rank(1e-20 * torch.diag(torch.tensor([6.0, 2.0]))) == pytest.approx(expected)


def test_identification_is_the_mean_of_both_directions() -> None:
    """Cosines without the mean over people, written out; one direction alone has another share of hits."""
    first, second = noise(40, 3, seed=9) + 5, noise(40, 3, seed=7) - 2
    second += 1.5 * first
    a, b = (x.numpy() - x.numpy().mean(0) for x in (first, second))
    cosine = (a @ b.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    hits = [(c.argmax(1) == np.arange(40)).mean() for c in (cosine, cosine.T)]
    assert hits[0] != hits[1] and identification(first, second) == pytest.approx(sum(hits) / 2)


def test_site_accuracy_is_that_of_fitting_without_the_person() -> None:
    """Three sites that count and one of two people that does not, of sizes far apart."""
    site = np.array([4] * 9 + [1] * 3 + [7] * 2 + [2] * 5)
    x = noise(19, 4, seed=8).numpy() + 1.2 * np.eye(8)[site][:, [1, 2, 4, 7]]
    kept = site != 7
    rows, names = x[kept], [1, 2, 4]
    member = np.stack([site[kept] == name for name in names], axis=1).astype(float)
    share = member.mean(0)
    target = (member - share) / np.sqrt(share * (1 - share))
    strength = ((rows - rows.mean(0)) ** 2).sum(1).mean()
    hits = []
    for person in range(len(rows)):
        others = np.arange(len(rows)) != person
        # In closed form centre and strength are those of all rows; left out is the error of the person alone.
        fit = Ridge(alpha=strength).fit(rows[others], target[others])
        hits.append(member[person, fit.predict(rows[[person]])[0].argmax()])
    expected = np.mean([np.mean(np.array(hits)[member[:, k] == 1]) for k in range(3)])
    assert 0 < expected < 1
    assert site_accuracy(torch.from_numpy(x), torch.from_numpy(site)) == pytest.approx(expected)
