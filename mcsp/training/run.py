"""A run from its first step to its last: read, step, log, save, roll back; and how it ends."""

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mcsp import distributed
from mcsp.batch import Batch
from mcsp.config import PretrainConfig
from mcsp.output import write_whole
from mcsp.run_log import iter_events
from mcsp.training import engine
from mcsp.training.clock import Clock, Profile
from mcsp.training.metrics import Metrics, check_installed, trackers
from mcsp.training.reading.loader import batches
from mcsp.training.run_dir import InUse, Lock, check
from mcsp.training.stopping import (
    EXIT_AGAIN,
    EXIT_DISK,
    EXIT_INPUT,
    STOP_FILE,
    RunEnded,
    StopRequest,
    describe,
    reserve_exit,
    write_exit,
)
from mcsp.training.throughput import Throughput, goodput, peak_memory_gib
from mcsp.training.trainer import Trainer
from mcsp.training.validation.evaluations import Evaluations
from mcsp.training.watchdog import Watchdog, clear_heartbeats, wait_together

_RANKS_SHOWN = 16  # whose memory is logged one by one


class Run:
    """The loop around a trainer. Every rank has one; rank 0 writes the metrics."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.config, self.clock = trainer, trainer.config, trainer.clock
        self.metrics: Metrics | None = None
        check_installed(self.config.trackers)
        self.profile = Profile(self.config.run_dir, trainer.rank, self.config.profile_steps, self.config.steps)
        self.began = time.monotonic()
        if trainer.rank == 0:
            run_dir = self.config.run_dir
            run_dir.mkdir(parents=True, exist_ok=True)
            write_whole(run_dir / "config.json", json.dumps(self.config.dump(), indent=1))
            also = trackers(self.config.trackers, run_dir, self.config.dump())
            self.metrics = Metrics(run_dir, trainer.step, self.config.steps, also)
            arithmetic = trainer.engine.arithmetic
            self.metrics.event("start", trainer.step, ranks=trainer.world_size, arithmetic=arithmetic)
            if trainer.changed:
                self.metrics.event("changed", trainer.step, **trainer.changed)
            self.first_start = next(e["time"] for e in iter_events(run_dir) if e["event"] == "start")
            self.throughput = Throughput(
                self.config, trainer.dataset.schedule.mean_shapes, trainer.world_size, trainer.device
            )
        self.evaluations = Evaluations(trainer, self.metrics)

    def go(self) -> None:
        """Train until ``config.steps``, or until a rank is asked to stop, and save.

        Raises:
            RunEnded: too many steps were bad.
            ValueError: too many windows could not be read.
        """
        try:
            self._loop()
            self._await_copy()
        except RunEnded:  # on every rank
            self._await_copy()
            raise
        finally:
            if self.metrics:
                self.metrics.close()
            if self.trainer.mirror:
                self.trainer.mirror.close()

    def _await_copy(self) -> None:
        """Wait for the copy of the last checkpoint in mirror_dir, which may take longer than ranks may hang."""
        mirror = self.trainer.mirror
        if self.config.mirror_dir:
            self.clock.enter("checkpoint")
            wait_together(self.clock, lambda seconds: mirror is None or mirror.close(seconds))

    def _stream(self) -> Iterator[list[Batch]]:
        """Batches from here to the last step, of the data that no rollback has skipped."""
        first, offset = self.trainer.step, self.trainer.health.data_offset
        pin_memory = self.trainer.device.type == "cuda"
        return batches(
            self.trainer.dataset, first + offset, self.config.steps + offset, self.config.workers, pin_memory
        )

    def _loop(self) -> None:
        trainer, health = self.trainer, self.trainer.health
        stream, self.logged_step, begin = self._stream(), trainer.step, time.perf_counter()
        self.clock.split()
        untrained = self.evaluations.at_start()
        while trainer.step < self.config.steps:
            self.profile.before(trainer.step + 1)
            self.clock.enter("data")
            micro_batches = [batch.to(trainer.device) for batch in next(stream)]
            values = trainer.train_step(micro_batches, self.metrics)
            self.profile.after(trainer.step)
            if health.why_back and not trainer.stopping:
                trainer.roll_back(self.metrics)
                self.evaluations.find_best()
                stream, self.logged_step, begin = self._stream(), trainer.step, time.perf_counter()
                continue
            if not health.in_a_row:
                trainer.useful_seconds += time.perf_counter() - begin
            begin = time.perf_counter()
            too_bad = trainer.bad_windows.too_many()
            if self.config.is_evaluated(trainer.step):
                values |= self._memory_of_ranks()
            # First the line: a crash behind a checkpoint would lose it, one before the checkpoint has the step redone.
            evaluated, untrained = {**untrained, **self.evaluations.after_step()}, {}
            self._log({**values, **evaluated})
            self.evaluations.end_if_collapsed()
            self._save_if_due(last=bool(too_bad) or trainer.stopping)
            if too_bad:
                raise ValueError(too_bad)
            if trainer.stopping:
                return

    def _save_if_due(self, last: bool) -> None:
        step, every = self.trainer.step, self.config.checkpoint_every
        # The first comes early: a run that goes wrong soon has somewhere to go back to. While the weights are in doubt
        # no older checkpoint must go for theirs.
        due = step % every == 0 or step == max(1, every // 10) or self.evaluations.best
        due = due and not self.trainer.in_doubt
        if due or last or step == self.config.steps:
            self.clock.enter("checkpoint")
            self.trainer.save()
            if self.evaluations.best:
                self.trainer.saver.finish()
                self.evaluations.keep()
        if last or step == self.config.steps:
            self.trainer.saver.finish()
        else:
            self.trainer.saver.settle()

    def _log(self, values: dict[str, float]) -> None:
        step = self.trainer.step
        if not self.metrics:
            self.clock.forget()
            return
        if self.config.is_logged(step) or self.trainer.stopping:
            self.metrics.write(step, {**values, **self._speed(step - self.logged_step)})
            self.logged_step = step
        self.metrics.advance()

    def _memory_of_ranks(self) -> dict[str, float]:
        """Peak of each rank, or of the fullest and the emptiest where there are many."""
        gib = distributed.gather_objects(peak_memory_gib(self.trainer.device))
        if len(gib) > _RANKS_SHOWN:
            return {"memory_gib/most": max(gib), "memory_gib/least": min(gib)}
        return {f"memory_gib/rank-{rank}": value for rank, value in enumerate(gib)}

    def _speed(self, steps: int) -> dict[str, float]:
        """Means over the ``steps`` since the last line; of rank 0, which waits for the slowest."""
        split = {name: seconds / steps for name, seconds in self.clock.split().items()}
        seconds, health = sum(split.values()), self.trainer.health
        return {
            **self.throughput.values(seconds),
            "seconds_per_step": seconds,
            "data_wait_fraction": split["data"] / seconds,
            **{f"seconds/{name}": value for name, value in split.items()},
            "goodput": goodput(self.trainer.useful_seconds, self.first_start, self.began),
            "skipped_steps": float(health.skipped_steps),
            "rollbacks": float(health.rollbacks),
            "bad_windows": float(self.trainer.bad_windows.bad),
            **{f"left_out/{site}": float(n) for site, n in self.trainer.bad_windows.left_out.items()},
        }


def pretrain(config: PretrainConfig) -> int:
    """Run or continue a pretraining run; ``exit.json`` in its folder says why it ended. Every rank calls it.

    Returns:
        The exit status of the process: 0 finished, ``EXIT_AGAIN`` where it was asked to stop, ``EXIT_DATA`` where too
        many steps were bad, ``EXIT_DISK`` where a checkpoint could not be written.

    Raises:
        InUse: another run holds the folder.
    """
    rank, clock, lock = int(os.environ.get("RANK", "0")), None, None
    try:
        clock = Clock(engine.use_device())
        engine.start_process_group()
        lock, stop = _take(config, clock)
        trainer = Trainer(config, clock, lambda: stop.why)
        try:
            Run(trainer).go()
            reason, detail, code = _how_it_ended(trainer)
        except RunEnded as end:
            reason, detail, code = end.reason, end.detail, end.code
        if rank == 0:
            _note_end(config.run_dir, reason, detail, trainer.step, code)
        clock.enter("end")
        engine.stop_process_group()
    except InUse:
        raise
    except BaseException as error:
        if config.run_dir.is_dir():
            write_exit(config.run_dir, "error", describe(error), clock.step if clock else 0, status_of(error), rank)
        raise
    finally:
        if lock:
            lock.release()
    return code


def status_of(error: BaseException) -> int:
    """The exit status of a process that ends by an exception."""
    if isinstance(error, ValueError):
        return EXIT_INPUT
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT  # as shells count
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return EXIT_DISK if full else 1


def _take(config: PretrainConfig, clock: Clock) -> tuple[Lock | None, StopRequest]:
    """Take the folder; from here on this rank can be asked to stop, and ends where it hangs."""
    rank, world_size, run_dir = distributed.rank(), distributed.world_size(), config.run_dir
    check(run_dir)
    lock, in_use, number = None, "", 0
    if rank == 0:
        try:
            lock = Lock(run_dir)
            (run_dir / "exit.json").unlink(missing_ok=True)
            reserve_exit(run_dir)
            clear_heartbeats(run_dir)
        except InUse as error:
            in_use = str(error)
        except OSError as error:
            number = error.errno or errno.EIO
    in_use, number = distributed.gather_objects((in_use, number))[0]
    if in_use:
        raise InUse(in_use)
    if number:
        raise OSError(number, os.strerror(number), str(run_dir))
    if config.watchdog_seconds:
        Watchdog(run_dir, rank, world_size, config.watchdog_seconds, clock).start()
    return lock, StopRequest(run_dir, rank, clock)


def _how_it_ended(trainer: Trainer) -> tuple[str, str, int]:
    if not trainer.stopping or trainer.step >= trainer.config.steps:
        return "finished", "", 0
    asked = distributed.gather_objects(trainer.asked())
    return "asked to stop", ", ".join(f"{why} on rank {r}" for r, why in enumerate(asked) if why), EXIT_AGAIN


def _note_end(run_dir: Path, reason: str, detail: str, step: int, code: int) -> None:
    (run_dir / STOP_FILE).unlink(missing_ok=True)
    write_exit(run_dir, reason, detail, step, code, 0)
    if code:
        print(f"{reason} after step {step}: {detail}", file=sys.stderr, flush=True)
