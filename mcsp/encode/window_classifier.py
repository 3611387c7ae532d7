"""An encoder with a linear head: what fine-tuning trains, and what classifies windows with fixed channels in PyTorch.

mcsp.adapters has braindecode's.

Shape letters: N units, B windows, C channels, T time samples, F features, O outputs.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mcsp.batch import Signal
from mcsp.config.evaluate import Depth
from mcsp.encode.recording import require_packages
from mcsp.model.layers import TokenEncoder
from mcsp.model.mcsp import MCSP
from mcsp.schema import UNITS, Modality


class MCSPClassifier(nn.Module):
    """``signals -> logits_NO``: a linear head per modality on standardised features, mean over the modalities present.

    A unit may lack a modality, in training and afterwards. Features are standardised with constants that
    :meth:`standardise_by` measures, so that the head starts where a linear probe would.

    Args:
        model: the encoder; it is trained in place.
        n_outputs: number of classes.
        n_features: length of ``model.features`` per modality.
        depth: "head" trains the head alone, "last_layers" also each encoder's last block and read-out, "full" all.
    """

    def __init__(self, model: MCSP, n_outputs: int, n_features: dict[Modality, int], depth: Depth) -> None:
        super().__init__()
        self.model, self.depth, self.n_features = model, depth, dict(n_features)
        for modality, count in n_features.items():
            self.register_buffer(f"{modality}_mean", torch.zeros(count))
            self.register_buffer(f"{modality}_scale", torch.ones(count))
        self.reset_head(n_outputs)

    def reset_head(self, n_outputs: int) -> None:
        """A new head of zeros for ``n_outputs`` classes; the encoder stays as it is."""
        self.n_outputs = n_outputs
        self.heads = nn.ModuleDict({m: nn.Linear(count, n_outputs) for m, count in self.n_features.items()})
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)
        trained = set(map(id, self._trained_encoder_parameters()))
        for parameter in self.model.parameters():
            parameter.requires_grad_(id(parameter) in trained)

    def _trained_encoder_parameters(self) -> Iterator[nn.Parameter]:
        # Encoders of a modality that has no head here would get no gradient.
        encoders = [e for name, e in self.model.encoders.items() if name.split("_")[0] in self.n_features]
        if self.depth == "full":
            projections = [p for name, p in self.model.projections.items() if name.split("_")[0] in self.n_features]
            for part in encoders + projections:
                yield from part.parameters()
        elif self.depth == "last_layers":
            for encoder in encoders:
                tokens = encoder.get_submodule("encoder")
                assert isinstance(tokens, TokenEncoder)
                for part in (tokens.blocks[-1], tokens.norm, tokens.narrow, tokens.read):
                    yield from part.parameters()

    def standardise_by(self, features: dict[Modality, Tensor], blocks: dict[Modality, list[int]]) -> None:
        """Take mean and scale from ``(N, F)`` features of the training units; every block gets the same variance."""
        for modality, x_NF in features.items():
            known = x_NF[x_NF.isfinite().all(dim=1)]
            size_F = torch.repeat_interleave(torch.tensor(blocks[modality]), torch.tensor(blocks[modality]))
            std_F = known.std(dim=0, correction=0)
            scale_F = torch.where(std_F > 1e-8, size_F.to(std_F).rsqrt() / std_F.clamp_min(1e-8), 0.0)
            self.get_buffer(f"{modality}_mean").copy_(known.mean(dim=0))
            self.get_buffer(f"{modality}_scale").copy_(scale_F)

    def forward(self, signals: dict[Modality, Signal], n_units: int) -> Tensor:
        """Logits ``(n_units, O)``; ``sample_B`` of each signal says which unit a row belongs to, rows are averaged."""
        like = next(self.heads.parameters())
        total, count = like.new_zeros(n_units, self.n_outputs), like.new_zeros(n_units, 1)
        for modality, x_BF in self.model.features(signals).items():
            unit_BF = (x_BF - self.get_buffer(f"{modality}_mean")) * self.get_buffer(f"{modality}_scale")
            holds_B1 = signals[modality].row_valid_B[:, None]
            logits_BO = torch.where(holds_B1, self.heads[modality](unit_BF), 0.0)
            rows_B = signals[modality].sample_B
            per_unit = like.new_zeros(n_units, 1).index_add(0, rows_B, holds_B1.to(logits_BO))
            summed = torch.zeros_like(total).index_add(0, rows_B, logits_BO)
            total = total + summed / per_unit.clamp_min(1)
            count = count + (per_unit > 0)
        return total / count.clamp_min(1)

    def trainable(self) -> dict[str, int]:
        """Numbers of trained parameters in the head and in the encoder, and of all that there are."""
        head = sum(p.numel() for p in self.heads.parameters())
        encoder = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return {"head": head, "encoder": encoder, "all": sum(p.numel() for p in self.parameters())}

    def check_protocol(self) -> None:
        """Raise ``AssertionError`` where more or less is trained than ``depth`` says."""
        expected = sum(p.numel() for p in self._trained_encoder_parameters())
        found = self.trainable()
        assert found["encoder"] == expected and found["head"] > 0, (self.depth, found, expected)
        assert (expected == 0) == (self.depth == "head")


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
