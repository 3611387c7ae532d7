"""Turn one run of BOLD (image, table or array) into time series of parcels; identity of their parcellation.

A parcellation is known by a hash of names and positions, which exports hold.

Shape letters: T volumes, P parcels.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mcsp.config import FmriConfig
from mcsp.schema import Recording
from mcsp.wording import listed

if TYPE_CHECKING:
    from mcsp.data_sharding.clean.fmri import Confounds
    from mcsp.data_sharding.parcels.atlases import Atlas
    from mcsp.data_sharding.parcels.parcellation import Parcels


PRETRAINING = "pretraining"  # the name of the atlas that an export brings along


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


def atlas_of_pretraining(known: Sequence[Mapping[str, Any]], asked: str, n_parcels: int | None) -> "Atlas":
    """The atlas that came with an export: names, positions and space; it needs no download, and holds no label image.

    Args:
        known: entries of :func:`parcellations_of`.
        asked: "pretraining", or "pretraining:" and the beginning of one's sha256.
        n_parcels: of the recording, where it is known before it is read.

    Raises:
        ValueError: the export holds none, or several that fit.
    """
    from mcsp.data_sharding.parcels.atlases import Atlas
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


@dataclass(frozen=True)
class Source:
    """Time series ``(T, P)`` before cleaning, and what goes with them."""

    name: str
    x_TP: np.ndarray
    parcels: "Parcels"
    t_r: float
    confounds: "Confounds"
    percent: bool


def name_of(bold: Any) -> str:
    """What errors call the recording."""
    if isinstance(bold, str | Path):
        return Path(bold).name
    file = bold.get_filename() if hasattr(bold, "get_filename") else None
    return Path(file).name if file else f"BOLD {type(bold).__name__}"


def source_of(
    bold: Any,
    t_r: float | None,
    parcellation: Any,
    parcel_table: str | Path | None,
    space: str | None,
    percent: bool,
    config: FmriConfig,
    pretraining: Sequence[Mapping[str, Any]],
) -> Source:
    """Time series of whatever :func:`mcsp.encode.bold.encode_bold` takes; ``pretraining``: parcellations seen there."""
    from mcsp.data_sharding.clean.fmri import plausible_t_r

    if t_r is not None:
        plausible_t_r(float(t_r))
    if isinstance(parcellation, str) and parcellation.partition(":")[0] == PRETRAINING:
        n_parcels = bold.shape[1] if isinstance(bold, np.ndarray) and bold.ndim == 2 else None
        parcellation = atlas_of_pretraining(pretraining, parcellation, n_parcels)
    if isinstance(bold, str | Path):
        return _of_file(Path(bold), t_r, parcellation, parcel_table, space, percent, config)
    if hasattr(bold, "dataobj") and hasattr(bold, "affine"):
        return _of_image(bold, t_r, parcellation, parcel_table, space, config)
    return _of_array(np.asarray(bold), t_r, parcellation, parcel_table, percent)


def _of_file(
    path: Path,
    t_r: float | None,
    parcellation: Any,
    parcel_table: str | Path | None,
    space: str | None,
    percent: bool,
    config: FmriConfig,
) -> Source:
    """Read a file with the companions of its BIDS dataset; a table of another format (``.csv``, ``.npy``) by itself."""
    from mcsp.data_sharding.bids.reasons import RecordingError, reading
    from mcsp.data_sharding.bids.ref import read_sidecar, ref_of_file
    from mcsp.data_sharding.clean.fmri import in_percent, repetition_time, with_confounds
    from mcsp.data_sharding.clean.fmri_files import is_image, read_time_series
    from mcsp.data_sharding.parcels.series import EXTENSIONS

    known = (".nii", ".nii.gz", *EXTENSIONS)
    if not path.name.endswith(known):
        raise ValueError(f"{path.name}: expected {', '.join(known)}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    ref = ref_of_file(path, "fmri")
    if space is not None:
        config = config.model_copy(update={"image_space": space})
    atlas = _atlas(parcellation, parcel_table, space)
    if is_image(path) and atlas is not None and atlas.voxels_XYZ is None:
        raise ValueError(f"{path.name}: expected a label image as parcellation, found positions alone")
    with reading(ref.site.root):
        sidecar = read_sidecar(ref)
        if t_r is None:
            t_r = repetition_time(sidecar, ref)
        elif {"RepetitionTime", "SamplingFrequency"} & sidecar.keys():
            stated = repetition_time(sidecar, ref)
            if abs(stated - t_r) > 0.01 * stated:
                raise RecordingError("t_r-mismatch", f"t_r is given as {t_r:g} s, the sidecar says {stated:g} s")
        x_TP, parcels = read_time_series(ref, t_r, config, atlas)
        x_TP, confounds = with_confounds(ref, x_TP, config)
    return Source(path.name, x_TP, parcels, t_r, confounds, percent or in_percent(sidecar))


def _of_image(
    image: Any,
    t_r: float | None,
    parcellation: Any,
    parcel_table: str | Path | None,
    space: str | None,
    config: FmriConfig,
) -> Source:
    """Average an image in memory over a label image; its confounds are not known."""
    from mcsp.data_sharding.bids.reasons import RecordingError, reading
    from mcsp.data_sharding.clean.fmri import Confounds
    from mcsp.data_sharding.clean.fmri_files import average_parcels
    from mcsp.data_sharding.parcels.atlases import require_same, require_standard, space_of_name

    name = name_of(image)
    if t_r is None:
        raise ValueError(f"{name}: expected t_r in seconds: an image's header alone is not trusted")
    if parcellation is None:
        raise ValueError(f"{name}: expected a label image as parcellation, found None")
    if config.confounds or config.max_fd_mm is not None:
        raise RecordingError(
            "missing-confounds", "pretraining used confounds of fMRIPrep: pass the path of the image beside them"
        )
    atlas = _atlas(parcellation, parcel_table, space)
    assert atlas is not None
    file = image.get_filename() if hasattr(image, "get_filename") else None
    image_space = (space_of_name(Path(file)) if file else "") or space or ""
    with reading(Path(".")):
        require_standard(image_space, name)
        require_same(image_space, name, atlas.parcels.space, atlas.name)
        x_TP, parcels = average_parcels(image, name, atlas, t_r, config.min_parcel_coverage)
    return Source(name, x_TP, parcels, t_r, Confounds(), False)


def _atlas(parcellation: Any, parcel_table: str | Path | None, space: str | None) -> "Atlas | None":
    """The atlas that the user means: a name, a label image or table, an image in memory, a Bunch or masker of nilearn.

    ``space`` is that of an atlas which does not say its own.
    """
    from mcsp.data_sharding.parcels.atlases import (
        Atlas,
        atlas_of_bunch,
        atlas_of_file,
        atlas_of_image,
        is_named,
        named_atlas,
        space_of_atlas,
    )
    from mcsp.data_sharding.parcels.parcellation import parcel_table as read_table

    if parcellation is None:
        return None if parcel_table is None else atlas_of_file(_table_path(parcel_table))
    if isinstance(parcellation, Atlas):
        return parcellation
    if hasattr(parcellation, "labels_img"):  # a masker of nilearn
        parcellation = parcellation.labels_img
    rows = read_table(_table_path(parcel_table)) if parcel_table is not None else []
    if isinstance(parcellation, str) and is_named(parcellation):
        return named_atlas(parcellation)
    if isinstance(parcellation, str | Path):
        path = Path(parcellation)
        if not path.is_file():
            raise ValueError(f"{parcellation}: no such label image, table, or atlas that is known by name")
        return atlas_of_file(path, rows, space_of_atlas(path) or space or "")
    if isinstance(parcellation, Mapping):
        return atlas_of_bunch(
            parcellation, space="" if "?" not in str(parcellation.get("template", "?")) else space or ""
        )
    if not hasattr(parcellation, "dataobj"):
        raise ValueError(f"parcellation: expected a label image, found {type(parcellation).__name__}")
    file = parcellation.get_filename()
    stated = space_of_atlas(Path(file)) if file else ""
    return atlas_of_image(parcellation, Path(file).name if file else "label image", rows, stated or space or "")


def _table_path(table: str | Path) -> Path:
    if not str(table).endswith(".tsv"):
        raise ValueError(f"{table}: expected a *_dseg.tsv with index, name and x, y, z in mm")
    if not Path(table).is_file():
        raise ValueError(f"{table}: no such table of parcels")
    return Path(table)


def _of_array(
    x_TP: np.ndarray, t_r: float | None, parcellation: Any, parcel_table: str | Path | None, percent: bool
) -> Source:
    """Check an array ``(T, P)`` against the parcellation of its columns."""
    from mcsp.data_sharding.clean.fmri import Confounds

    if x_TP.dtype == object:
        raise ValueError(
            "BOLD: expected a path, an image or an array of one run, as func[0] of a Bunch; found another object"
        )
    if x_TP.ndim != 2 or x_TP.dtype.kind not in "fiu":
        raise ValueError(f"BOLD array: expected numbers of shape (volumes, parcels), found {x_TP.dtype} {x_TP.shape}")
    if t_r is None:
        raise ValueError("BOLD array: expected t_r in seconds, found None")
    parcels = _parcels(parcellation, parcel_table)
    n_parcels = len(parcels.names)
    if x_TP.shape == (n_parcels, n_parcels):
        found = f"shape {x_TP.shape} with {n_parcels} parcels"
        raise ValueError(f"BOLD array: {found} does not say which axis is time: leave out a volume")
    if x_TP.shape[1] != n_parcels:
        turned = "; pass its transpose" if x_TP.shape[0] == n_parcels else ""
        raise ValueError(
            f"BOLD array: shape {x_TP.shape}, expected (volumes, {n_parcels}) for {n_parcels} parcels{turned}"
        )
    return Source("BOLD array", x_TP.astype(np.float64), parcels, float(t_r), Confounds(), percent)


def _parcels(parcellation: Any, parcel_table: str | Path | None) -> "Parcels":
    """Parcels of an array's columns."""
    from mcsp.data_sharding.parcels.atlases import Atlas
    from mcsp.data_sharding.parcels.parcellation import Parcels
    from mcsp.data_sharding.parcels.parcellation import parcel_table as read_table

    if parcellation is None and parcel_table is None:
        raise ValueError(
            "BOLD array: expected a parcellation: a label image, an atlas's name, (P, 3) MNI positions, or a *_dseg.tsv"
        )
    if hasattr(parcellation, "seeds"):  # a masker of nilearn's spheres
        parcellation = parcellation.seeds
    is_atlas = isinstance(parcellation, str | Path | Mapping | Atlas) or hasattr(parcellation, "dataobj")
    if parcellation is None or is_atlas or hasattr(parcellation, "labels_img"):
        atlas = _atlas(parcellation, parcel_table, None)
        assert atlas is not None
        return atlas.parcels
    positions_P3 = np.asarray(parcellation, dtype=np.float64)
    if positions_P3.ndim != 2 or positions_P3.shape[1] != 3:
        raise ValueError(f"parcellation: expected MNI positions of shape (P, 3), found {positions_P3.shape}")
    names = [f"parcel-{i}" for i in range(1, len(positions_P3) + 1)]
    if parcel_table is not None:
        names = [row[0] for row in read_table(_table_path(parcel_table))]
        if len(names) != len(positions_P3):
            expected = f"expected one for each of {len(positions_P3)} positions"
            raise ValueError(f"{parcel_table}: {len(names)} rows, {expected}")
    return Parcels(names, [], positions_P3)
