"""EEG files that must be refused, each with its own reason, and those that are put right."""

import re
import shutil
from pathlib import Path

import edfio
import mne
import numpy as np
import pybv
import pytest
import scipy.io

from mcsp.config import EegConfig
from mcsp.data_sharding.bids.find import find_recordings
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import RecordingRef, Site
from mcsp.data_sharding.bids.write import write_eeg, write_json, write_tsv
from mcsp.data_sharding.clean.eeg import read_eeg
from mcsp.data_sharding.clean.recording import CleanRecording

CHANNELS = ["Fp1", "Fp2", "C3", "C4", "O1", "O2", "T7", "T8"]
SFREQ, SECONDS = 250, 40
STEM = "sub-1/eeg/sub-1_task-rest"


def eeg_uv(seed: int = 0) -> np.ndarray:
    """Ten Hz at 20 uV and noise."""
    t = np.arange(SECONDS * SFREQ) / SFREQ
    phases = np.arange(len(CHANNELS))[:, None]
    noise = np.random.default_rng(seed).standard_normal((len(CHANNELS), len(t)))
    return 28 * np.sin(2 * np.pi * 10 * t + phases) + 3 * noise


def only_ref(root: Path) -> RecordingRef:
    (ref,) = find_recordings(Site("site", root, False, None))
    return ref


def write(root: Path, x_CT: np.ndarray | None = None, names: list[str] = CHANNELS, **sidecar: object) -> Path:
    return write_eeg(
        root, "1", "rest", eeg_uv() if x_CT is None else x_CT, names, {"SamplingFrequency": SFREQ, **sidecar}
    )


def read(root: Path, **options: object) -> CleanRecording:
    return read_eeg(only_ref(root), EegConfig.parse(options, "test"), min_seconds=10)


def reason(root: Path, **options: object) -> str:
    with pytest.raises(RecordingError) as error:
        read(root, **options)
    # One line that begins with the file.
    assert re.match(r"[\w.-]+\.(edf|vhdr|set|fif|eeg|json|tsv|1D|nii|gz)[: ]", str(error.value))
    assert "\n" not in str(error.value)
    return error.value.reason


def patch(path: Path, start: int, text: str, width: int = 8) -> None:
    content = bytearray(path.read_bytes())
    content[start : start + width] = text.ljust(width).encode()
    path.write_bytes(content)


