"""Labelled units, one per subject-session, or per session and task where the task is the label; and their corpus.

The corpus may be built here from BIDS folders.
"""

import logging
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mcsp.config import Config, CorpusConfig, EegConfig, FmriConfig, LabelledConfig
from mcsp.config.evaluate import LabelKind
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.pretrained import PretrainedMCSP
from mcsp.encode.recording import cleaning_of
from mcsp.evaluate.readout.task import Task
from mcsp.outside import read_text
from mcsp.schema import KEY_VARIABLE, Modality, Recording
from mcsp.windows import longest_window, no_window, start_ranges

_log = logging.getLogger(__name__)

# BIDS entities that a corpus keeps of every recording, and so can be labels.
ENTITIES = ("task", "session", "run")
# Where exactly one class is called like this, it comes first: of two, the other one is the positive class.
_NEGATIVE_NAMES = {"control", "controls", "healthy", "hc", "nc", "td", "no", "false", "negative", "0", "0.0", "rest"}

MISSING = ("", "n/a", "nan")
# Numbers of so few different values are taken as codes of classes where nothing else is said; ours.
MOST_CODES = 10


@dataclass(frozen=True)
class Unit:
    """Recordings that share one label and one row of features."""

    key: str
    recordings: tuple[Recording, ...]

    def of(self, modality: Modality) -> list[Recording]:
        """Its recordings of one modality."""
        return [r for r in self.recordings if r.modality == modality]


@dataclass(frozen=True)
class Labelled:
    """The units that have a label; all lists have one entry per unit."""

    units: list[Unit]
    y_N: np.ndarray  # int64 index into classes, or float64 numbers
    classes: list[str]  # of two the second is the positive one; empty where the label is a number
    subjects: list[str]  # "site/subject"
    sites: list[str]
    simulated: dict[str, bool]  # per site
    families: list[str] | None = None  # who stays on one side of every fold; None: the subject
    missing: int = 0  # units without a label
    left_out: int = 0  # units of other classes than those asked for
    notes: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        """What the label asks for."""
        return Task(tuple(self.classes))

    @property
    def groups(self) -> list[str]:
        """Who stays together, in folds and in the draws of the intervals: the subject, or the value of a column."""
        return self.subjects if self.families is None else self.families

    def part(self, rows: np.ndarray) -> "Labelled":
        """Some of the units, by their indices."""
        return replace(
            self,
            units=[self.units[i] for i in rows],
            y_N=self.y_N[rows],
            subjects=[self.subjects[i] for i in rows],
            sites=[self.sites[i] for i in rows],
            families=None if self.families is None else [self.families[i] for i in rows],
        )

    def group_index(self) -> np.ndarray:
        """Groups as integers, int64 ``(N,)``."""
        return np.unique(np.asarray(self.groups), return_inverse=True)[1]

    def described(self, name: str) -> dict[str, Any]:
        """What the results say of the label, as JSON types."""
        task, y_N = self.task, self.y_N
        found: dict[str, Any] = {"name": name, "kind": task.kind, "measure": task.main, "classes": self.classes}
        if task.kind == "number":
            quantiles = np.quantile(y_N, [0, 0.5, 1]).tolist()
            found |= {"units": [len(y_N)], "mean": float(y_N.mean()), "sd": float(y_N.std())}
            found |= dict(zip(("least", "median", "largest"), quantiles, strict=True))
        else:
            found["units"] = np.bincount(y_N, minlength=len(self.classes)).tolist()
        return {**found, "missing": self.missing, "left_out": self.left_out}


def labels_of(corpus: Corpus, config: LabelledConfig) -> Labelled:
    """As :func:`read_labels`, of what a configuration names."""
    return read_labels(
        corpus, config.label, config.classes, config.window_seconds, config.label_kind, config.group_column
    )


