"""Read BOLD of every format as one value per volume and parcel: 4-D images, tables, ``.1D``, CIFTI ``.ptseries.nii``.

Shape letters: T volumes, P parcels, V voxels.
"""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pandas as pd
from nibabel.affines import apply_affine

from mcsp.data_sharding.bids.find import RecordingRef
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.clean.fmri_parcels import (
    ParcelRow,
    Parcels,
    find_label_image,
    image_parcels,
    parcel_table,
    table_beside,
)

# Header and sidecar may differ by rounding only.
_T_R_TOLERANCE = 0.01
_SECONDS_PER_UNIT = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0, "SECOND": 1.0}
# Bytes of voxels in memory at once.
_CHUNK_BYTES = 1 << 27


def read_time_series(ref: RecordingRef, t_r: float, min_coverage: float) -> tuple[np.ndarray, Parcels]:
    """Values float64 ``(T, P)``, NaN for parcels without data, and the parcels.

    Raises:
        RecordingError: with the reason.
    """
    name = ref.path.name
    if name.endswith(".tsv"):
        found = _fixed_list(*_read_tsv(ref.path), ref)
    elif name.endswith(".1D"):
        found = _read_1d(ref)
    elif name.endswith(".ptseries.nii"):
        values_TP, names, positions_P3 = _read_ptseries(ref.path, t_r)
        found = _fixed_list(values_TP, names, ref, positions_P3)
    else:
        found = _read_image(ref, t_r, min_coverage)
    if len(found[0]) < 2:
        raise RecordingError("no-volumes", f"{name}: {len(found[0])} volumes, expected a time series")
    return found


def _read_tsv(path: Path) -> tuple[np.ndarray, list[str]]:
    try:
        frame = pd.read_csv(path, sep="\t", na_values=["n/a"])
    except UnicodeDecodeError as error:
        raise RecordingError("bad-encoding", f"{path.name}: byte {error.start} is not UTF-8") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise RecordingError("bad-table", f"{path.name}: {' '.join(str(error).split())}") from None
    text = [str(name) for name, kind in frame.dtypes.items() if kind.kind not in "fiu"]
    if len(frame) and text:
        raise RecordingError(
            "bad-table", f"{path.name}: column {text[0]!r} holds text, expected one number per volume and parcel"
        )
    return frame.to_numpy(dtype=np.float64), [str(name) for name in frame.columns]


