"""Read single windows of a corpus by byte range: no archive is unpacked, no whole recording is read.

Shape letters: T time samples, C channels.
"""

import os
import time
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mcsp.data_sharding.store.cache import ShardCache
from mcsp.data_sharding.store.files import READ_ONLY, Location, is_local, location, read_into
from mcsp.data_sharding.store.index import INDEX_NAME, SHARDS_NAME, read_index
from mcsp.data_sharding.store.table import Recordings, Samples
from mcsp.outside import parse_json
from mcsp.schema import SPLITS, Recording, Window, crc_name

try:
    from isal.isal_zlib import crc32  # the same checksum as zlib's, several times as fast
except ImportError:
    from zlib import crc32

# Far below the usual limit of 1,024 open files per process. A shard that left the cache takes space while it is open.
_MAX_OPEN_SHARDS = 256
_MAX_OPEN_CACHED = 16
# A network file system may fail once; what fails for two seconds is treated as lost.
_PAUSES_SECONDS = (0.1, 0.5, 1.5)
_OPEN_ATTEMPTS = 5


class BadWindowError(ValueError):
    """The bytes of a window cannot be read or are not those that were written; names file, member and block."""


class _Shard(NamedTuple):
    descriptor: int
    crcs: np.ndarray  # mapped: workers share it, and the checksums of a large corpus would not fit


