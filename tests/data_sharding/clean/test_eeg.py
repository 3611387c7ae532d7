"""EEG cleaning on files: amplitude, spectrum, channels, positions."""

from pathlib import Path

import mne
import numpy as np
import pytest

from mcsp.config import EegConfig
from mcsp.data_sharding.bids.find import find_recordings
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import RecordingRef, Site
from mcsp.data_sharding.bids.write import write_eeg, write_json, write_tsv
from mcsp.data_sharding.clean.eeg import EegDetails, _line_hz, clean_eeg, read_eeg
from mcsp.data_sharding.clean.eeg_channels import normalise_channel, standard_positions_mm
from mcsp.data_sharding.clean.eeg_files import open_raw
from mcsp.data_sharding.clean.recording import CleanRecording

CHANNELS = ["Fp1", "Fp2", "C3", "C4", "O1", "O2", "T7", "T8"]
SECONDS = 30


def tone(hz: float, uv: float, sfreq: float) -> np.ndarray:
    """A sine of standard deviation ``uv`` whose phases cancel over the channels, so that re-referencing keeps it."""
    t = np.arange(round(SECONDS * sfreq)) / sfreq
    phases = 2 * np.pi * np.arange(len(CHANNELS))[:, None] / len(CHANNELS)
    return uv * np.sqrt(2) * np.sin(2 * np.pi * hz * t + phases)


def noise(sfreq: float) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((len(CHANNELS), round(SECONDS * sfreq)))


def only_ref(root: Path) -> RecordingRef:
    (ref,) = find_recordings(Site("site", root, False, None))
    return ref


def clean(
    root: Path, x_CT: np.ndarray, sfreq: float = 250, names: list[str] = CHANNELS, **sidecar: object
) -> CleanRecording:
    write_eeg(root, "1", "rest", x_CT, names, {"SamplingFrequency": sfreq, **sidecar})
    return read_eeg(only_ref(root), EegConfig(), min_seconds=10)


