"""Where simultaneous recordings start on a clock that they share, from the marker of the first volume in the EEG.

``acq_time`` of ``*_scans.tsv`` is written by two computers and often in whole seconds. A scanner that is wired to the
amplifier leaves an event in the EEG with its first volume, which is exact; a site names it in ``first_volume_event``.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from mcsp.data_sharding.bids.derivatives import scans_tables
from mcsp.data_sharding.bids.find import FOLDERS, RecordingRef, parse_name, run_entities
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.tables import read_tsv

# Runs whose distance in time is not known lie this far apart on the clock, so that they never overlap. Ours.
_GAP_SECONDS = 3600.0
_RUN = ("session", "task", "acquisition", "run")


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
            if fmri.modality == "fmri" and _run(fmri) == _run(eeg):
                times[f] = base + offset
                end = max(end, times[f] + volumes_seconds)
        base = end + _GAP_SECONDS
    return None if all(math.isnan(time) for time in times) else times


def _run(ref: RecordingRef) -> tuple[str, ...]:
    return tuple(ref.entities.get(name, "") for name in _RUN)


def _event_onset(ref: RecordingRef, marker: str) -> float:
    """Onset [s] of the first event called ``marker``, or NaN."""
    table = ref.companion("events.tsv")
    try:
        rows = read_tsv(table) if table is not None else []
        found = [float(row["onset"]) for row in rows if marker in (row.get("trial_type"), row.get("value"))]
    except (RecordingError, KeyError, ValueError):  # costs the pairing, not the recordings
        return math.nan
    return min(found, default=math.nan)


def acquisition_time(ref: RecordingRef) -> float:
    """Start of a recording in seconds since 1970 by the scanner's clock (``acq_time`` of ``*_scans.tsv``), or NaN.

    A derivative has the time of the raw run that it comes from: the row of its modality with the entities of its run.
    """
    for table in scans_tables(ref):
        try:
            rows = [row for row in read_tsv(table) if "acq_time" in row and "filename" in row]
        except ValueError:  # costs the pairing, not the recordings
            continue
        own = [row for row in rows if table.parent / row["filename"] == ref.path]
        times = {row["acq_time"] for row in own or [row for row in rows if _is_of_run(row["filename"], ref)]}
        if times:
            try:
                time = datetime.fromisoformat(min(times))
            except ValueError:
                return math.nan
            if len(times) > 1:  # echoes of one run start together; others are no run of this one
                return math.nan
            return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return math.nan


def _is_of_run(filename: str, ref: RecordingRef) -> bool:
    """Whether a raw file is of the run that ``ref`` is a derivative of."""
    folder = Path(filename).parent.name
    own = run_entities(ref.entities)
    named = {"subject": own.get("subject", ""), **{k: own[k] for k in ("session",) if k in own}}
    return folder == FOLDERS[ref.modality] and run_entities({**named, **parse_name(Path(filename).name)[0]}) == own
