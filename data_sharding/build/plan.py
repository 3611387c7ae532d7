"""The plan of a corpus: which sample goes into which split and shard, decided before anything is read.

The plan is a pure function of the configuration, the secret key and the sorted file names, so that every worker, every
restart and every cluster makes the same corpus. Subjects get keyed hashes (HMAC-SHA-256, RFC 2104); the key itself is
never written. That of a million recordings stays on disk.

The recipe of a corpus is everything beside the recordings that decides the bytes of its shards.
"""

import bisect
import hashlib
import json
import math
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mcsp.config import CorpusConfig, FmriConfig
from mcsp.config.corpus import Selection
from mcsp.data_sharding.bids.find import Participants, find_recordings, find_sites, read_participants
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import RecordingRef, Site, inputs_of
from mcsp.data_sharding.bids.tables import printable
from mcsp.data_sharding.build.pseudonyms import keyed_hash, session_label, subject_hash
from mcsp.outside import sha256_file, sha256_json
from mcsp.provenance import ROOT
from mcsp.schema import SCHEMA_VERSION, SPLITS, Split
from mcsp.version import __version__

_PACKAGES = ("mne", "nibabel", "nilearn", "numpy", "pandas", "pyarrow", "scipy")
# Files that decide stored bytes: whole rooms, and these of the others.
_ROOMS = ("bids", "parcels", "clean")
_FILES = ("build/plan.py", "build/privacy.py", "build/pseudonyms.py", "build/shards.py")
# Columns of participants.tsv that never go along.
_IDENTIFYING = {"participant_id", "name", "first_name", "last_name", "date_of_birth", "birth_date", "dob", "acq_time"}
# Settings that name subjects, sessions and files as the site calls them.
_OF_PEOPLE = ("subjects", "sessions", "exclude")
_OF_MACHINE = (
    "bids_root", "out_dir", "private_dir", "workers", "subject_key_file", "trusted_link_targets", "allow_open_cluster",
)  # fmt: skip
# What of each sample stays in memory: 49 bytes.
_ENTRY = np.dtype([("split", "u1"), ("order", "u8"), ("offset", "u8"), ("digest", "V32")])


def public_config(config: CorpusConfig) -> dict[str, Any]:
    """The resolved configuration without folders and the number of workers, and without labels of people."""
    values = {name: value for name, value in config.dump().items() if name not in _OF_MACHINE}
    for section in (values["fmri"], *values["sites"].values()):
        section["label_image"] = Path(section["label_image"]).name if section["label_image"] else None
        section.pop("path", None)
        section.pop("storage_options", None)  # may hold a secret
    for section in (values, *values["sites"].values()):
        for name in _OF_PEOPLE:
            section.pop(name, None)
    return values


def software_versions() -> dict[str, str]:
    """Versions of the packages that decide a corpus's bytes."""
    return {"mcsp": __version__, **{package: version(package) for package in _PACKAGES}}


def recipe_config(config: CorpusConfig) -> dict[str, Any]:
    """What all shards share: not the list of sites, and not what decides only whether a recording survives."""
    limits = {"on_error", "max_quarantined", "read_timeout_seconds", "site_timeout_seconds", "read_memory_gb"}
    free = {"sites", *limits, *Selection.model_fields}
    return {name: value for name, value in public_config(config).items() if name not in free}


def code_digest() -> str:
    """SHA-256 of the files that decide a corpus's bytes, so that a changed recipe never continues an older build."""
    folder = ROOT / "mcsp" / "data_sharding"
    files = [ROOT / "mcsp" / "schema.py", *(folder / file for file in _FILES)]
    files += [file for room in _ROOMS for file in sorted((folder / room).glob("*.py"))]
    return sha256_json([sha256_file(file) for file in files])


@dataclass(frozen=True)
class PlannedSample:
    """One subject-session, before reading."""

    key: str
    site: Site
    subject: str
    session: str
    split: Split
    participant: str  # JSON object
    recordings: tuple[RecordingRef, ...]


@dataclass(frozen=True)
class PlannedShard:
    """One tar to write, with a digest of everything that decides its bytes."""

    name: str  # <split>-<number>; the finished file has a part of its hash too
    samples: tuple[PlannedSample, ...]
    digest: str


