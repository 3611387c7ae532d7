"""State of a build on disk: its configuration, finished shards, duplicate recordings; what a worker keeps or builds.

Nothing of it is part of the corpus, and it is for the builder alone: receipts and the private list hold original names
beside their hashes. The receipt of a shard is a file of JSON lines: a header without rows, then one line per stored
recording, so that the driver of a large build never holds more than one receipt. In place of a list that is the one of
an earlier recording of the shard, as the channels of a site, stands the number of that recording.
"""

import fcntl
import json
import os
import socket
import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.ref import RecordingRef
from mcsp.data_sharding.build.plan import Plan, PlannedShard
from mcsp.data_sharding.build.progress import SiteCounts
from mcsp.data_sharding.build.pseudonyms import without_key_in_environment
from mcsp.data_sharding.build.shards import Receipt, build_shard, reading_limits
from mcsp.data_sharding.clean.read import ReadingProcess
from mcsp.data_sharding.store.files import Location, is_local, location, names, private_folder, size, write_atomic
from mcsp.data_sharding.store.index import BUILD_NAME, SHARDS_NAME
from mcsp.data_sharding.store.table import REPEATED_LISTS
from mcsp.outside import sha256_file
from mcsp.schema import Recording, crc_name

_RECIPE_NAME, _SEALED_NAME, _LOCK_NAME, _RECEIPTS_NAME = "recipe.json", "sealed.json", "lock", "receipts"
# A network disk may show another machine's new file only after a while.
_APPEAR_SECONDS = 60
# A receipt of an object store takes some 20 ms, however small it is.
_THREADS, _READ_AHEAD = 16, 64
Found = TypeVar("Found")


def private_place(config: CorpusConfig) -> Location:
    """Where receipts and the private list go: ``private_dir``, or ``.build`` of a folder on a disk.

    Raises:
        ValueError: an object store without a ``private_dir``, or one that is a part of ``out_dir``.
    """
    out = location(config.out_dir)
    if config.private_dir is None:
        if not is_local(out) and not _is_memory(out):
            raise ValueError(
                f"{out}: everybody who can read this corpus could read the original names that the build keeps beside "
                "their hashes; set private_dir to a place of yours that all workers see"
            )
        return out / BUILD_NAME
    private = location(config.private_dir)
    here, there = (str(place.resolve() if isinstance(place, Path) else place).rstrip("/") for place in (out, private))
    if f"{there}/".startswith(f"{here}/"):
        raise ValueError(f"private_dir: found {private}, a part of out_dir={out}, expected a place outside of it")
    return private


def _is_memory(place: Location) -> bool:
    return str(place).startswith("memory://")


@contextmanager
def claimed(out: Location, private: Location, plan: Plan) -> Iterator[None]:
    """Hold ``out`` and ``private`` for a build of this recipe; raise ``ValueError`` where one holds anything else or
    is in use."""
    if _is_memory(out):
        raise ValueError(f"{out}: the memory of one process; the workers of a build need a place that all of them see")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: expected a folder to write the corpus into, found a file")
    build = out / BUILD_NAME
    for place, own in [(out, build), *([] if private == build else [(private, private)])]:
        if names(place):
            _require_same_recipe(place, own, plan)
            continue
        try:
            (out / SHARDS_NAME).mkdir(parents=True, exist_ok=True)
            private_folder(own)
            write_atomic(own / _RECIPE_NAME, json.dumps({"recipe": plan.recipe}).encode(), private=True)
        except OSError as error:
            raise ValueError(f"{place}: cannot write the corpus there ({error.strerror or error})") from None
    for folder in (build, private, private / _RECEIPTS_NAME):
        private_folder(folder)
    with _locked(out):
        yield


def _require_same_recipe(place: Location, own: Location, plan: Plan) -> None:
    try:
        found = json.loads((own / _RECIPE_NAME).read_bytes())["recipe"]
    except (OSError, ValueError, LookupError):
        raise ValueError(f"{place}: not empty and no build of a corpus; choose another folder") from None
    if found != plan.recipe:
        raise ValueError(
            f"{place}: holds a corpus of another configuration, subject key, code or package version; "
            "choose another folder or delete it"
        )


