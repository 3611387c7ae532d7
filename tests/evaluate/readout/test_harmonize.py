"""ComBat gives the numbers of another implementation, serves sites it has never met, and leaks nothing."""

import numpy as np
import pytest

from mcsp.evaluate import scores
from mcsp.evaluate.readout.classifiers import LOGISTIC, cross_validate, on_grams
from mcsp.evaluate.readout.grams import harmonized
from mcsp.evaluate.readout.harmonize import Combat
from mcsp.evaluate.splits import k_fold, leave_site_out

# neurocombat-sklearn 0.1.3 (its call of OneHotEncoder brought up to date) on the input of `example`: rows 0, 13 and 27,
# first three features. It computes priors in float32.
OTHER_IMPLEMENTATION = [
    [0.3031759640245005, 0.10412255983353902, 1.0849021420295202],
    [0.11996193483712793, 2.356813159738829, 0.3825913937133604],
    [0.24178956866831025, 0.08804237791876202, 2.5754563993056045],
]


def example() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    site_N = np.repeat([0, 1, 2], [12, 9, 7])
    x_NF = rng.normal(size=(28, 6)) * np.array([1, 1.5, 0.7])[site_N][:, None]
    return x_NF + np.array([0, 2, -1])[site_N][:, None] * np.linspace(0.5, 1.5, 6), site_N


def test_the_numbers_are_those_of_another_implementation() -> None:
    x_NF, site_N = example()
    out_NF = Combat().fit_transform(x_NF, sites=site_N)
    np.testing.assert_allclose(out_NF[[0, 13, 27], :3], OTHER_IMPLEMENTATION, atol=5e-5)


def test_shift_and_scale_of_known_sites_go_and_an_unknown_or_tiny_site_passes_unchanged() -> None:
    rng = np.random.default_rng(1)
    site_N = np.repeat([0, 1, 2], [200, 200, 2])
    x_NF = rng.normal(size=(402, 40)) * np.array([1.0, 3.0, 1.0])[site_N][:, None] + 5.0 * (site_N == 1)[:, None]
    combat = Combat().fit(x_NF, sites=site_N)
    out_NF = combat.transform(x_NF, site_N)
    a, b = out_NF[site_N == 0], out_NF[site_N == 1]
    assert np.abs(a.mean(0) - b.mean(0)).max() < 0.8  # of 5; what is left is the noise of 200 units
    assert 0.9 < a.std() / b.std() < 1.1
    assert np.array_equal(out_NF[site_N == 2], x_NF[site_N == 2])
    assert np.array_equal(combat.transform(x_NF[:5], np.full(5, 9)), x_NF[:5])


def test_constant_features_and_a_single_feature_stay_finite() -> None:
    x_NF, site_N = example()
    x_NF[:, 0] = 4.0
    x_NF[site_N == 1, 1] = 2.0
    assert np.isfinite(Combat().fit_transform(x_NF, sites=site_N)).all()
    assert np.isfinite(Combat().fit_transform(x_NF[:, 2:3], sites=site_N)).all()


def test_every_row_needs_a_site() -> None:
    x_NF, site_N = example()
    with pytest.raises(ValueError, match="sites: expected one for each of 28 rows, found None"):
        Combat().fit(x_NF)
    with pytest.raises(ValueError, match=r"sites: expected one for each of 3 rows, found shape \(28,\)"):
        Combat().fit(x_NF, sites=site_N).transform(x_NF[:3], site_N)


def sites_with_offsets() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """120 units of two sites; the label moves three features by 1, the site all of them by 8."""
    rng = np.random.default_rng(2)
    y_N, site_N = np.tile([0, 1], 60), np.repeat([0, 1], 60)
    x_NF = rng.normal(size=(120, 20)) + 8.0 * site_N[:, None] + y_N[:, None] * (np.arange(20) < 3)
    return x_NF, y_N, site_N


def test_test_units_have_no_part_in_the_fit_and_other_test_units_none_in_a_score() -> None:
    x_NF, y_N, site_N = sites_with_offsets()
    keys, sites = [f"{i:03d}" for i in range(120)], [str(k) for k in site_N]
    folds = k_fold(keys, y_N, keys, 4, 1)
    test = folds.by_seed[0][0][1]

    def scored(x_NF: np.ndarray, y_N: np.ndarray) -> np.ndarray:
        return cross_validate(on_grams(LOGISTIC, harmonized([x_NF], sites)), y_N, folds)[0, 0, test]

    before = scored(x_NF, y_N)
    x_NF[test[1:]] += 100.0
    assert scored(x_NF, y_N)[0] == pytest.approx(before[0], rel=1e-6)  # of rounding in inner products
    assert scored(x_NF, 1 - y_N)[0] == pytest.approx(-before[0], rel=1e-3)  # labels reach the classifier alone


def test_combat_finds_the_label_across_known_sites_and_a_left_out_site_is_scored() -> None:
    x_NF, y_N, site_N = sites_with_offsets()
    keys, sites = [f"{i:03d}" for i in range(120)], [f"s{k}" for k in site_N]
    readout, ones = on_grams(LOGISTIC, harmonized([x_NF], sites)), np.ones((1, 120))
    folds = k_fold(keys, y_N, keys, 4, 1)
    assert scores.pooled(cross_validate(readout, y_N, folds)[0], y_N, ones)[0] > 0.85
    left_out = cross_validate(readout, y_N, leave_site_out(keys, y_N, keys, sites))[0]
    assert np.isfinite(left_out).all()


