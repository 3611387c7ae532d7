import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcsp.config import BatchConfig
from mcsp.data_sharding.store.table import Recordings
from mcsp.schema import Recording
from mcsp.training.reading.schedule import Draw, Schedule


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


def at_sites(samples: dict[str, list[Recording]], count: int) -> dict[str, list[Recording]]:
    """The same samples, shared out among so many sites."""
    return {k: [replace(r, site=f"site{int(k[1:]) % count}") for r in rs] for k, rs in samples.items()}


def table(samples: dict[str, list[Recording]]) -> Recordings:
    rows = [r for recordings in samples.values() for r in recordings]
    return Recordings.of(sorted(rows, key=lambda r: r.member))


def schedule(samples, quota=None, seed=0, delay=5.0, **changes) -> Schedule:
    return Schedule(
        table(samples), index_hash="abc", seed=seed, quota=quota or BatchConfig(paired=6, eeg=6, fmri=12),
        window_seconds={"eeg": 30.0, "fmri": 40.0}, delay_seconds=delay, **changes,
    )  # fmt: skip


def what_is_read(draw: Draw) -> tuple:
    """What is read, comparable: a Recording holds NaN, which equals nothing."""
    return draw.key, draw.position, [(c.recording.member, c.start, c.n_samples) for c in draw.cuts]


@given(
    sizes=st.tuples(*[st.integers(1, 40)] * 3),
    quotas=st.tuples(*[st.sampled_from([0, 12, 24])] * 3).filter(any),
    temperature=st.sampled_from([1.0, 3.0]),
    groups=st.integers(0, 3),
    sites=st.sampled_from([0, 1, 3, 4]),
    step=st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None)
def test_a_step_reads_the_same_whatever_the_ranks_and_micro_batches(
    sizes, quotas, temperature, groups, sites, step
) -> None:
    quota = BatchConfig(paired=quotas[0], eeg=quotas[1], fmri=quotas[2])
    options = {"site_temperature": temperature, "shuffle_shards": groups, "sites_per_batch": sites}
    plan = schedule(at_sites(corpus(*sizes), 5), quota, **options)
    whole = [what_is_read(d) for d in plan.draws(step)]
    assert len(whole) == plan.global_batch
    for shares in (2, 3, 4, 12):  # ranks x micro-batches
        plan.check_shares(shares, 1)
        parts = [list(plan.draws(step, share, shares)) for share in range(shares)]
        compositions = {tuple(tuple(c.recording.modality for c in d.cuts) for d in part) for part in parts}
        assert len(compositions) == 1, "ranks touch different parameters"
        assert sorted(what_is_read(d) for part in parts for d in part) == sorted(whole)


def padded(plan: Schedule, step: int, world: int, micro: int) -> int:
    """Values of a step with padding, over all micro-batches."""
    total = 0
    for rank in range(world):
        for i in range(micro):
            shapes = [
                (c.recording.n_channels, c.n_samples) for d in plan.draws(step, rank, world, i, micro) for c in d.cuts
            ]
            total += len(shapes) * max(c for c, _ in shapes) * max(t for _, t in shapes)
    return total


@pytest.mark.parametrize("most", [4096, 6], ids=["one group", "groups of ranks"])
def test_micro_batches_hold_samples_of_like_shape_and_nothing_else_is_read(monkeypatch, most: int) -> None:
    monkeypatch.setattr("mcsp.training.reading.schedule._MOST_IN_ORDER", most)
    samples = {f"f{i:03d}": [recording(f"f{i:03d}", "fmri")] for i in range(48)}
    for i, key in enumerate(samples):
        changes = {"n_channels": (100, 100, 200, 400)[i % 4], "sfreq": (0.4, 0.5, 1.25)[i % 3]}
        samples[key] = [replace(samples[key][0], **changes, n_samples=200)]
    plan, mixed = schedule(samples, BatchConfig(paired=0, eeg=0, fmri=24)), 0
    plain = schedule(corpus(0, 0, 48), BatchConfig(paired=0, eeg=0, fmri=24))
    for step in range(4):
        assert sorted(d.position for d in plan.draws(step)) == [d.position for d in plain.draws(step)]
        whole = sorted(what_is_read(d) for d in plan.draws(step))
        for world, micro in ((1, 4), (2, 1), (4, 2), (2, 6)):
            parts = [list(plan.draws(step, r, world, i, micro)) for r in range(world) for i in range(micro)]
            assert sorted(what_is_read(d) for part in parts for d in part) == whole
        mixed += padded(plan, step, 4, 2) < 0.8 * padded(plan, step, 1, 1)
        if most > 24:
            buckets = [plan.draws(step, rank, 2, i, 3) for i in range(3) for rank in range(2)]
            channels = [d.cuts[0].recording.n_channels for bucket in buckets for d in bucket]
            assert channels == sorted(channels), "bucket b is not micro-batch b div ranks of rank b mod ranks"
    assert mixed == 4


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
    with pytest.raises(
        ValueError,
        match=r"2 ranks x 2 micro_batches cannot share .*micro_batches=2: \[1, 3\], legal products: \[1, 2, 3, 6\]",
    ):
        plan.check_shares(2, 2)


