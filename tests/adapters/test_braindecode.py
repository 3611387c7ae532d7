"""The adapter in braindecode's own classifier, on its own windows datasets, made of MNE arrays."""

import copy
from pathlib import Path

import mne
import numpy as np
import pytest
import torch

from mcsp.encode.pretrained import PretrainedMCSP
from mcsp.encode.window_classifier import WindowClassifier

pytest.importorskip(
    "braindecode.models", exc_type=(ImportError, OSError), reason="the extra ecosystem is not installed"
)

from braindecode import EEGClassifier
from braindecode.datasets import BaseConcatDataset, RawDataset, create_from_X_y
from braindecode.models.base import EEGModuleMixin

from mcsp.adapters.braindecode import MCSPWindows, StandardiseFeatures, positions_mm

pytestmark = pytest.mark.filterwarnings("default")  # braindecode's own
CHANNELS = ["Fp1", "Fp2", "C3", "C4", "O1", "O2"]
SFREQ, SECONDS = 200.0, 2.0
INFO = mne.create_info(CHANNELS, SFREQ, "eeg")


def windows(n: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Noise in uV with alpha in every second window, and which."""
    rng = np.random.default_rng(0)
    x_NCT = 10 * rng.standard_normal((n, len(CHANNELS), int(SFREQ * SECONDS)))
    y_N = np.arange(n) % 2
    x_NCT[y_N == 1] += 12 * np.sin(2 * np.pi * 10 * np.arange(x_NCT.shape[2]) / SFREQ)
    return x_NCT.astype("float32"), y_N


def signature() -> dict:
    return {"n_outputs": 2, "n_chans": 6, "chs_info": INFO["chs"], "sfreq": SFREQ, "input_window_seconds": SECONDS}


def test_it_learns_in_braindecodes_classifier_on_a_windows_dataset(export_dir: Path) -> None:
    x_NCT, y_N = windows()
    dataset = create_from_X_y(
        x_NCT, y_N, drop_last_window=False, sfreq=SFREQ, ch_names=CHANNELS, window_size_samples=400,
        window_stride_samples=400,
    )  # fmt: skip
    net = EEGClassifier(
        MCSPWindows, module__model_dir=str(export_dir), module__depth="head", module__chs_info=INFO["chs"],
        module__sfreq=SFREQ, classes=[0, 1], max_epochs=12, batch_size=8, lr=0.05, optimizer=torch.optim.Adam,
        train_split=None, verbose=0, callbacks=[("standardise", StandardiseFeatures(16))],
    )  # fmt: skip
    net.fit(dataset, y=y_N)
    assert isinstance(net.module_, EEGModuleMixin)
    assert (net.module_.n_chans, net.module_.n_times, net.module_.n_outputs) == (6, 400, 2)
    assert np.mean(net.predict(dataset) == y_N) > 0.9
    assert net.predict_proba(dataset).shape == (24, 2)
    other = copy.deepcopy(net).initialize()  # a new head, the same encoder
    assert np.ptp(other.predict_proba(dataset)) == 0


def test_its_logits_are_those_of_the_window_classifier_in_either_unit(
    pretrained: PretrainedMCSP, export_dir: Path
) -> None:
    x_BCT = torch.tensor(windows(6)[0])
    plain = WindowClassifier(copy.deepcopy(pretrained), 2, SFREQ, CHANNELS, depth="full")
    model = MCSPWindows(**signature(), model_dir=export_dir, depth="full")
    volts = MCSPWindows(**signature(), model_dir=export_dir, depth="full", unit="V")
    plain.standardise_by(x_BCT)
    model.standardise_by(x_BCT)
    volts.standardise_by(x_BCT.double() * 1e-6)
    head = torch.nn.init.normal_(torch.empty(2, sum(plain.blocks)), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for layer in (plain.classifier.heads["eeg"], model.final_layer, volts.final_layer):
            layer.weight.copy_(head)
    torch.testing.assert_close(model(x_BCT), plain(x_BCT))
    torch.testing.assert_close(volts(x_BCT.double() * 1e-6), plain(x_BCT), rtol=1e-3, atol=1e-3)
    assert {n for n, p in model.named_parameters() if p.requires_grad} >= {"final_layer.weight", "final_layer.bias"}
    assert sum(p.requires_grad for p in model.parameters()) == sum(p.requires_grad for p in plain.parameters())
    assert model.get_output_shape() == (1, 2)
    model.reset_head(5)
    assert model(x_BCT).shape == (6, 5) and model.n_outputs == 5


def test_a_benchmark_may_put_its_own_head_on(export_dir: Path) -> None:
    """Open EEG Bench sets ``final_layer`` and counts on its input."""
    model = MCSPWindows(**signature(), model_dir=export_dir)
    model.final_layer = torch.nn.Sequential(torch.nn.Flatten(1), torch.nn.LazyLinear(3))
    assert model(torch.tensor(windows(4)[0])).shape == (4, 3)


def test_unnamed_channels_are_placed_by_their_loc_and_too_few_are_refused(export_dir: Path) -> None:
    info = mne.create_info([f"E{i}" for i in range(1, 7)], SFREQ, "eeg")
    places = dict(zip(info["ch_names"], positions_mm(INFO["chs"]) * 1e-3, strict=True))
    info.set_montage(mne.channels.make_dig_montage(places, coord_frame="head"))
    np.testing.assert_allclose(positions_mm(info["chs"]), positions_mm(INFO["chs"]), atol=1e-3)
    with pytest.raises(ValueError, match="chs_info: 0 of 6 channels have a position, expected at least 4"):
        positions_mm(mne.create_info([f"E{i}" for i in range(1, 7)], SFREQ, "eeg")["chs"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"chs_info": None}, r"chs_info: expected info\['chs'\] of the recordings, found None"),
        ({"unit": "mV"}, r"unit: expected one of \['uV', 'V'\], found 'mV'"),
        ({"sfreq": None, "input_window_seconds": None}, "sfreq"),
    ],
)
def test_what_is_not_said_is_asked_for(export_dir: Path, changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MCSPWindows(**{**signature(), **changed}, model_dir=export_dir)
    with pytest.raises(ValueError, match="mean absolute value"):
        MCSPWindows(**signature(), model_dir=export_dir)(torch.tensor(windows(4)[0]) * 1e-6)


def test_a_recording_of_its_datasets_goes_through_encode_raw(pretrained: PretrainedMCSP) -> None:
    """EEGDash's datasets are of this class."""
    noise = 1e-5 * np.random.default_rng(0).standard_normal((len(CHANNELS), 4000))
    dataset = BaseConcatDataset([RawDataset(mne.io.RawArray(noise, INFO, verbose="ERROR"), {"subject": "1"})])
    found = pretrained.encode_raw(dataset.datasets[0].raw, line_hz=50, windows_per_recording=2)
    expected = pretrained.encode_raw(mne.io.RawArray(noise, INFO, verbose="ERROR"), line_hz=50, windows_per_recording=2)
    np.testing.assert_array_equal(found.features, expected.features)
