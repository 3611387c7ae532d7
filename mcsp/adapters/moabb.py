"""Features of trials as a step of a MOABB pipeline, made with ``return_epochs=True``; see configs/moabb/mcsp.yml.

Shape letters: N trials, F features.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags

from mcsp.encode.eeg import encode_epochs
from mcsp.encode.pretrained import PretrainedMCSP, from_pretrained


class TrialFeatures(TransformerMixin, BaseEstimator):
    """``mne.Epochs -> (N, F)`` by an export that stays frozen; nothing is learned in :meth:`fit`.

    MOABB gives its pipelines arrays without names and rate unless the evaluation is made with ``return_epochs=True``.

    Args:
        model_dir: an export.
        line_hz: power line frequency, for the notch.
        on_error: what becomes of a trial that cannot be used: ``"raise"``, or ``"nan"``, a row of NaN for an imputer.
    """

    def __init__(
        self, model_dir: str | Path, line_hz: float | None = None, on_error: Literal["raise", "nan"] = "raise"
    ) -> None:
        self.model_dir = model_dir
        self.line_hz = line_hz
        self.on_error = on_error

    def fit(self, X: Any, y: Any = None) -> Self:
        """Load the model once."""
        _load(str(self.model_dir))
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Features float64 ``(N, F)`` of the trials; ``ValueError`` where X is an array, or a trial cannot be used."""
        if isinstance(X, np.ndarray):
            raise ValueError("trials: expected mne.Epochs, found an array: make the evaluation with return_epochs=True")
        return encode_epochs(_load(str(self.model_dir)), X, self.line_hz, on_error=self.on_error).features

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.allow_nan = True
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        return tags


@lru_cache(maxsize=2)
def _load(folder: str) -> PretrainedMCSP:
    return from_pretrained(folder)
