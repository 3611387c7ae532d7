"""What a running build tells: a line per site on the terminal, and a small JSON file that others may read."""

import json
import shutil
import sys
import time
from datetime import UTC, datetime
from typing import Any

from mcsp.data_sharding.progress import SiteCounts
from mcsp.data_sharding.storage import Location, write_atomic
from mcsp.data_sharding.watch import STATUS_FILE, status_lines

_WRITE_SECONDS = 3.0
# A terminal shows the lines in place; a log gets them now and then.
_DRAW_SECONDS, _LOG_SECONDS = 1.0, 60.0


class BuildStatus:
    """Counts of a running build.

    The file holds ``{"state", "started", "updated", "sites": {name: {"found", "done", "quarantined", "hours"}},
    "shards": {"done", "total"}, "hours_per_second", "seconds_left"}``; ``state`` is ``running``, ``complete`` or
    ``failed``, ``done`` counts stored and quarantined recordings, also those of shards that are being built, times are
    ISO 8601 in UTC.
    """

    def __init__(self, out: Location, found: dict[str, int], shards: int) -> None:
        """Nothing is done yet of ``found`` recordings per site in ``shards`` shards."""
        self._out, self._found = out, dict(sorted(found.items()))
        self._done: SiteCounts = {site: [0, 0, 0.0] for site in self._found}  # of finished shards
        self._running: dict[str, SiteCounts] = {}  # of shards that are being built
        self._shards = {"done": 0, "total": shards}
        self._kept: list[float] = [0, 0.0]  # recordings and hours that were there before
        self._started = time.time()
        self._written = self._drawn = 0.0
        self._lines_on_terminal = 0
        self.write("running")

    def add(self, shard: str, sites: SiteCounts, kept: bool) -> None:
        """A shard is done: stored, quarantined and hours of each site; ``kept`` where it was there before."""
        self._running.pop(shard, None)
        for site, counts in sites.items():
            self._done[site] = [a + b for a, b in zip(self._done[site], counts, strict=True)]
            if kept:
                self._kept = [self._kept[0] + counts[0] + counts[1], self._kept[1] + counts[2]]
        self._shards["done"] += 1
        self._tell()

    def correct(self, before: SiteCounts, after: SiteCounts) -> None:
        """A shard was built again, without recordings that are stored elsewhere."""
        for site, counts in after.items():
            changes = zip(self._done[site], counts, before[site], strict=True)
            self._done[site] = [total + new - old for total, new, old in changes]
        self._tell()

    def look(self, running: dict[str, SiteCounts]) -> None:
        """What is known of the shards that are being built."""
        self._running = running
        self._tell()

    def say(self, line: str) -> None:
        """Print a line above those of the sites."""
        self._erase()
        print(line, file=sys.stderr, flush=True)

    def write(self, state: str) -> None:
        """Write the file."""
        self._written = time.time()
        write_atomic(self._out / STATUS_FILE, json.dumps(self._content(state)).encode())

    def close(self, state: str) -> None:
        """The last word: ``complete`` or ``failed``."""
        self.write(state)
        self._draw(state)

    def _tell(self) -> None:
        now = time.time()
        if now - self._written > _WRITE_SECONDS:
            self.write("running")
        if now - self._drawn > (_DRAW_SECONDS if sys.stderr.isatty() else _LOG_SECONDS):
            self._draw("running")

    def _content(self, state: str) -> dict[str, Any]:
        sites, seconds = {}, time.time() - self._started
        for site, found in self._found.items():
            parts = [self._done[site], *(counts[site] for counts in self._running.values() if site in counts)]
            stored, quarantined, hours = (sum(values) for values in zip(*parts, strict=True))
            done = int(stored + quarantined)
            sites[site] = {"found": found, "done": done, "quarantined": int(quarantined), "hours": round(hours, 6)}
        left = sum(counts["found"] - counts["done"] for counts in sites.values())
        rate = (sum(counts["done"] for counts in sites.values()) - self._kept[0]) / max(seconds, 1e-9)
        hours_built = sum(counts["hours"] for counts in sites.values()) - self._kept[1]
        return {
            "state": state,
            "started": _iso(self._started),
            "updated": _iso(time.time()),
            "sites": sites,
            "shards": self._shards,
            "hours_per_second": round(max(hours_built, 0.0) / max(seconds, 1e-9), 6),
            "seconds_left": round(left / rate, 1) if rate > 0 else None if left else 0.0,
        }

    def _draw(self, state: str) -> None:
        self._drawn = time.time()
        lines = status_lines(self._out, self._content(state), datetime.now(UTC))
        if sys.stderr.isatty():
            width, height = shutil.get_terminal_size()
            if len(lines) >= height:  # the sum and the verdict are the last two
                hidden = len(lines) - height + 2
                lines = [*lines[: height - 4], f"... {hidden} more sites: corpus_status.py {self._out}", *lines[-2:]]
            lines = [line[: width - 1] for line in lines]
        self._erase()
        print("\n".join(lines), file=sys.stderr, flush=True)
        self._lines_on_terminal = len(lines)

    def _erase(self) -> None:
        if sys.stderr.isatty() and self._lines_on_terminal:
            print(f"\033[{self._lines_on_terminal}A\033[J", end="", file=sys.stderr)
        self._lines_on_terminal = 0


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
