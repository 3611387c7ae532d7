"""The plain module: a training loop of anyone's learns, and what is frozen stays.

Covers: mcsp/encode/window_classifier.py
"""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mcsp.config.evaluate import Depth
from mcsp.encode.eeg import raw_of_array
from mcsp.encode.pretrained import PretrainedMCSP
from mcsp.encode.window_classifier import WindowClassifier

CHANNELS = ["Fp1", "Fp2", "C3", "C4", "O1", "O2"]
SFREQ = 200.0


def toy(n: int = 8) -> tuple[Tensor, Tensor]:
    """Noise in uV with alpha in some windows, and which."""
    generator = torch.Generator().manual_seed(0)
    x_BCT = 10 * torch.randn(n, len(CHANNELS), 800, generator=generator)
    y_B = torch.arange(n) % 2
    x_BCT[y_B == 1] += 10 * torch.sin(2 * torch.pi * 10 * torch.arange(800) / SFREQ)
    return x_BCT, y_B


@pytest.fixture
def model(pretrained: PretrainedMCSP) -> PretrainedMCSP:
    return copy.deepcopy(pretrained)


@pytest.mark.parametrize("depth", ["head", "last_layers", "full"])
def test_a_plain_loop_overfits_and_trains_what_the_depth_says(model: PretrainedMCSP, depth: Depth) -> None:
    classifier = WindowClassifier(model, 2, SFREQ, CHANNELS, depth=depth)
    x_BCT, y_B = toy()
    classifier.standardise_by(x_BCT)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam((p for p in classifier.parameters() if p.requires_grad), lr=3e-3)
    for _ in range(25):
        loss = F.cross_entropy(classifier(x_BCT), y_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    classifier.eval()
    with torch.no_grad():
        assert float(F.cross_entropy(classifier(x_BCT), y_B)) < 0.1
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert bool(changed) == (depth != "head")
    assert all(name.startswith(("encoders.eeg", "projections.eeg")) for name in changed)
    found = classifier.trainable()
    assert found["head"] == 2 * (sum(classifier.blocks) + 1)
    assert (found["encoder"] == 0) == (depth == "head")


def test_frozen_features_are_those_of_encode_raw(model: PretrainedMCSP) -> None:
    """With an identity for a head, logits are the features of the same cleaned window, here the whole recording."""
    from mcsp.config import EegConfig
    from mcsp.data_sharding.bids.ref import RecordingRef, Site
    from mcsp.data_sharding.clean.eeg import clean_eeg
    from mcsp.data_sharding.clean.eeg_files import open_raw

    rng = np.random.default_rng(0)
    raw = raw_of_array(20 * rng.standard_normal((6, 2000)), SFREQ, CHANNELS)
    ref = RecordingRef(Site("", Path("."), False, None), Path("Raw"), "eeg", {}, {})
    clean, _ = clean_eeg(open_raw(raw, ref), ref, {}, EegConfig(), 10.0)
    expected = model.encode_raw(raw, windows_per_recording=1)
    classifier = WindowClassifier(model, sum(model.feature_widths("eeg").values()), SFREQ, CHANNELS, depth="head")
    head = classifier.classifier.heads["eeg"]
    torch.nn.init.eye_(head.weight)
    start = round(float(expected.window_starts_seconds[0]) * SFREQ)
    with torch.no_grad():
        found = classifier(torch.tensor(clean.x_TC[start : start + 2000].T[None]))[0].numpy()
    np.testing.assert_allclose(found, expected.features, rtol=1e-4, atol=1e-4)


def test_a_new_head_has_other_outputs_and_leaves_the_encoder(model: PretrainedMCSP) -> None:
    classifier = WindowClassifier(model, 2, SFREQ, CHANNELS, depth="head")
    x_BCT, _ = toy(3)
    assert classifier(x_BCT).shape == (3, 2)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    classifier.reset_head(5)
    assert classifier(x_BCT).shape == (3, 5)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert classifier.trainable()["encoder"] == 0


def test_positions_serve_in_place_of_names_and_bold_goes_the_same_way(model: PretrainedMCSP) -> None:
    x_BCT, _ = toy(2)
    by_name = WindowClassifier(model, 2, SFREQ, ["Fp1", "Fp2", "C3", "C4", "T3", "EEG O2-REF"])
    by_place = WindowClassifier(model, 2, SFREQ, positions_mm=by_name.position_C3.numpy())
    torch.nn.init.ones_(by_name.classifier.heads["eeg"].weight)
    torch.nn.init.ones_(by_place.classifier.heads["eeg"].weight)
    torch.testing.assert_close(by_place(x_BCT), by_name(x_BCT))
    places = np.random.default_rng(0).uniform(-60, 60, (6, 3))
    bold = WindowClassifier(model, 3, 0.5, positions_mm=places, modality="fmri")
    assert bold(x_BCT[..., :40] / 10).shape == (2, 3)


def test_a_channel_of_nan_is_left_out(model: PretrainedMCSP) -> None:
    x_BCT, _ = toy(2)
    classifier = WindowClassifier(model, 2, SFREQ, CHANNELS)
    torch.nn.init.ones_(classifier.classifier.heads["eeg"].weight)
    x_BCT[1, 0] = torch.nan
    logits = classifier(x_BCT)
    assert logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in classifier.parameters())


def test_mistakes(model: PretrainedMCSP) -> None:
    classifier = WindowClassifier(model, 2, SFREQ, CHANNELS)
    x_BCT, _ = toy(2)
    for wrong in (x_BCT * 1e-6, x_BCT * 1e6):
        with pytest.raises(ValueError, match=r"mean absolute value of \S+, expected 0\.05 to 5000 uV"):
            classifier(wrong)
    with pytest.raises(ValueError, match="expected finite values"):
        classifier(x_BCT * torch.nan)
    with pytest.raises(ValueError, match=r"expected windows of shape \(B, 6, T\), found \(2, 5, 800\)"):
        classifier(x_BCT[:, 1:])
    with pytest.raises(ValueError, match=r"no position for the channels \['X1'\]"):
        WindowClassifier(model, 2, SFREQ, ["Cz", "X1"])
    with pytest.raises(ValueError, match="expected positions_mm, or names of EEG channels"):
        WindowClassifier(model, 2, SFREQ)
    with pytest.raises(ValueError, match="sfreq: expected a positive number of Hz"):
        WindowClassifier(model, 2, 0.0, CHANNELS)