class Plan:
    """A whole corpus, before reading.

    Samples lie in a temporary file of this machine; in memory are only a few numbers of each, so that a million
    recordings can be planned.

    Attributes:
        sites: what the configuration names, sorted.
        recipe: SHA-256 of what decides the bytes of all shards: configuration, key, code, versions.
        found: recordings of each site.
        names, digests: of the shards, sorted by name.
        digest: stands for the recipe and the state of all inputs.
        notes: what whoever builds should know of the inputs, a line each.
    """

    def __init__(
        self, sites: Sequence[Site], recipe: str, config: CorpusConfig, notes: Sequence[str] = (), mirrors: Any = None
    ) -> None:
        """An empty plan; ``mirrors``, the shapes of remote datasets, is kept as long as it."""
        self.notes = notes
        if mirrors is not None:
            weakref.finalize(self, mirrors.cleanup)
        self.sites, self.recipe, self._limit = tuple(sites), recipe, config.samples_per_shard
        self.found = {site.name: 0 for site in sites}
        self._spool = tempfile.TemporaryFile(prefix="mcsp-plan-")  # noqa: SIM115  lives as long as the plan
        weakref.finalize(self, self._spool.close)
        self._entries = bytearray()  # of _ENTRY, one per sample
        self.names: list[str] = []
        self.digests: list[str] = []
        self._offsets: np.ndarray  # in the spool, of all samples in the order of the shards
        self._starts: list[int] = []  # the first of each shard there

    def add(self, sample: PlannedSample, seed: int, states: "FileStates", options: Any) -> None:
        """Take up a sample; ``options`` are what the configuration says of its site alone."""
        order = int.from_bytes(hashlib.sha256(f"{seed}/{sample.key}".encode()).digest()[:8], "big")
        # What decides the sample's bytes, with size and time of change standing for the content of each file.
        files = [[r.file, r.modality, file.name, *states[file]] for r in sample.recordings for file in inputs_of(r)]
        site = [sample.site.simulated, sample.site.pairing, sample.site.first_volume_event, sample.site.fault]
        inputs = [sample.key, sample.split, sample.session, sample.participant, site, files]
        digest = bytes.fromhex(sha256_json([options, inputs]))
        entry = (SPLITS.index(sample.split), order, self._spool.tell(), digest)
        self._entries += np.array([entry], dtype=_ENTRY).tobytes()
        self._spool.write(_to_line(sample))
        self.found[sample.site.name] += len(sample.recordings)

    def close(self, common: Sequence[Any]) -> None:
        """Cut the samples of each split into shards (:func:`cut`)."""
        entries = np.frombuffer(self._entries, dtype=_ENTRY)
        entries = entries[np.lexsort((entries["offset"], entries["order"], entries["split"]))]
        self._entries, self._offsets = bytearray(), entries["offset"].copy()
        bounds = np.searchsorted(entries["split"], range(len(SPLITS) + 1))
        for split, (first, end) in zip(SPLITS, pairwise(bounds.tolist()), strict=True):
            orders = array("Q", entries["order"][first:end].tobytes())
            for node, start, stop in cut(orders, self._limit):
                name = f"{split}-{node:05d}"
                digests = [bytes(digest).hex() for digest in entries["digest"][first + start : first + stop]]
                self.names.append(name)
                self.digests.append(sha256_json([*common, name, digests]))
                self._starts.append(first + start)
        self._starts.append(len(entries))

    @property
    def digest(self) -> str:
        """SHA-256 that stands for the plan and the state of its inputs."""
        sites = [[site.name, site.simulated] for site in self.sites]
        return sha256_json([self.recipe, sites, self.names, self.digests])

    def shard(self, number: int) -> PlannedShard:
        """The shard at a place in ``names``."""
        sites = {site.name: site for site in self.sites}
        samples = []
        for offset in self._offsets[self._starts[number] : self._starts[number + 1]]:
            self._spool.seek(int(offset))
            samples.append(_from_line(self._spool.readline(), sites))
        return PlannedShard(self.names[number], tuple(samples), self.digests[number])

    @property
    def shards(self) -> Iterator[PlannedShard]:
        """Every shard, one after the other."""
        return map(self.shard, range(len(self.names)))


