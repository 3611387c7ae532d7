"""Write the table of recordings in constant memory: rows go to temporary files as columns, which are then mapped.

The temporary files have no names and lie in ``TMPDIR``; they take as much as the table itself.
"""

import hashlib
import mmap
import tempfile
import weakref
from collections.abc import Iterable
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mcsp.schema import Recording

# Every other field is text of its own for each row.
REPEATED_TEXT = ("shard", "modality", "site", "task", "run", "split", "unit", "dtype", "space")
REPEATED_LISTS = {"channels": pa.string(), "positions_mm": pa.float64(), "channel_good": pa.bool_()}
_NUMBERS = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
_ROWS_AT_ONCE = 1024
# A list that comes again after so many different ones is stored again: where the positions of every subject were
# measured, the memory of all of them would grow with the corpus.
_REMEMBERED_LISTS = 1 << 16


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
