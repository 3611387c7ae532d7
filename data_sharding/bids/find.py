"""Find the sites and recordings of BIDS datasets by their file names; nothing of a recording is read here.

Names follow BIDS 1.10 (https://bids-specification.readthedocs.io), those of derivatives follow fMRIPrep
(``*_desc-preproc_bold.nii.gz``) and xcp_d (``*_seg-<parcellation>_stat-mean_timeseries.tsv``).
"""

import csv
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mcsp.config import CorpusConfig, SiteConfig
from mcsp.config.corpus import Pairing
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.store.files import Location
from mcsp.schema import Modality

EEG_EXTENSIONS = (".edf", ".bdf", ".vhdr", ".set", ".fif")
# AFNI and CIFTI; a .tsv needs a parcellation's name to tell it from confounds.
_PARCELLATED = ("timeseries.1D", "bold.1D", "timeseries.ptseries.nii", "bold.ptseries.nii")
_LONG = {
    "sub": "subject", "ses": "session", "acq": "acquisition", "dir": "direction", "desc": "description",
    "seg": "segmentation", "stat": "statistic", "res": "resolution", "den": "density", "tpl": "template",
}  # fmt: skip
# Entities that tell apart versions of one run, not runs.
_VERSION = {
    "space", "description", "segmentation", "atlas", "statistic", "resolution", "density", "echo", "part", "cohort",
    "split",
}  # fmt: skip
# Entities that files beside a recording may have although the recording has not.
_FREE = {"space", "segmentation", "atlas", "resolution", "template"}
_SKIPPED_FOLDERS = {"sourcedata", "code", "stimuli"}
_SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Site:
    """One BIDS dataset."""

    name: str
    root: Path
    simulated: bool
    label_image: Path | None  # for 4-D BOLD; None: a ``*_dseg.nii.gz`` of the dataset
    pairing: Pairing = "simultaneous"
    first_volume_event: str | None = None  # trial_type or value in the EEG's events.tsv


@dataclass(frozen=True)
class RecordingRef:
    """A recording that was found and not yet read."""

    site: Site
    path: Path
    modality: Modality
    entities: dict[str, str]  # long form as in mne-bids: subject, session, task, acquisition, run, space ...
    companions: dict[str, tuple[Path, ...]]  # "<suffix><extension>" -> files, from the dataset root down

    @property
    def file(self) -> str:
        """Path relative to the site's folder."""
        return self.path.relative_to(self.site.root).as_posix()

    def companion(self, name: str) -> Path | None:
        """The closest file called ``*_<name>``, for example ``channels.tsv``."""
        return self.companions[name][-1] if name in self.companions else None

    def confounds(self) -> Path | None:
        """``*_desc-confounds_timeseries.tsv`` (fMRIPrep) or ``*_motion.tsv`` (xcp_d) of the run, in the same folder."""
        run = {k: v for k, v in self.entities.items() if k not in _VERSION}
        motion = None
        for file in sorted(self.path.parent.glob("*.tsv")):
            entities, suffix = parse_name(file.name)
            if {k: v for k, v in entities.items() if k not in _VERSION} != run:
                continue
            if suffix in ("timeseries.tsv", "regressors.tsv") and entities.get("description") == "confounds":
                return file
            if suffix == "motion.tsv":
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
    """Entities and suffix: ``sub-1_task-rest_eeg.edf`` -> ``({"subject": "1", "task": "rest"}, "eeg.edf")``."""
    *pairs, suffix = name.split("_")
    entities = {_LONG.get(k, k): v for k, dash, v in (pair.partition("-") for pair in pairs) if dash}
    return entities, suffix


def ref_of_file(path: Path, modality: Modality) -> RecordingRef:
    """One recording by its path, with the files that apply to it where it lies in a BIDS dataset.

    The dataset's root is the closest folder above with a ``dataset_description.json``. A file whose name has no
    subject has no companions.
    """
    path = path.absolute()
    root = next((folder for folder in path.parents if (folder / "dataset_description.json").is_file()), path.parent)
    entities = parse_name(path.name)[0]
    companions: dict[str, tuple[Path, ...]] = {}
    if "subject" in entities:
        folders = [folder for folder in path.parents if folder == root or root in folder.parents]
        companions = _companions(path, root, {folder: sorted(os.listdir(folder)) for folder in folders})
    return RecordingRef(Site(root.name, root, False, None), path, modality, entities, companions)


def find_sites(config: CorpusConfig) -> list[Site]:
    """The sites that the configuration names, or every folder directly below ``bids_root``, sorted by name.

    Raises:
        ValueError: a folder is missing or is no BIDS dataset, or a name cannot be part of a sample key.
    """
    named = dict(config.sites)
    if not named and config.bids_root is not None:
        if not config.bids_root.is_dir():
            raise ValueError(f"{config.bids_root}: no such folder; bids_root must hold one BIDS dataset per site")
        folders = sorted(p for p in config.bids_root.iterdir() if p.is_dir() and not p.name.startswith("."))
        named = {folder.name: SiteConfig(path=folder) for folder in folders}
    if not named:
        raise ValueError(f"{config.bids_root}: no folders in it; bids_root must hold one BIDS dataset per site")
    return [_make_site(name, site, config) for name, site in sorted(named.items())]


