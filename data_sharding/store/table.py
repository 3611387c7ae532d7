"""The table of recordings: one row per recording, written in constant memory, mapped from disk.

It is an uncompressed Arrow IPC file with one record batch. A reader maps it into memory and looks at every offset and
name once; a row is made when it is asked for, and the processes of a machine share the pages. What repeats from row to
row, channel names and positions above all, is stored once (dictionary encoding).

A writer puts rows as columns into temporary files without names in ``TMPDIR``, which take as much as the table itself.
"""

import hashlib
import mmap
import operator
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute

from mcsp.data_sharding.store.foreign import require_sound_table
from mcsp.schema import Recording

RECORDINGS_NAME = "recordings.arrow"

# Decoded lists kept per column: a corpus has few montages, unless the positions of every subject were measured.
_CACHED_LISTS = 512
# Every other field is text of its own for each row.
REPEATED_TEXT = ("shard", "modality", "site", "task", "run", "split", "unit", "dtype", "space")
REPEATED_LISTS = {"channels": pa.string(), "positions_mm": pa.float64(), "channel_good": pa.bool_()}
_NUMBERS = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
_ROWS_AT_ONCE = 1024
# A list that comes again after so many different ones is stored again: where the positions of every subject were
# measured, the memory of all of them would grow with the corpus.
_REMEMBERED_LISTS = 65_536


def _arrow_type(name: str, python_type: Any) -> pa.DataType:
    if name in REPEATED_TEXT:
        return pa.dictionary(pa.int32(), pa.large_string())
    if name in REPEATED_LISTS:
        return pa.dictionary(pa.int32(), pa.large_list(REPEATED_LISTS[name]))
    if python_type == list[int]:
        return pa.large_list(pa.int64())
    return _NUMBERS.get(python_type, pa.large_string())


SCHEMA = pa.schema([pa.field(f.name, _arrow_type(f.name, f.type), nullable=False) for f in fields(Recording)])


