"""Read BOLD of every format as one value per volume and parcel: 4-D images, tables, ``.1D``, CIFTI ``.ptseries.nii``.

Shape letters: T volumes, P parcels, V voxels.
"""

import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
from nibabel.affines import apply_affine

from mcsp.config import FmriConfig
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import RecordingRef, atlas_files, parse_name
from mcsp.data_sharding.parcels.atlases import (
    Atlas,
    atlas_of_file,
    named_atlas,
    require_orientation,
    require_same,
    require_standard,
    same_space,
    space_of_atlas,
    space_of_image,
    space_of_name,
)
from mcsp.data_sharding.parcels.parcellation import (
    ParcelRow,
    Parcels,
    parcel_table,
    place_columns,
    require_places,
    segmentation_of,
    table_beside,
)
from mcsp.data_sharding.parcels.series import check_twice, read_series

# Header and sidecar may differ by rounding only.
_T_R_TOLERANCE = 0.01
_SECONDS_PER_UNIT = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0, "SECOND": 1.0}
# A voxel of int16 that ran over spans nearly all of its range; the fraction of them that makes an image useless. Ours.
_WRAPPED, _MAX_WRAPPED = 0.9 * 2**16, 0.001
# Bytes of voxels in memory at once: 128 MiB.
_CHUNK_BYTES = 134_217_728


def read_time_series(
    ref: RecordingRef, t_r: float, config: FmriConfig, atlas: Atlas | None = None
) -> tuple[np.ndarray, Parcels]:
    """Values float64 ``(T, P)``, NaN for parcels without data, and the parcels.

    Args:
        ref: the recording.
        t_r: s, with which a header has to agree.
        config: which atlas places the parcels, in which space images lie, and how much of a parcel must be covered.
        atlas: comes before those of the configuration and of the dataset.

    Raises:
        RecordingError: with the reason.
    """
    name = ref.path.name
    read = _read_image if is_image(ref.path) else _read_parcellated
    found = read(ref, t_r, config, atlas)
    if len(found[0]) < 2:
        raise RecordingError("no-volumes", f"{name}: {len(found[0])} volumes, expected a time series")
    require_places(found[1], config.max_bad_fraction, name)
    return found


def is_image(path: Path) -> bool:
    """Whether a file of BOLD holds voxels, not parcels."""
    return path.name.endswith((".nii", ".nii.gz")) and not path.name.endswith(".ptseries.nii")


def _read_parcellated(
    ref: RecordingRef, t_r: float, config: FmriConfig, atlas: Atlas | None
) -> tuple[np.ndarray, Parcels]:
    name, positions_P3 = ref.path.name, None
    if name.endswith(".ptseries.nii"):
        values_TP, names, positions_P3 = read_ptseries(ref.path, t_r)
    else:
        values_TP, named = read_series(ref.path)
        if named is not None and not named:
            raise RecordingError("no-channels", f"{name}: the table holds no time series")
        names = named or []
    atlas = atlas or _given_atlas(ref, config)
    rows, space = (atlas.rows, atlas.parcels.space) if atlas else _rows_of_dataset(ref)
    if positions_P3 is not None:  # of parcels for certain; those of the atlas come first
        known = {row[0] for row in rows}
        if not known & set(names):
            return values_TP, Parcels(names, [], positions_P3, space_of_name(ref.path))
        own = dict(zip(names, map(tuple, positions_P3.tolist()), strict=True))
        rows = [(n, label, own.get(n, xyz) if np.isnan(xyz).any() else xyz) for n, label, xyz in rows]
        rows += [(n, None, xyz) for n, xyz in own.items() if n not in known]
    return place_columns(values_TP, names or None, rows, name, space or space_of_name(ref.path))


def _given_atlas(ref: RecordingRef, config: FmriConfig) -> Atlas | None:
    """The atlas that the settings name."""
    if ref.site.label_image is not None:
        return atlas_of_file(ref.site.label_image, space=config.label_space or "")
    return named_atlas(config.atlas) if config.atlas else None


