"""Prediction across windows: the error against numpy, where targets come from, and that it can be learned."""

import numpy as np
import pytest
import torch

from mcsp.augmentations.views import halves_of_views
from mcsp.batch import Batch, Signal, rows_of
from mcsp.config import AugmentationConfig, ModelConfig, ObjectiveConfig
from mcsp.losses.objective import objective
from mcsp.model.mcsp import MCSP
from mcsp.schema import DOMAINS
from mcsp.training.prediction import (
    MEAN_SCALE,
    MEASURED_IN,
    TARGETS,
    PredictionHead,
    prediction_error,
    target_of,
)
from mcsp.training.pretrainer import Pretrainer
from tests.model.test_encoders import make_signal

HALVES = AugmentationConfig(opposite_halves=DOMAINS)


def batch(signals: dict) -> Batch:
    n = max(int(s.sample_B.max()) for s in signals.values()) + 1
    return Batch(signals, torch.arange(n), torch.zeros(n, dtype=torch.int64), tuple(map(str, range(n))))


def test_error_is_one_minus_the_correlation_of_deviations_from_the_means() -> None:
    draw = torch.Generator().manual_seed(0)
    predicted, target = (torch.randn(5, 30, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2))
    means = [torch.randn(30, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2)]
    error = prediction_error(predicted, target, *means)
    p, y = ((x - mean).detach().numpy() for x, mean in zip((predicted, target), means, strict=True))
    np.testing.assert_allclose(error.detach(), [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, y, strict=True)])
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    found = torch.autograd.grad((weights * error).sum(), (*means, predicted, target), allow_unused=True)
    for gradient, deviation in zip(found, (p, y), strict=False):
        np.testing.assert_allclose(gradient, (weights[:, None] * -torch.from_numpy(deviation)).sum(0) / 30, atol=1e-12)
    assert found[2].abs().max() > 0 and found[3] is None
    right = 3 * (target - means[1]) + means[0]
    assert torch.allclose(prediction_error(right, target, *means), torch.zeros(5, dtype=torch.float64))
    nothing = torch.zeros(2, 30)
    assert prediction_error(nothing, nothing, nothing[0], nothing[0]).tolist() == [1.0, 1.0]


def test_tokens_predict_pairs_of_anchors() -> None:
    torch.manual_seed(0)
    head = PredictionHead(6 * 5, 15, anchors=6)
    h = torch.randn(2, 30)
    predicted = head(h).predicted_BE
    tokens, w = h.view(2, 6, 5), head.read.weight
    pairs = [(a, b) for a in range(6) for b in range(a + 1, 6)]
    expected = torch.stack([(tokens[:, a] @ w[b] + tokens[:, b] @ w[a]) / 2 for a, b in pairs], 1)
    torch.testing.assert_close(predicted, expected)
    with torch.no_grad():
        head.mean_target_E.fill_(0.5)
    assert head(h).mean_target_E.tolist() == [0.5 * MEAN_SCALE] * 15
    assert head(h).mean_predicted_E.tolist() == [0.0] * 15


@pytest.mark.parametrize("modality", ["eeg", "fmri"])
def test_the_first_prediction_is_what_h_keeps_of_connectivity(modality) -> None:
    torch.manual_seed(0)
    model = MCSP(ModelConfig(eeg_anchors=20, fmri_anchors=20))  # 16 of 20 numbers per anchor: little is lost
    signal = make_signal(modality, rows=12, channels=40)
    with torch.no_grad():
        h = model.encode_domain(modality, "spatial", signal)
        predicted = PredictionHead.of(model, modality, "spatial", "connectivity")(h).predicted_BE
        own = target_of(model.encoder(modality, "spatial").measure(signal))[1]
    correlation = [
        np.corrcoef(a - predicted.mean(0), b - own.mean(0))[0, 1] for a, b in zip(predicted, own, strict=True)
    ]
    # In EEG coherence shares the 16 numbers.
    assert np.mean(correlation) > (0.7 if modality == "fmri" else 0.3), correlation


