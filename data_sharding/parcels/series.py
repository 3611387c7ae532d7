"""Read tables of time series, a row per volume, a column per parcel: ``.tsv``, ``.csv``, ``.1D``, ``.txt``, ``.npy``.

Whatever a table is instead of that is named: without a header, turned round, a name twice, text, decimal commas.

Shape letters: T volumes, P parcels.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mcsp.data_sharding.bids.reasons import RecordingError

EXTENSIONS = (".tsv", ".csv", ".1D", ".txt", ".npy")
_MISSING = ("n/a", "NA", "NaN", "nan", "")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+(e[+-]?\d+)?", re.IGNORECASE)
# Whole numbers of one volume that rise from parcel to parcel: one in 40,000 at eight parcels.
_MANY = 8
# Separators by the end of the name; None: blanks and tabs, or commas where the file has any.
_SEPARATORS = {".tsv": "\t", ".csv": ",", ".1D": None, ".txt": None}


def read_series(path: Path) -> tuple[np.ndarray, list[str] | None]:
    """Values float64 ``(T, P)``, NaN where a cell is empty, and the names of the columns where the file has any.

    Raises:
        RecordingError: ``bad-encoding`` or ``bad-table``.
    """
    if path.suffix == ".npy":
        return _checked(_read_npy(path), None, path.name)
    text = _text(path)
    names, body = _header(path, text)
    separator = _SEPARATORS[path.suffix]
    if separator is None and "," in body.partition("\n")[0]:
        separator = ","
    return _checked(_numbers(path.name, body, separator, text.count("\n", 0, len(text) - len(body))), names, path.name)


def _read_npy(path: Path) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise RecordingError("bad-table", f"{path.name}: {' '.join(str(error).split())}") from None
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "fiu":
        found = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
        raise RecordingError("bad-table", f"{path.name}: {found}, expected numbers of shape (volumes, parcels)")
    return values.astype(np.float64)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise RecordingError("bad-encoding", f"{path.name}: byte {error.start} is not UTF-8") from None


def _header(path: Path, text: str) -> tuple[list[str] | None, str]:
    """Names of the columns, where there are any, and the rows below."""
    if path.suffix in (".1D", ".txt"):
        return _comment_header(text)
    first, _, body = text.partition("\n")
    cells = [cell.strip().strip('"') for cell in first.split(_SEPARATORS[path.suffix])]
    if first and not any(cells):
        raise RecordingError("bad-table", f"{path.name}: the first line is empty, expected the names of the parcels")
    if path.suffix == ".tsv" or not all(map(is_number, cells)) or _are_labels(cells):
        return cells if first else [], body
    return None, text


def _comment_header(text: str) -> tuple[list[str] | None, str]:
    """AFNI and C-PAC: ``#`` begins a comment; the last one before the numbers may name every column."""
    lines = text.split("\n")
    comments = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    rows = [line.partition("#")[0] if "#" in line else line for line in lines[comments:]]
    body = "\n".join(line.strip() for line in rows)
    names = re.split(r"[\s,]+", lines[comments - 1].replace("#", " ").strip()) if comments else []
    width = len(re.split(r"[\s,]+", body.strip().partition("\n")[0]))
    return (names if len(names) == width and width > 1 else None), body


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


def _numbers(file: str, body: str, separator: str | None, lines_before: int) -> np.ndarray:
    body = body.rstrip("\n")
    if not body:
        return np.empty((0, 0))
    if "\n\n" in body:
        line = body[: body.index("\n\n")].count("\n") + 2 + lines_before
        raise RecordingError("bad-table", f"{file}: line {line} is empty, expected a volume in every line")
    between = r"\s+" if separator is None else separator
    try:
        frame = pd.read_csv(io.StringIO(body), header=None, na_values=["n/a"], dtype="float64", sep=between)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise RecordingError("bad-table", f"{file}: {' '.join(str(error).split())}") from None
    except ValueError:
        raise RecordingError("bad-table", f"{file}: {_first_text(body, separator, lines_before)}") from None
    return frame.to_numpy()


def _first_text(body: str, separator: str | None, lines_before: int) -> str:
    """Where the first cell is that is no number, and what it looks like."""
    for number, line in enumerate(body.split("\n"), lines_before + 1):
        for column, cell in enumerate(line.split(separator), 1):
            if not is_number(cell.strip()):
                comma = " with a decimal comma, expected a decimal point" if _DECIMAL_COMMA.fullmatch(cell) else ""
                return f"line {number}, column {column} holds {cell!r}{comma or ', expected one number per volume'}"
    return "expected one number per volume and parcel"


def _checked(values_TP: np.ndarray, names: list[str] | None, file: str) -> tuple[np.ndarray, list[str] | None]:
    if names is not None:
        check_names(names, file)
        if len(values_TP) and values_TP.shape[1] != len(names):
            found = f"{values_TP.shape[1]} columns below {len(names)} names"
            raise RecordingError("bad-table", f"{file}: {found}, expected as many")
        if not len(values_TP):
            values_TP = np.empty((0, len(names)))
    if len(values_TP) > 3:
        steps_TP = np.diff(values_TP[:4], axis=0)
        counting = np.flatnonzero((steps_TP[0] != 0) & np.isclose(np.ptp(steps_TP, axis=0), 0, atol=1e-9))
        for p in counting:  # looked at in full only where the beginning counts
            steps_T = np.diff(values_TP[:, p])
            if np.ptp(steps_T) <= 1e-6 * abs(steps_T[0]):
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
