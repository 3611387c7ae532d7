"""The files that describe a corpus: ``index.json`` and the tables that it names.

Both are functions of the configuration and the inputs alone: no time, no host, no path of the machine is in them.
"""

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mcsp.data_sharding.storage import Location, write_atomic
from mcsp.data_sharding.table import RECORDINGS_NAME, encode_table
from mcsp.schema import MODALITIES, SCHEMA_VERSION, SPLITS, Recording, text_key

INDEX_NAME = "index.json"
REJECTED_NAME = "rejected.jsonl"
REPAIRS_NAME = "repairs.jsonl"
SHARDS_NAME = "shards"


@dataclass(frozen=True)
class Rejection:
    """A recording that was found but not stored."""

    site: str
    file: str  # relative to the site's folder
    modality: str
    reason: str  # a code of docs/corpus-format.md
    detail: str  # one line


@dataclass(frozen=True)
class Repair:
    """Something that was wrong with the files of a stored recording, and put right."""

    site: str
    file: str  # relative to the site's folder
    modality: str
    repair: str  # one line


def index_hash(shards: Iterable[dict[str, Any]]) -> str:
    """What a checkpoint remembers of a corpus: SHA-256 of the schema version and the sorted shard hashes."""
    text = f"{SCHEMA_VERSION}\n" + "\n".join(sorted(shard["sha256"] for shard in shards))
    return hashlib.sha256(text.encode()).hexdigest()


class Totals:
    """Counts and hours per site, split and modality, gathered row by row."""

    def __init__(self, simulated: dict[str, bool]) -> None:
        """``simulated`` names every site, also those that gave nothing."""
        self._simulated = simulated
        self._rejected: Counter[str] = Counter()
        self._recordings: Counter[str] = Counter()
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)
        self._samples: defaultdict[str, set[int]] = defaultdict(set)
        self._subjects: defaultdict[str, set[int]] = defaultdict(set)
        self.reasons: Counter[str] = Counter()

    def add(self, r: Recording) -> None:
        """Count a stored recording."""
        key, subject = text_key(r.key), text_key(f"{r.site}/{r.subject}")
        for section in ("all", f"sites/{r.site}", f"splits/{r.split}", f"modalities/{r.modality}"):
            self._recordings[section] += 1
            self._seconds[section].append(r.seconds)
            self._samples[section].add(key)
            self._subjects[section].add(subject)

    def add_rejection(self, rejection: Rejection) -> None:
        """Count a recording that was found and not stored."""
        self._rejected["all"] += 1
        self._rejected[f"sites/{rejection.site}"] += 1
        self.reasons[rejection.reason] += 1

    def result(self) -> dict[str, Any]:
        """The content of ``totals`` of the index."""
        return {
            "all": self._found("all"),
            "sites": {
                site: {"simulated": simulated, **self._found(f"sites/{site}")}
                for site, simulated in sorted(self._simulated.items())
            },
            "splits": {split: self._count(f"splits/{split}") for split in SPLITS},
            "modalities": {modality: self._count(f"modalities/{modality}") for modality in MODALITIES},
        }

    def _found(self, section: str) -> dict[str, Any]:
        rejected = self._rejected[section]
        return {"found": self._recordings[section] + rejected, "rejected": rejected, **self._count(section)}

    def _count(self, section: str) -> dict[str, Any]:
        return {
            "recordings": self._recordings[section],
            "samples": len(self._samples[section]),
            "subjects": len(self._subjects[section]),
            # math.fsum does not depend on the order of the rows.
            "hours": round(math.fsum(self._seconds[section]) / 3600, 6),
        }


