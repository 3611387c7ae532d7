"""One run of BOLD as a user has it, an image, a table or an array, brought to time series of parcels.

Shape letters: T volumes, P parcels.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mcsp.config import FmriConfig

if TYPE_CHECKING:
    from mcsp.data_sharding.bids.find import RecordingRef
    from mcsp.data_sharding.clean.fmri_confounds import Confounds
    from mcsp.data_sharding.clean.fmri_parcels import Parcels


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


def of_file(
    path: Path, t_r: float | None, parcellation: Any, parcel_table: str | Path | None, config: FmriConfig
) -> Source:
    """Read a file with the companions of its BIDS dataset."""
    from mcsp.data_sharding.bids.find import read_sidecar, ref_of_file
    from mcsp.data_sharding.bids.reasons import RecordingError, reading
    from mcsp.data_sharding.clean.fmri import in_percent, repetition_time
    from mcsp.data_sharding.clean.fmri_confounds import read_confounds
    from mcsp.data_sharding.clean.fmri_files import read_time_series

    known = (".nii", ".nii.gz", ".tsv", ".1D")
    if not path.name.endswith(known):
        raise ValueError(f"{path.name}: expected {', '.join(known)}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    is_image = path.name.endswith((".nii", ".nii.gz")) and not path.name.endswith(".ptseries.nii")
    ref = _with_parcellation(ref_of_file(path, "fmri"), parcellation, parcel_table, is_image)
    labels = None
    if is_image and not isinstance(parcellation, str | Path | None):
        labels = _label_image(parcellation, parcel_table)
    with reading(ref.site.root):
        sidecar = read_sidecar(ref)
        if t_r is None:
            t_r = repetition_time(sidecar)
        elif {"RepetitionTime", "SamplingFrequency"} & sidecar.keys():
            stated = repetition_time(sidecar)
            if abs(stated - t_r) > 0.01 * stated:
                raise RecordingError("t_r-mismatch", f"t_r is given as {t_r:g} s, the sidecar says {stated:g} s")
        if labels is not None:
            x_TP, parcels = _average(_load(path), path.name, labels, t_r, config)
        else:
            x_TP, parcels = read_time_series(ref, t_r, config.min_parcel_coverage)
        confounds = read_confounds(ref, len(x_TP), config)
    return Source(path.name, x_TP, parcels, t_r, confounds, in_percent(sidecar))


def _with_parcellation(
    ref: "RecordingRef", parcellation: Any, parcel_table: str | Path | None, is_image: bool
) -> "RecordingRef":
    """The reference with the label image and the table that the user named in place of those of the dataset."""
    companions = dict(ref.companions)
    if is_image and isinstance(parcellation, str | Path):
        if not Path(parcellation).is_file():
            raise ValueError(f"{parcellation}: no such label image")
        ref = replace(ref, site=replace(ref.site, label_image=Path(parcellation)))
    elif not is_image and isinstance(parcellation, str | Path):
        parcel_table = parcel_table or parcellation
    if parcel_table is not None:
        companions["dseg.tsv"] = (_table_path(parcel_table),)
    return replace(ref, companions=companions)


def _table_path(table: str | Path) -> Path:
    if not str(table).endswith(".tsv"):
        raise ValueError(f"{table}: expected a *_dseg.tsv with index, name and x, y, z in mm")
    if not Path(table).is_file():
        raise ValueError(f"{table}: no such table of parcels")
    return Path(table)


def of_image(
    image: Any, t_r: float | None, parcellation: Any, parcel_table: str | Path | None, config: FmriConfig
) -> Source:
    """Average an image in memory over a label image; its confounds are not known."""
    from mcsp.data_sharding.bids.reasons import RecordingError, reading
    from mcsp.data_sharding.clean.fmri_confounds import Confounds

    name = name_of(image)
    if t_r is None:
        raise ValueError(f"{name}: expected t_r in seconds: an image's header alone is not trusted")
    if parcellation is None:
        raise ValueError(f"{name}: expected a label image as parcellation, found None")
    if config.confounds or config.max_fd_mm is not None:
        raise RecordingError(
            "missing-confounds", "pretraining used confounds of fMRIPrep: pass the path of the image beside them"
        )
    labels = _label_image(parcellation, parcel_table)
    with reading(Path(".")):
        x_TP, parcels = _average(image, name, labels, t_r, config)
    return Source(name, x_TP, parcels, t_r, Confounds(), False)


def _average(
    image: Any, name: str, parcellation: tuple[Any, str, list[Any]], t_r: float, config: FmriConfig
) -> tuple[np.ndarray, "Parcels"]:
    from mcsp.data_sharding.clean.fmri_files import Named, average_parcels

    labels, label_name, rows = parcellation
    return average_parcels(Named(image, name), Named(labels, label_name), rows, t_r, config.min_parcel_coverage)


def _load(path: str | Path) -> Any:
    import nibabel

    return nibabel.load(path, keep_file_open=True)


def _label_image(parcellation: Any, parcel_table: str | Path | None) -> tuple[Any, str, list[Any]]:
    """A label image, its name, and the rows of its table."""
    from mcsp.data_sharding.bids.find import ref_of_file
    from mcsp.data_sharding.clean.fmri_parcels import parcel_table as read_table
    from mcsp.data_sharding.clean.fmri_parcels import table_beside

    rows = read_table(_table_path(parcel_table)) if parcel_table is not None else []
    if isinstance(parcellation, str | Path):
        path = Path(parcellation)
        if not path.is_file():
            raise ValueError(f"{path}: no such label image")
        return _load(path), path.name, rows or table_beside(path, ref_of_file(path, "fmri"))
    if not hasattr(parcellation, "dataobj"):
        raise ValueError(f"parcellation: expected a label image, found {type(parcellation).__name__}")
    return parcellation, "label image", rows


def of_array(
    x_TP: np.ndarray,
    t_r: float | None,
    parcellation: Any,
    parcel_table: str | Path | None,
    percent: bool,
) -> Source:
    """Check an array ``(T, P)`` against the parcellation of its columns."""
    from mcsp.data_sharding.clean.fmri_confounds import Confounds

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
    from mcsp.data_sharding.clean.fmri_parcels import Parcels, image_parcels
    from mcsp.data_sharding.clean.fmri_parcels import parcel_table as read_table

    if parcellation is None and parcel_table is None:
        raise ValueError("BOLD array: expected a parcellation: a label image, (P, 3) MNI positions, or a *_dseg.tsv")
    if parcellation is None or str(parcellation).endswith(".tsv"):
        rows = read_table(_table_path(parcel_table or parcellation))
        return Parcels([row[0] for row in rows], [], np.array([row[2] for row in rows], dtype=np.float64))
    if isinstance(parcellation, str | Path) or hasattr(parcellation, "dataobj"):
        return image_parcels(*_label_image(parcellation, parcel_table))[0]
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
