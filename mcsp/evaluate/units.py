"""What is classified: one unit per labelled subject-session, or per session and task where the task is the label."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mcsp.data_sharding.store.reader import Corpus
from mcsp.schema import Modality, Recording
from mcsp.windows import longest_window, no_window, start_ranges

_log = logging.getLogger(__name__)

# BIDS entities that a corpus keeps of every recording, and so can be labels.
ENTITIES = ("task", "session", "run")
# Where exactly one class is called like this, the other one is the positive class of sensitivity and specificity.
_NEGATIVE_NAMES = {"control", "controls", "healthy", "hc", "nc", "td", "no", "false", "negative", "0", "0.0", "rest"}


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
    y_N: np.ndarray  # 0 or 1, index into classes
    classes: list[str]  # the second is the positive one
    subjects: list[str]  # "site/subject"
    sites: list[str]
    simulated: dict[str, bool]  # per site

    def part(self, rows: np.ndarray) -> "Labelled":
        """Some of the units, by their indices."""
        return replace(
            self,
            units=[self.units[i] for i in rows],
            y_N=self.y_N[rows],
            subjects=[self.subjects[i] for i in rows],
            sites=[self.sites[i] for i in rows],
        )

    def group_index(self) -> np.ndarray:
        """Subjects as integers, int64 ``(N,)``."""
        return np.unique(np.asarray(self.subjects), return_inverse=True)[1]


def read_labels(
    corpus: Corpus,
    label: str,
    classes: Sequence[str] | None = None,
    window_seconds: Mapping[Modality, float] | None = None,
) -> Labelled:
    """Units of any split that have a value of ``label``, sorted by key.

    Args:
        corpus: a finished corpus.
        label: a column of participants.tsv that the corpus holds, else one of :data:`ENTITIES`.
        classes: two values to compare, negative first; others are left out. None: there must be exactly two.
        window_seconds: recordings without a window of enough valid time are left out, and named in the log. None: all
            are kept.

    Raises:
        ValueError: no unit has the label, or its values are not two.
    """
    samples = {key: _with_window(rs, window_seconds) for key, rs in corpus.samples().items()}
    samples = {key: recordings for key, recordings in samples.items() if recordings}
    columns = {column for recordings in samples.values() for column in corpus.participant(recordings[0])}
    if label not in columns and label not in ENTITIES:
        raise ValueError(
            f"{corpus.path}: no sample has the label {label!r}; found the columns {sorted(columns)} and the entities "
            f"{list(ENTITIES)}. Name the column in participants_columns when the corpus is built"
        )
    found: list[tuple[str, Unit]] = []
    for key, recordings in samples.items():
        by_value: dict[str, list[Recording]] = {}
        for recording in recordings:
            value = corpus.participant(recording).get(label) if label in columns else getattr(recording, label)
            by_value.setdefault("" if value is None else str(value), []).append(recording)
        for value, of_value in sorted(by_value.items()):
            if value.lower() not in ("", "n/a", "nan"):
                found.append((value, Unit(key if len(by_value) == 1 else f"{key}/{value}", tuple(of_value))))
    values = sorted({value for value, _ in found})
    chosen = _in_order(values) if classes is None else list(classes)
    if len(set(chosen)) != 2 or not set(chosen) <= set(values):
        raise ValueError(
            f"{corpus.path}: label {label!r}: expected two classes{f' {chosen}' if classes else ''}, "
            f"found {len(values)}: {values[:10]}"
        )
    kept = [(value, unit) for value, unit in found if value in chosen]
    first = [unit.recordings[0] for _, unit in kept]
    return Labelled(
        units=[unit for _, unit in kept],
        y_N=np.array([chosen.index(value) for value, _ in kept]),
        classes=chosen,
        subjects=[f"{r.site}/{r.subject}" for r in first],
        sites=[r.site for r in first],
        simulated={r.site: r.simulated for r in first},
    )


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


def _in_order(values: list[str]) -> list[str]:
    negative = [v for v in values if v.lower() in _NEGATIVE_NAMES]
    return negative + [v for v in values if v not in negative] if len(negative) == 1 else values
