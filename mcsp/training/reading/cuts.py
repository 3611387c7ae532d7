"""Which windows of a sample are read: whole valid ones where there are any, aligned in time where clocks are shared.

Everything is a function of the recordings and of integer keys.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mcsp.schema import Modality, Recording, common_starts, random_key, unit_interval, window_samples, window_start

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
    pairs = [(e, f) for e in eeg for f in fmri if common_starts(e, f, window_seconds, delay_seconds)]
    used = {r.member for pair in pairs for r in pair}
    lone_eeg, lone_fmri = ([r for r in rs if r.member not in used] for rs in (eeg, fmri))
    rest = max(len(lone_eeg), len(lone_fmri))
    lone_eeg, lone_fmri = lone_eeg or list(eeg), lone_fmri or list(fmri)
    return pairs + [(lone_eeg[i % len(lone_eeg)], lone_fmri[i % len(lone_fmri)]) for i in range(rest)]


def valid_starts(recording: Recording, n_samples: int) -> list[tuple[int, int]]:
    """Where windows may start, as inclusive ranges: inside the valid spans that hold a whole window.

    Where none does, every start whose window holds as much of the longest span as possible.
    """
    last = recording.n_samples - n_samples
    edges = recording.valid_spans or [0, recording.n_samples]
    spans = list(zip(edges[::2], edges[1::2], strict=True))
    whole = [(a, b - n_samples) for a, b in spans if b - a >= n_samples]
    if whole:
        return whole
    a, b = max(spans, key=lambda span: span[1] - span[0])
    return [(min(max(b - n_samples, 0), last), min(a, last))]


def cut_one(recording: Recording, window_seconds: Seconds, key: int) -> Cut:
    """A window at a random place, every valid start with the same probability."""
    n_samples = window_samples(recording, window_seconds[recording.modality])
    ranges = valid_starts(recording, n_samples)
    place = int(unit_interval(key) * sum(b - a + 1 for a, b in ranges))
    for first, last in ranges:
        if place <= last - first:
            return Cut(recording, first + place, n_samples)
        place -= last - first + 1
    raise AssertionError("a draw below 1 lies in one of the ranges")


def cut_pair(
    eeg: Recording, fmri: Recording, window_seconds: Seconds, delay_seconds: float, key: int
) -> tuple[Cut, Cut]:
    """A window of each: simultaneous, the BOLD one ``delay_seconds`` later, where the recordings share a clock.

    The instant is drawn uniformly from those at which both windows are valid; where there are none, from those at which
    both lie inside their recordings.
    """
    common = common_starts(eeg, fmri, window_seconds, delay_seconds)
    if common is None:
        return cut_one(eeg, window_seconds, random_key(key, 0)), cut_one(fmri, window_seconds, random_key(key, 1))
    delay: dict[Modality, float] = {"eeg": 0.0, "fmri": delay_seconds}
    ranges = [common]
    lengths = {r.modality: window_samples(r, window_seconds[r.modality]) for r in (eeg, fmri)}
    for r in (eeg, fmri):
        clock = r.onset_seconds - delay[r.modality]
        valid = [(clock + a / r.sfreq, clock + b / r.sfreq) for a, b in valid_starts(r, lengths[r.modality])]
        ranges = [(max(a, c), min(b, d)) for a, b in ranges for c, d in valid if max(a, c) <= min(b, d)]
    instant = _instant(ranges or [common], unit_interval(random_key(key, 0)))
    first, second = (
        Cut(r, window_start(r, instant + delay[r.modality], window_seconds[r.modality]), lengths[r.modality])
        for r in (eeg, fmri)
    )
    return first, second


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
