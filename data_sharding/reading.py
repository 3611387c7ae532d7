"""Read and clean one recording, or say why not; imported by the process that reads and by nobody who waits for it."""

import math
from datetime import UTC, datetime

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids import RecordingRef, read_tsv
from mcsp.data_sharding.eeg import read_eeg
from mcsp.data_sharding.fmri import read_fmri
from mcsp.data_sharding.recording import CleanRecording, RecordingError, reading, valid_seconds


def read_recording(ref: RecordingRef, config: CorpusConfig) -> CleanRecording:
    """Read and clean one recording; raise :class:`RecordingError` with the reason, whatever is wrong with the file."""
    min_seconds = config.min_seconds.get(ref.modality, 0.0)
    with reading(ref.site.root):
        if ref.modality == "eeg":
            clean = read_eeg(ref, config.eeg_of(ref.site.name), min_seconds)
        else:
            clean = read_fmri(ref, config.fmri_of(ref.site.name), min_seconds)
    if valid_seconds(clean) < min_seconds:
        detail = f"{valid_seconds(clean):.1f} s outside of bad spans, expected at least {min_seconds:g} s"
        raise RecordingError("too-short", detail)
    return clean


def acquisition_time(ref: RecordingRef) -> float:
    """Start of a recording in seconds since 1970 by the scanner's clock (``acq_time`` of ``*_scans.tsv``), or NaN."""
    for table in reversed(ref.companions.get("scans.tsv", ())):
        try:
            rows = read_tsv(table)
        except ValueError:  # costs the pairing, not the recordings
            continue
        for row in rows:
            if "acq_time" in row and table.parent / row.get("filename", "") == ref.path:
                try:
                    time = datetime.fromisoformat(row["acq_time"])
                except ValueError:
                    return math.nan
                return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return math.nan
