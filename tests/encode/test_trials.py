"""Trials cut by MNE: one row each, as encode_raw gives for the same trial, and what becomes of bad ones."""

import mne
import numpy as np
import pytest

from mcsp.encode.pretrained import PretrainedMCSP

CHANNELS = ["Fp1", "Fp2", "C3", "Cz", "C4", "O1", "O2", "VEOG"]
SFREQ = 256.0


def trials(seconds: float = 2.0, n: int = 4) -> mne.BaseEpochs:
    """Noise of some 10 uV, one channel of eye movements, one trial rejected by MNE."""
    rng = np.random.default_rng(0)
    info = mne.create_info(CHANNELS, SFREQ, ["eeg"] * 7 + ["eog"])
    raw = mne.io.RawArray(1e-5 * rng.standard_normal((8, int(SFREQ * seconds * (n + 1)))), info, verbose="ERROR")
    cut = mne.make_fixed_length_epochs(raw, seconds, preload=True, verbose="ERROR")
    return cut.drop([1], verbose="ERROR")


def test_a_row_per_trial_as_encode_raw_gives_for_it(pretrained: PretrainedMCSP) -> None:
    cut = trials()
    found = pretrained.encode_epochs(cut, line_hz=50)
    assert found.features.shape[0] == len(cut) == 4 and found.reasons == [""] * 4
    for row_F, x_CT in zip(found.features, cut.get_data(verbose="ERROR"), strict=True):
        raw = mne.io.RawArray(x_CT, cut.info, verbose="ERROR")
        expected = pretrained.encode_raw(raw, line_hz=50, min_seconds=2.0, windows_per_recording=1)
        np.testing.assert_array_equal(row_F, expected.features)
    assert "7 used" in found.report.steps["channels"]
    assert any("windows of 2.0 s; in pretraining they had 10 s" in warning for warning in found.report.warnings)
    assert len(np.unique(found.features, axis=0)) == 4


def test_a_bad_trial_costs_itself_alone(pretrained: PretrainedMCSP) -> None:
    cut = trials()
    x_NCT = cut.get_data(copy=True, verbose="ERROR")
    x_NCT[2, :7], x_NCT[3, 0] = 0.0, 0.0
    broken = mne.EpochsArray(x_NCT, cut.info, verbose="ERROR")
    with pytest.raises(ValueError, match=r"^trial 2: "):
        pretrained.encode_epochs(broken)
    found = pretrained.encode_epochs(broken, on_error="nan")
    assert np.isnan(found.features).all(axis=1).tolist() == [False, False, True, False]
    assert [bool(reason) for reason in found.reasons] == [False, False, True, False]
    assert "7 used" in found.report.steps["channels"], "of the first trial; the last has a flat channel"
    x_NCT[:, :7] = 0.0
    with pytest.raises(ValueError, match="none of 4 trials can be used"):
        pretrained.encode_epochs(mne.EpochsArray(x_NCT, cut.info, verbose="ERROR"), on_error="nan")


@pytest.mark.parametrize(("sfreq", "samples"), [(512.0, 513), (500.0, 501), (173.61, 347)])
def test_a_trial_of_any_rate_is_as_long_as_its_own_least_length(
    pretrained: PretrainedMCSP, sfreq: float, samples: int
) -> None:
    """MNE cuts both ends of 0 to 1 s: 513 samples at 512 Hz, which are 1.00195 s before and 1 s after resampling."""
    info = mne.create_info(CHANNELS[:7], sfreq, "eeg")
    x_NCT = 1e-5 * np.random.default_rng(0).standard_normal((2, 7, samples))
    assert pretrained.encode_epochs(mne.EpochsArray(x_NCT, info, verbose="ERROR"), line_hz=50).reasons == ["", ""]


def test_long_trials_have_several_windows_and_short_ones_are_refused(pretrained: PretrainedMCSP) -> None:
    found = pretrained.encode_epochs(trials(20.0, 1), windows_per_recording=2)
    assert found.report.steps["windows"].startswith("2 of 10 s")
    with pytest.raises(ValueError, match=r"trials of 0\.5 s: expected at least 1 s"):
        pretrained.encode_epochs(trials(0.5))
    assert np.isfinite(pretrained.encode_epochs(trials(1.0)).features).all()
    with pytest.raises(ValueError, match=r"expected mne.Epochs, found ndarray; a Raw goes to encode_raw"):
        pretrained.encode_epochs(np.zeros((2, 4, 100)))