@pytest.mark.parametrize("modality", ["eeg", "fmri"])
def test_a_view_predicts_the_half_that_it_does_not_see(modality) -> None:
    """What happens in one half reaches the targets of the other view alone, and only them."""
    module = Pretrainer(ModelConfig(), ObjectiveConfig(), HALVES)
    signal = make_signal(modality, rows=8)
    late = torch.arange(signal.x_BCT.shape[-1]) >= signal.x_BCT.shape[-1] // 2
    disturbed = signal.replace(x_BCT=torch.where(late, signal.x_BCT.roll(1, dims=1) * 2, signal.x_BCT))
    before, after = (module._measure(modality, s)[1] for s in (signal, disturbed))
    halves = halves_of_views(signal)
    sees_late = halves.x_BCT[:, 0, 0].view(2, 8) != signal.x_BCT[:, 0, 0]
    assert sees_late.sum(0).tolist() == [1] * 8
    for name in ("connectivity", "spectrum"):
        changed = (before[name] != after[name]).any(1).view(2, 8)
        assert torch.equal(changed, ~sees_late), name
    other = rows_of(halves, slice(8, 16))
    for domain in ("spatial", "spectral"):
        name, expected = target_of(module.model.encoder(modality, domain).measure(other))
        torch.testing.assert_close(before[name][:8], expected)


def test_every_parameter_is_trained_and_samples_stand_alone() -> None:
    torch.manual_seed(1)
    module = Pretrainer(ModelConfig(), ObjectiveConfig(), HALVES)
    signals = {m: make_signal(m, rows=4, seconds=12.0) for m in ("eeg", "fmri")}
    signals["fmri"] = signals["fmri"].replace(sample_B=torch.tensor([0, 1, 2, 4]))
    rows = batch(signals)
    output = module(rows)
    assert output.error_Qn.shape == (8, 5)
    assert (output.error_Qn[:4, 3] == 0).all() and (output.error_Qn[4:, 4] == 0).all(), "a sample without the modality"
    loss, terms = objective(*output, rows.subject_N, rows.site_N, ObjectiveConfig(), module.terms, module.predictions)
    loss.backward()
    silent = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.abs().any()]
    assert not silent
    assert 0.1 < float(terms["prediction/fmri/spatial-connectivity"]) < 1.5
    alone = {
        m: Signal(**{n: getattr(s, n)[1:2] for n in Signal.__dataclass_fields__}).replace(sample_B=torch.tensor([0]))
        for m, s in signals.items()
    }
    torch.testing.assert_close(module(batch(alone)).error_Qn[:, 0], output.error_Qn[:, 1], rtol=1e-3, atol=1e-3)


def test_without_weight_or_halves_there_are_no_heads() -> None:
    for objective_config, views in (
        (ObjectiveConfig(prediction=0), HALVES),
        (ObjectiveConfig(), AugmentationConfig(opposite_halves=())),
    ):
        module = Pretrainer(ModelConfig(), objective_config, views)
        assert not list(module.heads.parameters()) and not module.predictions
        assert module(batch({"eeg": make_signal("eeg", rows=2, seconds=4.0)})).error_Qn.shape == (0, 2)


def test_what_sets_people_apart_is_learned() -> None:
    """People with connectivity of their own, alike in both halves: new people are predicted, and noise is not."""
    generator = torch.Generator().manual_seed(0)
    position = make_signal("fmri", rows=1, channels=24).position_BC3

    def people(seed: int, own: float) -> Batch:
        draw = torch.Generator().manual_seed(seed)
        strength = torch.randn(32, 1, 3, generator=draw) * own + 1
        pattern = torch.randn(24, 3, generator=generator.manual_seed(7))
        course = torch.randn(32, 3, 160, generator=draw)
        x = (pattern * strength) @ course + torch.randn(32, 24, 160, generator=draw)
        signal = make_signal("fmri", rows=32, channels=24, seconds=80.0)
        keys = torch.randint(2**62, (32,), generator=draw)
        return batch({"fmri": signal.replace(x_BCT=x, position_BC3=position.expand(32, -1, -1), key_B=keys)})

    def error_of_new_people(own: float) -> float:
        """Mean over people whom the fit has not seen; ``own``: how much sets a person apart."""
        torch.manual_seed(0)
        module = Pretrainer(
            ModelConfig(modalities=("fmri",), domains=("spatial",), fmri_anchors=20), ObjectiveConfig(),
            AugmentationConfig(),
        )  # fmt: skip
        optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
        for step in range(60):
            optimizer.zero_grad()
            module(people(step, own)).error_Qn.mean().backward()
            optimizer.step()
        with torch.no_grad():
            return float(module(people(1000, own)).error_Qn.mean())

    assert error_of_new_people(0.7) < 0.5
    assert error_of_new_people(0.0) > 0.85


