import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcsp.training.order import Order, Permutation


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


def test_a_shift_goes_through_all_samples_of_the_pass() -> None:
    order = stream([0] * 7 + [1] * 6, [0, 1] * 6 + [1])
    for position in (0, 5, 12, 13 + 4):
        assert order(position, 13) == order(position)
        assert sorted(order(position, shift)[0] for shift in range(13)) == list(range(13))
        assert order(position, 1) == order(position + 1 if (position + 1) % 13 else position + 1 - 13)


def test_passes_and_keys_differ_in_order() -> None:
    orders = [[stream([0] * 50, [0] * 50, key=key)(p)[0] for p in range(100)] for key in (1, 2)]
    assert orders[0][:50] != orders[0][50:] and orders[0] != orders[1]
    assert sum(a == b for a, b in zip(orders[0][:50], orders[0][50:], strict=True)) < 10
