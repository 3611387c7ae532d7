"""Headers against the sizes of their files, byte by byte, and values that lie elsewhere.

Covers: data_sharding/clean/eeg_headers.py
"""

import struct
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.clean.eeg_headers import (
    EdfHeader,
    check_brainvision,
    check_edf,
    check_eeglab_data,
    check_eeglab_rows,
    check_fif,
    check_mat,
    read_edf_header,
    require_own_values,
)

# Two signals of 5 and 10 samples around annotations of 12: 54 bytes in a record of 2 s.
HEADER = EdfHeader(
    "EDF+C", 1024, 3, 2.0, ["Cz", "EDF Annotations", "Pz"], ["uV", "", "uV"], [5, 12, 10], 2, 3 * [False]
)


def refused(check: object, *arguments: object) -> tuple[str, str]:
    with pytest.raises(RecordingError) as error:
        check(*arguments)  # type: ignore[operator]
    assert "\n" not in str(error.value)
    return error.value.reason, str(error.value)


def test_rates_are_samples_over_seconds_and_annotations_have_that_of_the_first_signal() -> None:
    assert HEADER.signals == [0, 2] and HEADER.rates == [2.5, 2.5, 5.0] and HEADER.record_bytes == 54
    behind = replace(HEADER, labels=["BDF Annotations", "Cz", "Pz"], samples=[12, 5, 10], width=3)
    assert behind.signals == [1, 2] and behind.rates == [2.5, 2.5, 5.0] and behind.record_bytes == 81


@pytest.mark.parametrize(
    ("extra", "n_records", "reason", "found"),
    [
        (0, 3, "", ""), (53, 3, "", ""), (-1, 3, "truncated", "3.0 records, its header says 3"),
        (54, 3, "wrong-length", "4.0 records, its header says 3"), (-54, 3, "truncated", "2.0 records"),
        (-54, -1, "", ""), (54, -1, "", ""), (0, 0, "wrong-length", "3.0 records, its header says 0"),
    ],
)  # fmt: skip
def test_a_file_of_edf_holds_the_records_that_its_header_says(
    tmp_path: Path, extra: int, n_records: int, reason: str, found: str
) -> None:
    path = tmp_path / "x.edf"
    path.write_bytes(bytes(1024 + 3 * 54 + extra))
    header = replace(HEADER, n_records=n_records)
    if not reason:
        check_edf(path, header)
        return
    assert refused(check_edf, path, header) == (reason, f"x.edf: holds {found}" if "its" in found else
                                                 f"x.edf: holds {found}, its header says 3")  # fmt: skip


def with_onsets(path: Path, onsets: list[float], n_records: int, kind: str = "EDF+D") -> EdfHeader:
    """A file of records with their times, to the tenth of a millisecond."""
    times = [f"+{onset:.4f}\x14\x14".encode().ljust(24, b"\0") for onset in onsets]
    path.write_bytes(bytes(1024) + b"".join(b"C" * 10 + time + b"P" * 20 for time in times))
    return replace(HEADER, kind=kind, n_records=n_records)


@pytest.mark.parametrize("n_records", [4, -1])
def test_records_that_begin_within_half_a_sample_are_continuous(tmp_path: Path, n_records: int) -> None:
    """Half a sample of the faster signal is 0.1 s, however many samples the annotations have."""
    path, start = tmp_path / "x.edf", 0.25
    check_edf(path, with_onsets(path, [start, 2.25, 4.25, 6.34], n_records))
    check_edf(path, with_onsets(path, [start, 2.25, 4.16, 6.16], n_records))
    check_edf(path, with_onsets(path, [start, 2.25, 9.25, 6.16], n_records, "EDF+C"))
    for onsets, gaps in (
        ([start, 2.25, 4.25, 6.36], "1 gap, the first of 0.11 s after 6 s"),
        ([start, 2.25, 4.14, 6.14], "1 gap, the first of -0.11 s after 4 s"),
        ([start, 3.25, 5.25, 9.25], "2 gaps, the first of 1 s after 2 s"),
    ):
        expected = f"x.edf: EDF+D with {gaps}, expected a continuous file"
        assert refused(check_edf, path, with_onsets(path, onsets, n_records)) == ("not-continuous", expected)
    silent = replace(with_onsets(path, [start, 2.25], 2), labels=["Cz", "Fz", "Pz"])
    assert "EDF+D that does not say when its records begin" in refused(check_edf, path, silent)[1]
    nothing = with_onsets(path, [], 0, "BDF+D")
    assert "BDF+D that does not say when its records begin" in refused(check_edf, path, nothing)[1]


