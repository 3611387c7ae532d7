"""A recording by its file's name: entities, format, and every file of its dataset that says something of it.

Names follow BIDS 1.10 (https://bids-specification.readthedocs.io), those of derivatives follow fMRIPrep
(``*_desc-preproc_bold.nii.gz``) and xcp_d (``*_seg-<parcellation>_stat-mean_timeseries.tsv``). Nothing of a recording
is read here.

Pipelines write less beside a file than BIDS allows: xcp_d leaves the repetition time in the image's sidecar and its
atlases in a folder of their own, and nobody repeats ``*_scans.tsv``. So files of the raw run count as well.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from mcsp.config.corpus import Pairing, Selection
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.tables import DESCRIPTION_NAME, printable, read_json, read_tsv
from mcsp.schema import Modality

EEG_EXTENSIONS = (".edf", ".bdf", ".vhdr", ".set", ".fif")
# AFNI and CIFTI; other tables need a parcellation's name to tell them from confounds.
PARCELLATED = ("timeseries.1D", "bold.1D", "timeseries.ptseries.nii", "bold.ptseries.nii")
TABLES = ("timeseries.tsv", "timeseries.csv", "timeseries.npy", "timeseries.txt")
# Recordings in formats that are not read, by the ends of their names in small letters: told, and never just not there.
_UNREAD_EEG = re.compile(
    r"eeg\.(eeg|cnt|gdf|mff|mefd|nwb|mat|xdf|csv|h5|hdf5|np[yz]|dat|raw|asc|lay|bin|(edf|bdf|set|fif|vhdr)\.gz)"
)
_UNREAD_BOLD = re.compile(r"bold(\+\w+)?\.(dtseries\.nii|func\.gii|img|mgz|mgh|head|mat|nrrd)")
_UNREAD_OLD = re.compile(r"\w.*_bold_(\w.*_)?preproc\.nii(\.gz)?")  # fMRIPrep's before 1.2
_UNREAD_TABLE = re.compile(r"timeseries\.(dtseries\.nii|mat|h5|hdf5|npz|pkl|parquet|feather|(tsv|csv)\.gz)")
_LONG = {
    "sub": "subject", "ses": "session", "acq": "acquisition", "dir": "direction", "desc": "description",
    "seg": "segmentation", "stat": "statistic", "res": "resolution", "den": "density", "tpl": "template",
}  # fmt: skip
# Entities that tell apart versions of one run, not runs.
_VERSION = {
    "space", "description", "segmentation", "atlas", "statistic", "resolution", "density", "echo", "part", "cohort",
    "split", "proc", "rec", "hemi",
}  # fmt: skip
# Folder of a modality's raw files.
FOLDERS: dict[Modality, str] = {"eeg": "eeg", "fmri": "func"}
# Entities that files beside a recording may have although the recording has not.
_FREE = {"", "space", "segmentation", "atlas", "resolution", "template"}
# Folders of a derivative dataset that hold one folder per atlas, newest release of xcp_d first.
_ATLASES = ("sourcedata/atlases", "atlases")


@dataclass(frozen=True)
class Site:
    """One BIDS dataset."""

    name: str
    root: Path
    simulated: bool
    label_image: Path | None  # for 4-D BOLD; None: a ``*_dseg.nii.gz`` of the dataset
    pairing: Pairing = "simultaneous"
    first_volume_event: str | None = None  # trial_type or value in the EEG's events.tsv
    selection: Selection = field(default_factory=Selection)
    url: str | None = None  # where the dataset lies, if root is but its shape on this machine
    storage_options: Mapping[str, Any] = field(default_factory=dict)  # of the store that url is in
    fault: tuple[str, str] | None = None  # reason and detail, where a file of the dataset itself cannot be used
    trusted: tuple[Path, ...] | None = None  # folders outside that its files may lie in; None: any, for files by hand


@dataclass(frozen=True)
class RecordingRef:
    """A recording that was found and not yet read."""

    site: Site
    path: Path
    modality: Modality
    entities: dict[str, str]  # long form as in mne-bids: subject, session, task, acquisition, run, space ...
    companions: dict[str, tuple[Path, ...]]  # "<suffix><extension>" -> files, from the dataset root down

    @cached_property
    def file(self) -> str:
        """Path relative to the site's folder, as text; bytes that are no UTF-8 as ``\\xe9``."""
        return printable(self.path.relative_to(self.site.root).as_posix())

    def companion(self, name: str) -> Path | None:
        """The closest file called ``*_<name>``, for example ``channels.tsv``."""
        return self.companions[name][-1] if name in self.companions else None

    def confounds(self) -> Path | None:
        """``*_desc-confounds_timeseries.tsv`` (fMRIPrep) or ``*_motion.tsv`` (xcp_d) of the run, in the same folder."""
        run = run_entities(self.entities)
        motion = None
        for name in sorted(os.listdir(self.path.parent)):
            entities, suffix = parse_name(name)
            is_table = suffix in ("timeseries.tsv", "regressors.tsv") and entities.get("description") == "confounds"
            if not is_table and suffix != "motion.tsv":
                continue
            file = self.path.parent / name
            if run_entities(entities_of(file, self.site.root)) != run:
                continue
            if is_table:
                return file
            motion = file
        return motion

    def inputs(self) -> list[Path]:
        """Every file of its own dataset that decides what is stored; :func:`inputs_of` adds those elsewhere."""
        folder, stem = self.path.parent, self.path.name.split(".")[0]
        if "_split-" in stem:  # one FIF recording in several files
            same_stem = list(folder.glob(re.sub(r"_split-\d+", "_split-*", stem) + ".*"))
        else:  # a pattern would be compiled for every recording, which costs more than all the rest
            same_stem = [folder / name for name in os.listdir(folder) if name.startswith(stem + ".")]
        others = [p for files in self.companions.values() for p in files]
        if self.modality == "fmri":
            if self.site.label_image:
                others += self.site.label_image.parent.glob(self.site.label_image.name.split(".")[0] + ".*")
            if confounds := self.confounds():
                others += [confounds, *confounds.parent.glob(confounds.stem + ".json")]
        return sorted({self.path, *same_stem, *others})


