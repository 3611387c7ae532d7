"""Search all that a corpus publishes for personal data."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from multiprocessing import get_context
from typing import Any

import numpy as np
from tqdm import tqdm

from mcsp.data_sharding.bids.description import DESCRIPTION_NAME
from mcsp.data_sharding.bids.tables import read_json
from mcsp.data_sharding.build.privacy import (
    find_identifiers,
    find_identifiers_in_participant,
    find_identifiers_in_shard,
    may_be_date,
    shape,
    walk,
)
from mcsp.data_sharding.store.files import Location
from mcsp.data_sharding.store.index import (
    INDEX_NAME,
    REJECTED_NAME,
    REPAIRS_NAME,
    SHARDS_NAME,
    Rejection,
    Repair,
    read_rejected,
    read_repairs,
)
from mcsp.data_sharding.store.reader import Corpus
from mcsp.data_sharding.store.table import RECORDINGS_NAME, Recordings
from mcsp.outside import parse_json

_ROWS_AT_ONCE, _REMEMBERED_TEXTS = 8192, 1 << 16


def find_identifiers_in_shards(path: Location, shards: Sequence[str], names: frozenset[str]) -> Iterator[list[str]]:
    """Findings in each of some shards of the corpus in ``path``, one after the other."""
    return (find_identifiers_in_shard(path / SHARDS_NAME / shard, names) for shard in shards)


def find_identifiers_in_corpus(path: Location, names: frozenset[str] = frozenset(), workers: int = 1) -> list[str]:
    """Findings in all that a finished corpus publishes: index, rejections, description, table and every shard.

    Raises:
        ValueError: there is no finished corpus, or its description cannot be read.
    """
    corpus = Corpus(str(path))
    findings = [*find_identifiers_in_index(corpus.index, read_json(path / DESCRIPTION_NAME), names)]
    findings += find_identifiers_in_table(corpus.recordings, names)
    findings += find_identifiers_in_lists(chain(read_rejected(path), read_repairs(path)), names)
    shards = [path / SHARDS_NAME / shard["name"] for shard in corpus.index["shards"]]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        scan = map if workers == 1 else pool.map
        results = scan(partial(find_identifiers_in_shard, names=names), shards)
        for found in tqdm(results, total=len(shards), desc="privacy", unit="shard", mininterval=0.5):
            findings += found
    return findings


def find_identifiers_in_index(
    index: Mapping[str, Any], description: Mapping[str, Any], names: frozenset[str]
) -> Iterator[str]:
    """Findings in ``index.json`` and ``dataset_description.json``; versions of software may look like dates."""
    texts = [(f"{INDEX_NAME}: {place}", text) for place, text in walk({**index, "software": {}})]
    yield from find_identifiers(texts, names)
    made_by = [{**made, "Description": ""} for made in description.get("GeneratedBy", ())]
    described = walk({**description, "GeneratedBy": made_by})
    yield from find_identifiers([(f"{DESCRIPTION_NAME}: {p}", text) for p, text in described], names, references=True)


def find_identifiers_in_lists(entries: Iterable[Rejection | Repair], names: frozenset[str]) -> Iterator[str]:
    """Findings in the lists of rejections and repairs."""
    for entry in entries:
        where = REJECTED_NAME if isinstance(entry, Rejection) else REPAIRS_NAME
        yield from find_identifiers([(f"{where}: {name}", text) for name, text in vars(entry).items()], names)


def find_identifiers_in_table(table: Recordings, names: frozenset[str]) -> Iterator[str]:
    """Findings in the text columns of the table of recordings, read some thousand rows at a time."""
    for column in ("shard", "modality", "site", "task", "run", "split", "unit", "dtype"):
        yield from find_identifiers([(f"{RECORDINGS_NAME}: {column}", t) for t in table.codes(column)[1]], names)
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
            yield from find_identifiers([(f"{RECORDINGS_NAME}: {column}", text) for text in distinct], names)
        for label in new("session date", table.texts("session", rows)):
            if may_be_date(label):
                yield f"{RECORDINGS_NAME}: session: date like {shape(label)!r}"
        for text in new("participant", table.texts("participant", rows)):
            yield from find_identifiers_in_participant(f"{RECORDINGS_NAME}: participant", parse_json(text), names)
        quality = {measure for text in table.texts("quality", rows) for measure in parse_json(text)}
        for measure in new("quality", quality):
            yield from find_identifiers([(f"{RECORDINGS_NAME}: quality", measure)], names)
    channels = {name for montage in table.distinct("channels") for name in montage}
    yield from find_identifiers([(f"{RECORDINGS_NAME}: channels", name) for name in sorted(channels)], names)
