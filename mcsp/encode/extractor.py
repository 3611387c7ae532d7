"""The frozen model as a scikit-learn transformer from recordings to a matrix of features.

Shape letters: N recordings, C channels, T time samples, P parcels, F features.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import joblib
import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_memory

from mcsp.config.evaluate import WINDOWS_PER_RECORDING
from mcsp.data_sharding.bids.ref import inputs_of, ref_of_file
from mcsp.encode.bold import encode_bold
from mcsp.encode.eeg import encode_raw, raw_of_array
from mcsp.encode.pretrained import PretrainedMCSP, from_pretrained
from mcsp.encode.recording import MIN_CHANNELS, EncodedRecording, Options
from mcsp.model.weights import SUMS_FILE
from mcsp.schema import Modality
from mcsp.version import __version__


class FeatureExtractor(TransformerMixin, BaseEstimator):
    """Encodes recordings with an exported model that stays frozen.

    Nothing is learned in :meth:`fit`, so features may be computed once before any cross-validation without a leak. The
    estimator holds the path and not the weights: it is small to copy and to send to other processes, each of which
    loads the model once.

    Args:
        model_dir: an export.
        modality: ``"eeg"`` or ``"fmri"``.
        sfreq: Hz, for EEG arrays.
        channels: C names, for EEG arrays; positions come from 10-05 names.
        positions_mm: ``(C, 3)`` in MNE's head frame, for EEG arrays whose names say nothing.
        line_hz: power line frequency where the recordings do not say it.
        measured_positions: as of :func:`mcsp.encode.eeg.encode_raw`, for digitised electrodes.
        t_r: s, for BOLD; None: from the sidecars.
        parcellation: as of :func:`mcsp.encode.bold.encode_bold`.
        parcel_table: likewise.
        percent: likewise, for BOLD arrays.
        require_known_parcellation: likewise.
        space: likewise, for images.
        windows_per_recording: as of :class:`mcsp.encode.recording.Options`, and so are the four below.
        window_seconds: None: as in pretraining.
        batch_size: windows encoded at once.
        min_seconds: None: as in pretraining.
        min_channels: least good channels with a position.
        on_error: what becomes of a recording that cannot be used: ``"raise"``, or ``"nan"``, a row of NaN.
        memory: a folder, or a ``joblib.Memory``, where features are kept, so that a recording is encoded once in all
            folds and all settings of a search (``Pipeline(memory=)`` alone keeps those of training parts only). A file
            that has changed since, or a file of its BIDS dataset that says something about it, is encoded again.
    """

    def __init__(
        self,
        model_dir: str | Path,
        modality: Modality = "eeg",
        *,
        sfreq: float | None = None,
        channels: Sequence[str] | None = None,
        positions_mm: np.ndarray | None = None,
        line_hz: float | None = None,
        measured_positions: bool = False,
        t_r: float | None = None,
        parcellation: Any = None,
        parcel_table: str | Path | None = None,
        percent: bool = False,
        require_known_parcellation: bool = False,
        space: str | None = None,
        windows_per_recording: int = WINDOWS_PER_RECORDING,
        window_seconds: float | None = None,
        batch_size: int = 32,
        min_seconds: float | None = None,
        min_channels: int = MIN_CHANNELS,
        on_error: Literal["raise", "nan"] = "raise",
        memory: str | Path | joblib.Memory | None = None,
    ) -> None:
        self.model_dir = model_dir
        self.modality = modality
        self.sfreq = sfreq
        self.channels = channels
        self.positions_mm = positions_mm
        self.line_hz = line_hz
        self.measured_positions = measured_positions
        self.t_r = t_r
        self.parcellation = parcellation
        self.parcel_table = parcel_table
        self.percent = percent
        self.require_known_parcellation = require_known_parcellation
        self.space = space
        self.windows_per_recording = windows_per_recording
        self.window_seconds = window_seconds
        self.batch_size = batch_size
        self.min_seconds = min_seconds
        self.min_channels = min_channels
        self.on_error = on_error
        self.memory = memory

    def fit(self, X: Any, y: Any = None) -> Self:
        """Check the parameters; nothing is learned and no recording is read."""
        self._options()
        if self.on_error not in ("raise", "nan"):
            raise ValueError(f"on_error: expected 'raise' or 'nan', found {self.on_error!r}")
        widths = self._model().feature_widths(self.modality)
        self.feature_names_ = [f"{self.modality}_{part}_{i}" for part, width in widths.items() for i in range(width)]
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Features float64 ``(N, F)``.

        Args:
            X: a list of recordings: paths, MNE Raws, nibabel images, or arrays, ``(C, T)`` in uV or ``(T, P)``; or an
                array ``(N, C, T)`` in uV, or ``(N, T, P)``.

        Raises:
            ValueError: a recording that cannot be used, with its place in ``X``, unless ``on_error`` is ``"nan"``.
        """
        rows = []
        for i, recording in enumerate(_recordings(X)):
            try:
                rows.append(self._features(recording))
            except (ValueError, OSError, MemoryError) as error:  # a recording costs itself alone, whatever is wrong
                if self.on_error == "raise":
                    raise ValueError(f"recording {i}: {error}") from error
                rows.append(np.full(len(self._names()), np.nan))
        return np.stack(rows) if rows else np.empty((0, len(self._names())))

    def encode(self, recording: Any) -> EncodedRecording:
        """One recording, with the report of what was done to it."""
        options, model = self._options(), self._model()
        if self.modality == "fmri":
            return encode_bold(
                model, recording, self.t_r, self.parcellation, self.parcel_table, self.percent,
                self.require_known_parcellation, options, self.space,
            )  # fmt: skip
        if isinstance(recording, np.ndarray):
            if self.sfreq is None:
                raise ValueError("EEG array: expected sfreq in Hz, found None")
            recording = raw_of_array(recording, self.sfreq, self.channels, self.positions_mm)
        return encode_raw(model, recording, self.line_hz, self.measured_positions, options)

    def _options(self) -> Options:
        return Options(
            self.windows_per_recording, self.window_seconds, self.batch_size, self.min_seconds, self.min_channels
        )

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Modality, part of the features and number, as ``eeg_spatial_0``."""
        return np.array(self._names(), dtype=object)

    def _features(self, recording: Any) -> np.ndarray:
        """Features ``(F,)`` of one recording, from ``memory`` where they are there."""
        if self.memory is None or (isinstance(recording, str | Path) and not Path(recording).is_file()):
            return self.encode(recording).features
        memory = check_memory(str(self.memory) if isinstance(self.memory, Path) else self.memory)
        asked = {k: v for k, v in self.get_params().items() if k not in ("memory", "model_dir", "on_error")}
        asked = {k: _contents(v, self.modality) if k.startswith("parcel") else v for k, v in asked.items()}
        asked["model"] = (self._sums(), __version__)
        kept = memory.cache(_encoded, ignore=["extractor", "recording"])
        features_F: np.ndarray = kept(_contents(recording, self.modality), asked, self, recording)
        return features_F

    def _names(self) -> list[str]:
        return self.feature_names_ if hasattr(self, "feature_names_") else self.fit(None).feature_names_

    def _model(self) -> PretrainedMCSP:
        model = _load(str(Path(self.model_dir).absolute()), self._sums())
        if self.modality not in model.config.modalities:
            raise ValueError(f"modality: expected one of {list(model.config.modalities)}, found {self.modality!r}")
        return model

    def _sums(self) -> str:
        sums = Path(self.model_dir) / SUMS_FILE
        return sums.read_text() if sums.is_file() else ""

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags


@lru_cache(maxsize=2)  # per process; clones and folds share it
def _load(folder: str, sums: str) -> PretrainedMCSP:
    return from_pretrained(folder)


def _encoded(contents: Any, asked: dict[str, Any], extractor: FeatureExtractor, recording: Any) -> np.ndarray:
    """What ``memory`` keeps, known by the first two."""
    return extractor.encode(recording).features


def _contents(value: Any, modality: Modality) -> Any:
    """What tells a recording from others: values in memory by a hash, files by name, size and time of their change."""
    if isinstance(value, str | Path):
        files = [path for path in inputs_of(ref_of_file(Path(value), modality)) if path.is_file()]
        return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    if hasattr(value, "load_data"):  # a Raw may hold no more than the name of its file
        value = value.copy().load_data()
    return joblib.hash(value)


def _recordings(X: Any) -> Iterable[Any]:
    if isinstance(X, str | Path) or hasattr(X, "get_data") or hasattr(X, "dataobj"):
        raise ValueError(f"expected a list of recordings, found one {type(X).__name__}: put it into a list")
    if isinstance(X, np.ndarray) and X.dtype.kind in "fiu" and X.ndim != 3:
        raise ValueError(f"expected recordings of shape (N, channels, time samples), found {X.shape}")
    return X
