"""What the temporal domain measures, by value: patches, their power, their places, and parts of a window."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mcsp.config import ModelConfig
from mcsp.model import temporal
from mcsp.model.mcsp import MCSP
from mcsp.model.temporal import TIME_BINS, TemporalEncoder
from mcsp.schema import MODALITIES
from tests.model.test_encoders import make_signal


@pytest.fixture(scope="module")
def model() -> MCSP:
    torch.manual_seed(5)
    return MCSP(ModelConfig()).eval()


def encoder_of(model: MCSP, modality: str) -> TemporalEncoder:
    found = model.encoder(modality, "temporal")
    assert isinstance(found, TemporalEncoder)
    return found


def test_sizes_are_those_of_the_configuration(model) -> None:
    """Samples per patch, frequencies of its power, parts of a window."""
    found = [(e.patch_samples, e.n_bins, e.spectrum is None) for e in (encoder_of(model, m) for m in ("eeg", "fmri"))]
    assert found == [(200, 45, False), (4, 0, True)] and TIME_BINS == 12
    other = MCSP(ModelConfig(eeg_grid_hz=128.0, eeg_patch_seconds=0.3, fmri_grid_hz=0.1, fmri_patch_seconds=1.0))
    assert [encoder_of(other, m).patch_samples for m in ("eeg", "fmri")] == [38, 1]


@torch.no_grad()
@pytest.mark.parametrize("modality", MODALITIES)
def test_patches_are_cut_from_the_standardised_window_and_a_rest_is_left_out(model, modality) -> None:
    encoder = encoder_of(model, modality)
    rate, length = (200, 200) if modality == "eeg" else (1, 4)
    signal = make_signal(modality, 2, 3)
    samples = 5 * length + length // 2
    signal = signal.replace(
        x_BCT=signal.x_BCT[..., :samples], time_valid_BT=signal.time_valid_BT[:, :samples].clone(),
        sfreq_B=torch.full((2,), float(rate)),
    )  # fmt: skip
    signal.time_valid_BT[1, 2 * length + 1] = False
    signal.x_BCT[1, :, 2 * length + 1] = 0.0
    found = encoder.measure(signal)
    assert found.valid_BP.tolist() == [[True] * 5, [True, True, False, True, True]]
    for b in range(2):
        x = signal.x_BCT[b].double().numpy()
        seen = signal.time_valid_BT[b].numpy()
        mean, std = x[:, seen].mean(1, keepdims=True), x[:, seen].std(1, keepdims=True)
        expected = ((x - mean) / std * seen)[:, : 5 * length].reshape(3, 5, length)
        np.testing.assert_allclose(found.wave_BCPL[b], expected, atol=1e-4)
        np.testing.assert_allclose(found.log_std_BC[b], np.log10(std[:, 0]), atol=1e-5)


@torch.no_grad()
def test_power_of_a_patch_is_at_whole_hertz_up_to_45_and_lowest_where_it_is_not_valid(model) -> None:
    signal = make_signal("eeg", 1, 2, seconds=4.0)
    seconds = torch.arange(800) / 200
    signal.x_BCT[0, 0] = 10 * (2 * torch.pi * 10 * seconds).sin()
    signal.x_BCT[0, 1] = 0.0
    signal.x_BCT[0, :, 200:400], signal.time_valid_BT[0, 200:400] = 0.0, False
    power = encoder_of(model, "eeg").measure(signal).power_BCPF
    assert power is not None and power.shape == (1, 2, 4, 45)
    assert power[0, 0, [0, 2, 3]].argmax(-1).tolist() == [9, 9, 9], "10 Hz is the tenth"
    # 50 uV^2 in one Hann window of 1 s: a noise bandwidth of 1.5 Hz, two sides of half the height beside it.
    np.testing.assert_allclose(power[0, 0, 0, 8:11], np.log10(50 / 1.5 * np.array([0.25, 1, 0.25])), atol=0.02)
    assert (power[0, 0, 1] == -6.0).all() and (power[0, 1] == -6.0).all()
    fmri = encoder_of(model, "fmri").measure(make_signal("fmri", 1, 2))
    assert fmri.power_BCPF is None


@torch.no_grad()
@pytest.mark.parametrize("modality", MODALITIES)
def test_a_window_shorter_than_a_patch_has_one_and_it_is_not_whole(model, modality) -> None:
    signal = make_signal(modality, 2, 3)
    samples, rate, length = (150, 200.0, 200) if modality == "eeg" else (3, 1.0, 4)
    short = signal.replace(
        x_BCT=signal.x_BCT[..., :samples], time_valid_BT=signal.time_valid_BT[:, :samples],
        sfreq_B=torch.full((2,), rate),
    )  # fmt: skip
    found = encoder_of(model, modality).measure(short)
    assert found.wave_BCPL.shape == (2, 3, 1, length) and found.valid_BP.tolist() == [[False], [False]]
    assert not found.wave_BCPL[..., samples:].any() and found.wave_BCPL[..., :samples].any()
    assert encoder_of(model, modality)(found).isfinite().all()


def test_a_patch_stands_at_its_middle_and_what_is_not_valid_is_zero(model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Tensor] = []
    real = temporal.sinusoids
    monkeypatch.setattr(temporal, "sinusoids", lambda place_P, *more: asked.append(place_P) or real(place_P, *more))
    for modality, middle in (("eeg", [0.5, 1.5, 2.5]), ("fmri", [2.0, 6.0, 10.0])):
        encoder, seen = encoder_of(model, modality), []
        monkeypatch.setattr(encoder.encoder, "attend", lambda x, valid, seen=seen: seen.append(x) or x)
        valid_BP = torch.tensor([[True, False, True]])
        encoder._attend(torch.full((1, 3, 96), 2.0), valid_BP)
        assert asked[-1].tolist() == middle
        place_PD = real(torch.tensor(middle), 96, 2 * encoder.patch_seconds, 600.0)
        torch.testing.assert_close(seen[0][0], (2.0 + place_PD) * valid_BP[0, :, None])


@pytest.mark.parametrize("patches", [1, 3, 5, 12, 17, 40])
def test_parts_of_a_window_are_means_with_linear_weights(patches: int) -> None:
    """Written out in numpy, with a gap and with patches behind the end of the row."""
    rng = np.random.default_rng(patches)
    x, valid = rng.normal(size=(patches + 2, 3)), np.ones(patches + 2, dtype=bool)
    valid[patches:] = False
    if patches > 4:
        valid[1] = False
    place = (np.arange(patches + 2) + 0.5) / patches * 12
    reach = max(12 / patches, 1.0)
    weight = np.maximum(1 - np.abs(place - (np.arange(12) + 0.5)[:, None]) / reach, 0) * valid
    total = weight.sum(1, keepdims=True)
    expected = np.where(total > 0, weight / np.where(total > 0, total, 1), 0) @ x
    found = TemporalEncoder._bin_time(torch.from_numpy(x)[None], torch.from_numpy(valid)[None])
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