def _rows_of_dataset(ref: RecordingRef) -> tuple[list[ParcelRow], str]:
    """Parcels of a table by the files of its dataset, and the space of their positions; none where it has no atlas."""
    segmentation = segmentation_of(ref.entities)
    elsewhere = atlas_files(ref, segmentation) if segmentation else []
    tables = [*_of_segmentation(ref, "dseg.tsv"), *(f for f in elsewhere if f.name.endswith(".tsv"))]
    rows = parcel_table(tables[0]) if tables else []
    if any(math.isfinite(sum(row[2])) for row in rows):
        return rows, space_of_name(tables[0])
    images = [*_of_segmentation(ref, "dseg.nii.gz"), *(f for f in elsewhere if not f.name.endswith(".tsv"))]
    images = [file for file in images if not segmentation or segmentation_of(parse_name(file.name)[0]) == segmentation]
    space = space_of_name(ref.path)
    images.sort(key=lambda file: not same_space(space_of_atlas(file), space))  # of equal ones the closest
    if not images:
        return rows, ""
    atlas = atlas_of_file(images[0], rows)
    return atlas.rows, atlas.parcels.space


def _of_segmentation(ref: RecordingRef, kind: str) -> list[Path]:
    """Files of the dataset that say something of the recording's parcellation, the closest first."""
    wanted = segmentation_of(ref.entities)
    files = reversed(ref.companions.get(kind, ()))
    return [file for file in files if not wanted or segmentation_of(parse_name(file.name)[0]) in ("", wanted)]


def read_ptseries(path: Path, t_r: float) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Values ``(T, P)``, names and positions [mm], NaN for parcels of the surface, of a CIFTI file.

    Raises:
        RecordingError: with the reason.
    """
    image = nibabel.load(path)
    if not isinstance(image, nibabel.Cifti2Image):
        raise RecordingError("unreadable", f"{path.name}: expected CIFTI-2, found {type(image).__name__}")
    axes = [image.header.get_axis(i) for i in range(image.ndim)]
    kinds = [type(axis).__name__ for axis in axes]
    if kinds != ["SeriesAxis", "ParcelsAxis"]:
        raise RecordingError("unreadable", f"{path.name}: expected time by parcels, found {' by '.join(kinds)}")
    series, parcels = axes
    _check_t_r(path.name, t_r, float(series.step), series.unit)
    names = [str(name) for name in parcels.name]
    check_twice(names, path.name)
    positions_P3 = np.full((len(parcels), 3), np.nan)
    for p, voxels in enumerate(parcels.voxels):
        if len(voxels) and parcels.affine is not None:  # parcels of the surface have vertices and no millimetres here
            positions_P3[p] = apply_affine(parcels.affine, np.asarray(voxels)).mean(axis=0)
    return np.asarray(image.dataobj, dtype=np.float64), names, positions_P3


def _read_image(ref: RecordingRef, t_r: float, config: FmriConfig, atlas: Atlas | None) -> tuple[np.ndarray, Parcels]:
    name = ref.path.name
    space = space_of_image(ref.path, config.image_space)
    require_standard(space, name)
    atlas = atlas or _given_atlas(ref, config) or _atlas_of_dataset(ref, space, config.parcellation)
    require_same(space, name, atlas.parcels.space, atlas.name)
    image = nibabel.load(ref.path, keep_file_open=True)
    if not name.endswith(".gz"):
        return average_parcels(image, name, atlas, t_r, config.min_parcel_coverage)
    with gzip.open(ref.path) as stream:
        found = average_parcels(type(image).from_stream(stream), name, atlas, t_r, config.min_parcel_coverage)
        try:
            while stream.read(_CHUNK_BYTES):  # to its end, where the checksum is: a damaged stream may well unpack
                pass
        except EOFError as error:
            raise RecordingError("truncated", f"{name}: {error}") from None
    return found


def _atlas_of_dataset(ref: RecordingRef, space: str, parcellation: str | None) -> Atlas:
    """The dataset's own label image; one whose name says no space was put there for images in a standard space."""
    files = list(reversed(ref.companions.get("dseg.nii.gz", ())))
    files.sort(key=lambda file: segmentation_of(parse_name(file.name)[0]) != parcellation)
    files.sort(key=lambda file: not same_space(space_of_atlas(file) or space, space))
    if not files:
        detail = "no *_dseg.nii.gz of its space at the dataset's root and no label_image or atlas in the settings"
        raise RecordingError("no-label-image", f"{ref.path.name}: {detail}")
    of_dataset = ref.companion("dseg.tsv")
    rows = table_beside(files[0]) or (parcel_table(of_dataset) if of_dataset else [])
    return atlas_of_file(files[0], rows, space_of_atlas(files[0]) or space)


