import math
from collections import Counter
from dataclasses import replace

from mcsp.schema import Recording, random_key
from mcsp.training.reading.schedule import Cut, _instant, cut_one, cut_pair, pairings
from tests.training.reading.test_schedule import recording

SECONDS = {"eeg": 30.0, "fmri": 40.0}


def inside(cut: Cut, first: int, stop: int) -> bool:
    return first <= cut.start and cut.start + cut.n_samples <= stop


def keys(n: int) -> list[int]:
    return [random_key(9, i) for i in range(n)]


def test_every_valid_start_is_as_likely() -> None:
    r = replace(recording("a", "fmri"), n_samples=60, valid_spans=[0, 22, 30, 54])
    found = Counter(cut_one(r, SECONDS, key).start for key in keys(6000))  # windows of 20 samples
    assert set(found) == {0, 1, 2, 30, 31, 32, 33, 34}
    assert all(600 < n < 900 for n in found.values())


def test_simultaneous_windows_avoid_what_is_invalid_in_either() -> None:
    eeg = replace(recording("a", "eeg", onset=0.0), valid_spans=[0, 50 * 200, 60 * 200, 120 * 200])
    fmri = replace(recording("a", "fmri", onset=2.0), valid_spans=[4, 60])  # volumes of 2 s: from 10 s on
    starts = []
    for key in keys(300):
        e, f = cut_pair(eeg, fmri, SECONDS, 5.0, key)
        assert inside(e, 0, 50 * 200) or inside(e, 60 * 200, 120 * 200)
        assert inside(f, 4, 60)
        assert abs(2.0 + f.start * 2.0 - (e.start / 200 + 5.0)) <= 1.01
        starts.append(e.start / 200)
    # EEG from 5 s (BOLD at 10 s) to 20 s, or from 60 s to 77 s, where the BOLD recording ends.
    assert 5 <= min(starts) < 6 and 76 < max(starts) <= 77.01
    assert 100 < sum(s <= 20 for s in starts) < 180


def test_where_nothing_is_valid_together_each_is_cut_where_it_is_valid() -> None:
    eeg = replace(recording("a", "eeg", onset=0.0), valid_spans=[0, 40 * 200])
    fmri = replace(recording("a", "fmri", onset=0.0), valid_spans=[38, 60])
    for key in keys(50):
        e, f = cut_pair(eeg, fmri, SECONDS, 5.0, key)
        assert inside(e, 0, 40 * 200) and inside(f, 38, 60)


def test_a_single_common_instant_is_found() -> None:
    eeg = recording("a", "eeg", seconds=30.0, onset=0.0)
    fmri = recording("a", "fmri", seconds=46.0, onset=0.0)
    for key in keys(5):
        assert [c.start for c in cut_pair(eeg, fmri, SECONDS, 6.0, key)] == [0, 3]


def named(key: str, modality: str, number: int, onset: float) -> Recording:
    return replace(recording(key, modality, onset=onset), member=f"{key}.{modality}-{number}.npy")


def test_pairs_are_the_simultaneous_ones_and_leave_nothing_out() -> None:
    eeg = [named("a", "eeg", i, onset) for i, onset in enumerate([0.0, 1000.0, math.nan])]
    fmri = [named("a", "fmri", i, onset) for i, onset in enumerate([1000.0, 0.0])]
    pairs = [(e.member[-5], f.member[-5]) for e, f in pairings(eeg, fmri, SECONDS, 5.0)]
    assert pairs == [("0", "1"), ("1", "0"), ("2", "0")]
    alone = [named("a", "eeg", i, math.nan) for i in range(3)]
    assert len(pairings(alone, fmri, SECONDS, 5.0)) == 3
    assert len(pairings(alone[:1], fmri, SECONDS, 5.0)) == 2


def test_rounding_leaves_no_draw_outside_of_the_ranges() -> None:
    """The sum of their lengths is a little more than the lengths one after the other."""
    ranges = [(1.5, 2.4), (3.6, 3.7), (3.9, 7.3), (7.6, 9.6)]
    assert _instant(ranges, math.nextafter(1, 0)) == 9.6 and _instant(ranges, 0.0) == 1.5
