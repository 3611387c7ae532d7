"""Read what a pretraining run wrote about itself: ``metrics.jsonl`` and ``events.jsonl``, line by line."""

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_STEP = re.compile(rb'\{"step": (\d+)[,}]')  # how a line of metrics.jsonl begins


def iter_metrics(run_dir: Path) -> Iterator[dict[str, float]]:
    """The whole lines of ``metrics.jsonl``, ``null`` as NaN; nothing where there is no such file."""
    for line in _whole_lines(run_dir / "metrics.jsonl"):
        yield {name: math.nan if value is None else value for name, value in line.items()}


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """All of :func:`iter_metrics`."""
    return list(iter_metrics(run_dir))


def iter_events(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of ``events.jsonl``, oldest first; nothing where there is no such file."""
    return _whole_lines(run_dir / "events.jsonl")


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """All of :func:`iter_events`."""
    return list(iter_events(run_dir))


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                found = json.loads(line)
            except ValueError:  # cut off by a crash or a full disk, or damaged
                continue
            if isinstance(found, dict):
                yield found


def keep_steps(run_dir: Path, last: int) -> None:
    """Leave in ``metrics.jsonl`` the lines of steps 1 to ``last``: later ones will be taken again.

    The lines are copied as they are, and the file is replaced whole: a crash in between loses nothing.
    """
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return
    with path.open("rb") as old:
        if all(_is_kept(line, last) for line in old):
            return
    aside = path.with_suffix(".new")
    with path.open("rb") as old, aside.open("wb") as new:
        new.writelines(line for line in old if _is_kept(line, last))
        new.flush()
        os.fsync(new.fileno())
    os.replace(aside, path)


def first_to_name(own: Path, path: Path) -> bool:
    """Give the file ``own`` the name ``path`` unless there is one already: of several that try, one gets it.

    ``own`` may still be there afterwards.
    """
    try:
        os.link(own, path)
    except FileExistsError:
        return False
    except OSError:  # no hard links on this file system
        if path.exists():
            return False
        os.replace(own, path)
    return True


def _is_kept(line: bytes, last: int) -> bool:
    step = _STEP.match(line)
    return step is not None and 1 <= int(step[1]) <= last and line.endswith(b"}\n")


def open_to_append(path: Path) -> IO[str]:
    """Open a file of lines to add to it; what a crash has cut off gets a line of its own."""
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
    return path.open("a")
