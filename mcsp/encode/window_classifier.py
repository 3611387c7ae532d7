"""A pretrained encoder as a plain PyTorch classifier of windows with fixed channels; mcsp.adapters has braindecode's.

Shape letters: B windows, C channels, T time samples, F features, O outputs.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mcsp.batch import Signal
from mcsp.config.evaluate import Depth
from mcsp.encode.classifier import MCSPClassifier
from mcsp.encode.recording import require_packages
from mcsp.model.mcsp import MCSP
from mcsp.schema import UNITS, Modality

# Mean absolute values that no EEG in uV, and no BOLD in percent, has: volts, or raw units of a scanner. Ours.
_PLAUSIBLE: dict[Modality, tuple[float, float]] = {"eeg": (0.05, 5000.0), "fmri": (0.005, 100.0)}


class WindowClassifier(nn.Module):
    """``x_BCT -> logits_BO``, for any training loop or skorch.

    Windows must be cleaned as ``model.preprocessing`` says and be in uV (EEG) or percent signal change (BOLD). Any
    length and rate will do.

    Args:
        model: an exported model; it is trained in place.
        n_outputs: number of classes.
        sfreq: Hz, of the windows; ``1 / t_r`` for BOLD.
        channels: C names of the 10-05 system, for EEG; needs MNE for their positions.
        positions_mm: ``(C, 3)`` in place of names: MNE's head frame for EEG, MNI for BOLD; NaN where unknown.
        modality: of the windows.
        depth: "head" trains the head alone, "last_layers" also each encoder's last block and read-out, "full" all.

    Raises:
        ValueError: no channels, names without a position, or a modality that the model lacks.
    """

    position_C3: Tensor
    placed_C: Tensor

    def __init__(
        self,
        model: MCSP,
        n_outputs: int,
        sfreq: float,
        channels: Sequence[str] | None = None,
        positions_mm: np.ndarray | None = None,
        modality: Modality = "eeg",
        depth: Depth = "last_layers",
    ) -> None:
        super().__init__()
        if modality not in model.config.modalities:
            raise ValueError(f"modality: expected one of {list(model.config.modalities)}, found {modality!r}")
        if not np.isfinite(sfreq) or sfreq <= 0:
            raise ValueError(f"sfreq: expected a positive number of Hz, found {sfreq}")
        positions_C3 = _positions_mm(channels, positions_mm, modality)
        known_C = np.isfinite(positions_C3).all(axis=1)
        self.modality, self.sfreq = modality, float(sfreq)
        self.register_buffer("position_C3", torch.tensor(np.where(known_C[:, None], positions_C3, 0.0)).float())
        self.register_buffer("placed_C", torch.tensor(known_C))
        widths = model.feature_widths(modality)
        self.blocks = list(widths.values())
        self.classifier = MCSPClassifier(model, n_outputs, {modality: sum(self.blocks)}, depth)
        self._unit_checked = False

    def reset_head(self, n_outputs: int) -> None:
        """A new head for ``n_outputs`` classes; the encoder and the standardisation stay."""
        device = self.position_C3.device
        self.classifier.reset_head(n_outputs)
        self.classifier.heads.to(device)

    def standardise_by(self, x_BCT: Tensor) -> None:
        """Measure mean and scale of the features on windows of the training set, so that the head starts well."""
        with torch.no_grad():
            features_BF = self.classifier.model.features({self.modality: self._signal(x_BCT)})[self.modality]
        self.classifier.standardise_by({self.modality: features_BF}, {self.modality: self.blocks})

    def features(self, x_BCT: Tensor) -> Tensor:
        """What the head is given ``(B, F)``: standardised features; zeros for a window without anything valid."""
        signal, known = self._signal(x_BCT), self.classifier.get_buffer
        x_BF = self.classifier.model.features({self.modality: signal})[self.modality]
        unit_BF = (x_BF - known(f"{self.modality}_mean")) * known(f"{self.modality}_scale")
        return torch.where(signal.row_valid_B[:, None], unit_BF, 0.0)

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Logits ``(B, O)`` of windows ``(B, C, T)``.

        Raises:
            ValueError: another shape than that of the channels, or, in the first batch, an implausible unit.
        """
        return self.classifier({self.modality: self._signal(x_BCT)}, len(x_BCT))

    def trainable(self) -> dict[str, int]:
        """Numbers of trained parameters in the head and in the encoder, and of all that there are."""
        return self.classifier.trainable()

    def _signal(self, x_BCT: Tensor) -> Signal:
        n_channels = len(self.position_C3)
        if x_BCT.ndim != 3 or x_BCT.shape[1] != n_channels:
            raise ValueError(f"expected windows of shape (B, {n_channels}, T), found {tuple(x_BCT.shape)}")
        self._check_unit(x_BCT)
        b, _, t = x_BCT.shape
        device = x_BCT.device
        finite_BC = x_BCT.isfinite().all(dim=-1)
        return Signal(
            x_BCT=torch.where(finite_BC[..., None], x_BCT, 0.0), sfreq_B=torch.full((b,), self.sfreq, device=device),
            channel_valid_BC=finite_BC, time_valid_BT=torch.ones(b, t, dtype=torch.bool, device=device),
            position_BC3=self.position_C3.expand(b, -1, -1), position_valid_BC=self.placed_C & finite_BC,
            sample_B=torch.arange(b, device=device), key_B=torch.zeros(b, dtype=torch.int64, device=device),
        )  # fmt: skip

    def _check_unit(self, x_BCT: Tensor) -> None:
        """Once: it costs a wait for the device."""
        if self._unit_checked:
            return
        finite = x_BCT.detach()[x_BCT.isfinite()]
        if not len(finite):
            raise ValueError("expected finite values, found none in the batch")
        mean, (low, high) = float(finite.abs().mean()), _PLAUSIBLE[self.modality]
        if not low <= mean <= high:
            unit = UNITS[self.modality]
            raise ValueError(f"windows have a mean absolute value of {mean:.3g}, expected {low:g} to {high:g} {unit}")
        self._unit_checked = True


def _positions_mm(channels: Sequence[str] | None, positions_mm: np.ndarray | None, modality: Modality) -> np.ndarray:
    if positions_mm is not None:
        positions_C3 = np.asarray(positions_mm, dtype=np.float64)
        if positions_C3.ndim != 2 or positions_C3.shape[1] != 3 or not np.isfinite(positions_C3).all(axis=1).any():
            raise ValueError(f"positions_mm: expected finite values of shape (C, 3), found {positions_C3.shape}")
        return positions_C3
    if channels is None or modality != "eeg":
        raise ValueError("expected positions_mm, or names of EEG channels")
    require_packages("mne")
    from mcsp.data_sharding.clean.eeg_channels import normalise_channels, standard_positions_mm

    standard = standard_positions_mm()
    names = normalise_channels(list(channels))
    unknown = [name for name in names if name.lower() not in standard]
    if unknown:
        raise ValueError(f"no position for the channels {unknown}: expected 10-05 names; or give positions_mm")
    return np.array([standard[name.lower()][1] for name in names])
