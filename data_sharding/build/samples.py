"""Read all recordings of one subject-session onto one clock; reject bad ones with a reason."""

import json
import math
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import RecordingRef
from mcsp.data_sharding.bids.tables import printable, read_tsv
from mcsp.data_sharding.build.plan import PlannedSample
from mcsp.data_sharding.build.privacy import find_identifiers, find_identifiers_in_participant, without_dates
from mcsp.data_sharding.clean.read import ReadingProcess
from mcsp.data_sharding.clean.recording import CleanRecording
from mcsp.data_sharding.store.files import location, names, private_folder, write_atomic
from mcsp.data_sharding.store.index import BUILD_NAME, Rejection
from mcsp.schema import Modality
from mcsp.wording import listed

_SHOWN = 3
_LABELLED = ("subject", "session", "task", "acquisition", "run", "direction")
_LABEL = re.compile(r"[A-Za-z0-9]+")
_NAME_LENGTH = 64
_FOLDER = "timeouts"
USED_UP = "the time of the site is used up"  # how the line of such a recording begins
# Between two looks at what the other workers have lost: a listing of an object store takes some 20 ms.
_LOOK_SECONDS = 5.0
# Runs whose distance in time is not known lie this far apart on the clock, so that they never overlap. Ours.
_GAP_SECONDS = 3600.0
_OF_GROUP = ("session", "task", "acquisition", "run")


class SiteTime:
    """How much time the files of each site that never end have cost a build: one site must not stop all others.

    A mark for each loss lies beside the shards, where all workers see it.
    """

    def __init__(self, config: CorpusConfig) -> None:
        """Of the build that ``config`` describes."""
        self._folder = location(config.out_dir) / BUILD_NAME / _FOLDER
        self._config = config
        self._known: dict[str, tuple[float, int]] = {}  # site -> when looked at, marks

    def lose(self, site: str) -> None:
        """A recording of the site was not read within its time."""
        folder = self._folder / site
        private_folder(self._folder)
        private_folder(folder)
        write_atomic(folder / uuid.uuid4().hex, b"", private=True)
        self._known.pop(site, None)

    def require(self, site: str) -> None:
        """Raise :class:`RecordingError` (``timeout``) where the site has used up its time."""
        looked, marks = self._known.get(site, (-_LOOK_SECONDS, 0))
        if time.monotonic() - looked >= _LOOK_SECONDS:
            marks = len(names(self._folder / site))
            self._known[site] = (time.monotonic(), marks)
        lost, limit = marks * self._config.read_timeout_seconds, self._config.site_timeout_seconds
        if lost > 0 and lost >= limit:
            cost = f"files of this site that never end have cost {lost:g} s"
            raise RecordingError("timeout", f"{USED_UP}: {cost}, expected less than site_timeout_seconds = {limit:g}")

    def forget(self) -> None:
        """Begin anew: the losses of an earlier run of this build may have been mended."""
        for site in names(self._folder):
            for mark in names(self._folder / site):
                (self._folder / site / mark).unlink(missing_ok=True)


@dataclass(frozen=True)
class SampleRecording:
    """A recording that can be stored."""

    ref: RecordingRef
    clean: CleanRecording
    onset_seconds: float  # on the clock of the sample; NaN where nothing is simultaneous


def read_sample(
    sample: PlannedSample,
    process: ReadingProcess,
    excluded: Mapping[str, str],
    done: Callable[[RecordingRef, float | None], None],
    site_time: SiteTime,
) -> tuple[list[SampleRecording], list[Rejection]]:
    """Read every recording of a sample; one that fails is listed and does not disturb the others.

    Args:
        sample: what to read.
        process: reads it.
        excluded: ``<site>/<file>`` of recordings that are stored under another name -> the line that says where.
        done: called for every recording with its length in seconds, or None where it is rejected.
        site_time: what the site has lost to files that never end.
    """
    readings: list[tuple[RecordingRef, CleanRecording]] = []
    rejected: list[Rejection] = []
    for ref in sample.recordings:
        try:
            if (twin := excluded.get(f"{ref.site.name}/{ref.file}")) is not None:
                raise RecordingError("duplicate", twin)
            if sample.site.fault is not None:
                raise RecordingError(*sample.site.fault)
            require_labels(ref)
            site_time.require(sample.site.name)
            found = process.read(ref)
            _refuse_personal(sample, ref, found.channels)
            readings.append((ref, found))
            seconds_read = found.seconds
        except RecordingError as error:
            if error.reason == "timeout" and not str(error).startswith(USED_UP):
                site_time.lose(sample.site.name)
            rejected.append(Rejection(sample.site.name, ref.file, ref.modality, error.reason, str(error)))
            seconds_read = None
        done(ref, seconds_read)
    onsets = [math.nan] * len(readings)
    if sample.site.pairing == "simultaneous":
        seconds = [clean.seconds for _, clean in readings]
        began = [clean.began for _, clean in readings]
        if (marker := sample.site.first_volume_event) is not None:
            refs = [ref for ref, _ in readings]
            began = marked_times(list(zip(refs, seconds, strict=True)), marker) or began
        times = zip(readings, began, seconds, strict=True)
        onsets = onset_seconds([(ref.modality, start, length) for (ref, _), start, length in times])
    return [SampleRecording(*reading, onset) for reading, onset in zip(readings, onsets, strict=True)], rejected


