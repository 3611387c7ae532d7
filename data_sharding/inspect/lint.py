"""Re-read a whole corpus and list each difference to its index."""

import itertools
import math
import re
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mcsp.data_sharding.bids.reasons import REASONS
from mcsp.data_sharding.bids.tables import DESCRIPTION_NAME, dataset_description
from mcsp.data_sharding.store.files import Location, names
from mcsp.data_sharding.store.index import INDEX_NAME, REJECTED_NAME, SHARDS_NAME, read_rejected, reasons_of, totals_of
from mcsp.data_sharding.store.index import index_hash as hash_of
from mcsp.data_sharding.store.reader import Corpus
from mcsp.data_sharding.store.table import RECORDINGS_NAME, Recordings
from mcsp.outside import MOST_BYTES, parse_json, read_bounded, sha256_file
from mcsp.schema import BLOCK_SAMPLES, MODALITIES, SPLITS, Recording, block_bounds, crc_name, units_of

# What a hostile file can make the readers of tars, arrays and JSON raise; lint tells it and goes on.
_TOLD = (OSError, ValueError, LookupError, TypeError, ArithmeticError, EOFError, RecursionError, MemoryError)
_SUBJECT = re.compile(r"[0-9a-f]{32}")


def lint_corpus(path: Location, workers: int = 1) -> list[str]:
    """Check every byte of the corpus in ``path``; one line per lie, none where it is sound.

    Checks the totals, rejections and hash of the index; each row's fields; that no subject is in two splits; each
    shard's size and SHA-256; its members against the rows; offsets, block checksums and values of every array. Rows are
    made shard by shard, so memory does not grow with their number; ``workers`` processes read the shards, those of an
    object store through a copy on this machine, one shard each at a time.

    Raises:
        ValueError: there is no corpus of this schema version at all.
    """
    corpus = Corpus(str(path))
    lies = [*_told(INDEX_NAME, _index_lies(corpus, path)), *_told(RECORDINGS_NAME, _table_lies(corpus.recordings))]
    described = {shard["name"]: shard for shard in corpus.index["shards"]}
    jobs = []
    for name, rows in _rows_by_shard(corpus.recordings).items():
        if name in described:
            jobs.append((path, described.pop(name), rows))
        else:
            lies.append(f"{RECORDINGS_NAME}: rows of {name}, which {INDEX_NAME} does not list")
    lies += [f"{SHARDS_NAME}/{name}: in {INDEX_NAME}, but no row of {RECORDINGS_NAME} is of it" for name in described]
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_open, initargs=(path,)) as pool:
        if workers == 1:
            _open(path)
        results = map(_check_shard, jobs) if workers == 1 else pool.map(_check_shard, jobs)
        for found in tqdm(results, total=len(jobs), desc="lint", unit="shard", mininterval=0.5):
            lies += found
    expected = {file for shard in corpus.index["shards"] for file in (shard["name"], crc_name(shard["name"]))}
    present = names(path / SHARDS_NAME)
    lies += [f"{SHARDS_NAME}/{n}: not in the index" for n in present if n not in expected and not n.startswith(".")]
    return [*lies, *_description_lies(corpus, path)]


def _index_lies(corpus: Corpus, path: Location) -> Iterator[str]:
    index = corpus.index
    if index["index_hash"] != hash_of(index["shards"]):
        yield f"{INDEX_NAME}: index_hash does not follow from the shards"
    bad = Counter[tuple[str, str]]()
    for rejection in read_rejected(path):
        bad[rejection.site, rejection.reason] += 1
        if rejection.reason not in REASONS or rejection.site not in index["totals"]["sites"]:
            yield f"{REJECTED_NAME}: {rejection.file}: unknown reason {rejection.reason!r} or site {rejection.site!r}"
    simulated = {name: site["simulated"] for name, site in index["totals"]["sites"].items()}
    for section, counts in totals_of(corpus.recordings, bad, simulated).items():
        if index["totals"].get(section) != counts:
            yield f"{INDEX_NAME}: totals.{section} is {index['totals'].get(section)}, the recordings give {counts}"
    if index["reasons"] != (reasons := reasons_of(bad)):
        yield f"{INDEX_NAME}: reasons is {index['reasons']}, the rejected recordings give {reasons}"


