"""A worker of a build: check its numerics, then keep or build a shard."""

import socket
import time
from collections.abc import Callable
from dataclasses import replace

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.ref import RecordingRef
from mcsp.data_sharding.build.plan import PlannedShard
from mcsp.data_sharding.build.progress import SiteCounts
from mcsp.data_sharding.build.pseudonyms import without_key_in_environment
from mcsp.data_sharding.build.receipts import is_current, private_place, read_header, write_receipt
from mcsp.data_sharding.build.shards import build_shard, reading_limits
from mcsp.data_sharding.clean.read import ReadingProcess
from mcsp.data_sharding.store.files import location

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