def _read_1d(ref: RecordingRef) -> tuple[np.ndarray, Parcels]:
    """Columns are parcels in the table's order, rows are volumes; ``#`` begins a comment (AFNI)."""
    path = ref.path
    try:
        values_TP = np.loadtxt(path, comments="#", ndmin=2, encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecordingError("bad-encoding", f"{path.name}: byte {error.start} is not UTF-8") from None
    except ValueError as error:
        raise RecordingError("bad-table", f"{path.name}: {' '.join(str(error).split())}") from None
    rows = parcel_table(ref.companion("dseg.tsv"))
    n = values_TP.shape[1]
    if rows and len(rows) != n:
        raise RecordingError("parcels-mismatch", f"{path.name}: {n} columns, expected the table's {len(rows)} parcels")
    rows = rows or [(f"parcel-{i}", i, (np.nan,) * 3) for i in range(1, n + 1)]
    return values_TP, Parcels([row[0] for row in rows], [], np.array([row[2] for row in rows], dtype=np.float64))


def _read_ptseries(path: Path, t_r: float) -> tuple[np.ndarray, list[str], np.ndarray]:
    image = nibabel.load(path)
    if not isinstance(image, nibabel.Cifti2Image):
        raise RecordingError("unreadable", f"{path.name}: expected CIFTI-2, found {type(image).__name__}")
    axes = [image.header.get_axis(i) for i in range(image.ndim)]
    kinds = [type(axis).__name__ for axis in axes]
    if kinds != ["SeriesAxis", "ParcelsAxis"]:
        raise RecordingError("unreadable", f"{path.name}: expected time by parcels, found {' by '.join(kinds)}")
    series, parcels = axes
    _check_t_r(path.name, t_r, float(series.step) * _SECONDS_PER_UNIT.get(series.unit, 1.0), series.unit)
    positions_P3 = np.full((len(parcels), 3), np.nan)
    for p, voxels in enumerate(parcels.voxels):
        if len(voxels) and parcels.affine is not None:  # parcels of the surface have vertices and no millimetres here
            positions_P3[p] = apply_affine(parcels.affine, np.asarray(voxels)).mean(axis=0)
    return np.asarray(image.dataobj, dtype=np.float64), [str(name) for name in parcels.name], positions_P3


def _fixed_list(
    values_TP: np.ndarray, names: list[str], ref: RecordingRef, positions_P3: np.ndarray | None = None
) -> tuple[np.ndarray, Parcels]:
    """Put columns into the order of the parcellation's table; parcels that have no column are NaN.

    Where the table does not name every column it is of another list, and only its positions are used.
    """
    if not names:
        raise RecordingError("no-channels", f"{ref.path.name}: the table holds no time series")
    known = {name: xyz for name, _, xyz in parcel_table(ref.companion("dseg.tsv"))}
    order = list(known) if known.keys() >= set(names) else names
    column = {name: i for i, name in enumerate(names)}
    x_TP = np.full((len(values_TP), len(order)), np.nan)
    positions = np.full((len(order), 3), np.nan)
    for p, name in enumerate(order):
        if name in column:
            x_TP[:, p] = values_TP[:, column[name]]
            if positions_P3 is not None:
                positions[p] = positions_P3[column[name]]
        if name in known and not np.isnan(known[name]).any():
            positions[p] = known[name]
    return x_TP, Parcels(order, [], positions)


def _read_image(ref: RecordingRef, t_r: float, min_coverage: float) -> tuple[np.ndarray, Parcels]:
    label_file = find_label_image(ref)
    image = Named(nibabel.load(ref.path, keep_file_open=True), ref.path.name)
    labels = Named(nibabel.load(label_file), label_file.name)
    return average_parcels(image, labels, table_beside(label_file, ref), t_r, min_coverage)


class Named(NamedTuple):
    """An image and its name in errors."""

    image: nibabel.Nifti1Image
    name: str


def average_parcels(
    bold: Named, parcellation: Named, rows: Sequence[ParcelRow], t_r: float, min_coverage: float
) -> tuple[np.ndarray, Parcels]:
    """Mean of the covered voxels of each label; a voxel is covered where the first volume is finite and not zero.

    Args:
        bold: 4-D; read a few volumes at a time.
        parcellation: integer labels, on any grid of the same space.
        rows: names and positions of labels, where known.
        t_r: s, with which the header has to agree.
        min_coverage: fraction of a parcel's voxels below which it is NaN.
    """
    image, name = bold
    labels_image, label_name = parcellation
    if len(image.shape) != 4:
        raise RecordingError("not-4d", f"{name}: expected a 4-D image, found shape {image.shape}")
    for file, affine in ((name, image.affine), (label_name, labels_image.affine)):
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
            raise RecordingError("singular-affine", f"{file}: its affine maps no voxel to a place")
    unit = image.header.get_xyzt_units()[1]
    _check_t_r(name, t_r, float(image.header.get_zooms()[3]) * _SECONDS_PER_UNIT.get(unit, 1.0), unit)
    parcels, voxels = image_parcels(labels_image, label_name, rows)
    if voxels.shape != image.shape[:3] or not np.allclose(labels_image.affine, image.affine, atol=1e-3):
        voxels = _onto_grid(voxels, labels_image.affine, image)
    rank = {label: p for p, label in enumerate(parcels.labels)}
    inside = np.flatnonzero(voxels.ravel(order="F"))
    parcel_V = np.array([rank[int(label)] for label in voxels.ravel(order="F")[inside]], dtype=np.int64)
    if not len(inside):
        raise RecordingError("label-space-mismatch", f"{label_name}: no label lies inside of {name}")
    x_TP = np.full((image.shape[3], len(parcels.labels)), np.nan)
    first = 0
    weight_P, covered_V = np.empty(0), np.empty(0, dtype=bool)
    for volumes_TV in _chunks(image, name, inside):
        if not first:
            covered_V = np.isfinite(volumes_TV[0]) & (volumes_TV[0] != 0)
            size_P = np.bincount(parcel_V, minlength=len(rank))
            weight_P = np.bincount(parcel_V[covered_V], minlength=len(rank)).astype(np.float64)
            weight_P[weight_P < min_coverage * np.maximum(size_P, 1)] = np.nan
        for volume_V in volumes_TV:
            sums_P = np.bincount(parcel_V[covered_V], volume_V[covered_V], minlength=len(rank))
            x_TP[first] = sums_P / weight_P
            first += 1
    return x_TP, parcels


def _chunks(image: nibabel.Nifti1Image, name: str, inside: np.ndarray) -> Iterator[np.ndarray]:
    """Labelled voxels of a few volumes at a time, ``(t, V)``, in order, so that a compressed file is read once."""
    n_volumes = image.shape[3]
    per_chunk = max(1, _CHUNK_BYTES // (8 * int(np.prod(image.shape[:3]))))
    for first in range(0, n_volumes, per_chunk):
        try:
            values = np.asanyarray(image.dataobj[..., first : first + per_chunk])
        except (EOFError, zlib.error) as error:
            raise RecordingError("truncated", f"{name}: {error}; header says {n_volumes} volumes") from None
        except (OSError, ValueError) as error:
            if "Expected" in str(error) or "not enough data" in str(error):  # as nibabel says it
                detail = "the data end early"
                raise RecordingError("truncated", f"{name}: {detail}; header says {n_volumes} volumes") from None
            raise
        yield values.reshape(-1, values.shape[3], order="F")[inside].T


def _onto_grid(voxels: np.ndarray, affine: np.ndarray, image: nibabel.Nifti1Image) -> np.ndarray:
    """Labels at the voxels of an image, by the nearest label voxel; zero outside."""
    to_labels = np.linalg.inv(affine) @ image.affine
    ijk = np.indices(image.shape[:3]).reshape(3, -1)
    nearest = np.round(to_labels[:3, :3] @ ijk + to_labels[:3, 3:]).astype(np.int64)
    bounds = np.array(voxels.shape)[:, None]
    inside = ((nearest >= 0) & (nearest < bounds)).all(axis=0)
    found = np.zeros(ijk.shape[1], dtype=voxels.dtype)
    found[inside] = voxels[tuple(nearest[:, inside])]
    return found.reshape(image.shape[:3])


def _check_t_r(name: str, t_r: float, header_t_r: float, unit: str) -> None:
    if header_t_r > 0 and abs(header_t_r - t_r) > _T_R_TOLERANCE * t_r:
        milliseconds = " (milliseconds?)" if abs(header_t_r / 1000 - t_r) <= _T_R_TOLERANCE * t_r else ""
        detail = f"{name}: t_r is {t_r:g} s, but {header_t_r:g} s in the image header (unit {unit}){milliseconds}"
        raise RecordingError("t_r-mismatch", detail)
