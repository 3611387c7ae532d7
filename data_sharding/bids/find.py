"""Find the sites and recordings of BIDS datasets by their file names; nothing of a recording is read here.

Names follow BIDS 1.10 (https://bids-specification.readthedocs.io), those of derivatives follow fMRIPrep
(``*_desc-preproc_bold.nii.gz``) and xcp_d (``*_seg-<parcellation>_stat-mean_timeseries.tsv``).
"""

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from mcsp.config import CorpusConfig, SiteConfig
from mcsp.config.corpus import Pairing, Selection
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.remote import mirror
from mcsp.data_sharding.bids.select import ignored_by, is_wanted, pipelines_of
from mcsp.data_sharding.bids.tables import printable, read_json
from mcsp.schema import SITE_NAME, Modality

EEG_EXTENSIONS = (".edf", ".bdf", ".vhdr", ".set", ".fif")
# AFNI and CIFTI; other tables need a parcellation's name to tell them from confounds.
_PARCELLATED = ("timeseries.1D", "bold.1D", "timeseries.ptseries.nii", "bold.ptseries.nii")
_TABLES = ("timeseries.tsv", "timeseries.csv", "timeseries.npy", "timeseries.txt")
# Recordings in formats that are not read, by the ends of their names in small letters: told, and never just not there.
_UNREAD_EEG = re.compile(
    r"eeg\.(eeg|cnt|gdf|mff|mefd|nwb|mat|xdf|csv|h5|hdf5|np[yz]|dat|raw|asc|lay|bin|(edf|bdf|set|fif|vhdr)\.gz)"
)
_UNREAD_BOLD = re.compile(r"bold(\+\w+)?\.(dtseries\.nii|func\.gii|img|mgz|mgh|head|mat|nrrd)")
_UNREAD_OLD = re.compile(r"\w.*_bold_(\w.*_)?preproc\.nii(\.gz)?")  # fMRIPrep's before 1.2
_UNREAD_TABLE = re.compile(r"timeseries\.(dtseries\.nii|mat|h5|hdf5|npz|pkl|parquet|feather|(tsv|csv)\.gz)")
_FOLDER_FORMATS = (".mff", ".mefd")  # folders that are recordings
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
_SKIPPED_FOLDERS, _DESCRIPTION = {"sourcedata", "code", "stimuli"}, "dataset_description.json"
DATA_FILES = "files beside it"  # companions of a remote recording; a local one has them in its folder


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
        """Every file that decides what is stored of this recording."""
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


def ref_of_file(path: Path, modality: Modality) -> RecordingRef:
    """One recording by its path, with the files that apply to it where it lies in a BIDS dataset.

    The dataset's root is the closest folder above with a ``dataset_description.json``. A file without a subject, in its
    name or its folders, has no companions.
    """
    path = path.absolute()
    root = next((folder for folder in path.parents if (folder / _DESCRIPTION).is_file()), path.parent)
    entities = entities_of(path, root)
    companions: dict[str, tuple[Path, ...]] = {}
    if "subject" in entities:
        folders = [folder for folder in path.parents if folder == root or root in folder.parents]
        companions = _companions(path, entities, root, {folder: sorted(os.listdir(folder)) for folder in folders})
    return RecordingRef(Site(root.name, root, False, None), path, modality, entities, companions)