@lru_cache(maxsize=1 << 16)
def parse_name(name: str) -> tuple[dict[str, str], str]:
    """Entities and suffix: ``sub-1_task-rest_eeg.edf`` -> ``({"subject": "1", "task": "rest"}, "eeg.edf")``.

    What stands between without a dash is the entity ``""``: sub-1_A and sub-1_B are two people, or two recordings.
    """
    *pairs, suffix = name.split("_")
    keys = ((k.lower() if dash else "", v if dash else k) for k, dash, v in (pair.partition("-") for pair in pairs))
    return {_LONG.get(k, k): v for k, v in keys}, suffix


def run_entities(entities: Mapping[str, str]) -> dict[str, str]:
    """Those that tell runs apart, and not versions of one run; run 01 is run 1, which some pipelines make of it."""
    return {k: _label(k, v) for k, v in entities.items() if k not in _VERSION}


def _label(key: str, text: str) -> str:
    return text.lstrip("0") or text if key == "run" else text


def entities_of(path: Path, root: Path = Path()) -> dict[str, str]:
    """Entities of a recording: those of its name, and subject and session of its folders where the name has none."""
    entities = dict(parse_name(path.name)[0])
    for folder in path.relative_to(root).parts[:-1]:
        key, _, label = folder.partition("-")
        if key in ("sub", "ses") and label and "_" not in folder:
            entities.setdefault(_LONG[key], label)
    return entities


def modality_of(name: str) -> Modality | None:
    """What a file of this name is a recording of; None where it is none."""
    entities, suffix = parse_name(name.lower())
    if suffix in {"eeg" + extension for extension in EEG_EXTENSIONS} or _UNREAD_EEG.fullmatch(suffix):
        return "eeg"
    if entities.get("part", "mag") != "mag":  # phases are no BOLD
        return None
    if suffix in ("bold.nii.gz", "bold.nii", *(name.lower() for name in PARCELLATED)):
        return "fmri"
    # Without a parcellation the table is fMRIPrep's confounds.
    parcellated = "segmentation" in entities or "atlas" in entities
    is_table = parcellated and (suffix in TABLES or _UNREAD_TABLE.fullmatch(suffix))
    return "fmri" if is_table or _UNREAD_BOLD.fullmatch(suffix) or _UNREAD_OLD.fullmatch(name.lower()) else None


def is_read(name: str) -> bool:
    """Whether the format of a recording, by its name, is one that is read."""
    unread = _UNREAD_EEG, _UNREAD_BOLD, _UNREAD_TABLE
    return not any(p.fullmatch(parse_name(name)[1].lower()) for p in unread) and not _UNREAD_OLD.fullmatch(name.lower())


def ref_of_file(path: Path, modality: Modality) -> RecordingRef:
    """One recording by its path, with the files that apply to it where it lies in a BIDS dataset.

    The dataset's root is the closest folder above with a ``dataset_description.json``. A file without a subject, in its
    name or its folders, has no companions.
    """
    path = path.absolute()
    root = next((folder for folder in path.parents if (folder / DESCRIPTION_NAME).is_file()), path.parent)
    entities = entities_of(path, root)
    companions: dict[str, tuple[Path, ...]] = {}
    if "subject" in entities:
        folders = [folder for folder in path.parents if folder == root or root in folder.parents]
        companions = companions_of(path, entities, root, {folder: sorted(os.listdir(folder)) for folder in folders})
    return RecordingRef(Site(root.name, root, False, None), path, modality, entities, companions)


