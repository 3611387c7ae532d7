"""The loader on a real corpus: any number of ranks, workers and micro-batches reads the same, damaged or not."""

import hashlib
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mcsp.batch import Batch
from mcsp.config import BatchConfig
from mcsp.data_sharding.store.index import SHARDS_NAME
from mcsp.data_sharding.store.reader import Corpus
from mcsp.run_log import read_metrics
from mcsp.training.reading import loader
from mcsp.training.reading.loader import StepDataset, batches
from mcsp.training.reading.schedule import Schedule
from tests.training.ranks import pretrain

STEPS = 4


def dataset(corpus_dir: Path, rank: int = 0, world: int = 1, micro_batches: int = 1) -> StepDataset:
    corpus = Corpus(corpus_dir)
    plan = Schedule(
        corpus.recordings, index_hash=corpus.index_hash, seed=3, quota=BatchConfig(paired=12, eeg=0, fmri=0),
        window_seconds={"eeg": 10.0, "fmri": 30.0}, delay_seconds=5.0, site_temperature=2.0,
    )  # fmt: skip
    return StepDataset(corpus, plan, rank, world, micro_batches)


def extent(valid: torch.Tensor) -> int:
    return int(valid.nonzero().max()) + 1


def rows(batch: Batch) -> Iterator[tuple[int, str, str]]:
    """Key, modality and a hash of all that a row holds but padding, of every row."""
    for modality, signal in batch.signals.items():
        for b in range(len(signal)):
            c, t = extent(signal.channel_valid_BC[b]), extent(signal.time_valid_BT[b])
            assert not signal.x_BCT[b, c:].any() and not signal.x_BCT[b, :, t:].any()
            values = [signal.x_BCT[b, :c, :t], signal.time_valid_BT[b, :t], signal.sfreq_B[b], signal.key_B[b]]
            values += [x[b, :c] for x in (signal.channel_valid_BC, signal.position_BC3, signal.position_valid_BC)]
            identity = [batch.keys[signal.sample_B[b]].encode(), *(v.numpy().tobytes() for v in values)]
            yield int(signal.key_B[b]), modality, hashlib.sha256(b"".join(identity)).hexdigest()


def global_batches(corpus_dir: Path, world: int, workers: int, micro: int, first: int = 0) -> list[tuple]:
    """For each step everything that all ranks read, and the lines about what could not be read."""
    parts = [
        list(batches(dataset(corpus_dir, rank, world, micro), first, STEPS, workers, False)) for rank in range(world)
    ]
    found = []
    for step in zip(*parts, strict=True):
        micro_batches = [batch for rank in step for batch in rank]
        assert len({tuple((m, len(s)) for m, s in batch.signals.items()) for batch in micro_batches}) == 1
        for signal in [s for batch in micro_batches for s in batch.signals.values()]:
            assert signal.x_BCT.shape[1] == max(extent(valid) for valid in signal.channel_valid_BC)
            assert signal.x_BCT.shape[2] == max(extent(valid) for valid in signal.time_valid_BT)
        unreadable = sorted(line for batch in micro_batches for line in batch.unreadable)
        found.append((sorted(row for batch in micro_batches for row in rows(batch)), unreadable))
    return found


