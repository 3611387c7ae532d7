"""Identity of a parcellation: a hash of names and positions, stored in exports.

Shape letter: P parcels.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mcsp.schema import Recording
from mcsp.wording import listed

if TYPE_CHECKING:
    from mcsp.data_sharding.parcels.atlases import Atlas


def parcellation_sha256(names: Sequence[str], positions_P3: np.ndarray | None = None) -> str:
    """SHA-256 of the parcels in order: their names and, where given, their positions to 0.1 mm."""
    values: list[Any] = [list(names)]
    if positions_P3 is not None:
        rounded = np.round(np.asarray(positions_P3, dtype=np.float64).round(3), 1) + 0.0  # no minus zero
        values.append([[None if np.isnan(v) else float(v) for v in row] for row in rounded])
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def parcellations_of(recordings: Iterable[Recording], sources: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Every parcellation of the BOLD that a model was trained on, as JSON types.

    Hashes, number, first and last name, sites; and the atlas itself: names, positions [mm] and their space; its source,
    where ``sources`` has the name of an atlas or a file for a site.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for recording in recordings:
        if recording.modality != "fmri" or recording.split != "train":
            continue
        # Most recordings of a site share one list; hashing it once is enough.
        key = (tuple(recording.channels), np.asarray(recording.positions_mm).tobytes(), recording.space)
        if key not in found:
            found[key] = _described(recording, (sources or {}).get(recording.site, ""))
        if recording.site not in found[key]["sites"]:
            found[key]["sites"].append(recording.site)
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for known in found.values():  # lists that differ by less than 0.1 mm are one
        first = merged.setdefault((known["sha256"], known["space"]), known)
        first["sites"] = sorted({*first["sites"], *known["sites"]})
    return [merged[key] for key in sorted(merged)]


def _described(recording: Recording, source: str) -> dict[str, Any]:
    names = list(recording.channels)
    places = [[None if np.isnan(v) else round(float(v), 3) for v in xyz] for xyz in recording.positions_C3]
    return {
        "sha256": parcellation_sha256(names, recording.positions_C3),
        "names_sha256": parcellation_sha256(names),
        "parcels": len(names),
        "first": names[0],
        "last": names[-1],
        "sites": [],
        "space": recording.space,
        "source": source,
        "names": names,
        "positions_mm": places,
    }


def parcellation_name(known: Mapping[str, Any]) -> str:
    """What a person may recognise an entry of :func:`parcellations_of` by."""
    ends = f" ({known['first']} to {known['last']})" if "first" in known else ""  # exports of before lack them
    return f"{known['parcels']} parcels{ends}"


PRETRAINING = "pretraining"  # the name of the atlas that an export brings along


def atlas_of_pretraining(known: Sequence[Mapping[str, Any]], asked: str, n_parcels: int | None) -> "Atlas":
    """The atlas that came with an export: names, positions and space; it needs no download, and holds no label image.

    Args:
        known: entries of :func:`parcellations_of`.
        asked: "pretraining", or "pretraining:" and the beginning of one's sha256.
        n_parcels: of the recording, where it is known before it is read.

    Raises:
        ValueError: the export holds none, or several that fit.
    """

    from mcsp.data_sharding.parcels.atlases import Atlas  # exports are made where no nibabel is
    from mcsp.data_sharding.parcels.parcellation import Parcels

    start = asked.partition(":")[2]
    held = [k for k in known if "names" in k]  # exports of before lack them
    fitting = [k for k in held if k["sha256"].startswith(start) and n_parcels in (None, k["parcels"])]
    if len(fitting) != 1:
        names = listed([f"{PRETRAINING}:{k['sha256'][:12]} ({parcellation_name(k)})" for k in held]) or "none"
        of = "" if n_parcels is None else f" of {n_parcels} parcels"
        raise ValueError(
            f"parcellation {asked!r}: expected one{of} in the export, found {len(fitting)}; it has {names}"
        )
    (one,) = fitting
    nan = float("nan")
    places_P3 = np.array([[nan if v is None else v for v in xyz] for xyz in one["positions_mm"]], dtype=np.float64)
    return Atlas(f"{PRETRAINING}:{one['sha256'][:12]}", Parcels(list(one["names"]), [], places_P3, one["space"]))
