"""Standard space of an image or an atlas. It must be stated; it is never assumed.

The model places parcels by their millimetres in MNI space, so an image that was not brought there has no place in it.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from mcsp.data_sharding.bids.find import parse_name
from mcsp.data_sharding.bids.reasons import RecordingError

# Names of one space. FSL's MNI152 is the sixth generation (Evans et al. 2012, NeuroImage 62); C-PAC writes ASym.
_SAME = {"mni152": "mni152nlin6asym", "fslmni152": "mni152nlin6asym", "mni152nlin6": "mni152nlin6asym"}
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
    """The space that a file's name (``space-``, ``tpl-``), or TemplateFlow's folder around it, says; else empty."""
    entities = parse_name(path.name)[0]
    folder = path.parent.name
    template = folder.removeprefix("tpl-").partition("_")[0] if folder.startswith("tpl-") else ""
    return entities.get("space") or entities.get("template") or template


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
    if s_code and q_code and np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        detail = f"{file}: sform and qform disagree about left and right, expected one orientation"
        raise RecordingError("no-orientation", detail)