def test_a_stream_without_samples_is_refused_and_says_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"batch.eeg=6, but the training split has no such sample.*'fmri': 5"):
        schedule(corpus(4, 0, 5))


def test_a_recording_too_short_for_a_window_leaves_its_pair() -> None:
    samples = corpus(3, 3, 3)
    samples["p000"][1] = recording("p000", "fmri", seconds=20.0)
    plan = schedule(samples)
    assert {s.name: len(s) for s in plan.streams} == {"paired": 2, "eeg": 4, "fmri": 3}


def test_every_recording_of_a_sample_is_read_in_turn() -> None:
    def runs(modality: str, n: int) -> list[Recording]:
        return [replace(recording("a", modality), member=f"a.{modality}-{i}.npy") for i in range(n)]

    plan = schedule({"a": runs("eeg", 3)}, BatchConfig(paired=0, eeg=1, fmri=0))
    members = [c.recording.member for step in range(9) for d in plan.draws(step) for c in d.cuts]
    assert set(members[:3]) == set(members[3:6]) == set(members[6:9]) and len(set(members)) == 3
    plan = schedule({"a": runs("eeg", 3) + runs("fmri", 2)}, BatchConfig(paired=1, eeg=0, fmri=0))
    assert len({c.recording.member for step in range(3) for d in plan.draws(step) for c in d.cuts}) == 5


def test_other_splits_and_modalities_are_not_read() -> None:
    samples = corpus(2, 5, 5)
    samples["e000"] = [replace(samples["e000"][0], split="test")]
    plan = Schedule(
        table(samples), index_hash="abc", seed=0, quota=BatchConfig(paired=0, eeg=6, fmri=0),
        window_seconds={"eeg": 30.0}, delay_seconds=0.0,
    )  # fmt: skip
    keys = {c.recording.key for step in range(3) for d in plan.draws(step) for c in d.cuts}
    assert keys == {"p000", "p001", "e001", "e002", "e003", "e004"}
    assert plan.mean_shapes == {"eeg": (4, 6000)}
    no_such = Schedule(  # which no row has, so that no number stands for it
        table(samples), index_hash="abc", seed=0, quota=BatchConfig(paired=0, eeg=6, fmri=0),
        window_seconds={"eeg": 30.0}, delay_seconds=0.0, split="validation",
    )  # fmt: skip
    assert not no_such.streams and not no_such.left_out


def test_groups_of_shards_are_read_one_after_the_other() -> None:
    samples = {k: [replace(r[0], shard=f"train-{int(k[1:]) % 8:06d}.tar")] for k, r in corpus(0, 80, 0).items()}
    quota = BatchConfig(paired=0, eeg=10, fmri=0)
    plan = schedule(samples, quota, shuffle_shards=2)
    shards = [{d.cuts[0].recording.shard for d in plan.draws(step)} for step in range(16)]
    assert all(len(found) == 2 for found in shards)
    assert shards[0::2] == shards[1::2] and len(set.union(*shards[:8])) == 8
    assert shards[:8] != shards[8:], "the second pass visits the groups in the same order"


def test_few_sites_per_batch_give_more_negatives_within_a_site_and_as_many_of_each_sample() -> None:
    samples = at_sites(corpus(0, 0, 240), 12)
    quota = BatchConfig(paired=0, eeg=0, fmri=32)
    negatives, times = {}, {}
    for sites in (0, 4):
        plan = schedule(samples, quota, sites_per_batch=sites)
        steps = [[d.cuts[0].recording for d in plan.draws(step)] for step in range(75)]  # ten passes
        other = [sum(r.site == s.site and r.subject != s.subject for s in step) for step in steps for r in step]
        negatives[sites] = sum(other) / len(other)
        times[sites] = Counter(r.key for step in steps for r in step)
        assert sites == 0 or {len({r.site for r in step}) for step in steps} == {sites}
    assert negatives[0] < 2.7 and negatives[4] > 6.5  # 31 / 12 and 7, less what two passes share
    assert set(times[0].values()) == {10} and set(times[4].values()) <= {9, 10, 11}


def test_sites_per_batch_goes_on_where_a_run_stopped_and_divides_the_quota() -> None:
    samples, quota = at_sites(corpus(0, 30, 0), 6), BatchConfig(paired=0, eeg=6, fmri=0)
    plan, resumed = (schedule(samples, quota, sites_per_batch=2) for _ in range(2))
    whole = [what_is_read(d) for step in range(20) for d in plan.draws(step)]
    assert [what_is_read(d) for step in range(13, 20) for d in resumed.draws(step)] == whole[13 * 6 :]
    with pytest.raises(ValueError, match=r"^sites_per_batch=4: expected a divisor of batch.eeg=6$"):
        schedule(samples, quota, sites_per_batch=4)


