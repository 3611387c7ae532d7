"""Shards of a remote corpus on the disk of this machine: fetched once for all processes, checked, ahead of use.

The folder looks like a corpus, so everything below the reader only knows local files. A file in it is complete or
absent; a lock per file lets one process fetch and the others wait.
"""

import os
import queue
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from mcsp.data_sharding.store.files import Location
from mcsp.data_sharding.store.index import SHARDS_NAME
from mcsp.wording import sha256_file

_PIECE_BYTES = 8 << 20
_ATTEMPTS = 3
_THREADS = 2
# So long a shard that could not be fetched is not asked for again.
_FORGET_SECONDS = 60.0


class ShardCache:
    """What was fetched of one remote corpus."""

    def __init__(
        self, source: Location, cache_dir: str | os.PathLike[str] | None, index_hash: str, limit_gb: float
    ) -> None:
        """Keep files of ``source`` in a folder of their own below ``cache_dir``, shards up to ``limit_gb`` together."""
        root = Path(cache_dir) if cache_dir is not None else Path(tempfile.gettempdir()) / f"mcsp-cache-{os.getuid()}"
        self.source, self.folder, self.limit_bytes = source, root / index_hash[:32], int(limit_gb * 1e9)
        (self.folder / SHARDS_NAME).mkdir(parents=True, exist_ok=True)
        (self.folder / ".locks").mkdir(exist_ok=True)
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
        self.fetch(f"{SHARDS_NAME}/{name.removesuffix('.tar')}.crc.npy")
        self.fetch(f"{SHARDS_NAME}/{name}", described)

    def _describe(self, shards: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if not self._described:
            self._described = {shard["name"]: shard for shard in shards}
        return self._described

    def fetch(self, name: str, described: dict[str, Any] | None = None) -> None:
        """Have one file on this machine; check its size and SHA-256 where it is ``described``.

        Raises:
            OSError: after several attempts; asked again within a minute it is raised at once.
        """
        target = self.folder / name
        if not _touch(target):
            with self._lock(name):
                if not _touch(target):  # another process may have been faster
                    self._fetch(name, target, described)

    def _fetch(self, name: str, target: Path, described: dict[str, Any] | None) -> None:
        since, error = self._failed.get(name, (0.0, None))
        if error is not None and time.monotonic() - since < _FORGET_SECONDS:
            raise error
        temporary = target.with_name(f".{target.name}.tmp")
        for attempt in range(_ATTEMPTS):
            try:
                self._download(name, temporary, described)
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

    def _download(self, name: str, temporary: Path, described: dict[str, Any] | None) -> None:
        if described:
            self._reserve(temporary, described["bytes"])
        with (self.source / name).open("rb") as remote, open(temporary, "r+b" if described else "wb") as local:
            while piece := remote.read(_PIECE_BYTES):
                local.write(piece)
            local.truncate()
        if described:
            found = {"bytes": temporary.stat().st_size, "sha256": sha256_file(temporary)}
            wrong = [f"{key} {found[key]}, expected {described[key]}" for key in found if found[key] != described[key]]
            if wrong:
                raise OSError(f"{self.source / name}: differs from the index: {wrong[0]}")

    def _reserve(self, temporary: Path, n_bytes: int) -> None:
        """Delete the shards that were unused for longest until ``n_bytes`` more fit, and claim these."""
        with self._lock("room"):
            files = [(path, path.stat()) for path in self._stored()]
            total = sum(stat.st_size for _, stat in files)
            for path, stat in sorted(files, key=lambda item: item[1].st_mtime_ns):
                if total + n_bytes <= self.limit_bytes:
                    break
                if path.suffix == ".tar":  # a .tmp is being fetched
                    path.unlink()
                    total -= stat.st_size
            with open(temporary, "wb") as file:
                file.truncate(n_bytes)

    def _stored(self) -> list[Path]:
        return [p for p in (self.folder / SHARDS_NAME).iterdir() if p.name.endswith((".tar", ".tar.tmp"))]

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Only one process or thread of this machine at a time; a process that dies lets go."""
        with FileLock(self.folder / ".locks" / name.replace("/", "-")):
            yield

    def fetch_ahead(self, names: Iterable[str], shards: Sequence[dict[str, Any]]) -> None:
        """Fetch shards in the background. What fails is told when the shard is read."""
        self._describe(shards)
        for name in names:
            if name not in self._asked and not _touch(self.folder / SHARDS_NAME / name):
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


def _touch(path: Path) -> bool:
    """Whether ``path`` is there; marks it as used now."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
