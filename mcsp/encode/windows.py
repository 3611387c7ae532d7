"""Where windows of a recording begin, and what the model says of them.

Shape letters: W windows, F features.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal, TypeVar

import numpy as np
import torch

from mcsp.batch import collate
from mcsp.model.mcsp import MCSP
from mcsp.schema import Modality, Recording, Window

Owner = TypeVar("Owner")


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


def encode_windows(
    model: MCSP,
    modality: Modality,
    windows: Iterable[tuple[Owner, Window]],
    batch_size: int,
    name_of: Callable[[Owner], str] = str,
    kind: Literal["features", "learned", "measured"] = "features",
) -> Iterator[tuple[Owner, np.ndarray]]:
    """``model.features`` of each window in order, float64 ``(F,)``, computed in batches on the model's device.

    Args:
        model: in evaluation mode.
        modality: of all windows.
        windows: each with its owner, which comes back with the features; read as they are needed.
        batch_size: windows in memory at once.
        name_of: the owner's name in errors.
        kind: ``model.learned`` or ``model.measured`` instead; a whole recording may be the window of the latter.

    Raises:
        ValueError: features that are not finite, with the owner's name.
    """
    device = next(model.parameters()).device
    pairs = iter(windows)
    while batch := list(islice(pairs, batch_size)):
        signals = collate([[window] for _, window in batch]).to(device).signals
        with torch.inference_mode():
            x_WF = getattr(model, kind)(signals)[modality].double().cpu().numpy()
        for (owner, _), vector_F in zip(batch, x_WF, strict=True):
            if not np.isfinite(vector_F).all():
                raise ValueError(f"{name_of(owner)}: expected finite {modality} features, found NaN or infinity")
            yield owner, vector_F
