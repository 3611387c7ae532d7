"""Compare headers of EEG files with the files: sizes, rates, and gaps between records.

EDF and BDF: https://www.edfplus.info/specs/edf.html. The readers let pass, or only warn about, what is refused here,
also HDF5 (MATLAB 7.3) that takes its values from other files: it can store a dataset in any file of the machine
(external storage), map it from others (virtual datasets), and link into other files (external links); what lies there
would be published as if it were the recording (https://docs.hdfgroup.org/hdf5/v1_14/_h5_d__u_g.html, "External
Storage").
"""

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from pymatreader import read_mat

from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.tables import require_content

# Fields of a signal in the header, in order, and their bytes.
_FIELDS = {
    "label": 16, "transducer": 80, "unit": 8, "physical_min": 8, "physical_max": 8, "digital_min": 8, "digital_max": 8,
    "filter": 80, "samples": 8, "reserved": 32,
}  # fmt: skip

# A header of a thousand channels has some 50 kB.
_MOST_HEADER_BYTES = 1 << 24
# Tags of FIF: the first one of a file, and those that may be its last (directory, end of a block, none).
_FILE_ID, _LAST_TAGS = 100, (102, 105, 108)


@dataclass(frozen=True)
class EdfHeader:
    """What is needed of a header; lists have one entry per signal, those of annotations included."""

    kind: str  # EDF+C, EDF+D, BDF+C, BDF+D, or anything else
    n_bytes: int  # of the header
    n_records: int  # -1: the recorder did not know yet
    record_seconds: float
    labels: list[str]
    units: list[str]
    samples: list[int]  # per record
    width: int  # bytes of a sample
    unscaled: list[bool]  # an empty physical range, or a digital one that does not rise: nothing says what a step is

    @property
    def signals(self) -> list[int]:
        """Places of those that are no annotations, in the order of MNE's channels."""
        return [i for i, label in enumerate(self.labels) if not _is_annotations(label)]

    @property
    def rates(self) -> list[float]:
        """Sampling frequency of each signal [Hz], but of annotations that of the first signal."""
        first = self.samples[self.signals[0]] if self.signals else 0
        counts = [first if _is_annotations(label) else n for label, n in zip(self.labels, self.samples, strict=True)]
        return [n / self.record_seconds for n in counts]

    @property
    def record_bytes(self) -> int:
        """Bytes of a record."""
        return sum(self.samples) * self.width


def _is_annotations(label: str) -> bool:
    return label in ("EDF Annotations", "BDF Annotations")


def _text(cell: bytes) -> str:
    """A cell of a header, which some fill up with zeros where EDF has blanks."""
    return cell.split(b"\x00")[0].decode("latin-1")


def _seconds(path: Path, text: str) -> float:
    found = f"{path.name}: the header says {text.strip()!r} seconds per record"
    try:
        seconds = float(text)
    except ValueError:
        raise RecordingError("unreadable", f"{found}, expected a number with a decimal point") from None
    if not seconds > 0:  # MNE would take it for a second
        raise RecordingError("unreadable", f"{found}, expected more: nothing says the sampling frequency")
    return seconds


def _has_no_step(physical_low: str, physical_high: str, digital_low: str, digital_high: str) -> bool:
    """Whether the physical range is empty (it may fall), or the digital one does not rise, as EDF demands."""
    cells = physical_low, physical_high, digital_low, digital_high
    try:
        low, high, first, last = (float(cell.replace(",", ".")) for cell in cells)
    except ValueError:  # the reader says so
        return False
    return low == high or first >= last


def _check_kind(path: Path, start: bytes) -> None:
    """BDF begins with a byte of 255 and EDF with a zero as text; one read as the other would be noise."""
    is_bdf = start[:8] == b"\xffBIOSEMI"
    if (is_bdf or start.startswith(b"0  ")) and is_bdf != (path.suffix.lower() == ".bdf"):
        kind = "BDF" if is_bdf else "EDF"
        raise RecordingError(
            "unreadable", f"{path.name}: {kind} by its first bytes, expected the suffix .{kind.lower()}"
        )


