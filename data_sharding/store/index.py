"""The files that describe a corpus: ``index.json`` and the tables that it names.

Both are functions of the configuration and the inputs alone: no time, no host, no path of the machine is in them.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mcsp.data_sharding.store.files import Location, publish, size, write_atomic
from mcsp.data_sharding.store.foreign import require_sound_index
from mcsp.data_sharding.store.table import RECORDINGS_NAME, Recordings, write_table
from mcsp.outside import bounded_lines, parse_json, read_object, sha256_file
from mcsp.schema import MODALITIES, SCHEMA_VERSION, SPLITS, Recording

INDEX_NAME = "index.json"
REJECTED_NAME = "rejected.jsonl"
REPAIRS_NAME = "repairs.jsonl"
SHARDS_NAME = "shards"
BUILD_NAME = ".build"  # of the build alone, and never a part of the corpus


@dataclass(frozen=True)
class Rejection:
    """A recording that was found but not stored."""

    site: str
    file: str  # relative to the site's folder; published: sub-<hash>
    modality: str
    reason: str  # a code of docs/reasons.md
    detail: str  # one line; published: measurements alone


@dataclass(frozen=True)
class Repair:
    """Something that was wrong with the files of a stored recording, and put right."""

    site: str
    file: str  # relative to the site's folder; published: sub-<hash>
    modality: str
    repair: str  # one line; published: its kind


Entry = TypeVar("Entry", Rejection, Repair)


def index_hash(shards: Iterable[dict[str, Any]]) -> str:
    """What a checkpoint remembers of a corpus: SHA-256 of the schema version and the sorted shard hashes."""
    text = f"{SCHEMA_VERSION}\n" + "\n".join(sorted(shard["sha256"] for shard in shards))
    return hashlib.sha256(text.encode()).hexdigest()


def totals_of(
    table: Recordings, rejected: Mapping[tuple[str, str], int], simulated: Mapping[str, bool]
) -> dict[str, Any]:
    """Counts and hours per site, split and modality: the content of ``totals`` of the index.

    Args:
        table: stored recordings; those of a sample are neighbours.
        rejected: numbers of recordings that were found and not stored, by site and reason.
        simulated: names every site, also those that gave nothing.
    """
    starts = table.sample_starts()
    sample_N = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    subject_N, subjects = table.codes("subject")
    person_N = table.codes("site")[0].astype(np.int64) * len(subjects) + subject_N
    with np.errstate(divide="ignore", invalid="ignore"):  # of a table that somebody else has written
        seconds_N = table.column("n_samples") / table.column("sfreq")

    def count(inside_N: np.ndarray | slice) -> dict[str, Any]:
        return {
            "recordings": len(sample_N[inside_N]),
            "samples": len(np.unique(sample_N[inside_N])),
            "subjects": len(np.unique(person_N[inside_N])),
            # math.fsum does not depend on the order of the rows.
            "hours": round(math.fsum(seconds_N[inside_N]) / 3600, 6),
        }

    def found(counts: dict[str, Any], bad: int) -> dict[str, Any]:
        return {"found": counts["recordings"] + bad, "rejected": bad, **counts}

    bad = Counter[str]()
    for (site, _), n in rejected.items():
        bad[site] += n
    of_sites = {site: found(count(table.rows_of("site", site)), bad[site]) for site in sorted(simulated)}
    return {
        "all": found(count(slice(None)), bad.total()),
        "sites": {site: {"simulated": simulated[site], **counts} for site, counts in of_sites.items()},
        "splits": {split: count(table.rows_of("split", split)) for split in SPLITS},
        "modalities": {modality: count(table.rows_of("modality", modality)) for modality in MODALITIES},
    }


def reasons_of(rejected: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """How often each reason occurred, in the order of their names; ``rejected`` as :func:`totals_of` takes it."""
    found = Counter[str]()
    for (_, reason), n in rejected.items():
        found[reason] += n
    return dict(sorted(found.items()))


def make_index(
    described: dict[str, Any],
    recordings: Iterable[Recording],
    rejected: Iterable[Rejection],
    repairs: Iterable[Repair],
    scratch: Path,
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Assemble the content of ``index.json`` and write the tables, in memory that hardly grows with their length.

    A table's name holds a part of its hash, so that the tables of an older index stay until its successor is there.

    Args:
        described: ``config``, ``software``, ``fingerprint``, ``subject_key_fingerprint``, ``simulated`` (site -> bool)
            and ``shards``.
        recordings: rows in the order of the table; those of a sample are neighbours.
        rejected: recordings that were found and not stored.
        repairs: what was put right.
        scratch: a folder of this machine for the tables, until :func:`write_index` gives them their names.

    Returns:
        the index, and the file of each table by its name in the corpus.
    """
    bad = Counter[tuple[str, str]]()

    def counted() -> Iterator[Rejection]:
        for rejection in rejected:
            bad[rejection.site, rejection.reason] += 1
            yield rejection

    files = {name: scratch / name for name in (RECORDINGS_NAME, REJECTED_NAME, REPAIRS_NAME)}
    write_table(files[RECORDINGS_NAME], recordings)
    _write_lines(files[REJECTED_NAME], counted())
    _write_lines(files[REPAIRS_NAME], repairs)
    tables = {name.partition(".")[0]: f"{f.stem}-{sha256_file(f)[:12]}{f.suffix}" for name, f in files.items()}
    index = {
        "schema_version": SCHEMA_VERSION,
        "index_hash": index_hash(described["shards"]),
        **{
            name: described[name] for name in ("config", "software", "fingerprint", "subject_key_fingerprint", "shards")
        },
        "tables": tables,
        "totals": totals_of(Recordings.mapped(files[RECORDINGS_NAME]), bad, described["simulated"]),
        "reasons": reasons_of(bad),
    }
    return index, dict(zip(tables.values(), files.values(), strict=True))