def test_an_edf_file_cut_short_or_with_a_lying_header(tmp_path: Path) -> None:
    path = write(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert reason(tmp_path) == "truncated"
    path.write_bytes(whole)
    records = int(whole[236:244])
    patch(path, 236, str(max(records // 2, 1)) if records > 1 else "0")
    assert reason(tmp_path) == "wrong-length"
    patch(path, 236, "-1")  # a recorder that was switched off
    assert len(read(tmp_path).x_TC) == SECONDS * 200
    path.write_bytes(whole)
    patch(path, 192, "EDF+D", 5)
    assert reason(tmp_path) == "not-continuous"


def test_a_recording_of_another_length_than_its_sidecar_says(tmp_path: Path) -> None:
    write(tmp_path, RecordingDuration=2 * SECONDS)
    assert reason(tmp_path) == "truncated"
    write(tmp_path, RecordingDuration=SECONDS / 2)
    assert reason(tmp_path) == "wrong-length"
    write(tmp_path, RecordingDuration=SECONDS)
    read(tmp_path)


def test_brainvision_files_that_do_not_belong_together(tmp_path: Path) -> None:
    folder = tmp_path / "sub-1/eeg"
    folder.mkdir(parents=True)
    names = {"ch_names": CHANNELS, "fname_base": "sub-1_task-rest_eeg", "folder_out": folder}
    pybv.write_brainvision(data=eeg_uv() * 1e-6, sfreq=SFREQ, **names)
    read(tmp_path)
    data = folder / "sub-1_task-rest_eeg.eeg"
    data.write_bytes(data.read_bytes()[:-3])
    assert reason(tmp_path) == "truncated"
    data.unlink()
    assert reason(tmp_path) == "missing-file"


@pytest.mark.parametrize(
    ("line", "expected"), [("Averaged=YES", "not-continuous"), ("UseBigEndianOrder=YES", "unreadable")]
)
def test_brainvision_headers_of_which_mne_takes_no_notice(tmp_path: Path, line: str, expected: str) -> None:
    folder = tmp_path / "sub-1/eeg"
    folder.mkdir(parents=True)
    names = {"ch_names": CHANNELS, "fname_base": "sub-1_task-rest_eeg", "folder_out": folder}
    pybv.write_brainvision(data=eeg_uv() * 1e-6, sfreq=SFREQ, **names)
    header = folder / "sub-1_task-rest_eeg.vhdr"
    text = header.read_text().replace("[Binary Infos]", f"[Binary Infos]\n{line}")
    header.write_text(text.replace("=YES", "=NO"))
    read(tmp_path)
    header.write_text(text)
    assert reason(tmp_path) == expected


def test_comments_and_markers_of_brainvision(tmp_path: Path) -> None:
    """A comment that begins with "bad" is meant so; the marks of another recording are none of this one."""
    folder = tmp_path / "sub-1/eeg"
    folder.mkdir(parents=True)
    raw = mne.io.RawArray(eeg_uv() * 1e-6, mne.create_info(CHANNELS, SFREQ, "eeg"), verbose="ERROR")
    raw.set_annotations(mne.Annotations([10.0], [5.0], ["BAD_move"]))
    path = folder / "sub-1_task-rest_eeg.vhdr"
    raw.export(path, verbose="ERROR")
    assert "Comment,BAD_move" in path.with_suffix(".vmrk").read_text()
    assert read(tmp_path).valid_spans == [0, 2000, 3000, SECONDS * 200]
    shutil.copy(path.with_suffix(".vmrk"), folder / "sub-1_task-go_eeg.vmrk")
    path.write_text(path.read_text().replace("MarkerFile=sub-1_task-rest", "MarkerFile=sub-1_task-go"))
    assert reason(tmp_path) == "other-data"


def test_samples_of_eeglab_that_have_more_rows_than_channels(tmp_path: Path) -> None:
    """MNE takes the first rows, whichever channel has lost its place in chanlocs."""
    (tmp_path / "sub-1/eeg").mkdir(parents=True)
    path = tmp_path / f"{STEM}_eeg.set"
    raw = mne.io.RawArray(eeg_uv() * 1e-6, mne.create_info(CHANNELS, SFREQ, "eeg"), verbose="ERROR")
    raw.export(path, verbose="ERROR")
    read(tmp_path)
    content = scipy.io.loadmat(path, squeeze_me=True)
    fields = content["EEG"].item() if "EEG" in content else None
    struct = content if fields is None else dict(zip(content["EEG"].dtype.names, fields, strict=True))
    struct = {name: value for name, value in struct.items() if not name.startswith("__")}
    scipy.io.savemat(path, struct | {"chanlocs": struct["chanlocs"][1:]}, appendmat=False)
    assert reason(tmp_path) == "channels-mismatch"


def test_trials_of_eeglab_are_no_continuous_recording(tmp_path: Path) -> None:
    info = mne.create_info(CHANNELS, SFREQ, "eeg")
    trials = mne.EpochsArray(eeg_uv().reshape(len(CHANNELS), 10, -1).transpose(1, 0, 2) * 1e-6, info, verbose="error")
    (tmp_path / "sub-1/eeg").mkdir(parents=True)
    trials.export(tmp_path / f"{STEM}_eeg.set", verbose="error")
    assert reason(tmp_path) == "not-continuous"


def test_sidecars_and_tables_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path)
    sidecar, events = tmp_path / f"{STEM}_eeg.json", tmp_path / f"{STEM}_events.tsv"
    sound = sidecar.read_bytes()
    sidecar.write_bytes(b'{"Manufacturer": "M\xfcller"}')
    assert reason(tmp_path) == "bad-encoding"
    sidecar.write_text("[1, 2]")
    assert reason(tmp_path) == "invalid-json"
    sidecar.write_bytes(sound)
    write_tsv(events, ("onset", "duration", "trial_type"), [("later", 1, "x")])
    assert reason(tmp_path) == "bad-table"


def test_a_table_of_other_channels_is_refused_and_a_few_odd_rows_are_not(tmp_path: Path) -> None:
    write(tmp_path)
    table = tmp_path / f"{STEM}_channels.tsv"
    write_tsv(table, ("name", "type"), [(name, "EEG") for name in ("A", "B", "C3")])
    assert reason(tmp_path) == "channels-mismatch"
    write_tsv(table, ("name", "type"), [(name, "EEG") for name in (*CHANNELS, "removed")])
    assert read(tmp_path).repairs == (f"{table.name}: rows without a channel in the file are ignored: removed",)


def test_a_montage_without_any_known_place_is_refused(tmp_path: Path) -> None:
    write(tmp_path, names=[f"X{i}" for i in range(len(CHANNELS))])
    assert reason(tmp_path) == "unknown-montage"
    rows = [(f"X{i}", 0.01, 0.02 * i, 0.1) for i in range(1, 5)]
    write_tsv(tmp_path / "sub-1/eeg/sub-1_electrodes.tsv", ("name", "x", "y", "z"), rows)
    system = {"EEGCoordinateSystem": "CapTrak", "EEGCoordinateUnits": "m"}
    write_json(tmp_path / "sub-1/eeg/sub-1_coordsystem.json", system)
    recording = read(tmp_path)
    assert recording.channels == ["X1", "X2", "X3", "X4"]
    np.testing.assert_allclose(recording.positions_C3[1], [10, 40, 100])
    write_tsv(tmp_path / "sub-1/eeg/sub-1_electrodes.tsv", ("name", "x", "y", "z"), rows[:3])
    assert reason(tmp_path) == "unknown-montage"  # three of eight


def test_too_many_bad_channels_reject_the_recording_with_the_commonest_cause(tmp_path: Path) -> None:
    clipped = eeg_uv()
    clipped[:5] = np.clip(clipped[:5] * 10, -150, 150)
    write(tmp_path, clipped)
    assert reason(tmp_path) == "clipped"
    assert read(tmp_path, max_bad_fraction=0.7).channel_good_C.tolist() == [False] * 5 + [True] * 3
    flat = eeg_uv()
    flat[:5] = 3.0
    write(tmp_path, flat)
    assert reason(tmp_path) == "flat"
    write(tmp_path)
    rows = [(name, "EEG", "bad" if i < 5 else "good") for i, name in enumerate(CHANNELS)]
    write_tsv(tmp_path / f"{STEM}_channels.tsv", ("name", "type", "status"), rows)
    assert reason(tmp_path) == "bad-channels"


def test_most_channels_not_finite(tmp_path: Path) -> None:
    x_CT = eeg_uv() * 1e-6
    x_CT[:5, 70] = np.inf
    (tmp_path / "sub-1/eeg").mkdir(parents=True)
    raw = mne.io.RawArray(x_CT, mne.create_info(CHANNELS, SFREQ, "eeg"), verbose="ERROR")
    raw.save(tmp_path / f"{STEM}_eeg.fif", verbose="ERROR")
    assert reason(tmp_path) == "non-finite"


def test_a_rough_channel_is_marked(tmp_path: Path) -> None:
    x_CT = eeg_uv()
    x_CT[2] += 60 * np.random.default_rng(9).standard_normal(x_CT.shape[1])
    write(tmp_path, x_CT)
    assert read(tmp_path).channel_good_C.tolist() == [True, True, False] + [True] * 5


def test_artefacts_are_masked_and_only_where_they_are(tmp_path: Path) -> None:
    x_CT = eeg_uv()
    x_CT[:, 5 * SFREQ : 7 * SFREQ] *= 20  # a movement in all channels
    x_CT[1, 15 * SFREQ : 16 * SFREQ] *= 20  # a pop in one: its neighbours go on
    x_CT[:, 20 * SFREQ : 23 * SFREQ] = 5.0  # switched off
    write(tmp_path, x_CT)
    recording = read(tmp_path)
    spans = np.array(recording.valid_spans) / 200
    np.testing.assert_array_equal(spans, [0, 5, 7, 20, 23, SECONDS])
    assert recording.quality["artefact_fraction"] == pytest.approx(5 / SECONDS)
    assert recording.quality["bad_channels"] == 0 and 15 < recording.quality["amplitude"] < 35
    assert recording.channel_good_C.all()
    assert read(tmp_path, mask_artefacts=False).valid_spans == [0, SECONDS * 200]


def test_a_recording_of_artefacts_is_refused(tmp_path: Path) -> None:
    rows = [(0, SECONDS - 5, "BAD_motion")]
    write(tmp_path)
    write_tsv(tmp_path / f"{STEM}_events.tsv", ("onset", "duration", "trial_type"), rows)
    assert reason(tmp_path) == "artefacts"


def test_events_beyond_the_end_are_ignored_and_told(tmp_path: Path) -> None:
    write(tmp_path)
    rows = [(5, 2, "bad stretch"), (SECONDS + 60, 1, "bad"), (SECONDS + 90, 1, "eyes"), ("n/a", "n/a", "lost")]
    write_tsv(tmp_path / f"{STEM}_events.tsv", ("onset", "duration", "trial_type"), rows)
    recording = read(tmp_path)
    assert recording.valid_spans == [0, 1000, 1400, SECONDS * 200]
    assert recording.repairs == ("sub-1_task-rest_events.tsv: 2 events begin after the end at 40.0 s and are ignored",)


@pytest.mark.parametrize(
    ("columns", "rows", "spans", "without_length"),
    [
        (("trial_type", "value"), [(10, 5, "STATUS", "BAD_move"), (20, 0, "stim", "1")], [0, 2000, 3000, 8000], 0),
        (("trial_type", "value"), [(10, 5, "bad", "1"), (15, 1, "n/a", "Bad Interval")], [0, 2000, 3200, 8000], 0),
        (("value",), [(10, 5, "BAD_ACQ_SKIP"), (12, 0, "badge")], [0, 2000, 3000, 8000], 1),
        (("value",), [(10, 0, "boundary")], [0, 1900, 2100, 8000], 0),
        (("trial_type",), [(10, "n/a", "BAD"), (12, 0, "bad x"), (15, -5, "bad"), ("n/a", 5, "bad")], [0, 8000], 4),
    ],
)  # fmt: skip
def test_bad_spans_of_either_column_and_those_without_a_length(
    tmp_path: Path, columns: tuple[str, ...], rows: list[tuple], spans: list[int], without_length: int
) -> None:
    """MNE takes nothing out where a span has no length; here the report says so."""
    write(tmp_path)
    write_tsv(tmp_path / f"{STEM}_events.tsv", ("onset", "duration", *columns), rows)
    recording = read(tmp_path)
    assert recording.valid_spans == spans
    told = f"sub-1_task-rest_eeg.edf: {without_length} bad spans without a length leave nothing out"
    assert recording.repairs == ((told,) if without_length else ())


@pytest.mark.parametrize("per_second", [SFREQ, 1000], ids=["samples", "milliseconds"])
def test_bad_spans_among_times_that_are_no_seconds_are_refused(tmp_path: Path, per_second: float) -> None:
    write(tmp_path)
    events = [(0, 1, "stim"), (10, 5, "BAD_move"), (20, 1, "stim"), (30, 1, "stim")]
    rows = [(onset * per_second, length * per_second, text) for onset, length, text in events]
    write_tsv(tmp_path / f"{STEM}_events.tsv", ("onset", "duration", "trial_type"), rows)
    assert reason(tmp_path) == "bad-table"
    write_tsv(tmp_path / f"{STEM}_events.tsv", ("onset", "duration", "trial_type"), [r for r in rows if r[2] == "stim"])
    assert read(tmp_path).valid_spans == [0, SECONDS * 200]  # nothing that is used


def test_jumps_between_pieces_are_left_out(tmp_path: Path) -> None:
    raw = mne.io.RawArray(eeg_uv() * 1e-6, mne.create_info(CHANNELS, SFREQ, "eeg"), verbose="ERROR")
    raw.set_annotations(mne.Annotations([0.0, 12.0], [0.0, 0.0], ["New Segment/", "boundary"]))
    (tmp_path / "sub-1/eeg").mkdir(parents=True)
    raw.save(tmp_path / f"{STEM}_eeg.fif", verbose="ERROR")
    assert read(tmp_path).valid_spans == [0, 2300, 2500, SECONDS * 200]


def test_a_site_can_put_its_unit_and_its_power_line_right(tmp_path: Path) -> None:
    path = write(tmp_path)
    signals = [
        edfio.EdfSignal(x, SFREQ, label=c, physical_dimension="mV") for c, x in zip(CHANNELS, eeg_uv(), strict=True)
    ]
    edfio.Edf(signals).write(path)
    assert reason(tmp_path) == "wrong-unit"
    assert read(tmp_path, gain=1e-3).quality["amplitude"] == pytest.approx(29, rel=0.05)
    t = np.arange(SECONDS * SFREQ) / SFREQ
    write(tmp_path, eeg_uv() + 10 * np.sin(2 * np.pi * 60 * t + np.arange(8)[:, None]))
    lines = [np.abs(np.fft.rfft(read(tmp_path, line_hz=hz).x_TC[2000:6000, 0]))[60 * 20] for hz in (None, 60)]
    assert lines[1] < 0.02 * lines[0]


def test_of_two_channels_of_one_place_the_first_has_it(tmp_path: Path) -> None:
    write(tmp_path, names=["EEG C3-REF", "C3-M2", *CHANNELS[3:], "Cz"])
    assert read(tmp_path).channels == ["C3", *CHANNELS[3:], "Cz"]
    others = ["C4", "O1", "O2", "P3", "P4", "Cz"]
    write(tmp_path, names=["T3", "T7", *others])  # the old and the new name of one place
    assert read(tmp_path).channels == ["T7", *others]
