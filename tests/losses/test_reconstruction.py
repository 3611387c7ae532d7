"""Masked-patch reconstruction: the error against numpy, what is hidden, and that it can be learned."""

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool1d

from mcsp.augmentations.views import hidden_tokens
from mcsp.batch import Batch
from mcsp.config import AugmentationConfig, ModelConfig, ObjectiveConfig
from mcsp.losses import objective, reconstruction_error
from mcsp.model.layers import Mask
from mcsp.model.mcsp import MCSP
from mcsp.schema import DOMAINS, MODALITIES
from mcsp.training import pretrainer
from mcsp.training.pretrainer import Pretrainer
from tests.losses.test_prediction import batch
from tests.model.test_encoders import make_signal

VIEWS = AugmentationConfig()


def test_error_is_one_minus_the_correlation_of_what_is_hidden() -> None:
    draw = torch.Generator().manual_seed(0)
    predicted, target = (torch.randn(4, 6, 5, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2))
    hidden = torch.rand(4, 6, generator=draw) < 0.5
    hidden[3] = False
    for places in (6, 1):
        means = [torch.randn(places, 5, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2)]
        error = reconstruction_error(predicted, target, *means, hidden)
        p, y = ((x - m).detach().numpy() for x, m in zip((predicted, target), means, strict=True))
        expected = [1 - np.corrcoef(p[b][hidden[b]].ravel(), y[b][hidden[b]].ravel())[0, 1] for b in range(3)]
        np.testing.assert_allclose(error.detach(), [*expected, 1.0])
        of_predicted, of_target, *of_means = torch.autograd.grad(
            error.sum(), (predicted, target, *means), allow_unused=True
        )
        assert of_target is None and (of_predicted[~hidden] == 0).all() and (of_predicted[hidden] != 0).all()
        # Means follow with the gradient of half a squared deviation, averaged over what is hidden.
        for gradient, deviation in zip(of_means, (p, y), strict=True):
            count = 5 * hidden.sum(1).clamp(min=1).numpy()
            pulls = np.where(hidden[..., None], -deviation, 0) / count[:, None, None]
            np.testing.assert_allclose(gradient, pulls.sum(0) if places == 6 else pulls.sum((0, 1))[None], atol=1e-12)
    right = 2 * (target - means[1]) + means[0] + (~hidden[..., None]) * 100
    assert reconstruction_error(right, target, *means, hidden)[:3].abs().max() < 1e-12, "what is seen does not count"


@pytest.mark.parametrize(("fraction", "count"), [(0.5, 6), (0.25, 3), (0.01, 1), (0.99, 11)])
def test_a_fraction_of_the_valid_tokens_is_hidden_alike_whatever_the_padding(fraction: float, count: int) -> None:
    config = AugmentationConfig(hidden_tokens=fraction)
    key, valid = torch.arange(50) * 7919, torch.ones(50, 12, dtype=torch.bool)
    hidden = hidden_tokens(key, valid, "temporal", 0, config)
    assert (hidden.sum(1) == count).all()
    padded = torch.nn.functional.pad(valid, (0, 5))
    assert torch.equal(hidden_tokens(key, padded, "temporal", 0, config), torch.nn.functional.pad(hidden, (0, 5)))
    assert not torch.equal(hidden, hidden_tokens(key, valid, "temporal", 1, config))
    assert not torch.equal(hidden, hidden_tokens(key, valid, "spectral", 0, config))
    for few in (0, 1):
        valid[:, few:] = False
        assert not hidden_tokens(key, valid, "temporal", 0, config).any()


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("modality", MODALITIES)
def test_what_is_hidden_does_not_reach_the_tokens(modality, domain, monkeypatch) -> None:
    """Another content of what is hidden changes targets and h, but no token that the reconstruction is read from."""
    torch.manual_seed(0)
    encoder = MCSP(ModelConfig()).encoder(modality, domain)
    signal = make_signal(modality, rows=3, channels=20, seconds=12.0 if modality == "eeg" else 80.0)
    stand_in, chosen = torch.randn(encoder.embed.out_features), []

    def hide(valid):
        chosen.append(hidden_tokens(signal.key_B, valid, domain, 0, VIEWS))
        return chosen[-1]

    before = encoder(signal, mask=Mask(hide, stand_in))
    hidden, whole = chosen[0], encoder.measure(signal)
    assert 0 < hidden.sum() < hidden.numel() and before.source_BPE.shape[2] == encoder.source_shape[1]
    if domain == "spatial":
        either = hidden[:, :, None] | hidden[:, None]
        noise = torch.randn_like(whole.measures_BKAA)
        other = whole._replace(measures_BKAA=whole.measures_BKAA + noise * either[:, None])
    elif domain == "temporal":
        wave = whole.wave_BCPL + torch.randn_like(whole.wave_BCPL) * hidden[:, None, :, None]
        power = whole.power_BCPF
        power = None if power is None else power + torch.randn_like(power) * hidden[:, None, :, None]
        other = whole._replace(wave_BCPL=wave, power_BCPF=power)
    else:
        power, audible = whole
        other = (power + torch.randn_like(power) * hidden.repeat_interleave(5, 1)[:, None], audible)
    monkeypatch.setattr(encoder, "measure", lambda *_: other)
    after = encoder(signal, mask=Mask(hide, stand_in))
    torch.testing.assert_close(after.attended_BPD, before.attended_BPD)
    assert torch.equal(chosen[0], chosen[1])
    assert not torch.allclose(after.h_BD, before.h_BD)
    changed = (after.source_BPE != before.source_BPE).any(2)
    assert changed[hidden].all() and (domain == "spatial" or not changed[~hidden].any())
    shown = encoder(signal, mask=Mask(hide, -stand_in))
    assert not torch.allclose(shown.attended_BPD, before.attended_BPD), "the stand-in is not read"


