"""Frozen features of units: windows are cut evenly from each recording, encoded and averaged.

Shape letters: B rows, T time samples, C channels, F features.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from mcsp.config import LabelledConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.windows import encode_windows
from mcsp.evaluate.units import Unit
from mcsp.model.mcsp import MCSP
from mcsp.schema import Modality, Window
from mcsp.windows import longest_window, no_window, window_starts


def read_windows(
    corpus: Corpus, units: Sequence[Unit], modality: Modality, config: LabelledConfig, title: str
) -> Iterator[tuple[int, Window]]:
    """Every window of one modality as ``(index into units, window)``, with a progress bar over recordings.

    Raises:
        ValueError: a damaged shard (from the reader), no ``window_seconds`` for the modality, or a recording
            without a window of enough valid time.
    """
    seconds = (config.window_seconds or {}).get(modality)
    if seconds is None:
        raise ValueError(f"window_seconds: expected a length for {modality}, found {config.window_seconds}")
    recordings = [(i, r) for i, unit in enumerate(units) for r in unit.of(modality)]
    for i, recording in tqdm(recordings, desc=f"{title}, {modality}", unit="recording", leave=False):
        length = longest_window(recording, seconds)
        starts = window_starts(recording, length, config.windows_per_recording)
        if not starts:
            raise ValueError(no_window(recording, length))
        for start in starts:
            yield i, corpus.read_window(recording, start, length)


class UnitMean:
    """The mean array of each unit over its windows; NaN where a unit has none."""

    def __init__(self, n_units: int) -> None:
        self.count = np.zeros(n_units)
        self.sum: np.ndarray | None = None

    def add(self, index: int, value: np.ndarray) -> None:
        """Add one window of unit ``index``."""
        if self.sum is None:
            self.sum = np.zeros((len(self.count), *value.shape))
        self.sum[index] += value
        self.count[index] += 1

    def mean(self) -> np.ndarray | None:
        """``(n_units, ...)`` float64, or None if nothing was added."""
        if self.sum is None:
            return None
        count = self.count.reshape(-1, *[1] * (self.sum.ndim - 1))
        return np.where(count > 0, self.sum / np.maximum(count, 1), np.nan)


def unit_features(
    model: MCSP, corpus: Corpus, units: Sequence[Unit], config: LabelledConfig, title: str = "features"
) -> dict[Modality, np.ndarray]:
    """Features of units: ``model.features`` averaged over windows.

    Args:
        model: in evaluation mode, on any device.
        corpus: where the recordings lie.
        units: a row of the result each.
        config: ``window_seconds`` (set), ``windows_per_recording``, ``batch_size``.
        title: shown on the progress bar.

    Returns:
        For every modality that the model knows and any unit has: float64 ``(len(units), F)``, NaN rows where missing.

    Raises:
        ValueError: features that are not finite, naming the unit.
    """
    features: dict[Modality, np.ndarray] = {}
    for modality in model.config.modalities:
        means = UnitMean(len(units))
        windows = read_windows(corpus, units, modality, config, title)
        for i, vector_F in encode_windows(model, modality, windows, config.batch_size, lambda i: units[i].key):
            means.add(i, vector_F)
        mean = means.mean()
        if mean is not None:
            features[modality] = mean
    return features
