"""The plan of a corpus: which sample goes into which split and shard, decided before anything is read.

The plan is a pure function of the configuration, the secret key and the sorted file names, so that every worker, every
restart and every cluster makes the same corpus. Subjects get keyed hashes (HMAC-SHA-256, RFC 2104); the key itself is
never written.

The recipe of a corpus is everything beside the recordings that decides the bytes of its shards.
"""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mcsp.config import CorpusConfig, FmriConfig
from mcsp.config.corpus import Selection
from mcsp.data_sharding.bids.find import find_recordings, find_sites
from mcsp.data_sharding.bids.participants import Participants, read_participants
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import RecordingRef, Site
from mcsp.data_sharding.bids.tables import printable
from mcsp.data_sharding.build.layout import FileStates, Plan, PlannedSample
from mcsp.data_sharding.build.pseudonyms import keyed_hash, session_label, subject_hash
from mcsp.outside import sha256_file, sha256_json
from mcsp.provenance import ROOT
from mcsp.schema import SCHEMA_VERSION, SPLITS, Split
from mcsp.version import __version__

_PACKAGES = ("mne", "nibabel", "nilearn", "numpy", "pandas", "pyarrow", "scipy")
# Files that decide stored bytes: whole rooms, and these of the others.
_ROOMS = ("bids", "parcels", "clean")
_FILES = (
    "build/layout.py", "build/plan.py", "build/privacy.py", "build/pseudonyms.py", "build/samples.py",
    "build/shards.py",
)  # fmt: skip
# Settings that name subjects, sessions and files as the site calls them.
_OF_PEOPLE = ("subjects", "sessions", "exclude")
_OF_MACHINE = (
    "bids_root", "out_dir", "private_dir", "workers", "subject_key_file", "trusted_link_targets", "allow_open_cluster",
)  # fmt: skip


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


_IDENTIFYING = {"participant_id", "name", "first_name", "last_name", "date_of_birth", "birth_date", "dob", "acq_time"}


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