def test_every_parameter_is_trained_and_samples_stand_alone() -> None:
    torch.manual_seed(1)
    config = ObjectiveConfig(reconstruction=1.0)
    module = Pretrainer(ModelConfig(), config, VIEWS)
    signals = {m: make_signal(m, rows=4, seconds=12.0) for m in MODALITIES}
    rows = batch(signals)
    output = module(rows)
    loss, terms = objective(*output, rows.subject_N, rows.site_N, config, module.terms, module.predictions)
    loss.backward()
    assert not [n for n, p in module.named_parameters() if p.grad is None or not p.grad.abs().any()]
    names = [f"reconstruction/{m}/{d}" for m in MODALITIES for d in DOMAINS]
    assert all(0.1 < float(terms[name]) < 1.6 for name in names)
    assert sum(float(terms[t.name]) * t.weight for t in module.predictions) < float(loss.detach())
    alone = {
        m: s.replace(**{n: v[2:3] for n, v in vars(s).items()}).replace(sample_B=torch.tensor([0]))
        for m, s in signals.items()
    }
    torch.testing.assert_close(module(batch(alone)).error_Qn[:, 0], output.error_Qn[:, 2], rtol=1e-3, atol=1e-3)


def test_without_weight_nothing_is_hidden_and_no_parameter_exists(monkeypatch) -> None:
    plain, masked = (Pretrainer(ModelConfig(), ObjectiveConfig(reconstruction=w), VIEWS) for w in (0.0, 1.0))
    own = {n for n, _ in masked.named_parameters()} - {n for n, _ in plain.named_parameters()}
    assert own and not any(n.startswith("model.") for n in own), "what an export holds is the model"
    assert not [n for n, _ in plain.named_parameters() if "reconstruction" in n or "stand_in" in n]
    monkeypatch.setattr(MCSP, "mask_domain", None)
    plain(batch({"fmri": make_signal("fmri", rows=2)}))
    # The contrast is computed on the same views and tokens with it as without.
    masked.load_state_dict(plain.state_dict(), strict=False)
    monkeypatch.undo()
    rows = batch({"fmri": make_signal("fmri", rows=2)})
    torch.testing.assert_close(masked(rows).z_MnK, plain(rows).z_MnK)


def people(seed: int) -> Batch:
    """Slow courses that channels share and coloured noise, each of a strength of the person's own."""
    draw = torch.Generator().manual_seed(seed)
    signal = make_signal("fmri", rows=16, channels=12, seconds=60.0)
    pattern = torch.randn(12, 2, generator=torch.Generator().manual_seed(7))
    slow = avg_pool1d(torch.randn(16, 2, 180, generator=draw), 61, 1) * 16
    white = torch.randn(16, 12, 124, generator=draw)
    colour = torch.randn(16, 1, 1, generator=draw)
    noise = white[..., 4:] * torch.exp(colour) + 2 * avg_pool1d(white, 5, 1) * torch.exp(-colour)
    x = pattern * torch.exp(torch.randn(16, 1, 2, generator=draw)) @ slow + noise
    keys = torch.randint(2**62, (16,), generator=draw)
    position = signal.position_BC3[:1].expand(16, -1, -1)
    return batch({"fmri": signal.replace(x_BCT=x, position_BC3=position, key_B=keys)})


@pytest.mark.parametrize(
    ("domain", "rate", "steps"), [("spatial", 3e-3, 60), ("temporal", 3e-3, 60), ("spectral", 1e-3, 120)]
)
def test_what_is_hidden_of_new_people_is_learned(domain, rate, steps, monkeypatch) -> None:
    """Better than of another person: until the means have arrived, the average of all people passes for knowledge."""
    torch.manual_seed(0)
    module = Pretrainer(
        ModelConfig(modalities=("fmri",), domains=(domain,), fmri_anchors=12),
        ObjectiveConfig(reconstruction=1.0, prediction=0.0),
        AugmentationConfig(noise=0.0, band_mask=0.0, tilt=0.0),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate)
    for step in range(steps):
        optimizer.zero_grad()
        module(people(step)).error_Qn.mean().backward()
        optimizer.step()

    def error() -> float:
        with torch.no_grad():
            return float(np.mean([module(people(seed)).error_Qn.mean() for seed in (1000, 1001, 1002)]))

    own = error()
    monkeypatch.setattr(
        pretrainer, "reconstruction_error", lambda p, y, *rest: reconstruction_error(p, y.roll(1, 0), *rest)
    )
    other = error()
    assert own < other - 0.08 and other > 0.8, (own, other)
