"""End a run that hangs: name the ranks and their phases, write their stacks, and exit.

Collectives wait for ever for a rank that is stopped, swapped out or behind a broken link. One thread per rank writes a
heartbeat to ``run_dir/heartbeats/`` and looks whether its own rank gets from one phase to the next; it works while the
main thread is stuck inside a collective, and needs no network.
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcsp import distributed
from mcsp.output import write_whole
from mcsp.training.clock import Clock
from mcsp.training.stopping import EXIT_HUNG, write_exit
from mcsp.wording import listed


def clear_heartbeats(run_dir: Path) -> None:
    """Delete the heartbeats of an earlier start, which may have had more ranks."""
    for path in (run_dir / "heartbeats").glob("rank-*"):
        path.unlink(missing_ok=True)


class Watchdog(threading.Thread):
    """Watches one rank; ``seconds`` without progress end the process."""

    def __init__(self, run_dir: Path, rank: int, world_size: int, seconds: float, clock: Clock) -> None:
        super().__init__(daemon=True)
        self.run_dir, self.rank, self.world_size = run_dir, rank, world_size
        self.seconds, self.clock = seconds, clock
        self.interval = min(10.0, seconds / 10)
        self.beat = 0

    def run(self) -> None:
        """Beat and look, until the process ends."""
        while True:
            self.write()
            begin = time.monotonic()
            time.sleep(self.interval)
            stopped = time.monotonic() - begin - self.interval
            if stopped > self.interval:  # the whole process was: Ctrl-Z, or a job that was suspended
                self.clock.progress = min(time.monotonic(), self.clock.progress + stopped)
            if time.monotonic() - self.clock.progress > self.seconds:
                self.end()

    def write(self, diagnosing: bool = False) -> None:
        """One heartbeat, replaced whole; a file system that fails does not end the watch."""
        self.beat += 1
        idle = time.monotonic() - self.clock.progress
        facts = {"rank": self.rank, "host": socket.gethostname(), "pid": os.getpid(), "beat": self.beat}
        facts |= {"step": self.clock.step, "phase": self.clock.doing, "idle_seconds": round(idle, 1)}
        path = self.run_dir / "heartbeats" / f"rank-{self.rank:05d}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps({**facts, "diagnosing": diagnosing}) + "\n")
        except OSError as error:
            print(f"warning: {path}: cannot write the heartbeat ({error.strerror})", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Compare all heartbeats, report, dump stacks, exit."""
        # A file system that hangs too must not keep the process.
        last_resort = threading.Timer(60 + 10 * self.interval, os._exit, (EXIT_HUNG,))
        last_resort.daemon = True
        last_resort.start()
        earlier = self.read_all()
        for _ in range(5):
            self.write(diagnosing=True)
            time.sleep(self.interval / 2)
        report, reporter = diagnose(earlier, self.read_all(), self.world_size)
        folder = self.run_dir / "stacks"
        # First what says most: a disk that is full, too, may take no more than that.
        if self.rank == reporter:
            print(f"watchdog: {report}; stacks: {folder}", file=sys.stderr, flush=True)
        write_exit(self.run_dir, "watchdog", report, self.clock.step, EXIT_HUNG, self.rank)
        try:
            folder.mkdir(exist_ok=True)
            with (folder / f"rank-{self.rank:05d}.txt").open("w") as file:
                file.write(f"{report}\nrank {self.rank}, step {self.clock.step}, {self.clock.doing}\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            print(f"warning: {folder}: cannot write stacks ({error.strerror})", file=sys.stderr, flush=True)
        os._exit(EXIT_HUNG)

    def read_all(self) -> dict[int, dict[str, Any]]:
        """The last heartbeat of every rank that has one."""
        found = {}
        for path in (self.run_dir / "heartbeats").glob("rank-*.json"):
            facts = json.loads(path.read_text())
            found[facts["rank"]] = facts
        return found


def wait_together(clock: Clock, done: Callable[[float], bool]) -> None:
    """Return when ``done(seconds)``, which waits for at most so long, is true on the first rank.

    Every rank calls it, and all tell each other once a second: one that waited without a word would count as hung.
    """
    while True:
        clock.enter(clock.phase)
        if distributed.gather_objects(distributed.is_main() and done(1.0))[0]:
            return


def diagnose(
    earlier: dict[int, dict[str, Any]], later: dict[int, dict[str, Any]], world_size: int
) -> tuple[str, int | None]:
    """Which ranks are stuck, from two readings of all heartbeats; and the rank that should say so.

    A rank whose heartbeat stands still is stopped, dead or cut off. Among ranks that are alive, those that are not
    inside a collective keep the others waiting.
    """
    alive = [r for r, facts in later.items() if facts["diagnosing"] or facts["beat"] != earlier.get(r, facts)["beat"]]
    silent = [r for r in range(world_size) if r not in alive]
    busy = [r for r in alive if not later[r]["phase"].startswith("communication")]
    waiting = [r for r in alive if r not in busy]
    parts = []
    if not silent and not busy:
        parts.append("all ranks are alive: a link is down, or their collectives differ")
    elif not silent and not waiting:
        what = "the start" if all(later[r]["phase"] == "start" for r in busy) else "what they do"
        parts.append(
            f"all ranks are alive and none waits for another: {what} takes longer than watchdog_seconds, or a GPU hangs"
        )
    for name, ranks in (("silent (stopped, dead or cut off)", silent), ("busy", busy), ("waiting", waiting)):
        if ranks:
            parts.append(f"{name}: {_listed(ranks, later, ranks is silent)}")
    return "; ".join(parts), min(alive, default=None)


def _listed(ranks: list[int], beats: dict[int, dict[str, Any]], silent: bool, most: int = 8) -> str:
    def described(rank: int) -> str:
        beat = beats.get(rank)
        if beat is None:
            return f"rank {rank} (no heartbeat yet)"
        where = beat["phase"] + ("" if beat["phase"] == "start" else f", step {beat['step'] + 1}")
        since = f"last in {where}" if silent else f"in {where}, for {beat['idle_seconds']:.0f} s"
        return f"rank {rank} ({beat['host']}, process {beat['pid']}, {since})"

    return listed((described(rank) for rank in sorted(ranks)), most)