@contextmanager
def _locked(out: Location) -> Iterator[None]:
    """One driver at a time where the file system has locks; the kernel frees the lock of a driver that died."""
    if not is_local(out):
        yield
        return
    with open(str(out / BUILD_NAME / _LOCK_NAME), "ab", opener=partial(os.open, mode=0o600)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{out}: another build of this corpus is running") from None
        yield


def write_receipt(private: Location, name: str, receipt: Receipt) -> None:
    """Write the receipt of the shard ``name``."""
    lines, first = [asdict(replace(receipt, rows=[]))], dict[tuple[str, int], int]()
    for number, row in enumerate(receipt.rows):
        same = {column: first.setdefault((column, id(row[column])), number) for column in REPEATED_LISTS}
        lines.append({**row, **{column: before for column, before in same.items() if before < number}})
    write_atomic(_file(private, name), b"".join(json.dumps(line).encode() + b"\n" for line in lines), private=True)


def read_header(private: Location, name: str, wait: bool = False) -> Receipt | None:
    """A shard's receipt without its rows; None where there is none, after a while where ``wait`` says it must come."""
    deadline = time.monotonic() + (_APPEAR_SECONDS if wait else 0)
    while True:
        try:
            with _file(private, name).open("rb") as lines:
                return Receipt(**json.loads(next(iter(lines))))
        except (FileNotFoundError, StopIteration):
            if time.monotonic() >= deadline:
                return None
            time.sleep(1)


def is_current(
    receipt: Receipt, out: Location, digest: str, excluded: dict[str, str], limits: list[float], deep: bool
) -> bool:
    """Whether a receipt is of this planned shard and its files are there, by size, or where ``deep`` by SHA-256."""
    if (receipt.digest, receipt.excluded) != (digest, excluded) or receipt.limits not in (None, limits):
        return False
    if receipt.shard is None:
        return True
    tar = out / SHARDS_NAME / receipt.shard["name"]
    if size(tar) != receipt.shard["bytes"] or size(tar.with_name(crc_name(tar.name))) is None:
        return False
    return not deep or sha256_file(tar) == receipt.shard["sha256"]


def headers(private: Location, plan: Plan) -> Iterator[tuple[str, Receipt]]:
    """Name and receipt without rows of every shard of a plan, in its order.

    Raises:
        ValueError: one is missing, although all shards were built.
    """

    def read(name: str) -> tuple[str, Receipt]:
        header = read_header(private, name, wait=True)
        if header is None:
            raise ValueError(f"{_file(private, name)}: the receipt of a finished shard is missing; run the build again")
        return name, header

    return _each(private, plan, read)


def read_rows(private: Location, plan: Plan) -> Iterator[Recording]:
    """The stored recordings of every shard, in the order of the plan and of its tar."""

    def read(name: str) -> list[bytes]:
        return _file(private, name).read_bytes().splitlines()[1:]

    for lines in _each(private, plan, read):
        rows: list[dict[str, Any]] = []
        for line in lines:
            row = json.loads(line)
            rows.append(row)
            row |= {column: rows[row[column]][column] for column in REPEATED_LISTS if isinstance(row[column], int)}
            yield Recording(**row)


def _each(private: Location, plan: Plan, read: Callable[[str], Found]) -> Iterator[Found]:
    """What ``read`` makes of each shard's name; of an object store several are read at a time."""
    if is_local(private):
        yield from map(read, plan.names)
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(plan.names), _READ_AHEAD):
            yield from pool.map(read, plan.names[start : start + _READ_AHEAD])


def duplicates(private: Location, plan: Plan) -> dict[str, dict[str, str]]:
    """Recordings whose content is stored under an earlier name: shard -> {<site>/<file> -> a line that says where}.

    The first by site and file is kept. Of each recording only the first eight bytes of its hash stay in memory, and
    names only of those that occur twice.
    """
    seen: array[int] = array("Q")
    for _, header in headers(private, plan):
        seen.extend(int(content[:16], 16) for _, _, content in header.contents)
    values, counts = np.unique(np.frombuffer(seen, np.uint64), return_counts=True)
    twice = set(values[counts > 1].tolist())
    places: dict[str, list[tuple[str, str, str]]] = {}
    for name, header in headers(private, plan) if twice else ():
        for site, file, content in header.contents:
            if int(content[:16], 16) in twice:
                places.setdefault(content, []).append((site, file, name))
    excluded: dict[str, dict[str, str]] = {}
    for found in places.values():
        first, *others = sorted(found)
        for site, file, name in others:
            excluded.setdefault(name, {})[f"{site}/{file}"] = f"same content as {first[1]} of site {first[0]}"
    return excluded


