"""What a build tells of itself in ``.build/status.json``, in words for a terminal; it may run anywhere."""

import json
from datetime import UTC, datetime
from typing import Any

from mcsp.data_sharding.index import INDEX_NAME
from mcsp.data_sharding.storage import Location, size

STATUS_FILE = ".build/status.json"
# A build writes its status when a shard is done, which may take minutes.
_STALE_SECONDS = 900


def read_status(out: Location) -> dict[str, Any] | None:
    """The status of the build in ``out``; None where it has none.

    Raises:
        ValueError: the folder does not exist, or the file is no status.
    """
    file = out / STATUS_FILE
    try:
        if size(file) is None:
            if not out.is_dir():
                raise ValueError(f"{out}: no such folder; expected the out_dir of a build")
            return None
        status = json.loads(file.read_bytes())
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror or error})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
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
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
    return [*lines, f"{out}: {_verdict(status, now)}"]


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
