"""Assign samples to shards; the plan of a million recordings stays on disk."""

import bisect
import hashlib
import json
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.ref import RecordingRef, Site, inputs_of
from mcsp.schema import SPLITS, Split

# What of each sample stays in memory: 49 bytes.
_ENTRY = np.dtype([("split", "u1"), ("order", "u8"), ("offset", "u8"), ("digest", "V32")])


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


def sha256_json(values: Any) -> str:
    """SHA-256 of plain values, by their JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
