"""The same EEG in every file format that the builder reads, written by the libraries that users write it with."""

import re
from itertools import pairwise
from pathlib import Path

import edfio
import h5py
import mne
import mne_bids
import numpy as np
import pybv
import pytest
import scipy.io

from mcsp.config import CorpusConfig, EegConfig
from mcsp.data_sharding.bids.find import find_recordings
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import Site, ref_of_file
from mcsp.data_sharding.bids.write import write_json, write_tsv
from mcsp.data_sharding.clean.child import read_recording
from mcsp.data_sharding.clean.eeg import read_eeg
from mcsp.data_sharding.clean.eeg_channels import standard_positions_mm
from mcsp.data_sharding.clean.eeg_files import open_eeg, valid_times
from mcsp.data_sharding.clean.recording import CleanRecording

CHANNELS = ["Fp1", "Fp2", "C3", "C4", "O1", "O2"]
SFREQ = 250.0


def signal_uv(sfreq: float) -> np.ndarray:
    """Sines well inside the pass band, so that cleaning leaves their values at the new rate."""
    t = np.arange(round(20 * sfreq)) / sfreq
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, (4, len(CHANNELS), 1))
    return sum(10 * np.sin(2 * np.pi * hz * t + phase) for hz, phase in zip((3, 10, 22, 37), phases, strict=True))


def write(path: Path, x_CT: np.ndarray) -> None:
    info = mne.create_info(CHANNELS, SFREQ, "eeg")
    match path.suffix:
        case ".edf":
            channels = zip(CHANNELS, x_CT, strict=True)
            edfio.Edf([edfio.EdfSignal(x, SFREQ, label=n, physical_dimension="uV") for n, x in channels]).write(path)
        case ".bdf":
            channels = zip(CHANNELS, x_CT, strict=True)
            edfio.Bdf([edfio.BdfSignal(x, SFREQ, label=n, physical_dimension="uV") for n, x in channels]).write(path)
        case ".vhdr":
            names = {"ch_names": CHANNELS, "fname_base": path.stem, "folder_out": path.parent}
            pybv.write_brainvision(data=x_CT * 1e-6, sfreq=SFREQ, **names)
        case ".set":
            mne.export.export_raw(path, mne.io.RawArray(x_CT * 1e-6, info, verbose="error"), verbose="error")
        case ".fif":
            mne.io.RawArray(x_CT * 1e-6, info, verbose="error").save(path, verbose="error")