def read_edf_header(path: Path) -> EdfHeader:
    """Read a header; raise :class:`RecordingError` where it has no numbers where EDF has them."""
    with open(path, "rb") as file:
        fixed = file.read(256)
        _check_kind(path, fixed)
        try:
            n_bytes, n_records, n_signals = (int(_text(fixed[a:b])) for a, b in ((184, 192), (236, 244), (252, 256)))
            record_seconds = _seconds(path, _text(fixed[244:252]))
            signals = file.read(256 * n_signals)
            fields: dict[str, list[str]] = {}
            start = 0
            for name, length in _FIELDS.items():
                cells = [signals[start + i * length : start + (i + 1) * length] for i in range(n_signals)]
                fields[name] = [cell.decode("latin-1").strip() for cell in cells]
                start += n_signals * length
            samples = [int(text.split("\x00")[0]) for text in fields["samples"]]
        except RecordingError:
            raise
        except ValueError:
            found = f"a header that begins with {fixed[:8]!r}" if fixed else "an empty file"
            raise RecordingError(
                "unreadable", f"{path.name}: {found}, no numbers where an EDF header has them"
            ) from None
    if n_bytes != 256 * (1 + n_signals):
        expected = f"expected {256 * (1 + n_signals)} of {n_signals} signals"
        raise RecordingError("unreadable", f"{path.name}: the header says that it has {n_bytes} bytes, {expected}")
    if sum(samples) <= 0:
        raise RecordingError("unreadable", f"{path.name}: header says {sum(samples)} samples per record, expected some")
    kind, width = fixed[192:197].decode("latin-1"), 3 if path.suffix.lower() == ".bdf" else 2
    ranges = (fields[name] for name in ("physical_min", "physical_max", "digital_min", "digital_max"))
    unscaled = [_has_no_step(*cells) for cells in zip(*ranges, strict=True)]
    return EdfHeader(
        kind, n_bytes, n_records, record_seconds, fields["label"], fields["unit"], samples, width, unscaled
    )


def check_edf(path: Path, header: EdfHeader) -> None:
    """Compare the size of a file with its header, and the times of its records where it says that they may have gaps.

    Raises:
        RecordingError: truncated, wrong-length, not-continuous.
    """
    found, n_records = (path.stat().st_size - header.n_bytes) / header.record_bytes, header.n_records
    if n_records >= 0 and found < n_records:  # -1: the recorder did not know yet, and the size says it
        raise RecordingError("truncated", f"{path.name}: holds {found:.1f} records, its header says {n_records}")
    if n_records >= 0 and found >= n_records + 1:
        raise RecordingError("wrong-length", f"{path.name}: holds {found:.1f} records, its header says {n_records}")
    if header.kind not in ("EDF+D", "BDF+D"):
        return
    onset_R = _record_onsets(path, header, n_records if n_records >= 0 else int(found))
    if onset_R is None:
        what = f"{header.kind} that does not say when its records begin"
        raise RecordingError("not-continuous", f"{path.name}: {what}, expected a continuous file")
    # Times are written in decimal: half a sample of the fastest signal is no gap.
    gap_R = np.diff(onset_R) - header.record_seconds
    most = max((header.samples[i] for i in header.signals), default=1)
    gaps = np.flatnonzero(np.abs(gap_R) > 0.5 * header.record_seconds / most)
    if len(gaps):
        first, after = gap_R[gaps[0]], onset_R[gaps[0]] - onset_R[0] + header.record_seconds
        what = f"{header.kind} with {len(gaps)} gap{'s' if len(gaps) > 1 else ''}, the first of {first:g} s"
        raise RecordingError("not-continuous", f"{path.name}: {what} after {after:g} s, expected a continuous file")


def _record_onsets(path: Path, header: EdfHeader, n_records: int) -> np.ndarray | None:
    """When each record begins [s], by the first entry of its annotations; None where one does not say it."""
    places = [i for i, label in enumerate(header.labels) if _is_annotations(label)]
    if not places or not n_records:
        return None
    start = header.width * sum(header.samples[: places[0]])
    stop = start + header.width * header.samples[places[0]]
    shape = (n_records, header.record_bytes)
    records = np.memmap(path, dtype=np.uint8, mode="r", offset=header.n_bytes, shape=shape)[:, start:stop]
    try:
        return np.array([float(record.tobytes().split(b"\x14", 1)[0]) for record in records])
    except ValueError:
        return None