def find_sites(config: CorpusConfig, notes: list[str] | None = None, mirrors: Path | None = None) -> list[Site]:
    """The sites that the configuration names, or every folder directly below ``bids_root``, sorted by name.

    Of a dataset in an object store the shape is written into ``mirrors``. Folders below ``bids_root`` that are no
    dataset are left out, with a line in ``notes``. A dataset whose description cannot be read is a site with a fault.

    Raises:
        ValueError: a folder that is named is missing or is no BIDS dataset, no folder is one, or a name cannot be part
            of a sample key.
    """
    if config.sites or config.bids_root is None:
        return [_make_site(name, site, config, mirrors) for name, site in sorted(config.sites.items())]
    try:
        folders = sorted(p for p in config.bids_root.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        raise ValueError(f"{config.bids_root}: no such folder; bids_root must hold one BIDS dataset per site") from None
    sites, left_out = [], []
    for folder in folders:
        try:
            sites.append(_make_site(folder.name, SiteConfig(path=folder), config))
        except ValueError as error:
            left_out.append(str(error))
    if not sites:
        why = left_out[0] if left_out else f"{config.bids_root}: no folders in it"
        raise ValueError(f"{why}; bids_root must hold one BIDS dataset per site")
    if notes is not None:
        notes += [f"left out: {why}" for why in left_out]
    return sites


def _make_site(name: str, site: SiteConfig, config: CorpusConfig, mirrors: Path | None = None) -> Site:
    if not re.fullmatch(SITE_NAME, name):
        shown = printable(name)
        raise ValueError(f"site name {shown!r}: expected letters, digits, '-' and '_' (set another under `sites`)")
    root, url = Path(site.path), str(site.path).rstrip("/") if "://" in str(site.path) else None
    if url:  # it is in an object store
        root = (mirrors or Path(tempfile.mkdtemp(prefix="mcsp-mirror-"))) / name
        root.mkdir(parents=True, exist_ok=True)
        mirror(url, site.storage_options, root)
    description = root / _DESCRIPTION
    if not description.is_file() and not description.is_symlink():
        where = f"{url}/{_DESCRIPTION}" if url else description
        raise ValueError(f"{where}: missing; expected a BIDS dataset (list the wanted folders under `sites`)")
    label_image = site.label_image or config.fmri.label_image
    if label_image is not None and not label_image.is_file():
        raise ValueError(f"{label_image}: no such label image (site {name})")
    fault = None
    try:
        simulated = bool(read_json(description).get("Simulated", False))
    except RecordingError as error:
        simulated, fault = False, (error.reason, str(error)) if site.simulated is None else None
    simulated = simulated if site.simulated is None else site.simulated
    return Site(
        name, root, simulated, label_image, site.pairing, site.first_volume_event, config.selection_of(name), url,
        site.storage_options, fault, tuple(config.trusted_link_targets),
    )  # fmt: skip


def find_recordings(
    site: Site, parcellation: str | None = None, notes: list[str] | None = None, label_space: str | None = None
) -> list[RecordingRef]:
    """Every wanted recording below a site's folder, one per run and modality, sorted by path.

    Where a run has several versions, one is taken. For EEG a raw file comes before one below ``derivatives``, and a
    file without ``desc-`` first. For fMRI parcellated time series come before images (of those, ``parcellation`` or
    else the first by name), ``desc-preproc`` before others, the space of the site's label image before others, then MNI
    spaces, of equal ones the raw one. A pipeline that the selection names comes before these. A format that is not read
    comes last, and is refused where a run has no other. What ``.bidsignore`` names is not there.
    """
    notes = [] if notes is None else notes
    listing = _list_files(site.root, notes)
    is_ignored = ignored_by(site.root, notes)
    spaces = {label_space} if label_space else _spaces_of_labels(site, listing)
    best: dict[tuple[Any, ...], tuple[tuple[Any, ...], Path, Modality]] = {}
    pipelines: dict[tuple[Any, ...], set[str]] = {}
    for folder, names in listing.items():
        inside = folder.relative_to(site.root)
        for name in names:
            suffix = parse_name(name)[1]
            if (modality := _modality(name)) is None:
                continue
            relative, entities = (inside / name).as_posix(), entities_of(folder / name, site.root)
            if "subject" not in entities or is_ignored(relative) or not is_wanted(relative, entities, site.selection):
                continue
            of_run = run_entities(entities)
            if modality == "eeg" and not suffix.lower().endswith(".fif"):  # whose reader goes from part to part
                of_run |= {k: v for k, v in entities.items() if k == "split"}
            run = (modality, *sorted(of_run.items()))
            of = pipelines_of(relative)
            preference = _preference(entities, suffix, of, site, parcellation, spaces)
            candidate = ((not is_read(name), *preference), folder / name, modality)
            best[run] = min(best.get(run, candidate), candidate)
            pipelines.setdefault(run, set()).add(of[-1] if of else "")
    notes += _several_pipelines(site, best, pipelines)
    found = []
    for path, modality in sorted((path, modality) for _, path, modality in best.values()):
        entities = entities_of(path, site.root)
        companions = _companions(path, entities, site.root, listing)
        ref = RecordingRef(site, path, modality, entities, companions)
        if site.url is not None:  # who reads it has no folder to look into
            companions[DATA_FILES] = tuple(file for file in ref.inputs() if site.root in file.parents)
        found.append(ref)
    return found


def _several_pipelines(
    site: Site, best: Mapping[tuple[Any, ...], tuple[Any, Path, Any]], pipelines: Mapping[tuple[Any, ...], set[str]]
) -> list[str]:
    """A line where runs lie in several folders below derivatives/, and which one was taken."""
    chosen: dict[tuple[str, ...], set[str]] = {}
    for run, names in pipelines.items():
        of = pipelines_of(best[run][1].relative_to(site.root).as_posix())
        if len(names - {""}) > 1 and of:
            chosen.setdefault(tuple(sorted(names - {""})), set()).add(of[-1])
    return [
        f"{site.name}: derivatives of {', '.join(names)} hold the same runs, taken: {', '.join(sorted(taken))}; "
        "name one with `derivatives`"
        for names, taken in sorted(chosen.items())
    ]


def _modality(name: str) -> Modality | None:
    entities, suffix = parse_name(name.lower())
    if suffix in {"eeg" + extension for extension in EEG_EXTENSIONS} or _UNREAD_EEG.fullmatch(suffix):
        return "eeg"
    if entities.get("part", "mag") != "mag":  # phases are no BOLD
        return None
    if suffix in ("bold.nii.gz", "bold.nii", *(name.lower() for name in _PARCELLATED)):
        return "fmri"
    # Without a parcellation the table is fMRIPrep's confounds.
    parcellated = "segmentation" in entities or "atlas" in entities
    is_table = parcellated and (suffix in _TABLES or _UNREAD_TABLE.fullmatch(suffix))
    return "fmri" if is_table or _UNREAD_BOLD.fullmatch(suffix) or _UNREAD_OLD.fullmatch(name.lower()) else None


def is_read(name: str) -> bool:
    """Whether the format of a recording, by its name, is one that is read."""
    unread = _UNREAD_EEG, _UNREAD_BOLD, _UNREAD_TABLE
    return not any(p.fullmatch(parse_name(name)[1].lower()) for p in unread) and not _UNREAD_OLD.fullmatch(name.lower())


def _spaces_of_labels(site: Site, listing: Mapping[Path, Sequence[str]]) -> set[str]:
    """Spaces of the site's label images by their names; those of one person's anatomy are not among them."""
    names = [name for folder_names in listing.values() for name in folder_names if name.endswith("dseg.nii.gz")]
    of_all = [parse_name(name)[0] for name in [*names, *([site.label_image.name] if site.label_image else [])]]
    return {entities["space"] for entities in of_all if "space" in entities and "subject" not in entities}


def _preference(
    entities: Mapping[str, str],
    suffix: str,
    pipelines: list[str],
    site: Site,
    parcellation: str | None,
    label_spaces: set[str],
) -> tuple[Any, ...]:
    """The least of a run's versions is taken; a named pipeline comes first, of equals the raw one."""
    named = site.selection.derivatives in pipelines
    if suffix.lower().startswith("eeg"):
        return (not named, bool(pipelines), "description" in entities, suffix)
    segmentation = entities.get("segmentation", entities.get("atlas"))
    return (
        not named,
        suffix not in (*_TABLES, *_PARCELLATED),
        parcellation is not None and segmentation != parcellation,
        entities.get("description") != "preproc",
        "smooth" in entities.get("description", "").lower(),  # over the edges of parcels
        entities.get("space") not in label_spaces,
        not entities.get("space", "").startswith("MNI"),
        "echo" in entities,  # of several echoes, what was made of all
        entities.get("statistic", "mean") != "mean",
        segmentation or "",
        suffix,
        bool(pipelines),
    )


def _list_files(root: Path, notes: list[str]) -> dict[Path, list[str]]:
    """Folder -> names of its files; links to folders are followed, and no folder is listed twice."""
    listing, seen = {}, set()

    def is_new(folder: Path) -> bool:
        try:
            status = folder.stat()
        except OSError:  # a link that leads to itself
            return False
        known = (status.st_dev, status.st_ino) in seen
        seen.add((status.st_dev, status.st_ino))
        return not known

    def unreadable(error: OSError) -> None:
        notes.append(f"{printable(str(error.filename))}: cannot be listed ({error.strerror}), left out")

    is_new(root)
    for folder, subfolders, names in os.walk(root, onerror=unreadable, followlinks=True):
        wanted = sorted(s for s in subfolders if s not in _SKIPPED_FOLDERS and not s.startswith("."))
        subfolders[:] = [s for s in wanted if is_new(Path(folder, s))]
        listing[Path(folder)] = sorted([*names, *(s for s in subfolders if s.endswith(_FOLDER_FORMATS))])
    return listing


def _companions(
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
