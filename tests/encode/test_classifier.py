"""Logits of units from rows of several modalities, of which some hold nothing."""

from dataclasses import fields

import pytest
import torch

from mcsp.batch import Signal
from mcsp.config import ModelConfig
from mcsp.encode.window_classifier import MCSPClassifier
from mcsp.model.mcsp import MCSP
from tests.model.test_encoders import make_signal


def rows(signal: Signal, chosen: list[int]) -> Signal:
    return Signal(**{f.name: getattr(signal, f.name)[chosen] for f in fields(signal)})


@pytest.fixture(scope="module")
def classifier() -> MCSPClassifier:
    torch.manual_seed(0)
    model = MCSP(ModelConfig()).eval()
    signals = {m: make_signal(m) for m in ("eeg", "fmri")}
    with torch.no_grad():
        widths = {m: x_BF.shape[1] for m, x_BF in model.features(signals).items()}
    out = MCSPClassifier(model, 2, widths, "head").eval()
    for parameter in out.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return out


@torch.no_grad()
def test_rows_that_hold_nothing_and_modalities_that_are_absent_have_no_part_in_the_mean(
    classifier: MCSPClassifier,
) -> None:
    eeg, fmri = make_signal("eeg", seed=1), make_signal("fmri", seed=2)
    eeg = eeg.replace(channel_valid_BC=eeg.channel_valid_BC & torch.tensor([True, False, True])[:, None])
    eeg = eeg.replace(sample_B=torch.tensor([0, 0, 1]))
    alone = [classifier({"eeg": rows(eeg, [i]).replace(sample_B=torch.tensor([0]))}, 1)[0] for i in (0, 2)]
    assert not torch.allclose(*alone)
    torch.testing.assert_close(classifier({"eeg": eeg}, 2), torch.stack(alone), rtol=1e-4, atol=1e-4)
    bold = rows(fmri, [0, 1]).replace(sample_B=torch.tensor([1, 1]))
    two = [classifier({"fmri": rows(fmri, [i]).replace(sample_B=torch.tensor([0]))}, 1)[0] for i in (0, 1)]
    expected = torch.stack([alone[0], (alone[1] + (two[0] + two[1]) / 2) / 2])
    torch.testing.assert_close(classifier({"eeg": eeg, "fmri": bold}, 2), expected, rtol=1e-4, atol=1e-4)
    assert not classifier({"eeg": rows(eeg, [1])}, 3).any(), "units without anything"


def test_features_that_do_not_vary_or_are_not_finite_in_a_unit_do_not_spoil_the_scale(
    classifier: MCSPClassifier,
) -> None:
    n = classifier.n_features["eeg"]
    x_NF = torch.randn(20, n, generator=torch.Generator().manual_seed(0)) * 3 + 1
    x_NF[:, 0], x_NF[19] = 7.0, torch.nan
    classifier.standardise_by({"eeg": x_NF}, {"eeg": [1, n - 1]})
    scaled = (x_NF[:19] - classifier.get_buffer("eeg_mean")) * classifier.get_buffer("eeg_scale")
    assert classifier.get_buffer("eeg_scale")[0] == 0 and torch.isfinite(scaled).all()
    torch.testing.assert_close(scaled[:, 1:].square().mean(0).sum(), torch.tensor(1.0))
    classifier.get_buffer("eeg_mean").zero_(), classifier.get_buffer("eeg_scale").fill_(1.0)
