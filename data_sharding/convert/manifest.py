"""A manifest: a table with a row per recording, for files that are not BIDS."""

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.tables import read_tsv
from mcsp.data_sharding.clean.fmri import plausible_t_r
from mcsp.data_sharding.parcels.series import EXTENSIONS

# How the columns may be called, letters and digits alone: TR, t_r and Repetition Time are found whatever their case and
# marks. What is none of them is a label of the person and goes into participants.tsv.
_NAMES: dict[str, tuple[str, ...]] = {
    "path": ("path", "file", "filename", "filepath"),
    "subject": ("subject", "subjectid", "participant", "participantid", "sub", "subid"),
    "session": ("session", "sessionid", "ses", "sesid"),
    "site": ("site", "siteid"),
    "task": ("task", "taskname"),
    "run": ("run", "runid"),
    "t_r": ("tr", "repetitiontime"),
    "sampling_rate": ("samplingrate", "samplingfrequency", "samplerate", "sfreq"),
    "line_hz": ("linehz", "linefrequency", "powerlinefrequency"),
    "space": ("space",),
    "units": ("units", "unit"),
}
_KEYS = {name: key for key, names in _NAMES.items() for name in names}
EEG_FILES = (".edf", ".bdf", ".set", ".fif")
IMAGES = (".nii", ".nii.gz")
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Row:
    """One recording of a manifest, checked."""

    path: Path
    kind: str  # "eeg", "table", "ptseries" or "image"
    site: str
    subject: str  # letters and digits, as BIDS wants labels
    session: str
    task: str
    run: str
    seconds_per_sample: float  # t_r [s] of BOLD; 1 / Hz of EEG
    line_hz: str = ""
    space: str = ""
    units: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """The entities of its name that tell runs apart."""
        parts = [f"sub-{self.subject}", self.session and f"ses-{self.session}", f"task-{self.task}"]
        return "_".join(part for part in [*parts, self.run and f"run-{self.run}"] if part)


def read_manifest(manifest: Path) -> list[Row]:
    """The rows of a ``.tsv`` or ``.csv``; paths are relative to its folder.

    Raises:
        ValueError: the first row that cannot be used, and how many there are.
    """
    rows = read_tsv(manifest) if manifest.suffix == ".tsv" else _read_csv(manifest)
    if not rows:
        raise ValueError(f"{manifest}: expected a row per recording, found none")
    return check_rows(rows, manifest.parent, manifest.name)


def check_rows(rows: Sequence[Mapping[str, str]], folder: Path, name: str) -> list[Row]:
    """Rows as text by column, checked; ``name`` is that of the manifest in errors.

    Raises:
        ValueError: as :func:`read_manifest`.
    """
    found: list[Row] = []
    wrong: list[str] = []
    for number, row in enumerate(rows, 1):
        try:
            found.append(_row(row, folder))
        except ValueError as error:
            wrong.append(f"row {number}: {error}")
    if not wrong:
        twice = [key for key, n in Counter((row.site, row.stem, row.kind == "eeg") for row in found).items() if n > 1]
        wrong = [
            f"site {site}: {stem} comes more than once, expected a session or run for each" for site, stem, _ in twice
        ]
    if wrong:
        more = f" (and {len(wrong) - 1} more rows)" if len(wrong) > 1 else ""
        raise ValueError(f"{name}: {wrong[0]}{more}")
    return found


def _row(row: Mapping[str, str], folder: Path) -> Row:
    values, labels = _values(row)
    for key in ("path", "subject"):
        if not values[key]:
            raise ValueError(f"no {key}, expected a column of that name with a value in every row")
    path = folder / values["path"]
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    kind = _kind(path)
    site = values["site"] or "site"
    if not _SITE.fullmatch(site):
        raise ValueError(f"site {site!r}: expected letters, digits, '-' and '_'")
    return Row(
        path, kind, site, _label(values["subject"].removeprefix("sub-"), "subject"),
        _label(values["session"].removeprefix("ses-"), "session"),
        _label(values["task"].removeprefix("task-"), "task") or "rest",
        _label(values["run"].removeprefix("run-"), "run"), _seconds_per_sample(values, kind), values["line_hz"],
        _label(values["space"], "space"), values["units"], labels,
    )  # fmt: skip


def _values(row: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """What a row says of the recording, under our names, and the labels of its person, under its own."""
    values, labels, said_by = dict.fromkeys(_NAMES, ""), dict[str, str](), dict[str, str]()
    for column, text in row.items():
        key = _KEYS.get(re.sub(r"[^a-z0-9]", "", column.lower()))
        if key is None or not text.strip():
            labels |= {column: text} if key is None and text else {}
        elif values[key] not in ("", text.strip()):
            found = f"{said_by[key]} {values[key]!r} and {column} {text.strip()!r}"
            raise ValueError(f"{found} differ, expected one column of {key}")
        else:
            values[key], said_by[key] = text.strip(), column
    return values, labels


def _kind(path: Path) -> str:
    if path.name.endswith(".ptseries.nii"):
        return "ptseries"
    kinds = {"eeg": EEG_FILES, "image": IMAGES, "table": EXTENSIONS}
    for kind, endings in kinds.items():
        if path.name.endswith(endings):
            return kind
    known = ", ".join(ending for endings in kinds.values() for ending in endings)
    raise ValueError(f"{path.name}: expected one of {known}, .ptseries.nii; BrainVision goes through mne-bids")


def _label(text: str, what: str) -> str:
    """A label of BIDS: marks between letters and digits go; what would be nothing is refused."""
    label = re.sub(r"[-_. ]", "", text)
    if text and not re.fullmatch(r"[A-Za-z0-9]+", label):
        raise ValueError(f"{what} {text!r}: expected letters and digits")
    return label


def _seconds_per_sample(values: Mapping[str, str], kind: str) -> float:
    t_r, rate = (_number(values[name], name) for name in ("t_r", "sampling_rate"))
    if t_r is not None and rate is not None and abs(t_r * rate - 1) > 0.01:
        raise ValueError(f"t_r {t_r:g} s and sampling_rate {rate:g} Hz differ, expected one of them")
    if kind == "eeg":
        if rate is None:
            raise ValueError(f"no sampling_rate, expected Hz: {Path(values['path']).name}")
        return 1 / rate
    if t_r is None:
        if rate is None:
            raise ValueError(f"no t_r, expected seconds: {Path(values['path']).name}")
        t_r = 1 / rate
    try:
        return plausible_t_r(t_r)
    except RecordingError as error:
        raise ValueError(str(error)) from None


def _number(text: str, name: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name} {text!r}: expected a number with a decimal point") from None
    if not value > 0:
        raise ValueError(f"{name} {text}: expected a positive number")
    return value


def _read_csv(manifest: Path) -> list[dict[str, str]]:
    if manifest.suffix != ".csv":
        raise ValueError(f"{manifest}: expected a table, .tsv or .csv")
    with open(manifest, newline="", encoding="utf-8-sig") as lines:
        return [
            {k: v for k, v in row.items() if k is not None and v not in (None, "", "n/a")}
            for row in csv.DictReader(lines)
        ]
