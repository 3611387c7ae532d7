"""Frozen features of units: windows are cut evenly from each recording, encoded and averaged.

Shape letters: B rows, T time samples, C channels, F features.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from tqdm import tqdm

from mcsp.batch import collate
from mcsp.config import LabelledConfig
from mcsp.data_sharding.reader import Corpus
from mcsp.downstream.units import Unit
from mcsp.model.mcsp import MCSP
from mcsp.schema import Modality, Recording, Window, window_samples


def window_starts(recording: Recording, n_samples: int, count: int) -> list[int]:
    """First time samples of up to ``count`` windows, evenly spaced over the valid spans that hold a whole window.

    Windows may overlap where the recording is short. Where no span is long enough the whole recording is the span;
    a recording shorter than the window gives one window at 0.
    """
    spans = _spans(recording, n_samples)
    places = np.unique(np.linspace(0, sum(room for _, room in spans) - 1, count).round().astype(int))
    return [_start_at(spans, int(place)) for place in places]


def random_start(recording: Recording, n_samples: int, draw: float) -> int:
    """The first time sample of one such window, all equally likely for a uniform ``draw`` in [0, 1)."""
    spans = _spans(recording, n_samples)
    return _start_at(spans, int(draw * sum(room for _, room in spans)))


def _spans(recording: Recording, n_samples: int) -> list[tuple[int, int]]:
    """First time sample of each span that holds a whole window, and how many windows start in it."""
    spans = list(zip(recording.valid_spans[::2], recording.valid_spans[1::2], strict=True))
    spans = [(a, b) for a, b in spans if b - a >= n_samples] or [(0, recording.n_samples)]
    return [(a, max(b - a - n_samples, 0) + 1) for a, b in spans]


def _start_at(spans: Sequence[tuple[int, int]], place: int) -> int:
    for first, room in spans:
        if place < room:
            return int(first + place)
        place -= room
    raise AssertionError("a place lies in one of the spans")


def read_windows(
    corpus: Corpus, units: Sequence[Unit], modality: Modality, config: LabelledConfig, title: str
) -> Iterator[tuple[int, Window]]:
    """Every window of one modality as ``(index into units, window)``, with a progress bar over recordings.

    Raises:
        ValueError: a damaged shard (from the reader), or no ``window_seconds`` for the modality.
    """
    seconds = (config.window_seconds or {}).get(modality)
    if seconds is None:
        raise ValueError(f"window_seconds: expected a length for {modality}, found {config.window_seconds}")
    recordings = [(i, r) for i, unit in enumerate(units) for r in unit.of(modality)]
    for i, recording in tqdm(recordings, desc=f"{title}, {modality}", unit="recording", leave=False):
        length = min(window_samples(recording, seconds), recording.n_samples)
        for start in window_starts(recording, length, config.windows_per_recording):
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
    device = next(model.parameters()).device
    features: dict[Modality, np.ndarray] = {}
    for modality in model.config.modalities:
        means = UnitMean(len(units))
        for batch in _batched(read_windows(corpus, units, modality, config, title), config.batch_size):
            signals = collate([[window] for _, window in batch]).to(device).signals
            with torch.inference_mode():
                x_BF = model.features(signals)[modality].double().cpu().numpy()
            for (i, _), vector_F in zip(batch, x_BF, strict=True):
                if not np.isfinite(vector_F).all():
                    raise ValueError(f"{units[i].key}: expected finite {modality} features, found NaN or infinity")
                means.add(i, vector_F)
        mean = means.mean()
        if mean is not None:
            features[modality] = mean
    return features


def _batched(items: Iterator[tuple[int, Window]], size: int) -> Iterator[list[tuple[int, Window]]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
