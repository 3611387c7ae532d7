"""Where windows start: all and only the places that the rule allows, whatever the valid spans."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcsp.schema import Recording
from mcsp.windows import (
    common_instants,
    longest_window,
    no_window,
    random_start,
    seconds_in_no_window,
    start_ranges,
    window_samples,
    window_start,
    window_starts,
)
from tests.test_batch import window


def recording(n_samples: int, valid_spans: list[int], sfreq: float = 200.0, **changes: object) -> Recording:
    return replace(window(sfreq=sfreq).recording, n_samples=n_samples, valid_spans=valid_spans, **changes)


def allowed(edges: list[int], total: int, length: int) -> set[int]:
    """Every start, one by one, with the numbers of the rule written out."""
    valid_T = np.zeros(total, dtype=bool)
    for a, b in zip(edges[::2], edges[1::2], strict=True):
        valid_T[a:b] = True
    count = {s: int(valid_T[s : s + length].sum()) for s in range(total - length + 1)}
    whole = {s for s, n in count.items() if n == length}
    best = max(count.values())
    return whole or {s for s, n in count.items() if n >= 0.9 * best and n >= 0.5 * length}


@given(
    edges=st.lists(st.integers(0, 400), min_size=2, max_size=12).map(sorted),
    length=st.integers(1, 400),
    count=st.integers(1, 9),
)
@settings(max_examples=300, deadline=None)
def test_starts_are_all_and_only_those_of_the_rule_and_spread(edges: list[int], length: int, count: int) -> None:
    edges = edges[: len(edges) // 2 * 2]
    r = recording(400, edges)
    ranges = start_ranges(r, length)
    found = [s for a, b in ranges for s in range(a, b + 1)]
    assert found == sorted(set(found)), "ranges overlap or are not in order"
    assert set(found) == allowed(edges, 400, length)
    starts = window_starts(r, length, count)
    assert len(starts) == min(count, len(found)) and set(starts) <= set(found)
    if count > 1 and found:
        assert (starts[0], starts[-1]) == (found[0], found[-1])
    draws = [random_start(r, length, (i + 0.5) / len(found)) for i in range(len(found))]
    assert draws == found, "not every start is as likely"
    covered = {t for s in found for t in range(s, s + length)}
    assert seconds_in_no_window(r, length) == pytest.approx((400 - len(covered)) / 200)


def test_a_span_exactly_one_window_long_has_one_start() -> None:
    assert start_ranges(recording(100, [10, 30, 50, 69]), 20) == [(10, 10)]
    assert start_ranges(recording(100, [10, 29, 50, 69]), 20) == [(8, 11), (48, 51)]


def test_exactly_half_of_a_window_is_enough_and_one_sample_less_is_not() -> None:
    assert start_ranges(recording(100, [40, 50]), 20) == [(30, 40)]
    assert start_ranges(recording(100, [40, 49]), 20) == []
    assert window_starts(recording(100, [40, 49]), 20, 4) == []
    with pytest.raises(ValueError, match=r"a/a_s1.eeg-0.npy: 0.0 of 0.5 s are valid, expected a window of 0.1 s"):
        random_start(recording(100, [40, 49]), 20, 0.5)


def test_where_no_span_is_named_all_is_valid() -> None:
    assert start_ranges(recording(100, []), 30) == [(0, 70)]


def test_a_recording_shorter_than_the_window_is_one_window() -> None:
    r = recording(50, [0, 50])
    assert (window_samples(r, 0.4), longest_window(r, 0.4)) == (80, 50)
    assert window_starts(r, 80, 4) == window_starts(r, 50, 4) == [0]


def test_25_good_seconds_of_300_give_windows_around_them_alone() -> None:
    """The middle of a long recording that was marked bad nearly throughout, windows of 30 s."""
    r = recording(300 * 200, [100 * 200, 125 * 200])
    starts = window_starts(r, 30 * 200, 4)
    assert len(starts) == 4
    for start in starts:
        assert min(start + 6000, 25000) - max(start, 20000) >= 0.9 * 5000
    assert seconds_in_no_window(r, 6000) == pytest.approx(300 - 40)


def test_instants_of_a_pair_are_those_at_which_both_are_valid() -> None:
    seconds = {"eeg": 30.0, "fmri": 40.0}
    eeg = recording(120 * 200, [0, 50 * 200, 60 * 200, 120 * 200], onset_seconds=0.0)
    fmri = recording(60, [4, 60], 0.5, modality="fmri", onset_seconds=2.0)
    # BOLD is valid from 10 s on, so EEG from 5 s on; BOLD ends at 122 s, so EEG windows start at 77 s at the latest.
    assert np.array(common_instants(eeg, fmri, seconds, 5.0)) == pytest.approx(np.array([(5.0, 20.0), (60.0, 77.0)]))
    assert common_instants(replace(eeg, onset_seconds=math.nan), fmri, seconds, 5.0) == []
    early, late = replace(eeg, valid_spans=[0, 30 * 200]), replace(fmri, valid_spans=[30, 60])
    assert common_instants(early, late, seconds, 0.0) == []
    single = replace(fmri, n_samples=23, valid_spans=[], onset_seconds=0.0)
    assert common_instants(recording(6000, [], onset_seconds=0.0), single, seconds, 6.0) == [(0.0, 0.0)]


@pytest.mark.parametrize(("clock_seconds", "start"), [(9.0, 0), (9.9976, 0), (10.0, 0), (10.4, 80), (99.0, 2000)])
def test_a_window_at_an_instant_stays_inside_its_recording(clock_seconds: float, start: int) -> None:
    assert window_start(recording(8000, [], onset_seconds=10.0), clock_seconds, 30.0) == start


def test_lengths_are_rounded_and_one_sample_at_least() -> None:
    r = recording(50, [])
    assert [window_samples(r, seconds) for seconds in (0.0, 0.001, 0.0124, 0.0126, 0.25)] == [1, 1, 2, 3, 50]
    assert [longest_window(r, seconds) for seconds in (0.0, 0.245, 0.25, 0.3)] == [1, 49, 50, 50]


@pytest.mark.parametrize(("late", "found"), [(-1.0, True), (0.0, True), (0.9e-6, True), (1.1e-6, False), (0.5, False)])
def test_clocks_that_differ_by_rounding_have_an_instant_in_common(late: float, found: bool) -> None:
    """Both recordings are one window long; EEG that starts earlier reaches into both sides of an instant."""
    eeg = recording(6000 + 200 * (late < 0), [], onset_seconds=10.0)
    fmri = recording(20, [], 0.5, modality="fmri", onset_seconds=10.0 + abs(late))
    instants = common_instants(eeg, fmri, {"eeg": 30.0, "fmri": 40.0}, 0.0)
    assert instants == ([(10.0 + abs(late), 10.0 + abs(late))] if found else [])
    assert common_instants(eeg, replace(fmri, onset_seconds=math.nan), {"eeg": 30.0, "fmri": 40.0}, 0.0) == []


def test_without_windows_all_of_a_recording_is_in_none_and_the_line_says_why() -> None:
    r = recording(400, [0, 30, 100, 140])
    assert seconds_in_no_window(r, 200) == 2.0 and seconds_in_no_window(r, 40) == pytest.approx(1.8)
    told = (
        "0.3 of 2.0 s are valid, expected a window of 1 s with at least 50% of it valid: leave the recording out, or "
    )
    assert no_window(r, 200) == f"a/a_s1.eeg-0.npy: {told}take shorter windows"
    assert no_window(r, 200, "mine.edf") == f"mine.edf: {told}take shorter windows"
    assert no_window(recording(400, []), 800).startswith("a/a_s1.eeg-0.npy: 2.0 of 2.0 s are valid")


def test_one_window_of_many_is_the_first_and_a_draw_of_nearly_one_the_last() -> None:
    r = recording(100, [0, 40, 50, 100])
    assert start_ranges(r, 20) == [(0, 20), (50, 80)]
    assert window_starts(r, 20, 1) == [0] and window_starts(r, 20, 3) == [0, 55, 80]
    assert [random_start(r, 20, draw) for draw in (0.0, 20.5 / 52, 21.5 / 52, math.nextafter(1, 0))] == [0, 20, 50, 80]
