"""Logarithm and root of a correlation: their definition, their gradient, and products over time in float32."""

import numpy as np
import pytest
import torch

from mcsp.config import ModelConfig
from mcsp.model import tangent
from mcsp.model.mcsp import MCSP
from mcsp.model.tangent import (
    LEAST_SHRINKAGE,
    channel_factor,
    log_by_eigenvectors,
    log_by_products,
    log_correlation,
    log_correlation_of_mixture,
    root_by_eigenvectors,
    root_by_products,
    root_correlation,
    unit_triangle,
    upper_triangle,
)
from tests.model.test_encoders import make_signal


def plain(x_BAT: torch.Tensor) -> torch.Tensor:
    """The definition, all of it in the dtype of ``x_BAT``, as torch computes it."""
    n = x_BAT.shape[-1]
    x = x_BAT / x_BAT.square().mean(-1, keepdim=True).sqrt()
    correlation, identity = x @ x.mT / n, torch.eye(x.shape[1], dtype=x.dtype)
    fourth = x.square().sum(1).square().mean(-1)
    noise = (fourth - correlation.square().sum((1, 2))) / n
    r = (noise / (correlation - identity).square().sum((1, 2))).clamp(LEAST_SHRINKAGE, 1.0)[:, None, None]
    value, vector = torch.linalg.eigh((1 - r) * correlation + r * identity)
    return (vector * value.log()[:, None]) @ vector.mT


