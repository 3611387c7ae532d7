"""Features of windows, computed in batches.

Shape letters: W windows, F features.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

import numpy as np
import torch

from mcsp.batch import collate
from mcsp.model.mcsp import MCSP
from mcsp.schema import Modality, Window

Owner = TypeVar("Owner")

_log = logging.getLogger(__name__)


def encode_windows(
    model: MCSP,
    modality: Modality,
    windows: Iterable[tuple[Owner, Window]],
    batch_size: int,
    name_of: Callable[[Owner], str] = str,
) -> Iterator[tuple[Owner, np.ndarray]]:
    """``model.features`` of each window in order, float64 ``(F,)``, computed in batches on the model's device.

    Windows that hold nothing (:func:`mcsp.batch.collate_signal` says when) are left out, and named in the log.

    Args:
        model: in evaluation mode.
        modality: of all windows.
        windows: each with its owner, which comes back with the features; read as they are needed.
        batch_size: windows in memory at once.
        name_of: the owner's name in errors.

    Raises:
        ValueError: features that are not finite, with the owner's name.
    """
    device = next(model.parameters()).device
    pairs = iter(windows)
    while batch := list(islice(pairs, batch_size)):
        signals = collate([[window] for _, window in batch]).to(device).signals
        holds_W = signals[modality].row_valid_B.tolist()
        with torch.inference_mode():
            x_WF = model.features(signals)[modality].double().cpu().numpy()
        for (owner, window), vector_F, holds in zip(batch, x_WF, holds_W, strict=True):
            if not holds:
                at = f"{modality} window at {window.start / window.recording.sfreq:.1f} s"
                _log.warning("%s: %s is flat or too loud, left out", name_of(owner), at)
                continue
            if not np.isfinite(vector_F).all():
                raise ValueError(f"{name_of(owner)}: expected finite {modality} features, found NaN or infinity")
            yield owner, vector_F