class _Buffer:
    """Bytes that grow on the disk."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="mcsp-table-")  # noqa: SIM115  lives as long as the buffer
        weakref.finalize(self, self._file.close)

    def append(self, content: Any) -> None:
        self._file.write(content)

    def mapped(self) -> pa.Buffer:
        self._file.flush()
        if self._file.tell() == 0:  # an empty file cannot be mapped
            return pa.py_buffer(b"")
        return pa.py_buffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))


class _Values:
    """An array of one type that grows on the disk: numbers, texts, or lists of either."""

    def __init__(self, arrow_type: pa.DataType) -> None:
        self._type, self._length, self._content = arrow_type, 0, _Buffer()
        self._offsets, self._end, self._inner = None, 0, None
        self._is_list = pa.types.is_large_list(arrow_type)
        self._offset_type = np.int32 if arrow_type == pa.string() else np.int64
        if self._is_list or arrow_type in (pa.string(), pa.large_string()):
            self._offsets = _Buffer()
            self._offsets.append(np.zeros(1, dtype=self._offset_type))
        if self._is_list:
            self._inner = _Values(arrow_type.value_type)

    def extend(self, array: pa.Array) -> None:
        """Take up an array that begins at its first value and has no nulls."""
        self._length += len(array)
        if self._type == pa.bool_():
            self._content.append(np.asarray(array.to_pylist(), dtype=np.uint8))
        elif self._offsets is None:
            self._content.append(array.buffers()[1])
        else:
            stops = np.frombuffer(array.buffers()[1], self._offset_type)[1 : len(array) + 1]
            self._offsets.append(stops + np.array(self._end, dtype=self._offset_type))
            size = int(stops[-1]) if len(stops) else 0
            self._end += size
            if self._inner is not None:
                self._inner.extend(array.values)
            elif size:
                self._content.append(array.buffers()[2][:size])

    def array(self) -> pa.Array:
        """All values, where they lie."""
        content = self._content.mapped()
        if self._type == pa.bool_():
            content = pa.py_buffer(np.packbits(np.frombuffer(content, np.uint8), bitorder="little"))
        if self._offsets is None:
            return pa.Array.from_buffers(self._type, self._length, [None, content])
        if self._inner is None:
            return pa.Array.from_buffers(self._type, self._length, [None, self._offsets.mapped(), content])
        buffers = [None, self._offsets.mapped()]
        return pa.Array.from_buffers(self._type, self._length, buffers, children=[self._inner.array()])


class _Column:
    """Values of one field on their way into the table."""

    def __init__(self, arrow_type: pa.DataType) -> None:
        self._repeats = pa.types.is_dictionary(arrow_type)
        self._value_type = arrow_type.value_type if self._repeats else arrow_type
        self._values = _Values(self._value_type)
        self._codes = _Values(pa.int32())
        self._known: dict[str | bytes, int] = {}
        self._distinct = 0

    def extend(self, values: list[Any]) -> None:
        """Take up the values of further rows."""
        if not self._repeats:
            self._values.extend(pa.array(values, self._value_type))
            return
        codes, new = np.empty(len(values), dtype=np.int32), []
        seen: dict[int, int] = {}  # by the object, as rows of a site share theirs
        for row, value in enumerate(values):
            if (code := seen.get(id(value))) is None:
                key = _key(value)
                code = self._known.get(key)
            if code is None:
                code = self._distinct
                self._distinct += 1
                new.append(value)
                if isinstance(key, str) or len(self._known) < _REMEMBERED_LISTS:
                    self._known[key] = code
            codes[row] = seen[id(value)] = code
        self._codes.extend(pa.array(codes))
        if new:
            self._values.extend(pa.array(new, self._value_type))

    def array(self) -> pa.Array:
        if not self._repeats:
            return self._values.array()
        return pa.DictionaryArray.from_arrays(self._codes.array(), self._values.array())


def _key(value: str | list[Any]) -> str | bytes:
    """What is equal where the content is; NaN does not equal itself, its bytes do."""
    if isinstance(value, str):
        return value
    numbers = not value or isinstance(value[0], float)
    content = np.asarray(value, dtype=np.float64).tobytes() if numbers else repr(value).encode()
    return hashlib.blake2b(content, digest_size=16).digest()


def make_batch(recordings: Iterable[Recording]) -> pa.RecordBatch:
    """The table of ``recordings`` in their order, with a column per field of :class:`mcsp.schema.Recording`.

    Of an iterator only a thousand recordings exist at a time; what is made of them lies in temporary files.
    """
    columns = {field.name: _Column(field.type) for field in SCHEMA}
    rows = iter(recordings)
    while part := list(islice(rows, _ROWS_AT_ONCE)):
        for name, column in columns.items():
            column.extend([getattr(recording, name) for recording in part])
    return pa.RecordBatch.from_arrays([column.array() for column in columns.values()], schema=SCHEMA)


def write_table(file: Path, recordings: Iterable[Recording]) -> None:
    """Write ``recordings.arrow``, a function of ``recordings`` alone, in constant memory."""
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_batch(make_batch(recordings))


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
        """Wrap the result of :func:`make_batch` or of a mapped file."""
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
        recordings = cls.mapped(file)
        require_sound_table(recordings._batch, str(file))
        return recordings

    @classmethod
    def mapped(cls, file: Path) -> "Recordings":
        """As :meth:`open`, of a table that was looked at before, or that this process has written."""
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(file)))
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except (OSError, pa.ArrowInvalid) as error:
            raise ValueError(f"{file}: cannot read the table of recordings ({str(error).splitlines()[0]})") from None
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
        return (type(self), (self._batch,)) if self._file is None else (type(self).mapped, (self._file,))

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
        """A text field: int32 codes per row, without a copy where the field repeats, and the text of each code.

        Raises:
            ValueError: any other field.
        """
        array = self._batch.column(name)
        if array.type == pa.large_string():
            array = array.dictionary_encode()
        elif name not in REPEATED_TEXT:
            raise ValueError(f"column {name}: expected one of texts")
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