def _table_lies(recordings: Recordings) -> Iterator[str]:
    """What only the whole table shows, from its columns."""
    members = recordings.column("member")
    # A reader finds the samples by looking where the key changes.
    keys = [key for key, _ in itertools.groupby(recordings.column("key"))]
    if len(set(members)) < len(members) or len(set(keys)) < len(keys):
        yield f"{RECORDINGS_NAME}: members are not unique, or the rows of a sample are not side by side"
    split_of: dict[str, str] = {}
    columns = zip(members, *(recordings.column(name) for name in ("site", "subject", "split")), strict=True)
    for member, site, subject, split in columns:
        other = split_of.setdefault(f"{site}/{subject}", split)
        if other != split:
            yield f"{member}: subject {subject} of {site} is in two splits, {other} and {split}"


def _rows_by_shard(recordings: Recordings) -> dict[str, np.ndarray]:
    """Numbers of the rows of each shard, by its name in sorted order."""
    codes, shards = recordings.codes("shard")
    order = np.argsort(codes, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1) if len(order) else []
    return dict(sorted((shards[codes[rows[0]]], rows) for rows in parts))


# The corpus that a worker reads; a row is made where it is needed, and the table is mapped by all of them.
_corpora: dict[str, Corpus] = {}


def _open(path: Location) -> None:
    _corpora["linted"] = Corpus(str(path))


def _check_shard(job: tuple[Location, dict[str, Any], np.ndarray]) -> list[str]:
    path, described, numbers = job
    where = f"{SHARDS_NAME}/{described['name']}"
    rows = [_corpora["linted"].recordings[int(number)] for number in numbers]
    lies = [lie for row in rows for lie in _told(row.member, _row_lies(row))]
    with _here(path / SHARDS_NAME / described["name"]) as tar:
        return [*lies, *_told(where, _shard_lies(tar, described, rows))]


def _told(where: str, lies: Iterator[str]) -> Iterator[str]:
    """The lies, and the last of them where what somebody wrote ends the search for more."""
    try:
        yield from lies
    except _TOLD as error:
        yield f"{where}: cannot be checked to its end ({error!r:.200})"


@contextmanager
def _here(tar: Location) -> Iterator[Path]:
    """The shard and its checksums as files of this machine; what cannot be fetched is missing there."""
    if isinstance(tar, Path):
        yield tar
        return
    with tempfile.TemporaryDirectory(prefix="mcsp-lint-") as folder:
        for name in (tar.name, crc_name(tar.name)):
            with suppress(OSError):
                tar.fs.get_file(tar.with_name(name).path, str(Path(folder) / name))
        yield Path(folder) / tar.name


def _row_lies(r: Recording) -> Iterator[str]:
    if r.modality not in MODALITIES or r.split not in SPLITS:
        yield f"{r.member}: modality {r.modality!r} or split {r.split!r} is unknown"
        return
    spans = np.asarray(r.valid_spans)
    edges = np.concatenate([[0], spans, [r.n_samples]])
    sound = {
        "subject": _SUBJECT.fullmatch(r.subject) is not None,
        "key": r.key == "_".join(filter(None, (r.site, r.subject, r.session))),
        "member": re.fullmatch(rf"{re.escape(r.key)}\.{r.modality}-\d+\.npy", r.member) is not None,
        "shard": r.shard.startswith(f"{r.split}-"),
        "unit": r.unit in units_of(r.modality),
        "block_samples": r.block_samples == BLOCK_SAMPLES[r.modality],
        "dtype": r.dtype == "float16",
        "scale": math.isfinite(r.scale) and r.scale > 0,
        "sfreq": math.isfinite(r.sfreq) and r.sfreq > 0,
        "channels": len(r.channels) == len(r.channel_good) == r.n_channels and any(r.channel_good),
        "positions_mm": len(r.positions_mm) == 3 * r.n_channels,
        "valid_spans": len(spans) > 0 and len(spans) % 2 == 0 and bool((np.diff(edges) >= 0).all()),
        "quality": _is_numbers(r.quality),
        "onset_seconds": math.isnan(r.onset_seconds) or 0 <= r.onset_seconds < math.inf,
    }
    yield from (
        f"{r.member}: field {name} is wrong, found {getattr(r, name)!r:.80}" for name, ok in sound.items() if not ok
    )


def _is_numbers(text: str) -> bool:
    try:
        return all(isinstance(value, float | int) for value in parse_json(text).values())
    except (ValueError, AttributeError):
        return False


