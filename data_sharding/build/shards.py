"""Read the samples of one planned shard, each onto one clock, and write its tar: complete or absent, always the same.

Shape letters: T time samples, C channels.
"""

import hashlib
import io
import json
import math
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import RecordingRef
from mcsp.data_sharding.bids.tables import read_tsv
from mcsp.data_sharding.build.plan import PlannedSample, PlannedShard
from mcsp.data_sharding.build.privacy import refuse_personal, require_labels, without_dates
from mcsp.data_sharding.clean.read import USED_UP, ReadingProcess, SiteTime
from mcsp.data_sharding.clean.recording import STORED_DTYPE, CleanRecording, encode
from mcsp.data_sharding.store.files import Location, location, publish, scratch_file, write_atomic
from mcsp.data_sharding.store.index import SHARDS_NAME, Rejection, Repair
from mcsp.outside import sha256_file
from mcsp.schema import BLOCK_SAMPLES, SCHEMA_VERSION, Modality, Recording, block_bounds, crc_name

# Digits of a shard's SHA-256 in its name.
_HASH_DIGITS = 12
_LIMIT_REASONS = ("timeout", "out-of-memory", "native-crash")


@dataclass(frozen=True)
class Receipt:
    """What came of one shard; beside the shards until the corpus is finished with."""

    digest: str  # of the planned shard
    excluded: dict[str, str]  # <site>/<file> -> where the same content is stored
    limits: list[float] | None  # time and memory under which a recording failed; None where they did not matter
    shard: dict[str, Any] | None  # name, sha256, bytes, samples, recordings; None where nothing survived
    sites: dict[str, list[float]]  # site -> recordings stored, recordings rejected, hours stored
    contents: list[tuple[str, str, str]]  # site, file, hash of the stored array; also of those excluded
    rejected: list[dict[str, str]]  # fields of index.Rejection
    repairs: list[dict[str, str]]  # fields of index.Repair
    rows: list[dict[str, Any]]  # fields of mcsp.schema.Recording


@dataclass(frozen=True)
class SampleRecording:
    """A recording that can be stored."""

    ref: RecordingRef
    clean: CleanRecording
    onset_seconds: float  # on the clock of the sample; NaN where nothing is simultaneous


def reading_limits(config: CorpusConfig) -> list[float]:
    """Under other limits, what failed for them is read again."""
    return [config.read_timeout_seconds, config.site_timeout_seconds, config.read_memory_gb]


def build_shard(
    planned: PlannedShard,
    config: CorpusConfig,
    process: ReadingProcess,
    excluded: Mapping[str, str] | None = None,
    done: Callable[[RecordingRef, float | None], None] = lambda ref, seconds: None,
) -> Receipt:
    """Read, clean and store every recording of a shard.

    The tar is written to a scratch file and read back; then it gets a name that holds the beginning of its SHA-256, so
    that no file of a finished corpus is ever overwritten. A sample of which nothing survives is left out, and so is a
    shard without samples.

    Args:
        planned: what to read.
        config: how.
        process: reads the recordings.
        excluded: recordings whose content is stored elsewhere, ``<site>/<file>`` -> where.
        done: called for every recording with its length in seconds, or None where it is rejected.

    Raises:
        OSError: the disk is full or failing.
        ValueError: what was read back differs from what was written.
    """
    folder = location(config.out_dir) / SHARDS_NAME
    site_time = SiteTime(config)
    recordings: list[Recording] = []
    rejected: list[Rejection] = []
    repairs: list[Repair] = []
    contents: list[tuple[str, str, str]] = []
    crcs: list[int] = []
    shard = None
    with scratch_file(folder) as temporary:
        with tarfile.TarFile(temporary, "w") as tar:
            for sample in planned.samples:
                survivors, failures = read_sample(sample, process, excluded or {}, done, site_time)
                rows, members = _encode_sample(sample, survivors, crcs)
                recordings += rows
                rejected += failures
                for survivor, row in zip(survivors, rows, strict=True):
                    where = (sample.site.name, survivor.ref.file)
                    repairs += [Repair(*where, row.modality, repair) for repair in survivor.clean.repairs]
                    content = members[row.member.removeprefix(f"{sample.key}.")]
                    contents.append((*where, hashlib.sha256(content).hexdigest()[:32]))
                if rows:
                    add_members(tar, sample.key, members)
        if recordings:
            shard, recordings = _publish(planned.name, temporary, folder, recordings, crcs)
    return Receipt(
        digest=planned.digest, excluded=dict(excluded or {}), limits=_limits_of(rejected, config), shard=shard,
        sites=_count_sites(planned, recordings, rejected), contents=contents, rejected=[vars(r) for r in rejected],
        repairs=[vars(r) for r in repairs], rows=[vars(r) for r in recordings],
    )  # fmt: skip