def sealed_plan(out: Location) -> str | None:
    """Digest of the plan whose index was written last; None before."""
    try:
        return json.loads((out / BUILD_NAME / _SEALED_NAME).read_bytes())["plan"]
    except (OSError, ValueError, LookupError):
        return None


def write_sealed(out: Location, plan_digest: str) -> None:
    """Remember that the index of this plan is written."""
    write_atomic(out / BUILD_NAME / _SEALED_NAME, json.dumps({"plan": plan_digest}).encode(), private=True)


def remove_stale(out: Location, private: Location, index: dict[str, Any], plan: Plan) -> None:
    """Remove shards, tables and receipts that the index just written does not name, and what killed workers left."""
    shards = {file for shard in index["shards"] for file in (shard["name"], crc_name(shard["name"]))}
    tables = set(index["tables"].values())
    prefixes = tuple(table.split("-")[0] + "-" for table in tables)
    stale = [out / SHARDS_NAME / name for name in names(out / SHARDS_NAME) if name not in shards]
    stale += [out / name for name in names(out) if name.startswith(prefixes) and name not in tables]
    receipts, planned = private / _RECEIPTS_NAME, {f"{name}.jsonl" for name in plan.names}
    stale += [receipts / name for name in names(receipts) if name not in planned]
    for file in stale:
        file.unlink()


def _file(private: Location, name: str) -> Location:
    return private / _RECEIPTS_NAME / f"{name}.jsonl"


_TELL_SECONDS = 1.0

# The process that reads for this worker; it serves one task after the other.
_reading: list[ReadingProcess] = []
_fingerprints: dict[int, str] = {}  # by the reading process's id


def fingerprint_here(config: CorpusConfig) -> str:
    """What this machine makes of the fixed recording, 64 hexadecimal digits."""
    process = _reading_process(config)
    if id(process) not in _fingerprints:
        _fingerprints[id(process)] = process.fingerprint()
    return _fingerprints[id(process)]


def _reading_process(config: CorpusConfig) -> ReadingProcess:
    if not _reading or _reading[0].config != config:
        for old in _reading:
            old.close()
        _reading[:] = [ReadingProcess(config)]
        _fingerprints.clear()
    return _reading[0]


@without_key_in_environment()  # a node may have been started with it, for another build's driver
def build_or_keep(
    shard: PlannedShard,
    excluded: dict[str, str] | None,
    config: CorpusConfig,
    fingerprint: str,
    deep: bool,
    tell: Callable[[SiteCounts], None] | None = None,
) -> bool:
    """Keep a shard that a receipt proves to be the same (True), build any other.

    Args:
        shard: what to build.
        excluded: recordings that are stored elsewhere; None: those of the receipt, if there is one.
        config: how to build.
        fingerprint: what :func:`fingerprint_here` must give.
        deep: compare the SHA-256 of a shard that is there, not its size alone.
        tell: takes the counts of the shard so far, about once a second.

    Raises:
        ValueError: this machine computes other values than the first worker of the build.
    """
    found = fingerprint_here(config)
    if found != fingerprint:
        raise ValueError(
            f"node {socket.gethostname()} computes other values than the first worker of this build: numeric "
            f"fingerprint {found[:16]}, expected {fingerprint[:16]}; take it out of the cluster"
        )
    out, private = location(config.out_dir), private_place(config)
    header = read_header(private, shard.name)
    if header is not None:
        wanted = header.excluded if excluded is None else excluded
        if is_current(header, out, shard.digest, wanted, reading_limits(config), deep):
            return True
    receipt = build_shard(shard, config, _reading_process(config), excluded, _counter(tell))
    if header is not None and excluded:  # not read again, and still the same content
        carried = [entry for entry in header.contents if f"{entry[0]}/{entry[1]}" in excluded]
        receipt = replace(receipt, contents=[*receipt.contents, *carried])
    write_receipt(private, shard.name, receipt)
    return False


def _counter(tell: Callable[[SiteCounts], None] | None) -> Callable[[RecordingRef, float | None], None]:
    """Counts recordings as they are read and passes the counts on, but not too often."""
    counts: SiteCounts = {}
    last_report = time.monotonic()

    def count(ref: RecordingRef, seconds: float | None) -> None:
        nonlocal last_report
        of_site = counts.setdefault(ref.site.name, [0, 0, 0.0])
        of_site[0 if seconds is not None else 1] += 1
        of_site[2] += (seconds or 0.0) / 3600
        if tell is not None and time.monotonic() - last_report >= _TELL_SECONDS:
            last_report = time.monotonic()
            tell(counts)

    return count
