"""How lists and digests are put into messages: one wording for the whole project."""

import hashlib
from collections.abc import Iterable
from typing import Any


def listed(names: Iterable[Any], most: int = 8, separator: str = ", ") -> str:
    """Some of the names, and how many more there are: ``listed(["a", "b", "c"], 2) -> "a, b and 1 more"``."""
    found = [str(name) for name in names]
    return separator.join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def sha256_file(path: Any) -> str:
    """SHA-256 of a file as hexadecimal digits; ``path`` is local or any other that opens as ``pathlib.Path`` does."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
