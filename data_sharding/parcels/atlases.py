"""Atlases: from a file, an image in memory, or nilearn by name.

Names and positions are computed once per process; a corpus and an export store them with their space. What nilearn has
not fetched yet it downloads into its data folder (``NILEARN_DATA``). Shape letters: P parcels.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from mcsp.config.corpus import ATLAS_NAMES, ATLASES
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.parcels.parcellation import (
    ParcelRow,
    Parcels,
    image_parcels,
    label_voxels,
    parcel_table,
    table_beside,
    voxels_of,
)
from mcsp.data_sharding.parcels.spaces import require_orientation, space_of_atlas, space_of_name


@dataclass(frozen=True)
class Atlas:
    """Parcels and, where it has any, the label image that they are of."""

    name: str  # of its file or its own, for messages
    parcels: Parcels
    voxels_XYZ: np.ndarray | None = None  # int32
    affine: np.ndarray | None = None

    @property
    def rows(self) -> list[ParcelRow]:
        """Name, label and position [mm] of every parcel."""
        labels = self.parcels.labels or range(1, len(self.parcels.names) + 1)
        places = map(tuple, self.parcels.positions_P3.tolist())
        return list(zip(self.parcels.names, labels, places, strict=True))


def _craddock(found: re.Match[str]) -> Any:
    """One of the series of parcellations: the first with as many parcels as the name says (CC400 has 392)."""
    from nilearn import datasets

    bunch = datasets.fetch_atlas_craddock_2012(homogeneity="temporal", grp_mean=False)
    wanted = {"200": 200, "400": 392}[found[1]]
    image = nibabel.load(bunch["maps"])
    voxels = np.asarray(image.dataobj)
    counts = [len(np.unique(voxels[..., v])) - 1 for v in range(voxels.shape[3])]
    if wanted not in counts:
        raise ValueError(f"{bunch['maps']}: no volume of {wanted} parcels, found {counts}")
    chosen = nibabel.Nifti1Image(voxels[..., counts.index(wanted)], image.affine, image.header)
    names = [f"CC{found[1]}_{label:03d}" for label in range(1, wanted + 1)]
    return {"maps": chosen, "labels": names, "template": "MNI152NLin6Asym"}


def _fetch(kind: str, found: re.Match[str]) -> Any:
    """What nilearn's fetcher gives for a name of a kind (:data:`mcsp.config.corpus.ATLASES`)."""
    from nilearn import datasets  # takes seconds

    fetchers: dict[str, Callable[[], Any]] = {
        "schaefer": lambda: datasets.fetch_atlas_schaefer_2018(int(found[1]), int(found[2] or 7), 2),
        # A parcel of both hemispheres would have its centre between them.
        "harvard_oxford": lambda: datasets.fetch_atlas_harvard_oxford(
            found[1], symmetric_split=found[0].startswith("HarvardOxford-cort-")
        ),
        "juelich": lambda: datasets.fetch_atlas_juelich(found[1], symmetric_split=True),
        "aal": lambda: datasets.fetch_atlas_aal(version=found[1] or "SPM12"),
        "craddock": lambda: _craddock(found),
        "basc": lambda: datasets.fetch_atlas_basc_multiscale_2015(resolution=int(found[1]), version="sym"),
        "power": lambda: {**datasets.fetch_coords_power_2011(), "template": "MNI152"},
        "dosenbach": lambda: {**datasets.fetch_coords_dosenbach_2010(), "template": "MNI152"},
        "seitzman": lambda: {**datasets.fetch_coords_seitzman_2018(), "template": "MNI152"},
    }
    return fetchers[kind]()


def is_named(name: str) -> bool:
    """Whether an atlas of this name is known."""
    return any(re.fullmatch(pattern, name) for pattern in ATLASES.values())


