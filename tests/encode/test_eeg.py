"""encode_raw: the numbers of a corpus, every format, and one clear line for what a laboratory gets wrong.

Covers: mcsp/encode/recording.py
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import edfio
import mne
import numpy as np
import pybv
import pytest
import torch

from mcsp.batch import collate
from mcsp.config import EegConfig
from mcsp.data_sharding.bids.find import find_recordings
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import Site
from mcsp.data_sharding.bids.write import write_eeg, write_json, write_tsv
from mcsp.data_sharding.build.pseudonyms import subject_hash, subject_key
from mcsp.data_sharding.clean.eeg import read_eeg
from mcsp.data_sharding.clean.recording import CleanRecording, encode
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.eeg import raw_of_array
from mcsp.encode.pretrained import PretrainedMCSP, from_pretrained
from mcsp.encode.recording import OF_WINDOWS, as_recording, split_parts
from mcsp.model.weights import write_pretrained
from mcsp.schema import Window
from mcsp.windows import window_starts

CHANNELS = ["Fp1", "Fp2", "C3", "C4", "O1", "O2", "T3", "T4"]
SFREQ = 250.0
FP16 = 2e-3  # relative error of features whose recording was stored with 11 bits


def eeg_uv(seconds: float = 40.0, n_channels: int = len(CHANNELS), seed: int = 0) -> np.ndarray:
    """Alpha of another phase in each channel, in noise that is smoother than white; uV, (C, T)."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * SFREQ)) / SFREQ
    alpha = 15 * np.sin(2 * np.pi * 10 * t + rng.uniform(0, 6, (n_channels, 1)))
    noise = np.cumsum(rng.standard_normal((n_channels, len(t))), axis=1)
    return alpha + 10 * rng.standard_normal(alpha.shape) + noise - noise.mean(axis=1, keepdims=True)


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def windows_of(clean: CleanRecording) -> list[Window]:
    recording = as_recording(clean, "eeg")
    return [Window(clean.x_TC[s : s + 2000], recording, s) for s in window_starts(recording, 2000, 4)]


def raw_of(x_CT_uv: np.ndarray, names: list[str] = CHANNELS) -> mne.io.BaseRaw:
    return mne.io.RawArray(x_CT_uv * 1e-6, mne.create_info(names, SFREQ, "eeg"), verbose="ERROR")


def write_edf(path: Path, x_CT: np.ndarray, names: list[str], unit: str = "uV") -> Path:
    signals = [edfio.EdfSignal(x, SFREQ, label=n, physical_dimension=unit) for n, x in zip(names, x_CT, strict=True)]
    edfio.Edf(signals).write(path)
    return path


@pytest.mark.parametrize("site", ["simulated-a", "simulated-b"])
def test_features_are_those_of_the_same_recording_in_a_corpus(
    pretrained: PretrainedMCSP, corpus_dir: Path, corpus_key: None, site: str
) -> None:
    path = next((corpus_dir.parent / "bids" / site).glob("sub-*/eeg/*_eeg.edf"))
    hashed = subject_hash(subject_key(), site, path.name.split("_")[0].removeprefix("sub-"))
    corpus = Corpus(corpus_dir)
    (recording,) = (r for r in corpus.recordings if r.subject == hashed and r.modality == "eeg")
    starts = window_starts(recording, 2000, 4)
    with torch.inference_mode():
        batch = collate([[corpus.read_window(recording, start, 2000)] for start in starts])
        expected_WF = pretrained.features(batch.signals)["eeg"].double().numpy()
    found = pretrained.encode_raw(path)
    assert (found.window_starts_seconds * 200).round().astype(int).tolist() == starts
    assert 0 < difference(found.window_features, expected_WF) < FP16
    whole = collate([[corpus.read_window(recording, 0, recording.n_samples)]])
    with torch.inference_mode():
        measured_F = pretrained.measured(whole.signals)["eeg"][0].double().numpy()
    of_whole = split_parts(measured_F[None], pretrained.measured_widths("eeg"))
    of_windows = split_parts(found.window_features.mean(axis=0, keepdims=True), pretrained.feature_widths("eeg"))
    for name, part_1F in split_parts(found.features[None], pretrained.feature_widths("eeg")).items():
        expected_1F = of_whole[name] if name in of_whole and name not in OF_WINDOWS else of_windows[name]
        assert difference(part_1F, expected_1F) < FP16, name


