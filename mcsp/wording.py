"""Wording of lists, tables and digests in messages."""

import html
import os
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

_MARKUP = {ord(c): f"\\{c}" for c in r"\`*_{}[]()#|~!$"} | {ord(c): html.escape(c) for c in "<>&"}
BOLD, CYAN, YELLOW = "1", "1;36", "1;33"  # codes of a terminal


def listed(names: Iterable[Any], most: int = 8, separator: str = ", ") -> str:
    """Some of the names, and how many more there are: ``listed(["a", "b", "c"], 2) -> "a, b and 1 more"``."""
    found = [str(name) for name in names]
    return separator.join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def counted(count: int, noun: str) -> str:
    """``counted(1, "site") -> "1 site"``, ``counted(2000, "site") -> "2,000 sites"``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def columns(rows: Sequence[Sequence[str]], right: int | None = None) -> list[str]:
    """Lines of a table for a terminal: two spaces at least between columns, those from ``right`` on to the right.

    Characters that a terminal would act upon are shown as "?".
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = enumerate(zip(row, widths, strict=True))
        lines.append(
            "  ".join(c.ljust(w) if right is None or k < right else c.rjust(w) for k, (c, w) in cells).rstrip()
        )
    return lines


def shortened(name: str, most: int) -> str:
    """At most so many characters of a name, for a place in a picture: ``shortened("abcdef", 4) -> "abc…"``."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def printable(text: str) -> str:
    """One line without control characters, which could move the cursor or change colours."""
    return "".join(c if c.isprintable() else "?" for c in text)


def styled(text: str, stream: TextIO, style: str = BOLD) -> str:
    """``text``, bold or in colour where ``stream`` is a terminal that shows it; see https://no-color.org."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty()
    return text if plain else f"\x1b[{style}m{text}\x1b[0m"


def markdown(text: str) -> str:
    """``text`` from outside for a Markdown file: one line that makes no link, picture, table cell or HTML.

    ``markdown("[a](b) <i>") -> r"\\[a\\]\\(b\\) &lt;i&gt;"``
    """
    return printable(" ".join(text.split())).translate(_MARKUP)
