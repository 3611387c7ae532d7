"""How far a build is: counts from the workers, lines on the terminal, and ``.build/status.json`` for others."""

import json
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from mcsp.data_sharding.store.files import Location, size, write_atomic
from mcsp.data_sharding.store.index import BUILD_NAME, INDEX_NAME
from mcsp.outside import read_object
from mcsp.wording import columns

STATUS_FILE = f"{BUILD_NAME}/status.json"
# A build writes its status when a shard is done, which may take minutes.
_STALE_SECONDS = 900
_WRITE_SECONDS = 3.0
# A terminal shows the lines in place; a log gets them now and then.
_DRAW_SECONDS, _LOG_SECONDS = 1.0, 60.0
# Site -> recordings stored, recordings rejected, hours stored.
SiteCounts = dict[str, list[float]]


class Progress:
    """The latest counts of each shard that is being built."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._shards: dict[str, SiteCounts] = {}

    def tell(self, shard: str, counts: SiteCounts) -> None:
        """A worker has got so far."""
        self._shards[shard] = counts

    def of(self, shards: Sequence[str]) -> dict[str, SiteCounts]:
        """What is known of some shards; all others are forgotten."""
        self._shards = {shard: self._shards[shard] for shard in shards if shard in self._shards}
        return self._shards


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
        write_atomic(self._out / STATUS_FILE, json.dumps(self._content(state)).encode(), private=True)

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
                lines = [*lines[: height - 4], f"... {hidden} more sites: mcsp status {self._out}", *lines[-2:]]
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


def read_status(out: Location) -> dict[str, Any] | None:
    """The status of the build in ``out``; None where it has none.

    Raises:
        ValueError: the folder does not exist, or the file is no status.
    """
    file = out / STATUS_FILE
    if size(file) is None:
        if not out.is_dir():
            raise ValueError(f"{out}: no such folder; expected the out_dir of a build")
        return None
    status = read_object(file)
    missing = {"state", "started", "updated", "sites", "shards", "hours_per_second", "seconds_left"} - set(status)
    if missing:
        raise ValueError(f"{file}: expected the keys {sorted(missing)}, found only {sorted(status)}")
    return status


def status_lines(out: Location, status: dict[str, Any] | None, now: datetime) -> list[str]:
    """One line per site and a verdict.

    Sites are mixed in shards, so all of them end at about the same time, and a site's share of the hours is its share
    of the rate.
    """
    if status is None:
        finished = size(out / INDEX_NAME) is not None
        return [f"{out}: {'a finished corpus' if finished else 'no build was started here'}, without a status"]
    running = status["state"] == "running"
    sites: dict[str, dict[str, Any]] = status["sites"]
    everything = {k: sum(site[k] for site in sites.values()) for k in ("found", "done", "quarantined", "hours")}
    rows = [("site", "found", "done", "quarantined", "hours", "hours/s", "left")]
    for name, counts in [*sorted(sites.items()), ("all", everything)]:
        share = counts["hours"] / everything["hours"] if everything["hours"] else 0.0
        rate = f"{status['hours_per_second'] * share:.3g}" if running else ""
        complete = counts["done"] >= counts["found"]
        left = "" if not running else "done" if complete else _duration(status["seconds_left"])
        percent = 100 * counts["done"] // counts["found"] if counts["found"] else 100
        done = f"{counts['done']} ({percent} %)"
        values = (str(counts["found"]), done, str(counts["quarantined"]), f"{counts['hours']:.2f}", rate, left)
        rows.append((name, *values))
    return [*columns(rows, right=1), f"{out}: {_verdict(status, now)}"]


def _verdict(status: dict[str, Any], now: datetime) -> str:
    shards = f"{status['shards']['done']} of {status['shards']['total']} shards"
    since = (now - _time(status["updated"])).total_seconds()
    took = _duration((_time(status["updated"]) - _time(status["started"])).total_seconds())
    if status["state"] == "complete":
        return f"complete, {shards} in {took}"
    if status["state"] == "failed":
        return f"failed after {took}, {shards} done; the same command goes on where it stopped"
    if since > _STALE_SECONDS:
        return (
            f"nothing new for {_duration(since)}, {shards} done: the build may have died; look at its job, and start "
            "the same command again, which goes on where it stopped"
        )
    return f"running for {took}, {shards} done, as of {_duration(since)} ago"


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
