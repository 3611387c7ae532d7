"""Shards of a remote corpus on the disk of this machine: fetched once for all processes, checked, ahead of use.

The folder looks like a corpus, so everything below the reader only knows local files. A file in it is complete or
absent; a lock per file lets one process fetch and the others wait. Folders and files belong to this user alone; the
SHA-256 of a shard is compared when a process opens it first, so that what lay there before is not believed.
"""

import hashlib
import os
import queue
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock
from platformdirs import user_cache_path

from mcsp.data_sharding.store.files import Location
from mcsp.data_sharding.store.index import SHARDS_NAME
from mcsp.outside import sha256_file
from mcsp.schema import crc_name

_PIECE_BYTES = 8 << 20
_ATTEMPTS = 3
_THREADS = 2
# So long a shard that could not be fetched is not asked for again.
_FORGET_SECONDS = 60.0
# A .crc.npy has four bytes for a block of some kilobytes, and a short header.
_CRC_HEADER_BYTES = 4096
# Ten million recordings take some 4 GB; a store that sends more would fill the disk.
_MOST_TABLE_BYTES = 1 << 36


class ShardCache:
    """What was fetched of one remote corpus."""

    def __init__(
        self, source: Location, cache_dir: str | os.PathLike[str] | None, index_hash: str, limit_gb: float
    ) -> None:
        """Keep files of ``source`` in a folder of their own below ``cache_dir``, shards up to ``limit_gb`` together.

        Names and hashes are those of a checked index (:func:`mcsp.data_sharding.store.index.read_index`).

        Raises:
            ValueError: the folder cannot be made, is a link, or belongs to somebody else.
        """
        root = Path(cache_dir) if cache_dir is not None else _own_folder(user_cache_path("mcsp"))
        self.source, self.folder, self.limit_bytes = source, root / index_hash[:32], int(limit_gb * 1e9)
        for folder in (self.folder, self.folder / SHARDS_NAME, self.folder / ".locks"):
            _own_folder(folder)
        self._verified: set[tuple[str, int, int]] = set()  # name, inode and bytes of the shards that were compared
        self._described: dict[str, dict[str, Any]] = {}
        self._failed: dict[str, tuple[float, OSError]] = {}
        self._queue: queue.Queue[str] = queue.Queue()
        self._asked: set[str] = set()
        self._threads: list[threading.Thread] = []

    def fetch_shard(self, name: str, shards: Sequence[dict[str, Any]]) -> None:
        """Have a shard and its checksums on this machine, which ``shards`` of the index describes.

        Raises:
            OSError: the store cannot be read, or gives something else than the index says.
            ValueError: the index does not know the shard, or it is larger than the cache.
        """
        described = self._describe(shards).get(name)
        if described is None:
            raise ValueError(f"{name}: not in the index")
        if described["bytes"] > self.limit_bytes:
            raise ValueError(
                f"{name}: has {described['bytes']} bytes, more than the {self.limit_bytes} bytes of cache_gb"
            )
        most = described["bytes"] + _CRC_HEADER_BYTES
        self._fetch(f"{SHARDS_NAME}/{crc_name(name)}", most)
        self._fetch(f"{SHARDS_NAME}/{name}", described["bytes"], described)

    def is_sound(self, name: str, descriptor: int) -> bool:
        """Whether an open shard is the one that the index describes, read once per process; a false one is removed."""
        status, described = os.fstat(descriptor), self._described[name]
        identity = (name, status.st_ino, status.st_size)
        if identity not in self._verified:
            with open(os.dup(descriptor), "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != described["sha256"]:
                for false in (name, crc_name(name)):
                    (self.folder / SHARDS_NAME / false).unlink(missing_ok=True)
                return False
            self._verified.add(identity)
        return True

    def fetch_table(self, name: str) -> None:
        """Have a table on this machine whose name holds the beginning of its SHA-256.

        Raises:
            OSError: the store cannot be read, or gives something else.
        """
        for _ in range(2):
            self._fetch(name, _MOST_TABLE_BYTES)
            found = sha256_file(self.folder / name)
            if found.startswith(Path(name).stem.rpartition("-")[2]):
                return
            (self.folder / name).unlink(missing_ok=True)  # it lay there before, or the store is not to be trusted
        raise OSError(f"{self.source / name}: has sha256 {found[:12]}, expected that of its name")

    def _describe(self, shards: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if not self._described:
            self._described = {shard["name"]: shard for shard in shards}
        return self._described

    def _fetch(self, name: str, most_bytes: int, described: dict[str, Any] | None = None) -> None:
        """Have one file on this machine; check its size and SHA-256 where it is ``described``.

        Raises:
            OSError: after several attempts; asked again within a minute it is raised at once.
        """
        target = self.folder / name
        if not _touch(target):
            with self._lock(name):
                if not _touch(target):  # another process may have been faster
                    self._attempt(name, target, most_bytes, described)

    def _attempt(self, name: str, target: Path, most_bytes: int, described: dict[str, Any] | None) -> None:
        since, error = self._failed.get(name, (0.0, None))
        if error is not None and time.monotonic() - since < _FORGET_SECONDS:
            raise error
        temporary = target.with_name(f".{target.name}.tmp")
        for attempt in range(_ATTEMPTS):
            try:
                self._download(name, temporary, most_bytes, described)
                with self._lock("room"):  # whoever makes room must find the files that it listed
                    os.replace(temporary, target)
                return
            except OSError as failure:
                error = failure
                with self._lock("room"):
                    temporary.unlink(missing_ok=True)
                if isinstance(failure, FileNotFoundError):
                    break
                time.sleep(0.2 * 4**attempt if attempt + 1 < _ATTEMPTS else 0)
        assert error is not None
        self._failed[name] = (time.monotonic(), error)
        raise error

    def _download(self, name: str, temporary: Path, most_bytes: int, described: dict[str, Any] | None) -> None:
        with (self.source / name).open("rb") as remote, self._reserved(temporary, described) as local:
            while piece := remote.read(_PIECE_BYTES):
                if local.tell() + len(piece) > most_bytes:
                    raise OSError(f"{self.source / name}: more than {most_bytes} bytes, expected that many at most")
                local.write(piece)
            local.truncate()
        if described:
            found = {"bytes": temporary.stat().st_size, "sha256": sha256_file(temporary)}
            wrong = [f"{key} {found[key]}, expected {described[key]}" for key in found if found[key] != described[key]]
            if wrong:
                raise OSError(f"{self.source / name}: differs from the index: {wrong[0]}")

    def _reserved(self, temporary: Path, described: dict[str, Any] | None) -> BinaryIO:
        """A new file, for a shard of its size: those that were unused for longest are deleted until it fits."""
        n_bytes = described["bytes"] if described else 0
        with self._lock("room"):
            temporary.unlink(missing_ok=True)  # of a process that died
            # For this user alone, and never what a link leads to.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            local = open(os.open(temporary, flags, 0o600), "wb")  # noqa: SIM115  the caller closes it
            files = [(path, path.stat()) for path in self._stored()] if described else []
            total = sum(status.st_size for _, status in files)
            for path, status in sorted(files, key=lambda item: item[1].st_mtime_ns):
                if total + n_bytes <= self.limit_bytes:
                    break
                if path.suffix == ".tar":  # a .tmp is being fetched
                    path.unlink()
                    total -= status.st_size
            local.truncate(n_bytes)
        return local

    def _stored(self) -> list[Path]:
        return [p for p in (self.folder / SHARDS_NAME).iterdir() if p.name.endswith((".tar", ".tar.tmp"))]

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Only one process or thread of this machine at a time; a process that dies lets go."""
        with FileLock(self.folder / ".locks" / name.replace("/", "-"), mode=0o600):
            yield

    def fetch_ahead(self, names: Iterable[str], shards: Sequence[dict[str, Any]]) -> None:
        """Fetch shards in the background. What fails is told when the shard is read."""
        self._describe(shards)
        for name in names:
            known = name in self._described and name not in self._asked
            if known and not _touch(self.folder / SHARDS_NAME / name):
                self._asked.add(name)
                self._queue.put(name)
        # Threads do not survive a fork, so they start where they are needed; as daemons they hold up no exit.
        if self._asked and not self._threads:
            self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(_THREADS)]
            for thread in self._threads:
                thread.start()

    def _work(self) -> None:
        while True:
            name = self._queue.get()
            with suppress(OSError, ValueError):
                self.fetch_shard(name, [])
            self._asked.discard(name)


def _own_folder(folder: Path) -> Path:
    """Make a folder that only this user can look into; raise ``ValueError`` where it is somebody else's or a link."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise ValueError(f"{folder}: a link or a file, expected a folder of your own; set another cache_dir")
        if status.st_uid != os.geteuid():
            raise ValueError(
                f"{folder}: belongs to uid {status.st_uid}, expected yours ({os.geteuid()}), as its owner could change "
                "what you read; set another cache_dir"
            )
        if status.st_mode & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be the cache ({error.strerror}); set another cache_dir") from None
    return folder


def _touch(path: Path) -> bool:
    """Whether ``path`` is there; marks it as used now."""
    try:
        os.utime(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
