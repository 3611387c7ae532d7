"""EDF and BDF as recorders write them: several rates in a file, records with their own times, texts in Latin-1."""

from pathlib import Path

import edfio
import mne
import numpy as np
import pytest

from mcsp.config import EegConfig
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import RecordingRef, ref_of_file
from mcsp.data_sharding.clean.eeg import clean_eeg, read_eeg
from mcsp.data_sharding.clean.eeg_files import open_raw
from mcsp.data_sharding.clean.eeg_headers import EdfHeader, brainvision_values, check_edf, require_own_data
from mcsp.data_sharding.clean.recording import CleanRecording

CHANNELS = ["Fp1", "Fp2", "C3", "C4", "O1", "O2"]
SFREQ, SECONDS = 200, 40


def eeg_uv(sfreq: float = SFREQ, seed: int = 0) -> np.ndarray:
    """Noise that falls with frequency, and 10 Hz; ``(C, T)``."""
    rng, n = np.random.default_rng(seed), round(SECONDS * sfreq)
    hz = np.maximum(np.fft.rfftfreq(n, 1 / sfreq), 1)
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal((len(CHANNELS), n))) / hz**0.7, n)
    return 12 * noise / noise.std() + 20 * np.sin(2 * np.pi * 10 * np.arange(n) / sfreq + np.arange(6)[:, None])


def signals(x_CT: np.ndarray, names: list[str], sfreq: float, bits: int = 16, unit: str = "uV") -> list:
    kind = edfio.EdfSignal if bits == 16 else edfio.BdfSignal
    return [kind(x, sfreq, label=name, physical_dimension=unit) for name, x in zip(names, x_CT, strict=True)]


