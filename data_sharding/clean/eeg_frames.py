"""Places of electrodes and their frames: nose, ears and origin by what a file or ``coordsystem.json`` says of them.

Everything becomes the head frame of MNE in millimetres: x to the right ear, y to the nasion, z up, the origin between
the ears.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import mne
import numpy as np
from pymatreader import read_mat

from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.tables import number_in, read_columns

# Metres, centimetres, millimetres of coordsystem.json.
MM_PER_UNIT = {"m": 1000.0, "cm": 10.0, "mm": 1.0}
_TURNED = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # from x to the nose, y to the left ear
# Frames of coordsystem.json with their origin between the ears; rows give x, y, z of the head frame.
TO_HEAD = {"captrak": np.eye(3), "ctf": _TURNED, "eeglab": _TURNED}
# EEGLAB's ``chaninfo.nosedir``, whose axes MNE takes for those of "+X"; rows as above.
_NOSE = {"-X": np.diag([-1.0, -1.0, 1.0]), "+Y": _TURNED.T, "-Y": _TURNED}
# Electrodes at one distance from the origin, up to this fraction, lie on a sphere about its centre. Ours.
_ON_SPHERE, _MANY = 0.02, 8
# Centre and radius [mm] of the sphere that fits MNE's 10-05 template best.
_CENTRE_MM, _RADIUS_MM = np.array([-1.0, 14.8, 39.4]), 98.6
# Distance of two landmarks [mm] on any head. Ours.
_APART_MM = (40.0, 250.0)
# Distance from the origin [mm] of an electrode on any head, children's included. Ours.
RADII_MM = (40.0, 200.0)


def nose_of_set(file: Path) -> np.ndarray:
    """Rotation that brings the axes that MNE gives to a file of EEGLAB into the head frame, by where its nose is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = read_mat(file, variable_names=["EEG", "chaninfo"])
    info = content.get("EEG", content).get("chaninfo")
    return _NOSE.get(str(info.get("nosedir", "")).upper() if isinstance(info, dict) else "", np.eye(3))


def on_sphere(places: Mapping[str, np.ndarray]) -> bool:
    """Whether electrodes lie on a sphere about the origin: a template's, for no head is one about its ears."""
    radii = [float(np.linalg.norm(xyz)) for xyz in places.values()]
    return len(radii) >= _MANY and float(np.ptp(radii)) <= _ON_SPHERE * max(radii)


def around_head(places: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Places on a sphere about its centre, laid around the head as the template's are [mm]."""
    return {name: _CENTRE_MM + _RADIUS_MM * xyz / np.linalg.norm(xyz) for name, xyz in places.items()}


def by_landmarks(system: Mapping[str, object]) -> np.ndarray | None:
    """Affine from the electrodes' frame [mm] to the head frame by ``AnatomicalLandmarkCoordinates``; None without them.

    They count where they are in the frame of the electrodes and as far from each other as on a head.
    """
    marks = system.get("AnatomicalLandmarkCoordinates")
    frames = [str(system.get(f"{what}CoordinateSystem", "")).lower() for what in ("EEG", "AnatomicalLandmark")]
    unit = system.get("AnatomicalLandmarkCoordinateUnits", system.get("EEGCoordinateUnits"))
    scale = MM_PER_UNIT.get(str(unit).strip().lower())
    if not isinstance(marks, Mapping) or scale is None or frames[1] not in ("", frames[0]):
        return None
    try:
        nasion, lpa, rpa = (
            np.array(marks[name], dtype=np.float64).reshape(3) * scale for name in ("NAS", "LPA", "RPA")
        )
    except (KeyError, TypeError, ValueError):
        return None
    apart = [float(np.linalg.norm(a - b)) for a, b in ((nasion, lpa), (nasion, rpa), (lpa, rpa))]
    if not all(_APART_MM[0] <= distance <= _APART_MM[1] for distance in apart):
        return None
    return np.asarray(mne.transforms.get_ras_to_neuromag_trans(nasion, lpa, rpa))


def electrodes_mm(
    table: Path, to_head: np.ndarray, scale: float, system: str, repairs: list[str]
) -> dict[str, np.ndarray]:
    """Rows of ``electrodes.tsv`` in the head frame; raise :class:`RecordingError` where no head is as large as that."""
    places: dict[str, np.ndarray] = {}
    for number, row in enumerate(read_columns(table, ("name", "x", "y", "z"), repairs), 1):
        xyz = to_head[:3, :3] @ [scale * number_in(table, number, row, axis) for axis in "xyz"] + to_head[:3, 3]
        if "name" not in row or np.isnan(xyz).any():
            continue
        if row["name"] in places and not np.allclose(places[row["name"]], xyz):
            raise RecordingError("bad-table", f"{table.name}: row {number}: {row['name']!r} twice, at two places")
        places[row["name"]] = xyz
    radii = {name: float(np.linalg.norm(xyz)) for name, xyz in places.items()}
    median = float(np.median(list(radii.values()))) if radii else RADII_MM[0]
    if not RADII_MM[0] <= median <= RADII_MM[1]:
        units = {unit: f for unit, f in MM_PER_UNIT.items() if RADII_MM[0] <= median / scale * f <= RADII_MM[1]}
        likely = f": the values look like {next(iter(units))}" if units else ""
        raise RecordingError(
            "electrodes-unit",
            f"{table.name}: electrodes lie {median:.3g} mm from the centre of the head in the unit that {system} "
            f"gives, expected {RADII_MM[0]:g} to {RADII_MM[1]:g} mm{likely}",
        )
    outside = [name for name, radius in radii.items() if not RADII_MM[0] <= radius <= RADII_MM[1]]
    if outside:
        repairs.append(f"{table.name}: places where no head is are not used: {', '.join(outside)}")
    return {name: xyz for name, xyz in places.items() if name not in outside}
