"""What the spatial domain measures, by value: units, levels, rows of tokens, first weights, and the short way."""

import math

import numpy as np
import pytest
import torch

from mcsp.config import ModelConfig
from mcsp.model import spatial
from mcsp.model.mcsp import MCSP
from mcsp.model.spatial import Connectivity, SpatialEncoder
from mcsp.schema import MODALITIES
from tests.model.test_encoders import make_signal, parts


@pytest.fixture(scope="module")
def model() -> MCSP:
    torch.manual_seed(5)
    return MCSP(ModelConfig(skips=("connectivity", "root", "tangent", "coherence"))).eval()


def encoder_of(model: MCSP, modality: str) -> SpatialEncoder:
    found = model.encoder(modality, "spatial")
    assert isinstance(found, SpatialEncoder)
    return found


@torch.no_grad()
@pytest.mark.parametrize("modality", MODALITIES)
def test_connections_do_not_depend_on_the_unit(model, modality) -> None:
    """A thousandth of the usual amplitude: as if EEG came in mV."""
    signal = make_signal(modality, 2, 20)
    loud, quiet = (parts(model, modality, s) for s in (signal, signal.replace(x_BCT=1e-3 * signal.x_BCT)))
    for name in ("connectivity", "root", "tangent", *(["coherence"] if modality == "eeg" else [])):
        torch.testing.assert_close(quiet[name], loud[name], rtol=2e-3, atol=2e-3)
        assert loud[name].abs().max() > 0.01


@torch.no_grad()
def test_the_level_at_an_anchor_is_the_weighted_logarithm_of_deviations(model) -> None:
    """Of variance plus 1e-6, so that a flat channel counts as a thousandth of a unit."""
    signal, encoder = make_signal("fmri", 2, 6), encoder_of(model, "fmri")
    signal = signal.replace(x_BCT=signal.x_BCT * torch.tensor([1, 10, 1e-2, 1e-3, 1e-4, 0])[:, None])
    weights_BAC = encoder.anchors(signal)
    variance_BC = signal.x_BCT.double().numpy().var(-1)
    expected = np.einsum("bac,bc->ba", weights_BAC.double().numpy(), 0.5 * np.log10(variance_BC + 1e-6))
    np.testing.assert_allclose(encoder.measure(signal).level_BA, expected, atol=1e-4)


def test_rows_of_tokens_hold_all_measures_between_an_anchor_and_the_others() -> None:
    measures_BKAA = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4) + 1
    found = spatial._rows(Connectivity(measures_BKAA, torch.zeros(2, 4)))
    assert found.shape == (2, 4, 12)
    expected = (measures_BKAA * (1 - torch.eye(4))).permute(0, 2, 1, 3).flatten(2)
    assert torch.equal(found, expected)


@torch.no_grad()
@pytest.mark.parametrize(("form", "typical"), [("logarithm", 0.15), ("root", 0.1)])
def test_first_tokens_are_of_about_unit_size(form: str, typical: float) -> None:
    """Another scale of the first weights is another model from the same seed."""
    torch.manual_seed(6)
    model = MCSP(ModelConfig(spatial_form=form))
    for modality, measures in (("eeg", 6), ("fmri", 1)):
        encoder = encoder_of(model, modality)
        inputs = measures * encoder.n_anchors
        assert encoder.embed.weight.shape == (96, inputs) and encoder.n_measures == measures
        assert float(encoder.embed.weight.std()) == pytest.approx(1 / (typical * math.sqrt(inputs)), rel=0.03)
        assert float(encoder.amplitude.weight.std()) == pytest.approx(0.1, rel=0.25)
        assert float(encoder.place_AD.std()) == pytest.approx(0.02, rel=0.05)
        tokens = encoder._tokens(encoder.measure(make_signal(modality, 4, 40)))
        assert 0.3 < float(tokens.std()) < 3