@pytest.mark.parametrize("suffix", [".edf", ".bdf", ".vhdr", ".set", ".fif"])
@pytest.mark.filterwarnings("ignore:This filename")  # MNE's naming rule for FIF, which BIDS does not follow
def test_a_format_gives_the_values_that_were_written(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "sub-1/eeg"
    folder.mkdir(parents=True)
    x_CT = signal_uv(SFREQ)
    write(folder / f"sub-1_task-rest_eeg{suffix}", x_CT)
    write_json(folder / "sub-1_task-rest_eeg.json", {"SamplingFrequency": SFREQ, "PowerLineFrequency": "n/a"})
    (ref,) = find_recordings(Site("site", tmp_path, False, None))
    recording = read_eeg(ref, EegConfig(), min_seconds=10)
    assert recording.channels == CHANNELS
    assert recording.x_TC.shape == (20 * 200, len(CHANNELS))
    expected = signal_uv(200.0)
    expected -= expected.mean(0)
    middle = slice(800, -800)  # the 0.5 Hz filter is 6.6 s long
    np.testing.assert_allclose(recording.x_TC[middle], expected.T[middle], atol=0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format_", ["BrainVision", "EDF", "EEGLAB"])
def test_a_dataset_of_mne_bids_is_read_with_its_positions_and_line(tmp_path: Path, format_: str) -> None:
    info = mne.create_info(CHANNELS, SFREQ, "eeg")
    x_CT = signal_uv(SFREQ)
    raw = mne.io.RawArray(x_CT * 1e-6, info, verbose="error")
    raw.info["line_freq"] = 60
    raw.info["bads"] = ["C4"]
    raw.set_montage("standard_1005", verbose="error")
    raw.set_annotations(mne.Annotations([5.0, 9.0], [1.0, 0.5], ["BAD_motion", "eyes closed"]))
    path = mne_bids.BIDSPath(subject="01", session="a", task="rest", root=tmp_path, datatype="eeg")
    mne_bids.write_raw_bids(raw, path, format=format_, allow_preload=True, verbose="error")
    (ref,) = find_recordings(Site("site", tmp_path, False, None))
    assert ref.entities == {"subject": "01", "session": "a", "task": "rest"}
    recording = read_eeg(ref, EegConfig(), min_seconds=10)
    assert recording.channels == CHANNELS
    assert recording.channel_good_C.tolist() == [name != "C4" for name in CHANNELS]
    assert recording.valid_spans == [0, 1000, 1200, 4000]
    template = [standard_positions_mm()[name.lower()][1] for name in CHANNELS]
    np.testing.assert_allclose(recording.positions_C3, template, atol=0.5)
    expected = signal_uv(200.0)
    expected -= expected[[i for i, name in enumerate(CHANNELS) if name != "C4"]].mean(0)
    np.testing.assert_allclose(recording.x_TC[800:-800], expected.T[800:-800], atol=0.1)


@pytest.mark.filterwarnings("ignore:This filename")
def test_a_fif_recording_in_several_files_is_one(tmp_path: Path) -> None:
    x_CT = np.tile(signal_uv(SFREQ), (1, 40))
    raw = mne.io.RawArray(x_CT * 1e-6, mne.create_info(CHANNELS, SFREQ, "eeg"), verbose="error")
    folder = tmp_path / "sub-1/eeg"
    folder.mkdir(parents=True)
    path = folder / "sub-1_task-rest_eeg.fif"
    raw.save(path, split_size="2MB", split_naming="bids", buffer_size_sec=1, verbose="error")
    files = sorted(folder.glob("*.fif"))
    assert len(files) > 1
    (ref,) = find_recordings(Site("site", tmp_path, False, None))
    assert set(files) <= set(ref.inputs())
    assert len(read_eeg(ref, EegConfig(), min_seconds=10).x_TC) == 800 * 200


FORMATS = [".edf", ".bdf", ".vhdr", ".set", ".fdt", ".fif"]


def write_file(path: Path, suffix: str, x_CT: np.ndarray) -> Path:
    """As :func:`write`; ``.fdt`` is EEGLAB with its samples in a file of their own. Returns the file to be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix != ".fdt":
        write(path.with_suffix(suffix), x_CT)
        return path.with_suffix(suffix)
    nothing = dict.fromkeys(("event", "epoch", "icawinv", "icasphere", "icaweights", "icaact"), np.array([]))
    header = {
        "setname": "x", "nbchan": len(x_CT), "trials": 1, "pnts": x_CT.shape[1], "srate": SFREQ, "xmin": 0.0,
        "xmax": 1.0, "chanlocs": np.array([(n,) for n in CHANNELS], dtype=[("labels", "O")]), "ref": "common",
        "data": f"{path.name}.fdt", **nothing,
    }  # fmt: skip
    scipy.io.savemat(path.with_suffix(".set"), {"EEG": header}, appendmat=False)
    path.with_suffix(".fdt").write_bytes(x_CT.T.astype("<f4").tobytes())
    return path.with_suffix(".set")


def data_file(path: Path, suffix: str) -> Path:
    """Where the samples lie."""
    return {".vhdr": path.with_suffix(".eeg"), ".fdt": path.with_suffix(".fdt")}.get(suffix, path)


def read(path: Path) -> CleanRecording:
    config = CorpusConfig(bids_root=Path("bids"), out_dir=Path("out"))
    return read_recording(ref_of_file(path, "eeg"), config)


def refusal(path: Path) -> tuple[str, str]:
    with pytest.raises(RecordingError) as caught:
        read(path)
    assert "\n" not in str(caught.value) and str(path.parent) not in str(caught.value)
    return caught.value.reason, str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", FORMATS)
def test_values_do_not_depend_on_how_much_is_read_at_once(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(1)
    x_CT = 20 * rng.standard_normal((len(CHANNELS), round(20 * SFREQ)))
    raw = open_eeg(ref_of_file(write_file(tmp_path / "x_eeg", suffix, x_CT), "eeg"), {}).raw
    whole_CT = raw.get_data()
    np.testing.assert_allclose(whole_CT * 1e6, x_CT, atol=0.06)  # BrainVision's step is 0.1 uV
    for _ in range(4):
        cuts = np.sort(rng.choice(np.arange(1, raw.n_times), 6, replace=False))
        edges = [0, *cuts.tolist(), raw.n_times]
        pieces = [raw.get_data(start=a, stop=b) for a, b in pairwise(edges)]
        np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole_CT)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dated", [False, True])
@pytest.mark.parametrize("suffix", [".edf", ".vhdr", ".set", ".fif"])
def test_bad_spans_are_where_mne_has_them(tmp_path: Path, suffix: str, dated: bool) -> None:
    """Of a recording that was cropped before it was saved, with a date and without."""
    made = mne.io.RawArray(1e-6 * signal_uv(SFREQ), mne.create_info(CHANNELS, SFREQ, "eeg"), verbose="error")
    if dated:
        made.set_meas_date(1_560_000_000)
    texts = ["BAD_a", "bad b", "eyes", "BAD c"]
    made.set_annotations(mne.Annotations([3.0, 8.0, 12.5, 18.0], [5.0, 2.0, 0.8, 1.0], texts, made.info["meas_date"]))
    made.crop(4.0)
    path = tmp_path / f"x_eeg{suffix}"
    if suffix == ".fif":
        made.save(path, verbose="error")
    else:
        mne.export.export_raw(path, made, verbose="error")
    if suffix == ".vhdr":  # where the recorder's own marks are of this type, and no comments
        marks = path.with_suffix(".vmrk")
        marks.write_text(re.sub("Comment,(?=bad)", "Bad Interval,", marks.read_text(), flags=re.IGNORECASE))
    ref = ref_of_file(path, "eeg")
    raw = open_eeg(ref, {}).raw
    expected_T = ~np.isnan(raw.get_data(picks=[0], reject_by_annotation="NaN")[0])
    valid_T = valid_times(raw, ref, SFREQ, raw.n_times, [])
    assert np.count_nonzero(~expected_T) == pytest.approx((4 + 2 + 1) * SFREQ, abs=3)
    assert np.count_nonzero(valid_T != expected_T) <= 3  # one at an edge: MNE rounds, here it is left out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_suffix_in_capitals_is_the_same_format(tmp_path: Path, suffix: str) -> None:
    path = write_file(tmp_path / "sub-1/eeg/sub-1_task-rest_eeg", suffix, signal_uv(SFREQ))
    write_json(tmp_path / "dataset_description.json", {"Name": "x"})
    expected = read(path).x_TC
    path.rename(path.with_suffix(path.suffix.upper()))
    (ref,) = find_recordings(Site("site", tmp_path, False, None))
    np.testing.assert_array_equal(read(ref.path).x_TC, expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_cut_short_is_never_a_shorter_recording(tmp_path: Path, suffix: str) -> None:
    path = write_file(tmp_path / "x_eeg", suffix, np.tile(signal_uv(SFREQ), (1, 2)))
    data = data_file(path, suffix)
    whole = data.read_bytes()
    for fraction in (0.97, 0.6, 0.3):
        data.write_bytes(whole[: int(fraction * len(whole)) // 2 * 2 + 1])
        reason, text = refusal(path)
        assert reason == "truncated" and text.startswith(data.name)
    data.write_bytes(b"")
    assert refusal(path)[0] in ("unreadable", "truncated", "too-short")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", FORMATS)
def test_content_that_was_not_fetched_is_missing(tmp_path: Path, suffix: str) -> None:
    """A link of git-annex to nowhere, the pointer of an unlocked file, that of Git LFS, and a link to itself."""
    path = write_file(tmp_path / "x_eeg", suffix, signal_uv(SFREQ))
    data = data_file(path, suffix)
    data.write_bytes(b"/annex/objects/MD5E-s1140000--0cc175b9c0f1b6a831c399e269772661.edf\n")
    assert refusal(path) == ("missing-file", f"{data.name}: a pointer of git-annex, expected the content of the file")
    data.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    assert refusal(path)[0] == "missing-file"
    data.unlink()
    data.symlink_to("../.git/annex/objects/7K/4J/x/x")
    reason, text = refusal(path)
    assert reason == "missing-file" and "absent" in text
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)
    assert refusal(path)[0] == "unreadable"


@pytest.mark.filterwarnings("ignore")
def test_blanks_in_a_brainvision_header_and_an_empty_one(tmp_path: Path) -> None:
    path = write_file(tmp_path / "x_eeg", ".vhdr", signal_uv(SFREQ))
    expected = read(path).x_TC
    text = path.read_text()
    path.write_text(text.replace("File=", "File = ").replace("NumberOfChannels=", "NumberOfChannels ="))
    np.testing.assert_array_equal(read(path).x_TC, expected)
    path.write_text("Brain Vision Data Exchange Header File\n")
    assert refusal(path) == (
        "unreadable",
        "x_eeg.vhdr: the header begins with 'Brain Vision Data Exchange Header File', expected the header of "
        "BrainVision with DataFile=",
    )
    path.write_text(text.replace("BinaryFormat", "SegmentationType=MARKERBASED\nBinaryFormat"))
    assert refusal(path)[0] == "not-continuous"


@pytest.mark.parametrize(
    ("sidecar", "taken"),
    [
        ({"RecordingType": "epoched", "EpochLength": 2}, False),
        ({"RecordingType": "Epoched"}, False),
        ({"EpochLength": 2, "RecordingDuration": 20}, False),
        ({"RecordingType": "discontinuous"}, False),
        ({"RecordingType": "continuous", "EpochLength": 2}, True),
        ({"EpochLength": "n/a"}, True),
    ],
)
def test_trials_in_a_continuous_format_are_refused_by_their_sidecar(
    tmp_path: Path, sidecar: dict[str, object], taken: bool
) -> None:
    path = write_file(tmp_path / "sub-1/eeg/sub-1_task-rest_eeg", ".edf", signal_uv(SFREQ))
    write_json(tmp_path / "dataset_description.json", {"Name": "x"})
    write_json(tmp_path / "task-rest_eeg.json", sidecar)
    if taken:
        read(path)
    else:
        assert refusal(path)[0] == "not-continuous"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".vhdr", ".set", ".fdt"])
def test_the_unit_of_channels_tsv_counts_where_the_file_names_none(tmp_path: Path, suffix: str) -> None:
    path = write_file(tmp_path / "sub-1/eeg/sub-1_task-rest_eeg", suffix, signal_uv(SFREQ))
    write_json(tmp_path / "dataset_description.json", {"Name": "x"})
    expected = read(path).x_TC
    table = tmp_path / "sub-1/eeg/sub-1_task-rest_channels.tsv"
    write_tsv(table, ("name", "type", "units"), [(name, "EEG", "V") for name in CHANNELS])
    np.testing.assert_array_equal(read(path).x_TC, expected)  # of microvolts, whatever the table says
    if suffix == ".vhdr":
        path.write_text(path.read_text().replace("\u00b5V", "").replace(",0.1,", ",0.0000001,"))
    else:
        path.unlink()
        write_file(path.with_suffix(""), suffix, 1e-6 * signal_uv(SFREQ))
    found = read(path)
    np.testing.assert_allclose(found.x_TC, expected, atol=0.05)
    assert "no unit in the file, that of channels.tsv taken (6 channels times 1e+06)" in found.repairs[0]
    write_tsv(table, ("name", "type"), [(name, "EEG") for name in CHANNELS])
    assert refusal(path)[0] == "wrong-unit"


@pytest.mark.filterwarnings("ignore")
def test_a_header_that_names_the_samples_of_another_recording(tmp_path: Path) -> None:
    """Copied headers give one recording under two names, and the second never."""
    for run in (1, 2):
        write_file(tmp_path / f"run-{run}_eeg", ".vhdr", run * signal_uv(SFREQ))
        path = write_file(tmp_path / f"run-{run}_eeg", ".fdt", run * signal_uv(SFREQ))
    header = tmp_path / "run-2_eeg.vhdr"
    header.write_text(header.read_text().replace("run-2_eeg.eeg", "run-1_eeg.eeg"))
    reason, text = refusal(header)
    assert reason == "other-data"
    assert "names run-1_eeg.eeg, and run-2_eeg.eeg lies beside it, expected its own samples" in text
    (tmp_path / "run-2_eeg.eeg").unlink()
    assert "which is that of run-1_eeg.vhdr" in refusal(header)[1]
    path.write_bytes(path.read_bytes().replace(b"run-2_eeg.fdt", b"run-1_eeg.fdt"))
    assert refusal(path)[0] == "other-data"


@pytest.mark.filterwarnings("ignore")
def test_markers_that_are_absent_and_resolutions_with_commas(tmp_path: Path) -> None:
    """Without its markers bad spans would be sound; without its resolutions EEG would be zero."""
    path = write_file(tmp_path / "x_eeg", ".vhdr", signal_uv(SFREQ))
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"^(Ch1=Fp1,,)[^,]+", r"\g<1>0,1", text, flags=re.MULTILINE), encoding="utf-8")
    assert refusal(path)[1] == "x_eeg.vhdr: Ch1 has a resolution of '0,1', expected a number with a decimal point"
    path.write_text(text, encoding="utf-8")
    path.with_suffix(".vmrk").unlink()
    assert refusal(path) == ("missing-file", "x_eeg.vmrk: no such file")
    path.write_text(re.sub("MarkerFile=.*", "", text), encoding="utf-8")
    assert read(path).x_TC.shape == (4000, len(CHANNELS))


@pytest.mark.filterwarnings("ignore")
def test_what_eeglab_calls_a_jump_where_its_events_are_numbers(tmp_path: Path) -> None:
    raw = mne.io.RawArray(signal_uv(SFREQ) * 1e-6, mne.create_info(CHANNELS, SFREQ, "eeg"), verbose="error")
    raw.set_annotations(mne.Annotations([5.0, 12.0], [0, 0], ["21", "-99"]))
    mne.export.export_raw(tmp_path / "x_eeg.set", raw, verbose="error")
    assert read(tmp_path / "x_eeg.set").valid_spans == [0, 2300, 2500, 4000]


def test_trials_averages_and_later_parts_of_fif(tmp_path: Path) -> None:
    raw = mne.io.RawArray(signal_uv(SFREQ) * 1e-6, mne.create_info(CHANNELS, SFREQ, "eeg"), verbose="error")
    trials = mne.make_fixed_length_epochs(raw, 2, preload=True, verbose="error")
    for made in (trials, trials.average()):
        made.save(tmp_path / "x_eeg.fif", overwrite=True, verbose="error")
        assert refusal(tmp_path / "x_eeg.fif") == (
            "not-continuous",
            "x_eeg.fif: holds trials or averages, expected one continuous recording",
        )
    raw.save(tmp_path / "x_split-02_eeg.fif", verbose="error")
    assert refusal(tmp_path / "x_split-02_eeg.fif")[0] == "missing-file"


def write_matlab_73(path: Path, x_CT: np.ndarray) -> Path:
    """EEGLAB's structure as MATLAB writes it in version 7.3: HDF5 behind a header of its own."""
    with h5py.File(path, "w", userblock_size=512) as file:

        def put(group: h5py.Group, name: str, values: np.ndarray, kind: str) -> h5py.Dataset:
            made = group.create_dataset(name, data=values)
            made.attrs["MATLAB_class"] = np.bytes_(kind)
            return made

        def put_text(group: h5py.Group, name: str, text: str) -> h5py.Dataset:
            return put(group, name, np.array([[ord(c)] for c in text], dtype=np.uint16), "char")

        header, labels = file.create_group("EEG"), file.create_group("#refs#")
        numbers = {"nbchan": len(x_CT), "trials": 1, "pnts": x_CT.shape[1], "srate": SFREQ, "xmin": 0, "xmax": 1}
        for name, value in numbers.items():
            put(header, name, np.array([[float(value)]]), "double")
        put(header, "data", x_CT.T.astype("f4"), "single")
        put_text(header, "setname", "x"), put_text(header, "ref", "common")
        for name in ("event", "epoch", "icawinv", "icasphere", "icaweights", "icaact"):
            put(header, name, np.zeros(2, np.uint64), "double").attrs["MATLAB_empty"] = np.uint8(1)
        places = header.create_group("chanlocs")
        for group in (header, places):
            group.attrs["MATLAB_class"] = np.bytes_("struct")
        names = places.create_dataset("labels", (len(CHANNELS), 1), dtype=h5py.ref_dtype)
        for i, channel in enumerate(CHANNELS):
            names[i, 0] = put_text(labels, f"label{i}", channel).ref
    content = bytearray(path.read_bytes())
    content[:128] = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    path.write_bytes(content)
    return path


@pytest.mark.filterwarnings("ignore")
def test_a_file_of_eeglab_in_matlabs_newer_format_is_read(tmp_path: Path) -> None:
    expected = read(write_file(tmp_path / "y_eeg", ".set", signal_uv(SFREQ)))
    found = read(write_matlab_73(tmp_path / "x_eeg.set", signal_uv(SFREQ)))
    assert found.channels == CHANNELS
    np.testing.assert_allclose(found.x_TC, expected.x_TC, atol=1e-3)
