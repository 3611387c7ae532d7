"""Gram matrices say what features say: each form against the same thing written out feature by feature."""

import numpy as np
import pytest
from pyriemann.tangentspace import TangentSpace

from mcsp.evaluate.readout.grams import (
    combined,
    denoised,
    fixed,
    gram,
    harmonized,
    scales,
    tangent,
    weighed,
    without_site_means,
)
from mcsp.evaluate.readout.harmonize import Combat

TRAIN, SITES = np.arange(0, 30), ["a"] * 18 + ["b"] * 14 + ["c"] * 8


def features(seed: int = 0, columns: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(len(SITES), columns)) + 3.0


def scaled(x_NF: np.ndarray, train: np.ndarray = TRAIN) -> np.ndarray:
    """Features at the mean of the training units, of mean squared length 1 there."""
    x_NF = x_NF - x_NF[train].mean(axis=0)
    return x_NF / np.sqrt((x_NF[train] ** 2).sum(axis=1).mean())


def test_a_weighted_sum_of_grams_is_that_of_the_scaled_blocks_side_by_side() -> None:
    a, b = features(0), 100.0 * features(1, 7)
    found = combined([gram(a), gram(b)], TRAIN, [3.0, 1.0])
    both = np.hstack([np.sqrt(0.75) * scaled(a), np.sqrt(0.25) * scaled(b)])
    np.testing.assert_allclose(found, both @ both.T, atol=1e-12)
    assert np.diagonal(found)[TRAIN].mean() == pytest.approx(1.0)


def test_units_outside_of_the_training_part_move_no_entry_of_others() -> None:
    a = features()
    before = combined([gram(a)], TRAIN)
    a[35:] += 50.0
    after = combined([gram(a)], TRAIN)
    np.testing.assert_allclose(after[:35, :35], before[:35, :35], atol=1e-9)


def test_a_block_that_does_not_vary_in_training_has_no_part() -> None:
    a, constant = features(), np.full((len(SITES), 5), 0.1)
    constant[35] = 9.0
    np.testing.assert_allclose(combined([gram(a), gram(constant)], TRAIN), combined([gram(a)], TRAIN) / 2, atol=1e-12)


def test_without_site_means_is_the_gram_of_centred_features() -> None:
    a = features()
    site_N = np.array(SITES)
    expected = np.vstack([a[site_N == s] - a[site_N == s].mean(axis=0) for s in "abc"])
    np.testing.assert_allclose(without_site_means(gram(a), SITES), expected @ expected.T, atol=1e-10)


def denoiser(h1: np.ndarray, h2: np.ndarray, site: np.ndarray, lam: float = 1.0):
    """Ridge from each half to the other, site means taken out of input and target, written out with features."""

    def centred_within(h: np.ndarray) -> np.ndarray:
        means = {s: h[site == s].mean(axis=0) for s in set(site)}
        return h - np.array([means[s] for s in site])

    mean = np.vstack([h1, h2]).mean(axis=0)
    a, b = centred_within(h1), centred_within(h2)
    x, y = np.vstack([a, b]), np.vstack([b, a])
    k = x @ x.T
    w = np.linalg.solve(k + lam * np.trace(k) / len(k) * np.eye(len(k)), y)
    return lambda whole: ((whole - mean) @ x.T) @ w


def test_the_denoiser_of_inner_products_is_that_of_features() -> None:
    whole, first, second = features(0), features(1), features(2)
    expected = scaled(denoiser(first[TRAIN], second[TRAIN], np.array(SITES)[TRAIN])(whole))
    found = denoised(gram(np.vstack([whole, first, second])), SITES)(TRAIN)
    np.testing.assert_allclose(found, expected @ expected.T, atol=1e-10)


def test_the_denoiser_of_shuffled_pairs_sees_halves_of_different_people_of_a_site() -> None:
    whole, first, second = features(0), features(1), features(2)
    gram_3N3N = gram(np.vstack([whole, first, second]))
    found, other = (denoised(gram_3N3N, SITES, shuffled) for shuffled in (True, False))
    assert np.abs(found(TRAIN) - other(TRAIN)).max() > 0.01
    np.testing.assert_array_equal(found(TRAIN), denoised(gram_3N3N, SITES, True)(TRAIN))
    # A site of two people: their second halves change places.
    two = np.array([0, 1])
    stacked = np.vstack([whole, first, second])
    exchanged = np.vstack([whole, first, second[[1, 0, *range(2, len(SITES))]]])
    found, expected = denoised(gram(stacked), SITES, True)(two), denoised(gram(exchanged), SITES)(two)
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("shuffled", [False, True])
def test_where_everybody_has_a_site_of_their_own_all_count_as_of_one(shuffled: bool) -> None:
    stacked = gram(np.vstack([features(seed) for seed in range(3)]))
    alone = [str(i) for i in range(len(SITES))]
    expected = denoised(stacked, ["a"] * len(SITES), shuffled)(TRAIN)
    assert np.array_equal(denoised(stacked, alone, shuffled)(TRAIN), expected) and np.isfinite(expected).all()


def test_a_weighted_sum_of_what_training_parts_give() -> None:
    a, b = (fixed([gram(features(seed))]) for seed in (0, 1))
    np.testing.assert_allclose(weighed([(a, 0.75), (b, 0.25)])(TRAIN), 0.75 * a(TRAIN) + 0.25 * b(TRAIN))