def test_what_bids_says_beside_a_file_is_used_and_a_raw_that_says_it_gives_the_same(
    pretrained: PretrainedMCSP, tmp_path: Path
) -> None:
    """Power line, a bad channel, measured electrodes, masked time."""
    write_json(tmp_path / "dataset_description.json", {"Name": "clinic", "BIDSVersion": "1.10.0"})
    x_CT = eeg_uv(60)
    x_CT += 20 * np.sin(2 * np.pi * 60 * np.arange(x_CT.shape[1]) / SFREQ)
    path = write_eeg(tmp_path, "1", "rest", x_CT, CHANNELS, {"SamplingFrequency": SFREQ, "PowerLineFrequency": 60})
    rows = [(name, "EEG", "bad" if name == "O1" else "good") for name in CHANNELS]
    write_tsv(path.with_name("sub-1_task-rest_channels.tsv"), ("name", "type", "status"), rows)
    write_tsv(path.with_name("sub-1_task-rest_events.tsv"), ("onset", "duration", "trial_type"), [(20, 3, "bad_move")])
    write_tsv(path.with_name("sub-1_electrodes.tsv"), ("name", "x", "y", "z"), [("C3", -60, 5, 80)])
    system = {"EEGCoordinateSystem": "CapTrak", "EEGCoordinateUnits": "mm"}
    write_json(path.with_name("sub-1_coordsystem.json"), system)
    found = pretrained.encode_raw(path)
    text = str(found.report)
    for expected in (
        "T3 -> T7, T4 -> T8", "O1 (bad-channels)", "1 from electrodes.tsv", "7 from 10-05", "notch at 60 Hz",
        "0.5 to 75 Hz", "250 to 200 Hz", "average of the 7 good channels", "3.0 of 60.0 s are masked",
    ):  # fmt: skip
        assert expected in text, (expected, text)
    (ref,) = find_recordings(Site("clinic", tmp_path, False, None))
    clean = read_eeg(ref, EegConfig(), min_seconds=10)
    stored_TC, scale = encode(clean.x_TC, clean.channel_good_C)
    windows = [replace(w, x_TC=stored_TC[w.start : w.stop], scale=scale) for w in windows_of(clean)]
    with torch.inference_mode():
        expected_WF = pretrained.features(collate([[w] for w in windows]).signals)["eeg"].double().numpy()
    assert 0 < difference(found.window_features, expected_WF) < FP16

    raw = mne.io.read_raw_edf(path, verbose="ERROR")
    raw.info["line_freq"], raw.info["bads"] = 60, ["O1"]
    raw.set_annotations(mne.Annotations([20.0], [3.0], ["bad_move"]))
    raw.set_montage(
        mne.channels.make_dig_montage({"C3": [-0.06, 0.005, 0.08]}, coord_frame="head"), on_missing="ignore"
    )
    again = pretrained.encode_raw(raw, measured_positions=True)
    assert difference(again.window_features, found.window_features) < 1e-6
    assert difference(pretrained.encode_raw(raw).window_features, found.window_features) > 1e-3


def test_where_nearly_all_is_marked_bad_only_windows_around_the_rest_are_read(pretrained: PretrainedMCSP) -> None:
    """300 s of which 275 s are marked bad, windows of 30 s; of 10 good seconds no window is made."""
    x_CT = eeg_uv(300)
    good = raw_of(x_CT)
    good.set_annotations(mne.Annotations([0.0, 125.0], [100.0, 175.0], ["BAD_move", "BAD_move"]))
    found = pretrained.encode_raw(good, line_hz=50, window_seconds=30.0)
    assert len(found.window_starts_seconds) == 4
    overlap = np.minimum(found.window_starts_seconds + 30, 125) - np.maximum(found.window_starts_seconds, 100)
    assert overlap.min() > 22
    text = " ".join(str(found.report).split())
    assert "260.0 of 300.0 s are in no window" in text and "4 of 4 windows hold masked time" in text
    alone = pretrained.encode_raw(raw_of(x_CT[:, 25000:31250]), line_hz=50, window_seconds=30.0)
    assert np.corrcoef(found.features, alone.features)[0, 1] > 0.9
    bad = raw_of(x_CT)
    bad.set_annotations(mne.Annotations([0.0, 110.0], [100.0, 190.0], ["BAD_move", "BAD_move"]))
    with pytest.raises(ValueError, match=r"10\.0 of 300\.0 s are valid, expected a window of 30 s with at least 50%"):
        pretrained.encode_raw(bad, line_hz=50, window_seconds=30.0)