def make_index(
    described: dict[str, Any],
    recordings: Iterable[Recording],
    rejected: Iterable[Rejection],
    repairs: Iterable[Repair],
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Assemble the content of ``index.json`` and of the tables.

    A table's name holds a part of its hash, so that the tables of an older index stay until its successor is there.

    Args:
        described: ``config``, ``software``, ``fingerprint``, ``simulated`` (site -> bool) and ``shards``.
        recordings: rows in the order of the table; those of a sample are neighbours.
        rejected: recordings that were found and not stored.
        repairs: what was put right.

    Returns:
        the index, and the content of each table by file name.
    """
    totals = Totals(described["simulated"])

    def counted(rows: Iterable[Recording]) -> Iterator[Recording]:
        for row in rows:
            totals.add(row)
            yield row

    def counted_rejections() -> Iterator[Rejection]:
        for rejection in rejected:
            totals.add_rejection(rejection)
            yield rejection

    contents = {
        "recordings": (RECORDINGS_NAME, encode_table(counted(recordings)).to_pybytes()),
        "rejected": (REJECTED_NAME, _lines(counted_rejections())),
        "repairs": (REPAIRS_NAME, _lines(repairs)),
    }
    tables = {table: _hashed_name(name, content) for table, (name, content) in contents.items()}
    index = {
        "schema_version": SCHEMA_VERSION,
        "index_hash": index_hash(described["shards"]),
        **{name: described[name] for name in ("config", "software", "fingerprint", "shards")},
        "tables": tables,
        "totals": totals.result(),
        "reasons": dict(sorted(totals.reasons.items())),
    }
    return index, {tables[table]: content for table, (_, content) in contents.items()}


def write_index(path: Location, index: dict[str, Any], tables: dict[str, bytes]) -> None:
    """Write the tables and then ``index.json`` into ``path``; a corpus without the latter is unfinished."""
    for name, content in tables.items():
        write_atomic(path / name, content)
    write_atomic(path / INDEX_NAME, (json.dumps(index, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def _hashed_name(name: str, content: bytes) -> str:
    stem, dot, extension = name.partition(".")
    return f"{stem}-{hashlib.sha256(content).hexdigest()[:12]}{dot}{extension}"


def _lines(entries: Iterable[Rejection | Repair]) -> bytes:
    return b"".join(json.dumps(vars(entry), ensure_ascii=False).encode() + b"\n" for entry in entries)


def read_rejected(path: Location) -> Iterator[Rejection]:
    """The recordings that were found and not stored, one by one; raise ``ValueError`` where the table is damaged."""
    return (Rejection(**row) for row in _read_lines(path, "rejected"))


def read_repairs(path: Location) -> Iterator[Repair]:
    """What was put right, one by one; raise ``ValueError`` where the table is damaged."""
    return (Repair(**row) for row in _read_lines(path, "repairs"))


def _read_lines(path: Location, table: str) -> Iterator[dict[str, str]]:
    file = path / read_index(path)["tables"][table]
    try:
        with file.open("rb") as lines:
            yield from map(json.loads, lines)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot read the table ({error})") from None


def read_index(path: Location) -> dict[str, Any]:
    """Read ``index.json`` of the corpus in ``path``.

    Raises:
        ValueError: no such file, not JSON, or written under another schema version.
    """
    file = path / INDEX_NAME
    try:
        index = json.loads(file.read_bytes())
    except OSError as error:
        raise ValueError(
            f"{file}: cannot read the index of the corpus ({error.strerror}); expected a finished corpus"
        ) from None
    except ValueError as error:
        raise ValueError(f"{file}: not a JSON file ({error})") from None
    found = index.get("schema_version") if isinstance(index, dict) else None
    if found != SCHEMA_VERSION:
        raise ValueError(
            f"{file}: corpus has schema version {found!r}, this code reads version {SCHEMA_VERSION}; build it again"
        )
    missing = {"index_hash", "config", "shards", "tables", "totals", "reasons"} - set(index)
    if missing:
        raise ValueError(f"{file}: expected the keys {sorted(missing)}, found only {sorted(index)}")
    return index


def block_bounds(n_samples: int, block_samples: int) -> np.ndarray:
    """First time sample of each CRC block and the end, int64 ``(blocks + 1,)``."""
    return np.append(np.arange(0, n_samples, block_samples, dtype=np.int64), n_samples)
