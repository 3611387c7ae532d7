"""Find the sites and recordings of BIDS datasets by their file names, select the wanted ones, read participants.tsv.

Of several versions of a run one is taken. What ``.bidsignore`` or the configuration leaves out is not there.
"""

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from mcsp.config import CorpusConfig, SiteConfig
from mcsp.config.corpus import Selection
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import (
    PARCELLATED,
    TABLES,
    RecordingRef,
    Site,
    companions_of,
    entities_of,
    is_read,
    modality_of,
    parse_name,
    run_entities,
)
from mcsp.data_sharding.bids.remote import mirror
from mcsp.data_sharding.bids.tables import DESCRIPTION_NAME, printable, read_json, read_text, read_tsv
from mcsp.schema import SITE_NAME, Modality
from mcsp.wording import listed

_SKIPPED_FOLDERS = {"sourcedata", "code", "stimuli"}
_DATA_FILES = "files beside it"  # companions of a remote recording; a local one has them in its folder
_FOLDER_FORMATS = (".mff", ".mefd")  # folders that are recordings
IGNORE_NAME = ".bidsignore"
DERIVATIVES = "derivatives"
# Key of the selection -> entity, and the prefix that a label may have.
_FILTERS = {
    "subjects": ("subject", "sub-"),
    "sessions": ("session", "ses-"),
    "tasks": ("task", "task-"),
    "runs": ("run", "run-"),
}


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
    description = root / DESCRIPTION_NAME
    if not description.is_file() and not description.is_symlink():
        where = f"{url}/{DESCRIPTION_NAME}" if url else description
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
            if (modality := modality_of(name)) is None:
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
        companions = companions_of(path, entities, site.root, listing)
        ref = RecordingRef(site, path, modality, entities, companions)
        if site.url is not None:  # who reads it has no folder to look into
            companions[_DATA_FILES] = tuple(file for file in ref.inputs() if site.root in file.parents)
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
        suffix not in (*TABLES, *PARCELLATED),
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


def ignored_by(root: Path, notes: list[str]) -> Callable[[str], bool]:
    """Whether a file, relative to the dataset, is named in its ``.bidsignore`` (patterns as those of Git)."""
    if not (file := root / IGNORE_NAME).is_file():
        return lambda path: False
    import pathspec  # those who read single recordings need none

    try:
        patterns = pathspec.GitIgnoreSpec.from_lines(read_text(file).splitlines())
    except (RecordingError, ValueError) as error:
        notes.append(f"{root}: {IGNORE_NAME} is not used: {' '.join(str(error).split())}")
        return lambda path: False
    return patterns.match_file


def pipelines_of(path: str) -> list[str]:
    """Names of the folders below ``derivatives`` in which a file of a dataset lies; none if it is raw."""
    folders = PurePosixPath(path).parts[:-1]
    return [folders[i + 1] for i, folder in enumerate(folders[:-1]) if folder == DERIVATIVES]


def is_wanted(path: str, entities: Mapping[str, str], selection: Selection) -> bool:
    """Whether the configuration takes a recording, by its labels, its path in the dataset and its pipeline."""
    for name, (entity, prefix) in _FILTERS.items():
        labels = getattr(selection, name)
        if labels is not None and not any(is_label(label, prefix, entities.get(entity)) for label in labels):
            return False
    pipelines = pipelines_of(path)
    if selection.derivatives is not None and pipelines and selection.derivatives not in pipelines:
        return False
    return not any(_excludes(pattern, path, entities["subject"]) for pattern in selection.exclude or ())


def is_label(label: str | int, prefix: str, found: str | None) -> bool:
    """Whether a label of the configuration is that of a recording; numbers count as numbers: 1 is 01."""
    if found is None:
        return False
    text = str(label).removeprefix(prefix)
    is_number = isinstance(label, int) or prefix == "run-"
    return text == found or (is_number and text.isdecimal() and found.isdecimal() and int(text) == int(found))


def _excludes(pattern: str | int, path: str, subject: str) -> bool:
    text = str(pattern)
    if "/" in text or "*" in text or "." in text:
        return fnmatchcase(path, text) or fnmatchcase(path, f"{text.rstrip('/')}/*")
    return is_label(pattern, "sub-", subject)


_SHOWN = 3
Row = dict[str, str]


@dataclass
class Participants:
    """The rows of a site's participants.tsv, and what is doubtful about them."""

    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._by_subject: dict[str, list[Row]] = {}
        self._by_number: dict[int, set[str]] = {}
        for row in self.rows:
            subject = _label(row["participant_id"], "sub-")
            self._by_subject.setdefault(subject, []).append(row)
            if subject.isdecimal():
                self._by_number.setdefault(int(subject), set()).add(subject)
        self._absent: list[str] = []
        self._renamed: list[str] = []
        self._contradictions: dict[str, list[str]] = {}

    def of(self, subject: str, session: str = "") -> Row:
        """What is said of a subject at a session; of several rows only what they agree on.

        Rows are joined by ``participant_id``, which may lack leading zeros where that is no doubt, and by
        ``session_id`` where the table has it.
        """
        label = subject
        if subject not in self._by_subject and subject.isdecimal():
            alike = self._by_number.get(int(subject), set())
            if len(alike) == 1:
                (label,) = alike
                self._renamed.append(f"sub-{label} for sub-{subject}")
        rows = self._by_subject.get(label, [])
        if not rows:
            self._absent.append(f"sub-{subject}")
        of_session = [row for row in rows if session and _label(row.get("session_id", ""), "ses-") == session]
        rows = of_session or rows
        merged: Row = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            values = {row[name] for row in rows if name in row}
            if len(values) == 1:
                merged[name] = values.pop()
            elif session or "session_id" not in rows[0]:  # without a session, rows of several may well differ
                self._contradictions.setdefault(name, []).append(f"sub-{subject}")
        return merged

    def notes(self, columns: Sequence[str]) -> list[str]:
        """One line for each kind of doubt about ``columns`` that :meth:`of` came upon."""
        if not columns or not self.rows:
            return []
        doubts = [("row taken", self._renamed), ("no row for", self._absent)]
        doubts += [(f"rows contradict each other in {c}, which is not taken, of", self._contradictions.get(c, []))
                   for c in columns]  # fmt: skip
        lines = []
        for what, found in doubts:
            subjects = list(dict.fromkeys(found))
            lines += [f"participants.tsv: {what} {listed(subjects, _SHOWN)}"] if subjects else []
        return lines


def _label(text: str, prefix: str) -> str:
    return text.strip().removeprefix(prefix)


def read_participants(site: Site) -> Participants:
    """A site's participants.tsv; no rows where there is no such file.

    Raises:
        RecordingError: the table cannot be read, or has no column ``participant_id``, or two.
    """
    file = site.root / "participants.tsv"
    if not file.is_file() and not file.is_symlink():
        return Participants()
    rows = read_tsv(file)
    if rows and not any("participant_id" in row for row in rows):
        found = ", ".join(repr(name) for name in rows[0])
        raise RecordingError("bad-table", f"{file.name}: no column participant_id, expected it among {found[:120]}")
    return Participants([row for row in rows if "participant_id" in row])