def companions_of(
    path: Path, entities: Mapping[str, str], root: Path, listing: dict[Path, list[str]]
) -> dict[str, tuple[Path, ...]]:
    """Files that apply to ``path`` by the inheritance principle: in its folder or above, with no entity it lacks.

    What lies below ``derivatives`` also has the ``scans.tsv`` of the raw run that it comes from.
    """
    found: dict[str, list[Path]] = {}
    entities = {k: _label(k, v) for k, v in entities.items() if (k, v) != ("space", "template")}  # C-PAC's says none
    folders = [folder for folder in reversed(path.parents) if folder == root or root in folder.parents]
    raw = root / f"sub-{entities.get('subject')}"
    elsewhere = [f for f in (raw, raw / f"ses-{entities.get('session')}") if f in listing and f not in folders]
    for folder in [*elsewhere, *folders]:
        matching = []
        for name in listing[folder]:
            own, suffix = parse_name(name)
            applies = all(entities.get(k) == _label(k, v) for k, v in own.items() if k not in _FREE or k in entities)
            kind = "scans.tsv" if folder in elsewhere else (".json", ".tsv", "dseg.nii.gz")
            if name != path.name and applies and suffix.endswith(kind):
                matching.append((len(own), name, suffix))
        for _, name, suffix in sorted(matching):
            found.setdefault(suffix, []).append(folder / name)
    return {suffix: tuple(files) for suffix, files in found.items()}


def read_sidecar(ref: RecordingRef) -> dict[str, Any]:
    """The JSON sidecars of a recording, merged: the closest file wins."""
    suffix = parse_name(ref.path.name)[1].split(".")[0]
    merged: dict[str, Any] = {}
    for file in ref.companions.get(suffix + ".json", ()):
        merged.update(read_json(file))
    return merged


def siblings(ref: RecordingRef, *suffixes: str) -> list[Path]:
    """Files of the same run in the same folder that end with one of the suffixes, sorted by name."""
    run = _run(ref.path.name)
    folder = ref.path.parent
    return [
        folder / name
        for name in sorted(os.listdir(folder))
        if name.endswith(suffixes) and _run(name) == run and name != ref.path.name
    ]


def _run(name: str) -> dict[str, str]:
    return run_entities(parse_name(name)[0])


@lru_cache(maxsize=4)  # asked for several times of one recording; a dataset may change before the next build
def pipeline_root(inside: Path, root: Path) -> Path:
    """The closest folder above ``inside``, or itself, that is a dataset, or a pipeline's below ``derivatives``."""
    for folder in (inside, *inside.parents):
        if os.path.isfile(f"{folder}/{DESCRIPTION_NAME}") or folder.parent.name == "derivatives":
            return folder
        if folder == root:
            break
    return root


@lru_cache(maxsize=4)
def raw_roots(inside: Path, root: Path) -> tuple[Path, ...]:
    """Folders where the raw dataset of a recording in ``inside`` may lie, the site's own, ``root``, first."""
    roots = [root]
    for folder in (pipeline_root(inside, root), root):
        if folder.parent.name == "derivatives":
            roots.append(folder.parent.parent)
        roots.append(folder / "sourcedata" / "raw")
    return tuple(folder for folder in dict.fromkeys(roots) if folder.is_dir())


def scans_tables(ref: RecordingRef) -> list[Path]:
    """Every ``*_scans.tsv`` of the recording's subject and session, that of its own dataset first."""
    own = list(reversed(ref.companions.get("scans.tsv", ())))
    subject, session = (ref.entities.get(name, "") for name in ("subject", "session"))
    parts = [f"sub-{subject}", *([f"ses-{session}"] if session else [])]
    for root in raw_roots(ref.path.parent, ref.site.root):
        for depth in range(len(parts), 0, -1):
            file = root.joinpath(*parts[:depth]) / ("_".join(parts[:depth]) + "_scans.tsv")
            if file.is_file() and file not in own:
                own.append(file)
    return own


def atlas_files(ref: RecordingRef, segmentation: str) -> list[Path]:
    """Tables and label images of an atlas in the dataset's folders of atlases, sorted; tables first."""
    found: list[Path] = []
    for root in dict.fromkeys((pipeline_root(ref.path.parent, ref.site.root), ref.site.root)):
        for place in _ATLASES:
            if not os.path.isdir(f"{root}/{place}"):
                continue
            for folder in (root / place / f"atlas-{segmentation}", root / place):
                if folder.is_dir():
                    found += [folder / name for name in sorted(os.listdir(folder)) if _is_dseg(name, segmentation)]
    return sorted(dict.fromkeys(found), key=lambda file: (not file.name.endswith(".tsv"), file.name))


