"""From views to the objective for awkward montages: what a step computes is finite, and reaches every parameter."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from mcsp.augmentations.views import halves_of_views, spatial_view
from mcsp.batch import Batch, Signal, collate, rows_of
from mcsp.config import AugmentationConfig, ModelConfig, ObjectiveConfig
from mcsp.losses.objective import objective
from mcsp.model.layers import Block
from mcsp.model.spatial import SpatialEncoder
from mcsp.schema import DOMAINS, MODALITIES, Domain, Modality, Window
from mcsp.training.prediction import PredictionHead, target_of
from mcsp.training.pretrainer import Pretrainer, _in_cache
from tests.model.test_encoders import make_signal
from tests.test_batch import window


def step(module: Pretrainer, signals: dict[str, Signal]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    n = max(len(s) for s in signals.values())
    rows = Batch(signals, torch.arange(n), torch.zeros(n, dtype=torch.int64), tuple(map(str, range(n))))
    output = module(rows)
    return objective(*output, rows.subject_N, rows.site_N, ObjectiveConfig(), module.terms, module.predictions)


@pytest.mark.parametrize(
    "views", [AugmentationConfig(), AugmentationConfig(opposite_halves=DOMAINS)], ids=["defaults", "halves"]
)
@pytest.mark.parametrize("channels", [1, 2, 6, 256])
@pytest.mark.parametrize("placed", [True, False])
def test_any_montage_trains(channels, placed, views) -> None:
    torch.manual_seed(0)
    module = Pretrainer(ModelConfig(modalities=("eeg",)), ObjectiveConfig(), views)
    signal = make_signal("eeg", rows=3, channels=channels, seconds=6.0)
    if not placed:
        signal = signal.replace(position_valid_BC=torch.zeros_like(signal.position_valid_BC))
    loss, terms = step(module, {"eeg": signal})
    loss.backward()
    assert loss.isfinite() and all(value.isfinite() for value in terms.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_a_batch_with_one_modality_leaves_the_others_terms_at_zero() -> None:
    module = Pretrainer(ModelConfig(), ObjectiveConfig(), AugmentationConfig(opposite_halves=DOMAINS))
    loss, terms = step(module, {"fmri": make_signal("fmri", rows=4)})
    assert loss.isfinite()
    absent = {name: float(v) for name, v in terms.items() if "eeg" in name and not name.startswith("top1/")}
    assert set(absent.values()) == {0.0} and any(name.startswith("prediction/eeg") for name in absent)
    assert float(terms["prediction/fmri/temporal-spectrum"]) > 0


def test_compilation_reaches_every_block_and_renames_nothing() -> None:
    plain, compiled = (
        Pretrainer(ModelConfig(), ObjectiveConfig(), AugmentationConfig(), compile_blocks=on) for on in (False, True)
    )
    assert list(plain.state_dict()) == list(compiled.state_dict())
    for module, wanted in ((plain, False), (compiled, True)):
        blocks = [block for block in module.modules() if isinstance(block, Block)]
        assert blocks and all((block._compiled_call_impl is not None) == wanted for block in blocks)


def test_views_encoders_and_objective_read_nothing_back_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without values, of which none can be read: rates stay on the host, and all else follows from shapes."""
    autocast = torch.autocast  # does not know this device
    monkeypatch.setattr("torch.autocast", lambda kind, **k: nullcontext() if kind == "meta" else autocast(kind, **k))
    config = ObjectiveConfig(precision="fp32")
    module = Pretrainer(ModelConfig(), config, AugmentationConfig(opposite_halves=DOMAINS)).to("meta")
    signals: dict[Modality, Signal] = {m: make_signal(m, rows=4) for m in MODALITIES}
    signals["eeg"] = signals["eeg"].replace(sfreq_B=torch.tensor([200.0, 250.0, 200.0, 160.0]))
    batch = Batch(signals, torch.arange(4), torch.zeros(4, dtype=torch.int64), tuple("abcd")).to("meta")
    assert batch.signals["eeg"].x_BCT.is_meta and not batch.signals["eeg"].sfreq_B.is_meta
    output = module(batch)
    loss, terms = objective(
        *output, batch.subject_N, batch.site_N, config, module.terms, module.predictions, retrieval=False
    )
    loss.backward()
    assert loss.is_meta and len(terms) > 20 and all(p.grad is not None for p in module.parameters())


