"""What features hold beside h, against other ways to compute it; and that h keeps what connectivity says."""

import numpy as np
import pytest
import torch
from scipy.linalg import logm, sqrtm
from scipy.signal import welch
from sklearn.covariance import ledoit_wolf

from mcsp.config import ModelConfig
from mcsp.model.mcsp import MCSP
from mcsp.model.tangent import (
    LEAST_SHRINKAGE,
    log_by_eigenvectors,
    log_by_products,
    log_correlation,
    root_correlation,
    upper_triangle,
)
from mcsp.schema import DOMAINS
from tests.model.test_encoders import make_signal, parts, with_padding


@pytest.fixture(scope="module")
def model() -> MCSP:
    torch.manual_seed(4)
    skips = ("connectivity", "root", "tangent", "coherence", "band_power", "relative_power")
    return MCSP(ModelConfig(skips=skips)).eval()


def correlated(rows: int, anchors: int, samples: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(rows, anchors, anchors, generator=generator, dtype=torch.float64)
    x = mixing @ torch.randn(rows, anchors, samples, generator=generator, dtype=torch.float64)
    return x - x.mean(-1, keepdim=True)


def test_tangent_is_the_matrix_logarithm_of_the_ledoit_wolf_correlation() -> None:
    x = correlated(3, 12, 40)
    found = log_correlation(x, torch.ones(3, 40, dtype=torch.bool))
    for row_AT, log_AA in zip(x.numpy(), found.numpy(), strict=True):
        unit = row_AT / row_AT.std(axis=1, keepdims=True)
        covariance, shrinkage = ledoit_wolf(unit.T, assume_centered=True)
        assert shrinkage > LEAST_SHRINKAGE, "the bound must not decide this case"
        assert np.abs(log_AA - logm(covariance)).max() < 1e-10


def test_the_correlation_of_anchors_is_shrunk_at_least_by_the_bound() -> None:
    x = correlated(1, 4, 20_000)
    found = log_correlation(x, torch.ones(1, 20_000, dtype=torch.bool))[0]
    correlation = np.corrcoef(x[0].numpy())
    expected = logm((1 - LEAST_SHRINKAGE) * correlation + LEAST_SHRINKAGE * np.eye(4))
    assert np.abs(found.numpy() - expected).max() < 1e-9


@pytest.mark.parametrize("modality", ["eeg", "fmri"])
@pytest.mark.parametrize(("channels", "samples"), [(1, 400), (2, 30), (6, 2), (9, 1)])
def test_tangent_of_few_channels_or_few_samples_is_finite_and_bounded(model, modality, channels, samples) -> None:
    signal = make_signal(modality, 2, channels)
    short = signal.time_valid_BT & (torch.arange(signal.x_BCT.shape[-1]) < samples)
    signal = signal.replace(x_BCT=signal.x_BCT * short[:, None], time_valid_BT=short)
    found = parts(model, modality, signal)["tangent"]
    assert found.isfinite().all()
    assert float(found.abs().max()) < 2**0.5 * max(-np.log(LEAST_SHRINKAGE), np.log(100)) + 0.01


def test_the_vector_of_a_symmetric_matrix_has_its_norm() -> None:
    matrix = torch.randn(2, 5, 5, dtype=torch.float64)
    matrix = matrix + matrix.mT
    torch.testing.assert_close(upper_triangle(matrix, diagonal=True).norm(dim=1), matrix.flatten(1).norm(dim=1))
    assert upper_triangle(matrix)[0].tolist() == matrix[0][np.triu_indices(5, 1)].tolist()


def test_band_power_is_that_of_welch_where_an_electrode_lies_on_an_anchor(model) -> None:
    encoder = model.encoder("eeg", "spectral")
    anchors_A3 = encoder.anchors.anchors_um_A3.float() / 1000
    signal = make_signal("eeg", rows=1, channels=32, seconds=30.0)
    # Far apart: each anchor then reads one channel alone.
    encoder.anchors.sigma_mm, old = 1.0, encoder.anchors.sigma_mm
    found = parts(model, "eeg", signal.replace(position_BC3=anchors_A3[None]))["band_power"].reshape(5, 32)
    encoder.anchors.sigma_mm = old
    hz, density = welch(signal.x_BCT[0].numpy(), fs=200, nperseg=400, noverlap=200, axis=-1)
    for band, (low, high) in enumerate([(1, 4), (4, 8), (8, 13), (13, 30), (30, 45)]):
        whole = (hz >= low) & (hz < high) & (hz % 1 == 0)
        np.testing.assert_allclose(found[band], np.log10(density[:, whole].mean(-1)), atol=2e-3)


def test_root_is_the_matrix_square_root_of_the_correlation_of_anchors(model) -> None:
    signal = make_signal("fmri", 2, 40)
    encoder = model.encoder("fmri", "spatial")
    found = parts(model, "fmri", signal)["root"].numpy()
    weights_BAC = encoder.anchors(signal).numpy()
    for b in range(2):
        x_TC = signal.x_BCT[b].double().numpy().T
        x_TC = (x_TC - x_TC.mean(0)) / np.maximum(x_TC.std(0), 1e-12)
        correlation = np.corrcoef((x_TC @ weights_BAC[b].T).T)
        entries = sqrtm(correlation).real[np.triu_indices(100, 1)]
        entries -= entries.mean()
        np.testing.assert_allclose(found[b], entries / np.linalg.norm(entries), atol=2e-5)


@pytest.mark.parametrize("modality", ["eeg", "fmri"])
@pytest.mark.parametrize("kind", ["alone", "beside a flat channel", "beside a bad channel"])
def test_one_channel_has_no_connections(model, modality: str, kind: str) -> None:
    """All anchors read the same; exactly zero, as what rounding leaves would differ from machine to machine."""
    signal = make_signal(modality, 2, 1 if kind == "alone" else 2)
    if kind == "beside a flat channel":
        signal.x_BCT[:, 1] = 0.0
    if kind == "beside a bad channel":
        valid_BC, placed_BC = signal.channel_valid_BC.clone(), signal.position_valid_BC.clone()
        valid_BC[:, 1] = placed_BC[:, 1] = False
        signal = signal.replace(channel_valid_BC=valid_BC, position_valid_BC=placed_BC)
    assert not parts(model, modality, signal)["root"].any()
    two = parts(model, modality, make_signal(modality, 2, 2))["root"]
    torch.testing.assert_close(two.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize(("anchors", "samples"), [(100, 60), (100, 400), (32, 20)])
def test_the_root_of_products_is_that_of_eigenvectors(anchors, samples) -> None:
    """Also of matrices of low rank, with two anchors alike."""
    x = correlated(3, anchors, samples)
    x[1, 1] = x[1, 0]
    seen = torch.ones(3, samples, dtype=torch.bool)
    exact = root_correlation(x, seen, False, 0.0)
    assert float((root_correlation(x, seen, True, 0.0) - exact).norm() / exact.norm()) < 1e-6


def test_the_gradient_of_the_root_is_that_of_finite_differences() -> None:
    x, seen = correlated(2, 5, 40), torch.ones(2, 40, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda x: root_correlation(x, seen, False, 0.0), x.requires_grad_())


def test_relative_power_is_the_share_of_all_bands(model) -> None:
    found = parts(model, "eeg", make_signal("eeg"))
    share_BKA = 10 ** found["relative_power"].reshape(-1, 5, 32)
    torch.testing.assert_close(share_BKA.sum(1), torch.ones(len(share_BKA), 32), rtol=1e-4, atol=1e-4)


def test_skips_that_the_config_leaves_out_are_gone() -> None:
    model = MCSP(ModelConfig(skips=("tangent",))).eval()
    learned = [*DOMAINS, *(f"{domain}_z" for domain in DOMAINS)]
    assert list(model.feature_widths("eeg")) == [*learned, "tangent"]
    assert list(parts(model, "eeg", make_signal("eeg"))) == list(model.feature_widths("eeg"))
    assert list(MCSP(ModelConfig(skips=())).feature_widths("fmri")) == learned


@pytest.mark.parametrize("modality", ["eeg", "fmri"])
def test_untrained_h_is_nearly_linear_in_connectivity(model, modality) -> None:
    """So a linear probe of h starts from what it would read from connectivity itself."""
    encoder = model.encoder(modality, "spatial")
    with torch.no_grad():
        measured = encoder.measure(make_signal(modality, rows=6, channels=40))
        h_BAK = encoder(measured).unflatten(1, (encoder.n_anchors, -1))
        between = measured.measures_BKAA * ~torch.eye(encoder.n_anchors, dtype=torch.bool)
        tokens = encoder.embed(between.permute(0, 2, 1, 3).flatten(2)) + encoder.place_AD
        linear_BAK = encoder.encoder.narrow(tokens + encoder.amplitude(measured.level_BA[..., None]))
    difference = (h_BAK - h_BAK.mean(0)) - (linear_BAK - linear_BAK.mean(0))
    assert float(difference.norm() / (linear_BAK - linear_BAK.mean(0)).norm()) < 0.15


@pytest.mark.parametrize("parcels", [31, 450])
@pytest.mark.parametrize("placed", [True, False])
def test_padding_does_not_reach_features_of_small_and_large_parcellations(model, parcels, placed) -> None:
    signal = make_signal("fmri", 2, parcels)
    if not placed:
        signal = signal.replace(position_valid_BC=torch.zeros_like(signal.position_valid_BC))
    a, b = parts(model, "fmri", signal), parts(model, "fmri", with_padding(signal, 7, 31))
    for name in a:
        assert float((a[name] - b[name]).abs().max()) < 1e-5, name
        assert a[name].isfinite().all()


@pytest.mark.parametrize("logarithm", [log_by_eigenvectors, log_by_products])
def test_the_gradient_of_the_logarithm_is_that_of_finite_differences(logarithm) -> None:
    x = correlated(2, 5, 40)
    x[1, 1] = x[1, 0]  # two equal anchors; below, equal eigenvalues
    seen = torch.ones(2, 40, dtype=torch.bool)
    assert torch.autograd.gradcheck(
        lambda x: log_correlation(x, seen, logarithm is log_by_products), x.requires_grad_()
    )
    identity = torch.eye(4, dtype=torch.float64).expand(1, 4, 4).clone().requires_grad_()
    symmetric = lambda s: logarithm((s + s.mT) / 2)  # noqa: E731
    assert torch.autograd.gradcheck(symmetric, identity)