def test_three_training_units_of_a_site_are_enough_and_two_are_not() -> None:
    site_N = np.repeat([0, 1, 2], [10, 3, 2])
    x_NF = np.random.default_rng(0).normal(size=(15, 5)) + site_N[:, None]
    combat = Combat().fit(x_NF, sites=site_N)
    assert combat.sites_.tolist() == [0, 1]
    changed = (combat.transform(x_NF, site_N) != x_NF).all(axis=1)
    assert changed.tolist() == [True] * 13 + [False] * 2


def standardised(x_NF: np.ndarray, site_N: np.ndarray) -> np.ndarray:
    """By the mean of all and the spread within sites; a feature that varies in no site is only centred."""
    residual = np.vstack([x_NF[site_N == s] - x_NF[site_N == s].mean(0) for s in np.unique(site_N)])
    spread = np.sqrt((residual**2).mean(0))
    return (x_NF - x_NF.mean(0)) / np.where(spread > 0, spread, 1)


def test_shifts_and_variances_are_the_authors_iteration() -> None:
    """Johnson, Li and Rabinovic: each posterior mean given the other, until no value changes by a ten-thousandth."""
    for x_NF, site_N in (
        example(),
        (example()[0] * 1e-3, example()[1]),
        (sites_with_offsets()[0], sites_with_offsets()[2]),
    ):
        combat = Combat().fit(x_NF, sites=site_N)
        np.testing.assert_allclose(combat.mean_F_, x_NF.mean(0), atol=1e-12)
        z_NF = standardised(x_NF, site_N)
        for s in np.unique(site_N):
            z = z_NF[site_N == s]
            n, own, var = len(z), z.mean(0), z.var(0, ddof=1)
            m, v = var.mean(), var.var(ddof=1)
            prior_shape, prior_scale, tau2 = (2 * v + m**2) / v, (m * v + m**3) / v, own.var(ddof=1)
            shift, variance, change = own, var, 1.0
            while change >= 1e-4:
                shift_before, variance_before = shift, variance
                shift = (n * tau2 * own + variance * own.mean()) / (n * tau2 + variance)
                squares = ((z - shift) ** 2).sum(0)
                variance = (prior_scale + squares / 2) / (prior_shape + n / 2 - 1)
                change = max(np.abs(shift / shift_before - 1).max(), np.abs(variance / variance_before - 1).max())
            np.testing.assert_allclose(combat.shift_SF_[s], shift, rtol=1e-9)
            np.testing.assert_allclose(combat.variance_SF_[s], variance, rtol=1e-9)


def test_features_without_others_to_learn_from_keep_their_own_mean_and_variance() -> None:
    x_NF, site_N = example()
    alone = Combat().fit(x_NF[:, :1], sites=site_N)
    z_N1 = standardised(x_NF[:, :1], site_N)
    for s in range(3):
        np.testing.assert_allclose(alone.shift_SF_[s], z_N1[site_N == s].mean(0))
        np.testing.assert_allclose(alone.variance_SF_[s], z_N1[site_N == s].var(0, ddof=1))
    x_NF[site_N == 1, 2:] = [5.0, 6.0, 7.0, 8.0]  # two of six vary in site 1
    some = Combat().fit(x_NF, sites=site_N)
    np.testing.assert_allclose(some.shift_SF_[1, 2:], standardised(x_NF, site_N)[site_N == 1].mean(0)[2:])
    assert (some.variance_SF_[1, 2:] == 1).all() and (some.variance_SF_[1, :2] != 1).all()
    two = Combat().fit(x_NF[:, :2], sites=site_N)
    np.testing.assert_allclose(some.variance_SF_[1, :2], two.variance_SF_[1])
    assert np.abs(two.shift_SF_[1] - standardised(x_NF[:, :2], site_N)[site_N == 1].mean(0)).max() > 1e-6


@pytest.mark.parametrize("values", [(1.0, 2.0, 4.0), (0.1, 0.3, 0.7), (0.1, 0.1, 0.1)])
def test_a_feature_that_varies_in_no_site_is_centred_and_moves_no_other(values: tuple[float, ...]) -> None:
    """Whose variance is 0 or, by rounding, 1e-34: a shift in units of that would be the prior of all features."""
    x_NF, site_N = example()
    x_NF[:, 0] = np.array(values)[site_N]
    combat = Combat().fit(x_NF, sites=site_N)
    assert combat.scale_F_[0] == 1 and (combat.scale_F_[1:] != 1).all() and (combat.variance_SF_[:, 0] == 1).all()
    out_NF = combat.transform(x_NF, site_N)
    np.testing.assert_allclose(out_NF[:, 0], x_NF[:, 0].mean(), atol=1e-12)
    np.testing.assert_array_equal(out_NF[:, 1:], Combat().fit_transform(x_NF[:, 1:], sites=site_N))


def test_features_of_one_variance_end_without_a_division_by_zero() -> None:
    """The prior of variances is then as narrow as can be, and each variance is nearly their mean."""
    wave = np.array([1.0, -1.0, 2.0, -2.0])
    x_NF = np.concatenate([np.stack([wave, wave[::-1], -wave], axis=1) + s for s in (0.0, 3.0)])
    site_N = np.repeat([0, 1], 4)
    combat = Combat().fit(x_NF, sites=site_N)
    expected = standardised(x_NF, site_N)[:4].var(0, ddof=1)
    np.testing.assert_allclose(combat.variance_SF_, np.stack([expected] * 2), rtol=1e-6)