def _limits_of(rejected: list[Rejection], config: CorpusConfig) -> list[float] | None:
    """Limits under which recordings failed; none that another run has where they were not read at all."""
    if any(r.reason == "timeout" and r.detail.startswith(USED_UP) for r in rejected):
        return []
    return reading_limits(config) if any(r.reason in _LIMIT_REASONS for r in rejected) else None


def add_members(tar: tarfile.TarFile, key: str, members: Mapping[str, bytes]) -> None:
    """The members of a sample as WebDataset's own writer lays them down, which would import torch."""
    for extension, content in sorted(members.items()):
        header = tarfile.TarInfo(f"{key}.{extension}")
        header.size, header.mtime, header.mode, header.uname, header.gname = len(content), 0, 0o444, "mcsp", "mcsp"
        tar.addfile(header, io.BytesIO(content))


def _publish(
    stem: str, temporary: Path, folder: Location, recordings: list[Recording], crcs: list[int]
) -> tuple[dict[str, Any], list[Recording]]:
    """Check a tar and move it and its checksums into ``folder``; its description and the complete rows."""
    sha256 = sha256_file(temporary)
    name = f"{stem}-{sha256[:_HASH_DIGITS]}.tar"
    recordings = _locate(temporary, name, recordings, crcs)
    sink = io.BytesIO()
    np.save(sink, np.array(crcs, dtype="<u4"), allow_pickle=False)
    write_atomic(folder / crc_name(name), sink.getvalue())
    shard = {
        "name": name,
        "sha256": sha256,
        "bytes": temporary.stat().st_size,
        "samples": len({r.key for r in recordings}),
        "recordings": len(recordings),
    }
    publish(temporary, folder / name)
    return shard, recordings


def _count_sites(
    planned: PlannedShard, recordings: list[Recording], rejected: list[Rejection]
) -> dict[str, list[float]]:
    sites: dict[str, list[float]] = {sample.site.name: [0, 0, 0.0] for sample in planned.samples}
    for recording in recordings:
        sites[recording.site][0] += 1
        sites[recording.site][2] += recording.seconds / 3600
    for rejection in rejected:
        sites[rejection.site][1] += 1
    return sites


def _encode_sample(
    sample: PlannedSample, survivors: list[SampleRecording], crcs: list[int]
) -> tuple[list[Recording], dict[str, bytes]]:
    """Rows (without shard and byte offsets) and tar members of one sample; appends to ``crcs``."""
    rows: list[Recording] = []
    members: dict[str, bytes] = {}
    for survivor in survivors:
        modality = survivor.ref.modality
        extension = f"{modality}-{sum(row.modality == modality for row in rows)}.npy"
        stored_TC, scale = encode(survivor.clean.x_TC, survivor.clean.channel_good_C)
        row = _row(sample, survivor, f"{sample.key}.{extension}", scale, len(crcs))
        crcs += [
            zlib.crc32(stored_TC[a:b].tobytes()) for a, b in pairwise(block_bounds(row.n_samples, row.block_samples))
        ]
        sink = io.BytesIO()
        np.lib.format.write_array(sink, stored_TC, version=(1, 0), allow_pickle=False)
        members[extension] = sink.getvalue()
        rows.append(row)
    if rows:
        members["json"] = _metadata(sample, survivors, rows)
    return rows, members


def _row(sample: PlannedSample, survivor: SampleRecording, member: str, scale: float, crc_offset: int) -> Recording:
    ref, clean = survivor.ref, survivor.clean
    n_samples, n_channels = clean.x_TC.shape
    return Recording(
        key=sample.key, shard="", member=member, modality=ref.modality, site=sample.site.name, subject=sample.subject,
        session=sample.session, task=without_dates(ref.entities.get("task", "")),
        run=without_dates(ref.entities.get("run", "")), split=sample.split, sfreq=clean.sfreq, unit=clean.unit,
        scale=scale, n_samples=n_samples, n_channels=n_channels, dtype=STORED_DTYPE.name, byte_offset=-1,
        crc_offset=crc_offset, block_samples=BLOCK_SAMPLES[ref.modality], simulated=sample.site.simulated,
        onset_seconds=survivor.onset_seconds, valid_spans=clean.valid_spans, participant=sample.participant,
        quality=json.dumps(clean.quality, sort_keys=True), space=clean.space,
        **{name: values for name, (values, _) in _lists(clean).items()},
    )  # fmt: skip


