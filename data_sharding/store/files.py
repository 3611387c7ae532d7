"""Location of a corpus: a local folder, or a file system of fsspec (``s3://``, ``gs://``, ``memory://``).

A local place is a ``pathlib.Path``, any other a ``upath.UPath``, which has the same methods. Credentials and endpoints
are those of the file system's own package (for S3 the environment variables ``AWS_*``, with ``AWS_ENDPOINT_URL``).
"""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from upath import UPath

Location: TypeAlias = "Path | UPath"

# How files of a corpus are opened to read: their bytes as they are, and not by programs that this one starts.
READ_ONLY = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_position = threading.Lock()


def location(place: "str | os.PathLike[str] | Location") -> Location:
    """The folder or file that ``place`` names; raise ``ValueError`` for a protocol that is unknown or not installed."""
    if isinstance(place, UPath) and not isinstance(place, Path):
        return place
    text = os.fspath(place)
    protocol, separator, rest = text.partition("://")
    if not separator:
        return Path(text)
    if protocol == "file":
        return Path(rest)
    try:
        found = UPath(text)
        found.fs  # noqa: B018  imports the protocol's package
    except (ImportError, ValueError) as error:
        raise ValueError(f"{text}: cannot use {protocol}:// ({' '.join(str(error).split())})") from None
    return found


def is_local(place: Location) -> bool:
    """Whether ``place`` is a path of this machine, which ``open``, ``pread`` and ``flock`` understand."""
    return isinstance(place, Path)


def write_atomic(path: Location, content: bytes, private: bool = False) -> None:
    """Write ``content`` so that ``path`` is complete or absent, also after a power cut; ``private``: for you alone."""
    with new_file(path, private) as temporary:
        temporary.write_bytes(content)


@contextmanager
def new_file(path: Location, private: bool = False) -> Iterator[Path]:
    """A local file to write, which becomes ``path`` where the block ends well, and vanishes where it does not."""
    with scratch_file(path.parent, private) as temporary:
        yield temporary
        publish(temporary, path)


@contextmanager
def scratch_file(folder: Location, private: bool = False) -> Iterator[Path]:
    """An empty local file of this process, for :func:`publish`: in ``folder`` itself, or in this machine's own."""
    handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=folder if isinstance(folder, Path) else None)
    os.close(handle)
    os.chmod(name, 0o600 if private else 0o644)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def private_folder(folder: Location) -> None:
    """Make a folder, and those above it, into which only this user can look, whatever the umask; none in a store."""
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)


@contextmanager
def scratch_folder(folder: Location) -> Iterator[Path]:
    """An empty local folder of this process, for files that :func:`publish` moves: in ``folder``, or in this machine's
    own; it vanishes with what is left in it."""
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=".", suffix=".tmp", dir=folder if isinstance(folder, Path) else None, ignore_cleanup_errors=True
    ) as name:
        yield Path(name)


def publish(temporary: Path, path: Location) -> None:
    """Give a scratch file its name: synced and renamed on a disk, one upload to an object store.

    Such a store shows an object complete or not at all.
    """
    if isinstance(path, Path):
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    else:
        path.fs.put_file(str(temporary), path.path)


def size(path: Location) -> int | None:
    """Length of a file in bytes; None where there is no such file."""
    _look_again(path)
    try:
        return path.stat().st_size if path.is_file() else None
    except FileNotFoundError:
        return None


def names(folder: Location) -> list[str]:
    """Sorted names in a folder; none where there is no such folder."""
    _look_again(folder)
    try:
        return sorted(path.name for path in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):  # an object store has no empty folders
        return []


def _look_again(path: Location) -> None:
    """Forget listings: other processes write to the same store."""
    if not isinstance(path, Path):
        path.fs.invalidate_cache()


def read_into(descriptor: int, content: memoryview, offset: int) -> int:
    """Fill ``content`` from ``offset`` of an open file on; the number of bytes that there were.

    Threads may share the file: where a system (Windows) reads at its one position alone, they take turns.
    """
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [content], offset)
    with _position:
        os.lseek(descriptor, offset, os.SEEK_SET)
        found = 0
        while piece := os.read(descriptor, len(content) - found):
            content[found : found + len(piece)] = piece
            found += len(piece)
        return found


def read_range(path: Location, start: int, n_bytes: int) -> bytes:
    """``n_bytes`` from ``start`` on, fewer at the end of the file; raise ``OSError`` where it cannot be read."""
    if isinstance(path, Path):
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(n_bytes)
    return path.fs.cat_file(path.path, start=start, end=start + n_bytes)