def _description_lies(corpus: Corpus, path: Location) -> Iterator[str]:
    """``dataset_description.json`` must speak of this index."""
    try:
        found = parse_json(read_bounded(path / DESCRIPTION_NAME))
        sources = {source["Site"]: Path("absent") for source in found["SourceDatasets"]}
        expected = dataset_description(corpus.index["config"], corpus.index["software"], sources)
        same = found["GeneratedBy"] == expected["GeneratedBy"] and set(sources) == set(corpus.index["totals"]["sites"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        yield f"{DESCRIPTION_NAME}: cannot be read ({error!r})"
        return
    if not same:
        yield f"{DESCRIPTION_NAME}: GeneratedBy or the sites of SourceDatasets differ from {INDEX_NAME}"


def _shard_lies(tar: Path, described: dict[str, Any], rows: list[Recording]) -> Iterator[str]:
    where = f"{SHARDS_NAME}/{tar.name}"
    if not tar.is_file():
        yield f"{where}: missing"
        return
    size = tar.stat().st_size
    if size != described["bytes"] or sha256_file(tar) != described["sha256"]:
        yield f"{where}: SHA-256 or size differs from the index ({size} bytes, expected {described['bytes']})"
    keys = {r.key for r in rows}
    counts = {"recordings": len(rows), "samples": len(keys)}
    if any(described[name] != count for name, count in counts.items()):
        yield f"{where}: the table has {counts}, the index { ({name: described[name] for name in counts}) }"
    try:
        crcs = np.load(tar.with_name(crc_name(tar.name)), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        yield f"{SHARDS_NAME}/{crc_name(tar.name)}: cannot be read ({error})"
        return
    blocks = sum(len(block_bounds(r.n_samples, r.block_samples)) - 1 for r in rows)
    if crcs.dtype != np.uint32 or crcs.shape != (blocks,):
        yield f"{SHARDS_NAME}/{crc_name(tar.name)}: {crcs.dtype} {crcs.shape}, expected uint32 ({blocks},)"
        return
    try:
        with tarfile.open(tar, "r:") as archive, open(tar, "rb") as file:
            members = {member.name: member for member in archive.getmembers()}
            expected = {r.member for r in rows} | {f"{key}.json" for key in keys}
            if set(members) != expected:
                yield f"{where}: members {sorted(set(members) ^ expected)[:4]} are only in the tar or only in the table"
            for row in rows:
                if row.member in members:
                    yield from _array_lies(file, members[row.member], row, crcs)
            for key in sorted(keys & {name.removesuffix(".json") for name in members}):
                content = archive.extractfile(members[f"{key}.json"])
                yield from _metadata_lies(
                    content.read(MOST_BYTES) if content else b"", key, [r for r in rows if r.key == key]
                )
    except (tarfile.TarError, OSError, ValueError) as error:
        yield f"{where}: cannot be read to its end ({' '.join(str(error).split())})"


def _array_lies(file: Any, member: tarfile.TarInfo, r: Recording, crcs: np.ndarray) -> Iterator[str]:
    file.seek(member.offset_data)
    version = np.lib.format.read_magic(file)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    found = (version, shape, fortran, dtype, file.tell(), member.offset_data + member.size)
    dtype_expected = np.dtype(r.dtype).newbyteorder("<")
    stop = r.byte_offset + r.n_samples * r.n_channels * dtype_expected.itemsize
    expected = ((1, 0), (r.n_samples, r.n_channels), False, dtype_expected, r.byte_offset, stop)
    if found != expected:
        yield f"{r.member}: header, offset or size is {found}, expected {expected}"
        return
    for block, (a, b) in enumerate(pairwise(block_bounds(r.n_samples, r.block_samples))):
        content = file.read((b - a) * r.n_channels * dtype.itemsize)
        if zlib.crc32(content) != crcs[r.crc_offset + block]:
            yield f"{r.member}: block {block} does not match its CRC-32"
        elif not np.isfinite(np.frombuffer(content, dtype)).all():
            yield f"{r.member}: block {block} holds values that are not finite"


def _metadata_lies(content: bytes, key: str, rows: list[Recording]) -> Iterator[str]:
    """The JSON member must say what the table says."""
    try:
        metadata = parse_json(content)
        recordings = {values["member"]: values for values in metadata["recordings"]}
    except (ValueError, LookupError, TypeError) as error:
        yield f"{key}.json: not the metadata of a sample ({error!r})"
        return
    shared: dict[str, Any] = {"key": key, "site": rows[0].site, "subject": rows[0].subject, "session": rows[0].session}
    shared |= {"split": rows[0].split, "simulated": rows[0].simulated, "participant": parse_json(rows[0].participant)}
    differing = [name for name, value in shared.items() if metadata.get(name) != value]
    for r in rows:
        values = recordings.get(r.member, {})
        own = {**vars(r), "onset_seconds": _known(r.onset_seconds), "positions_mm": [_known(v) for v in r.positions_mm]}
        differing += [f"{r.member}.{name}" for name, value in values.items() if own.get(name) != value]
        differing += [] if values else [r.member]
    if differing:
        yield f"{key}.json: {differing[:4]} differ from {RECORDINGS_NAME}"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