_JSON = json.JSONEncoder(sort_keys=True, allow_nan=False)
_TOLD = (
    "member", "modality", "task", "run", "sfreq", "unit", "scale", "n_samples", "n_channels", "valid_spans", "space",
)  # fmt: skip


def _metadata(sample: PlannedSample, survivors: Sequence[SampleRecording], rows: list[Recording]) -> bytes:
    """The ``<key>.json`` member: all that a reader of the tar alone needs; unknown numbers are null.

    Its text is put together from those of its values, because most of it is the same for all recordings of a site.
    """
    recordings = []
    for survivor, row in zip(survivors, rows, strict=True):
        texts = {name: _JSON.encode(getattr(row, name)) for name in _TOLD}
        texts["onset_seconds"] = _JSON.encode(None if math.isnan(row.onset_seconds) else row.onset_seconds)
        recordings.append(_object_text({**texts, **{name: text for name, (_, text) in _lists(survivor.clean).items()}}))
    content = {
        "schema_version": SCHEMA_VERSION,
        "key": sample.key,
        "site": sample.site.name,
        "subject": sample.subject,
        "session": sample.session,
        "split": sample.split,
        "simulated": sample.site.simulated,
        "participant": json.loads(sample.participant),
    }
    texts = {name: _JSON.encode(value) for name, value in content.items()}
    return _object_text({**texts, "recordings": f"[{', '.join(recordings)}]"}).encode()


def _object_text(texts: Mapping[str, str]) -> str:
    return "{" + ", ".join(f'"{name}": {text}' for name, text in sorted(texts.items())) + "}"


def _lists(clean: CleanRecording) -> dict[str, tuple[list[Any], str]]:
    """The columns that hold a value for each channel, and their JSON; equal ones are the same list."""
    positions_C3 = np.ascontiguousarray(clean.positions_C3)
    return {
        "channels": _list_of(tuple(clean.channels)),
        "channel_good": _list_of(tuple(clean.channel_good_C.tolist())),
        "positions_mm": _rounded(positions_C3.tobytes(), str(positions_C3.dtype)),
    }


@lru_cache(maxsize=256)  # all recordings of a site have the same; a row never changes its list
def _list_of(values: tuple[str | bool, ...]) -> tuple[list[str | bool], str]:
    return list(values), _JSON.encode(values)


@lru_cache(maxsize=256)
def _rounded(positions: bytes, dtype: str) -> tuple[list[float], str]:
    values = [round(float(value), 3) for value in np.frombuffer(positions, dtype)]
    return values, _JSON.encode([None if math.isnan(value) else value for value in values])


def _locate(tar: Path, shard: str, rows: list[Recording], crcs: list[int]) -> list[Recording]:
    """Read the tar of a shard back: find each array's byte offset, compare its blocks with the checksums of before."""
    located = []
    with tarfile.open(tar, "r:") as archive, open(tar, "rb") as file:
        start = {member.name: member.offset_data for member in archive}
        for row in rows:
            file.seek(start[row.member])
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            offset = file.tell()
            bounds = block_bounds(row.n_samples, row.block_samples)
            row_bytes = row.n_channels * dtype.itemsize
            content = memoryview(file.read(row.n_samples * row_bytes))
            found = [zlib.crc32(content[a * row_bytes : b * row_bytes]) for a, b in pairwise(bounds)]
            expected = crcs[row.crc_offset : row.crc_offset + len(found)]
            if shape != (row.n_samples, row.n_channels) or found != expected:
                raise ValueError(f"{tar}: {row.member} read back differs from what was written")
            located.append(replace(row, shard=shard, byte_offset=offset))
    return located


# Runs whose distance in time is not known lie this far apart on the clock, so that they never overlap. Ours.
_GAP_SECONDS = 3600.0
_OF_GROUP = ("session", "task", "acquisition", "run")


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
            refuse_personal(ref, sample.participant, found.channels)
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
            if fmri.modality == "fmri" and all(fmri.entities.get(k, "") == eeg.entities.get(k, "") for k in _OF_GROUP):
                times[f] = base + offset
                end = max(end, times[f] + volumes_seconds)
        base = end + _GAP_SECONDS
    return None if all(math.isnan(time) for time in times) else times


def _event_onset(ref: RecordingRef, marker: str) -> float:
    """Onset [s] of the first event called ``marker``, or NaN."""
    table = ref.companion("events.tsv")
    try:
        rows = read_tsv(table) if table is not None else []
        found = [float(row["onset"]) for row in rows if marker in (row.get("trial_type"), row.get("value"))]
    except (RecordingError, KeyError, ValueError):  # costs the pairing, not the recordings
        return math.nan
    return min(found, default=math.nan)
