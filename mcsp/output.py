"""Write output files whole: under another name first, then under their own. An error names the file.

What must outlive a power cut is written by :mod:`mcsp.data_sharding.store.files`.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """An empty file to write to; it replaces ``path`` where the block ends well, and is removed where it does not.

    Whoever reads ``path`` meanwhile finds the old content or the new. A link stays a link.

    Raises:
        OSError: a full disk, no permission, a folder in its place; the message ends with ``path``.
    """
    place = Path(os.path.realpath(path))
    aside = place.with_name(f".{place.name}.{os.getpid()}.new")
    try:
        if place.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        aside.touch()
        yield aside
        os.replace(aside, place)
    except OSError as error:
        if error.filename in (None, str(aside)):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        aside.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Replace a text file, in UTF-8 whatever the machine's own encoding is; see :func:`whole_file`."""
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")