def amplitude(recording: CleanRecording, hz: float) -> float:
    """Standard deviation [uV] of the sine at ``hz`` in the middle of the recording, averaged over channels."""
    middle = recording.x_TC[len(recording.x_TC) // 4 : -len(recording.x_TC) // 4]
    t = np.arange(len(middle)) / recording.sfreq
    return float(np.abs(np.exp(-2j * np.pi * hz * t) @ middle).mean() / len(middle) * np.sqrt(2))


@pytest.mark.parametrize("sfreq", [128, 200, 250, 512])
def test_amplitude_in_microvolts_survives_any_sampling_rate(tmp_path: Path, sfreq: int) -> None:
    recording = clean(tmp_path, tone(10, 20, sfreq) + noise(sfreq), sfreq)
    assert recording.x_TC.dtype == np.float32
    assert recording.x_TC.shape == (SECONDS * 200, len(CHANNELS))
    assert recording.valid_spans == [0, SECONDS * 200]
    assert amplitude(recording, 10) == pytest.approx(20, rel=0.01)


def test_drift_is_removed_and_power_line_only_where_the_sidecar_says_so(tmp_path: Path) -> None:
    x_CT = tone(10, 20, 250) + tone(60, 10, 250) + tone(0.05, 200, 250) + noise(250)
    notched = clean(tmp_path / "a", x_CT, PowerLineFrequency=60)
    untouched = clean(tmp_path / "b", x_CT, PowerLineFrequency=50)
    unknown = clean(tmp_path / "c", x_CT, PowerLineFrequency="n/a")
    assert amplitude(notched, 60) < 0.2
    assert amplitude(untouched, 60) == pytest.approx(10, rel=0.02)
    assert amplitude(unknown, 60) == pytest.approx(10, rel=0.02)
    assert amplitude(notched, 0.05) < 0.03 * 200
    assert amplitude(notched, 10) == pytest.approx(20, rel=0.01)


def test_frequencies_above_the_band_do_not_alias(tmp_path: Path) -> None:
    recording = clean(tmp_path, tone(10, 20, 512) + tone(140, 50, 512) + noise(512), 512)
    assert amplitude(recording, 200 - 140) < 0.2


def test_bad_channels_are_marked_and_kept_out_of_the_reference(tmp_path: Path) -> None:
    x_CT = tone(10, 20, 250) + noise(250)
    x_CT[2] *= 40  # an outlier
    x_CT[3] = 7.0  # flat
    write_eeg(tmp_path, "1", "rest", x_CT, CHANNELS, {"SamplingFrequency": 250})
    rows = [(name, "EEG", "bad" if name == "O1" else "good") for name in CHANNELS]
    write_tsv(tmp_path / "sub-1/eeg/sub-1_task-rest_channels.tsv", ("name", "type", "status"), rows)
    recording = read_eeg(only_ref(tmp_path), EegConfig(), min_seconds=10)
    assert recording.channel_good_C.tolist() == [True, True, False, False, False, True, True, True]
    assert np.isfinite(recording.x_TC).all()
    np.testing.assert_allclose(recording.x_TC[:, recording.channel_good_C].mean(axis=1), 0, atol=1e-4)


def test_other_channels_are_left_out(tmp_path: Path) -> None:
    names = ["Fp1", "Fp2", "C3", "C4", "O1", "O2", "ECG", "misc"]
    write_eeg(tmp_path, "1", "rest", tone(10, 20, 250), names, {"SamplingFrequency": 250})
    table = tmp_path / "sub-1/eeg/sub-1_task-rest_channels.tsv"
    write_tsv(table, ("name", "type"), [("misc", "MISC")])
    assert read_eeg(only_ref(tmp_path), EegConfig(), 10).channels == ["Fp1", "Fp2", "C3", "C4", "O1", "O2"]


def test_a_non_finite_channel_is_marked_and_does_not_spread(tmp_path: Path) -> None:
    x_CT = (tone(10, 20, 250) + noise(250)) * 1e-6
    x_CT[1, 100:110] = np.nan
    path = tmp_path / "sub-1/eeg/sub-1_task-rest_eeg.fif"
    path.parent.mkdir(parents=True)
    raw = mne.io.RawArray(x_CT, mne.create_info(CHANNELS, 250, "eeg"), verbose="ERROR")
    raw.set_annotations(mne.Annotations([5.0, 12.0], [2.0, 1.0], ["BAD_motion", "eyes closed"]))
    raw.save(path, verbose="ERROR")
    recording = read_eeg(only_ref(tmp_path), EegConfig(), min_seconds=10)
    assert recording.channel_good_C.tolist() == [True, False] + [True] * 6
    assert np.isfinite(recording.x_TC).all()
    assert recording.valid_spans == [0, 1000, 1400, SECONDS * 200]
    assert amplitude(recording, 10) > 16


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_a_wrong_unit_is_refused(tmp_path: Path, factor: float) -> None:
    path = tmp_path / "sub-1/eeg/sub-1_task-rest_eeg.fif"
    path.parent.mkdir(parents=True)
    x_CT = (tone(10, 20, 250) + noise(250)) * 1e-6 * factor
    mne.io.RawArray(x_CT, mne.create_info(CHANNELS, 250, "eeg"), verbose="ERROR").save(path, verbose="ERROR")
    with pytest.raises(RecordingError, match="median channel amplitude") as error:
        read_eeg(only_ref(tmp_path), EegConfig(), min_seconds=10)
    assert error.value.reason == "wrong-unit"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("EEG FP1-REF", "Fp1"), ("EEG T3-LE", "T7"), ("Fc5.", "FC5"), ("Cz..", "Cz"), ("T6", "P8"), ("A1", "M1"),
     ("fpz", "Fpz"), ("E17", "E17"), ("EEG", "EEG"), ("REF", "REF")],
)  # fmt: skip
def test_channel_names(name: str, expected: str) -> None:
    assert normalise_channel(name) == expected