@lru_cache(maxsize=8)
def named_atlas(name: str) -> Atlas:
    """An atlas that nilearn fetches.

    Raises:
        ValueError: no such name, or it is not there and cannot be downloaded.
    """
    found = ((kind, re.fullmatch(pattern, name)) for kind, pattern in ATLASES.items())
    kind, match = next(((kind, match) for kind, match in found if match), ("", None))
    if match is None:
        raise ValueError(f"atlas {name!r}: expected a file or a name like {ATLAS_NAMES}")
    try:
        bunch = _fetch(kind, match)
    except OSError as error:  # nilearn's words for a missing network
        detail = " ".join(str(error).split())[:200]
        raise ValueError(f"atlas {name}: not in nilearn's data folder and cannot be downloaded ({detail})") from None
    return atlas_of_bunch(bunch, name)


def atlas_of_bunch(bunch: Mapping[str, Any], name: str = "atlas", space: str = "") -> Atlas:
    """What a fetcher of nilearn returned: a label image, or coordinates.

    Raises:
        ValueError: a probabilistic atlas, whose maps are no parcels.
    """
    template = str(bunch.get("template", ""))
    space = space or ("" if "?" in template else template)
    places = next((table for table in bunch.values() if {"x", "y", "z"} <= set(getattr(table, "columns", ()))), None)
    if places is not None:
        positions_P3 = places[["x", "y", "z"]].to_numpy(dtype=np.float64)
        labels = bunch.get("labels")
        names = [f"{name}-{i}" for i in range(1, len(places) + 1)]
        if labels is not None and len(set(map(str, labels))) == len(names):
            names = [str(label) for label in labels]
        return Atlas(name, Parcels(names, list(range(1, len(names) + 1)), positions_P3, space))
    if bunch.get("atlas_type") == "probabilistic" or "maps" not in bunch:
        raise ValueError(f"{name}: a probabilistic atlas, expected one with a label per voxel, or coordinates")
    maps = bunch["maps"]
    image = nibabel.load(maps) if isinstance(maps, str | Path) else maps
    file = Path(maps).name if isinstance(maps, str | Path) else name
    return atlas_of_image(image, file, _rows_of_bunch(bunch), space or space_of_atlas(Path(file)))


def _rows_of_bunch(bunch: Mapping[str, Any]) -> list[ParcelRow]:
    """Names by label; the background is no parcel."""
    nowhere = (np.nan,) * 3
    if (lut := bunch.get("lut")) is not None:
        pairs = zip(lut["index"].astype(int), lut["name"].astype(str), strict=True)
        return [(name, index, nowhere) for index, name in pairs if index != 0]
    names = [label.decode() if isinstance(label, bytes) else str(label) for label in bunch.get("labels", [])]
    first = 0 if names and names[0].lower() == "background" else 1
    return [(name, index, nowhere) for index, name in enumerate(names, first) if index != 0]


def atlas_of_image(image: Any, file: str, rows: list[ParcelRow], space: str) -> Atlas:
    """A label image in memory."""
    require_orientation(image, file)
    voxels, affine, present, centres_L3 = voxels_of(image, file)
    return Atlas(file, image_parcels(present, centres_L3, file, rows, space), voxels, affine)


def atlas_of_file(path: Path, rows: list[ParcelRow] | None = None, space: str = "") -> Atlas:
    """A label image with the table beside it, or a table of names and positions alone.

    Raises:
        RecordingError: with the reason.
    """
    if path.name.endswith(".tsv"):
        of_table = parcel_table(path)
        positions_P3 = np.array([row[2] for row in of_table], dtype=np.float64).reshape(-1, 3)
        labels = [row[1] if row[1] is not None else i for i, row in enumerate(of_table, 1)]
        names = [row[0] for row in of_table]
        return Atlas(path.name, Parcels(names, labels, positions_P3, space or space_of_name(path)))
    if not path.name.endswith((".nii", ".nii.gz")):
        detail = f"{path.name}: expected a label image (.nii, .nii.gz) or a table (.tsv)"
        raise RecordingError("bad-label-image", detail)
    require_orientation(nibabel.load(path), path.name)
    voxels, affine, present, centres_L3 = label_voxels(path)
    parcels = image_parcels(present, centres_L3, path.name, rows or table_beside(path), space or space_of_atlas(path))
    return Atlas(path.name, parcels, voxels, affine)