class Corpus:
    """A finished corpus, in a local folder or behind a URL that fsspec knows.

    Attributes:
        path: its folder; of a remote corpus the folder on this machine that holds what was fetched of it.
        index: content of ``index.json``.
        index_hash: 64 hexadecimal digits that stand for the stored data.
        recordings: the rows of the table, those of a sample side by side, each made when it is asked for.

    Reading is safe in forked and spawned workers: ``pread`` shares no file position, and a pickled corpus opens
    its files anew.
    """

    def __init__(
        self, path: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None = None, cache_gb: float = 100.0
    ) -> None:
        """Open a corpus.

        Args:
            path: its folder, or a URL such as ``s3://bucket/corpus``.
            cache_dir: where shards of a remote corpus are kept on this machine; default:
                ``mcsp`` in the user's folder of caches (``~/.cache``).
            cache_gb: most that they take; those unused for longest are deleted. Local corpora are read in place.

        Raises:
            ValueError: the corpus is unfinished, of another schema version, or damaged.
        """
        self._arguments = (path, cache_dir, cache_gb)
        place = location(path)
        self.index: dict[str, Any] = read_index(place)
        self.index_hash: str = self.index["index_hash"]
        self._cache: ShardCache | None = None
        if not is_local(place):
            self._cache = ShardCache(place, cache_dir, self.index_hash, cache_gb)
        self.path: Path = self._cache.folder if self._cache else Path(str(place))
        self.recordings = self._open_table(place)
        self._shard_bytes: dict[str, int] = {shard["name"]: shard["bytes"] for shard in self.index["shards"]}
        self._shards: OrderedDict[str, _Shard] = OrderedDict()

    def _open_table(self, place: Location) -> Recordings:
        name = self.index["tables"]["recordings"]
        if self._cache:
            try:
                self._cache.fetch_table(name)
            except OSError as error:
                raise ValueError(f"{place / name}: cannot read the table of recordings ({error})") from None
        recordings = Recordings.open(self.path / name)
        expected = self.index["totals"]["all"]["recordings"]
        if len(recordings) != expected:
            raise ValueError(f"{place / INDEX_NAME}: lists {expected} recordings, the table has {len(recordings)}")
        return recordings

    @property
    def is_remote(self) -> bool:
        """Whether shards come through a cache."""
        return self._cache is not None

    def samples(self, split: str | None = None) -> Samples:
        """Recordings of each sample, by sample key in sorted order; only those of ``split`` where given."""
        if split is not None and split not in SPLITS:
            raise ValueError(f"split {split!r}: expected one of {SPLITS}")
        return Samples(self.recordings, split)

    def participant(self, recording: Recording) -> dict[str, Any]:
        """The columns of participants.tsv that the builder let through for this recording's subject."""
        columns: dict[str, Any] = parse_json(recording.participant)
        return columns

    def read_window(self, recording: Recording, start: int, n_samples: int, verify: bool = True) -> Window:
        """Cut ``n_samples`` time samples from ``start`` on out of a recording; as :meth:`read_stored`.

        Returns:
            a window with float32 ``x_TC`` of shape (n_samples, C) in ``recording.unit``.
        """
        x_TC = self.read_stored(recording, start, n_samples, verify).astype(np.float32)
        return Window(np.multiply(x_TC, np.float32(recording.scale), out=x_TC), recording, start)

    def read_stored(
        self, recording: Recording, start: int, n_samples: int, verify: bool = True, buffer: np.ndarray | None = None
    ) -> np.ndarray:
        """The stored values of a window; times ``recording.scale`` they are in ``recording.unit``.

        Args:
            recording: a row of this corpus.
            start: first time sample.
            n_samples: length of the window in time samples.
            verify: read whole blocks and check their CRC-32.
            buffer: uint8, used for the result where it is large enough: memory that was used before costs nothing.

        Returns:
            ``(n_samples, C)`` in ``recording.dtype``, little-endian.

        Raises:
            BadWindowError: the shard is missing, truncated or damaged there, or the disk fails.
            ValueError: the window exceeds the recording.
        """
        r = recording
        if start < 0 or n_samples < 1 or start + n_samples > r.n_samples:
            raise ValueError(
                f"{r.member}: window {start}..{start + n_samples} exceeds the recording of {r.n_samples} samples"
            )
        dtype = np.dtype(r.dtype).newbyteorder("<")
        row_bytes = r.n_channels * dtype.itemsize
        if r.n_channels < 1 or r.block_samples < 1 or r.byte_offset < 0 or r.crc_offset < 0:
            raise BadWindowError(f"{r.member}: channels, samples per block or offsets of no recording")
        if r.n_samples * row_bytes > (limit := self._shard_bytes.get(r.shard, 0)):
            expected = f"expected {r.n_samples * row_bytes} bytes at least for {r.member}"
            raise BadWindowError(f"{self._shard_path(r.shard)}: {expected}, found {limit}")
        first, stop = start, start + n_samples
        if verify:
            first -= first % r.block_samples
            stop = min(-(-stop // r.block_samples) * r.block_samples, r.n_samples)
        n_bytes = (stop - first) * row_bytes
        content = buffer[:n_bytes] if buffer is not None and len(buffer) >= n_bytes else np.empty(n_bytes, np.uint8)
        crcs = self._fill(content, r, r.byte_offset + first * row_bytes)
        if verify:
            self._check_blocks(r, content, crcs, first, row_bytes)
        return content.view(dtype).reshape(stop - first, r.n_channels)[start - first :][:n_samples]

    def _fill(self, content: np.ndarray, r: Recording, offset: int) -> np.ndarray:
        """Read a part of the recording's shard into ``content``; returns the checksums of the shard."""
        for pause in (*_PAUSES_SECONDS, None):
            try:
                shard = self._shard(r.shard)
                found = read_into(shard.descriptor, content.data, offset)
                break
            except (OSError, ValueError) as error:
                self.close(r.shard)
                if pause is None or isinstance(error, FileNotFoundError | ValueError):
                    reason = getattr(error, "strerror", None) or error
                    raise BadWindowError(f"{self._shard_path(r.shard)}: cannot read the shard ({reason})") from None
                time.sleep(pause)
        if found != len(content):
            raise BadWindowError(
                f"{self._shard_path(r.shard)}: truncated inside {r.member}, "
                f"expected {len(content)} bytes, found {found}"
            )
        return shard.crcs

    def _check_blocks(self, r: Recording, content: np.ndarray, crcs: np.ndarray, first: int, row_bytes: int) -> None:
        first_block, block_bytes = first // r.block_samples, r.block_samples * row_bytes
        found = [crc32(content[lower : lower + block_bytes].data) for lower in range(0, len(content), block_bytes)]
        expected = crcs[r.crc_offset + first_block :][: len(found)].tolist()
        if found != expected:
            pairs = zip(found, expected + [None] * len(found), strict=False)
            block = first_block + next(i for i, (mine, theirs) in enumerate(pairs) if mine != theirs)
            raise BadWindowError(
                f"{self._shard_path(r.shard)}: damaged, block {block} of {r.member} (key {r.key}) "
                "does not match its CRC-32"
            )

    def _shard_path(self, shard: str) -> Path:
        return self.path / SHARDS_NAME / shard

    def _shard(self, name: str) -> _Shard:
        """An open shard; raise ``OSError`` or ``ValueError`` where it cannot be opened."""
        if name in self._shards:
            self._shards.move_to_end(name)
            return self._shards[name]
        if self._cache:
            for old in [n for n, shard in self._shards.items() if os.fstat(shard.descriptor).st_nlink == 0]:
                self.close(old)
        descriptor = self._open(name)
        checksums = self._shard_path(crc_name(name))
        try:
            crcs = np.load(checksums, mmap_mode="r", allow_pickle=False)
            self._shards[name] = _Shard(descriptor, np.asarray(crcs))  # np.memmap itself is slow to index
        except (OSError, ValueError, EOFError) as error:
            os.close(descriptor)
            raise ValueError(f"{checksums.name}: not the block checksums: {error}") from None
        if len(self._shards) > (_MAX_OPEN_CACHED if self._cache else _MAX_OPEN_SHARDS):
            self.close(next(iter(self._shards)))
        return self._shards[name]

    def _open(self, name: str) -> int:
        for attempt in range(_OPEN_ATTEMPTS):
            if self._cache:
                self._cache.fetch_shard(name, self.index["shards"])
            try:
                flags = READ_ONLY | (os.O_NOFOLLOW if self._cache else 0)
                descriptor = os.open(self._shard_path(name), flags)
            except FileNotFoundError:
                # Another process may have made room in the cache just now.
                if not self._cache or attempt + 1 == _OPEN_ATTEMPTS:
                    raise
                continue
            sound = False
            try:
                sound = not self._cache or self._cache.is_sound(name, descriptor)
            finally:
                if not sound:  # something else lay in the cache under its name, or the disk fails
                    os.close(descriptor)
            if sound:
                return descriptor
        raise ValueError(f"changed {_OPEN_ATTEMPTS} times after it was fetched; who else writes into {self.path}?")

    def fetch_ahead(self, shards: Iterable[str]) -> None:
        """Start to fetch shards of a remote corpus that will be read soon; nothing to do for a local one."""
        if self._cache:
            self._cache.fetch_ahead(shards, self.index["shards"])

    def close(self, shard: str | None = None) -> None:
        """Close one shard or all that are open; reading opens them again."""
        for name in [shard] if shard else list(self._shards):
            if name in self._shards:
                os.close(self._shards.pop(name).descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def __del__(self) -> None:
        if hasattr(self, "_shards"):
            self.close()
