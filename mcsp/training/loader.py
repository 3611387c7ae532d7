"""Batches of a step, read by byte range. Workers hold no state: they are told a step and return its batch."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from mcsp.batch import Batch, collate
from mcsp.data_sharding.reader import Corpus
from mcsp.training.schedule import Schedule


class StepDataset(Dataset[list[Batch]]):
    """Maps a step to this rank's micro-batches, which all have the same composition."""

    def __init__(self, corpus: Corpus, schedule: Schedule, rank: int, world_size: int, micro_batches: int = 1) -> None:
        self.corpus, self.schedule = corpus, schedule
        self.first_share, self.shares, self.micro_batches = (
            rank * micro_batches,
            world_size * micro_batches,
            micro_batches,
        )

    def __getitem__(self, step: int) -> list[Batch]:
        return [self._share(step, self.first_share + i) for i in range(self.micro_batches)]

    def _share(self, step: int, share: int) -> Batch:
        draws = list(self.schedule.draws(step, share, self.shares))
        windows = [[self.corpus.read_window(c.recording, c.start, c.n_samples) for c in draw.cuts] for draw in draws]
        return collate(windows, [draw.key for draw in draws], self.schedule.shapes)


def _same(batch: Any) -> Any:
    return batch


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
        pin_memory=pin_memory,
        # fork would copy DeepSpeed's and gloo's threads in an undefined state.
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=4 if workers else None,
    )
    # A private generator: DataLoader would otherwise draw its base seed from the global one.
    loader.generator = torch.Generator().manual_seed(0)
    return iter(loader)