def cut(orders: Sequence[int], limit: int) -> Iterator[tuple[int, int, int]]:
    """Cut a sorted list of 64-bit integers into runs of at most ``limit``: (number, start, stop) of each.

    The runs are the leaves of a binary tree over the leading bits: a full run is halved at its next bit. So a run's
    number (1 for the root, 2n and 2n + 1 for the halves of n) and content do not depend on what other runs hold, and
    an integer that joins changes one run, or splits it in two.
    """
    waiting = [(1, 0, len(orders), 0, 1 << 64)]
    while waiting:
        node, start, stop, low, high = waiting.pop()
        if stop - start <= limit or high - low == 1:
            if stop > start:
                yield node, start, stop
            continue
        middle = (low + high) // 2
        split = bisect.bisect_left(orders, middle, start, stop)
        waiting += [(2 * node + 1, split, stop, middle, high), (2 * node, start, split, low, middle)]


class FileStates(dict[Path, list[int]]):
    """Size and time of change of files, each asked for once: many recordings share a table at the dataset's root.

    Of a link to nowhere they are those of the link.
    """

    def __missing__(self, file: Path) -> list[int]:
        try:
            status = file.stat()
        except OSError:
            try:
                status = file.lstat()
            except OSError:  # removed, or beyond a folder that cannot be searched
                return self.setdefault(file, [-1, -1])
        return self.setdefault(file, [status.st_size, status.st_mtime_ns])


def _to_line(sample: PlannedSample) -> bytes:
    root = os.path.join(sample.site.root, "")

    def inside(file: Path) -> str:
        return str(file).removeprefix(root)

    recordings = [
        [inside(ref.path), ref.modality, ref.entities, {k: [*map(inside, v)] for k, v in ref.companions.items()}]
        for ref in sample.recordings
    ]
    values = {**vars(sample), "site": sample.site.name, "recordings": recordings}
    return json.dumps(values).encode() + b"\n"


def _from_line(line: bytes, sites: Mapping[str, Site]) -> PlannedSample:
    values = json.loads(line)
    site = sites[values["site"]]
    recordings = tuple(
        RecordingRef(
            site,
            site.root / file,
            modality,
            entities,
            {name: tuple(site.root / companion for companion in files) for name, files in companions.items()},
        )
        for file, modality, entities, companions in values["recordings"]
    )
    return PlannedSample(**{**values, "site": site, "recordings": recordings})


def make_plan(config: CorpusConfig, key: bytes) -> Plan:
    """Find everything and decide where it goes.

    Samples of a split are ordered by a hash of (seed, sample key), which mixes the sites, and cut into shards of at
    most ``samples_per_shard``. Neither the split nor the shard of a sample depends on the other samples, but that a
    full shard is halved.

    A fault of a dataset's own files (its description, its participants.tsv) costs the recordings of that dataset, each
    of which is planned and will be rejected with the reason.

    Raises:
        ValueError: a dataset that is named and missing, no recordings at all, or a participants column that no site
            has.
    """
    mirrors = tempfile.TemporaryDirectory(prefix="mcsp-mirrors-")
    try:
        return _planned(config, key, mirrors)
    except BaseException:
        mirrors.cleanup()
        raise


def _planned(config: CorpusConfig, key: bytes, mirrors: tempfile.TemporaryDirectory[str]) -> Plan:
    notes: list[str] = []
    sites = find_sites(config, notes, Path(mirrors.name))
    participants: dict[str, Participants] = {}
    for i, site in enumerate(sites):
        try:
            participants[site.name] = read_participants(site)
        except RecordingError as error:
            participants[site.name] = Participants()
            sites[i] = replace(site, fault=site.fault or (error.reason, str(error)))
    notes += [f"{site.name}: {site.fault[1]}; none of its recordings is stored" for site in sites if site.fault]
    _check_columns(config, participants, notes)
    # The key's own hash: a build under another key must not continue this one.
    common = [SCHEMA_VERSION, software_versions(), code_digest(), recipe_config(config), keyed_hash(key, "recipe")]
    plan = Plan(sites, sha256_json(common), config, notes, mirrors)
    # Which recordings of a site are wanted does not change the others.
    options = {
        name: {k: v for k, v in values.items() if k not in Selection.model_fields}
        for name, values in public_config(config)["sites"].items()
    }
    for site in sites:
        states = FileStates()
        for sample in _site_samples(site, participants[site.name], config, key, notes):
            plan.add(sample, config.seed, states, options.get(site.name))
    if not any(plan.found.values()):
        more = f" ({'; '.join(notes)})" if notes else ""
        raise ValueError(f"{', '.join(str(site.root) for site in sites)}: no EEG or fMRI recordings found{more}")
    plan.close(common)
    return plan


