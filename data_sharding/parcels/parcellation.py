"""Parcellations: list of parcels with names, positions and space, and their files.

Shape letters: T volumes, P parcels.
"""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import parse_name
from mcsp.data_sharding.bids.tables import read_tsv
from mcsp.data_sharding.parcels.series import check_twice
from mcsp.wording import listed

_NOWHERE = (np.nan,) * 3
ParcelRow = tuple[str, int | None, tuple[float, ...]]  # name, label, x y z [mm]
# Columns of tables of parcels, in BIDS's words and in those of the atlases' makers.
_NAME = ("name", "label")
_AXES = (("x", "x_mm", "r"), ("y", "y_mm", "a"), ("z", "z_mm", "s"))
_LABEL = re.compile(r"(Mean_)?\d+")
# How far from the origin [mm] the farthest parcel can lie. Ours.
_REACH_MM = (10.0, 150.0)
# How far [mm] half of the places of a table may lie from those of its label image; other orders, orientations and
# units are 60 and more. Ours.
_MAX_DISTANCE_MM = 40.0
# Of so many parcels some lie on either side of the origin. Ours.
_MANY = 8
_BACKGROUND = ("background", "unknown", "???")
# Columns of fMRIPrep's confounds, of xcp_d and C-PAC, which some write into one table with the parcels.
_NO_PARCEL = re.compile(
    r"(global_?signal|csf(_wm)?|white_?matter|wm|(trans|rot)_[xyz])(_derivative1)?(_power2)?|(std_)?dvars|rmsd|"
    r"framewise_displacement|fd(_jenkinson|_power)?|([actwe]|edge|crown)_?comp(_?cor)?_?\d+|cosine_?\d+|"
    r"(aroma_motion|motion_outlier|non_steady_state_outlier)_?\d+|linear_trend|intercept|background",
    re.IGNORECASE,
)
# The side that a parcel's name says: LH, RH, L, R, left, right.
_SIDE = re.compile(r"(?:^|[\W_])(l|r)(?:h|eft|ight)?(?=[\W_]|$)", re.IGNORECASE)
# Parcels nearer than this to the middle [mm] lie on no side. Ours.
_MIDDLE_MM = 3.0


@dataclass(frozen=True)
class Parcels:
    """The fixed list of parcels of a parcellation."""

    names: list[str]
    labels: list[int]  # voxel value of each parcel; empty for tables of time series
    positions_P3: np.ndarray  # mm, NaN where unknown
    space: str = ""  # of the positions
    repairs: tuple[str, ...] = ()  # what was wrong with the files and put right


def require_places(parcels: Parcels, max_unplaced: float, file: str) -> None:
    """Raise :class:`RecordingError` (``unknown-parcellation``) where parcels have no place, or none in millimetres.

    Args:
        parcels: of one recording.
        max_unplaced: largest fraction of them without a position.
        file: for the message.
    """
    placed_P = np.isfinite(parcels.positions_P3).all(axis=1)
    if placed_P.sum() < (1 - max_unplaced) * len(placed_P) or not placed_P.any():
        detail = f"{placed_P.sum()} of {len(placed_P)} parcels have a position, expected x, y, z [mm] in a *_dseg.tsv"
        raise RecordingError("unknown-parcellation", f"{file}: {detail}, a label image, or an atlas in the settings")
    if len(placed_P) >= _MANY and (parcels.positions_P3[placed_P] >= 0).all():
        detail = "no parcel has a negative coordinate, expected x, y, z in MNI millimetres, no voxels"
        raise RecordingError("unknown-parcellation", f"{file}: {detail}")
    reach = float(np.abs(parcels.positions_P3[placed_P]).max())
    if not _REACH_MM[0] <= reach <= _REACH_MM[1]:
        detail = f"parcels lie up to {reach:.3g} mm from the origin, expected {_REACH_MM[0]:g} to {_REACH_MM[1]:g}"
        raise RecordingError("unknown-parcellation", f"{file}: {detail}: MNI millimetres, no voxels or metres")
    x_by_side = [
        x if side == "r" else -x
        for name, x in zip(parcels.names, parcels.positions_P3[:, 0].tolist(), strict=True)
        if abs(x) > _MIDDLE_MM and (side := _side(name))
    ]
    if len(x_by_side) >= _MANY and (wrong := sum(x < 0 for x in x_by_side)) > len(x_by_side) / 2:
        detail = f"{wrong} of {len(x_by_side)} parcels lie on the other side than their names say (left, right)"
        raise RecordingError("unknown-parcellation", f"{file}: {detail}, expected x that rises to the right")


@lru_cache(maxsize=1 << 14)  # all recordings of a site ask for the same
def _side(name: str) -> str:
    """``l`` or ``r`` by the name of a parcel, empty where it says neither or both."""
    sides = {side.lower() for side in _SIDE.findall(name)}
    return sides.pop() if len(sides) == 1 else ""