def edf_bytes(n_signals: int = 2, **cells: list[str]) -> bytes:
    """A header by the table of https://www.edfplus.info/specs/edf.html."""
    widths = {"label": 16, "transducer": 80, "unit": 8, "physical_min": 8, "physical_max": 8, "digital_min": 8,
              "digital_max": 8, "filter": 80, "samples": 8, "reserved": 32}  # fmt: skip
    # Every cell is full, so that one of another width moves those behind it.
    usual = {"label": ["Cz", "Pz"], "transducer": ["T" * 80] * 2, "unit": ["uV", "mV"], "filter": ["F" * 80] * 2,
             "physical_min": ["-0000100", "-0000001"], "physical_max": ["00000100", "00000001"],
             "digital_min": ["-0002048"] * 2, "digital_max": ["00002047"] * 2, "samples": ["00000250", "00000500"],
             "reserved": ["R" * 32] * 2}  # fmt: skip
    fixed = f"{'0':8}{'X':80}{'Startdate':80}01.01.0101.01.01{256 * (n_signals + 1):<8}{'EDF+C':44}{3:<8}{0.5:<8}"
    fixed += f"{n_signals:<4}"
    rest = "".join(f"{cell:{width}}" for name, width in widths.items()
                   for cell in (cells.get(name) or usual.get(name) or ["", ""]))  # fmt: skip
    return (fixed + rest).encode()


@pytest.mark.parametrize(
    ("cells", "unscaled"),
    [
        ({}, [False, False]),
        ({"physical_max": ["-100", "1"]}, [True, False]),
        ({"digital_min": ["-2048", "2047"]}, [False, True]),
        ({"digital_min": ["2048", "-2048"], "digital_max": ["2047", "2047"]}, [True, False]),
        ({"physical_min": ["100", "-1"], "physical_max": ["-100", "1"]}, [False, False]),
        ({"physical_min": ["0,50", "-1"], "physical_max": ["0.5", "1"]}, [True, False]),
        ({"physical_min": ["x", "-1"], "physical_max": ["x", "1"]}, [False, False]),
    ],
)
def test_every_cell_of_a_header_is_read_from_its_own_place(
    tmp_path: Path, cells: dict[str, list[str]], unscaled: list[bool]
) -> None:
    path = tmp_path / "x.edf"
    path.write_bytes(edf_bytes(**cells))
    expected = EdfHeader("EDF+C", 768, 3, 0.5, ["Cz", "Pz"], ["uV", "mV"], [250, 500], 2, unscaled)
    assert read_edf_header(path) == expected
    path.rename(tmp_path / "x.bdf").write_bytes(b"\xffBIOSEMI" + edf_bytes(**cells)[8:])
    assert read_edf_header(tmp_path / "x.bdf") == replace(expected, width=3)


def test_a_header_without_samples_or_numbers_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.edf"
    for content, told in (
        (edf_bytes(samples=["0", "0"]), "header says 0 samples per record, expected some"),
        (edf_bytes(samples=["many", "1"]), "a header that begins with b'0       ', no numbers where an EDF header has"),
        (b"", "an empty file, no numbers where"),
        (edf_bytes().replace(b"0.5     ", b"-1      "), "'-1' seconds per record, expected more"),
    ):
        path.write_bytes(content)
        reason, text = refused(read_edf_header, path)
        assert reason == "unreadable" and text.startswith("x.edf: ") and told in text
    path.write_bytes(edf_bytes(samples=["0", "1"]))
    assert read_edf_header(path).samples == [0, 1]


