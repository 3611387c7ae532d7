"""Where windows of a recording start: the one rule for training, encoding and evaluation.

A window lies wholly inside valid time where the recording has such a place. Where it has none, a window may hold
invalid time, but only as little as can be, and never more than half of it; a recording without such a place has no
windows. Everything is a function of the recording and of numbers that the caller draws.

Shape letters: E edges of valid spans, S starts.
"""

import math
from collections.abc import Mapping

import numpy as np

from mcsp.schema import Modality, Recording

# Least share of a window's time samples that are valid. Ours: what is measured of a window (spectra, correlations) then
# comes from at least as much signal as is missing, and the two halves that views are made of cannot both be empty.
LEAST_VALID_SHARE = 0.5
# Where no window is wholly valid: the share of the best window's valid samples that others need. Below 1, so that
# windows still spread over a recording whose valid spans are all short (volumes with motion, say). Ours.
NEAR_BEST = 0.9

_SAME_INSTANT_SECONDS = 1e-6  # two clocks that agree up to rounding


def window_samples(recording: Recording, seconds: float) -> int:
    """Length of a window of ``seconds`` in the recording's own time samples, at least 1."""
    return max(1, round(seconds * recording.sfreq))


def longest_window(recording: Recording, seconds: float) -> int:
    """As :func:`window_samples`, at most the recording's length: a shorter recording is one window."""
    return min(window_samples(recording, seconds), recording.n_samples)


def start_ranges(recording: Recording, n_samples: int) -> list[tuple[int, int]]:
    """First time samples that windows of ``n_samples`` may have: inclusive ranges in order, disjoint.

    Those whose window is wholly valid; where there are none, those with at least ``NEAR_BEST`` of the valid samples
    that the best window has, if these are at least ``LEAST_VALID_SHARE`` of the window; else none. A window longer than
    the recording counts as one of its length.
    """
    n_samples = min(n_samples, recording.n_samples)
    last = recording.n_samples - n_samples
    edges_E, before_E = _valid_before(recording)
    # Between these starts the number of valid samples grows by one per sample, falls by one, or stays.
    bends_S = np.unique(np.clip(np.concatenate([edges_E, edges_E - n_samples, [0, last]]), 0, last))
    count_S = np.interp(bends_S + n_samples, edges_E, before_E) - np.interp(bends_S, edges_E, before_E)
    bends, counts = bends_S.tolist(), count_S.round().astype(int).tolist()
    best = max(counts)
    least = n_samples if best == n_samples else math.ceil(max(NEAR_BEST * best, LEAST_VALID_SHARE * n_samples))
    ranges: list[tuple[int, int]] = []
    for a, b, at_a, at_b in zip(bends, [*bends[1:], last], counts, [*counts[1:], counts[-1]], strict=True):
        if max(at_a, at_b) < least:
            continue
        first = a if at_a >= least else b - (at_b - least)
        final = b if at_b >= least else a + (at_a - least)
        if ranges and first <= ranges[-1][1] + 1:
            ranges[-1] = ranges[-1][0], final
        else:
            ranges.append((first, final))
    return ranges


def _valid_before(recording: Recording) -> tuple[np.ndarray, np.ndarray]:
    """Edges of the valid spans, int64, and how many valid samples lie before each; the whole where none are named."""
    edges_E = np.asarray(recording.valid_spans or [0, recording.n_samples], dtype=np.int64)
    lengths = np.diff(edges_E)
    lengths[1::2] = 0
    return edges_E, np.concatenate([[0], np.cumsum(lengths)])


def window_starts(recording: Recording, n_samples: int, count: int) -> list[int]:
    """First time samples of up to ``count`` windows, evenly spaced over all that :func:`start_ranges` allows.

    Windows may overlap where there is little room; the list is empty where no window is allowed.
    """
    ranges = start_ranges(recording, n_samples)
    room = sum(last - first + 1 for first, last in ranges)
    if not room:
        return []
    places = np.unique(np.linspace(0, room - 1, count).round().astype(int))
    return [_start_at(ranges, int(place)) for place in places]


def random_start(recording: Recording, n_samples: int, draw: float) -> int:
    """One of the starts that :func:`start_ranges` allows, all equally likely for a uniform ``draw`` in [0, 1).

    Raises:
        ValueError: a recording without a window, by its name.
    """
    ranges = start_ranges(recording, n_samples)
    if not ranges:
        raise ValueError(no_window(recording, n_samples))
    return _start_at(ranges, int(draw * sum(last - first + 1 for first, last in ranges)))


def _start_at(ranges: list[tuple[int, int]], place: int) -> int:
    for first, last in ranges:
        if place <= last - first:
            return first + place
        place -= last - first + 1
    raise AssertionError("a place lies in one of the ranges")


def no_window(recording: Recording, n_samples: int, name: str = "") -> str:
    """The line that says why a recording has no windows."""
    valid = int(_valid_before(recording)[1][-1])
    return (
        f"{name or f'{recording.site}/{recording.member}'}: {valid / recording.sfreq:.1f} of {recording.seconds:.1f} "
        f"s are valid, expected a window of {n_samples / recording.sfreq:g} s with at least {LEAST_VALID_SHARE:.0%} "
        "of it valid: leave the recording out, or take shorter windows"
    )


def seconds_in_no_window(recording: Recording, n_samples: int) -> float:
    """How much of a recording [s] no allowed window covers."""
    covered, stop = 0, 0
    for first, last in start_ranges(recording, n_samples):
        end = min(last + n_samples, recording.n_samples)
        covered += end - max(first, stop)
        stop = end
    return (recording.n_samples - covered) / recording.sfreq


def common_instants(
    eeg: Recording, fmri: Recording, window_seconds: Mapping[Modality, float], delay_seconds: float
) -> list[tuple[float, float]]:
    """Instants [s, shared clock] at which both an EEG window and its BOLD window may start: inclusive ranges in order.

    The BOLD window starts ``delay_seconds`` later. Empty where the recordings share no clock, do not overlap enough, or
    are never valid together.
    """
    if not (math.isfinite(eeg.onset_seconds) and math.isfinite(fmri.onset_seconds)):
        return []
    found: list[tuple[float, float]] = []
    clock_eeg, clock_fmri = eeg.onset_seconds, fmri.onset_seconds - delay_seconds
    of_fmri = start_ranges(fmri, window_samples(fmri, window_seconds["fmri"]))
    for a, b in start_ranges(eeg, window_samples(eeg, window_seconds["eeg"])):
        for c, d in of_fmri:
            first = max(clock_eeg + a / eeg.sfreq, clock_fmri + c / fmri.sfreq)
            last = min(clock_eeg + b / eeg.sfreq, clock_fmri + d / fmri.sfreq)
            if first <= last + _SAME_INSTANT_SECONDS:
                found.append((first, max(first, last)))
    return found


def window_start(recording: Recording, clock_seconds: float, seconds: float) -> int:
    """First time sample of the window that starts at ``clock_seconds`` on the shared clock; kept inside."""
    start = round((clock_seconds - recording.onset_seconds) * recording.sfreq)
    return min(max(start, 0), recording.n_samples - window_samples(recording, seconds))