def check_brainvision(path: Path) -> None:
    """Compare the size of a BrainVision data file with what its header says."""
    values = brainvision_values(path)
    if "datafile" not in values:
        first = path.read_bytes()[:60].decode("utf-8", errors="replace").splitlines()
        found = f"the header begins with {first[0][:40]!r}" if first else "the header is empty"
        raise RecordingError("unreadable", f"{path.name}: {found}, expected the header of BrainVision with DataFile=")
    data = path.with_name(values["datafile"].replace("$b", path.stem))
    if not data.is_file():
        raise RecordingError("missing-file", f"{path.name} needs {data.name}, which is absent")
    require_content(data)
    require_own_data(path, data)
    if marker := values.get("markerfile"):  # without it, bad spans and jumps would pass for sound
        require_content(marks := path.with_name(marker.replace("$b", path.stem)))
        require_own_data(path, marks)
    for key, value in values.items():
        cells = value.split(",")
        if re.fullmatch(r"ch\d+", key) and len(cells) > 2 and re.fullmatch(r"0+", cells[2].strip()):
            found = f"{key.capitalize()} has a resolution of {','.join(cells[2:4])!r}"
            raise RecordingError("unreadable", f"{path.name}: {found}, expected a number with a decimal point")
    if (kind := values.get("segmentationtype", "")).upper() == "MARKERBASED":
        raise RecordingError(
            "not-continuous", f"{path.name}: pieces around markers ({kind}), expected one continuous recording"
        )
    if values.get("averaged", "").upper() == "YES":
        raise RecordingError("not-continuous", f"{path.name}: an average (Averaged=YES), expected a recording")
    if values.get("usebigendianorder", "").upper() == "YES":  # whose reader takes the bytes in the other order
        found = "UseBigEndianOrder=YES, expected the low byte first, as all of BrainVision's own programs write it"
        raise RecordingError("unreadable", f"{path.name}: {found}")
    width = {"INT_16": 2, "UINT_16": 2, "IEEE_FLOAT_32": 4}.get(values.get("binaryformat", ""))
    if width is None or not values.get("numberofchannels", "").isdigit():
        return
    size, sample = data.stat().st_size, width * int(values["numberofchannels"])
    if size % sample:
        raise RecordingError("truncated", f"{data.name}: ends inside a sample ({size} bytes, {sample} per sample)")
    if values.get("datapoints", "").isdigit() and size // sample != int(values["datapoints"]):
        reason = "truncated" if size // sample < int(values["datapoints"]) else "wrong-length"
        raise RecordingError(
            reason, f"{data.name}: holds {size // sample} samples, its header says {values['datapoints']}"
        )


def require_own_data(path: Path, data: Path) -> None:
    """Raise :class:`RecordingError` where a header names the samples of another recording of its folder."""
    own, header_of_data = path.with_suffix(data.suffix), data.with_suffix(path.suffix)
    if data.stem != path.stem and (own.is_file() or header_of_data.is_file()):
        found = f"the header names {data.name}, " + (f"and {own.name} lies beside it" if own.is_file() else "which is "
        f"that of {header_of_data.name}")  # fmt: skip
        raise RecordingError("other-data", f"{path.name}: {found}, expected its own samples")


def brainvision_values(path: Path) -> dict[str, str]:
    """What a header says, keys in lower case, blanks around the equal signs or not."""
    if (size := path.stat().st_size) > _MOST_HEADER_BYTES:
        raise RecordingError("unreadable", f"{path.name}: {size:,} bytes, expected the header of BrainVision")
    header = path.read_bytes().decode("utf-8", errors="replace")
    lines = re.findall(r"^[ \t]*(\w+)[ \t]*=[ \t]*(.*?)\s*$", header, re.MULTILINE)
    return {key.lower(): value for key, value in reversed(lines)}  # the first one counts