def _is_dseg(name: str, segmentation: str) -> bool:
    entities, suffix = parse_name(name)
    return suffix in ("dseg.tsv", "dseg.nii.gz", "dseg.nii") and segmentation in (
        entities.get("segmentation"),
        entities.get("atlas"),
    )


def sidecars_of_run(ref: RecordingRef) -> list[Path]:
    """Sidecars of images of the same run: beside the recording, and at the raw dataset's own places."""
    found = siblings(ref, "_bold.json")
    subject, session = (ref.entities.get(name, "") for name in ("subject", "session"))
    parts, own = [f"sub-{subject}", *([f"ses-{session}"] if session else []), "func"], str(ref.path.parent)
    for root in raw_roots(ref.path.parent, ref.site.root):
        for depth in range(len(parts), -1, -1):
            folder = os.path.join(root, *parts[:depth])
            names = os.listdir(folder) if folder != own and os.path.isdir(folder) else []
            # BIDS's rule of inheritance: a sidecar says of every file that has all of its entities.
            of_run = run_entities(ref.entities).items()
            for name in sorted(name for name in names if name.endswith("_bold.json")):
                if _run(name).items() <= of_run:
                    found.append(Path(folder, name))
            found += [Path(folder, "bold.json")] if "bold.json" in names else []
    return list(dict.fromkeys(found))


def repetition_time_of_run(ref: RecordingRef) -> float | None:
    """RepetitionTime [s] of an image of the same run, where the recording's own sidecar has none.

    Raises:
        RecordingError: ``t_r-mismatch`` where two of them differ.
    """
    stated: dict[float, str] = {}
    for file in sidecars_of_run(ref):
        sidecar = read_json(file)
        value = sidecar.get("RepetitionTime", even_timing(sidecar, file.name))
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            stated.setdefault(float(value), file.name)
    if len(stated) > 1:
        told = ", ".join(f"{value:g} s in {name}" for value, name in stated.items())
        raise RecordingError("t_r-mismatch", f"{ref.path.name}: images of this run have different t_r: {told}")
    return next(iter(stated), None)


def even_timing(sidecar: Mapping[str, object], file: str) -> float | None:
    """Time [s] from volume to volume by ``VolumeTiming``, which BIDS has in place of RepetitionTime; None without it.

    Raises:
        RecordingError: ``t_r-mismatch`` where it is uneven, as in sparse acquisitions: no t_r describes that.
    """
    timing = sidecar.get("VolumeTiming")
    if not isinstance(timing, list) or len(timing) < 2 or not all(isinstance(t, int | float) for t in timing):
        return None
    steps = [after - before for before, after in pairwise(timing)]
    if max(steps) - min(steps) > 0.01 * max(steps):
        found = f"volumes follow each other after {min(steps):g} to {max(steps):g} s (VolumeTiming)"
        raise RecordingError("t_r-mismatch", f"{file}: {found}, expected one t_r for all")
    return float(timing[-1] - timing[0]) / len(steps)


def inputs_of(ref: RecordingRef) -> list[Path]:
    """Every file that decides what is stored of a recording: those of its dataset, and what lies elsewhere about it."""
    files = ref.inputs()
    if ref.modality == "fmri":
        segmentation = ref.entities.get("segmentation", ref.entities.get("atlas", ""))
        files += [*siblings(ref, "_outliers.tsv"), *sidecars_of_run(ref)]
        files += atlas_files(ref, segmentation) if segmentation else []
    return sorted({*files, *scans_tables(ref)})


def acquisition_time(ref: RecordingRef) -> float:
    """Start of a recording in seconds since 1970 by the scanner's clock (``acq_time`` of ``*_scans.tsv``), or NaN.

    A derivative has the time of the raw run that it comes from: the row of its modality with the entities of its run.
    """
    for table in scans_tables(ref):
        try:
            rows = [row for row in read_tsv(table) if "acq_time" in row and "filename" in row]
        except ValueError:  # costs the pairing, not the recordings
            continue
        own = [row for row in rows if table.parent / row["filename"] == ref.path]
        times = {row["acq_time"] for row in own or [row for row in rows if _is_of_run(row["filename"], ref)]}
        if times:
            try:
                time = datetime.fromisoformat(min(times))
            except ValueError:
                return math.nan
            if len(times) > 1:  # echoes of one run start together; others are no run of this one
                return math.nan
            return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return math.nan


def _is_of_run(filename: str, ref: RecordingRef) -> bool:
    """Whether a raw file is of the run that ``ref`` is a derivative of."""
    folder = Path(filename).parent.name
    own = run_entities(ref.entities)
    named = {"subject": own.get("subject", ""), **{k: own[k] for k in ("session",) if k in own}}
    return folder == FOLDERS[ref.modality] and run_entities({**named, **parse_name(Path(filename).name)[0]}) == own