def label_voxels(path: Path) -> tuple[np.ndarray, np.ndarray, list[int], np.ndarray]:
    """Integer voxels, affine, labels that are there, and their centres of mass [mm] ``(labels, 3)`` of a file.

    Kept per process, because every recording of a site asks for the same.
    """
    state = path.stat()
    return _label_voxels(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4)
def _label_voxels(path: Path, changed: int, size: int) -> tuple[np.ndarray, np.ndarray, list[int], np.ndarray]:
    return voxels_of(nibabel.load(path), path.name)


def voxels_of(image: Any, file_name: str) -> tuple[np.ndarray, np.ndarray, list[int], np.ndarray]:
    """As :func:`label_voxels`, of an image in memory."""
    voxels = np.asarray(image.dataobj)
    if voxels.ndim == 4 and voxels.shape[3] == 1:
        voxels = voxels[..., 0]
    present = [int(label) for label in np.unique(voxels) if label != 0 and np.isfinite(label)]
    if voxels.ndim != 3 or not present or not np.array_equal(voxels, np.round(voxels)):
        raise RecordingError("bad-label-image", f"{file_name}: expected integer labels in three dimensions")
    voxels = voxels.astype(np.int32)
    centres = ndimage.center_of_mass(voxels != 0, voxels, present)
    return voxels, image.affine, present, apply_affine(image.affine, np.array(centres))


def image_parcels(
    present: Sequence[int], centres_L3: np.ndarray, file_name: str, table: Sequence[ParcelRow], space: str = ""
) -> Parcels:
    """Parcels of a label image, by label.

    Names and positions come from the table where it has them; other positions are the centres of mass.

    Args:
        present: labels that the image holds.
        centres_L3: mm.
        file_name: of the image; its ``seg-`` names parcels that the table does not.
        table: rows of the parcellation's table.
        space: of the image.

    Raises:
        RecordingError: ``parcels-mismatch`` where the table is that of another image.
    """
    rows = {index: (name, xyz) for name, index, xyz in table if index is not None}
    prefix = segmentation_of(parse_name(file_name)[0]) or "parcel"
    labels = sorted({label for label in (*present, *rows) if label != 0})
    centres = dict(zip(present, centres_L3, strict=True))
    if 0 in rows and max(present) not in rows:
        detail = f"its table counts from 0 and has no {max(present)}, expected the values of the voxels"
        raise RecordingError("parcels-mismatch", f"{file_name}: {detail} in the column index")
    apart = [float(np.linalg.norm(np.array(rows[label][1]) - centres[label])) for label in present if label in rows]
    if (distance := float(np.median([d for d in apart if np.isfinite(d)] or [0.0]))) > _MAX_DISTANCE_MM:
        detail = f"the places of its table lie {distance:.0f} mm from those of its labels, expected at most"
        raise RecordingError("parcels-mismatch", f"{file_name}: {detail} {_MAX_DISTANCE_MM:g} mm")
    names, positions = [], []
    for label in labels:
        name, xyz = rows.get(label, (f"{prefix}-{label}", _NOWHERE))
        if np.isnan(xyz).any() and label in centres:
            xyz = tuple(centres[label])
        names.append(name)
        positions.append(xyz)
    return Parcels(names, labels, np.array(positions, dtype=np.float64), space)


def segmentation_of(entities: dict[str, str]) -> str:
    """Name of the parcellation of a file; ``seg-`` and ``atlas-`` are two words for it."""
    return entities.get("segmentation", entities.get("atlas", ""))


