"""Read JSON and text of others within limits of size and depth."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

# The index of a hundred thousand shards and a participants.tsv of half a million people have some 100 MB; what is
# larger is neither, and would fill the memory.
MOST_BYTES = 1 << 28
# One line of a list, and one text inside a table, as the columns of participants.tsv that went along.
MOST_LINE_BYTES = 1 << 20
_PIECE_BYTES = 1 << 16


def read_bounded(path: Any) -> bytes:
    """The content of a file; ``path`` is local or any other that opens as ``pathlib.Path`` does.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger than ``MOST_BYTES``.
    """
    with path.open("rb") as file:
        content: bytes = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"{path}: more than {MOST_BYTES:,} bytes, expected a text of at most so many")
    return content


def read_text(path: Any) -> str:
    """A text in UTF-8, with or without the mark that Excel puts first; raise ``ValueError`` for another encoding."""
    try:
        return read_bounded(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, found another encoding ({error}); save it so") from None


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; raise ``ValueError`` for other text and for one that is nested too deep."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_object(path: Any) -> dict[str, Any]:
    """A JSON object in a file; raise ``ValueError``, one line that names the file."""
    try:
        values = parse_json(read_bounded(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        known = str(error).startswith(str(path))
        raise ValueError(str(error) if known else f"{path}: not readable as JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file without their ends; raise ``ValueError`` for one that is longer than a list's may be."""
    rest = b""
    while piece := file.read(_PIECE_BYTES):
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
        if len(rest) > MOST_LINE_BYTES:
            raise ValueError(f"a line of more than {MOST_LINE_BYTES:,} bytes")
    if rest:
        yield rest


def sha256_json(values: Any) -> str:
    """SHA-256 of plain values, by their JSON with sorted keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sha256_file(path: Any) -> str:
    """SHA-256 of a file as hexadecimal digits; ``path`` is local or any other that opens as ``pathlib.Path`` does."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
