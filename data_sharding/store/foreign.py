"""Forms that names and hashes of an index must match before they become paths.

A corpus may come from a stranger. What is not of these forms is refused when the corpus is opened, so that no name
leads out of the corpus or of the cache.
"""

import re
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute

from mcsp.outside import MOST_LINE_BYTES
from mcsp.schema import MODALITIES, SITE_NAME, SPLITS

SHA256 = "[0-9a-f]{64}"
SHARD = rf"(?:{'|'.join(SPLITS)})-\d{{1,20}}(?:-[0-9a-f]{{6,64}})?\.tar"
_SPLIT, _MODALITY = "|".join(SPLITS), "|".join(MODALITIES)
_TABLES = {"recordings": "arrow", "rejected": "jsonl", "repairs": "jsonl"}
# Of columns in the words of RE2: a letter or digit of any alphabet, and then what labels and members hold.
_LABEL = r"[\pL\pN][\pL\pN_.+-]{0,250}"
_COLUMNS = {
    "shard": SHARD, "site": SITE_NAME, "split": _SPLIT, "modality": _MODALITY, "dtype": "float16|float32",
    "key": _LABEL, "member": _LABEL, "subject": _LABEL, "session": f"(?:{_LABEL})?",
}  # fmt: skip
_MOST_NUMBER = 1 << 53  # what JSON numbers and sizes of files hold exactly


def require_sound_index(index: dict[str, Any], file: str) -> None:
    """Raise ``ValueError``, one line that names ``file``, where a name, hash or count has another form."""
    for where, value, form in _texts(index):
        if not (isinstance(value, str) and re.fullmatch(form, value)):
            raise ValueError(f"{file}: {where} is {value!r:.80}, expected the form {form}")
    for where, value in _counts(index):
        if not (isinstance(value, int) and 0 <= value < _MOST_NUMBER):
            raise ValueError(f"{file}: {where} is {value!r:.80}, expected a count")
    hours = _of(index["totals"]["all"], "hours")
    if not (isinstance(hours, int | float) and 0 <= hours < _MOST_NUMBER):
        raise ValueError(f"{file}: totals.all.hours is {hours!r:.80}, expected a number")


def _texts(index: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    yield "index_hash", index["index_hash"], SHA256
    for i, shard in enumerate(_items(index["shards"], list)):
        yield f"shards[{i}].name", _of(shard, "name"), SHARD
        yield f"shards[{i}].sha256", _of(shard, "sha256"), SHA256
    for table, suffix in _TABLES.items():
        yield f"tables.{table}", _of(index["tables"], table), rf"{table}-[0-9a-f]{{12}}\.{suffix}"
    totals = index["totals"]
    for section, form in (("sites", SITE_NAME), ("splits", _SPLIT), ("modalities", _MODALITY)):
        for name in _items(_of(totals, section), dict):
            yield f"totals.{section}", name, form
    for reason in _items(index["reasons"], dict):
        yield "reasons", reason, "[a-z0-9_-]{1,64}"


def _counts(index: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for i, shard in enumerate(index["shards"]):
        for name in ("bytes", "samples", "recordings"):
            yield f"shards[{i}].{name}", shard.get(name)
    for name in ("samples", "recordings"):
        yield f"totals.all.{name}", _of(_of(index["totals"], "all"), name)
    for site in index["totals"]["sites"].values():
        yield "totals.sites.recordings", _of(site, "recordings")
        yield "totals.sites.simulated", _of(site, "simulated")
    for count in index["reasons"].values():
        yield "reasons", count


def _of(values: Any, name: str) -> Any:
    return values.get(name) if isinstance(values, dict) else None


def _items(values: Any, kind: type[Collection[Any]]) -> list[Any]:
    """The items of a list or the names of an object; one that is not such has an item that no form fits."""
    return list(values) if isinstance(values, kind) else [None]


def require_sound_table(batch: pa.RecordBatch, file: str) -> None:
    """Raise ``ValueError``, one line, where reading a mapped table could leave its file, or a name has another form.

    Every offset, code and text is looked at once: Arrow itself believes what a file says of them.
    """
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file}: damaged or hostile table ({str(error).splitlines()[0]})") from None
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        values = column.dictionary if pa.types.is_dictionary(column.type) else column
        inner = values.values if pa.types.is_large_list(values.type) else values
        if column.null_count or values.null_count or inner.null_count:
            raise ValueError(f"{file}: column {name} has empty cells, expected none")
        if pa.types.is_large_string(values.type) and len(values):
            _require_texts(values, name, file)


def _require_texts(values: pa.Array, name: str, file: str) -> None:
    longest = pa.compute.max(pa.compute.binary_length(values)).as_py()
    if longest > MOST_LINE_BYTES:
        raise ValueError(f"{file}: column {name} has a text of {longest:,} bytes, expected {MOST_LINE_BYTES:,} at most")
    if name in _COLUMNS:
        fits = pa.compute.match_substring_regex(values, f"^(?:{_COLUMNS[name]})$")
        if not pa.compute.all(fits).as_py():
            found = values[pa.compute.index(fits, False).as_py()].as_py()
            raise ValueError(f"{file}: column {name} has {found!r:.80}, expected the form {_COLUMNS[name]}")
