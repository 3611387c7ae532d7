"""Files elsewhere about a recording: tables of its atlas, sidecars of sibling images, clocks of the raw run.

Pipelines write less beside a file than BIDS allows: xcp_d leaves the repetition time in the image's sidecar and its
atlases in a folder of their own, and nobody repeats ``*_scans.tsv``. Nothing of a recording is read here.

Simultaneous recordings start on a clock that they share: ``acq_time`` of ``*_scans.tsv`` is written by two computers
and often in whole seconds. A scanner that is wired to the amplifier leaves an event in the EEG with its first volume,
which is exact; a site names it in ``first_volume_event``.
"""

import math
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from mcsp.data_sharding.bids.find import FOLDERS, RecordingRef, parse_name, run_entities
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.tables import read_json, read_tsv

# Folders of a derivative dataset that hold one folder per atlas, newest release of xcp_d first.
_ATLASES = ("sourcedata/atlases", "atlases")


def siblings(ref: RecordingRef, *suffixes: str) -> list[Path]:
    """Files of the same run in the same folder that end with one of the suffixes, sorted by name."""
    run = _run(ref.path.name)
    folder = ref.path.parent
    return [
        folder / name
        for name in sorted(os.listdir(folder))
        if name.endswith(suffixes) and _run(name) == run and name != ref.path.name
    ]


def _run(name: str) -> dict[str, str]:
    return run_entities(parse_name(name)[0])


def pipeline_root(ref: RecordingRef) -> Path:
    """The closest folder above a recording that is a dataset, or a pipeline's below ``derivatives``."""
    return _pipeline_root(ref.path.parent, ref.site.root)


@lru_cache(maxsize=4)  # asked for several times of one recording; a dataset may change before the next build
def _pipeline_root(inside: Path, root: Path) -> Path:
    for folder in (inside, *inside.parents):
        if os.path.isfile(f"{folder}/dataset_description.json") or folder.parent.name == "derivatives":
            return folder
        if folder == root:
            break
    return root


def raw_roots(ref: RecordingRef) -> list[Path]:
    """Folders where the raw dataset of a recording may lie, the site's own first."""
    return list(_raw_roots(pipeline_root(ref), ref.site.root))


@lru_cache(maxsize=4)
def _raw_roots(pipeline: Path, root: Path) -> tuple[Path, ...]:
    roots = [root]
    for folder in (pipeline, root):
        if folder.parent.name == "derivatives":
            roots.append(folder.parent.parent)
        roots.append(folder / "sourcedata" / "raw")
    return tuple(folder for folder in dict.fromkeys(roots) if folder.is_dir())


def scans_tables(ref: RecordingRef) -> list[Path]:
    """Every ``*_scans.tsv`` of the recording's subject and session, that of its own dataset first."""
    own = list(reversed(ref.companions.get("scans.tsv", ())))
    subject, session = (ref.entities.get(name, "") for name in ("subject", "session"))
    parts = [f"sub-{subject}", *([f"ses-{session}"] if session else [])]
    for root in raw_roots(ref):
        for depth in range(len(parts), 0, -1):
            file = root.joinpath(*parts[:depth]) / ("_".join(parts[:depth]) + "_scans.tsv")
            if file.is_file() and file not in own:
                own.append(file)
    return own


def atlas_files(ref: RecordingRef, segmentation: str) -> list[Path]:
    """Tables and label images of an atlas in the dataset's folders of atlases, sorted; tables first."""
    found: list[Path] = []
    for root in dict.fromkeys((pipeline_root(ref), ref.site.root)):
        for place in _ATLASES:
            if not os.path.isdir(f"{root}/{place}"):
                continue
            for folder in (root / place / f"atlas-{segmentation}", root / place):
                if folder.is_dir():
                    found += [folder / name for name in sorted(os.listdir(folder)) if _is_dseg(name, segmentation)]
    return sorted(dict.fromkeys(found), key=lambda file: (not file.name.endswith(".tsv"), file.name))


def _is_dseg(name: str, segmentation: str) -> bool:
    entities, suffix = parse_name(name)
    return suffix in ("dseg.tsv", "dseg.nii.gz", "dseg.nii") and segmentation in (
        entities.get("segmentation"),
        entities.get("atlas"),
    )


def sidecars_of_run(ref: RecordingRef) -> list[Path]:
    """Sidecars of images of the same run: beside the recording, and at the raw dataset's own places."""
    found = siblings(ref, "_bold.json")
    subject, session = (ref.entities.get(name, "") for name in ("subject", "session"))
    parts, own = [f"sub-{subject}", *([f"ses-{session}"] if session else []), "func"], str(ref.path.parent)
    for root in raw_roots(ref):
        for depth in range(len(parts), -1, -1):
            folder = os.path.join(root, *parts[:depth])
            names = os.listdir(folder) if folder != own and os.path.isdir(folder) else []
            # BIDS's rule of inheritance: a sidecar says of every file that has all of its entities.
            of_run = run_entities(ref.entities).items()
            for name in sorted(name for name in names if name.endswith("_bold.json")):
                if _run(name).items() <= of_run:
                    found.append(Path(folder, name))
            found += [Path(folder, "bold.json")] if "bold.json" in names else []
    return list(dict.fromkeys(found))


def repetition_time_of_run(ref: RecordingRef) -> float | None:
    """RepetitionTime [s] of an image of the same run, where the recording's own sidecar has none.

    Raises:
        RecordingError: ``t_r-mismatch`` where two of them differ.
    """
    stated: dict[float, str] = {}
    for file in sidecars_of_run(ref):
        sidecar = read_json(file)
        value = sidecar.get("RepetitionTime", even_timing(sidecar, file.name))
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            stated.setdefault(float(value), file.name)
    if len(stated) > 1:
        told = ", ".join(f"{value:g} s in {name}" for value, name in stated.items())
        raise RecordingError("t_r-mismatch", f"{ref.path.name}: images of this run have different t_r: {told}")
    return next(iter(stated), None)


def even_timing(sidecar: Mapping[str, object], file: str) -> float | None:
    """Time [s] from volume to volume by ``VolumeTiming``, which BIDS has in place of RepetitionTime; None without it.

    Raises:
        RecordingError: ``t_r-mismatch`` where it is uneven, as in sparse acquisitions: no t_r describes that.
    """
    timing = sidecar.get("VolumeTiming")
    if not isinstance(timing, list) or len(timing) < 2 or not all(isinstance(t, int | float) for t in timing):
        return None
    steps = [after - before for before, after in pairwise(timing)]
    if max(steps) - min(steps) > 0.01 * max(steps):
        found = f"volumes follow each other after {min(steps):g} to {max(steps):g} s (VolumeTiming)"
        raise RecordingError("t_r-mismatch", f"{file}: {found}, expected one t_r for all")
    return float(timing[-1] - timing[0]) / len(steps)


def inputs_of(ref: RecordingRef) -> list[Path]:
    """Every file that decides what is stored of a recording: those of its dataset, and what lies elsewhere about it."""
    files = ref.inputs()
    if ref.modality == "fmri":
        segmentation = ref.entities.get("segmentation", ref.entities.get("atlas", ""))
        files += [*siblings(ref, "_outliers.tsv"), *sidecars_of_run(ref)]
        files += atlas_files(ref, segmentation) if segmentation else []
    return sorted({*files, *scans_tables(ref)})


# Runs whose distance in time is not known lie this far apart on the clock, so that they never overlap. Ours.
_GAP_SECONDS = 3600.0
_OF_GROUP = ("session", "task", "acquisition", "run")


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