@torch.no_grad()
def test_a_start_reads_the_leading_directions_of_the_rows() -> None:
    torch.manual_seed(7)
    encoder = encoder_of(MCSP(ModelConfig(modalities=("fmri",), fmri_anchors=20)), "fmri")
    signal = make_signal("fmri", 6, 30)
    moment = encoder.moment(signal)
    rows = spatial._rows(encoder.measure(signal)).reshape(-1, 20).double().numpy()
    np.testing.assert_allclose(moment, rows.T @ rows, rtol=1e-9)
    encoder.start_at(moment)
    weight = encoder.embed.weight.double().numpy()
    scale = math.sqrt(96 / 20) / 0.15
    np.testing.assert_allclose(weight[:20] @ weight[:20].T, scale**2 * np.eye(20), atol=1e-3)
    assert not weight[20:].any(), "there are 20 directions"
    _value, vector = np.linalg.eigh(rows.T @ rows)
    np.testing.assert_allclose(np.abs(weight[:3] @ vector[:, ::-1][:, :3]), scale * np.eye(3), atol=1e-2)
    narrow = encoder.encoder.narrow.weight
    assert torch.equal(narrow, torch.eye(*narrow.shape))


@pytest.mark.parametrize(
    ("channels", "samples", "short"), [(31, 40, True), (32, 40, False), (20, 21, True), (20, 20, False)]
)
def test_fewer_channels_than_anchors_and_samples_take_the_short_way(model, channels, samples, short) -> None:
    """On a CPU, where no gradient is wanted and the logarithm is asked for."""
    encoder, signal = encoder_of(model, "eeg"), make_signal("eeg", 2, channels)
    signal = signal.replace(x_BCT=signal.x_BCT[..., :samples], time_valid_BT=signal.time_valid_BT[:, :samples])
    found = encoder.channels(signal, coherence=False)
    assert found.coherence_BKCC is None
    assert (found.factor_BCC is not None) == (found.fourth_B is not None) == short
    of_gradient = signal.replace(x_BCT=signal.x_BCT.clone().requires_grad_())
    assert encoder.channels(of_gradient, coherence=False).factor_BCC is None
    with torch.no_grad():
        assert (encoder.channels(of_gradient, coherence=False).factor_BCC is not None) == short
    assert encoder_of(MCSP(ModelConfig(spatial_form="root")), "eeg").channels(signal, False).factor_BCC is None


@torch.no_grad()
def test_coherence_has_frames_of_two_seconds_and_stays_zero_where_no_frame_fits(model, monkeypatch) -> None:
    asked = []
    real = spatial.imaginary_coherence
    monkeypatch.setattr(
        spatial, "imaginary_coherence", lambda *of, **more: asked.append((of, more)) or real(*of, **more)
    )
    found = encoder_of(model, "eeg").channels(make_signal("eeg", 2, 5, seconds=10.0)).coherence_BKCC
    [((x_BCT, _sfreq_B, bands), more)] = asked
    assert (more["frame_seconds"], more["hop_seconds"]) == (2.0, 2.0) and x_BCT.shape[-1] == 2000
    assert bands == [(1, 4), (4, 8), (8, 13), (13, 30), (30, 45)] and found.shape == (2, 5, 5, 5)
    assert found.abs().max() > 0.01
    short = encoder_of(model, "eeg").channels(make_signal("eeg", 2, 5, seconds=1.5)).coherence_BKCC
    assert asked[1][0][0].shape[-1] == 401 and short.isfinite().all()
    assert encoder_of(model, "fmri").channels(make_signal("fmri", 2, 5)).coherence_BKCC is None


def test_two_live_channels_that_take_part_are_connected() -> None:
    weights = torch.zeros(5, 3, 4)
    weights[..., :2] = 0.5
    weights[1, :, 1] = 0.0
    weights[4, 1:, 1] = 0.0
    std = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1e-7, 1, 1], [1e-5, 1e-5, 0, 0], [1, 1, 0, 0]])
    channels = spatial.Channels(torch.zeros(5, 4, 9), std, None, torch.ones(5, 9, dtype=torch.bool))
    assert spatial._connected(channels, weights).tolist() == [True, False, False, True, True]
