import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcsp.config import BatchConfig
from mcsp.schema import Recording
from mcsp.training.schedule import Permutation, Schedule


def recording(key: str, modality: str, *, seconds: float = 120.0, onset: float = math.nan) -> Recording:
    sfreq = 200.0 if modality == "eeg" else 0.5
    return Recording(
        key=key, shard="train-000000.tar", member=f"{key}.{modality}-0.npy", modality=modality, site="s", subject=key,
        session="", task="rest", run="", split="train", sfreq=sfreq, unit="uV", scale=1.0,
        n_samples=round(seconds * sfreq), n_channels=4, dtype="float16", byte_offset=512, crc_offset=0,
        block_samples=100, simulated=True, onset_seconds=onset,
    )  # fmt: skip


def corpus(paired: int, eeg: int, fmri: int) -> dict[str, list[Recording]]:
    samples = {f"p{i:03d}": [recording(f"p{i:03d}", m, onset=0.0) for m in ("eeg", "fmri")] for i in range(paired)}
    samples |= {f"e{i:03d}": [recording(f"e{i:03d}", "eeg")] for i in range(eeg)}
    return samples | {f"f{i:03d}": [recording(f"f{i:03d}", "fmri")] for i in range(fmri)}


def schedule(samples, quota=None, seed=0, delay=5.0) -> Schedule:
    return Schedule(
        samples, index_hash="abc", seed=seed, quota=quota or BatchConfig(paired=6, eeg=6, fmri=12),
        window_seconds={"eeg": 30.0, "fmri": 40.0}, delay_seconds=delay,
    )  # fmt: skip


@given(n=st.integers(1, 700), key=st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_permutation_hits_every_index_once(n: int, key: int) -> None:
    permutation = Permutation(n, key)
    assert sorted(permutation(i) for i in range(n)) == list(range(n))


def test_permutation_of_a_billion_needs_no_memory() -> None:
    permutation = Permutation(10**9, 7)
    images = {permutation(i) for i in range(2000)}
    assert len(images) == 2000
    assert max(images) > 9e8


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_ranks_together_read_the_one_process_batch_stream_by_stream(world: int) -> None:
    plan = schedule(corpus(23, 57, 101))
    for step in (0, 1, 17, 40):
        whole = list(plan.draws(step))
        parts = [list(plan.draws(step, rank, world)) for rank in range(world)]
        assert (
            len({tuple(sorted(c.recording.modality for c in d.cuts) for d in part).__repr__() for part in parts}) == 1
        )
        assert sorted((d for part in parts for d in part), key=lambda d: d.key) == sorted(whole, key=lambda d: d.key)


def test_every_sample_once_per_pass_and_new_windows_in_the_next() -> None:
    plan = schedule(corpus(12, 18, 24))
    for stream in ("p", "e", "f"):
        draws = [d for step in range(20) for d in plan.draws(step) if d.cuts[0].recording.key[0] == stream]
        n = {"p": 12, "e": 18, "f": 24}[stream]
        first, second = draws[:n], draws[n : 2 * n]
        assert len({d.cuts[0].recording.key for d in first}) == len({d.cuts[0].recording.key for d in second}) == n
        start = {d.cuts[0].recording.key: d.cuts[0].start for d in first}
        assert any(start[d.cuts[0].recording.key] != d.cuts[0].start for d in second)
        assert [d.cuts[0].recording.key for d in first] != [d.cuts[0].recording.key for d in second]


def test_windows_stay_inside_and_simultaneous_ones_keep_the_delay() -> None:
    plan = schedule(corpus(12, 12, 12), delay=6.0)
    for step in range(30):
        for draw in plan.draws(step):
            for cut in draw.cuts:
                assert 0 <= cut.start <= cut.recording.n_samples - cut.n_samples
            if len(draw.cuts) == 2:
                eeg, fmri = draw.cuts
                lag = fmri.start / fmri.recording.sfreq - eeg.start / eeg.recording.sfreq
                assert abs(lag - 6.0) <= 1.01  # half a volume of 2 s, and rounding


def test_unrelated_clocks_give_independent_windows() -> None:
    samples = {f"p{i}": [recording(f"p{i}", m) for m in ("eeg", "fmri")] for i in range(12)}
    plan = schedule(samples, BatchConfig(paired=6, eeg=0, fmri=0))
    pairs = [d.cuts for step in range(10) for d in plan.draws(step)]
    lags = [f.start / f.recording.sfreq - e.start / e.recording.sfreq for e, f in pairs]
    assert max(lags) - min(lags) > 30


def test_seed_and_corpus_change_the_order() -> None:
    samples = corpus(50, 50, 50)
    keys = [[d.key for d in schedule(samples, seed=seed).draws(3)] for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]
    assert all(a != b for a, b in pairwise(sorted(keys[0])))


def test_illegal_world_sizes_are_refused_with_the_legal_ones() -> None:
    plan = schedule(corpus(9, 9, 9))
    plan.check_shares(3, 2)
    with pytest.raises(ValueError, match=r"2 ranks x 2 micro_batches cannot share .*legal products: \[1, 2, 3, 6\]"):
        plan.check_shares(2, 2)


def test_a_stream_without_samples_is_refused_and_says_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"batch.eeg=6, but the training split has no such sample.*'fmri': 5"):
        schedule(corpus(4, 0, 5))


def test_a_recording_too_short_for_a_window_leaves_its_pair() -> None:
    samples = corpus(3, 3, 3)
    samples["p000"][1] = recording("p000", "fmri", seconds=20.0)
    plan = schedule(samples)
    assert {s.name: len(s.samples) for s in plan.streams} == {"paired": 2, "eeg": 4, "fmri": 3}
