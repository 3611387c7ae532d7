"""Read tables of time series, a row per volume, a column per parcel: ``.tsv``, ``.csv``, ``.1D``, ``.txt``, ``.npy``.

Whatever a table is instead of that is named: without a header, turned round, a name twice, text, decimal commas.

Shape letters: T volumes, P parcels.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from mcsp.data_sharding.bids.reasons import RecordingError

EXTENSIONS = (".tsv", ".csv", ".1D", ".txt", ".npy")
_MISSING = ("n/a", "NA", "NaN", "nan", "")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+(e[+-]?\d+)?", re.IGNORECASE)
# Whole numbers of one volume that rise from parcel to parcel: one in 40,000 at eight parcels.
_MANY = 8
# Volumes in which no parcel only rises; times do, also where they are rounded or have gaps. Ours.
_RISING = 20
# Separators by the end of the name; None: blanks and tabs, or commas where the file has any.
_SEPARATORS = {".tsv": "\t", ".csv": ",", ".1D": None, ".txt": None}


def read_series(path: Path) -> tuple[np.ndarray, list[str] | None]:
    """Values float64 ``(T, P)``, NaN where a cell is empty, and the names of the columns where the file has any.

    Raises:
        RecordingError: ``bad-encoding`` or ``bad-table``.
    """
    if path.suffix == ".npy":
        return _checked(_read_npy(path), None, path.name)
    content = path.read_bytes()
    if (plain := _plain_table(content, path.suffix)) is not None:
        return _checked(*plain, path.name)
    lines = _lines(content, path.name)
    if path.suffix in (".1D", ".txt"):
        names, first, lines = _after_comments(lines)
    else:
        header = lines[0] if lines else ""
        names = list(_sound_names(header, path.suffix) or _names(header, path.suffix, path.name))
        first = 1 if names or path.suffix == ".tsv" else 0
    separator = _SEPARATORS[path.suffix]
    if separator is None and len(lines) > first and "," in lines[first]:
        separator = ","
    values_TP = _numbers(path.name, lines, first, separator, len(names))
    has_names = bool(names) or path.suffix == ".tsv"
    return _checked(values_TP, names if has_names else None, path.name)


def _read_npy(path: Path) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise RecordingError("bad-table", f"{path.name}: {' '.join(str(error).split())}") from None
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "fiu":
        found = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
        raise RecordingError("bad-table", f"{path.name}: {found}, expected numbers of shape (volumes, parcels)")
    return values.astype(np.float64)


def _plain_table(content: bytes, suffix: str) -> tuple[np.ndarray, list[str]] | None:
    """As :func:`read_series`, to the bit, of a line of names and lines of plain numbers; None for any other table.

    Arrow makes numbers of cells where they lie, in a third of the time of pandas. Its list of texts holds separators
    and cells in turns, of which the separators are null.
    """
    separator, start = _SEPARATORS[suffix], content.find(b"\n") + 1
    if separator is None or not start or not content.endswith(b"\n") or len(content) > np.iinfo(np.int32).max:
        return None
    try:
        import pyarrow as pa  # comes with the corpus extra; a laboratory reads few tables
    except ModuleNotFoundError:
        return None
    try:
        names = _sound_names(content[: start - 1].decode("utf-8-sig"), suffix)
    except UnicodeDecodeError:
        return None
    characters = np.frombuffer(content, np.uint8)
    is_line_end = characters == ord("\n")
    is_end = is_line_end | (characters == ord(separator))
    is_end[: start - 1] = False
    ends = np.flatnonzero(is_end).astype(np.int32)  # of the line of names, then of every cell
    n_cells, n_rows = len(ends) - 1, int(np.count_nonzero(is_line_end)) - 1
    if not names or not n_rows or n_cells != n_rows * len(names) or b"\r" in content[:start]:
        return None
    if not is_line_end[ends[:: len(names)]].all():  # a line is longer, another shorter
        return None
    bounds = np.empty((len(ends), 2), dtype=np.int32)
    bounds[:, 0], bounds[:, 1] = ends, ends + 1
    is_cell = np.full(n_cells // 4 + 1, 0b10101010, dtype=np.uint8)
    buffers = [pa.py_buffer(values) for values in (bounds, content, is_cell)]
    try:
        numbers = pa.StringArray.from_buffers(2 * n_cells, *buffers, null_count=n_cells).cast(pa.float64())
    except pa.ArrowInvalid:  # a text, an empty cell, a number in another form
        return None
    values_TP = np.frombuffer(numbers.buffers()[1], np.float64, 2 * n_cells)[1::2].reshape(n_rows, -1)
    return np.ascontiguousarray(values_TP), list(names)


def _lines(content: bytes, file: str) -> list[str]:
    """The lines of a file, without empty ones at its end."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordingError("bad-encoding", f"{file}: byte {error.start} is not UTF-8") from None
    lines = (text.replace("\r\n", "\n") if b"\r" in content else text).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if lines and file.endswith(".tsv") and all(line.endswith("\t") for line in lines):  # a column without anything
        lines = [line[:-1] for line in lines]
    return lines


@lru_cache(maxsize=256)  # all tables of a site begin alike
def _sound_names(line: str, suffix: str) -> tuple[str, ...]:
    try:
        return _names(line, suffix, "")
    except RecordingError:  # told with the name of its file
        return ()