@pytest.fixture
def damaged(corpus_dir: Path, tmp_path: Path) -> Path:
    """A copy with flipped bytes in one recording and a shard cut short."""
    path = tmp_path / "damaged"
    shutil.copytree(corpus_dir, path)
    recordings = Corpus(path).recordings
    train = sorted({r.shard for r in recordings if r.split == "train"})
    flipped = next(r for r in recordings if r.shard == train[0] and r.modality == "eeg")
    for name in train[:2]:
        (path / SHARDS_NAME / name).chmod(0o644)
    with open(path / SHARDS_NAME / train[0], "r+b") as file:
        for block in range(0, flipped.n_samples, flipped.block_samples):
            file.seek(flipped.byte_offset + block * flipped.n_channels * 2)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 16]))
    with open(path / SHARDS_NAME / train[1], "r+b") as file:
        file.truncate(file.seek(0, 2) // 2)
    return path


def test_any_ranks_workers_and_micro_batches_read_the_same_and_so_does_a_resume(corpus_dir: Path) -> None:
    whole = global_batches(corpus_dir, 1, 0, 1)
    assert all(len(found) == 24 and not unreadable for found, unreadable in whole)
    assert len({row for found, _ in whole for row in found}) == STEPS * 24, "a window was read twice"
    for world, workers, micro in ((2, 0, 1), (1, 2, 3), (3, 0, 2), (6, 0, 1)):
        assert global_batches(corpus_dir, world, workers, micro) == whole, (world, workers, micro)
    for first, world in ((1, 4), (3, 2)):
        assert global_batches(corpus_dir, world, 0, 1, first) == whole[first:]


def test_damage_is_replaced_alike_for_any_ranks_and_workers_and_after_a_resume(corpus_dir: Path, damaged: Path) -> None:
    sound, whole = global_batches(corpus_dir, 1, 0, 1), global_batches(damaged, 1, 0, 1)
    lines = "\n".join(line for _, unreadable in whole for line in unreadable)
    assert "damaged, block" in lines and "truncated inside" in lines
    for (before, _), (after, unreadable) in zip(sound, whole, strict=True):
        assert len(after) == 24
        kept = set(before) & set(after)
        # A line stands for one sample, of two windows, that could not be read in its place or as a replacement.
        assert len(before) - len(kept) <= 2 * len(unreadable)
        keys = {key for key, _, _ in before} - {key for key, _, _ in kept}
        assert not keys & {key for key, _, _ in after}, "a replaced sample kept its randomness"
    for world, workers, micro, first in ((2, 0, 2, 0), (1, 2, 1, 0), (4, 0, 1, 2)):
        assert global_batches(damaged, world, workers, micro, first) == whole[first:], (world, workers, micro)
    sorted((damaged / SHARDS_NAME).glob("train-*.tar"))[1].unlink()
    gone = global_batches(damaged, 1, 0, 1)
    assert [found for found, _ in gone] != [found for found, _ in whole]
    assert "cannot read the shard (No such file" in "".join(line for _, unreadable in gone for line in unreadable)
    assert global_batches(damaged, 3, 0, 1) == gone


@pytest.mark.parametrize("workers", [0, 3])
def test_shards_of_sixteen_steps_ahead_are_fetched_once(
    corpus_dir: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Corpus, "is_remote", True)
    monkeypatch.setattr(loader, "get_worker_info", lambda: SimpleNamespace(num_workers=workers) if workers else None)
    data, asked, fetched = dataset(corpus_dir, 1, 2, 3), [], []
    draws = data.schedule.draws
    monkeypatch.setattr(data.schedule, "draws", lambda *of: asked.append(of) or draws(*of))
    monkeypatch.setattr(data.corpus, "fetch_ahead", lambda shards: fetched.append(list(shards)))
    stride = max(1, workers)
    for step in (0, stride, stride):  # the last once more, as after a resume
        data._fetch_ahead(step)
    steps = [stride * k for k in range(1, 18)]
    assert asked == [(step, 1, 2, i, 3) for step in steps for i in range(3)], "this rank's three micro-batches"
    assert fetched == [list(dict.fromkeys(c.recording.shard for d in draws(*of) for c in d.cuts)) for of in asked]


def test_windows_are_read_into_memory_that_is_used_again(corpus_dir: Path) -> None:
    reader = dataset(corpus_dir)
    for _ in range(2):
        first = reader._window(next(iter(reader._draws(0, 0))).cuts[0])
        assert len(reader._buffers) == 1 and np.shares_memory(first.x_TC, reader._buffers[0])
        reader._used = 0


def test_a_corpus_of_which_nothing_can_be_read_ends_the_run(corpus_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus_dir, tmp_path / "empty")
    for shard in (tmp_path / "empty" / SHARDS_NAME).glob("*.tar"):
        shard.unlink()
    with pytest.raises(ValueError, match=r"100 samples of stream paired in a row cannot be read; the first: .*No such"):
        dataset(tmp_path / "empty")[0]


def test_reading_takes_time_and_draws_nothing_from_the_generator_of_the_run(corpus_dir: Path) -> None:
    before = torch.get_rng_state()
    begin = time.perf_counter()
    steps = list(batches(dataset(corpus_dir, micro_batches=2), 1, STEPS, 0, False))
    took = time.perf_counter() - begin
    assert torch.equal(torch.get_rng_state(), before)
    assert len(steps) == STEPS - 1 and {len(step) for step in steps} == {2}
    seconds = [batch.read_seconds for step in steps for batch in step]
    assert all(list(found) == ["paired"] and found["paired"] > 0 for found in seconds)
    assert sum(found["paired"] for found in seconds) < took


def test_every_window_of_a_batch_has_memory_of_its_own_that_fits_its_blocks(corpus_dir: Path) -> None:
    reader = dataset(corpus_dir)
    cuts = [cut for draw in reader._draws(0, 0) for cut in draw.cuts]
    windows = [reader._window(cut) for cut in cuts]
    assert len(reader._buffers) == len(cuts) == 24
    again = [Corpus(corpus_dir).read_stored(c.recording, c.start, c.n_samples) for c in cuts]
    for cut, window, stored, buffer in zip(cuts, windows, again, reader._buffers, strict=True):
        np.testing.assert_array_equal(window.x_TC, stored)
        assert (window.start, window.scale, window.recording) == (cut.start, cut.recording.scale, cut.recording)
        most = (cut.n_samples + 2 * cut.recording.block_samples) * cut.recording.n_channels * 2
        assert len(buffer) == most, "the window, a part of a block before it and one behind it, in float16"
    reader._used = 0
    reader._buffers[0] = np.empty(1, np.uint8)
    np.testing.assert_array_equal(reader._window(cuts[0]).x_TC, again[0])
    assert len(reader._buffers) == 24 and len(reader._buffers[0]) > 1, "too short for another window"


def test_a_run_counts_bad_windows_and_ends_with_a_checkpoint_when_they_are_too_many(
    damaged: Path, pretrain_overrides: list[str], tmp_path: Path
) -> None:
    overrides = [*pretrain_overrides, f"corpus_dir={damaged}", "checkpoint_every=100"]
    output = pretrain(*overrides, "max_bad_windows=2", expect=2)
    assert "window replaced by the next sample of its stream: " in output and "damaged/shards/train-0000" in output
    (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert re.match(r"error: \d+ of \d+ windows could not be read, more than max_bad_windows=2 allows", error)
    bad = [line["bad_windows"] for line in read_metrics(tmp_path / "run")]
    assert bad == sorted(bad) and bad[-1] > 2 >= max(bad[:-1], default=0)
    saved = tmp_path / "run" / "checkpoints" / f"step-{len(bad):08d}"
    assert saved.is_dir(), "what was trained until then is lost"