def assign_split(unit: str, fractions: Sequence[float], seed: int, site: str, key: bytes) -> Split:
    """The split of a subject (or family) of a site: a keyed hash of (seed, site, unit), cut at the fractions.

    It depends on nobody else, so no subject ever moves when another one joins or leaves; a small site may therefore
    have other proportions than asked for.
    """
    share = int(keyed_hash(key, "split", str(seed), site, unit)[:16], 16) / 2**64
    cumulative = 0.0
    for split, fraction in zip(SPLITS, fractions, strict=True):
        cumulative += fraction
        if share < cumulative:
            return split
    return next(split for split, fraction in zip(SPLITS[::-1], fractions[::-1], strict=True) if fraction > 0)


def _site_samples(
    site: Site, participants: Participants, config: CorpusConfig, key: bytes, notes: list[str]
) -> Iterator[PlannedSample]:
    groups: dict[tuple[str, str], list[RecordingRef]] = {}
    fmri = config.fmri_of(site.name)
    for ref in find_recordings(site, fmri.parcellation, notes, _label_space(site, fmri)):
        session = "" if site.pairing == "subject" else printable(ref.entities.get("session", ""))
        groups.setdefault((printable(ref.entities["subject"]), session), []).append(ref)
    for (subject, session), refs in sorted(groups.items()):
        hashed, label = subject_hash(key, site.name, subject), session_label(key, site.name, subject, session)
        row, family = participants.of(subject, session), participants.of(subject).get(config.family_column or "")
        unit = f"family {family}" if family else f"subject {subject}"
        columns = {name: _number_or_text(row[name]) for name in config.participants_columns if name in row}
        yield PlannedSample(
            key="_".join([site.name, hashed, label]) if label else f"{site.name}_{hashed}",
            site=site,
            subject=hashed,
            session=label,
            split=assign_split(unit, config.split_fractions, config.seed, site.name, key),
            participant=json.dumps(columns, sort_keys=True),
            recordings=tuple(sorted(refs, key=lambda ref: (ref.modality, ref.file))),
        )
    notes += [f"{site.name}: {note}" for note in participants.notes(_wanted_columns(config))]


def _label_space(site: Site, fmri: FmriConfig) -> str | None:
    """Space of the labels that the settings name; of a run's images, that in this space is taken where there is one."""
    if fmri.label_space or site.label_image or not fmri.atlas:
        return fmri.label_space
    from mcsp.data_sharding.parcels.atlases import named_atlas  # loads nilearn

    try:
        return named_atlas(fmri.atlas).parcels.space or None
    except ValueError:  # told with the recordings that need it
        return None


def _wanted_columns(config: CorpusConfig) -> list[str]:
    return [*config.participants_columns, *([config.family_column] if config.family_column else [])]


def _check_columns(config: CorpusConfig, participants: Mapping[str, Participants], notes: Sequence[str]) -> None:
    known = {name for of_site in participants.values() for row in of_site.rows for name in row}
    for name in _wanted_columns(config):
        if name not in known:
            more = f" ({'; '.join(notes)})" if notes else ""
            raise ValueError(f"participants.tsv: no site has the column {name!r}, found {sorted(known)}{more}")
    for name in config.participants_columns:
        if name.lower() in _IDENTIFYING:
            raise ValueError(f"participants_columns: {name!r} may identify a person and cannot go along")


def _number_or_text(text: str) -> float | str:
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text
