"""Batches of a step, read by byte range. Workers hold no state: they get a step and return its batches.

A window that cannot be read (damaged block, missing shard, failing disk) is replaced by what the schedule names next.
That depends on the corpus alone, so every number of ranks and workers, and a resumed run, makes the same replacements.
"""

import faulthandler
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mcsp.batch import Batch, collate
from mcsp.data_sharding.store.reader import BadWindowError, Corpus
from mcsp.schema import Window
from mcsp.training.reading.schedule import Cut, Draw, Schedule

_PREFETCH = 2  # steps that a worker is ahead
# Steps of a worker whose shards are fetched before their turn; one step may take as long as many shards.
_FETCH_AHEAD = 16
# So many samples of a stream in a row are unreadable only where the whole corpus is.
_MOST_ATTEMPTS = 100


class StepDataset(Dataset[list[Batch]]):
    """Maps a step to this rank's micro-batches, which all have the same composition."""

    def __init__(self, corpus: Corpus, schedule: Schedule, rank: int, world_size: int, micro_batches: int = 1) -> None:
        self.corpus, self.schedule, self.micro_batches = corpus, schedule, micro_batches
        self.rank, self.world_size = rank, world_size
        self._fetched = -1
        # Memory for the windows of a batch as stored, kept from batch to batch; nothing of it leaves in a batch.
        self._buffers: list[np.ndarray] = []
        self._used = 0

    def __getitem__(self, step: int) -> list[Batch]:
        self.corpus.recordings.check_whole()
        self._fetch_ahead(step)
        return [self._micro_batch(step, i) for i in range(self.micro_batches)]

    def _draws(self, step: int, micro_batch: int) -> Iterator[Draw]:
        return self.schedule.draws(step, self.rank, self.world_size, micro_batch, self.micro_batches)

    def _micro_batch(self, step: int, number: int) -> Batch:
        samples, keys, unreadable = [], [], []
        self._used = 0
        seconds = dict.fromkeys((stream.name for stream in self.schedule.streams), 0.0)
        for draw in self._draws(step, number):
            begin = time.perf_counter()
            windows, key, errors = self._read(draw)
            seconds[self.schedule.streams[draw.stream].name] += time.perf_counter() - begin
            samples.append(windows)
            keys.append(key)
            unreadable += errors
        batch = collate(samples, keys)
        return replace(batch, unreadable=tuple(unreadable), read_seconds=seconds)

    def _read(self, draw: Draw) -> tuple[list[Window], int, list[str]]:
        """Windows and key of a draw, or of the first readable one after it; a line for each that was not."""
        errors: list[str] = []
        while len(errors) < _MOST_ATTEMPTS:
            try:
                windows = [self._window(cut) for cut in draw.cuts]
            except BadWindowError as error:
                errors.append(str(error))
                draw = self.schedule.draw(draw.stream, draw.position, draw.attempt + 1)
            else:
                return windows, draw.key, errors
        stream = self.schedule.streams[draw.stream].name
        raise ValueError(f"{len(errors)} samples of stream {stream} in a row cannot be read; the first: {errors[0]}")

    def _window(self, cut: Cut) -> Window:
        r = cut.recording
        most_bytes = (cut.n_samples + 2 * r.block_samples) * r.n_channels * np.dtype(r.dtype).itemsize
        if self._used == len(self._buffers):
            self._buffers.append(np.empty(0, np.uint8))
        if len(self._buffers[self._used]) < most_bytes:
            self._buffers[self._used] = np.empty(most_bytes, np.uint8)
        stored_TC = self.corpus.read_stored(r, cut.start, cut.n_samples, buffer=self._buffers[self._used])
        self._used += 1
        return Window(stored_TC, r, cut.start, r.scale)

    def _fetch_ahead(self, step: int) -> None:
        if not self.corpus.is_remote:
            return
        worker = get_worker_info()
        stride = worker.num_workers if worker else 1
        for later in range(max(step, self._fetched) + stride, step + _FETCH_AHEAD * stride + 1, stride):
            for i in range(self.micro_batches):
                draws = self._draws(later, i)
                self.corpus.fetch_ahead(dict.fromkeys(c.recording.shard for draw in draws for c in draw.cuts))
            self._fetched = later


def _same(batch: Any) -> Any:
    return batch


def _heed_no_signals(worker: int) -> None:
    # A launcher that stops sends SIGTERM to all processes; the run needs its workers until its last step is done.
    # They end with the process that started them.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()


def batches(
    dataset: StepDataset, first_step: int, last_step: int, workers: int, pin_memory: bool
) -> Iterator[list[Batch]]:
    """Micro-batches of steps ``first_step`` to ``last_step - 1``, in order, whatever the number of workers."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(first_step, last_step),
        num_workers=workers,
        collate_fn=_same,
        worker_init_fn=_heed_no_signals,
        pin_memory=pin_memory,
        # fork would copy DeepSpeed's and gloo's threads in an undefined state.
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=_PREFETCH if workers else None,
    )
    # A private generator: DataLoader would otherwise draw its base seed from the global one.
    loader.generator = torch.Generator().manual_seed(0)
    return iter(loader)