def test_positions_are_head_millimetres_from_the_template_or_the_electrodes_table(tmp_path: Path) -> None:
    names = ["Cz", "T3", "odd", "Oz", "Fz", "Pz", "C3", "C4"]
    recording = clean(tmp_path, tone(10, 20, 250), names=names)
    assert recording.channels == ["Cz", "T7", *names[3:]]  # without a place, no channel
    cz, t7, oz = recording.positions_C3[:3]
    assert abs(cz[0]) < 5 and cz[2] > 120  # the top of a head, above the ears
    assert t7[0] < -70 and oz[1] < -70
    np.testing.assert_array_equal(t7, standard_positions_mm()["t7"][1])

    folder = tmp_path / "sub-1/eeg"
    # CTF: x to the nose, y to the left ear.
    write_tsv(folder / "sub-1_electrodes.tsv", ("name", "x", "y", "z"), [("odd", 0.05, 0.02, 0.1), ("Cz", "n/a", 0, 0)])
    write_json(folder / "sub-1_coordsystem.json", {"EEGCoordinateSystem": "CTF", "EEGCoordinateUnits": "m"})
    measured = read_eeg(only_ref(tmp_path), EegConfig(), min_seconds=10).positions_C3
    np.testing.assert_allclose(measured[2], [-20, 50, 100])
    np.testing.assert_array_equal(measured[0], cz)
    write_json(folder / "sub-1_coordsystem.json", {"EEGCoordinateSystem": "Other", "EEGCoordinateUnits": "m"})
    other = read_eeg(only_ref(tmp_path), EegConfig(), min_seconds=10)
    assert "odd" not in other.channels
    assert other.repairs == (
        "sub-1_electrodes.tsv is not used: sub-1_coordsystem.json says EEGCoordinateSystem 'Other', expected CapTrak, "
        "CTF or EEGLAB",
        "sub-1_task-rest_eeg.edf: 1 EEG channels without a position are left out: odd",
    )


@pytest.mark.parametrize(("stated", "notched"), [(50, True), ("50 Hz", True), (5, False), (0, False), ("n/a", False)])
def test_only_what_a_power_line_can_have_is_taken_out(tmp_path: Path, stated: object, notched: bool) -> None:
    """A notch at 5 Hz and its multiples would leave little of an EEG."""
    recording = clean(tmp_path, tone(10, 20, 250) + tone(50, 10, 250) + noise(250), PowerLineFrequency=stated)
    assert amplitude(recording, 10) == pytest.approx(20, rel=0.01)
    assert amplitude(recording, 50) == pytest.approx(0.0 if notched else 10, abs=0.5)
    assert bool(recording.repairs) == (stated in (5, 0))


def test_a_rate_that_no_eeg_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="sampling frequency 10 Hz, expected 30 to 200000 Hz") as error:
        clean(tmp_path, noise(10), 10)
    assert error.value.reason == "sfreq-mismatch"


def in_memory(
    x_CT: np.ndarray, names: list[str], sfreq: float, min_seconds: float = 10, **config: float
) -> tuple[CleanRecording, EegDetails]:
    """Microvolts in memory through the cleaning."""
    raw = mne.io.RawArray(1e-6 * x_CT, mne.create_info(names, sfreq, "eeg"), verbose="ERROR")
    ref = RecordingRef(Site("site", Path(), False, None), Path("x_eeg.edf"), "eeg", {}, {})
    return clean_eeg(open_raw(raw, ref), ref, {"PowerLineFrequency": 50}, EegConfig.parse(config, "test"), min_seconds)


def test_exactly_the_least_length_is_enough() -> None:
    x_CT = (tone(10, 20, 250) + noise(250))[:, :2500]
    assert in_memory(x_CT, CHANNELS, 250)[0].valid_spans == [0, 2000]
    with pytest.raises(RecordingError, match=r"x_eeg\.edf: 10\.0 s, expected at least 10 s") as error:
        in_memory(x_CT[:, :-1], CHANNELS, 250)
    assert error.value.reason == "too-short"