def _names(line: str, suffix: str, file: str) -> tuple[str, ...]:
    """Names of the columns in the first line; none where it holds values, which a ``.csv`` may."""
    cells = [cell.strip().strip('"') for cell in line.split(_SEPARATORS[suffix])]
    if not line:
        return ()
    if not any(cells):
        raise RecordingError("bad-table", f"{file}: the first line is empty, expected the names of the parcels")
    if suffix != ".tsv" and all(map(is_number, cells)) and not _are_labels(cells):
        return ()
    check_names(cells, file)
    return tuple(cells)


def _after_comments(lines: list[str]) -> tuple[list[str], int, list[str]]:
    """AFNI and C-PAC: ``#`` begins a comment, and the last one before the numbers may name every column.

    The names, the number of the first line of numbers, and all lines without comments.
    """
    first = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    rows = [line.partition("#")[0].strip() for line in lines[first:]]
    names = re.split(r"[\s,]+", lines[first - 1].replace("#", " ").strip()) if first else []
    width = len(re.split(r"[\s,]+", rows[0])) if rows else 0
    if len(names) != width or width < 2:
        names = []
    return names, first, [*lines[:first], *rows]


def is_number(cell: str) -> bool:
    """Whether a cell of a table is a number or says that there is none."""
    try:
        float(cell)
    except ValueError:
        return cell in _MISSING
    return True


def _are_labels(cells: Sequence[str]) -> bool:
    """Whether all are whole numbers that rise, as labels of an atlas do; values of a volume rise by chance if few."""
    if not all(cell.isdecimal() for cell in cells):
        return False
    labels = [int(cell) for cell in cells]
    return bool((np.diff(labels) > 0).all()) and (labels[0] <= 1 or len(labels) >= _MANY)


def _numbers(file: str, lines: list[str], first: int, separator: str | None, n_names: int) -> np.ndarray:
    """The numbers of all lines from ``first`` on, as many as there are names where there are any."""
    body = lines[first:]
    if not body:
        return np.empty((0, 0))
    if "" in body:
        detail = f"line {first + body.index('') + 1} is empty, expected a volume in every line"
        raise RecordingError("bad-table", f"{file}: {detail}")
    try:  # in half of the time of pandas, where every cell is a number
        return np.loadtxt(body, dtype=np.float64, comments=None, delimiter=separator, ndmin=2)
    except ValueError:
        cells = [line.split(separator) for line in body]
    width = n_names or len(cells[0])
    for number, row in enumerate(cells, first + 1):
        if len(row) != width:
            raise RecordingError("bad-table", f"{file}: line {number} has {len(row)} cells, expected {width}")
        for column, cell in enumerate(row, 1):
            if not is_number(cell.strip()):
                comma = " with a decimal comma, expected a decimal point" if _DECIMAL_COMMA.fullmatch(cell) else ""
                detail = f"line {number}, column {column} holds {cell!r}{comma or ', expected one number per volume'}"
                raise RecordingError("bad-table", f"{file}: {detail}")
    return np.array([[np.nan if cell.strip() in _MISSING else float(cell) for cell in row] for row in cells])


def _checked(values_TP: np.ndarray, names: list[str] | None, file: str) -> tuple[np.ndarray, list[str] | None]:
    if names is not None:
        if len(values_TP) and values_TP.shape[1] != len(names):
            found = f"{values_TP.shape[1]} columns below {len(names)} names"
            raise RecordingError("bad-table", f"{file}: {found}, expected as many")
        if not len(values_TP):
            values_TP = np.empty((0, len(names)))
    if len(values_TP) > 3:
        rising = np.flatnonzero((np.diff(values_TP[:_RISING], axis=0) > 0).all(axis=0))
        for p in rising:  # looked at in full only where the beginning counts
            steps_T = np.diff(values_TP[:, p])
            if (steps_T > 0).all() and (len(steps_T) > _RISING or np.ptp(steps_T) <= 1e-6 * steps_T[0]):
                name = repr(names[p]) if names else p + 1
                raise RecordingError("bad-table", f"{file}: column {name} counts the rows, expected parcels alone")
    return values_TP, names


def check_names(names: Sequence[str], file: str) -> None:
    """Raise :class:`RecordingError` (``bad-table``) where names are numbers of a first volume, empty, or come twice."""
    if len(names) == 1 and (other := next((mark for mark in ",;" if mark in names[0]), None)):
        raise RecordingError("bad-table", f"{file}: columns are separated by {other!r}, expected a tab")
    numbers = [name for name in names if name and is_number(name) and not name.isdecimal()]
    if numbers or (len(names) > 1 and all(name.isdecimal() for name in names) and not _are_labels(names)):
        shown = numbers[0] if numbers else names[0]
        detail = f"the first line holds values ({shown}), expected the names of the parcels"
        raise RecordingError("bad-table", f"{file}: {detail}")
    if "" in names:
        detail = f"column {list(names).index('') + 1} has no name; a table written with its index has such a column"
        raise RecordingError("bad-table", f"{file}: {detail}")
    check_twice(names, file)


def check_twice(names: Sequence[str], file: str) -> None:
    """Raise :class:`RecordingError` (``bad-table``) where two parcels have one name."""
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise RecordingError("bad-table", f"{file}: {twice!r} is the name of {list(names).count(twice)} parcels")
