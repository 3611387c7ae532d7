"""Write the recordings of a manifest as BIDS derivatives, one dataset per site, with the atlas of their parcels.

Nothing of a value is changed: tables are written again with names and nine digits, other files are copied.
"""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.write import build_once, write_json, write_participants, write_tsv
from mcsp.data_sharding.convert.manifest import Row
from mcsp.data_sharding.parcels.atlases import Atlas, atlas_of_file, is_named, named_atlas
from mcsp.data_sharding.parcels.parcellation import Parcels, place_columns, require_places
from mcsp.data_sharding.parcels.series import read_series

GENERATOR = "mcsp write_bids"
_README = """
{n} recordings of {people} people, brought into BIDS's layout by launchers/write_bids.py from files in another one.
Their values are those of the files; what was done to them before is not known here. Their terms are those of the files.
"""


@dataclass(frozen=True)
class SitePlan:
    """What becomes one dataset."""

    name: str
    rows: list[Row]
    columns: list[str]  # of participants.tsv, after participant_id
    labels: dict[str, dict[str, str]]  # subject -> column -> value


def find_atlas(atlas: str | None, space: str = "") -> Atlas | None:
    """An atlas by name or by file.

    Raises:
        ValueError: neither.
    """
    if atlas is None:
        return None
    if is_named(atlas) or not Path(atlas).is_file():  # of neither kind: the names are told
        return named_atlas(atlas)
    return atlas_of_file(Path(atlas), space=space)


def plan_sites(rows: Sequence[Row]) -> list[SitePlan]:
    """The datasets that rows become, sorted by name.

    Raises:
        ValueError: a label differs between the rows of one person.
    """
    plans = []
    for name in sorted({row.site for row in rows}):
        own = [row for row in rows if row.site == name]
        labels: dict[str, dict[str, str]] = {}
        for row in own:
            known = labels.setdefault(row.subject, {})
            for column, value in row.labels.items():
                if known.setdefault(column, value) != value:
                    found = f"{known[column]!r} and {value!r}"
                    raise ValueError(f"site {name}, subject {row.subject}: {column} is {found}, expected one value")
        columns = sorted({column for known in labels.values() for column in known})
        plans.append(SitePlan(name, own, columns, labels))
    return plans


def check_site(plan: SitePlan, atlas: Atlas | None) -> list[str]:
    """Read every table of a site and place its parcels; a line for each that cannot be used."""
    faults = []
    for row in plan.rows:
        try:
            if row.kind == "table":
                _series(row, atlas)
            elif row.kind == "image" and not row.space:
                raise ValueError(f"{row.path.name}: no space, expected that of the image, MNI152NLin6Asym for example")
        except ValueError as error:
            faults.append(str(error))
    return faults


def write_site(plan: SitePlan, out_dir: Path, atlas: Atlas | None) -> bool:
    """Write the dataset of a site, complete or not at all; False where it is there already.

    Raises:
        ValueError: a table that cannot be used, or a folder of that name that is something else.
    """

    def write(folder: Path) -> None:
        for row in plan.rows:
            _write_recording(row, folder, atlas)
        if atlas is not None:
            _write_atlas(atlas, folder)
        people = [
            (f"sub-{s}", *(known.get(c, "n/a") for c in plan.columns)) for s, known in sorted(plan.labels.items())
        ]
        write_participants(folder, {column: {} for column in plan.columns}, people)

    description = {"Name": plan.name, "DatasetType": "derivative"}
    readme = _README.format(n=len(plan.rows), people=len(plan.labels))
    return build_once(out_dir / plan.name, description, readme, _parameters(plan, atlas), write, GENERATOR)


def _parameters(plan: SitePlan, atlas: Atlas | None) -> dict[str, str]:
    """What decides the content of a dataset; files stand for their size and the time of their change."""
    digest = hashlib.sha256()
    for row in plan.rows:
        state = row.path.stat()
        digest.update(repr((row, state.st_size, state.st_mtime_ns)).encode())
    if atlas is not None:
        digest.update(repr(atlas.rows).encode())
    return {"inputs_sha256": digest.hexdigest()}


def _series(row: Row, atlas: Atlas | None) -> tuple[np.ndarray, Parcels]:
    values_TP, names = read_series(row.path)
    rows = atlas.rows if atlas else []
    if not rows and names is None:
        raise RecordingError("unknown-parcellation", f"{row.path.name}: no names of parcels, expected an atlas")
    x_TP, parcels = place_columns(values_TP, names, rows, row.path.name, atlas.parcels.space if atlas else "")
    if atlas is not None:
        require_places(parcels, 0.5, row.path.name)
    return x_TP, parcels


def _segmentation(atlas: Atlas | None) -> str:
    name = atlas.name.split(".")[0] if atlas else "Table"
    return "".join(c for c in name if c.isalnum())


def _write_recording(row: Row, root: Path, atlas: Atlas | None) -> None:
    folder = root.joinpath(*[f"sub-{row.subject}", *([f"ses-{row.session}"] if row.session else [])])
    folder = folder / ("eeg" if row.kind == "eeg" else "func")
    folder.mkdir(parents=True, exist_ok=True)
    sidecar: dict[str, object] = {"TaskName": row.task}
    if row.kind == "eeg":
        path = folder / f"{row.stem}_eeg{row.path.suffix}"
        sidecar |= {"SamplingFrequency": round(1 / row.seconds_per_sample, 6)}
        sidecar |= {"PowerLineFrequency": float(row.line_hz) if row.line_hz else "n/a"}
    else:
        space = f"_space-{row.space}" if row.space else ""
        middle = f"{space}_seg-{_segmentation(atlas)}_stat-mean_timeseries"
        endings = {"table": f"{middle}.tsv", "ptseries": f"{middle}.ptseries.nii"}
        image = f"{space}_desc-preproc_bold{'.nii.gz' if row.path.name.endswith('.gz') else '.nii'}"
        path = folder / f"{row.stem}{endings.get(row.kind, image)}"
        sidecar |= {"RepetitionTime": row.seconds_per_sample, **({"Units": row.units} if row.units else {})}
    write_json(path.with_name(path.name.split(".")[0] + ".json"), {**sidecar, "Sources": [row.path.name]})
    if row.kind != "table":
        shutil.copyfile(row.path, path)
        return
    x_TP, parcels = _series(row, atlas)
    np.savetxt(path, x_TP, fmt="%.9g", delimiter="\t", header="\t".join(parcels.names), comments="", encoding="utf-8")


def _write_atlas(atlas: Atlas, root: Path) -> None:
    """``*_dseg.tsv`` with names and positions, and the label image where there is one."""
    space = f"space-{atlas.parcels.space}_" if atlas.parcels.space else ""
    stem = f"{space}seg-{_segmentation(atlas)}_dseg"
    rows = [(label, name, *(f"{v:.4f}" if np.isfinite(v) else "n/a" for v in xyz)) for name, label, xyz in atlas.rows]
    write_tsv(root / f"{stem}.tsv", ("index", "name", "x", "y", "z"), rows)
    if atlas.voxels_XYZ is not None:
        import nibabel

        image = nibabel.Nifti1Image(atlas.voxels_XYZ, atlas.affine)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, root / f"{stem}.nii.gz")
