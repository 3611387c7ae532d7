"""An encoder with a linear head: what fine-tuning trains, and what classifies windows.

Shape letters: N units, O outputs.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mcsp.batch import Signal
from mcsp.config.evaluate import Depth
from mcsp.model.layers import TokenEncoder
from mcsp.model.mcsp import MCSP
from mcsp.schema import Modality


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
