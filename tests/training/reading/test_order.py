import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcsp.training.reading.order import Order, Permutation, SiteBatches, floor_sum


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


def stream(sites: list[int], groups: list[int], temperature: float = 1.0, key: int = 5) -> Order:
    return Order(np.array(sites), np.array(groups), temperature, key)


@given(cells=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=60), key=st.integers(0))
@settings(max_examples=60, deadline=None)
def test_every_sample_once_per_pass_whatever_the_sites_and_groups(cells: list[tuple[int, int]], key: int) -> None:
    order = stream([s for s, _ in cells], [g for _, g in cells], key=key % 2**64)
    n = len(cells)
    assert order.length == n
    for cycle in range(3):
        found = [order(p) for p in range(cycle * n, (cycle + 1) * n)]
        assert sorted(sample for sample, _ in found) == list(range(n))
        assert {pass_ for _, pass_ in found} == {cycle}
        groups = [cells[sample][1] for sample, _ in found]
        assert sum(a != b for a, b in pairwise(groups)) == len(set(groups)) - 1, "a group twice"


@given(
    cells=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=40),
    temperature=st.floats(1, 20),
)
@settings(max_examples=60, deadline=None)
def test_every_sample_of_a_site_once_per_pass_over_it_at_any_temperature(cells, temperature: float) -> None:
    order = stream([s for s, _ in cells], [g for _, g in cells], temperature)
    seen: Counter[tuple[int, int]] = Counter(order(p) for p in range(40 * order.length))
    assert set(seen.values()) == {1}, "a sample twice in one pass over its site"
    passes = Counter(sample for sample, _ in seen)
    assert set(passes) == set(range(len(cells))), "a sample was never read"
    for cell in set(cells):
        counts = [passes[i] for i, other in enumerate(cells) if other == cell]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(("temperature", "shares"), [(1, (0.9, 0.1)), (2, (0.75, 0.25)), (1e6, (0.5, 0.5))])
