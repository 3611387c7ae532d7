"""The files that describe a corpus: ``index.json`` and the tables that it names.

Both are functions of the configuration and the inputs alone: no time, no host, no path of the machine is in them.
"""

import hashlib
import json
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mcsp.data_sharding.store.files import Location, publish, write_atomic
from mcsp.data_sharding.store.foreign import require_sound_index
from mcsp.data_sharding.store.table import RECORDINGS_NAME, write_table
from mcsp.outside import bounded_lines, parse_json, read_bounded, sha256_file
from mcsp.schema import MODALITIES, SCHEMA_VERSION, SPLITS, Recording, text_key

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


class Totals:
    """Counts and hours per site, split and modality, gathered row by row.

    Of each recording 16 bytes stay in memory, of each sample none.
    """

    def __init__(self, simulated: dict[str, bool]) -> None:
        """``simulated`` names every site, also those that gave nothing."""
        self._simulated = simulated
        self._rejected: Counter[str | None] = Counter()  # by site; None: all
        # site, split, modality -> seconds and subject of each recording
        self._seconds: defaultdict[tuple[str, str, str], array[float]] = defaultdict(lambda: array("d"))
        self._subjects: defaultdict[tuple[str, str, str], array[int]] = defaultdict(lambda: array("Q"))
        self._samples: Counter[tuple[str, str, frozenset[str]]] = Counter()
        self._key, self._modalities, self._place = "", frozenset[str](), ("", "")
        self.reasons: Counter[str] = Counter()

    def add(self, r: Recording) -> None:
        """Count a stored recording; those of a sample come one after the other."""
        cell = (r.site, r.split, r.modality)
        self._seconds[cell].append(r.seconds)
        self._subjects[cell].append(text_key(f"{r.site}/{r.subject}"))
        if r.key != self._key:
            self._close_sample()
            self._key, self._modalities, self._place = r.key, frozenset(), (r.site, r.split)
        self._modalities |= {r.modality}

    def _close_sample(self) -> None:
        if self._modalities:
            self._samples[(*self._place, self._modalities)] += 1
        self._key, self._modalities = "", frozenset()

    def add_rejection(self, rejection: Rejection) -> None:
        """Count a recording that was found and not stored."""
        self._rejected[None] += 1
        self._rejected[rejection.site] += 1
        self.reasons[rejection.reason] += 1

    def result(self) -> dict[str, Any]:
        """The content of ``totals`` of the index."""
        self._close_sample()
        return {
            "all": self._found(None),
            "sites": {
                site: {"simulated": simulated, **self._found(site)}
                for site, simulated in sorted(self._simulated.items())
            },
            "splits": {split: self._count(split=split) for split in SPLITS},
            "modalities": {modality: self._count(modality=modality) for modality in MODALITIES},
        }

    def _found(self, site: str | None) -> dict[str, Any]:
        counts, rejected = self._count(site), self._rejected[site]
        return {"found": counts["recordings"] + rejected, "rejected": rejected, **counts}

    def _count(self, site: str | None = None, split: str | None = None, modality: str | None = None) -> dict[str, Any]:
        def wanted(of_site: str, of_split: str, of_modalities: Collection[str]) -> bool:
            inside = modality is None or modality in of_modalities
            return inside and site in (None, of_site) and split in (None, of_split)

        cells = [(s, p, m) for s, p, m in self._seconds if wanted(s, p, [m])]
        subjects = [np.frombuffer(self._subjects[cell], np.uint64) for cell in cells]
        return {
            "recordings": sum(len(self._seconds[cell]) for cell in cells),
            "samples": sum(n for place, n in self._samples.items() if wanted(*place)),
            "subjects": len(np.unique(np.concatenate(subjects))) if subjects else 0,
            # math.fsum does not depend on the order of the rows.
            "hours": round(math.fsum(chain.from_iterable(self._seconds[cell] for cell in cells)) / 3600, 6),
        }


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
    totals = Totals(described["simulated"])

    def counted(rows: Iterable[Recording]) -> Iterator[Recording]:
        for row in rows:
            totals.add(row)
            yield row

    def counted_rejections() -> Iterator[Rejection]:
        for rejection in rejected:
            totals.add_rejection(rejection)
            yield rejection

    files = {name: scratch / name for name in (RECORDINGS_NAME, REJECTED_NAME, REPAIRS_NAME)}
    write_table(files[RECORDINGS_NAME], counted(recordings))
    _write_lines(files[REJECTED_NAME], counted_rejections())
    _write_lines(files[REPAIRS_NAME], repairs)
    tables = {name.partition(".")[0]: f"{f.stem}-{sha256_file(f)[:12]}{f.suffix}" for name, f in files.items()}
    index = {
        "schema_version": SCHEMA_VERSION,
        "index_hash": index_hash(described["shards"]),
        **{
            name: described[name] for name in ("config", "software", "fingerprint", "subject_key_fingerprint", "shards")
        },
        "tables": tables,
        "totals": totals.result(),
        "reasons": dict(sorted(totals.reasons.items())),
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
    try:
        index = parse_json(read_bounded(file))
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
    require_sound_index(index, str(file))
    return index
