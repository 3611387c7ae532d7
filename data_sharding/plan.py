"""The plan of a corpus: which sample goes into which split and shard, decided before anything is read.

The plan is a pure function of the configuration, the secret key and the sorted file names, so that every worker, every
restart and every cluster makes the same corpus. Subjects get keyed hashes (HMAC-SHA-256, RFC 2104); the key itself is
never written.
"""

import hashlib
import hmac
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mcsp
from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids import RecordingRef, Site, find_recordings, find_sites, read_tsv
from mcsp.data_sharding.layout import FileStates, Plan, PlannedSample, sha256_json
from mcsp.schema import SCHEMA_VERSION, SPLITS, Split

KEY_VARIABLE = "MCSP_SUBJECT_KEY"
_MIN_KEY_LENGTH = 16
_PACKAGES = ("mne", "nibabel", "nilearn", "numpy", "pandas", "pyarrow", "scipy")
_RECIPE_MODULES = (
    "bids", "eeg", "eeg_channels", "eeg_files", "eeg_filter", "eeg_quality", "fmri", "fmri_confounds",
    "fmri_files", "fmri_parcels", "layout", "pairing", "plan", "privacy", "reading", "recording", "samples",
    "shards",
)  # fmt: skip
_IDENTIFYING = {"participant_id", "name", "first_name", "last_name", "date_of_birth", "birth_date", "dob", "acq_time"}
# Labels with this many digits in a row may be dates or hospital numbers.
_NUMBER = re.compile(r"\d{6,}")
_LETTERS = str.maketrans("0123456789", "ghijklmnop")


def subject_key(config: CorpusConfig | None = None) -> bytes:
    """The secret of the subject hashes, from ``subject_key_file`` or the environment.

    Raises:
        ValueError: there is none, or it is too short; the line says how to make one.
    """
    if config is not None and config.subject_key_file is not None:
        try:
            key, source = config.subject_key_file.read_text().strip(), str(config.subject_key_file)
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"subject_key_file: {error}") from None
        make = f"openssl rand -hex 32 > {source}"
    else:
        key, source = os.environ.get(KEY_VARIABLE, ""), f"environment: {KEY_VARIABLE}"
        make = f"export {KEY_VARIABLE}=$(openssl rand -hex 32)"
    if len(key) < _MIN_KEY_LENGTH:
        found = "is not set" if not key else f"has {len(key)} characters, expected at least {_MIN_KEY_LENGTH}"
        raise ValueError(f"{source} {found}; make one with: {make}")
    return key.encode()


def make_plan(config: CorpusConfig, key: bytes) -> Plan:
    """Find everything and decide where it goes.

    Samples of a split are ordered by a hash of (seed, sample key), which mixes the sites, and cut into shards of at
    most ``samples_per_shard``. Neither the split nor the shard of a sample depends on the other samples, but that a
    full shard is halved.

    Raises:
        ValueError: a missing or malformed dataset, no recordings at all, or a participants column that no site has.
    """
    sites = find_sites(config)
    participants = {site.name: read_participants(site) for site in sites}
    _check_columns(config, participants)
    # The key's own hash: a build under another key must not continue this one.
    common = [SCHEMA_VERSION, software_versions(), _code_digest(), _recipe_config(config), keyed_hash(key, "recipe")]
    plan = Plan(sites, sha256_json(common), config)
    options = public_config(config)["sites"]
    for site in sites:
        states = FileStates()
        for sample in _site_samples(site, participants[site.name], config, key):
            plan.add(sample, config.seed, states, options.get(site.name))
    if not any(plan.found.values()):
        raise ValueError(f"{', '.join(str(site.root) for site in sites)}: no EEG or fMRI recordings found")
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


def keyed_hash(key: bytes, *parts: str) -> str:
    """HMAC-SHA-256 of the parts, 64 hexadecimal digits."""
    return hmac.new(key, "\0".join(parts).encode(), hashlib.sha256).hexdigest()


def subject_hash(key: bytes, site: str, subject: str) -> str:
    """What stands for a subject's label in a corpus: 16 hexadecimal digits."""
    return keyed_hash(key, "subject", site, subject)[:16]


def session_label(key: bytes, session: str) -> str:
    """A session's label in a corpus: hashed where it may be a date, in letters so that nobody takes it for one."""
    return without_dates(session) or (session and keyed_hash(key, "session", session)[:8].translate(_LETTERS))


def public_config(config: CorpusConfig) -> dict[str, Any]:
    """The resolved configuration without what depends on the machine: folders and the number of workers."""
    values = config.dump()
    for name in ("bids_root", "out_dir", "workers", "subject_key_file"):
        del values[name]
    for section in (values["fmri"], *values["sites"].values()):
        section["label_image"] = Path(section["label_image"]).name if section["label_image"] else None
        section.pop("path", None)
    return values


def software_versions() -> dict[str, str]:
    """Versions of the packages that decide a corpus's bytes."""
    return {"mcsp": mcsp.__version__, **{package: version(package) for package in _PACKAGES}}


def _recipe_config(config: CorpusConfig) -> dict[str, Any]:
    """What all shards share: not the list of sites, and not what decides only whether a recording survives."""
    free = {"sites", "on_error", "max_quarantined", "read_timeout_seconds", "read_memory_gb"}
    return {name: value for name, value in public_config(config).items() if name not in free}


def _site_samples(
    site: Site, participants: Mapping[str, Mapping[str, str]], config: CorpusConfig, key: bytes
) -> Iterator[PlannedSample]:
    groups: dict[tuple[str, str], list[RecordingRef]] = {}
    for ref in find_recordings(site, config.fmri_of(site.name).parcellation):
        session = "" if site.pairing == "subject" else ref.entities.get("session", "")
        groups.setdefault((ref.entities["subject"], session), []).append(ref)
    for (subject, session), refs in sorted(groups.items()):
        hashed, label = subject_hash(key, site.name, subject), session_label(key, session)
        row = participants.get(subject, {})
        family = row.get(config.family_column or "")
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


def without_dates(label: str) -> str:
    """A task or run label as stored: empty where six digits in a row may be a date."""
    return "" if _NUMBER.search(label) else label


def read_participants(site: Site) -> dict[str, dict[str, str]]:
    """Rows of a site's participants.tsv by subject label; none where there is no such file."""
    file = site.root / "participants.tsv"
    if not file.is_file():
        return {}
    rows = read_tsv(file)
    if rows and "participant_id" not in rows[0]:
        raise ValueError(f"{file}: expected a column participant_id, found {', '.join(rows[0])}")
    return {row["participant_id"].removeprefix("sub-"): row for row in rows if "participant_id" in row}


def _check_columns(config: CorpusConfig, participants: Mapping[str, Mapping[str, Mapping[str, str]]]) -> None:
    known = {name for rows in participants.values() for row in rows.values() for name in row}
    wanted = [*config.participants_columns, *([config.family_column] if config.family_column else [])]
    for name in wanted:
        if name not in known:
            raise ValueError(f"participants.tsv: no site has the column {name!r}, found {sorted(known)}")
    for name in config.participants_columns:
        if name.lower() in _IDENTIFYING:
            raise ValueError(f"participants_columns: {name!r} may identify a person and cannot go along")


def _number_or_text(text: str) -> float | str:
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _code_digest() -> str:
    """SHA-256 of the modules that decide a corpus's bytes, so that a changed recipe never continues an older build."""
    folder = Path(mcsp.__file__).parent
    files = [folder / "schema.py", *(folder / "data_sharding" / f"{module}.py" for module in _RECIPE_MODULES)]
    return sha256_json([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
