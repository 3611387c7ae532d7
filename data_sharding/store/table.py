"""The table of recordings: one row per recording, mapped from disk.

It is an uncompressed Arrow IPC file with one record batch. A reader maps it into memory and looks at every offset and
name once; a row is made when it is asked for, and the processes of a machine share the pages. What repeats from row to
row, channel names and positions above all, is stored once (dictionary encoding).
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute

from mcsp.data_sharding.store.foreign import require_sound_table
from mcsp.data_sharding.store.table_write import REPEATED_TEXT, SCHEMA, make_batch
from mcsp.schema import Recording

RECORDINGS_NAME = "recordings.arrow"

# Decoded lists kept per column: a corpus has few montages, unless the positions of every subject were measured.
_CACHED_LISTS = 512


def _numpy(array: pa.Array) -> np.ndarray:
    """Numbers where they lie, or booleans unpacked; ``pa.Array.to_numpy`` would import pandas, 30 MB and 0.5 s."""
    buffer = array.buffers()[1]
    if array.type == pa.bool_():
        bits = np.unpackbits(np.frombuffer(buffer, np.uint8), bitorder="little")
        return bits[array.offset : array.offset + len(array)].astype(bool)
    dtype = {pa.int32(): np.int32, pa.int64(): np.int64, pa.float64(): np.float64}[array.type]
    return np.frombuffer(buffer, dtype)[array.offset : array.offset + len(array)]


class Recordings(Sequence[Recording]):
    """Rows of the table as a sequence, made one by one when they are asked for; whole columns as numpy arrays."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        """Wrap the result of :func:`mcsp.data_sharding.store.table_write.make_batch` or of a mapped file."""
        self._batch = batch
        self._file: Path | None = None
        self._bytes = 0
        self._read = [(f.name, self._reader(f.name)) for f in fields(Recording)]

    @classmethod
    def of(cls, recordings: Iterable[Recording]) -> "Recordings":
        """A table in memory."""
        return cls(make_batch(recordings))

    @classmethod
    def open(cls, file: Path) -> "Recordings":
        """Map a table into memory.

        Raises:
            ValueError: the file is missing, damaged, has other columns, or something in it that no builder writes
                (:func:`mcsp.data_sharding.store.foreign.require_sound_table`).
        """
        recordings = cls._mapped(file)
        require_sound_table(recordings._batch, str(file))
        return recordings

    @classmethod
    def _mapped(cls, file: Path) -> "Recordings":
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(file)))
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except (OSError, pa.ArrowInvalid) as error:
            raise ValueError(f"{file}: cannot read the table of recordings ({str(error).splitlines()[0]})") from None
        if len(batches) == 1 and "space" not in reader.schema.names:  # corpora of before have no column for it
            unknown = pa.array([""] * batches[0].num_rows, pa.large_string()).dictionary_encode()
            schema = batches[0].schema.append(SCHEMA.field("space"))
            batches = [pa.RecordBatch.from_arrays([*batches[0].columns, unknown], schema=schema)]
        found = batches[0].schema if len(batches) == 1 else reader.schema
        missing = [f.name for f in SCHEMA if f.name not in found.names]
        if missing:
            raise ValueError(f"{file}: missing columns {missing}")
        if len(batches) != 1 or not found.equals(SCHEMA):
            other = [f.name for f in found if f.name not in SCHEMA.names or f != SCHEMA.field(f.name)]
            raise ValueError(
                f"{file}: expected one batch of the columns of this version, found {len(batches)}, {other}"
            )
        recordings = cls(batches[0])
        recordings._file, recordings._bytes = file, file.stat().st_size
        return recordings

    def check_whole(self) -> None:
        """Raise ``ValueError`` where the mapped file was cut or is gone: reading on would end the process (SIGBUS)."""
        if self._file is None:
            return
        try:
            found = self._file.stat().st_size
        except OSError as error:
            raise ValueError(f"{self._file}: cannot be read any more ({error.strerror})") from None
        if found != self._bytes:
            raise ValueError(
                f"{self._file}: had {self._bytes} bytes when it was opened, now {found}; a corpus must not change "
                "while it is read"
            )

    def __reduce__(self) -> Any:
        """Another process maps the same file."""
        return (type(self), (self._batch,)) if self._file is None else (type(self)._mapped, (self._file,))

    def __len__(self) -> int:
        return self._batch.num_rows

    @overload
    def __getitem__(self, index: int) -> Recording: ...
    @overload
    def __getitem__(self, index: slice) -> list[Recording]: ...
    def __getitem__(self, index: int | slice) -> Recording | list[Recording]:
        if isinstance(index, slice):
            return [self._row(i) for i in range(*index.indices(len(self)))]
        i = operator.index(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"row {i} of {len(self)} recordings")
        return self._row(i % len(self))

    def __iter__(self) -> Iterator[Recording]:
        return map(self._row, range(len(self)))

    def _row(self, i: int) -> Recording:
        row = Recording.__new__(Recording)
        row.__dict__.update({name: read(i) for name, read in self._read})  # __init__ would take as long as all of this
        return row

    def _reader(self, name: str) -> Callable[[int], Any]:
        """A function from a row to the value of one field, as Python's own types."""
        array = self._batch.column(name)
        if pa.types.is_dictionary(array.type):
            codes, values = _numpy(array.indices), array.dictionary
            value = lru_cache(_CACHED_LISTS)(lambda code: values[code].as_py())
            return lambda i: value(codes.item(i))
        if array.type in (pa.int64(), pa.float64()):
            return _numpy(array).item
        if array.type == pa.bool_():
            return lambda i: array[i].as_py()
        stops = np.frombuffer(array.buffers()[1], np.int64)[array.offset :]
        if array.type == pa.large_string():
            text = memoryview(array.buffers()[2] or b"")
            return lambda i: str(text[stops.item(i) : stops.item(i + 1)], "utf8")
        values = _numpy(array.values)
        return lambda i: values[stops.item(i) : stops.item(i + 1)].tolist()

    def column(self, name: str) -> np.ndarray:
        """All values of a field: numbers without a copy, bool, or an array of ``str`` objects.

        Raises:
            ValueError: a field that holds lists.
        """
        if name in REPEATED_TEXT:
            codes, values = self.codes(name)
            return np.array(values, dtype=object)[codes]
        array = self._batch.column(name)
        if pa.types.is_dictionary(array.type) or pa.types.is_large_list(array.type):
            raise ValueError(f"column {name}: holds lists, read them row by row")
        return np.array(array.to_pylist(), dtype=object) if array.type == pa.large_string() else _numpy(array)

    def codes(self, name: str) -> tuple[np.ndarray, list[str]]:
        """A text field that repeats: int32 codes per row, without a copy, and the text of each code.

        Raises:
            ValueError: any other field.
        """
        if name not in REPEATED_TEXT:
            raise ValueError(f"column {name}: expected one of {REPEATED_TEXT}")
        array = self._batch.column(name)
        return _numpy(array.indices), array.dictionary.to_pylist()

    def rows_of(self, name: str, text: str) -> np.ndarray:
        """Whether each row has this text in such a field, bool ``(rows,)``."""
        codes, texts = self.codes(name)
        return codes == (texts.index(text) if text in texts else -1)

    def flat(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A field of lists that differ from row to row: all values in one row, without a copy, and where each list
        starts and the last one ends, int64 ``(rows + 1,)``.

        Raises:
            ValueError: any other field.
        """
        array = self._batch.column(name)
        if not pa.types.is_large_list(array.type):
            raise ValueError(f"column {name}: expected a list that is stored row by row")
        return _numpy(array.values), np.frombuffer(array.buffers()[1], np.int64)[array.offset :][: len(self) + 1]

    def distinct(self, name: str) -> list[Any]:
        """Every value of a field that is stored once for all rows that have it: a text or a list that repeats."""
        return self._batch.column(name).dictionary.to_pylist()

    def texts(self, name: str, rows: np.ndarray) -> list[str]:
        """The values of a text field in some rows."""
        return self._batch.column(name).take(pa.array(rows)).to_pylist()

    def sample_starts(self) -> np.ndarray:
        """First row of each sample and the number of rows, int64 ``(samples + 1,)``; a sample's rows are neighbours."""
        keys = self._batch.column("key")
        if len(self) == 0:
            return np.zeros(1, dtype=np.int64)
        changes = _numpy(pa.compute.not_equal(keys.slice(1), keys.slice(0, len(self) - 1)))
        return np.concatenate([[0], np.flatnonzero(changes) + 1, [len(self)]])


class Samples(Mapping[str, list[Recording]]):
    """The recordings of each sample by its key, in sorted order of keys; rows are made when they are asked for."""

    def __init__(self, recordings: Recordings, split: str | None = None) -> None:
        """Find the rows of every sample, or only of those in ``split``."""
        self._recordings = recordings
        starts = recordings.sample_starts()
        stops, starts = starts[1:], starts[:-1]
        if split is not None:
            inside = recordings.rows_of("split", split)[starts]
            starts, stops = starts[inside], stops[inside]
        keys = recordings.texts("key", starts)
        self._rows = dict(sorted(zip(keys, zip(starts.tolist(), stops.tolist(), strict=True), strict=True)))

    def __getitem__(self, key: str) -> list[Recording]:
        return self._recordings[slice(*self._rows[key])]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