def test_padding_changes_nothing_and_is_not_measured() -> None:
    """Windows of two shapes, in a batch and in one that is padded to twice as much; draws are the same."""
    module = Pretrainer(ModelConfig(), ObjectiveConfig(), AugmentationConfig(opposite_halves=DOMAINS))

    def sample(i: int) -> list[Window]:
        small = i < 3
        shapes = (("eeg", 2000, 8 if small else 19, 200.0), ("fmri", 40 if small else 60, 12 if small else 30, 0.5))
        return [window(m, t, c, f"s{i}", "site", hz, i) for m, t, c, hz in shapes]

    batch = collate([sample(i) for i in range(6)], list(range(6)))
    larger = {}
    for modality, s in batch.signals.items():
        c, t = s.x_BCT.shape[1:]
        larger[modality] = s.replace(
            x_BCT=pad(s.x_BCT, (0, t, 0, c)),
            time_valid_BT=pad(s.time_valid_BT, (0, t)),
            channel_valid_BC=pad(s.channel_valid_BC, (0, c)),
            position_BC3=pad(s.position_BC3, (0, 0, 0, c)),
            position_valid_BC=pad(s.position_valid_BC, (0, c)),
        )
        groups = list(_in_cache(larger[modality]))
        assert [tuple(g.x_BCT.shape[1:]) for g in groups][-1] == (c, t), "padding of all rows of a group is cut off"
    found, again = module(batch), module(replace(batch, signals=larger))
    for name in found._fields:
        torch.testing.assert_close(getattr(again, name), getattr(found, name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("what", ["NaN", "zeros", "1000 times too loud"])
def test_a_site_of_rubbish_changes_neither_loss_nor_gradient_of_the_others(what: str) -> None:
    rubbish = {"NaN": np.nan, "zeros": 0.0, "1000 times too loud": 1000.0}[what]

    def sample(i: int, factor: float) -> list[Window]:
        shapes = (("eeg", 2000, 200.0, 1.0), ("fmri", 60, 0.5, 0.1))
        cuts = [window(m, t, 6, f"s{i}", "bad" if i > 3 else "good", hz, i) for m, t, hz, _ in shapes]
        return [replace(c, x_TC=c.x_TC * np.float32(f * factor)) for c, (*_, f) in zip(cuts, shapes, strict=True)]

    module = Pretrainer(ModelConfig(), ObjectiveConfig(), AugmentationConfig(opposite_halves=DOMAINS))
    found = []
    for rows in (4, 7):
        batch = collate([sample(i, rubbish if i > 3 else 1.0) for i in range(rows)], list(range(rows)))
        assert batch.left_out == ({"bad": 6} if rows == 7 else {})
        output = module(batch)
        loss, terms = objective(
            *output, batch.subject_N, batch.site_N, ObjectiveConfig(), module.terms, module.predictions
        )
        module.zero_grad()
        loss.backward()
        found.append((loss.detach(), terms, {n: p.grad for n, p in module.named_parameters() if p.grad is not None}))
    (loss, terms, gradient), (again, terms_again, gradient_again) = found
    torch.testing.assert_close(again, loss, rtol=1e-5, atol=1e-5)
    for name, value in terms.items():
        torch.testing.assert_close(terms_again[name], value, rtol=1e-4, atol=1e-5, msg=name)
    norm = sum(g.square().sum() for g in gradient.values()) ** 0.5
    apart = sum((gradient_again[n] - g).square().sum() for n, g in gradient.items()) ** 0.5
    assert gradient.keys() == gradient_again.keys() and float(apart / norm) < 1e-4


@pytest.mark.parametrize("halves", [(), ("spatial",), ("temporal", "spectral"), DOMAINS], ids=str)
def test_groups_of_rows_change_nothing_and_a_window_measured_once_gives_what_each_view_gives(
    halves: tuple[Domain, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against every view and every target made and measured by itself, from its whole signal."""
    config = AugmentationConfig(opposite_halves=halves)
    module = Pretrainer(ModelConfig(), ObjectiveConfig(), config)
    for modality, hz in (("eeg", 200.0), ("fmri", 0.5)):
        signal = make_signal(modality, rows=5).replace(sfreq_B=torch.full((5,), hz))
        measured, targets = module._measure(modality, signal)
        monkeypatch.setattr("mcsp.training.pretrainer._CACHE_BYTES", 2 * signal.x_BCT[0].nbytes)
        again, targets_again = module._measure(modality, signal)
        monkeypatch.undo()
        for domain in DOMAINS:
            for name, x, y in zip(type(measured[domain])._fields, measured[domain], again[domain], strict=True):
                assert (x is None and y is None) or torch.allclose(x, y, rtol=1e-4, atol=1e-5), (domain, name)
        expected: dict[str, list[torch.Tensor]] = {}
        for v in (0, 1):
            own, other = (rows_of(halves_of_views(signal), slice(5 * w, 5 * w + 5)) for w in (v, 1 - v))
            spatial = module.model.encoder(modality, "spatial")
            drawn = spatial_view(own if "spatial" in halves else signal, v, config)
            expected.setdefault("measures", []).append(spatial.measure(drawn).measures_BKAA)
            for domain in ("spatial", "spectral") if halves else ():
                target = target_of(module.model.encoder(modality, domain).measure(other))
                assert target is not None
                expected.setdefault(target[0], []).append(target[1])
        torch.testing.assert_close(
            measured["spatial"].measures_BKAA, torch.cat(expected["measures"]), rtol=1e-3, atol=1e-5
        )
        for name, found in targets.items():
            torch.testing.assert_close(found, torch.cat(expected[name]), rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(targets_again[name], found, rtol=1e-3, atol=1e-5)
        assert ("connectivity" in targets) == bool({"spatial", "temporal"} & set(halves))
        assert ("spectrum" in targets) == bool({"temporal", "spectral"} & set(halves))


def test_a_start_at_the_corpus_loses_the_least_of_connectivity() -> None:
    """Against singular vectors of numpy over all anchors and windows; the head then predicts what h was made from."""
    torch.manual_seed(0)
    module = Pretrainer(ModelConfig(modalities=("fmri",), fmri_anchors=20), ObjectiveConfig(), AugmentationConfig())
    model, own = module.model, "fmri_spatial_connectivity"
    signals = [make_signal("fmri", rows=6, channels=40, seed=seed) for seed in (0, 1)]
    encoder = model.encoder("fmri", "spatial")
    assert isinstance(encoder, SpatialEncoder)
    log_BAA = torch.cat([encoder.measure(signal).measures_BKAA[:, 0] for signal in signals])
    rows_NA = (log_BAA * ~torch.eye(20, dtype=torch.bool)).flatten(0, 1).double()
    leading_KA = np.linalg.svd(rows_NA.numpy())[2][:16]
    keys = [torch.arange(6), torch.zeros(6, dtype=torch.int64), tuple("abcdef")]
    module.start_at([Batch({"fmri": signal}, *keys) for signal in signals], torch.device("cpu"))
    way_KA = (encoder.encoder.narrow.weight @ encoder.embed.weight).detach().double()
    scale = float(way_KA.norm(dim=1).mean())
    np.testing.assert_allclose(np.abs((way_KA / scale).numpy() @ leading_KA.T), np.eye(16), atol=1e-3)
    assert 0.3 < float((rows_NA @ encoder.embed.weight.detach().double().mT).square().mean()) < 3, (
        "tokens of about unit size"
    )
    head = module.heads[own]
    assert isinstance(head, PredictionHead)
    torch.testing.assert_close(
        head.read.weight.detach().double() @ way_KA, torch.from_numpy(leading_KA.T @ leading_KA), rtol=0, atol=1e-5
    )