def check_mat(path: Path) -> None:
    """Whether the elements of a MATLAB 5 file, as EEGLAB writes it, end where the file does."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        header = file.read(128)
        if header[124:128] not in (b"\x00\x01IM", b"\x01\x00MI"):  # MATLAB 7.3, or no such file: its reader says so
            return
        byte_order, place = "<" if header[126:128] == b"IM" else ">", 128
        while place < size:
            file.seek(place)
            tag = file.read(8)
            place += 8 + (struct.unpack(byte_order + "2I", tag)[1] if len(tag) == 8 else size)
    if place > size:
        raise RecordingError("truncated", f"{path.name}: holds {size} bytes, its header says {place}")


def check_eeglab_data(path: Path, files: Sequence[Path], n_channels: int, n_times: int) -> None:
    """Compare name and size of an EEGLAB data file, where there is one, with what its header says."""
    for data in files:
        if data.suffix.lower() != ".fdt":
            continue
        require_content(data)
        require_own_data(path, data)
        size, expected = data.stat().st_size, 4 * n_channels * n_times
        if size != expected:
            says = f"its header says {expected} ({n_channels} channels of {n_times} samples)"
            reason = "truncated" if size < expected else "wrong-length"
            raise RecordingError(reason, f"{data.name}: holds {size} bytes, {says}")


def check_eeglab_rows(path: Path, n_channels: int, n_rows: int | None) -> None:
    """Compare the rows of samples, where MNE has read them, else ``nbchan``, with the channels that have a name.

    MNE takes the first rows, whichever channel has lost its name.
    """
    rows = n_rows if n_rows is not None else read_mat(path, variable_names=["nbchan"]).get("nbchan", n_channels)
    if int(rows) != n_channels:
        found = f"{int(rows)} rows of samples for {n_channels} channels in chanlocs"
        raise RecordingError("channels-mismatch", f"{path.name}: {found}, expected one row for each")


def check_fif(path: Path) -> None:
    """Whether the last tag of a FIF file is there: MNE reads one that was cut as a shorter recording."""
    size, place, last = path.stat().st_size, 0, 0
    with open(path, "rb") as file:
        while True:
            file.seek(place)
            tag = file.read(16)
            if place == size and last in _LAST_TAGS:
                return
            kind, _, length, following = struct.unpack(">4i", tag) if len(tag) == 16 else (0, 0, size, 0)
            if place == 0 and kind != _FILE_ID:  # no FIF at all: the reader says so
                return
            end = place + 16 + length
            if end > size:
                raise RecordingError("truncated", f"{path.name}: ends after {size} bytes, inside of its recording")
            if following < 0 or length < 0:
                return
            last, place = kind, following if following > place else end


def require_own_values(path: Path) -> None:
    """Raise :class:`RecordingError` (unsafe-file) for an HDF5 file whose values lie elsewhere; others pass unread."""
    if not h5py.is_hdf5(path):
        return
    with h5py.File(path, "r") as file:
        _look_into(file, path.name, set())


def _look_into(group: h5py.Group, file_name: str, seen: set[int]) -> None:
    for name in group:
        where = f"{group.name.rstrip('/')}/{name}"
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            target = getattr(link, "filename", "") or getattr(link, "path", "")
            raise _unsafe(file_name, f"{where!r} is a link ({target})")
        item = group.get(name)
        if isinstance(item, h5py.Dataset):
            if item.external:
                raise _unsafe(file_name, f"{where!r} is stored in another file ({item.external[0][0]})")
            if item.is_virtual:
                raise _unsafe(file_name, f"{where!r} is a virtual dataset of other files")
        elif isinstance(item, h5py.Group):
            key = h5py.h5o.get_info(item.id).addr
            if key not in seen:  # a group may hold itself
                seen.add(key)
                _look_into(item, file_name, seen)


def _unsafe(file_name: str, found: str) -> RecordingError:
    return RecordingError("unsafe-file", f"{file_name}: {found}, expected values in the file itself")
