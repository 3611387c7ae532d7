"""Features of windows, computed in batches, and of whole recordings.

Shape letters: W windows, F features.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Literal, TypeVar

import numpy as np
import torch

from mcsp.batch import collate
from mcsp.model.mcsp import MCSP
from mcsp.schema import Modality, Window

Owner = TypeVar("Owner")

_log = logging.getLogger(__name__)

# Coherence is the larger the less time it is measured over, by chance alone. Of whole recordings it would tell how long
# they are: on eegmat, with 180 s of rest and 60 s of arithmetic, with an AUROC of 0.99. Windows have one length.
OF_WINDOWS = ("coherence",)


def encode_windows(
    model: MCSP,
    modality: Modality,
    windows: Iterable[tuple[Owner, Window]],
    batch_size: int,
    name_of: Callable[[Owner], str] = str,
    kind: Literal["features", "learned", "measured"] = "features",
) -> Iterator[tuple[Owner, np.ndarray]]:
    """``model.features`` of each window in order, float64 ``(F,)``, computed in batches on the model's device.

    Windows that hold nothing (:func:`mcsp.batch.collate_signal` says when) are left out, and named in the log.

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
        holds_W = signals[modality].row_valid_B.tolist()
        with torch.inference_mode():
            x_WF = getattr(model, kind)(signals)[modality].double().cpu().numpy()
        for (owner, window), vector_F, holds in zip(batch, x_WF, holds_W, strict=True):
            if not holds:
                at = f"{modality} window at {window.start / window.recording.sfreq:.1f} s"
                _log.warning("%s: %s is flat or too loud, left out", name_of(owner), at)
                continue
            if not np.isfinite(vector_F).all():
                raise ValueError(f"{name_of(owner)}: expected finite {modality} features, found NaN or infinity")
            yield owner, vector_F


def split_parts(x_NF: np.ndarray, widths: dict[str, int]) -> dict[str, np.ndarray]:
    """Neighbouring columns by name."""
    return dict(zip(widths, np.split(x_NF, np.cumsum(list(widths.values()))[:-1], axis=1), strict=True))


def recording_features(model: MCSP, whole: Window, features_WF: np.ndarray) -> np.ndarray:
    """Features ``(F,)`` of a recording: learned ones averaged over windows, measured ones of the whole of it.

    Args:
        model: in evaluation mode.
        whole: the recording as one window.
        features_WF: of its windows.
    """
    modality = whole.recording.modality
    parts = split_parts(features_WF.mean(axis=0, keepdims=True), model.feature_widths(modality))
    for _, vector_F in encode_windows(model, modality, [(0, whole)], 1, kind="measured"):
        measured = split_parts(vector_F[None], model.measured_widths(modality))
        parts |= {name: x_1F for name, x_1F in measured.items() if name not in OF_WINDOWS}
    features_1F: np.ndarray = np.hstack(list(parts.values()))
    return features_1F[0]