def require_labels(ref: RecordingRef) -> None:
    """Raise :class:`RecordingError` for a name that BIDS does not allow: it may hold anything, a person's for example.

    A name with something else between its entities is read by nobody as it was meant.
    """
    if (odd := ref.entities.get("")) is not None and printable(odd) == odd:
        raise RecordingError("bad-name", f"{ref.path.name}: {odd!r} between its entities, expected each as key-label")
    for entity in _LABELLED:
        label = ref.entities.get(entity, "1")
        if not _LABEL.fullmatch(label) and printable(label) == label:  # what is no UTF-8 is told when it is read
            raise RecordingError("bad-name", f"{ref.path.name}: {entity} {label!r}, expected letters and digits")


def _refuse_personal(sample: PlannedSample, ref: RecordingRef, channels: Sequence[str]) -> None:
    """Raise :class:`RecordingError` where a text that would go along has the form of a date, a record number, ...

    People's names are looked for when the corpus is sealed: a list of them may change without the recordings.
    """
    if longest := next((name for name in channels if len(name) > _NAME_LENGTH), None):
        name = f"a channel or parcel is called {longest[:20]!r}..., {len(longest)} characters"
        raise RecordingError("bad-name", f"{ref.path.name}: {name}, expected at most {_NAME_LENGTH}")
    texts = [(entity, without_dates(ref.entities.get(entity, ""))) for entity in ("task", "run")]
    found = [*_of_channels(tuple(channels)), *find_identifiers(texts, frozenset())]
    found += find_identifiers_in_participant("participants.tsv", json.loads(sample.participant), frozenset())
    if found:
        raise RecordingError("suspected-personal-data", listed(found, _SHOWN, "; "))


@lru_cache(maxsize=256)  # all recordings of a site have the same
def _of_channels(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(find_identifiers([("channel", name) for name in names], frozenset()))


def onset_seconds(times: Sequence[tuple[Modality, float, float]]) -> list[float]:
    """Start of each recording on the clock of the sample [s].

    Takes modality, start [s since 1970, NaN where unknown] and duration [s] of each recording. Only recordings that
    overlap one of the other modality have an onset, relative to the first of these; the others get NaN. No time of
    day leaves this function.
    """

    def simultaneous(modality: str, start: float, seconds: float) -> bool:
        # Comparisons with NaN, an unknown start, are false.
        return any(m != modality and start < s + length and s < start + seconds for m, s, length in times)

    shared = [start if simultaneous(m, start, seconds) else math.nan for m, start, seconds in times]
    first = min((start for start in shared if not math.isnan(start)), default=math.nan)
    return [round(start - first, 6) for start in shared]


def marked_times(recordings: Sequence[tuple[RecordingRef, float]], marker: str) -> list[float] | None:
    """Starts [s] of recordings, given with their durations [s]; NaN for those of no marked run.

    An EEG and the fMRI of its session, task, acquisition and run are one group; the fMRI starts at the first event
    whose ``trial_type`` or ``value`` is ``marker``. Groups follow each other with a gap. None where no EEG has it.
    """
    times = [math.nan] * len(recordings)
    base = 0.0
    for e, (eeg, seconds) in enumerate(recordings):
        offset = _event_onset(eeg, marker) if eeg.modality == "eeg" else math.nan
        if math.isnan(offset):
            continue
        times[e] = base
        end = base + seconds
        for f, (fmri, volumes_seconds) in enumerate(recordings):
            if fmri.modality == "fmri" and _group(fmri) == _group(eeg):
                times[f] = base + offset
                end = max(end, times[f] + volumes_seconds)
        base = end + _GAP_SECONDS
    return None if all(math.isnan(time) for time in times) else times


def _group(ref: RecordingRef) -> tuple[str, ...]:
    return tuple(ref.entities.get(name, "") for name in _OF_GROUP)


def _event_onset(ref: RecordingRef, marker: str) -> float:
    """Onset [s] of the first event called ``marker``, or NaN."""
    table = ref.companion("events.tsv")
    try:
        rows = read_tsv(table) if table is not None else []
        found = [float(row["onset"]) for row in rows if marker in (row.get("trial_type"), row.get("value"))]
    except (RecordingError, KeyError, ValueError):  # costs the pairing, not the recordings
        return math.nan
    return min(found, default=math.nan)