def parcel_table(table: Path) -> list[ParcelRow]:
    """Name, index and position [mm] of each row of a ``*_dseg.tsv`` (columns index, name and, where known, x, y, z).

    Kept per process, because every recording of a site asks for the same.
    """
    state = table.stat()
    return list(_parcel_table(table, state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=64)
def _parcel_table(table: Path, changed: int, size: int) -> list[ParcelRow]:
    cells = [{column.strip().lower(): cell for column, cell in row.items()} for row in read_tsv(table)]
    if cells and not any({"index", *_NAME} & row.keys() for row in cells):
        found = ", ".join(map(repr, cells[0]))
        raise RecordingError("bad-table", f"{table.name}: no column index or name, found {found[:120]}")
    rows = [_parcel_row(row, f"{table.name}: row {i}") for i, row in enumerate(cells, 1)]
    rows = [row for row in rows if row[1] != 0 or row[0].lower() not in _BACKGROUND]
    check_twice([name for name, _, _ in rows], table.name)
    return rows


def _parcel_row(row: dict[str, str], where: str) -> ParcelRow:
    def cell(names: Sequence[str]) -> str | None:
        return next((row[name].strip() for name in names if name in row), None)

    index = row.get("index", "").strip() or None
    if index is not None and re.fullmatch(r"\d+\.0+", index):  # as pandas writes a column with a gap
        index = index.partition(".")[0]
    name = cell(_NAME) or index or ""
    if index is None and name.isdecimal():
        index = name
    try:
        return name, None if index is None else int(index), tuple(float(cell(axis) or "nan") for axis in _AXES)
    except ValueError as error:
        detail = f"{where}: {error}; expected an integer index and x, y, z in mm"
        raise RecordingError("bad-table", detail) from None


def table_beside(file: Path) -> list[ParcelRow]:
    """The table of a label image beside it, in BIDS's form or in those that nilearn's atlases come with; else none."""
    stem = file.name.split(".")[0]
    if (beside := file.with_name(stem + ".tsv")).is_file():
        return parcel_table(beside)
    if (schaefer := file.with_name(stem.partition("_order")[0] + "_order.txt")).is_file():
        cells = [line.split("\t") for line in schaefer.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [(name, int(index), _NOWHERE) for index, name, *_ in cells]
    if (aal := file.with_name(stem + ".xml")).is_file():
        labels = ElementTree.parse(aal).getroot().iter("label")
        return [(label.findtext("name", ""), int(label.findtext("index", "0")), _NOWHERE) for label in labels]
    return []


def place_columns(
    values_TP: np.ndarray, names: list[str] | None, rows: Sequence[ParcelRow], file: str, space: str = ""
) -> tuple[np.ndarray, Parcels]:
    """Put columns into the order of a parcellation; parcels that have no column are NaN.

    Columns are known by name, or by label (``7``, ``Mean_7``); without names they have the order of the rows. Confounds
    among them, by the names that pipelines give them, are left out.

    Raises:
        RecordingError: ``bad-table`` for a table turned round, or that may be; ``parcels-mismatch``, also for a column
            that is no parcel.
    """
    n = values_TP.shape[1]
    if not rows:
        names = names or [f"parcel-{i}" for i in range(1, n + 1)]
        return values_TP, Parcels(names, [], np.full((n, 3), np.nan), space)
    known = [name for name, _, _ in rows]
    repairs: tuple[str, ...] = ()
    if names is not None and (others := [c for c in names if c not in known and _NO_PARCEL.fullmatch(c)]):
        values_TP = values_TP[:, [name not in others for name in names]]
        names, n = [name for name in names if name not in others], n - len(others)
        repairs = (f"{file}: {len(others)} columns of no parcel are left out: {listed(others)}",)
    if n != len(rows) and len(values_TP) == len(rows):
        detail = f"{len(values_TP)} rows and {n} columns for {len(rows)} parcels, expected a column for each parcel"
        raise RecordingError("bad-table", f"{file}: {detail}: the table is turned round")
    if names is None and n == len(rows) == len(values_TP):
        detail = f"{n} rows and {n} columns without names do not say which axis is time"
        raise RecordingError("bad-table", f"{file}: {detail}, expected names of the columns")
    if (names := _by_label(names, rows) if names is not None else None) is None:
        if n != len(rows):
            raise RecordingError("parcels-mismatch", f"{file}: {n} columns, expected the table's {len(rows)} parcels")
        labels = [index for _, index, _ in rows if index is not None]
        if labels != sorted(labels):
            detail = "its columns have no names, and the parcels' table is not in the order of its index"
            raise RecordingError("parcels-mismatch", f"{file}: {detail}, expected names of the columns")
        names = known
    column = {name: i for i, name in enumerate(names)}
    if foreign := [name for name in names if name not in known]:
        found = "no column is one" if len(foreign) == n else f"{len(foreign)} of {n} columns are none"
        detail = f"{found} of the {len(rows)} parcels, found {listed(map(repr, foreign), 3)}, expected names like"
        raise RecordingError("parcels-mismatch", f"{file}: {detail} {known[0]!r}")
    parcels = Parcels(known, [], np.array([xyz for _, _, xyz in rows], dtype=np.float64), space, repairs)
    if names == known:
        return values_TP, parcels
    x_TP = np.full((len(values_TP), len(known)), np.nan)
    for p, name in enumerate(known):
        if name in column:
            x_TP[:, p] = values_TP[:, column[name]]
    return x_TP, parcels


def _by_label(names: list[str], rows: Sequence[ParcelRow]) -> list[str] | None:
    """Names of columns that are called by their labels; None where they only count the columns."""
    if not all(_LABEL.fullmatch(name) for name in names) or set(names) <= {name for name, _, _ in rows}:
        return names
    labels = [int(name.removeprefix("Mean_")) for name in names]
    counted = labels in (list(range(len(labels))), list(range(1, len(labels) + 1)))
    if counted and len(labels) != len(rows):
        return None  # the first columns of another list would pass for the first parcels
    of_label = {index: name for name, index, _ in rows}
    if all(label in of_label for label in labels):
        return [of_label[label] for label in labels]
    return None if counted else names