@pytest.mark.parametrize(("anchors", "samples"), [(32, 3000), (100, 50)], ids=["EEG", "BOLD"])
def test_products_over_time_in_float32_are_as_near_to_float64_as_float32_can_be(anchors: int, samples: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(4, 1, samples, generator=generator, dtype=torch.float64)
    x = torch.randn(4, anchors, samples, generator=generator, dtype=torch.float64) + shared
    x = x * torch.logspace(-3, 3, anchors, dtype=torch.float64)[:, None]  # amplitudes a million times apart
    x = (x - x.mean(-1, keepdim=True)).float()
    valid = torch.ones(4, samples, dtype=torch.bool)
    expected = plain(x.double())
    torch.testing.assert_close(log_correlation(x.double(), valid), expected, rtol=1e-10, atol=1e-10)
    found = log_correlation(x, valid)
    assert found.dtype == torch.float32
    error, usual = ((y.double() - expected).abs().max() for y in (found, plain(x)))
    assert error <= usual and error < 1e-5


def courses(rows: int, anchors: int, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(anchors, anchors, generator=generator, dtype=torch.float64)
    x = mixing @ torch.randn(rows, anchors, samples, generator=generator, dtype=torch.float64)
    return x - x.mean(-1, keepdim=True), torch.ones(rows, samples, dtype=torch.bool)


@pytest.mark.parametrize(("anchors", "samples"), [(5, 300), (60, 20)], ids=["full rank", "more anchors than samples"])
def test_the_root_times_itself_is_the_shrunk_correlation_by_either_formulation(anchors: int, samples: int) -> None:
    x, valid = courses(3, anchors, samples)
    expected = 0.99 * torch.stack([torch.corrcoef(row) for row in x]) + 0.01 * torch.eye(anchors, dtype=torch.float64)
    for by_products in (False, True):
        root = root_correlation(x, valid, by_products)
        torch.testing.assert_close(root @ root, expected, rtol=1e-9, atol=1e-10)
        assert float(torch.linalg.eigvalsh(root).min()) > 0.099, "not the root with positive eigenvalues"
    torch.testing.assert_close(root, root_correlation(x, valid, False), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("by_products", [False, True])
def test_the_logarithm_and_its_gradient_are_those_of_a_series_and_of_finite_differences(by_products: bool) -> None:
    logarithm = log_by_products if by_products else log_by_eigenvectors
    x, _ = courses(1, 4, 60)
    correlation = 0.8 * torch.corrcoef(x[0])[None] + 0.2 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.matrix_exp(logarithm(correlation)), correlation, rtol=1e-10, atol=1e-11)
    same = torch.eye(4, dtype=torch.float64).expand(1, 4, 4).clone()  # equal eigenvalues
    for matrix in (correlation, same):
        assert torch.autograd.gradcheck(lambda s: logarithm((s + s.mT) / 2), matrix.requires_grad_())


@pytest.mark.parametrize("by_products", [False, True])
def test_the_gradient_of_the_root_is_that_of_finite_differences(by_products: bool) -> None:
    x, valid = courses(2, 4, 12)
    assert torch.autograd.gradcheck(lambda x: root_correlation(x, valid, by_products), x.requires_grad_())
    same = torch.eye(4, dtype=torch.float64).expand(1, 4, 4).clone().requires_grad_()  # equal eigenvalues
    root = root_by_products if by_products else root_by_eigenvectors
    assert torch.autograd.gradcheck(lambda s: root((s + s.mT) / 2, 0.01), same)


def test_tokens_of_the_root_leave_the_measured_features_alone() -> None:
    signal = make_signal("fmri", rows=2, channels=40)
    features, widths = {}, {}
    for form in ("logarithm", "root"):
        torch.manual_seed(0)
        model = MCSP(ModelConfig(modalities=("fmri",), domains=("spatial",), spatial_form=form)).eval()
        features[form], widths = model.features({"fmri": signal})["fmri"].detach(), model.feature_widths("fmri")
        first = model.encoder("fmri", "spatial").measure(signal).measures_BKAA[:, 0]
        assert bool((first.diagonal(dim1=1, dim2=2) > 0).all()) == (form == "root")
    learned = sum(width for name, width in widths.items() if name in ("spatial", "spatial_z"))
    assert torch.equal(features["root"][:, learned:], features["logarithm"][:, learned:])
    assert not torch.allclose(features["root"][:, :learned], features["logarithm"][:, :learned], atol=1e-2)


def test_few_samples_give_by_their_own_products_what_those_of_anchors_give() -> None:
    """More anchors than samples, one anchor flat, one row with time that does not count."""
    x, valid = courses(3, 60, 20)
    x[1, 3] = 0.0
    valid[2, 15:] = False
    x[2, :, 15:] = 0.0
    x[2, :, :15] -= x[2, :, :15].mean(-1, keepdim=True)
    for function, within in ((log_correlation, 1e-12), (root_correlation, 1e-12)):
        expected = function(x.clone().requires_grad_(), valid).detach()  # a gradient takes the long way
        torch.testing.assert_close(function(x, valid), expected, rtol=0, atol=within)
        short, long = function(x.float(), valid), function(x.float().requires_grad_(), valid).detach()
        error, usual = (float((y.double() - expected).abs().max()) for y in (short, long))
        assert error <= usual and error < 1e-6, "less than float32 products over time leave"


def test_few_channels_give_the_logarithm_at_the_anchors_without_its_time_courses() -> None:
    """Nineteen channels whose amplitudes are a million times apart, thirty-two anchors, one of them flat."""
    x, valid = courses(3, 19, 900)
    valid[2, 500:] = False
    x[2, :, 500:] = 0.0
    x[2, :, :500] -= x[2, :, :500].mean(-1, keepdim=True)
    x = x * torch.logspace(-3, 3, 19, dtype=torch.float64)[:, None]
    scale = (x.square().sum(-1) / valid.sum(-1)[:, None]).rsqrt()
    mixing = torch.randn(3, 32, 19, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mixing[1, 4] = 0.0

    def both(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        y, s, w = x.to(dtype), scale.to(dtype), mixing.to(dtype)
        short = log_correlation_of_mixture(w, y, s, *channel_factor(y, s, valid), valid)
        return short, log_correlation((w * s[:, None]) @ y, valid)

    short, expected = both(torch.float64)
    torch.testing.assert_close(short, expected, rtol=0, atol=1e-11)
    error, usual = (float((found.double() - expected).abs().max()) for found in both(torch.float32))
    assert error <= usual and error < 1e-5, "less than float32 products over time leave"


def test_shrinkage_that_a_bound_settles_takes_no_pass_over_time_and_any_other_takes_one() -> None:
    """The first row has many samples, the second few and bursts, which make shrinkage large."""
    x, valid = courses(2, 19, 3000)
    valid[1, 60:] = False
    x[1, :, 60:] = 0.0
    x[1, :, 10] *= 8.0
    x[1, :, :60] -= x[1, :, :60].mean(-1, keepdim=True)
    scale = (x.square().sum(-1) / valid.sum(-1)[:, None]).rsqrt()
    places = torch.linspace(0, 1, 32, dtype=torch.float64)[:, None] - torch.linspace(0, 1, 19, dtype=torch.float64)
    mixing = (-(places**2) / 0.005).softmax(-1).expand(2, -1, -1)
    found = channel_factor(x, scale, valid)
    expected = log_correlation((mixing * scale[:, None]) @ x, valid)
    torch.testing.assert_close(
        log_correlation_of_mixture(mixing, x, scale, *found, valid), expected, rtol=0, atol=1e-11
    )  # fmt: skip
    unread = log_correlation_of_mixture(mixing, torch.full_like(x, torch.nan), scale, *found, valid)
    torch.testing.assert_close(unread[0], expected[0], rtol=0, atol=1e-11)
    assert bool(unread[1].isnan().all())


def test_a_row_that_is_not_finite_leaves_the_others_alone() -> None:
    for channels, samples in ((19, 900), (60, 20)):
        x, valid = courses(2, channels, samples)
        good = log_correlation(x, valid)[0]
        x[1, 3, 7] = torch.nan
        found = log_correlation(x, valid) if samples == 20 else log_correlation_of_mixture(
            torch.eye(channels, dtype=x.dtype).expand(2, -1, -1), x, torch.ones(2, channels, dtype=x.dtype),
            *channel_factor(x, torch.ones(2, channels, dtype=x.dtype), valid), valid,
        )  # fmt: skip
        torch.testing.assert_close(found[0], good, rtol=0, atol=1e-10)
        assert bool(found[1].isnan().any())


def test_a_triangle_with_its_diagonal_has_the_length_and_the_products_of_the_whole_matrices() -> None:
    a_BAA = torch.randn(2, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a_BAA = a_BAA + a_BAA.mT
    triangle_BE = upper_triangle(a_BAA, diagonal=True)
    assert triangle_BE.shape == (2, 28)
    torch.testing.assert_close(triangle_BE @ triangle_BE.T, a_BAA.flatten(1) @ a_BAA.flatten(1).T)
    above_BE = upper_triangle(a_BAA)
    assert above_BE.shape == (2, 21) and (above_BE[0, :6] == a_BAA[0, 0, 1:]).all()


def test_bounds_are_written_out() -> None:
    """Another bound is another feature under the same name."""
    assert (tangent.LEAST_EIGENVALUE, tangent.LEAST_SHRINKAGE, tangent.ROOT_SHRINKAGE) == (0.1, 0.1, 0.01)
    assert (tangent.LEAST_NORM, tangent._FLAT) == (0.1, 1e-12)


def shrunk_logarithm(x_AT: np.ndarray) -> np.ndarray:
    """Of the correlation with the shrinkage of Ledoit and Wolf; a flat anchor is uncorrelated with all others."""
    n, std = x_AT.shape[1], np.sqrt((x_AT**2).mean(1))
    x_AT = x_AT / np.where(std > 1e-6, std, np.inf)[:, None]
    correlation = x_AT @ x_AT.T / n
    np.fill_diagonal(correlation, 1.0)
    noise = (((x_AT**2).sum(0) ** 2).mean() - (correlation**2).sum()) / n
    r = np.clip(noise / max(((correlation - np.eye(len(x_AT))) ** 2).sum(), 1e-12), 0.1, 1.0)
    value, vector = np.linalg.eigh((1 - r) * correlation + r * np.eye(len(x_AT)))
    return (vector * np.log(value)) @ vector.T


@pytest.mark.parametrize(("anchors", "samples"), [(6, 9), (6, 200), (30, 20), (4, 3), (5, 1)])
@pytest.mark.parametrize("way", ["short", "eigenvectors", "products"])
def test_the_logarithm_is_its_definition_by_every_way(anchors: int, samples: int, way: str) -> None:
    """The second row has fewer valid samples and two flat anchors, one of them next to flat."""
    x, valid = courses(2, anchors, samples)
    cut = max(1, samples - 4)
    valid[1, cut:] = False
    x[1] = (x[1] - x[1, :, :cut].mean(-1, keepdim=True)) * valid[1]
    x[1, 1], x[1, 3] = 0.0, 1e-7 * x[1, 3]
    x[1, 2] = 2e-6 * x[1, 2] / x[1, 2, :cut].square().mean().sqrt() if samples > 5 else 0.0
    if way == "eigenvectors":  # a gradient takes them
        x.requires_grad_()
    found = log_correlation(x, valid, by_products=True if way == "products" else None).detach()
    for b, seen in enumerate((samples, cut)):
        expected = shrunk_logarithm(x[b, :, :seen].detach().numpy())
        np.testing.assert_allclose(found[b], expected, atol=1e-9)


def test_eigenvalues_below_their_bound_count_as_the_bound() -> None:
    matrix = torch.diag(torch.tensor([1.0, 0.3, 0.05, -1e-9], dtype=torch.float64))[None]
    expected = np.log([1.0, 0.3, 0.1, 0.1])
    np.testing.assert_allclose(log_by_eigenvectors(matrix)[0].diagonal(), expected)
    np.testing.assert_allclose(root_by_eigenvectors(matrix, 0.04)[0].diagonal() ** 2, [1.0, 0.3, 0.05, 0.04])
    np.testing.assert_allclose(root_by_eigenvectors(matrix, 0.0)[0].diagonal() ** 2, [1.0, 0.3, 0.05, 0.0], atol=1e-15)
    zero = torch.zeros(1, 3, 3, dtype=torch.float64, requires_grad=True)
    [gradient] = torch.autograd.grad(root_by_eigenvectors(zero, 0.0).diagonal(dim1=1, dim2=2).sum(), zero)
    np.testing.assert_allclose(gradient[0], 1e6 * np.eye(3), rtol=1e-6)


@pytest.mark.parametrize("least", [0.1, 0.01, 0.5])
def test_products_are_eigenvectors_down_to_the_bound(least: float) -> None:
    """Of matrices whose smallest eigenvalue is the bound, the hardest for the iteration."""
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64))[0]
    value = torch.linspace(least, 8 - 7 * least, 8, dtype=torch.float64)
    value = value * 8 / value.sum()
    low = float(value.min())
    matrix = ((rotation * value) @ rotation.T)[None]
    exact = (rotation * value.log()) @ rotation.T
    np.testing.assert_allclose(log_by_products(matrix, low)[0], exact, atol=1e-11)
    root = (rotation * value.sqrt()) @ rotation.T
    np.testing.assert_allclose(root_by_products(matrix, low)[0], root, atol=1e-11)


def test_entries_of_a_root_have_length_one_and_little_of_nothing_stays_little() -> None:
    draw = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(4))
    matrix = torch.stack([draw[0] + draw[0].T, 1e-3 * (draw[1] + draw[1].T), torch.full((6, 6), 0.7)])
    found = unit_triangle(matrix)
    for row, entries in zip(found, matrix.double().numpy()[:, *np.triu_indices(6, 1)], strict=True):
        centred = entries - entries.mean()
        np.testing.assert_allclose(row, centred / max(np.linalg.norm(centred), 0.1), atol=1e-6)
    assert float(found[0].norm()) == pytest.approx(1) and 0 < float(found[1].norm()) < 0.2 and not found[2].any()


def test_samples_take_the_place_of_anchors_where_they_are_fewer_and_no_gradient_is_wanted() -> None:
    x = torch.zeros(1, 5, 4)
    ways = [tangent._few_samples(x, way) for way in (None, False, True)]
    assert ways == [True, True, False]
    assert not tangent._few_samples(torch.zeros(1, 5, 5), None) and not tangent._few_samples(torch.zeros(1, 4, 5), None)
    wanted = x.clone().requires_grad_()
    assert not tangent._few_samples(wanted, None)
    with torch.no_grad():
        assert tangent._few_samples(wanted, None)