def test_a_replacement_is_another_sample_of_the_stream_and_all_have_a_turn() -> None:
    plan = schedule(corpus(12, 18, 24))
    draw = next(iter(plan.draws(2)))
    tried = [plan.draw(draw.stream, draw.position, attempt) for attempt in range(13)]
    assert what_is_read(tried[0]) == what_is_read(draw)
    names = [d.cuts[0].recording.key for d in tried]
    assert len(set(names[1:])) == 12 and names[1] != names[0]
    assert names[1] == plan.draw(draw.stream, draw.position + 6).cuts[0].recording.key, "whose turn is one step later"
    assert len({d.key for d in tried}) == 13


def test_the_plan_does_not_depend_on_how_the_table_is_coded() -> None:
    samples = corpus(5, 9, 9)
    rows = [r for r in table(samples)]
    # A table that other rows were coded before has other codes for the same text.
    first = [replace(r, key=f"0{r.key}", member=f"0{r.member}", split="test") for r in reversed(rows)]
    coded = Recordings.of([*first, *rows])
    other = Schedule(
        coded, index_hash="abc", seed=0, quota=BatchConfig(paired=6, eeg=6, fmri=12),
        window_seconds={"eeg": 30.0, "fmri": 40.0}, delay_seconds=5.0,
    )  # fmt: skip
    plain = schedule(samples)
    for step in (0, 3):
        read = [[m for _, _, m in map(what_is_read, plan.draws(step))] for plan in (plain, other)]
        assert [[c[0] for c in cuts] for cuts in read[0]] == [[c[0] for c in cuts] for cuts in read[1]]


def test_recordings_without_a_valid_window_are_left_out_and_counted_by_site() -> None:
    samples = at_sites(corpus(0, 6, 0), 3)  # windows of 30 s of recordings of 120 s
    spans = [[], [0, 3000], [0, 2999], [0, 1500, 4000, 5500], [0, 1500, 9000, 10500], [0, 0]]
    samples = {k: [replace(r, valid_spans=s) for r in rs] for (k, rs), s in zip(samples.items(), spans, strict=True)}
    plan = schedule(samples, BatchConfig(paired=0, eeg=3, fmri=0))
    assert plan.left_out == {"site1": 1, "site2": 2}
    read = {d.cuts[0].recording.key for step in range(10) for d in plan.draws(step)}
    assert read == {"e000", "e001", "e003"}
    with pytest.raises(ValueError, match="half of it valid"):
        schedule({k: rs for k, rs in samples.items() if k in ("e002", "e005")}, BatchConfig(paired=0, eeg=1, fmri=0))


def test_what_a_seed_reads_is_written_out() -> None:
    """Other keys or places are another run from the same seed, and other data for a run that is resumed."""
    plan = schedule(corpus(3, 4, 4), BatchConfig(paired=1, eeg=2, fmri=2))
    assert [what_is_read(d) for d in plan.draws(7)] == [
        (8063570873933488750, 7, [("p000.eeg-0.npy", 13171, 6000), ("p000.fmri-0.npy", 35, 20)]),
        (7687544630470629729, 14, [("e003.eeg-0.npy", 15650, 6000)]),
        (2310670350598218847, 15, [("e002.eeg-0.npy", 11857, 6000)]),
        (5197607492134913884, 14, [("f003.fmri-0.npy", 0, 20)]),
        (9144452234555289200, 15, [("f000.fmri-0.npy", 34, 20)]),
    ]
    assert what_is_read(plan.draw(1, 3, 2)) == (5632213374660156717, 3, [("e003.eeg-0.npy", 14152, 6000)])
    assert [stream.name for stream in plan.streams] == ["paired", "eeg", "fmri"] and plan.global_batch == 5


def test_shapes_are_channels_then_time_of_the_longest_recording_of_a_sample() -> None:
    """Of both modalities, EEG and BOLD in turn; a recording without a window has no shape."""
    samples = corpus(0, 4, 0)
    for key, (channels, sfreq) in zip(samples, ((8, 100.0), (4, 200.0), (4, 100.0), (8, 100.0)), strict=True):
        samples[key] = [replace(samples[key][0], n_channels=channels, sfreq=sfreq)]
    long = replace(samples["e002"][0], member="e002.eeg-1.npy", sfreq=400.0, n_samples=400 * 20)  # 20 s are too short
    samples["e002"].append(long)
    plan = schedule(samples, BatchConfig(paired=0, eeg=4, fmri=0))
    assert plan.streams[0].shape_N.tolist() == [2, 1, 0, 2]
    assert next(d.cuts[0].recording.key for d in plan.draws(0)) == "e002"
    assert [d.cuts[0].n_samples for d in plan.draws(0)] == [3000, 6000, 3000, 3000]
    assert plan.mean_shapes == {"eeg": (6, 3750)}


def test_a_step_of_more_than_4096_positions_is_cut_among_groups_of_ranks() -> None:
    """Each looks up its own part of the step; up to 4096, all of it."""
    samples = corpus(0, 2, 0)
    samples["e001"] = [replace(samples["e001"][0], n_channels=8)]
    for quota, first in ((4096, 4096), (4098, 2049)):
        plan = schedule(samples, BatchConfig(paired=0, eeg=quota, fmri=0))
        next(iter(plan.draws(0, 1, 2)))
        assert list(plan._in_order) == [(0, quota - first, first)]