@pytest.mark.filterwarnings("ignore:This filename")
@pytest.mark.parametrize("suffix", [".edf", ".vhdr", ".set", ".fif"])
def test_every_format_gives_the_features_of_the_raw_in_memory(
    pretrained: PretrainedMCSP, tmp_path: Path, suffix: str
) -> None:
    x_CT, path = eeg_uv(), tmp_path / f"recording{suffix}"
    raw = raw_of(x_CT)
    match suffix:
        case ".edf":
            write_edf(path, x_CT, CHANNELS)
        case ".vhdr":
            pybv.write_brainvision(
                data=x_CT * 1e-6, sfreq=SFREQ, ch_names=CHANNELS, fname_base=path.stem, folder_out=tmp_path
            )
        case ".set":
            mne.export.export_raw(path, raw, verbose="ERROR")
        case ".fif":
            raw.save(path, verbose="ERROR")
    expected = pretrained.encode_raw(raw, line_hz=50)
    found = pretrained.encode_raw(path, line_hz=50)
    assert found.report.source == path.name
    assert found.features.shape == (found.window_features.shape[1],)
    assert difference(found.features, expected.features) < FP16  # EDF and BrainVision hold 16 bits


def test_a_raw_is_not_changed_and_other_channels_are_left_out(pretrained: PretrainedMCSP) -> None:
    names = ["EEG FP1-REF", "Fp2", "C3", "C4", "O1", "O2", "ECG", "X9"]
    x_CT = eeg_uv()
    x_CT[3] = 7.0
    raw = raw_of(x_CT, names)
    before = raw.get_data().copy()
    report = pretrained.encode_raw(raw).report
    np.testing.assert_array_equal(raw.get_data(), before)
    fates = {fate.name: fate for fate in report.channels}
    assert (fates["EEG FP1-REF"].channel, fates["EEG FP1-REF"].used) == ("Fp1", True)
    assert (fates["C4"].used, fates["C4"].reason) == (False, "flat")
    assert (fates["ECG"].channel, fates["ECG"].used) == ("", False)
    assert (fates["X9"].used, fates["X9"].reason) == (False, "no position")
    assert any("pass line_hz=50 or line_hz=60" in warning for warning in report.warnings)
    assert "WARNING" in str(report)


def test_positions_of_a_montage_serve_names_that_say_nothing(pretrained: PretrainedMCSP) -> None:
    from mcsp.data_sharding.clean.eeg_channels import standard_positions_mm

    x_CT = eeg_uv()
    positions = np.array([standard_positions_mm()[name.lower()][1] for name in [*CHANNELS[:6], "T7", "T8"]])
    by_name = pretrained.encode_raw(raw_of_array(x_CT, SFREQ, CHANNELS))
    by_place = pretrained.encode_raw(raw_of_array(x_CT, SFREQ, positions_mm=positions))
    assert "8 from file" in by_place.report.steps["positions"]
    np.testing.assert_allclose(by_place.features, by_name.features, rtol=1e-3, atol=1e-3)


def test_names_of_biosemi_caps_are_not_taken_for_places_of_the_10_05_system(pretrained: PretrainedMCSP) -> None:
    """A1 is no mastoid there, and C3 lies elsewhere; the montage that was set knows."""
    montage = mne.channels.make_standard_montage("biosemi128")
    raw = raw_of(eeg_uv(n_channels=128), montage.ch_names)
    with pytest.raises(ValueError, match=r"no position for A1, A2, A3, A4 \.\.\.; expected 10-05 names or electrodes"):
        pretrained.encode_raw(raw)
    report = pretrained.encode_raw(raw.set_montage(montage), windows_per_recording=1).report
    assert report.steps["positions"] == "128 from file" and "renamed" not in report.steps
    own = pretrained.encode_raw(raw_of(eeg_uv(), [*CHANNELS[:4], "A1", "A2", "C5", "B1"])).report  # one odd name
    assert "A1 -> M1" in str(own) and [f.name for f in own.channels if not f.used] == ["B1"]