def test_what_is_left_outside_of_artefacts_is_at_least_as_long() -> None:
    x_CT = tone(10, 20, 250) + noise(250)
    x_CT[:, 1250:1500] *= 40  # the sixth second, whose edges the filter smears
    found, _ = in_memory(x_CT, CHANNELS, 250)
    left = sum(np.diff(found.valid_spans)[::2]) / 200
    assert found.quality["artefact_fraction"] == pytest.approx(1 - left / SECONDS, abs=1e-6) and 25 < left < 30
    assert all(edge % 200 == 0 for edge in found.valid_spans), "whole seconds"
    assert not any(a < 5.5 * 200 < b for a, b in zip(found.valid_spans[::2], found.valid_spans[1::2], strict=True))
    assert in_memory(x_CT, CHANNELS, 250, left)[0].valid_spans == found.valid_spans
    with pytest.raises(RecordingError, match=f"{left:.1f} s outside of artefacts") as error:
        in_memory(x_CT, CHANNELS, 250, left + 0.01)
    assert error.value.reason == "artefacts"
    assert in_memory(x_CT, CHANNELS, 250, mask_artefacts=False)[0].valid_spans == [0, 6000]


def test_a_single_channel_is_not_referenced_to_itself_and_two_are_to_their_mean() -> None:
    x_CT = tone(10, 20, 250) + noise(250)
    one, two = in_memory(x_CT[2:3], ["C3"], 250)[0], in_memory(x_CT[2:4], ["C3", "C4"], 250)[0]
    assert amplitude(one, 10) == pytest.approx(20, rel=0.01)
    np.testing.assert_allclose(two.x_TC.sum(axis=1), 0, atol=1e-4)


def test_details_say_what_cleaning_found_and_did() -> None:
    names = [*CHANNELS[:6], "EEG T3-REF", "T8", "ECG", "X9"]
    x_CT = np.vstack([tone(10, 20, 250) + noise(250), noise(250)[:2]])
    x_CT[3], x_CT[4, 7] = 3.0, np.nan
    details = in_memory(x_CT, names, 250)[1]
    assert (details.sfreq, details.names) == (250.0, names[:8]) and details.position_from == ["10-05"] * 8
    assert details.bad == ["", "", "", "flat", "non-finite", "", "", ""]
    assert details.others == {"ECG": "named like another kind of channel", "X9": "no position"}
    assert details.notches_hz == [50.0] and details.band_hz == (0.5, 75.0)
    assert in_memory(x_CT, names, 128)[1].band_hz == (0.5, 64.0)
    assert in_memory(x_CT, names, 250, lowpass_hz=120.0)[1].band_hz == (0.5, 100.0), "half of the new rate"
    assert in_memory(x_CT, names, 250, lowpass_hz=120.0)[1].notches_hz == [50.0, 100.0]


@pytest.mark.parametrize(("stated", "line_hz"), [(45, 45.0), (65, 65.0), (44.9, None), (65.1, None), ("60 Hz", 60.0)])
def test_a_power_line_has_45_to_65_hertz(stated: object, line_hz: float | None) -> None:
    repairs: list[str] = []
    assert _line_hz(stated, repairs) == line_hz and bool(repairs) == (line_hz is None)


def test_the_slowest_rate_that_an_eeg_has_is_taken() -> None:
    x_CT = tone(5, 20, 30) + noise(30)
    assert amplitude(in_memory(x_CT, CHANNELS, 30)[0], 5) == pytest.approx(20, rel=0.01)
    with pytest.raises(RecordingError, match=r"sampling frequency 29\.9 Hz"):
        in_memory(x_CT, CHANNELS, 29.9)


@pytest.mark.parametrize("lost", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 3000])
def test_a_value_that_is_none_costs_its_channel_and_changes_no_other(lost: float, place: int) -> None:
    """Also where it is the very first, from which the others count."""
    x_CT = tone(10, 20, 250) + noise(250)
    x_CT[2] = x_CT[3] + 5.0
    sound = in_memory(np.delete(x_CT, 2, axis=0), CHANNELS[:2] + CHANNELS[3:], 250)[0]
    x_CT[2, place] = lost
    found = in_memory(x_CT, CHANNELS, 250)[0]
    assert found.channel_good_C.tolist() == [c != 2 for c in range(8)] and not found.x_TC[:, 2].any()
    np.testing.assert_allclose(np.delete(found.x_TC, 2, axis=1), sound.x_TC, atol=1e-3)