def test_the_denoiser_keeps_what_is_the_same_in_both_halves() -> None:
    """The nearest neighbour of a person's first half is the second half, more often than without it."""
    rng = np.random.default_rng(3)
    own = 2.0 * rng.normal(size=(200, 5)) @ rng.normal(size=(5, 300))
    first, second = (own + 12.0 * rng.normal(size=own.shape) for _ in range(2))
    sites = [str(i % 4) for i in range(200)]
    train, test = np.arange(150), np.arange(150, 200)

    def hits(gram_NN: np.ndarray) -> float:
        """Of test people as two units each: first halves, then second halves."""
        k = gram_NN[np.ix_(np.r_[test, 200 + test], np.r_[test, 200 + test])]
        unit = k / np.sqrt(np.outer(np.diagonal(k), np.diagonal(k)))
        return float((unit[:50, 50:].argmax(axis=1) == np.arange(50)).mean())

    whole = np.vstack([first, second])  # as if each half were a recording of its own
    stacked = np.vstack([whole, np.vstack([first, first]), np.vstack([second, second])])
    clean = denoised(gram(stacked), sites * 2)(train)
    plain = fixed([gram(whole)])(train)
    assert hits(clean) > hits(plain) + 0.1


def test_tangent_space_and_combat_are_fitted_on_training_units() -> None:
    x_NTC = np.random.default_rng(0).normal(size=(len(SITES), 50, 4))
    x_NCC = x_NTC.swapaxes(1, 2) @ x_NTC / 50
    expected = scaled(TangentSpace(metric="riemann").fit(x_NCC[TRAIN]).transform(x_NCC))
    np.testing.assert_allclose(tangent(x_NCC)(TRAIN), expected @ expected.T, atol=1e-9)
    a = features(0, 6)
    sites = np.asarray(SITES)
    expected = scaled(Combat().fit(a[TRAIN], sites=sites[TRAIN]).transform(a, sites))
    np.testing.assert_allclose(harmonized([a], SITES)(TRAIN), expected @ expected.T, atol=1e-9)


def test_a_block_that_varies_among_tested_units_alone_counts_nothing() -> None:
    """What is left of training units that are all alike is rounding, of either sign, and is no spread."""
    for seed in range(20):
        x_NF = features(seed)
        x_NF[TRAIN] = x_NF[0]
        assert scales([gram(x_NF), gram(features(99))], TRAIN)[0] == 0.0


@pytest.mark.parametrize(("channels", "mean"), [(32, "riemann"), (33, "euclid")])
def test_up_to_32_channels_have_the_riemannian_mean(channels: int, mean: str) -> None:
    x_NTC = np.random.default_rng(0).normal(size=(10, 300, channels)) * np.linspace(1, 3, 10)[:, None, None]
    x_NCC, train = np.einsum("ntc,ntd->ncd", x_NTC, x_NTC) / 300, np.arange(6)
    space = TangentSpace(metric={"mean": mean, "map": "riemann"}).fit(x_NCC[train])
    np.testing.assert_allclose(tangent(x_NCC)(train), combined([gram(space.transform(x_NCC))], train))


def test_the_shuffled_pairs_are_those_of_one_seed() -> None:
    """Within each site in turn, everybody gets the second half of the one before in a drawn ring."""
    whole, first, second = features(0), features(1), features(2)
    rng, partner = np.random.default_rng(0), np.arange(len(SITES))
    for site in "ab":
        ring = TRAIN[np.array(SITES)[TRAIN] == site]
        ring = ring[rng.permutation(len(ring))]
        partner[ring] = np.roll(ring, 1)
    assert (partner[TRAIN] != TRAIN).all()
    expected = denoised(gram(np.vstack([whole, first, second[partner]])), SITES)(TRAIN)
    found = denoised(gram(np.vstack([whole, first, second])), SITES, True)(TRAIN)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_without_weights_every_block_counts_alike() -> None:
    blocks = [gram(features(seed)) for seed in range(3)]
    np.testing.assert_allclose(scales(blocks, TRAIN), scales(blocks, TRAIN, [2.0, 2.0, 2.0]))
    unequal = scales(blocks, TRAIN, [1.0, 2.0, 5.0])
    np.testing.assert_allclose(unequal, np.array(scales(blocks, TRAIN)) * 3 * np.array([1, 2, 5]) / 8)
    x_NF = features(0)
    size = ((x_NF[TRAIN] - x_NF[TRAIN].mean(0)) ** 2).sum(1).mean()
    assert scales(blocks[:1], TRAIN)[0] == pytest.approx(1 / size) and scales(blocks, TRAIN)[0] == pytest.approx(
        1 / size / 3
    )
    np.testing.assert_allclose(fixed(blocks, [1, 2, 5])(TRAIN), combined(blocks, TRAIN, [1, 2, 5]))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_little_spread_on_a_large_offset_counts(scale: float) -> None:
    """A millionth of the distance from the mean of all units, whatever the unit of the features."""
    x_NF = features()
    x_NF[TRAIN] = x_NF[0] + 1e-4 * (x_NF[TRAIN] - x_NF[0])
    assert scales([gram(scale * x_NF)], TRAIN)[0] > 0
    np.testing.assert_allclose(np.diagonal(combined([gram(scale * x_NF)], TRAIN))[TRAIN].mean(), 1.0)
