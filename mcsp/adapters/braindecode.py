"""An export's EEG encoder as a model of braindecode, for its ``EEGClassifier``, its trainers and Open EEG Bench.

Shape letters: B windows, C channels, T time samples, F features, O outputs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from braindecode.models.base import EEGModuleMixin
from skorch.callbacks import Callback
from torch import Tensor, nn

from mcsp.config.evaluate import Depth
from mcsp.data_sharding.clean.eeg_channels import normalise_channels, standard_positions_mm
from mcsp.encode.pretrained import from_pretrained
from mcsp.encode.recording import MIN_CHANNELS
from mcsp.encode.window_classifier import WindowClassifier

_MICROVOLTS = {"uV": 1.0, "V": 1e6}


class MCSPWindows(EEGModuleMixin, nn.Module):
    """``x_BCT -> logits_BO`` with braindecode's signature: a pretrained encoder, then ``final_layer``.

    Windows must be cleaned as ``model.preprocessing`` of the export says; any rate, length and montage will do. A head
    starts at zero; :class:`StandardiseFeatures` lets it start where a linear probe would.

    Args:
        n_outputs: number of classes; 1 for a number.
        n_chans: as braindecode has it, and so are the four below.
        chs_info: ``info["chs"]`` of MNE: positions come from names of the 10-05 system, else from ``loc`` [m].
        n_times: or ``input_window_seconds``.
        input_window_seconds: s.
        sfreq: Hz.
        model_dir: an export.
        depth: "head" trains the head alone, "last_layers" also each encoder's last block and read-out, "full" all.
        unit: of the windows: "V" as MNE gives them, "uV" where they were multiplied already.

    Raises:
        ValueError: no ``chs_info`` or ``sfreq``, fewer than four channels with a position, an unusable export, or, in
            the first batch, values that are implausible in ``unit``.
    """

    def __init__(
        self,
        n_outputs: int | None = None,
        n_chans: int | None = None,
        chs_info: Sequence[Mapping[str, Any]] | None = None,
        n_times: int | None = None,
        input_window_seconds: float | None = None,
        sfreq: float | None = None,
        *,
        model_dir: str | Path,
        depth: Depth = "last_layers",
        unit: Literal["uV", "V"] = "uV",
    ) -> None:
        super().__init__(
            n_outputs=n_outputs, n_chans=n_chans, chs_info=chs_info, n_times=n_times,
            input_window_seconds=input_window_seconds, sfreq=sfreq,
        )  # fmt: skip
        if chs_info is None:
            raise ValueError("chs_info: expected info['chs'] of the recordings, found None: channels have places")
        if unit not in _MICROVOLTS:
            raise ValueError(f"unit: expected one of {list(_MICROVOLTS)}, found {unit!r}")
        self.unit = unit
        model = from_pretrained(model_dir)
        outputs, rate = cast("int", self.n_outputs), cast("float", self.sfreq)  # properties of the mixin
        self.windows = WindowClassifier(model, outputs, rate, positions_mm=positions_mm(chs_info), depth=depth)
        self.final_layer = self.windows.classifier.heads.pop("eeg")

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, O)`` of windows ``(B, C, T)``."""
        logits_BO: Tensor = self.final_layer(self.windows.features(x.float() * _MICROVOLTS[self.unit]))
        return logits_BO

    def standardise_by(self, x_BCT: Tensor) -> None:
        """Measure mean and scale of the features on windows of the training set."""
        self.windows.standardise_by(x_BCT.float() * _MICROVOLTS[self.unit])

    def reset_head(self, n_outputs: int) -> None:
        """A new head of zeros for ``n_outputs`` classes; the encoder and the standardisation stay."""
        like = next(self.windows.parameters())
        self.final_layer = nn.Linear(sum(self.windows.blocks), n_outputs, device=like.device)
        for parameter in self.final_layer.parameters():
            nn.init.zeros_(parameter)
        EEGModuleMixin._set_n_outputs(self, n_outputs)


class StandardiseFeatures(Callback):
    """For ``EEGClassifier(callbacks=[...])``: measures the features' mean and scale on training windows at the start.

    Args:
        most: windows that are looked at, spread evenly over the training set.
    """

    def __init__(self, most: int = 256) -> None:
        self.most = most

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        """Called by skorch with the training set."""
        rows = np.unique(np.linspace(0, len(X) - 1, min(self.most, len(X))).astype(int))
        x_BCT = torch.stack([torch.as_tensor(np.asarray(X[i][0] if isinstance(X[i], tuple) else X[i])) for i in rows])
        net.module_.standardise_by(x_BCT.to(net.device))


def positions_mm(chs_info: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Positions ``(C, 3)`` in MNE's head frame: by 10-05 name as in pretraining, else ``loc``; NaN where unknown.

    Raises:
        ValueError: fewer than four are known.
    """
    standard = standard_positions_mm()
    found = np.full((len(chs_info), 3), np.nan)
    names = normalise_channels([str(channel["ch_name"]) for channel in chs_info])
    for c, (name, channel) in enumerate(zip(names, chs_info, strict=True)):
        place = np.asarray(channel["loc"][:3], dtype=float) * 1e3
        if name.lower() in standard:
            found[c] = standard[name.lower()][1]
        elif np.isfinite(place).all() and place.any():  # MNE writes zeros, or NaN, where nothing is known
            found[c] = place
    known = int(np.isfinite(found).all(axis=1).sum())
    if known < MIN_CHANNELS:
        raise ValueError(
            f"chs_info: {known} of {len(names)} channels have a position, expected at least {MIN_CHANNELS}: names of "
            "the 10-05 system, or a montage (raw.set_montage)"
        )
    return found
