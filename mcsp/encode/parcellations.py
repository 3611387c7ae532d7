"""Which parcellation is which: a hash over names and places, so that an export can say what it was pretrained on.

Shape letter: P parcels.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mcsp.schema import Recording


def parcellation_sha256(names: Sequence[str], positions_P3: np.ndarray | None = None) -> str:
    """SHA-256 of the parcels in order: their names and, where given, their positions to 0.1 mm."""
    values: list[Any] = [list(names)]
    if positions_P3 is not None:
        rounded = np.round(np.asarray(positions_P3, dtype=np.float64).round(3), 1) + 0.0  # no minus zero
        values.append([[None if np.isnan(v) else float(v) for v in row] for row in rounded])
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def parcellations_of(recordings: Iterable[Recording]) -> list[dict[str, Any]]:
    """Every parcellation of the BOLD that a model was trained on, as JSON types: hashes, number, ends and sites."""
    sites: dict[tuple[str, ...], set[str]] = {}
    described: dict[tuple[Any, ...], tuple[str, ...]] = {}  # -> hashes, number, first and last name
    for recording in recordings:
        if recording.modality != "fmri" or recording.split != "train":
            continue
        # Most recordings of a site share one list; hashing it once is enough.
        key = (tuple(recording.channels), np.asarray(recording.positions_mm).tobytes())
        if key not in described:
            names = recording.channels
            whole = parcellation_sha256(names, recording.positions_C3)
            described[key] = (whole, parcellation_sha256(names), str(len(names)), names[0], names[-1])
        sites.setdefault(described[key], set()).add(recording.site)
    keys = ("sha256", "names_sha256", "parcels", "first", "last")
    return [
        {**dict(zip(keys, known, strict=True)), "parcels": int(known[2]), "sites": sorted(of)}
        for known, of in sorted(sites.items())
    ]


def parcellation_name(known: Mapping[str, Any]) -> str:
    """What a person may recognise an entry of :func:`parcellations_of` by."""
    ends = f" ({known['first']} to {known['last']})" if "first" in known else ""  # exports of before lack them
    return f"{known['parcels']} parcels{ends}"
