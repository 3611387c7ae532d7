"""End of a build: check counts, rejected share and personal data, then write the index."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.find import read_participants
from mcsp.data_sharding.bids.reasons import measurements
from mcsp.data_sharding.bids.ref import Site, entities_of
from mcsp.data_sharding.bids.tables import DESCRIPTION_NAME, dataset_description
from mcsp.data_sharding.build.plan import Plan, public_config, software_versions
from mcsp.data_sharding.build.privacy import (
    find_identifiers_in_index,
    find_identifiers_in_lists,
    find_identifiers_in_table,
    name_words,
)
from mcsp.data_sharding.build.pseudonyms import key_fingerprint, subject_hash
from mcsp.data_sharding.build.receipts import headers, private_place, read_rows
from mcsp.data_sharding.store.files import Location, new_file, scratch_folder, write_atomic
from mcsp.data_sharding.store.index import BUILD_NAME, Rejection, Repair, make_index, read_entries, write_index
from mcsp.data_sharding.store.table import Recordings
from mcsp.schema import KEY_FINGERPRINT, Recording
from mcsp.wording import listed

# For the people who hold the files; never part of the corpus.
PRIVATE_NAME = "rejected.tsv"

_NAME_COLUMN = re.compile(r"(^|_)name$|^(sur|fore)name|^(first|last|given|family)_?name", re.IGNORECASE)
# What of a repair is published, of whose line the rest may name files, channels or columns.
_REPAIRS = (
    "not UTF-8, read as Latin-1",
    "events begin after the end",
    "places where no head is are not used",
    "EEG channels without a position are left out",
    "rows without a channel in the file are ignored",
    "is not used: there is no coordsystem.json of its space",
    "is not used",
    "that of channels.tsv taken",
)
_SHOWN = 5
# Takes names of shards and of people; gives the findings in each shard.
FindInShards = Callable[[Sequence[str], frozenset[str]], Iterable[list[str]]]


def seal_corpus(
    path: Location,
    described: dict[str, Any],
    recordings: Iterable[Recording],
    rejected: Iterable[Rejection],
    repairs: Iterable[Repair],
    sites: Sequence[Site],
    names: frozenset[str],
    find_in_shards: FindInShards,
) -> dict[str, Any]:
    """Scan everything that would be published, then write the description, the index and the report into ``path``.

    Args:
        path: the corpus's folder, with its shards.
        described: as :func:`mcsp.data_sharding.store.index.make_index` takes it.
        recordings: rows of the table.
        rejected: as :func:`publish` gives them.
        repairs: as :func:`publish_repair` gives them.
        sites: whose descriptions become SourceDatasets.
        names: of people, from :func:`people`.
        find_in_shards: gives the findings in each of the shards.

    Returns:
        the content of ``index.json``.

    Raises:
        ValueError: something may identify a person; nothing was written.
    """
    with scratch_folder(path / BUILD_NAME) as scratch:
        index, tables = make_index(described, recordings, rejected, repairs, scratch)
        description = dataset_description(index["config"], index["software"], {site.name: site.root for site in sites})
        files = {table: tables[name] for table, name in index["tables"].items()}
        findings = chain(
            find_identifiers_in_index(index, description, names),
            find_identifiers_in_table(Recordings.open(files["recordings"]), names),
            find_identifiers_in_lists(read_entries(files["rejected"], Rejection), names),
            find_identifiers_in_lists(read_entries(files["repairs"], Repair), names),
            chain.from_iterable(find_in_shards([shard["name"] for shard in index["shards"]], names)),
        )
        if found := list(findings):
            raise ValueError(f"{path}: not sealed, personal data is suspected: {listed(found, _SHOWN, '; ')}")
        text = json.dumps(description, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        write_atomic(path / DESCRIPTION_NAME, text.encode())
        write_index(path, index, tables)
    # What draws takes a second to import, which every worker would wait for.
    from mcsp.data_sharding.inspect.report import write_report

    write_report(path)
    return index


def people(sites: Sequence[Site]) -> frozenset[str]:
    """Words of the names in the participants.tsv of every site, to be looked for in the corpus.

    Of a site with a fault nothing is stored, and its table may be what cannot be read.
    """
    rows = [row for site in sites if site.fault is None for row in read_participants(site).rows]
    return name_words(value for row in rows for column, value in row.items() if _NAME_COLUMN.search(column))


def publish_rejections(private: Location, rejected: Iterable[Rejection], key: bytes) -> Iterator[Rejection]:
    """The rejections as :func:`publish` gives them, one by one.

    Where the last was taken, the file ``private`` has the original names beside the public ones.
    """
    with new_file(private, private=True) as temporary, open(temporary, "w", encoding="utf-8") as lines:
        lines.write("site\tfile\treason\toriginal_file\toriginal_detail\n")
        for r in rejected:
            public = publish(r, key)
            lines.write("\t".join((r.site, public.file, r.reason, r.file, " ".join(r.detail.split()))) + "\n")
            yield public


def publish_repair(repair: Repair, key: bytes) -> Repair:
    """A repair as it may be published: site, hashed subject, modality and what kind it is."""
    kind = next((kind for kind in _REPAIRS if kind in repair.repair), "put right")
    return replace(repair, file=_public_file(repair, key), repair=kind)


def publish(rejection: Rejection, key: bytes) -> Rejection:
    """A rejection as it may be published: site, hashed subject, modality, reason and measurements."""
    detail = measurements(rejection.reason, rejection.detail)
    return replace(rejection, file=_public_file(rejection, key), detail=detail)


def _public_file(entry: Rejection | Repair, key: bytes) -> str:
    return f"sub-{subject_hash(key, entry.site, entities_of(Path(entry.file))['subject'])}"


class TooManyQuarantinedError(ValueError):
    """More recordings are bad than ``max_quarantined`` allows; nothing was sealed."""


def settle(
    plan: Plan, config: CorpusConfig, out: Location, fingerprint: str, key: bytes, find_in_shards: FindInShards
) -> dict[str, Any]:
    """Check that nothing is lost and not too much is bad, then seal the corpus; the content of ``index.json``.

    Receipts are read one at a time; only the descriptions of the shards stay in memory.

    Raises:
        TooManyQuarantinedError: with the table of reasons; no index was written.
        ValueError: a recording is in no receipt, which is a mistake of ours.
    """
    private = private_place(config)
    shards: list[dict[str, Any]] = []
    accounted: Counter[str] = Counter()
    reasons: Counter[tuple[str, str]] = Counter()
    for _, header in headers(private, plan):
        for site, (stored, bad, _) in header.sites.items():
            accounted[site] += int(stored + bad)
        reasons.update((row["site"], row["reason"]) for row in header.rejected)
        if header.shard is not None:
            shards.append(header.shard)
    lost = [f"{site}: found {n}, read + quarantined {accounted[site]}" for site, n in plan.found.items()
            if accounted[site] != n]  # fmt: skip
    if lost:
        raise ValueError(f"recordings are lost ({'; '.join(lost)}); this is a mistake of the builder")
    names = people(plan.sites)

    def rejections() -> Iterator[Rejection]:
        rows = (Rejection(**row) for _, header in headers(private, plan) for row in header.rejected)
        return publish_rejections(private / PRIVATE_NAME, rows, key)

    if sum(reasons.values()) > config.max_quarantined * sum(plan.found.values()):
        for _ in rejections():  # those who hold the files need the list most where too much is bad
            pass
        raise _too_many(reasons, plan.found, config.max_quarantined, private / PRIVATE_NAME)
    described = {
        "config": public_config(config),
        "software": software_versions(),
        "fingerprint": fingerprint,
        KEY_FINGERPRINT: key_fingerprint(key),
        "simulated": {site.name: site.simulated for site in plan.sites},
        "shards": shards,
    }
    repairs = (publish_repair(Repair(**row), key) for _, header in headers(private, plan) for row in header.repairs)
    return seal_corpus(
        out, described, read_rows(private, plan), rejections(), repairs, plan.sites, names, find_in_shards
    )


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
