"""Frozen features of units: learned ones of windows, cut evenly and averaged, measured ones of whole recordings.

Shape letters: B rows, T time samples, C channels, F features.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from tqdm import tqdm

from mcsp.config import LabelledConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.recording import OF_WINDOWS, encode_windows, split_parts
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


def read_whole(corpus: Corpus, units: Sequence[Unit], modality: Modality, title: str) -> Iterator[tuple[int, Window]]:
    """Every recording of one modality as one window, ``(index into units, window)``; a damaged shard raises."""
    recordings = [(i, r) for i, unit in enumerate(units) for r in unit.of(modality)]
    for i, recording in tqdm(recordings, desc=f"{title}, {modality}", unit="recording", leave=False):
        yield i, corpus.read_window(recording, 0, recording.n_samples)


def unit_features(
    model: MCSP, corpus: Corpus, units: Sequence[Unit], config: LabelledConfig, title: str = "features"
) -> dict[Modality, np.ndarray]:
    """``model.features`` of units, averaged over windows: what a classifier of windows sees.

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
    windows = {m: read_windows(corpus, units, m, config, title) for m in model.config.modalities}
    means = {m: _mean_of(model, m, windows[m], units, config.batch_size, "features").mean() for m in windows}
    return {m: x_NF for m, x_NF in means.items() if x_NF is not None}


def learned_parts(
    model: MCSP,
    corpus: Corpus,
    units: Sequence[Unit],
    config: LabelledConfig,
    title: str,
    counts: dict[Modality, np.ndarray] | None = None,
) -> dict[Modality, dict[str, np.ndarray]]:
    """h and z of every domain, averaged over windows; by modality and name. Otherwise as :func:`unit_features`.

    ``counts`` is given the number of windows of each unit ``(N,)``.
    """
    found: dict[Modality, dict[str, np.ndarray]] = {}
    for modality in model.config.modalities:
        windows = read_windows(corpus, units, modality, config, title)
        means = _mean_of(model, modality, windows, units, config.batch_size, "learned")
        mean_NF = means.mean()
        if counts is not None:
            counts[modality] = means.count
        if mean_NF is not None:
            found[modality] = split_parts(mean_NF, model.learned_widths(modality))
    return found


def measured_parts(
    model: MCSP, corpus: Corpus, units: Sequence[Unit], config: LabelledConfig
) -> dict[Modality, dict[str, np.ndarray]]:
    """What ``model.config.skips`` names, at the anchors; the same for any weights. Otherwise as :func:`unit_features`.

    Of whole recordings, but for :data:`mcsp.encode.recording.OF_WINDOWS`.
    """
    found: dict[Modality, dict[str, np.ndarray]] = {}
    for modality in model.config.modalities:
        widths = model.measured_widths(modality)
        kinds: list[tuple[Iterator[tuple[int, Window]], int, list[str]]] = []
        if of_whole := [name for name in widths if name not in OF_WINDOWS]:
            # One at a time: recordings differ in length, and nothing is gained by padding.
            kinds.append((read_whole(corpus, units, modality, "measured"), 1, of_whole))
        if of_windows := [name for name in widths if name in OF_WINDOWS]:
            windows = read_windows(corpus, units, modality, config, "measured in windows")
            kinds.append((windows, config.batch_size, of_windows))
        parts: dict[str, np.ndarray] = {}
        for windows, batch_size, names in kinds:
            mean_NF = _mean_of(model, modality, windows, units, batch_size, "measured").mean()
            if mean_NF is not None:
                parts |= {name: x for name, x in split_parts(mean_NF, widths).items() if name in names}
        if parts:
            found[modality] = {name: parts[name] for name in widths}
    return found


def _mean_of(
    model: MCSP,
    modality: Modality,
    windows: Iterator[tuple[int, Window]],
    units: Sequence[Unit],
    batch_size: int,
    kind: Literal["features", "learned", "measured"],
) -> UnitMean:
    means = UnitMean(len(units))
    for i, vector_F in encode_windows(model, modality, windows, batch_size, lambda i: units[i].key, kind):
        means.add(i, vector_F)
    return means