def test_windows_can_be_chosen_and_short_ones_are_pointed_out(pretrained: PretrainedMCSP) -> None:
    encoded = pretrained.encode_raw(raw_of(eeg_uv()), windows_per_recording=7, window_seconds=4.0, batch_size=2)
    assert len(encoded.window_features) == 7 and encoded.window_seconds == 4.0
    assert any("in pretraining they had 10 s" in w for w in encoded.report.warnings)


def test_filters_that_were_applied_before_are_pointed_out(pretrained: PretrainedMCSP) -> None:
    raw = raw_of(eeg_uv()).filter(2.0, 30.0, verbose="ERROR")
    warnings = " ".join(pretrained.encode_raw(raw).report.warnings)
    assert "low-passed at 30 Hz before" in warnings and "high-passed at 2 Hz before" in warnings


def mistake(change: Callable[[np.ndarray], np.ndarray], names: list[str] = CHANNELS) -> mne.io.BaseRaw:
    return raw_of(change(eeg_uv(n_channels=len(names))), names)


MISTAKES = {
    "microvolts as volts": (
        lambda: mistake(lambda x: x * 1e6),
        r"median channel amplitude \S+ uV, expected 0\.1 to 5000 uV \(microvolts where volts were expected\?\)",
    ),
    "millivolts as volts": (lambda: mistake(lambda x: x * 1e3), r"expected 0\.1 to 5000 uV \(millivolts"),
    "volts as microvolts": (
        lambda: raw_of_array(eeg_uv() * 1e-6, SFREQ, CHANNELS),
        r"uV, expected 0\.1 to 5000 uV \(volts where microvolts were expected\?\)",
    ),
    "three channels in common": (
        lambda: mistake(lambda x: x, ["Fp1", "Cz", "O2", "X1", "X2", "X3"]),
        r"3 of 6 EEG channels have a position \(Fp1, Cz, O2\), expected at least 4: X1, X2, X3 have none; expected",
    ),
    "differences of electrodes": (
        lambda: mistake(lambda x: x, ["Fp1-F7", "EEG F7-T3", "T3-T5", "T5-O1"]),
        r"no position for Fp1-F7, EEG F7-T3, T3-T5, T5-O1: differences between electrodes; expected each",
    ),
    "no channel in common": (
        lambda: mistake(lambda x: x, ["X1", "X2", "X3"]), "no position for X1, X2, X3"
    ),
    "NaN": (lambda: mistake(lambda x: x * np.nan), r"8 of 8 channels are bad \(8 non-finite\)"),
    "NaN in most channels": (
        lambda: mistake(lambda x: np.where(np.arange(8)[:, None] < 5, np.nan, x)), "5 of 8 channels are bad"
    ),
    "period for rate": (
        lambda: raw_of_array(eeg_uv(), 0.004, CHANNELS), "sampling frequency 0.004 Hz, expected 30 to"
    ),
    "too short": (lambda: mistake(lambda x: x[:, :1000]), r"4\.0 s, expected at least 10 s"),
    "an array": (lambda: eeg_uv(), "expected a path or a continuous mne.io.Raw, found ndarray"),
    "trials": (
        lambda: mne.EpochsArray(eeg_uv()[None] * 1e-6, mne.create_info(CHANNELS, SFREQ, "eeg"), verbose="ERROR"),
        "continuous mne.io.Raw, found EpochsArray",
    ),
    "another format": (lambda: "recording.mff", r"recording.mff: expected \.edf.* pass the Raw"),
    "no file": (lambda: "absent.edf", "absent.edf: no such file"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_line(pretrained: PretrainedMCSP, name: str) -> None:
    make, pattern = MISTAKES[name]
    with pytest.raises(ValueError, match=pattern) as error:
        pretrained.encode_raw(make())
    assert "\n" not in str(error.value)


def test_errors_of_files_name_the_file_and_have_a_reason(pretrained: PretrainedMCSP, tmp_path: Path) -> None:
    path = write_edf(tmp_path / "in mV.edf", eeg_uv(), CHANNELS, unit="V")
    with pytest.raises(RecordingError, match=r"^in mV\.edf: median channel amplitude") as error:
        pretrained.encode_raw(path)
    assert error.value.reason == "wrong-unit"
    path = tmp_path / "broken.edf"
    path.write_bytes(b"0       no EDF header" + bytes(300))
    with pytest.raises(RecordingError, match=r"^broken\.edf: ") as error:
        pretrained.encode_raw(path)
    assert error.value.reason == "unreadable"
    path = write_eeg(tmp_path, "1", "rest", eeg_uv(), CHANNELS, {"SamplingFrequency": SFREQ})
    write_json(tmp_path / "dataset_description.json", {"Name": "x", "BIDSVersion": "1.10.0"})
    write_json(path.with_suffix(".json"), {"SamplingFrequency": 500})
    with pytest.raises(RecordingError, match="sidecar says 500 Hz, the file's header 250 Hz"):
        pretrained.encode_raw(path)


def test_an_export_that_does_not_say_how_its_recordings_were_cleaned(
    pretrained: PretrainedMCSP, tmp_path: Path
) -> None:
    write_pretrained(pretrained, tmp_path / "old", {"window_seconds": {"eeg": 10.0}})
    with pytest.raises(ValueError, match=r"preprocessing\.json: expected cleaning\.eeg"):
        from_pretrained(tmp_path / "old").encode_raw(raw_of(eeg_uv()))


def as_edf(path: Path, extra: Sequence[edfio.EdfSignal] = (), annotations: Sequence[edfio.EdfAnnotation] = ()) -> Path:
    """The recording of ``eeg_uv`` as a file, with further signals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = zip(CHANNELS, eeg_uv(), strict=True)
    signals = [edfio.EdfSignal(x, SFREQ, label=name, physical_dimension="uV") for name, x in pairs]
    edfio.Edf([*extra, *signals], annotations=list(annotations)).write(path)
    return path


def test_a_file_of_several_rates_is_encoded_as_without_the_others(pretrained: PretrainedMCSP, tmp_path: Path) -> None:
    """The builder's rules hold here too: by path, and for a Raw that MNE would resample piece by piece."""
    x_T = 30 * np.random.default_rng(1).standard_normal(2 * eeg_uv().shape[1])
    emg = edfio.EdfSignal(x_T, 2 * SFREQ, label="EMG", physical_dimension="uV")
    alone = pretrained.encode_raw(as_edf(tmp_path / "alone.edf"), line_hz=50)
    path = as_edf(tmp_path / "both.edf", [emg])
    both = pretrained.encode_raw(path, line_hz=50)
    np.testing.assert_array_equal(both.features, alone.features)
    assert "EMG" in str(both.report)
    raw = pretrained.encode_raw(mne.io.read_raw_edf(path, verbose="error"), line_hz=50)
    assert np.corrcoef(raw.features, alone.features)[0, 1] > 0.999


def test_what_a_corpus_refuses_is_refused_with_the_reason(pretrained: PretrainedMCSP, tmp_path: Path) -> None:
    sound = as_edf(tmp_path / "sub-1/eeg/sub-1_task-rest_eeg.EDF", annotations=[edfio.EdfAnnotation(5, 1, "geXffnet")])
    (tmp_path / "dataset_description.json").write_text('{"Name": "x"}')
    expected = pretrained.encode_raw(sound, line_hz=50).features
    sound.write_bytes(sound.read_bytes().replace(b"geXffnet", b"ge\xf6ffnet"))
    found = pretrained.encode_raw(sound, line_hz=50)
    np.testing.assert_array_equal(found.features, expected)
    assert "read as Latin-1" in found.report.steps["repaired"]
    sidecar = tmp_path / "sub-1/eeg/sub-1_task-rest_eeg.json"
    link = tmp_path / "absent.edf"
    link.symlink_to("nowhere/x.edf")
    empty = tmp_path / "empty.set"
    empty.touch()
    for make, path, reason in (
        (lambda: sidecar.write_text('{"RecordingType": "epoched"}'), sound, "not-continuous"),
        (lambda: sidecar.write_text('{"a":' * 100_000 + "1" + "}" * 100_000), sound, "invalid-json"),
        (lambda: None, link, "missing-file"),
        (lambda: None, empty, "unreadable"),
        (lambda: empty.write_bytes(bytes(5000)), empty, "unreadable"),
    ):
        make()
        with pytest.raises(RecordingError) as caught:
            pretrained.encode_raw(path)
        assert caught.value.reason == reason and "\n" not in str(caught.value) and caught.value.remedy
