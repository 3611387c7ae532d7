"""The accounts of a build: nothing is lost and not too much is bad, or it is not sealed."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from mcsp.config import CorpusConfig
from mcsp.data_sharding.index import Rejection, Repair
from mcsp.data_sharding.layout import Plan
from mcsp.data_sharding.plan import keyed_hash, public_config, software_versions, subject_key
from mcsp.data_sharding.receipts import BUILD_NAME, headers, read_rows
from mcsp.data_sharding.seal import (
    PRIVATE_NAME,
    ScanShards,
    people,
    publish_rejections,
    publish_repair,
    scan_shards_here,
    seal_corpus,
)
from mcsp.data_sharding.storage import Location


class TooManyQuarantinedError(ValueError):
    """More recordings are bad than ``max_quarantined`` allows; nothing was sealed."""


def key_fingerprint(key: bytes) -> str:
    """SHA-256 of a keyed hash: says whether two corpora were built under one subject key, and nothing of the key."""
    return hashlib.sha256(keyed_hash(key, "fingerprint").encode()).hexdigest()


def settle(
    plan: Plan, config: CorpusConfig, out: Location, fingerprint: str, scan_shards: ScanShards | None = None
) -> dict[str, Any]:
    """Check that nothing is lost and not too much is bad, then seal the corpus; the content of ``index.json``.

    Receipts are read one at a time; of all of them only the descriptions of the shards stay in memory. ``scan_shards``
    is that of :func:`mcsp.data_sharding.seal.seal_corpus`; None: here, one shard after the other.

    Raises:
        TooManyQuarantinedError: with the table of reasons; no index was written.
        ValueError: a recording is in no receipt, which is a mistake of ours.
    """
    shards: list[dict[str, Any]] = []
    accounted: Counter[str] = Counter()
    reasons: Counter[tuple[str, str]] = Counter()
    for _, header in headers(out, plan):
        for site, (stored, bad, _) in header.sites.items():
            accounted[site] += int(stored + bad)
        reasons.update((row["site"], row["reason"]) for row in header.rejected)
        if header.shard is not None:
            shards.append(header.shard)
    lost = [f"{site}: found {n}, read + quarantined {accounted[site]}" for site, n in plan.found.items()
            if accounted[site] != n]  # fmt: skip
    if lost:
        raise ValueError(f"recordings are lost ({'; '.join(lost)}); this is a mistake of the builder")
    key, names = subject_key(config), people(plan.sites)

    def rejections() -> Iterator[Rejection]:
        rows = (Rejection(**row) for _, header in headers(out, plan) for row in header.rejected)
        return publish_rejections(out / BUILD_NAME / PRIVATE_NAME, rows, key, names)

    if sum(reasons.values()) > config.max_quarantined * sum(plan.found.values()):
        for _ in rejections():  # those who hold the files need the list most where too much is bad
            pass
        raise _too_many(reasons, plan.found, config.max_quarantined, out / BUILD_NAME / PRIVATE_NAME)
    described = {
        "config": public_config(config),
        "software": software_versions(),
        "fingerprint": fingerprint,
        "subject_key_fingerprint": key_fingerprint(key),
        "simulated": {site.name: site.simulated for site in plan.sites},
        "shards": shards,
    }
    repairs = (publish_repair(Repair(**row), key, names) for _, header in headers(out, plan) for row in header.repairs)
    scan_shards = scan_shards or partial(scan_shards_here, out)
    return seal_corpus(out, described, read_rows(out, plan), rejections(), repairs, plan.sites, names, scan_shards)


def _too_many(
    reasons: Counter[tuple[str, str]], found: dict[str, int], max_quarantined: float, private: Location
) -> TooManyQuarantinedError:
    bad, total = sum(reasons.values()), sum(found.values())
    width = max(len(f"{site}  {reason}") for site, reason in reasons)
    table = [
        f"  {f'{site}  {reason}'.ljust(width)}  {n} of {found[site]}" for (site, reason), n in sorted(reasons.items())
    ]
    return TooManyQuarantinedError(
        f"{bad} of {total} recordings are bad ({100 * bad / total:.1f} %), max_quarantined allows "
        f"{100 * max_quarantined:g} %; nothing was sealed, {private} names the files\n" + "\n".join(table)
    )
