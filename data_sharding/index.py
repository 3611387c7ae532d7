"""The files that describe a corpus: ``index.json`` and ``recordings.arrow``.

Both are functions of the configuration and the inputs alone: no time, no host, no path of the machine is in them.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mcsp.data_sharding.storage import Location, write_atomic
from mcsp.data_sharding.table import RECORDINGS_NAME, encode_table
from mcsp.schema import MODALITIES, SCHEMA_VERSION, SPLITS, Recording

INDEX_NAME = "index.json"
SHARDS_NAME = "shards"


@dataclass(frozen=True)
class Rejection:
    """A recording that was found but not stored."""

    site: str
    file: str  # relative to the site's folder
    modality: str
    reason: str  # a code of docs/corpus-format.md
    detail: str  # one line


def index_hash(shards: Iterable[dict[str, Any]]) -> str:
    """What a checkpoint remembers of a corpus: SHA-256 of the schema version and the sorted shard hashes."""
    text = f"{SCHEMA_VERSION}\n" + "\n".join(sorted(shard["sha256"] for shard in shards))
    return hashlib.sha256(text.encode()).hexdigest()


def make_index(
    config: dict[str, Any],
    versions: dict[str, str],
    simulated: dict[str, bool],
    shards: Sequence[dict[str, Any]],
    recordings: Sequence[Recording],
    rejected: Sequence[Rejection],
) -> dict[str, Any]:
    """Assemble the content of ``index.json``; ``simulated`` names every site, also those that gave nothing."""
    return {
        "schema_version": SCHEMA_VERSION,
        "index_hash": index_hash(shards),
        "config": config,
        "software": versions,
        "shards": list(shards),
        "totals": totals(simulated, recordings, rejected),
        "reasons": dict(sorted(Counter(r.reason for r in rejected).items())),
        "rejected": [vars(r) for r in rejected],
    }


def totals(
    simulated: dict[str, bool], recordings: Sequence[Recording], rejected: Sequence[Rejection]
) -> dict[str, Any]:
    """Counts and hours per site, split and modality."""
    sites: dict[str, Any] = {}
    for site, is_simulated in sorted(simulated.items()):
        stored = [r for r in recordings if r.site == site]
        n_rejected = sum(r.site == site for r in rejected)
        sites[site] = {
            "simulated": is_simulated,
            "found": len(stored) + n_rejected,
            "rejected": n_rejected,
            **_count(stored),
        }
    return {
        "all": {"found": len(recordings) + len(rejected), "rejected": len(rejected), **_count(recordings)},
        "sites": sites,
        "splits": {split: _count([r for r in recordings if r.split == split]) for split in SPLITS},
        "modalities": {m: _count([r for r in recordings if r.modality == m]) for m in MODALITIES},
    }


def _count(recordings: Sequence[Recording]) -> dict[str, Any]:
    return {
        "recordings": len(recordings),
        "samples": len({r.key for r in recordings}),
        "subjects": len({(r.site, r.subject) for r in recordings}),
        "hours": round(sum(r.seconds for r in recordings) / 3600, 6),
    }


def write_index(path: Path, index: dict[str, Any], recordings: Sequence[Recording]) -> None:
    """Write ``recordings.arrow``, then ``index.json`` into ``path``; a corpus without the latter is unfinished."""
    write_atomic(path / RECORDINGS_NAME, encode_table(recordings).to_pybytes())
    write_atomic(path / INDEX_NAME, (json.dumps(index, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


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
    missing = {"index_hash", "config", "shards", "totals", "rejected"} - set(index)
    if missing:
        raise ValueError(f"{file}: expected the keys {sorted(missing)}, found only {sorted(index)}")
    return index


def block_bounds(n_samples: int, block_samples: int) -> np.ndarray:
    """First time sample of each CRC block and the end, int64 ``(blocks + 1,)``."""
    return np.append(np.arange(0, n_samples, block_samples, dtype=np.int64), n_samples)
