"""The plan of a corpus: which sample goes into which split and shard, decided before anything is read.

The plan is a pure function of the configuration, the secret key and the sorted file names, so that every worker, every
restart and every cluster makes the same corpus. Subjects get keyed hashes (HMAC-SHA-256, RFC 2104); the key itself is
never written.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.find import RecordingRef, Site, find_recordings, find_sites
from mcsp.data_sharding.bids.participants import read_participants
from mcsp.data_sharding.build.layout import FileStates, Plan, PlannedSample, sha256_json
from mcsp.data_sharding.build.pseudonyms import keyed_hash, session_label, subject_hash
from mcsp.data_sharding.build.recipe import code_digest, public_config, recipe_config, software_versions
from mcsp.schema import SCHEMA_VERSION, SPLITS, Split

_IDENTIFYING = {"participant_id", "name", "first_name", "last_name", "date_of_birth", "birth_date", "dob", "acq_time"}


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
    common = [SCHEMA_VERSION, software_versions(), code_digest(), recipe_config(config), keyed_hash(key, "recipe")]
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
