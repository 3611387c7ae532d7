"""Atlases and the standard space of each: from a file, an image in memory, or nilearn by name.

A space must be stated; it is never assumed: the model places parcels by their millimetres in MNI space, so an image
that was not brought there has no place in it.

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
from mcsp.data_sharding.bids.ref import parse_name
from mcsp.data_sharding.parcels.parcellation import (
    ParcelRow,
    Parcels,
    image_parcels,
    label_voxels,
    parcel_table,
    table_beside,
    voxels_of,
)


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
    """Names by label; those of the background are of no label in an image."""
    nowhere = (np.nan,) * 3
    if (lut := bunch.get("lut")) is not None:
        pairs = zip(lut["index"].astype(int), lut["name"].astype(str), strict=True)
        return [(name, index, nowhere) for index, name in pairs]
    names = [label.decode() if isinstance(label, bytes) else str(label) for label in bunch.get("labels", [])]
    first = 0 if names and names[0].lower() == "background" else 1
    return [(name, index, nowhere) for index, name in enumerate(names, first)]


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


# Names of one space. FSL's MNI152 is the sixth generation (Evans et al. 2012, NeuroImage 62); C-PAC writes ASym.
_SAME = {"mni152": "mni152nlin6asym", "fslmni152": "mni152nlin6asym", "mni152nlin6": "mni152nlin6asym"}
# What sform and qform may differ by where both mean one space [mm]. Ours.
_APART_MM = 5.0
# What names say that leave the space open.
_UNSAID = ("", "template")
# Spaces of atlases whose files do not name one, by the beginning of the file's name as nilearn stores it. The spaces
# are those that nilearn states (``Bunch.template``); Craddock's is FSL's MNI152, as C-PAC lays it over its images.
_OF_FILES = {
    r"Schaefer2018_\d+Parcels_\d+Networks_order_FSLMNI152_": "MNI152NLin6Asym",
    r"HarvardOxford-": "MNI152NLin6Asym",
    r"Juelich-": "MNI152NLin6Asym",
    r"Yeo2011_\d+Networks_MNI152_": "MNI152NLin6Asym",
    r"AAL": "MNIColin27",
    r"(tcorr05|scorr05)_(mean|2level)_all": "MNI152NLin6Asym",
    r"template_cambridge_basc_multiscale_sym_": "MNI152NLin2009bSym",
    r"template_cambridge_basc_multiscale_asym_": "MNI152NLin2009bAsym",
}


def space_of_name(path: Path) -> str:
    """The space that a file's name (``space-``, ``tpl-``), or TemplateFlow's folder around it, says; else empty.

    Cohorts of a template are spaces of their own: ``MNIPediatricAsym:cohort-2``.
    """
    entities = parse_name(path.name)[0]
    folder = path.parent.name
    template = folder.removeprefix("tpl-").partition("_")[0] if folder.startswith("tpl-") else ""
    space = entities.get("space") or entities.get("template") or template
    return f"{space}:cohort-{entities['cohort']}" if space and "cohort" in entities else space


def space_of_image(path: Path, setting: str | None) -> str:
    """The space of an image by its name; where that says none, or ``template`` as C-PAC does, by the settings."""
    named = space_of_name(path)
    return setting if setting and named in _UNSAID else named


def space_of_atlas(path: Path) -> str:
    """The space of a label image by its name, or as one of the atlases that nilearn fetches; else empty."""
    known = (space for pattern, space in _OF_FILES.items() if re.match(pattern, path.name))
    return space_of_name(path) or next(known, "")


def same_space(one: str, other: str) -> bool:
    """Whether two names mean the same space. Generations of MNI152 are different spaces."""
    return _SAME.get(one.lower(), one.lower()) == _SAME.get(other.lower(), other.lower())


def require_standard(space: str, file: str) -> None:
    """Raise :class:`RecordingError` where an image lies in no MNI space, or in none that anything says."""
    if space.lower().startswith("mni"):
        return
    found = f"space-{space}" if space else "a name without space-, as raw images have"
    more = "; where it is, say which (image_space, or space=)" if space in _UNSAID else ""
    raise RecordingError("label-space-mismatch", f"{file}: {found}, expected an image in an MNI space{more}")


def require_same(image_space: str, image: str, atlas_space: str, atlas: str) -> None:
    """Raise :class:`RecordingError` unless the space of an atlas is known and that of the image."""
    if not atlas_space:
        detail = f"{atlas}: nothing says its space, expected {image_space}: say which (label_space, or space=)"
        raise RecordingError("label-space-mismatch", detail)
    if not same_space(image_space, atlas_space):
        detail = f"{atlas}: lies in {atlas_space}, expected {image_space} as {image}"
        detail += "; take the atlas of that space, or say label_space where it fits all the same"
        raise RecordingError("label-space-mismatch", detail)


def require_orientation(image: Any, file: str) -> None:
    """Raise :class:`RecordingError` where nothing says where a voxel lies, or left and right are exchanged."""
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-6:
        raise RecordingError("singular-affine", f"{file}: its affine maps no voxel to a place")
    header = image.header
    if not hasattr(header, "get_sform"):
        return
    (sform, s_code), (qform, q_code) = header.get_sform(coded=True), header.get_qform(coded=True)
    if not s_code and not q_code:
        detail = f"{file}: neither sform nor qform, expected one: left and right may be exchanged"
        raise RecordingError("no-orientation", detail)
    hands = {np.sign(np.linalg.det(form[:3, :3])) for form in (sform, qform) if form is not None}
    if len(hands) > 1:
        detail = f"{file}: sform and qform disagree about left and right, expected one orientation"
        raise RecordingError("no-orientation", detail)
    if s_code == q_code:  # else each is of a space of its own: MNI and the scanner
        ends = [0, 0, 0, 1], [*image.shape[:3], 1]
        distance = max(float(np.linalg.norm((sform - qform) @ end)) for end in ends)
        if distance > _APART_MM:
            detail = f"{file}: sform and qform have one code ({s_code}) and lie {distance:.0f} mm apart"
            raise RecordingError("no-orientation", f"{detail}, expected one place for each voxel")
