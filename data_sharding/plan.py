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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mcsp
from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids import RecordingRef, Site, find_recordings, find_sites, read_tsv
from mcsp.schema import SCHEMA_VERSION, SPLITS, Split

KEY_VARIABLE = "MCSP_SUBJECT_KEY"
_MIN_KEY_LENGTH = 16
_PACKAGES = ("mne", "nibabel", "nilearn", "numpy", "pandas", "pyarrow", "scipy", "webdataset")
_RECIPE_MODULES = (
    "bids", "eeg", "eeg_channels", "eeg_files", "eeg_filter", "eeg_quality", "fmri", "fmri_confounds",
    "fmri_files", "fmri_parcels", "index", "plan", "recording", "samples", "shards",
)  # fmt: skip
_IDENTIFYING = {"participant_id", "name", "first_name", "last_name", "date_of_birth", "birth_date", "dob", "acq_time"}
# Labels with this many digits in a row may be dates or hospital numbers.
_NUMBER = re.compile(r"\d{6,}")
_LETTERS = str.maketrans("0123456789", "ghijklmnop")


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

    name: str
    samples: tuple[PlannedSample, ...]
    digest: str

    @property
    def n_recordings(self) -> int:
        """Recordings to read, some of which may be rejected."""
        return sum(len(sample.recordings) for sample in self.samples)


@dataclass(frozen=True)
class Plan:
    """A whole corpus, before reading."""

    sites: tuple[Site, ...]
    shards: tuple[PlannedShard, ...]

    @property
    def digest(self) -> str:
        """SHA-256 that stands for the plan and the state of its inputs."""
        sites = [[site.name, site.simulated] for site in self.sites]
        return _sha256([sites, [[shard.name, shard.digest] for shard in self.shards]])


def subject_key() -> bytes:
    """The secret of the subject hashes, from the environment; raise ``ValueError`` that says how to make one."""
    key = os.environ.get(KEY_VARIABLE, "")
    if len(key) < _MIN_KEY_LENGTH:
        found = "is not set" if not key else f"has {len(key)} characters, expected at least {_MIN_KEY_LENGTH}"
        raise ValueError(
            f"environment: {KEY_VARIABLE} {found}; make one with: export {KEY_VARIABLE}=$(openssl rand -hex 32)"
        )
    return key.encode()


def make_plan(config: CorpusConfig, key: bytes) -> Plan:
    """Find everything and decide where it goes.

    Samples of a split are ordered by a hash of (seed, sample key), which mixes the sites, and cut into shards of
    ``samples_per_shard``.

    Raises:
        ValueError: a missing or malformed dataset, no recordings at all, or a participants column that no site has.
    """
    sites = find_sites(config)
    participants = {site.name: read_participants(site) for site in sites}
    _check_columns(config, participants)
    by_split: dict[Split, list[PlannedSample]] = {split: [] for split in SPLITS}
    for site in sites:
        for sample in _site_samples(site, participants[site.name], config, key):
            by_split[sample.split].append(sample)
    if not any(by_split.values()):
        raise ValueError(f"{', '.join(str(site.root) for site in sites)}: no EEG or fMRI recordings found")
    common = [SCHEMA_VERSION, software_versions(), _code_digest(), public_config(config)]
    shards = []
    for split, samples in by_split.items():
        samples.sort(key=lambda s: hashlib.sha256(f"{config.seed}/{s.key}".encode()).digest())
        for number, first in enumerate(range(0, len(samples), config.samples_per_shard)):
            members = tuple(samples[first : first + config.samples_per_shard])
            name = f"{split}-{number:05d}.tar"
            shards.append(PlannedShard(name, members, _sha256([*common, name, [_sample_inputs(s) for s in members]])))
    return Plan(tuple(sites), tuple(shards))


def assign_splits(
    units: Sequence[str], fractions: Sequence[float], seed: int, site: str, key: bytes
) -> dict[str, Split]:
    """Split the subjects (or families) of one site.

    The units are ranked by a keyed hash of (seed, site, unit) and the ranking is cut at the cumulative fractions,
    rounded half up, so that also a small site gets its proportions exactly. A unit that joins a site later may move
    others across a cut.
    """
    ranked = sorted(set(units), key=lambda unit: keyed_hash(key, "split", str(seed), site, unit))
    splits: dict[str, Split] = {}
    cumulative, start = 0.0, 0
    for split, fraction in zip(SPLITS, fractions, strict=True):
        cumulative += fraction
        stop = math.floor(cumulative * len(ranked) + 0.5 + 1e-9)
        splits.update(dict.fromkeys(ranked[start:stop], split))
        start = stop
    return splits


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
    for name in ("bids_root", "out_dir", "workers"):
        del values[name]
    for section in (values["fmri"], *values["sites"].values()):
        section["label_image"] = Path(section["label_image"]).name if section["label_image"] else None
        section.pop("path", None)
    return values


def software_versions() -> dict[str, str]:
    """Versions of the packages that decide a corpus's bytes."""
    return {"mcsp": mcsp.__version__, **{package: version(package) for package in _PACKAGES}}


def _site_samples(
    site: Site, participants: Mapping[str, Mapping[str, str]], config: CorpusConfig, key: bytes
) -> list[PlannedSample]:
    groups: dict[tuple[str, str], list[RecordingRef]] = {}
    for ref in find_recordings(site, config.fmri.parcellation):
        groups.setdefault((ref.entities["subject"], ref.entities.get("session", "")), []).append(ref)

    def unit(subject: str) -> str:
        family = participants.get(subject, {}).get(config.family_column or "")
        return f"family {family}" if family else f"subject {subject}"

    splits = assign_splits([unit(s) for s, _ in groups], config.split_fractions, config.seed, site.name, key)
    samples = []
    for (subject, session), refs in sorted(groups.items()):
        hashed, label = subject_hash(key, site.name, subject), session_label(key, session)
        row = participants.get(subject, {})
        columns = {name: _number_or_text(row[name]) for name in config.participants_columns if name in row}
        samples.append(
            PlannedSample(
                key="_".join([site.name, hashed, label]) if label else f"{site.name}_{hashed}",
                site=site,
                subject=hashed,
                session=label,
                split=splits[unit(subject)],
                participant=json.dumps(columns, sort_keys=True),
                recordings=tuple(sorted(refs, key=lambda ref: (ref.modality, ref.file))),
            )
        )
    return samples


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


def _sample_inputs(sample: PlannedSample) -> list[Any]:
    """What decides a sample's bytes, with size and time of change standing for the content of each file."""
    states = []
    for ref in sample.recordings:
        for file in ref.inputs():
            status = file.stat()
            states.append([ref.file, ref.modality, file.name, status.st_size, status.st_mtime_ns])
    return [sample.key, sample.split, sample.session, sample.participant, sample.site.simulated, states]


def _code_digest() -> str:
    """SHA-256 of the modules that decide a corpus's bytes, so that a changed recipe never continues an older build."""
    folder = Path(mcsp.__file__).parent
    files = [folder / "schema.py", *(folder / "data_sharding" / f"{module}.py" for module in _RECIPE_MODULES)]
    return _sha256([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])


def _sha256(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
