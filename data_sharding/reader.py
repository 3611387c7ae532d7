"""Read single windows of a corpus by byte range: no archive is unpacked, no whole recording is read.

Shape letters: T time samples, C channels.
"""

import json
import os
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from mcsp.data_sharding.index import INDEX_NAME, SHARDS_NAME, read_index
from mcsp.data_sharding.table import RECORDINGS_NAME, Recordings, Samples
from mcsp.schema import SPLITS, Recording, Window

# Far below the usual limit of 1,024 open files per process.
_MAX_OPEN_SHARDS = 256


class Corpus:
    """A finished corpus on disk.

    Attributes:
        path: its folder.
        index: content of ``index.json``.
        index_hash: 64 hexadecimal digits that stand for the stored data.
        recordings: the rows of ``recordings.arrow``, sorted by member, each made when it is asked for.

    Reading is safe in forked and spawned workers: ``pread`` shares no file position, and a pickled corpus opens
    its files anew.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the corpus in ``path``; raise ``ValueError`` where it is unfinished or of another schema version."""
        self.path = Path(path)
        self.index: dict[str, Any] = read_index(self.path)
        self.index_hash: str = self.index["index_hash"]
        self.recordings = Recordings.open(self.path / RECORDINGS_NAME)
        expected = self.index["totals"]["all"]["recordings"]
        if len(self.recordings) != expected:
            raise ValueError(
                f"{self.path / INDEX_NAME}: speaks of {expected} recordings, the table has {len(self.recordings)}"
            )
        self._files: OrderedDict[str, int] = OrderedDict()
        self._crcs: dict[str, np.ndarray] = {}

    def samples(self, split: str | None = None) -> Samples:
        """Recordings of each sample, by sample key in sorted order; only those of ``split`` where given."""
        if split is not None and split not in SPLITS:
            raise ValueError(f"split {split!r}: expected one of {SPLITS}")
        return Samples(self.recordings, split)

    def participant(self, recording: Recording) -> dict[str, Any]:
        """The columns of participants.tsv that the builder let through for this recording's subject."""
        return json.loads(recording.participant)

    def read_window(self, recording: Recording, start: int, n_samples: int, verify: bool = True) -> Window:
        """Cut ``n_samples`` time samples from ``start`` on out of a recording.

        Args:
            recording: a row of this corpus.
            start: first time sample.
            n_samples: length of the window in time samples.
            verify: read whole blocks and check their CRC-32.

        Returns:
            a window with float32 ``x_TC`` of shape (n_samples, C) in ``recording.unit``.

        Raises:
            ValueError: the window exceeds the recording, or the shard is missing, truncated or damaged.
        """
        r = recording
        if start < 0 or n_samples < 1 or start + n_samples > r.n_samples:
            raise ValueError(
                f"{r.member}: window {start}..{start + n_samples} exceeds the recording of {r.n_samples} samples"
            )
        dtype = np.dtype(r.dtype).newbyteorder("<")
        row_bytes = r.n_channels * dtype.itemsize
        first, stop = start, start + n_samples
        if verify:
            first -= first % r.block_samples
            stop = min(-(-stop // r.block_samples) * r.block_samples, r.n_samples)
        n_bytes = (stop - first) * row_bytes
        content = os.pread(self._file(r.shard), n_bytes, r.byte_offset + first * row_bytes)
        if len(content) != n_bytes:
            raise ValueError(
                f"{self._shard_path(r.shard)}: truncated inside {r.member}, "
                f"expected {n_bytes} bytes, found {len(content)}"
            )
        if verify:
            self._check_blocks(r, content, first, stop, row_bytes)
        x_TC = np.frombuffer(content, dtype=dtype).reshape(stop - first, r.n_channels)[start - first :][:n_samples]
        return Window(x_TC.astype(np.float32) * np.float32(r.scale), recording, start)

    def _check_blocks(self, r: Recording, content: bytes, first: int, stop: int, row_bytes: int) -> None:
        expected = self._crc(r.shard)
        view = memoryview(content)
        for block_start in range(first, stop, r.block_samples):
            block = r.crc_offset + block_start // r.block_samples
            lower = (block_start - first) * row_bytes
            found = zlib.crc32(view[lower : lower + r.block_samples * row_bytes])
            if block >= len(expected) or found != expected[block]:
                raise ValueError(
                    f"{self._shard_path(r.shard)}: damaged, block {block_start // r.block_samples} of {r.member} "
                    f"(key {r.key}) does not match its CRC-32"
                )

    def _shard_path(self, shard: str) -> Path:
        return self.path / SHARDS_NAME / shard

    def _file(self, shard: str) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        try:
            descriptor = os.open(self._shard_path(shard), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ValueError(f"{self._shard_path(shard)}: cannot read the shard ({error.strerror})") from None
        self._files[shard] = descriptor
        if len(self._files) > _MAX_OPEN_SHARDS:
            os.close(self._files.popitem(last=False)[1])
        return descriptor

    def _crc(self, shard: str) -> np.ndarray:
        if shard not in self._crcs:
            file = self._shard_path(crc_name(shard))
            try:
                self._crcs[shard] = np.load(file, allow_pickle=False)
            except (OSError, ValueError) as error:
                raise ValueError(f"{file}: cannot read the block checksums ({error})") from None
        return self._crcs[shard]

    def close(self) -> None:
        """Close the open shards; reading opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __reduce__(self) -> tuple[type["Corpus"], tuple[Path]]:
        return type(self), (self.path,)

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()


def crc_name(shard: str) -> str:
    """File name of the block checksums of a shard: ``train-00000.tar`` -> ``train-00000.crc.npy``."""
    return shard.removesuffix(".tar") + ".crc.npy"
