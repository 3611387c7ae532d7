"""Parcellations: the fixed list of parcels, their names and places, and the files that hold them.

Shape letters: P parcels.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from mcsp.data_sharding.bids.find import RecordingRef, parse_name
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.tables import read_tsv

_NOWHERE = (np.nan,) * 3
ParcelRow = tuple[str, int | None, tuple[float, ...]]  # name, label, x y z [mm]


@dataclass(frozen=True)
class Parcels:
    """The fixed list of parcels of a parcellation."""

    names: list[str]
    labels: list[int]  # voxel value of each parcel; empty for tables of time series
    positions_P3: np.ndarray  # mm, NaN where unknown


def find_label_image(ref: RecordingRef) -> Path:
    """The label image for a 4-D image: that of the configuration, else a ``*_dseg.nii.gz`` of the dataset.

    Raises:
        RecordingError: there is none, or its name says another space than the image's (two MNI spaces pass).
    """
    file = ref.site.label_image or ref.companion("dseg.nii.gz")
    if file is None:
        raise RecordingError(
            "no-label-image",
            f"{ref.path.name}: no *_dseg.nii.gz at the dataset's root and no label_image in the config",
        )
    spaces = ref.entities.get("space", ""), parse_name(file.name)[0].get("space", "")
    if all(spaces) and spaces[0] != spaces[1] and not all(space.startswith("MNI") for space in spaces):
        raise RecordingError(
            "label-space-mismatch", f"{file.name}: space {spaces[1]}, expected the image's {spaces[0]}"
        )
    return file


def image_parcels(image: nibabel.Nifti1Image, file_name: str, table: Sequence[ParcelRow]) -> tuple[Parcels, np.ndarray]:
    """Parcels of a label image, by label, and its integer voxels.

    Names and positions come from the table where it has them; other positions are centres of mass.

    Raises:
        RecordingError: ``bad-label-image``.
    """
    voxels = np.asarray(image.dataobj)
    if voxels.ndim == 4 and voxels.shape[3] == 1:
        voxels = voxels[..., 0]
    present = [int(label) for label in np.unique(voxels) if label != 0 and np.isfinite(label)]
    if voxels.ndim != 3 or not present or not np.array_equal(voxels, np.round(voxels)):
        raise RecordingError("bad-label-image", f"{file_name}: expected integer labels in three dimensions")
    voxels = voxels.astype(np.int32)
    rows = {index: (name, xyz) for name, index, xyz in table if index is not None}
    prefix = parse_name(file_name)[0].get("segmentation", "parcel")
    labels = sorted({label for label in (*present, *rows) if label != 0})
    centres = dict(zip(present, ndimage.center_of_mass(voxels != 0, voxels, present), strict=True))
    names, positions = [], []
    for label in labels:
        name, xyz = rows.get(label, (f"{prefix}-{label}", _NOWHERE))
        if np.isnan(xyz).any() and label in centres:
            xyz = tuple(apply_affine(image.affine, centres[label]))
        names.append(name)
        positions.append(xyz)
    return Parcels(names, labels, np.array(positions, dtype=np.float64)), voxels


def parcel_table(table: Path | None) -> list[ParcelRow]:
    """Name, index and position [mm] of each row of a ``*_dseg.tsv`` (columns index, name and, where known, x, y, z)."""
    if table is None:
        return []
    try:
        return [
            (
                row.get("name", row.get("label", row.get("index", ""))),
                int(row["index"]) if "index" in row else None,
                tuple(float(row.get(axis, "nan")) for axis in "xyz"),
            )
            for row in read_tsv(table)
        ]
    except ValueError as error:
        if isinstance(error, RecordingError):
            raise
        raise RecordingError(
            "bad-table", f"{table.name}: {error}; expected an integer index and x, y, z in mm"
        ) from None


def table_beside(file: Path, ref: RecordingRef) -> list[ParcelRow]:
    """The table of a label image, in BIDS's form or in those that nilearn's atlases come with."""
    stem = file.name.split(".")[0]
    if (beside := file.with_name(stem + ".tsv")).is_file():
        return parcel_table(beside)
    if (schaefer := file.with_name(stem.partition("_order")[0] + "_order.txt")).is_file():
        cells = [line.split("\t") for line in schaefer.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [(name, int(index), _NOWHERE) for index, name, *_ in cells]
    if (aal := file.with_name(stem + ".xml")).is_file():
        labels = ElementTree.parse(aal).getroot().iter("label")
        return [(label.findtext("name", ""), int(label.findtext("index", "0")), _NOWHERE) for label in labels]
    return parcel_table(ref.companion("dseg.tsv"))