def write_index(path: Location, index: dict[str, Any], tables: dict[str, Path]) -> None:
    """Move the tables and then ``index.json`` into ``path``; a corpus without the latter is unfinished."""
    for name, file in tables.items():
        publish(file, path / name)
    write_atomic(path / INDEX_NAME, (json.dumps(index, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def _write_lines(file: Path, entries: Iterable[Rejection | Repair]) -> None:
    with open(file, "wb") as lines:
        for entry in entries:
            lines.write(json.dumps(vars(entry), ensure_ascii=False).encode() + b"\n")


def read_entries(file: Location, kind: type[Entry]) -> Iterator[Entry]:
    """The lines of a table of rejections or repairs; raise ``ValueError`` where it is damaged."""
    try:
        with file.open("rb") as lines:
            for line in bounded_lines(lines):
                yield kind(**parse_json(line))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{file}: cannot read the table ({error})") from None


def read_rejected(path: Location) -> Iterator[Rejection]:
    """The recordings that were found and not stored, one by one; raise ``ValueError`` where the table is damaged."""
    return read_entries(path / read_index(path)["tables"]["rejected"], Rejection)


def read_repairs(path: Location) -> Iterator[Repair]:
    """What was put right, one by one; raise ``ValueError`` where the table is damaged."""
    return read_entries(path / read_index(path)["tables"]["repairs"], Repair)


def read_index(path: Location) -> dict[str, Any]:
    """Read ``index.json`` of the corpus in ``path``.

    Raises:
        ValueError: no such file, not JSON, written under another schema version, or with a name or hash of a form that
            the builder does not write (:mod:`mcsp.data_sharding.store.foreign`).
    """
    file = path / INDEX_NAME
    if size(file) is None:
        raise ValueError(f"{file}: cannot read the index of the corpus (no such file); expected a finished corpus")
    index = read_object(file)
    if (found := index.get("schema_version")) != SCHEMA_VERSION:
        raise ValueError(
            f"{file}: corpus has schema version {found!r}, this code reads version {SCHEMA_VERSION}; build it again"
        )
    missing = {"index_hash", "config", "shards", "tables", "totals", "reasons"} - set(index)
    if missing:
        raise ValueError(f"{file}: expected the keys {sorted(missing)}, found only {sorted(index)}")
    require_sound_index(index, str(file))
    return index