def vhdr(folder: Path, size: int, *lines: str) -> Path:
    """A header of two channels, and so many bytes of samples."""
    (folder / "x.eeg").write_bytes(bytes(size))
    path = folder / "x.vhdr"
    head = "Brain Vision Data Exchange Header File Version 1.0\nDataFile=$b.eeg\nNumberOfChannels=2\n"
    path.write_text(head + "\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(("format_", "width"), [("INT_16", 2), ("UINT_16", 2), ("IEEE_FLOAT_32", 4)])
def test_a_file_of_brainvision_holds_the_samples_that_its_header_says(tmp_path: Path, format_: str, width: int) -> None:
    kind, size = f"BinaryFormat={format_}", 10 * 2 * width
    check_brainvision(vhdr(tmp_path, size, kind, "DataPoints=10"))
    check_brainvision(vhdr(tmp_path, size, kind))
    assert refused(check_brainvision, vhdr(tmp_path, size, kind, "DataPoints=11")) == (
        "truncated", "x.eeg: holds 10 samples, its header says 11",
    )  # fmt: skip
    assert refused(check_brainvision, vhdr(tmp_path, size, kind, "DataPoints=9"))[0] == "wrong-length"
    assert refused(check_brainvision, vhdr(tmp_path, size + width, kind)) == (
        "truncated", f"x.eeg: ends inside a sample ({21 * width} bytes, {2 * width} per sample)",
    )  # fmt: skip
    check_brainvision(vhdr(tmp_path, size + 1, "BinaryFormat=ASCII"))  # of a format that MNE refuses itself
    path = vhdr(tmp_path, size + 1, kind)
    path.write_text(path.read_text().replace("NumberOfChannels=2", "NumberOfChannels=?"))
    check_brainvision(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("Ch1=Cz,,0,uV", "unreadable"), ("Ch12=Cz,, 00 ,uV", "unreadable"), ("Ch1=Cz,,0", "unreadable"),
        ("Ch1=Cz,,0,1,uV", "unreadable"), ("Ch1=Cz,,0.1,uV", ""), ("Ch1=Cz,0", ""), ("Channel=Cz,,0", ""),
        ("SegmentationType=MarkerBased", "not-continuous"), ("SegmentationType=NOTSEGMENTED", ""),
        ("Averaged=yes", "not-continuous"), ("Averaged=NO", ""), ("UseBigEndianOrder=Yes", "unreadable"),
        ("UseBigEndianOrder=NO", ""), ("MarkerFile=$b.vmrk", "missing-file"), ("MarkerFile=", ""),
    ],
)  # fmt: skip
def test_what_a_header_of_brainvision_may_say(tmp_path: Path, line: str, reason: str) -> None:
    path = vhdr(tmp_path, 80, "BinaryFormat=IEEE_FLOAT_32", line)
    if reason:
        assert refused(check_brainvision, path)[0] == reason
    else:
        check_brainvision(path)


def test_a_header_of_something_else_shows_how_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "x.vhdr"
    for content, told in (
        (b"0123456789" * 9, f"begins with '{'0123456789' * 4}', expected"),
        (b"ab\ncd", "begins with 'ab', expected"),
        (b"", "the header is empty, expected"),
    ):
        path.write_bytes(content)
        assert told in refused(check_brainvision, path)[1]


def test_the_elements_of_a_matlab_file_end_where_the_file_does(tmp_path: Path) -> None:
    path = tmp_path / "x.set"
    scipy.io.savemat(path, {"a": np.arange(7.0), "b": "text"}, appendmat=False)
    whole = path.read_bytes()
    check_mat(path)
    for content in (whole[:-1], whole + b"\0", whole[:-20], whole[:132]):
        path.write_bytes(content)
        reason, text = refused(check_mat, path)
        assert reason == "truncated" and text.startswith(f"x.set: holds {len(content)} bytes, its header says ")
    big_endian = b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + struct.pack(">2I", 9, 16) + bytes(16)
    path.write_bytes(big_endian)
    check_mat(path)
    path.write_bytes(big_endian[:-1])
    assert refused(check_mat, path) == ("truncated", "x.set: holds 151 bytes, its header says 152")
    path.write_bytes(b"no MATLAB")  # its reader says so
    check_mat(path)


def fif(*tags: tuple[int, int, int]) -> bytes:
    """Tags of kind, length and place of the next; values are zeros."""
    return b"".join(struct.pack(">4i", kind, 3, length, following) + bytes(length) for kind, length, following in tags)


