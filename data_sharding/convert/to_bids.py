"""Read a manifest, and write its recordings as BIDS derivatives, one dataset per site, with the atlas of their parcels.

Nothing of a value is changed: tables are written again with names and nine digits, other files are copied.
"""

import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.tables import read_tsv
from mcsp.data_sharding.bids.write import build_once, write_json, write_participants, write_tsv
from mcsp.data_sharding.clean.fmri import plausible_t_r
from mcsp.data_sharding.parcels.atlases import Atlas, atlas_of_file, is_named, named_atlas
from mcsp.data_sharding.parcels.parcellation import Parcels, place_columns, require_places
from mcsp.data_sharding.parcels.series import EXTENSIONS, read_series

# How the columns may be called, letters and digits alone: TR, t_r and Repetition Time are found whatever their case and
# marks. What is none of them is a label of the person and goes into participants.tsv.
_NAMES: dict[str, tuple[str, ...]] = {
    "path": ("path", "file", "filename", "filepath"),
    "subject": ("subject", "subjectid", "participant", "participantid", "sub", "subid"),
    "session": ("session", "sessionid", "ses", "sesid"),
    "site": ("site", "siteid"),
    "task": ("task", "taskname"),
    "run": ("run", "runid"),
    "t_r": ("tr", "repetitiontime"),
    "sampling_rate": ("samplingrate", "samplingfrequency", "samplerate", "sfreq"),
    "line_hz": ("linehz", "linefrequency", "powerlinefrequency"),
    "space": ("space",),
    "units": ("units", "unit"),
}
_KEYS = {name: key for key, names in _NAMES.items() for name in names}
EEG_FILES = (".edf", ".bdf", ".set", ".fif")
IMAGES = (".nii", ".nii.gz")
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Row:
    """One recording of a manifest, checked."""

    path: Path
    kind: str  # "eeg", "table", "ptseries" or "image"
    site: str
    subject: str  # letters and digits, as BIDS wants labels
    session: str
    task: str
    run: str
    seconds_per_sample: float  # t_r [s] of BOLD; 1 / Hz of EEG
    line_hz: str = ""
    space: str = ""
    units: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """The entities of its name that tell runs apart."""
        parts = [f"sub-{self.subject}", self.session and f"ses-{self.session}", f"task-{self.task}"]
        return "_".join(part for part in [*parts, self.run and f"run-{self.run}"] if part)


def read_manifest(manifest: Path) -> list[Row]:
    """The rows of a ``.tsv`` or ``.csv``; paths are relative to its folder.

    Raises:
        ValueError: the first row that cannot be used, and how many there are.
    """
    if manifest.suffix not in (".tsv", ".csv"):
        raise ValueError(f"{manifest}: expected a table, .tsv or .csv")
    rows = read_tsv(manifest, commas=manifest.suffix == ".csv")
    if not rows:
        raise ValueError(f"{manifest}: expected a row per recording, found none")
    return check_rows(rows, manifest.parent, manifest.name)


def check_rows(rows: Sequence[Mapping[str, str]], folder: Path, name: str) -> list[Row]:
    """Rows as text by column, checked; ``name`` is that of the manifest in errors.

    Raises:
        ValueError: as :func:`read_manifest`.
    """
    found: list[Row] = []
    wrong: list[str] = []
    for number, row in enumerate(rows, 1):
        try:
            found.append(_row(row, folder))
        except ValueError as error:
            wrong.append(f"row {number}: {error}")
    if not wrong:
        twice = [key for key, n in Counter((row.site, row.stem, row.kind == "eeg") for row in found).items() if n > 1]
        wrong = [
            f"site {site}: {stem} comes more than once, expected a session or run for each" for site, stem, _ in twice
        ]
    if wrong:
        more = f" (and {len(wrong) - 1} more rows)" if len(wrong) > 1 else ""
        raise ValueError(f"{name}: {wrong[0]}{more}")
    return found


def _row(row: Mapping[str, str], folder: Path) -> Row:
    values, labels = _values(row)
    for key in ("path", "subject"):
        if not values[key]:
            raise ValueError(f"no {key}, expected a column of that name with a value in every row")
    path = folder / values["path"]
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    kind = _kind(path)
    site = values["site"] or "site"
    if not _SITE.fullmatch(site):
        raise ValueError(f"site {site!r}: expected letters, digits, '-' and '_'")
    return Row(
        path, kind, site, _label(values["subject"].removeprefix("sub-"), "subject"),
        _label(values["session"].removeprefix("ses-"), "session"),
        _label(values["task"].removeprefix("task-"), "task") or "rest",
        _label(values["run"].removeprefix("run-"), "run"), _seconds_per_sample(values, kind), values["line_hz"],
        _label(values["space"], "space"), values["units"], labels,
    )  # fmt: skip


def _values(row: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """What a row says of the recording, under our names, and the labels of its person, under its own."""
    values, labels, said_by = dict.fromkeys(_NAMES, ""), dict[str, str](), dict[str, str]()
    for column, text in row.items():
        key = _KEYS.get(re.sub(r"[^a-z0-9]", "", column.lower()))
        if key is None or not text.strip():
            labels |= {column: text} if key is None and text else {}
        elif values[key] not in ("", text.strip()):
            found = f"{said_by[key]} {values[key]!r} and {column} {text.strip()!r}"
            raise ValueError(f"{found} differ, expected one column of {key}")
        else:
            values[key], said_by[key] = text.strip(), column
    return values, labels


def _kind(path: Path) -> str:
    if path.name.endswith(".ptseries.nii"):
        return "ptseries"
    kinds = {"eeg": EEG_FILES, "image": IMAGES, "table": EXTENSIONS}
    for kind, endings in kinds.items():
        if path.name.endswith(endings):
            return kind
    known = ", ".join(ending for endings in kinds.values() for ending in endings)
    raise ValueError(f"{path.name}: expected one of {known}, .ptseries.nii; BrainVision goes through mne-bids")


def _label(text: str, what: str) -> str:
    """A label of BIDS: marks between letters and digits go; what would be nothing is refused."""
    label = re.sub(r"[-_. ]", "", text)
    if text and not re.fullmatch(r"[A-Za-z0-9]+", label):
        raise ValueError(f"{what} {text!r}: expected letters and digits")
    return label


def _seconds_per_sample(values: Mapping[str, str], kind: str) -> float:
    t_r, rate = (_number(values[name], name) for name in ("t_r", "sampling_rate"))
    if t_r is not None and rate is not None and abs(t_r * rate - 1) > 0.01:
        raise ValueError(f"t_r {t_r:g} s and sampling_rate {rate:g} Hz differ, expected one of them")
    if kind == "eeg":
        if rate is None:
            raise ValueError(f"no sampling_rate, expected Hz: {Path(values['path']).name}")
        return 1 / rate
    if t_r is None:
        if rate is None:
            raise ValueError(f"no t_r, expected seconds: {Path(values['path']).name}")
        t_r = 1 / rate
    try:
        return plausible_t_r(t_r)
    except RecordingError as error:
        raise ValueError(str(error)) from None


def _number(text: str, name: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name} {text!r}: expected a number with a decimal point") from None
    if not value > 0:
        raise ValueError(f"{name} {text}: expected a positive number")
    return value


GENERATOR = "mcsp write_bids"
_README = """
{n} recordings of {people} people, brought into BIDS's layout by mcsp write-bids from files in another one.
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