def read_labels(
    corpus: Corpus,
    label: str,
    classes: Sequence[str] | None = None,
    window_seconds: Mapping[Modality, float] | None = None,
    kind: LabelKind | None = None,
    group_column: str | None = None,
) -> Labelled:
    """Group the recordings of a corpus into labelled units; those without a label are left out and counted.

    Args:
        corpus: to read.
        label: a column that was let through by ``participants_columns``, or "task", "session" or "run", which make one
            unit per subject-session and value.
        classes: the values to tell apart, of two the positive one last; None: all that there are, of which one that is
            called control, healthy or the like is the first, else in the order of their names.
        window_seconds: recordings without a window of enough valid time are left out, and named in the log. None: all
            are kept.
        kind: whether values are classes or numbers; None: numbers where all are, and more than ten differ.
        group_column: a column whose values stay together, within their site: families, say. Who has none stands alone.

    Raises:
        ValueError: no unit has the label, its values are one or no numbers, or a subject is in two groups.
    """
    samples = {key: _with_window(rs, window_seconds) for key, rs in corpus.samples().items()}
    samples = {key: recordings for key, recordings in samples.items() if recordings}
    columns = {column for recordings in samples.values() for column in corpus.participant(recordings[0])}
    _require_column(corpus, label, columns, ENTITIES)
    found: list[tuple[str, Unit]] = []
    missing = 0
    for key, recordings in samples.items():
        by_value: dict[str, list[Recording]] = {}
        for recording in recordings:
            value = corpus.participant(recording).get(label) if label in columns else getattr(recording, label)
            by_value.setdefault("" if value is None else str(value).strip(), []).append(recording)
        for value, of_value in sorted(by_value.items()):
            if value.lower() in MISSING:
                missing += 1
            else:
                found.append((value, Unit(key if len(by_value) == 1 else f"{key}/{value}", tuple(of_value))))
    y_all, chosen, note = _values([value for value, _ in found], classes, kind, f"{corpus.path}: label {label!r}")
    kept = [(y, unit) for y, (_, unit) in zip(y_all, found, strict=True) if y is not None]
    first = [unit.recordings[0] for _, unit in kept]
    subjects = [f"{r.site}/{r.subject}" for r in first]
    families = None
    if group_column is not None:
        _require_column(corpus, group_column, columns)
        families = _families(subjects, [corpus.participant(r).get(group_column) for r in first], group_column)
    return Labelled(
        units=[unit for _, unit in kept], y_N=np.array([y for y, _ in kept]), classes=chosen, subjects=subjects,
        sites=[r.site for r in first], simulated={r.site: r.simulated for r in first}, families=families,
        missing=missing, left_out=len(found) - len(kept), notes=(note,) if note else (),
    )  # fmt: skip


def _require_column(corpus: Corpus, name: str, columns: set[str], entities: Sequence[str] = ()) -> None:
    if name in columns or name in entities:
        return
    what = f"label {name!r}" if entities else f"group_column {name!r}"
    beside = f" and the entities {list(entities)}" if entities else ""
    raise ValueError(
        f"{corpus.path}: no sample has the {what}; found the columns {sorted(columns)}{beside}. "
        "Name the column in participants_columns when the corpus is built"
    )


def _values(
    values: Sequence[str], classes: Sequence[str] | None, kind: LabelKind | None, source: str
) -> tuple[Sequence[float | int | None], list[str], str]:
    """A number, a class or None of every value; the classes; and a note where their kind was found, not given."""
    different = sorted(set(values))
    numbers = [_number(value) for value in values]
    numeric = None not in numbers and len(different) > 2
    if numeric:
        different.sort(key=float)
    many = numeric and len(different) > MOST_CODES
    note = ""
    if numeric and kind is None and classes is None:
        taken, other = ("a number", "classes") if many else ("classes", "number")
        note = (
            f"The label holds {len(different)} different numbers and is taken as {taken}; else set label_kind={other}."
        )
    if kind == "number" or (many and kind is None and classes is None):
        wrong = [value for value, number in zip(values, numbers, strict=True) if number is None]
        if wrong or classes is not None or len(different) < 3:
            found = wrong[:5] if wrong else f"classes={list(classes)}" if classes is not None else different
            raise ValueError(f"{source}: expected three different numbers or more, found {found}")
        return [float(number) for number in numbers if number is not None], [], note
    negative = [v for v in different if v.lower() in _NEGATIVE_NAMES]
    in_order = negative + [v for v in different if v not in negative] if len(negative) == 1 else different
    chosen = in_order if classes is None else list(classes)
    if len(set(chosen)) < max(2, len(chosen)) or not set(chosen) <= set(different):
        asked = f" {chosen}" if classes else ""
        raise ValueError(f"{source}: expected two classes or more{asked}, found {len(different)}: {different[:10]}")
    return [chosen.index(value) if value in chosen else None for value in values], chosen, note


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _families(subjects: Sequence[str], values: Sequence[Any], column: str) -> list[str]:
    """ "site/column=value", or the subject where it has no value."""
    found: list[str] = []
    of_subject: dict[str, str] = {}
    for subject, value in zip(subjects, values, strict=True):
        known = "" if value is None else str(value).strip()
        site = subject.partition("/")[0]
        found.append(subject if known.lower() in MISSING else f"{site}/{column}={known}")
        if of_subject.setdefault(subject, found[-1]) != found[-1]:
            raise ValueError(
                f"group_column {column!r}: expected one value of subject {subject}, found "
                f"{of_subject[subject]} and {found[-1]}"
            )
    return found


