"""Input of the baselines: measures of each unit without any weights, and covariates.

Shape letters: N units, F features, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mcsp.data_sharding.store.reader import Corpus
from mcsp.evaluate import measured
from mcsp.evaluate.features import UnitMean, read_whole
from mcsp.evaluate.units import Labelled, Unit
from mcsp.outside import parse_json
from mcsp.schema import MODALITIES, Modality, Window

# Covariates that are used where the corpus holds them and none are asked for.
USUAL_COVARIATES = ("age", "sex", "mean_fd_mm")


@dataclass(frozen=True)
class Measured:
    """Of one modality, over all valid time of every recording; NaN rows where missing or where no position is known.

    Attributes:
        own: whether the channels are the recordings' own, which all units share; else they are common places.
        features: float64 ``(N, F)`` by name: connectivity and root of BOLD, band_power and relative_power of EEG.
        halves: root of the first and of the second half in time, BOLD only.
        covariance_NCC: of BOLD after standardising, as nilearn's ConnectivityMeasure does; EEG keeps its amplitude.
    """

    own: bool
    features: dict[str, np.ndarray]
    halves: tuple[np.ndarray, np.ndarray] | None
    covariance_NCC: np.ndarray


def measure(corpus: Corpus, units: Sequence[Unit]) -> dict[Modality, Measured]:
    """Everything that is measured, for every modality that any unit has; mean over recordings of a unit."""
    found: dict[Modality, Measured] = {}
    for modality in MODALITIES:
        own = same_channels(units, modality)
        points = measured.Points(None) if own else measured.common_points(modality)
        of = _of_bold if modality == "fmri" else _of_eeg
        means: dict[str, UnitMean] = {}
        for i, window in read_whole(corpus, units, modality, "measured without a model"):
            for name, value in of(window, points).items():
                means.setdefault(name, UnitMean(len(units))).add(i, value)
        tables = {name: table for name, mean in means.items() if (table := mean.mean()) is not None}
        if tables:
            covariance_NCC = tables.pop("covariance")
            halves = (tables.pop("first half"), tables.pop("second half")) if modality == "fmri" else None
            found[modality] = Measured(own, tables, halves, covariance_NCC)
    return found


def _of_bold(window: Window, points: measured.Points) -> dict[str, np.ndarray]:
    x_TC = measured.series(window, points, standardise=True)
    if x_TC is None:
        return {}
    first_TC, second_TC = x_TC[: len(x_TC) // 2], x_TC[len(x_TC) // 2 :]
    return {
        "connectivity": measured.connectivity(x_TC),
        "root": measured.root_connectivity(x_TC),
        "first half": measured.root_connectivity(first_TC),
        "second half": measured.root_connectivity(second_TC),
        "covariance": measured.covariance(x_TC),
    }


def _of_eeg(window: Window, points: measured.Points) -> dict[str, np.ndarray]:
    x_TC = measured.series(window, points, standardise=False)
    power = measured.log_band_power(window, points)
    if x_TC is None or power is None:
        return {}
    return {"band_power": power[0], "relative_power": power[1], "covariance": measured.covariance(x_TC)}


def covariate_table(corpus: Corpus, labelled: Labelled, columns: Sequence[str] | None, label: str) -> np.ndarray:
    """Site and columns of participants.tsv or of a recording's quality, ``(N, columns)``; the mean where missing.

    Text of exactly two values counts as 0 and 1 (sex, say), a site as one column of 0 and 1. Where ``columns`` is None,
    they are those of :data:`USUAL_COVARIATES` that the corpus holds in a usable form. ``label`` itself is never one.

    Raises:
        ValueError: a column that no unit has, or text of more than two values.
    """
    sites = sorted(set(labelled.sites))
    table = [[float(site == name) for site in labelled.sites] for name in (sites if len(sites) > 1 else [])]
    for column in [c for c in (USUAL_COVARIATES if columns is None else columns) if c != label]:
        values = [_covariate(corpus, unit, column) for unit in labelled.units]
        texts = sorted({v for v in values if isinstance(v, str)})
        usable = any(v is not None for v in values) and len(texts) in (0, 2)
        usable &= not texts or not any(isinstance(v, float) for v in values)
        if not usable and columns is not None:
            raise ValueError(f"covariates: {column!r}: expected numbers or two values, found {texts[:5] or 'nothing'}")
        if usable:
            numbers = [np.nan if v is None else texts.index(v) if isinstance(v, str) else v for v in values]
            table.append(np.where(np.isnan(numbers), np.nanmean(numbers), numbers).tolist())
    return np.array(table, dtype=float).reshape(len(table), len(labelled.units)).T


def _covariate(corpus: Corpus, unit: Unit, column: str) -> float | str | None:
    for recording in unit.recordings:
        value = corpus.participant(recording).get(column, parse_json(recording.quality).get(column))
        if value not in (None, "", "n/a"):
            return value if isinstance(value, str) else float(value)
    return None


def same_channels(units: Sequence[Unit], modality: Modality) -> bool:
    """Whether all recordings of one modality have the same channels in the same order."""
    return len({tuple(r.channels) for unit in units for r in unit.of(modality)}) == 1
