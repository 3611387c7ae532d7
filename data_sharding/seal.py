"""The last steps of a build: what was found of people is taken out or refused, then the index makes it a corpus."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context
from typing import Any

import numpy as np
from tqdm import tqdm

from mcsp.data_sharding.bids import Site, read_json
from mcsp.data_sharding.description import DESCRIPTION_NAME, dataset_description, encode_description
from mcsp.data_sharding.index import (
    INDEX_NAME,
    REJECTED_NAME,
    REPAIRS_NAME,
    SHARDS_NAME,
    Rejection,
    Repair,
    make_index,
    read_entries,
    read_rejected,
    read_repairs,
    write_index,
)
from mcsp.data_sharding.plan import read_participants, session_label, subject_hash
from mcsp.data_sharding.privacy import name_words, redact, scan_participant, scan_shard, scan_texts, walk
from mcsp.data_sharding.reader import Corpus
from mcsp.data_sharding.receipts import BUILD_NAME
from mcsp.data_sharding.storage import Location, new_file, scratch_folder, write_atomic
from mcsp.data_sharding.table import RECORDINGS_NAME, Recordings
from mcsp.schema import Recording

# For the people who hold the files; never part of the corpus.
PRIVATE_NAME = "rejected.tsv"

_NAME_COLUMN = re.compile(r"(^|_)name$|^(sur|fore)name|^(first|last|given|family)_?name", re.IGNORECASE)
_LABEL = re.compile(r"(?<![A-Za-z0-9])(sub|ses)-([A-Za-z0-9]+)")
_SHOWN = 5
_ROWS_AT_ONCE, _REMEMBERED_TEXTS = 8192, 1 << 16
# Takes names of shards and of people; gives the findings in each shard.
ScanShards = Callable[[Sequence[str], frozenset[str]], Iterable[list[str]]]


def seal_corpus(
    path: Location,
    described: dict[str, Any],
    recordings: Iterable[Recording],
    rejected: Iterable[Rejection],
    repairs: Iterable[Repair],
    sites: Sequence[Site],
    names: frozenset[str],
    scan_shards: ScanShards,
) -> dict[str, Any]:
    """Scan everything that would be published, then write the description, the index and the report into ``path``.

    Args:
        path: the corpus's folder, with its shards.
        described: as :func:`mcsp.data_sharding.index.make_index` takes it.
        recordings: rows of the table.
        rejected: as :func:`publish` gives them.
        repairs: as :func:`publish_repair` gives them.
        sites: whose descriptions become SourceDatasets.
        names: of people, from :func:`people`.
        scan_shards: gives the findings in each of the shards.

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
            scan_index(index, description, names),
            scan_table(Recordings.open(files["recordings"]), names),
            scan_lists(read_entries(files["rejected"], Rejection), names),
            scan_lists(read_entries(files["repairs"], Repair), names),
            chain.from_iterable(scan_shards([shard["name"] for shard in index["shards"]], names)),
        )
        shown = list(islice(findings, _SHOWN))
        if shown:
            n_more = sum(1 for _ in findings)
            more = f" and {n_more} more" if n_more else ""
            raise ValueError(f"{path}: not sealed, personal data is suspected: {'; '.join(shown)}{more}")
        write_atomic(path / DESCRIPTION_NAME, encode_description(description))
        write_index(path, index, tables)
    # What draws takes a second to import, which every worker would wait for.
    from mcsp.data_sharding.report import write_report

    write_report(path)
    return index


def scan_shards_here(path: Location, shards: Sequence[str], names: frozenset[str]) -> Iterator[list[str]]:
    """Findings in each of some shards of the corpus in ``path``, one after the other."""
    return (scan_shard(path / SHARDS_NAME / shard, names) for shard in shards)


def people(sites: Sequence[Site]) -> frozenset[str]:
    """Words of the names in the participants.tsv of every site, to be looked for in the corpus."""
    rows = [row for site in sites for row in read_participants(site).values()]
    return name_words(value for row in rows for column, value in row.items() if _NAME_COLUMN.search(column))


def publish_rejections(
    private: Location, rejected: Iterable[Rejection], key: bytes, names: frozenset[str]
) -> Iterator[Rejection]:
    """The rejections as :func:`publish` gives them, one by one.

    Where the last was taken, the file ``private`` has the original names beside the public ones.
    """
    with new_file(private) as temporary, open(temporary, "w", encoding="utf-8") as lines:
        lines.write("site\tfile\treason\toriginal_file\toriginal_detail\n")
        for r in rejected:
            public = publish(r, key, names)
            lines.write("\t".join((r.site, public.file, r.reason, r.file, " ".join(r.detail.split()))) + "\n")
            yield public


