"""The accounts of a build: nothing is lost and not too much is bad, or it is not sealed."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from mcsp.config import CorpusConfig
from mcsp.data_sharding.index import Rejection, Repair
from mcsp.data_sharding.layout import Plan
from mcsp.data_sharding.plan import public_config, software_versions, subject_key
from mcsp.data_sharding.receipts import BUILD_NAME, read_header, read_rows
from mcsp.data_sharding.seal import PRIVATE_NAME, people, publish_rejections, publish_repair, seal_corpus
from mcsp.data_sharding.shards import Receipt
from mcsp.data_sharding.storage import Location


class TooManyQuarantinedError(ValueError):
    """More recordings are bad than ``max_quarantined`` allows; nothing was sealed."""


def settle(plan: Plan, config: CorpusConfig, out: Location, fingerprint: str) -> dict[str, Any]:
    """Check that nothing is lost and not too much is bad, then seal the corpus; the content of ``index.json``.

    Receipts are read one at a time; of all of them only the descriptions of the shards stay in memory.

    Raises:
        TooManyQuarantinedError: with the table of reasons; nothing was written.
        ValueError: a recording is in no receipt, which is a mistake of ours.
    """
    shards: list[dict[str, Any]] = []
    accounted: Counter[str] = Counter()
    reasons: Counter[tuple[str, str]] = Counter()
    for name in plan.names:
        header = read_header(out, name, wait=True)
        assert header is not None, name
        for site, (stored, bad, _) in header.sites.items():
            accounted[site] += int(stored + bad)
        reasons.update((row["site"], row["reason"]) for row in header.rejected)
        if header.shard is not None:
            shards.append(header.shard)
    lost = [f"{site}: found {n}, read + quarantined {accounted[site]}" for site, n in plan.found.items()
            if accounted[site] != n]  # fmt: skip
    if lost:
        raise ValueError(f"recordings are lost ({'; '.join(lost)}); this is a mistake of the builder")
    _check_quarantine(reasons, plan.found, config.max_quarantined)

    def headers() -> Iterator[Receipt]:
        return filter(None, (read_header(out, name) for name in plan.names))

    described = {
        "config": public_config(config),
        "software": software_versions(),
        "fingerprint": fingerprint,
        "simulated": {site.name: site.simulated for site in plan.sites},
        "shards": shards,
    }
    key, names = subject_key(config), people(plan.sites)
    rejected = [Rejection(**row) for header in headers() for row in header.rejected]
    rejected = publish_rejections(out / BUILD_NAME / PRIVATE_NAME, rejected, key, names)
    repairs = [publish_repair(Repair(**row), key, names) for header in headers() for row in header.repairs]
    repairs.sort(key=lambda r: (r.site, r.file))
    recordings = (recording for name in plan.names for recording in read_rows(out, name))
    return seal_corpus(out, described, recordings, rejected, repairs, plan.sites, names)


def _check_quarantine(reasons: Counter[tuple[str, str]], found: dict[str, int], max_quarantined: float) -> None:
    bad, total = sum(reasons.values()), sum(found.values())
    if bad <= max_quarantined * total:
        return
    width = max(len(f"{site}  {reason}") for site, reason in reasons)
    table = [
        f"  {f'{site}  {reason}'.ljust(width)}  {n} of {found[site]}" for (site, reason), n in sorted(reasons.items())
    ]
    raise TooManyQuarantinedError(
        f"{bad} of {total} recordings are bad ({100 * bad / total:.1f} %), max_quarantined allows "
        f"{100 * max_quarantined:g} %; nothing was sealed\n" + "\n".join(table)
    )