def test_temperature_weighs_sites_by_a_root_of_their_size(temperature: float, shares: tuple[float, float]) -> None:
    order = stream([0] * 900 + [1] * 100, [0] * 1000, temperature)
    first = [order(p)[0] < 900 for p in range(order.length)]
    assert np.mean(first) == pytest.approx(shares[0], abs=2e-3)
    # The sites are mixed evenly, not one after the other.
    parts = np.array(first[: len(first) // 10 * 10]).reshape(10, -1).mean(axis=1)
    assert np.abs(parts - shares[0]).max() < 5 * math.sqrt(shares[0] * shares[1] / len(first) * 10)


def test_replacements_go_through_all_samples_of_the_pass() -> None:
    order = stream([0] * 7 + [1] * 6, [0, 1] * 6 + [1])
    for position in (0, 5, 12, 13 + 4):
        assert order(position, 13) == order(position)
        assert sorted(order(position, attempt)[0] for attempt in range(13)) == list(range(13))
        assert order(position, 1) == order(position + 1 if (position + 1) % 13 else position + 1 - 13)


def test_passes_and_keys_differ_in_order() -> None:
    orders = [[stream([0] * 50, [0] * 50, key=key)(p)[0] for p in range(100)] for key in (1, 2)]
    assert orders[0][:50] != orders[0][50:] and orders[0] != orders[1]
    assert sum(a == b for a, b in zip(orders[0][:50], orders[0][50:], strict=True)) < 10


def test_passes_that_are_no_cycle_differ_in_order() -> None:
    """A site of 10 with 25 slots reads half of itself at the end of every second cycle: not always the same half."""
    order = stream([0] * 40 + [1] * 10, [0] * 50, temperature=1e6)
    assert order.length == 50
    halves = set()
    for cycle in range(0, 20, 2):
        drawn = [order(p) for p in range(cycle * 50, (cycle + 1) * 50)]
        last = max(pass_ for sample, pass_ in drawn if sample >= 40)
        half = frozenset(sample for sample, pass_ in drawn if sample >= 40 and pass_ == last)
        assert len(half) == 5
        halves.add(half)
    assert len(halves) > 5


@given(n=st.integers(0, 60), m=st.integers(1, 50), a=st.integers(0, 200), b=st.integers(0, 200))
def test_floor_sum_is_the_sum_of_floors(n: int, m: int, a: int, b: int) -> None:
    assert floor_sum(n, m, a, b) == sum((a * i + b) // m for i in range(n))


def site_batches(sizes: list[int], quota: int, sites: int, temperature: float = 1.0, groups: int = 1) -> SiteBatches:
    site_N = np.repeat(np.arange(len(sizes)), sizes)
    return SiteBatches(site_N, np.arange(len(site_N)) % groups, temperature, 11, quota, sites)


def read(order: SiteBatches, sizes: list[int], steps: int) -> np.ndarray:
    """Site, sample and pass of each position, ``(steps, quota, 3)``."""
    site_N = np.repeat(np.arange(len(sizes)), sizes)
    drawn = [order(p) for p in range(steps * order.quota)]
    return np.array([(site_N[i], i, pass_) for i, pass_ in drawn]).reshape(steps, order.quota, 3)


SIZES = [40, 40, 55, 31, 62, 17, 8, 44, 90, 25, 1, 67]  # the largest is 0.19 of all


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    sites=st.integers(1, 5),
    chunk=st.integers(1, 6),
    groups=st.integers(1, 3),
    temperature=st.sampled_from([1.0, 3.0, 1e6]),
)
@settings(max_examples=40, deadline=None)
def test_batches_of_sites_read_every_sample_of_a_site_once_per_pass_over_it(
    sizes: list[int], sites: int, chunk: int, groups: int, temperature: float
) -> None:
    order = site_batches(sizes, sites * chunk, sites, temperature, groups)
    found = read(order, sizes, 4 * order.cycle_steps)
    for site, size in enumerate(sizes):
        drawn = found[found[..., 0] == site]
        numbers = Counter(map(tuple, drawn[:, 1:]))
        assert set(numbers.values()) <= {1}, "a sample twice in one pass over its site"
        # Passes follow one another in time: a pass ends with its last sample before the next begins.
        assert (np.diff(drawn[:, 2]) >= 0).all() and (np.bincount(drawn[:, 2], minlength=1)[:-1] == size).all()
    # Whole chunks of one site each; as many different sites as asked for unless one has more than its part.
    by_chunk = found[..., 0].reshape(len(found), sites, chunk)
    assert (by_chunk == by_chunk[..., :1]).all()
    slots = np.array(sizes) if temperature == 1 else None
    if slots is not None and slots.max() * sites <= slots.sum():
        assert all(len(set(step)) == sites for step in by_chunk[..., 0].tolist())


@pytest.mark.parametrize(("temperature", "sites", "power"), [(1.0, 4, 1.0), (2.0, 4, 0.5), (1e6, 6, 0.0)])
def test_batches_of_sites_keep_the_temperature_and_the_number_of_sites(
    temperature: float, sites: int, power: float
) -> None:
    """At any time a site has had its share to within a few chunks, and each step has that many sites."""
    order = site_batches(SIZES, 48, sites, temperature)
    steps = 400
    found = read(order, SIZES, steps)[..., 0]
    assert {len(set(step)) for step in found.tolist()} == {sites}
    slots = np.maximum(1, np.rint(np.array(SIZES) ** power * sum(SIZES) / (np.array(SIZES) ** power).sum()))
    share = slots / slots.sum() * 48
    so_far = np.stack([np.bincount(step, minlength=len(SIZES)) for step in found]).cumsum(0)
    late = np.abs(so_far - np.arange(1, steps + 1)[:, None] * share) / (48 // sites)
    assert late[order.cycle_steps - 1 :: order.cycle_steps].max() < 3 and late.max() < 5
    together = np.zeros((len(SIZES), len(SIZES)))
    for step in found.tolist():
        present = list(set(step))
        together[np.ix_(present, present)] += 1
    large = np.array(SIZES) > 20
    assert (together[np.ix_(large, large)] > 0).all(), "two sites are never in one step"


def test_batches_of_sites_read_all_recordings_equally_often() -> None:
    """At temperature 1 as without: every sample of the stream once per pass, give or take what a site is early."""
    order = site_batches(SIZES, 48, 4)
    found = read(order, SIZES, 300)
    times = np.bincount(found[..., 1].ravel(), minlength=sum(SIZES))
    passes = 300 * 48 / sum(SIZES)
    site_of = np.repeat(np.arange(len(SIZES)), SIZES)
    for site, size in enumerate(SIZES):
        of_site = times[site_of == site]
        assert of_site.max() - of_site.min() <= 1
        assert abs(of_site.mean() - passes) <= 2.5 * 12 / size, "more than two and a half chunks early or late"
    assert times.min() > 0


def test_batches_of_sites_come_out_exactly_in_the_long_run() -> None:
    sizes = [3, 7, 1, 5]
    order = site_batches(sizes, 4, 2)
    cycles = sum(sizes)
    assert order.chunks_before(cycles) == [size * len(sizes) * 2 for size in sizes]
    # Random access: chunks before a cycle are those that all cycles up to it have.
    found = read(order, sizes, 20 * order.cycle_steps)
    for cycle in (1, 7, 20):
        counts = np.bincount(found[: cycle * order.cycle_steps, :, 0].ravel(), minlength=4) // 2
        assert order.chunks_before(cycle) == counts.tolist()


def test_more_sites_than_there_are_means_all_of_them_in_every_step() -> None:
    found = read(site_batches([30, 30, 60], 12, 6), [30, 30, 60], 60)[..., 0]
    counts = np.stack([np.bincount(step, minlength=3) for step in found])
    assert (counts > 0).all() and counts.mean(0) == pytest.approx([3, 3, 6], abs=0.1)


def test_replacements_come_from_the_site_then_from_others() -> None:
    sizes = [40, 5, 40, 40, 40]
    order = site_batches(sizes, 12, 3)
    site_of = np.repeat(np.arange(5), sizes)
    position = next(p for p in range(1000) if site_of[order(p)[0]] == 1)
    tried = [order(position, attempt)[0] for attempt in range(30)]
    assert {site_of[i] for i in tried[:6]} == {1} and len(set(tried[1:6])) == 5
    assert {site_of[i] for i in tried[6:]} - {1}, "a site that cannot be read at all ends the run"


def test_groups_are_visited_in_turn_within_a_pass_over_a_site_and_alike_by_all() -> None:
    sizes, groups = [60, 60, 60], 4
    order = site_batches(sizes, 15, 3, groups=groups)
    found = read(order, sizes, 24)
    for pass_ in range(2):
        visits = []
        for site in range(3):
            drawn = found[(found[..., 0] == site) & (found[..., 2] == pass_)][:, 1] % groups
            visits.append([int(g) for i, g in enumerate(drawn) if i == 0 or g != drawn[i - 1]])
        assert visits[0] == visits[1] == visits[2] and sorted(visits[0]) == list(range(groups))


def test_a_stream_of_a_thousand_sites_needs_little() -> None:
    order = site_batches([1 + i % 50 for i in range(1000)], 64, 4)
    first, late = order(0), order(64 * 10**7)
    assert first != late and order.chunks_before(10**6)[0] > 0


@pytest.mark.parametrize(("sizes", "total", "stride"), [
    ((70, 29), 99, 61), ((70, 30), 100, 63), ((1, 1), 2, 1), ((2, 1), 3, 2), ((1, 0), 1, 1),
])  # fmt: skip
def test_what_is_rounded_moves_by_the_golden_ratio_of_the_sizes(sizes: tuple, total: int, stride: int) -> None:
    """0.618 of the total, or the next number without a common divisor with it, so that every place is met."""
    order = SiteBatches(np.repeat([0, 1], sizes), np.zeros(total, int), 1.0, key=5, quota=4, sites=2)
    assert (order._total, order._stride) == (total, stride)


def test_the_order_of_a_key_is_written_out() -> None:
    """Another order is another run from the same seed, and a run that is resumed would read other data."""
    assert [Permutation(10, 7)(i) for i in range(10)] == [9, 8, 6, 1, 5, 3, 7, 0, 4, 2]
    small = [[Permutation(n, key)(i) for i in range(n)] for n, key in ((1, 5), (2, 3), (3, 1), (4, 2), (5, 9))]
    assert small == [[0], [1, 0], [2, 0, 1], [0, 3, 2, 1], [1, 2, 0, 4, 3]]
    assert [Permutation(1000, 1)(i) for i in range(6)] == [978, 605, 378, 545, 195, 237]
    assert [Permutation(10**9, 7)(i) for i in range(3)] == [183117974, 341937549, 460101571]
    sites, groups = [0] * 5 + [1] * 2, [0, 1, 0, 1, 1, 0, 1]
    found = [stream(sites, groups)(p) for p in range(14)]
    assert [i for i, _ in found] == [5, 2, 0, 3, 1, 4, 6, 3, 1, 6, 4, 5, 0, 2]
    assert [pass_ for _, pass_ in found] == [0] * 7 + [1] * 7
    warm = stream(sites, groups, temperature=3.0)
    assert warm.length == 6
    assert [warm(p) for p in range(12)] == [
        (5, 0), (2, 0), (0, 0), (3, 0), (1, 0), (6, 0), (3, 1), (4, 0), (6, 1), (5, 1), (0, 1), (2, 1),
    ]  # fmt: skip
    mixed = site_batches([5, 2, 4], 4, 2)
    assert (mixed._total, mixed._stride, mixed._offset, mixed.cycle_steps) == (11, 7, 0, 3)
    assert [mixed(p)[0] for p in range(24)] == [
        5, 6, 8, 7, 9, 10, 1, 4, 7, 8, 3, 2, 0, 3, 10, 9, 2, 1, 5, 6, 4, 0, 7, 9,
    ]  # fmt: skip


def test_a_site_of_many_unreadable_samples_is_left_after_sixteen() -> None:
    sizes = [40, 40, 40, 40]
    order = site_batches(sizes, 12, 3)
    site_of = np.repeat(np.arange(4), sizes)
    tried = [int(site_of[order(0, attempt)[0]]) for attempt in range(18)]
    assert len(set(tried[:17])) == 1 and len({order(0, attempt)[0] for attempt in range(17)}) == 17
    assert order(0, 17) == order(12, 1), "from the site of the same place in the next step"