@pytest.mark.parametrize(
    ("content", "sound"),
    [
        (fif((100, 20, 0), (200, 8, 0), (108, 0, 0)), True),
        (fif((100, 20, 0), (200, 8, 0), (105, 4, 0)), True),
        (fif((100, 20, 0), (200, 8, 0), (102, 4, 0)), True),
        (fif((100, 20, 0), (200, 8, 0)), False),
        (fif((100, 20, 0), (200, 8, 0), (108, 0, 0))[:-1], False),
        (fif((100, 20, 0), (200, 800, 0))[:-1], False),
        (fif((100, 20, 40), (108, 0, 0)), False),  # the next tag is said to lie inside of the last one
        (fif((100, 20, 44)) + b"left" * 2 + fif((108, 0, 0)), True),
        (fif((100, 20, 0), (200, 8, -1)), True),  # -1: there is no other
        (fif((101, 20, 0)), True),  # no FIF at all: its reader says so
        (fif((100, 20, 0)), False),
        (b"", True),
    ],
)
def test_a_file_of_fif_goes_on_to_its_last_tag(tmp_path: Path, content: bytes, sound: bool) -> None:
    path = tmp_path / "x.fif"
    path.write_bytes(content)
    if sound:
        check_fif(path)
    else:
        expected = f"x.fif: ends after {len(content)} bytes, inside of its recording"
        assert refused(check_fif, path) == ("truncated", expected)


def test_samples_of_eeglab_are_four_bytes_each(tmp_path: Path) -> None:
    path, data = tmp_path / "x.set", tmp_path / "x.FDT"
    path.touch()
    for size, reason in ((120, ""), (119, "truncated"), (121, "wrong-length")):
        data.write_bytes(bytes(size))
        files = [path, data]  # the header itself is none
        if reason:
            text = f"x.FDT: holds {size} bytes, its header says 120 (3 channels of 10 samples)"
            assert refused(check_eeglab_data, path, files, 3, 10) == (reason, text)
        else:
            check_eeglab_data(path, files, 3, 10)
    check_eeglab_rows(path, 3, 3)
    assert refused(check_eeglab_rows, path, 3, 4) == (
        "channels-mismatch",
        "x.set: 4 rows of samples for 3 channels in chanlocs, expected one row for each",
    )


def test_the_channels_that_eeglab_counts_are_those_with_a_name(tmp_path: Path) -> None:
    path = tmp_path / "x.set"
    scipy.io.savemat(path, {"nbchan": 5}, appendmat=False)
    check_eeglab_rows(path, 5, None)
    assert refused(check_eeglab_rows, path, 4, None)[0] == "channels-mismatch"
    scipy.io.savemat(path, {"pnts": 5}, appendmat=False)
    check_eeglab_rows(path, 4, None)  # says nothing


@pytest.mark.parametrize("kind", ["external", "virtual", "link", "external link", "none", "own loop"])
def test_values_of_hdf5_lie_in_the_file_itself(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "x.set", tmp_path / "y.h5"
    with h5py.File(other, "w") as file:
        file["data"] = np.zeros(4)
    with h5py.File(path, "w") as file:
        group = file.create_group("EEG/inner")
        group["sound"] = np.zeros(4)
        if kind == "external":
            group.create_dataset("data", (4,), "f8", external=[(str(other), 0, 32)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((4,), "f8")
            layout[:] = h5py.VirtualSource(str(other), "data", (4,))
            group.create_virtual_dataset("data", layout)
        elif kind == "link":
            group["data"] = h5py.SoftLink("/elsewhere")
        elif kind == "external link":
            group["data"] = h5py.ExternalLink(str(other), "/data")
        elif kind == "own loop":
            group["again"] = file["EEG"]
    told = {"external": f"is stored in another file ({other})", "virtual": "is a virtual dataset of other files",
            "link": "is a link (/elsewhere)", "external link": f"is a link ({other})"}  # fmt: skip
    if kind in told:
        assert refused(require_own_values, path) == (
            "unsafe-file", f"x.set: '/EEG/inner/data' {told[kind]}, expected values in the file itself"
        )  # fmt: skip
    else:
        require_own_values(path)