def _make_site(name: str, site: SiteConfig, config: CorpusConfig) -> Site:
    if not _SITE_NAME.fullmatch(name):
        raise ValueError(f"site name {name!r}: expected letters, digits, '-' and '_' (set another under `sites`)")
    description = site.path / "dataset_description.json"
    if not description.is_file():
        raise ValueError(f"{description}: missing; expected a BIDS dataset (list the wanted folders under `sites`)")
    label_image = site.label_image or config.fmri.label_image
    if label_image is not None and not label_image.is_file():
        raise ValueError(f"{label_image}: no such label image (site {name})")
    simulated = site.simulated if site.simulated is not None else bool(read_json(description).get("Simulated", False))
    return Site(name, site.path, simulated, label_image, site.pairing, site.first_volume_event)


def find_recordings(site: Site, parcellation: str | None = None) -> list[RecordingRef]:
    """Every recording below a site's folder, one per run and modality, sorted by path.

    Where a run has several versions, one is taken: for fMRI parcellated time series before images (of those,
    ``parcellation`` or else the first by name), ``desc-preproc`` before others, MNI spaces before others; for EEG files
    without ``desc-`` first.
    """
    listing = _list_files(site.root)
    best: dict[tuple[Any, ...], tuple[tuple[Any, ...], Path, Modality]] = {}
    for folder, names in listing.items():
        for name in names:
            entities, suffix = parse_name(name)
            modality = _modality(entities, suffix)
            if modality is None or "subject" not in entities:
                continue
            run = (modality, *sorted((k, v) for k, v in entities.items() if k not in _VERSION))
            candidate = (_preference(entities, suffix, parcellation), folder / name, modality)
            best[run] = min(best.get(run, candidate), candidate)
    chosen = sorted((path, modality) for _, path, modality in best.values())
    return [
        RecordingRef(site, path, modality, parse_name(path.name)[0], _companions(path, site.root, listing))
        for path, modality in chosen
    ]


def _modality(entities: dict[str, str], suffix: str) -> Modality | None:
    if suffix in {"eeg" + extension for extension in EEG_EXTENSIONS}:
        return "eeg"
    if suffix in ("bold.nii.gz", "bold.nii", *_PARCELLATED):
        return "fmri"
    # Without a parcellation the table is fMRIPrep's confounds.
    parcellated = "segmentation" in entities or "atlas" in entities
    return "fmri" if suffix == "timeseries.tsv" and parcellated else None


def _preference(entities: dict[str, str], suffix: str, parcellation: str | None) -> tuple[Any, ...]:
    if suffix.startswith("eeg"):
        return ("description" in entities, suffix)
    segmentation = entities.get("segmentation", entities.get("atlas"))
    return (
        suffix not in ("timeseries.tsv", *_PARCELLATED),
        parcellation is not None and segmentation != parcellation,
        entities.get("description") != "preproc",
        not entities.get("space", "").startswith("MNI"),
        segmentation or "",
        suffix,
    )


def _list_files(root: Path) -> dict[Path, list[str]]:
    listing = {}
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(s for s in subfolders if s not in _SKIPPED_FOLDERS and not s.startswith("."))
        listing[Path(folder)] = sorted(names)
    return listing


def _companions(path: Path, root: Path, listing: dict[Path, list[str]]) -> dict[str, tuple[Path, ...]]:
    """Files that apply to ``path`` by the inheritance principle: in its folder or above, with no entity it lacks."""
    entities, _ = parse_name(path.name)
    found: dict[str, list[Path]] = {}
    folders = [folder for folder in reversed(path.parents) if folder == root or root in folder.parents]
    for folder in folders:
        matching = []
        for name in listing[folder]:
            own, suffix = parse_name(name)
            applies = all(entities.get(k) == v for k, v in own.items() if k not in _FREE or k in entities)
            if name != path.name and applies and suffix.endswith((".json", ".tsv", "dseg.nii.gz")):
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


def read_json(file: Location) -> dict[str, Any]:
    """Read a JSON object; raise :class:`RecordingError`, a ``ValueError``, with one line naming the file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RecordingError("unreadable", f"{file.name}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise RecordingError("bad-encoding", f"{file.name}: {_not_utf8(error)}") from None
    except ValueError as error:
        raise RecordingError("invalid-json", f"{file.name}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise RecordingError("invalid-json", f"{file.name}: expected a JSON object, found {type(content).__name__}")
    return content


def read_tsv(file: Path) -> list[dict[str, str]]:
    """Rows of a BIDS table, without the cells that are empty or ``n/a``; raise :class:`RecordingError`, one line."""

    def rows() -> Iterator[dict[str, str]]:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
                yield {k: v for k, v in row.items() if k is not None and v not in (None, "", "n/a")}

    try:
        return list(rows())
    except OSError as error:
        raise RecordingError("unreadable", f"{file.name}: cannot read the table ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise RecordingError("bad-encoding", f"{file.name}: {_not_utf8(error)}") from None
    except csv.Error as error:
        raise RecordingError("bad-table", f"{file.name}: cannot read the table ({error})") from None


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"byte {error.start} is 0x{error.object[error.start]:02x}, expected UTF-8"