def write(path: Path, content: list, annotations: tuple = (), bits: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (edfio.Edf if bits == 16 else edfio.Bdf)(content, annotations=annotations).write(path)
    return path


def read(path: Path) -> CleanRecording:
    return read_eeg(ref_of_file(path, "eeg"), EegConfig(), min_seconds=10)


def refusal(path: Path) -> RecordingError:
    with pytest.raises(RecordingError) as caught:
        read(path)
    assert str(caught.value).startswith(path.name)
    return caught.value


@pytest.mark.parametrize(("bits", "emg_hz"), [(16, 2 * SFREQ), (24, 4 * SFREQ), (16, SFREQ // 2)])
def test_another_rate_of_another_channel_changes_no_value_of_the_eeg(tmp_path: Path, bits: int, emg_hz: int) -> None:
    eeg = signals(eeg_uv(), CHANNELS, SFREQ, bits)
    emg = signals(30 * np.random.default_rng(9).standard_normal((1, SECONDS * emg_hz)), ["EMG chin"], emg_hz, bits)
    suffix = "edf" if bits == 16 else "bdf"
    alone = read(write(tmp_path / f"alone_eeg.{suffix}", eeg, bits=bits))
    both = read(write(tmp_path / f"both_eeg.{suffix}", [*emg, *eeg], bits=bits))
    np.testing.assert_array_equal(both.x_TC, alone.x_TC)
    assert both.channels == CHANNELS
    # The truth: what was written, through the same cleaning in memory.
    made = mne.io.RawArray(eeg_uv() * 1e-6, mne.create_info(CHANNELS, SFREQ, "eeg"), verbose="error")
    ref = RecordingRef(ref_of_file(tmp_path / "x.edf", "eeg").site, tmp_path / "x.edf", "eeg", {}, {})
    truth = clean_eeg(open_raw(made, ref), ref, {}, EegConfig(), 10)[0]
    assert min(np.corrcoef(a, b)[0, 1] for a, b in zip(both.x_TC.T, truth.x_TC.T, strict=True)) > 0.9999


def test_channels_without_a_place_may_have_any_rate_and_electrodes_only_one(tmp_path: Path) -> None:
    eeg, slow = signals(eeg_uv(), CHANNELS, SFREQ), signals(eeg_uv(SFREQ // 4)[:1], ["Temp rectal"], SFREQ // 4)
    assert read(write(tmp_path / "a_eeg.edf", [*slow, *eeg])).channels == CHANNELS
    half = signals(eeg_uv(2 * SFREQ)[:2], ["F3", "F4"], 2 * SFREQ)
    error = refusal(write(tmp_path / "b_eeg.edf", [*eeg, *half]))
    assert error.reason == "several-rates"
    assert "EEG at 200 Hz (Fp1, Fp2, C3) and 400 Hz (F3, F4), expected one rate" in str(error)


def test_a_raw_of_several_rates_that_somebody_opened_is_read_as_a_whole(tmp_path: Path) -> None:
    """MNE resamples every piece that is asked for; only the whole has the values of the recording."""
    emg = signals(30 * np.random.default_rng(9).standard_normal((1, 2 * SECONDS * SFREQ)), ["EMG"], 2 * SFREQ)
    path = write(tmp_path / "x_eeg.edf", [*signals(eeg_uv(), CHANNELS, SFREQ), *emg])
    raw, ref = mne.io.read_raw_edf(path, verbose="error"), ref_of_file(path, "eeg")
    opened = open_raw(raw, ref)
    assert opened.raw.preload and not raw.preload
    found = clean_eeg(opened, ref, {}, EegConfig(), 10)[0]
    expected = read(path)
    middle = slice(400, -400)
    for a, b in zip(found.x_TC[middle].T, expected.x_TC[middle].T, strict=True):
        assert np.corrcoef(a, b)[0, 1] > 0.9999
    one_rate = mne.io.read_raw_edf(write(tmp_path / "y_eeg.edf", signals(eeg_uv(), CHANNELS, SFREQ)), verbose="error")
    assert open_raw(one_rate, ref).raw is one_rate  # and nothing else is loaded


def with_record_times(path: Path, onset_of: dict[int, float], kind: bytes = b"EDF+D") -> Path:
    """Call a file discontinuous, and write other beginnings into some of its records, which are of one second."""
    content = bytearray(path.read_bytes())
    content[192:197] = kind
    n_bytes = int(content[184:192])
    record_bytes = (len(content) - n_bytes) // int(content[236:244])
    for record, onset in onset_of.items():
        start = content.index(f"+{record}\x14\x14".encode(), n_bytes + record * record_bytes)
        content[start : start + len(f"+{record}\x14\x14")] = f"+{onset:g}\x14\x14".encode()
    path.write_bytes(content)
    return path


def test_records_with_times_are_continuous_unless_there_is_a_gap(tmp_path: Path) -> None:
    spans = (edfio.EdfAnnotation(12, 2, "BAD_move"),)
    path = write(tmp_path / "x_eeg.edf", signals(eeg_uv(), CHANNELS, SFREQ), spans)
    plain = read(path)
    found = read(with_record_times(path, {}))
    np.testing.assert_array_equal(found.x_TC, plain.x_TC)
    assert found.valid_spans == plain.valid_spans == [0, 2400, 2800, 8000]
    gap = {record: record + 5 for record in range(20, SECONDS)}
    error = refusal(with_record_times(path, gap))
    assert error.reason == "not-continuous"
    assert str(error) == "x_eeg.edf: EDF+D with 1 gap, the first of 5 s after 20 s, expected a continuous file"
    bare = with_record_times(write(tmp_path / "y_eeg.edf", signals(eeg_uv(), CHANNELS, SFREQ), spans), {})
    bare.write_bytes(bare.read_bytes().replace(b"+20\x14", b"n/a\x14"))
    assert "EDF+D that does not say when its records begin" in str(refusal(bare))


def test_of_several_signals_of_annotations_the_first_has_the_clock(tmp_path: Path) -> None:
    """The others hold annotations alone, and lie behind the signals or between them."""
    labels, samples = ["Cz", "EDF Annotations", "Pz", "EDF Annotations"], [2, 8, 2, 6]
    clock, path = {0: 0.0, 1: 1.0, 2: 4.5}, tmp_path / "x_eeg.edf"
    parts = [
        (b"CzCz", f"+{onset:g}\x14\x14".encode().ljust(16, b"\0"), b"PzPz", b"+7\x14move\x14".ljust(12, b"\0"))
        for onset in clock.values()
    ]
    path.write_bytes(b"h" * 1280 + b"".join(piece for record in parts for piece in record))
    header = EdfHeader("EDF+D", 1280, 3, 1.0, labels, ["uV", "", "uV", ""], samples, 2, [False] * 4)
    with pytest.raises(RecordingError, match=r"with 1 gap, the first of 2\.5 s after 2 s"):
        check_edf(path, header)


def test_an_annotation_in_latin_1_costs_nothing_and_bad_spans_count(tmp_path: Path) -> None:
    spans = (edfio.EdfAnnotation(5, 1, "Augen geXffnet"), edfio.EdfAnnotation(12, 2, "BAD_gerXuscht"))
    path = write(tmp_path / "x_eeg.edf", signals(eeg_uv(), CHANNELS, SFREQ), spans)
    expected = read(path)
    path.write_bytes(path.read_bytes().replace(b"geXffnet", b"ge\xf6ffnet").replace(b"gerXuscht", b"ger\xe4uscht"))
    found = read(path)
    np.testing.assert_array_equal(found.x_TC, expected.x_TC)
    assert found.valid_spans == expected.valid_spans == [0, 2400, 2800, 8000]
    assert found.repairs == ("x_eeg.edf: annotations are not UTF-8, read as Latin-1",)


def test_cells_of_a_header_that_end_with_zeros_or_have_a_comma(tmp_path: Path) -> None:
    path = write(tmp_path / "x_eeg.edf", signals(eeg_uv(), CHANNELS, SFREQ))
    expected = read(path)
    content = bytearray(path.read_bytes())
    content[236:244] = bytes(content[236:244]).replace(b" ", b"\x00")
    content[244:252] = b"1,0".ljust(8)
    path.write_bytes(content)
    assert "the header says '1,0' seconds per record, expected a number with a decimal" in str(refusal(path))
    content[244:252] = b"1".ljust(8)
    path.write_bytes(content)
    np.testing.assert_array_equal(read(path).x_TC, expected.x_TC)


@pytest.mark.parametrize(("unit", "factor"), [("uv", 1.0), ("mv", 1e-3), ("microV", 1.0)])
def test_units_in_other_letters_are_understood(tmp_path: Path, unit: str, factor: float) -> None:
    """MNE takes what it does not know for volts."""
    plain = read(write(tmp_path / "a_eeg.edf", signals(eeg_uv(), CHANNELS, SFREQ)))
    other = read(write(tmp_path / "b_eeg.edf", signals(eeg_uv() * factor, CHANNELS, SFREQ, unit=unit)))
    np.testing.assert_allclose(other.x_TC, plain.x_TC, atol=0.02)


def test_an_empty_file_and_one_of_another_kind_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x_eeg.edf"
    path.write_bytes(b"")
    assert "x_eeg.edf: an empty file, expected a recording" in str(refusal(path))
    path.write_bytes(b"PK\x03\x04" + bytes(5000))
    assert refusal(path).reason == "unreadable"


def with_cells(path: Path, cell: str, text: str, n: int | None = None) -> Path:
    """Write ``text`` into a cell of the header of the first ``n`` signals, else of all that are no annotations."""
    content, (place, width) = bytearray(path.read_bytes()), {"low": (104, 8), "high": (112, 8)}[cell]
    for i in range(len(CHANNELS) if n is None else n):
        start = 256 + place * int(content[252:256]) + i * width
        content[start : start + width] = text.encode().ljust(width)
    path.write_bytes(content)
    return path


def test_a_range_that_is_empty_says_nothing_of_an_amplitude(tmp_path: Path) -> None:
    """MNE takes such a range for one unit: a hundredth of the EEG, or a hundred times as much, would be stored."""
    path = write(tmp_path / "x_eeg.edf", signals(eeg_uv() / 1000, CHANNELS, SFREQ, unit="mV"))
    one = read(with_cells(with_cells(path, "low", "0", 1), "high", "0", 1))
    assert one.channel_good_C.tolist() == [False] + 5 * [True]
    assert one.repairs == (
        "x_eeg.edf: 1 of 6 channels have an empty physical range or a digital one that does not rise "
        "and are marked bad: Fp1",
    )
    error = refusal(with_cells(with_cells(path, "low", "0"), "high", "0"))
    assert error.reason == "wrong-unit" and "6 of 6 channels have an empty physical range" in str(error)


def test_a_negative_gain_turns_the_signal_round(tmp_path: Path) -> None:
    path = write(tmp_path / "x_eeg.edf", signals(eeg_uv(), CHANNELS, SFREQ))
    expected, content = read(path), path.read_bytes()
    n = int(content[252:256])
    low, high = (slice(256 + place * n, 256 + (place + 8) * n) for place in (104, 112))
    path.write_bytes(content[: low.start] + content[high] + content[low] + content[high.stop :])
    step_uv = np.ptp(eeg_uv()) / 2**16
    np.testing.assert_allclose(read(path).x_TC, -expected.x_TC, atol=3 * step_uv)


def test_a_header_of_another_length_or_format_and_records_without_a_time(tmp_path: Path) -> None:
    path = write(tmp_path / "x_eeg.edf", signals(eeg_uv(), CHANNELS, SFREQ))
    sound = path.read_bytes()
    for start, text, pattern in (
        (244, b"0       ", "'0' seconds per record, expected more: nothing says the sampling frequency"),
        (184, b"256     ", "the header says that it has 256 bytes, expected 2048 of 7 signals"),
    ):
        path.write_bytes(sound[:start] + text + sound[start + 8 :])
        error = refusal(path)
        assert error.reason == "unreadable" and pattern in str(error)
    bdf = write(tmp_path / "y_eeg.bdf", signals(eeg_uv(), CHANNELS, SFREQ, 24), bits=24)
    assert "BDF by its first bytes, expected the suffix .bdf" in str(refusal(bdf.rename(tmp_path / "y_eeg.edf")))
    path.write_bytes(sound)
    assert "EDF by its first bytes, expected the suffix .edf" in str(refusal(path.rename(tmp_path / "x_eeg.bdf")))


@pytest.mark.parametrize(
    ("data", "beside", "refused"),
    [("b.eeg", [], False), ("b.eeg", ["a.eeg"], True), ("b.eeg", ["b.vhdr"], True),
     ("b.eeg", ["a.eeg", "b.vhdr"], True),
     ("a.eeg", ["a.eeg", "b.vhdr"], False)],
)  # fmt: skip
def test_samples_of_another_name_are_those_of_another_recording_where_either_file_says_so(
    tmp_path: Path, data: str, beside: list[str], refused: bool
) -> None:
    for name in ("a.vhdr", "b.eeg", *beside):
        (tmp_path / name).touch()
    if not refused:
        require_own_data(tmp_path / "a.vhdr", tmp_path / data)
        return
    with pytest.raises(RecordingError, match=r"a\.vhdr: the header names b\.eeg, ") as caught:
        require_own_data(tmp_path / "a.vhdr", tmp_path / data)
    assert caught.value.reason == "other-data"


def test_a_header_of_brainvision_is_read_up_to_16_megabytes_and_the_first_of_a_key_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.vhdr"
    path.write_text("Brain Vision Data Exchange Header\n[Common Infos]\nDataFile = a.eeg \nDATAFILE=b.eeg\n; x\n")
    assert brainvision_values(path) == {"datafile": "a.eeg"}
    with open(path, "r+b") as sparse:
        sparse.truncate(16 * 2**20)
        assert brainvision_values(path)["datafile"] == "a.eeg"
        sparse.truncate(16 * 2**20 + 1)
    with pytest.raises(RecordingError, match=r"a\.vhdr: 16,777,217 bytes, expected the header of BrainVision"):
        brainvision_values(path)