def test_the_error_does_not_depend_on_scale_and_nothing_predicts_nothing() -> None:
    """Deviations of a thousandth have the same correlation; those of a billionth are none."""
    draw = torch.Generator().manual_seed(1)
    predicted, target = (torch.randn(4, 20, generator=draw, dtype=torch.float64) for _ in range(2))
    zero = torch.zeros(20, dtype=torch.float64)
    expected = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(predicted.numpy(), target.numpy(), strict=True)]
    for scale in (1e-3, 1.0, 1e3):
        found = prediction_error(scale * predicted, scale**0.5 * target + 7, zero, zero)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(prediction_error(1e-9 * predicted, target, zero, zero), 1.0, atol=0.01)


def test_what_each_domain_predicts_is_written_out() -> None:
    assert TARGETS == {
        "spatial": ("connectivity",), "temporal": ("connectivity", "spectrum"), "spectral": ("spectrum",),
    }  # fmt: skip
    assert MEASURED_IN == {"connectivity": "spatial", "spectrum": "spectral"}


def test_heads_have_the_widths_of_what_they_read_and_predict() -> None:
    model = MCSP(ModelConfig(eeg_anchors=10, fmri_anchors=20))
    for modality, anchors, patches in (("eeg", 10, 9), ("fmri", 20, 5)):
        widths = {d: model.encoder(modality, d).h_width for d in DOMAINS}
        assert (widths["spatial"], widths["temporal"], widths["spectral"]) == (16 * anchors, 96, 96)
        for domain, target, shape in (
            ("temporal", "connectivity", (anchors * (anchors - 1) // 2, 96)),
            ("temporal", "spectrum", (anchors * patches, 96)), ("spectral", "spectrum", (anchors * patches, 96)),
            ("spatial", "connectivity", (anchors, 16)),
        ):  # fmt: skip
            head = PredictionHead.of(model, modality, domain, target)
            assert tuple(head.read.weight.shape) == shape and head.read.bias is None
            assert head.anchors == (anchors if domain == "spatial" else 0)
            numbers = shape[0] if domain != "spatial" else anchors * (anchors - 1) // 2
            assert head.mean_target_E.tolist() == head.mean_predicted_E.tolist() == [0.0] * numbers
            assert head(torch.zeros(3, widths[domain])).predicted_BE.shape == (3, numbers)


@torch.no_grad()
def test_a_head_starts_with_the_pseudo_inverse_of_the_way_from_connectivity_to_h() -> None:
    torch.manual_seed(2)
    model = MCSP(ModelConfig(eeg_anchors=10, fmri_anchors=20))
    encoder = model.encoder("eeg", "spatial")
    weight = PredictionHead.of(model, "eeg", "spatial", "connectivity").read.weight
    way = encoder.encoder.narrow.weight.double().numpy() @ encoder.embed.weight.double().numpy()[:, :10]
    np.testing.assert_allclose(weight, np.linalg.pinv(way), atol=1e-4)


def test_what_a_head_says_is_in_float32_at_least() -> None:
    head = PredictionHead(6, 4)
    for dtype, wide in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert {x.dtype for x in head.to(dtype)(torch.ones(2, 6, dtype=dtype))} == {wide}
    assert MEAN_SCALE == 20.0


@torch.no_grad()
@pytest.mark.parametrize("modality", ["eeg", "fmri"])
def test_targets_are_the_logarithm_between_anchors_and_the_power_of_each_patch_of_frequencies(modality) -> None:
    model = MCSP(ModelConfig(eeg_anchors=10, fmri_anchors=20))
    signal = make_signal(modality, rows=2)
    spatial, temporal, spectral = (model.encoder(modality, d).measure(signal) for d in DOMAINS)
    assert target_of(temporal) is None
    name, found = target_of(spatial)
    rows, columns = np.triu_indices(spatial.measures_BKAA.shape[-1], 1)
    assert name == "connectivity" and torch.equal(found, spatial.measures_BKAA[:, 0][:, rows, columns])
    name, found = target_of(spectral)
    power = spectral.power_BAF.unflatten(2, (-1, 5)).mean(-1)
    assert name == "spectrum" and power.shape[2] == (9 if modality == "eeg" else 5)
    torch.testing.assert_close(found, power.flatten(1))
