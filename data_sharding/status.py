"""What a running build tells: a line per site on the terminal, and a small JSON file that others may read."""

import json
import sys
import time
from datetime import UTC, datetime
from typing import Any

from tqdm import tqdm

from mcsp.data_sharding.storage import Location, write_atomic

STATUS_NAME = "status.json"
_WRITE_SECONDS = 3.0


class BuildStatus:
    """Counts of a running build.

    The file holds ``{"state", "started", "updated", "sites": {name: {"found", "done", "quarantined", "hours"}},
    "shards": {"done", "total"}, "hours_per_second", "seconds_left"}``; ``state`` is ``running``, ``complete`` or
    ``failed``, ``done`` counts stored and quarantined recordings, times are ISO 8601 in UTC.
    """

    def __init__(self, file: Location, found: dict[str, int], shards: int) -> None:
        """Nothing is done yet of ``found`` recordings per site in ``shards`` shards."""
        self._file = file
        self._sites: dict[str, dict[str, Any]] = {
            site: {"found": n, "done": 0, "quarantined": 0, "hours": 0.0} for site, n in sorted(found.items())
        }
        self._shards = {"done": 0, "total": shards}
        self._started, self._written = time.time(), 0.0
        self._built: dict[str, float] = {"recordings": 0, "hours": 0.0}  # in this run
        width = max(map(len, found), default=0)
        # A log file gets a line now and then, a terminal a live one.
        interval = 0.5 if sys.stderr.isatty() else 10.0
        self._bars = {
            site: tqdm(
                total=n, desc=site.ljust(width), unit="rec", position=i, mininterval=interval, dynamic_ncols=True,
                file=sys.stderr,
            )
            for i, (site, n) in enumerate(sorted(found.items()))
        }  # fmt: skip
        self.write("running")

    def add(self, sites: dict[str, list[float]], kept: bool) -> None:
        """A shard is done: stored, quarantined and hours of each site; ``kept`` where it was there before."""
        for site, (stored, quarantined, hours) in sites.items():
            counts, bar = self._sites[site], self._bars[site]
            counts["done"] += int(stored + quarantined)
            counts["quarantined"] += int(quarantined)
            counts["hours"] = round(counts["hours"] + hours, 6)
            if not kept:
                self._built["recordings"] += stored + quarantined
                self._built["hours"] += hours
            bar.update(int(stored + quarantined))
            rate = self._built["hours"] / max(time.time() - self._started, 1e-9)
            bar.set_postfix_str(f"quarantined {counts['quarantined']}, {rate:.3g} h/s in all", refresh=False)
        self._shards["done"] += 1
        if time.time() - self._written > _WRITE_SECONDS:
            self.write("running")

    def correct(self, before: dict[str, list[float]], after: dict[str, list[float]]) -> None:
        """A shard was built again, without recordings that are stored elsewhere."""
        for site, (_, quarantined, hours) in after.items():
            self._sites[site]["quarantined"] += int(quarantined - before[site][1])
            self._sites[site]["hours"] = round(self._sites[site]["hours"] + hours - before[site][2], 6)

    def write(self, state: str) -> None:
        """Write the file; called by :meth:`add` every few seconds."""
        self._written = time.time()
        seconds = self._written - self._started
        left = sum(counts["found"] - counts["done"] for counts in self._sites.values())
        rate = self._built["recordings"] / max(seconds, 1e-9)
        content: dict[str, Any] = {
            "state": state,
            "started": _iso(self._started),
            "updated": _iso(self._written),
            "sites": {
                site: {k: v if k == "hours" else int(v) for k, v in c.items()} for site, c in self._sites.items()
            },
            "shards": self._shards,
            "hours_per_second": round(self._built["hours"] / max(seconds, 1e-9), 6),
            "seconds_left": round(left / rate, 1) if rate > 0 else None if left else 0.0,
        }
        write_atomic(self._file, json.dumps(content).encode())

    def close(self, state: str) -> None:
        """The last word: ``complete`` or ``failed``."""
        for bar in self._bars.values():
            bar.close()
        self.write(state)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
