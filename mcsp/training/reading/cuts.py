"""Which windows of a sample are read: where :mod:`mcsp.windows` allows them, aligned in time where clocks are shared.

Everything is a function of the recordings and of integer keys.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mcsp.schema import Modality, Purpose, Recording, random_key, unit_interval
from mcsp.windows import common_instants, random_start, window_samples, window_start

Seconds = Mapping[Modality, float]


@dataclass(frozen=True)
class Cut:
    """A window to read."""

    recording: Recording
    start: int
    n_samples: int


def pairings(
    eeg: Sequence[Recording], fmri: Sequence[Recording], window_seconds: Seconds, delay_seconds: float
) -> list[tuple[Recording, Recording]]:
    """The pairs of recordings that a sample with both modalities is read as, one per pass, in turn.

    All pairs with simultaneous windows; recordings that are in none of them are joined one by one. So every recording
    is in at least one pair.
    """
    pairs = [(e, f) for e in eeg for f in fmri if common_instants(e, f, window_seconds, delay_seconds)]
    used = {r.member for pair in pairs for r in pair}
    lone_eeg, lone_fmri = ([r for r in rs if r.member not in used] for rs in (eeg, fmri))
    rest = max(len(lone_eeg), len(lone_fmri))
    lone_eeg, lone_fmri = lone_eeg or list(eeg), lone_fmri or list(fmri)
    return pairs + [(lone_eeg[i % len(lone_eeg)], lone_fmri[i % len(lone_fmri)]) for i in range(rest)]


def cut_one(recording: Recording, window_seconds: Seconds, key: int) -> Cut:
    """A window at a random place, every start that :mod:`mcsp.windows` allows with the same probability.

    Raises:
        ValueError: a recording without a window.
    """
    n_samples = window_samples(recording, window_seconds[recording.modality])
    return Cut(recording, random_start(recording, n_samples, unit_interval(key)), n_samples)


def cut_pair(
    eeg: Recording, fmri: Recording, window_seconds: Seconds, delay_seconds: float, key: int
) -> tuple[Cut, Cut]:
    """A window of each: simultaneous, the BOLD one ``delay_seconds`` later, where the recordings share a clock.

    The instant is drawn uniformly from those at which :mod:`mcsp.windows` allows both windows; where there are none,
    each is cut by itself.

    Raises:
        ValueError: a recording without a window.
    """
    instants = common_instants(eeg, fmri, window_seconds, delay_seconds)
    if not instants:
        first_key, second_key = (random_key(key, p) for p in (Purpose.FIRST_WINDOW, Purpose.SECOND_WINDOW))
        return cut_one(eeg, window_seconds, first_key), cut_one(fmri, window_seconds, second_key)
    instant = _instant(instants, unit_interval(random_key(key, Purpose.FIRST_WINDOW)))

    def at(r: Recording, clock_seconds: float) -> Cut:
        seconds = window_seconds[r.modality]
        return Cut(r, window_start(r, clock_seconds, seconds), window_samples(r, seconds))

    return at(eeg, instant), at(fmri, instant + delay_seconds)


def _instant(ranges: Sequence[tuple[float, float]], draw: float) -> float:
    """A point of the union of disjoint ranges, by a uniform draw in [0, 1)."""
    total = sum(b - a for a, b in ranges)
    if total == 0:
        return ranges[int(draw * len(ranges))][0]
    place = draw * total
    for a, b in ranges:
        if place <= b - a:
            return a + place
        place -= b - a
    return ranges[-1][1]
