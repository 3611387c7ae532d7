"""Datasets in an object store, as OpenNeuro's public bucket: planned from a listing, read one recording at a time.

A dataset is planned on a local folder of the same shape: its small texts are there, of everything else an empty file of
the same length. Who reads a recording copies its files first, and removes them after it.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from upath import UPath

from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import RecordingRef

# What planning reads; no table of this length is worth a copy of a whole dataset.
_TEXTS = (".json", ".tsv", ".bidsignore")
_MOST_BYTES = 1 << 24


def mirror(url: str, options: Mapping[str, Any], folder: Path) -> None:
    """Write the shape of a remote dataset into an empty folder.

    Raises:
        ValueError: one line: the store cannot be reached, or there is nothing.
    """
    store, top = _open(url, options)
    try:
        found = store.find(top, detail=True)
        for name, details in sorted(found.items()):
            relative = name.removeprefix(top).strip("/")
            path = folder / relative
            if not path.resolve().is_relative_to(folder.resolve()):  # a key of a store may hold ".."
                raise ValueError(f"the name {relative!r} leads out of the dataset")
            path.parent.mkdir(parents=True, exist_ok=True)
            # Planning needs the texts at the dataset's root; what lies deeper is read with its recording.
            if relative.endswith(_TEXTS) and details["size"] <= _MOST_BYTES and "/" not in relative:
                store.get_file(name, str(path))
            else:
                with open(path, "wb") as file:
                    file.truncate(details["size"])
            changed = details.get("LastModified") or details.get("created")
            seconds = changed.timestamp() if changed is not None else 0.0
            os.utime(path, (seconds, seconds))
    except (OSError, ValueError) as error:
        raise ValueError(f"{url}: cannot be listed ({' '.join(str(error).split())[:200]})") from None
    if not found:
        raise ValueError(f"{url}: nothing is there, expected a BIDS dataset")


@contextmanager
def local_copy(ref: RecordingRef) -> Iterator[RecordingRef]:
    """A recording of a remote dataset as files of this machine: copies that vanish with the block.

    Raises:
        RecordingError: ``missing-file`` or ``unreadable``, where the store does not give a file.
    """
    assert ref.site.url is not None, "a local dataset has its files here"
    store, top = _open(ref.site.url, ref.site.storage_options)
    with tempfile.TemporaryDirectory(prefix="mcsp-remote-") as folder:
        here = Path(folder)

        def fetched(path: Path) -> Path:
            """A file's copy on this machine, taken from the store at first."""
            relative = path.relative_to(ref.site.root).as_posix()
            copy = here / relative
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                try:
                    store.get_file(f"{top}/{relative}", str(copy))
                except FileNotFoundError:
                    raise RecordingError("missing-file", f"{path.name}: is not in {ref.site.url}") from None
                except OSError as error:
                    detail = " ".join(str(error).split())[:150]
                    raise RecordingError(
                        "unreadable", f"{path.name}: {ref.site.url} does not give it ({detail})"
                    ) from None
            return copy

        companions = {name: tuple(map(fetched, files)) for name, files in ref.companions.items()}
        yield replace(ref, site=replace(ref.site, root=here, url=None), path=fetched(ref.path), companions=companions)


def _open(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    try:
        place = UPath(url, **options)
        return place.fs, place.path.rstrip("/")
    except (ImportError, ValueError) as error:
        raise ValueError(f"{url}: cannot be opened ({' '.join(str(error).split())[:200]})") from None