def publish_repair(repair: Repair, key: bytes, names: frozenset[str]) -> Repair:
    """A repair as it may be published, as :func:`publish` does with rejections."""
    file, text = (redact(pseudonymise(t, repair.site, key), names) for t in (repair.file, repair.repair))
    return replace(repair, file=file, repair=text)


def publish(rejection: Rejection, key: bytes, names: frozenset[str]) -> Rejection:
    """A rejection as it may be published.

    Labels of subjects and sessions become those of the shards, and what else may identify a person its kind in
    brackets.
    """
    file, detail = (redact(pseudonymise(t, rejection.site, key), names) for t in (rejection.file, rejection.detail))
    return replace(rejection, file=file, detail=detail)


def pseudonymise(text: str, site: str, key: bytes) -> str:
    """A file name or message with the subject and session labels that the shards have."""

    def public(match: re.Match[str]) -> str:
        entity, label = match.groups()
        return f"{entity}-{subject_hash(key, site, label) if entity == 'sub' else session_label(key, label)}"

    return _LABEL.sub(public, text)


def scan_corpus(path: Location, names: frozenset[str] = frozenset(), workers: int = 1) -> list[str]:
    """Findings in all that a finished corpus publishes: index, rejections, description, table and every shard.

    Raises:
        ValueError: there is no finished corpus, or its description cannot be read.
    """
    corpus = Corpus(str(path))
    findings = [*scan_index(corpus.index, read_json(path / DESCRIPTION_NAME), names)]
    findings += scan_table(corpus.recordings, names)
    findings += [*scan_lists(read_rejected(path), names), *scan_lists(read_repairs(path), names)]
    shards = [path / SHARDS_NAME / shard["name"] for shard in corpus.index["shards"]]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        scan = map if workers == 1 else pool.map
        results = scan(partial(scan_shard, names=names), shards)
        for found in tqdm(results, total=len(shards), desc="privacy", unit="shard", mininterval=0.5):
            findings += found
    return findings


def scan_index(index: Mapping[str, Any], description: Mapping[str, Any], names: frozenset[str]) -> Iterator[str]:
    """Findings in ``index.json`` and ``dataset_description.json``; versions of software may look like dates."""
    texts = [(f"{INDEX_NAME}: {place}", text) for place, text in walk({**index, "software": {}})]
    yield from scan_texts(texts, names)
    sources = [(f"{DESCRIPTION_NAME}: {place}", text) for place, text in walk(description["SourceDatasets"])]
    yield from scan_texts(sources, frozenset(), references=True)


def scan_lists(entries: Iterable[Rejection | Repair], names: frozenset[str]) -> Iterator[str]:
    """Findings in the lists of rejections and repairs."""
    for entry in entries:
        where = REJECTED_NAME if isinstance(entry, Rejection) else REPAIRS_NAME
        yield from scan_texts([(f"{where}: {name}", text) for name, text in vars(entry).items()], names)


def scan_table(table: Recordings, names: frozenset[str]) -> Iterator[str]:
    """Findings in the text columns of the table of recordings, read some thousand rows at a time."""
    for column in ("shard", "modality", "site", "task", "run", "split", "unit", "dtype"):
        yield from scan_texts([(f"{RECORDINGS_NAME}: {column}", t) for t in table.codes(column)[1]], names)
    seen: dict[str, set[str]] = defaultdict(set)

    def new(column: str, texts: Iterable[str]) -> list[str]:
        found = sorted(set(texts) - seen[column])
        if len(seen[column]) < _REMEMBERED_TEXTS:  # what comes again later is told again, and not remembered
            seen[column].update(found)
        return found

    for start in range(0, len(table), _ROWS_AT_ONCE):
        rows = np.arange(start, min(start + _ROWS_AT_ONCE, len(table)))
        subjects = table.texts("subject", rows)
        for column in ("key", "member", "session"):
            texts = zip(table.texts(column, rows), subjects, strict=True)
            distinct = new(column, (text.replace(subject, "x") for text, subject in texts))
            yield from scan_texts([(f"{RECORDINGS_NAME}: {column}", text) for text in distinct], names)
        for text in new("participant", table.texts("participant", rows)):
            yield from scan_participant(f"{RECORDINGS_NAME}: participant", json.loads(text), names)
        quality = {measure for text in table.texts("quality", rows) for measure in json.loads(text)}
        for measure in new("quality", quality):
            yield from scan_texts([(f"{RECORDINGS_NAME}: quality", measure)], names)
    channels = {name for montage in table.distinct("channels") for name in montage}
    yield from scan_texts([(f"{RECORDINGS_NAME}: channels", name) for name in sorted(channels)], names)