def _with_window(recordings: list[Recording], window_seconds: Mapping[Modality, float] | None) -> list[Recording]:
    if window_seconds is None:
        return recordings
    kept = []
    for r in recordings:
        n_samples = longest_window(r, window_seconds[r.modality])
        if start_ranges(r, n_samples):
            kept.append(r)
        else:
            _log.warning("left out: %s", no_window(r, n_samples))
    return kept


KEY_NAME = "subject.key"


def open_corpus(config: LabelledConfig, out_dir: Path, model: PretrainedMCSP, columns: Sequence[str] = ()) -> Corpus:
    """The corpus of ``config``; where it names BIDS folders, one built into ``out_dir/corpus``, or found there.

    Recordings are cleaned with the constants in the export's preprocessing.json. Subjects are hashed under
    ``MCSP_SUBJECT_KEY`` where that is set, which has to be the pretraining's key if an overlap is to be noticed; else
    under a random one of this ``out_dir``, which only its owner can read.

    Args:
        config: with ``corpus_dir`` or ``bids_root``.
        out_dir: of the results.
        model: the export.
        columns: of participants.tsv, beside the label and ``group_column``; names that no table has are ignored here.

    Raises:
        ValueError: no usable corpus, or BIDS folders of which none can be built; one line.
    """
    if config.corpus_dir is not None:
        return Corpus(config.corpus_dir)
    assert config.bids_root is not None
    try:
        from mcsp.data_sharding.build.corpus import build_corpus
    except ModuleNotFoundError as error:
        raise ValueError(
            f"bids_root: needs the extra corpus: pip install 'mcsp-pretraining[corpus]' ({error})"
        ) from None
    root = config.bids_root
    one = (root / "participants.tsv").is_file() or (root / "dataset_description.json").is_file()
    tables = root.glob("participants.tsv" if one else "*/participants.tsv")
    heads = [read_text(table).partition("\n")[0] for table in tables]
    present = {name.strip() for head in heads for name in head.split("\t")}
    wanted = [config.label, *columns, *filter(None, [config.group_column])]
    out_dir.mkdir(parents=True, exist_ok=True)
    key_file = None
    if not os.environ.get(KEY_VARIABLE):
        key_file = _random_key(out_dir / KEY_NAME)
    known = model.preprocessing.get("cleaning", {})
    kinds: dict[Modality, type[Config]] = {"eeg": EegConfig, "fmri": FmriConfig}
    cleaning = {m: cleaning_of(model, m, kind).dump() for m, kind in kinds.items() if m in known}
    values: dict[str, Any] = {"sites": {root.name: {"path": root}}} if one else {"bids_root": root}
    values |= cleaning | {
        "out_dir": out_dir / "corpus",
        "participants_columns": [c for c in dict.fromkeys(wanted) if c in present and c not in ENTITIES],
        "split_fractions": (0.0, 0.0, 1.0),
        "subject_key_file": key_file,
        "max_quarantined": 1.0,
    }
    index, found = build_corpus(CorpusConfig.parse(values, "bids_root"))
    totals = index["totals"]["all"]
    state = "found" if found else "built"
    print(f"corpus: {state} {out_dir / 'corpus'}, {totals['recordings']} recordings, {totals['rejected']} rejected")
    return Corpus(out_dir / "corpus")


def _random_key(file: Path) -> Path:
    """The key of this folder, made where there is none; kept, so that the same command finds its corpus again."""
    with suppress(FileExistsError):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as key:
            key.write(secrets.token_hex(32))
    return file