def average_parcels(
    image: nibabel.Nifti1Image, name: str, atlas: Atlas, t_r: float, min_coverage: float
) -> tuple[np.ndarray, Parcels]:
    """Mean of the covered voxels of each label; a voxel is covered where the first volume is finite and not zero.

    Volumes before that are empty are none: they stay NaN.

    Args:
        image: 4-D; read a few volumes at a time.
        name: of the image, in errors.
        atlas: with a label image, on any grid of the same space.
        t_r: s, with which the header has to agree.
        min_coverage: fraction of a parcel's voxels below which it is NaN.
    """
    parcels, voxels, affine = atlas.parcels, atlas.voxels_XYZ, atlas.affine
    if voxels is None or affine is None:
        raise RecordingError(
            "no-label-image", f"{atlas.name}: holds positions alone, expected a label image for {name}"
        )
    if len(image.shape) != 4:
        raise RecordingError("not-4d", f"{name}: expected a 4-D image, found shape {image.shape}")
    require_orientation(image, name)
    unit, zoom = image.header.get_xyzt_units()[1], float(image.header.get_zooms()[3])
    if zoom == 1 and unit in ("unknown", "sec"):  # what nibabel, nilearn and releases of fMRIPrep write unasked
        if t_r != 1 and unit == "sec":
            told = f"{name}: 1 s in the image header is not used, t_r is {t_r:g} s"
            parcels = replace(parcels, repairs=(*parcels.repairs, told))
    else:
        _check_t_r(name, t_r, zoom, unit)
    if voxels.shape != image.shape[:3] or not np.allclose(affine, image.affine, atol=1e-3):
        voxels = _onto_grid(voxels, affine, image)
    rank = {label: p for p, label in enumerate(parcels.labels)}
    inside = np.flatnonzero(voxels.ravel(order="F"))
    parcel_V = np.array([rank[int(label)] for label in voxels.ravel(order="F")[inside]], dtype=np.int64)
    if not len(inside):
        raise RecordingError("label-space-mismatch", f"{atlas.name}: no label lies inside of {name}")
    x_TP = np.full((image.shape[3], len(parcels.labels)), np.nan)
    first = 0
    weight_P = covered_V = np.zeros(0, dtype=bool)  # until a volume is not empty
    may_overflow = image.get_data_dtype() == np.int16 and getattr(image.dataobj, "slope", 1.0) == 1
    for volumes_TV in _chunks(image, name, inside):
        if may_overflow and (np.ptp(volumes_TV.astype(np.int32), axis=0) > _WRAPPED).mean() > _MAX_WRAPPED:
            detail = "voxels jump from one end of int16 to the other, expected values within its range"
            raise RecordingError("clipped", f"{name}: {detail}: they ran over when the image was written")
        if not covered_V.any():
            covered_TV = np.isfinite(volumes_TV) & (volumes_TV != 0)
            empty = int(np.append(covered_TV.any(axis=1), True).argmax())  # volumes before the first one
            first, volumes_TV = first + empty, volumes_TV[empty:]
            if not len(volumes_TV):
                continue
            covered_V = covered_TV[empty]
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


def _check_t_r(name: str, t_r: float, step: float, unit: str) -> None:
    if unit not in _SECONDS_PER_UNIT:
        raise RecordingError("t_r-mismatch", f"{name}: volumes follow each other in {unit}, expected a unit of time")
    header_t_r = step * _SECONDS_PER_UNIT[unit]
    if header_t_r > 0 and abs(header_t_r - t_r) > _T_R_TOLERANCE * t_r:
        milliseconds = " (milliseconds?)" if abs(header_t_r / 1000 - t_r) <= _T_R_TOLERANCE * t_r else ""
        detail = f"{name}: t_r is {t_r:g} s, but {header_t_r:g} s in the image header (unit {unit}){milliseconds}"
        raise RecordingError("t_r-mismatch", detail)
