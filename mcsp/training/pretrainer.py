"""The module that DeepSpeed wraps: the model and the temperatures, from views to embeddings.

Shape letters: M stacked embeddings, n samples of this rank, B rows of a modality, K projection width, P pair terms.
"""

import math
from dataclasses import fields

import torch
from torch import Tensor, nn

from mcsp.augmentations.views import view
from mcsp.batch import Batch, Signal
from mcsp.config import AugmentationConfig, ModelConfig, ObjectiveConfig
from mcsp.losses.objective import pair_terms, slots
from mcsp.model.layers import TokenEncoder
from mcsp.model.mcsp import MCSP

MAX_SCALE = 100.0  # of logits, as in CLIP (arXiv 2103.00020); at least 1, as in OpenCLIP


class Pretrainer(nn.Module):
    """``Batch -> (z_MnK, valid_Mn, scale_P)``: one embedding per modality, domain and view, and one scale per pair."""

    def __init__(
        self,
        model: ModelConfig,
        objective: ObjectiveConfig,
        augmentation: AugmentationConfig,
        *,
        activation_checkpointing: bool = False,
        compile_encoders: bool = False,
    ) -> None:
        super().__init__()
        self.model = MCSP(model)
        for module in self.model.modules():
            if isinstance(module, TokenEncoder):
                module.recompute = activation_checkpointing
        if compile_encoders:
            for encoder in self.model.encoders.values():
                encoder.compile()  # in place: the names of the weights stay
        self.augmentation = augmentation
        self.slots = slots(model.modalities, model.domains)
        self.terms = pair_terms(self.slots, objective)
        self.log_scale_P = nn.Parameter(torch.full((len(self.terms),), -math.log(objective.temperature)))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the views and embed them; slots of a modality that a sample lacks are zero and not valid."""
        n = len(batch)
        z_by_slot: dict[tuple[str, str, int], Tensor] = {}
        valid_by_modality = {
            m: torch.zeros(n, dtype=torch.bool, device=s.x_BCT.device).index_fill(0, s.sample_B, True)
            for m, s in batch.signals.items()
        }
        for modality, signal in batch.signals.items():
            for domain in self.model.config.domains:
                with torch.no_grad():
                    both = _stack(*(view(signal, modality, domain, v, self.augmentation) for v in (0, 1)))
                h_BD, _ = self.model.encode_domain(modality, domain, both)
                for v, z_BK in enumerate(self.model.project(modality, domain, h_BD).chunk(2)):
                    z_nK = z_BK.new_zeros(n, z_BK.shape[1]).index_copy(0, signal.sample_B, z_BK)
                    z_by_slot[modality, domain, v] = z_nK
        some = next(iter(z_by_slot.values()))
        nothing = torch.zeros_like(some), torch.zeros(n, dtype=torch.bool, device=some.device)
        z_MnK = torch.stack([z_by_slot.get((s.modality, s.domain, s.view), nothing[0]) for s in self.slots])
        valid_Mn = torch.stack([valid_by_modality.get(s.modality, nothing[1]) for s in self.slots])
        return z_MnK, valid_Mn, self.scale_P()

    def scale_P(self) -> Tensor:
        """Inverse temperatures in float32, within [1, MAX_SCALE]; one tensor (P,), as DeepSpeed takes no 0-dim ones.

        The gradient passes the bounds as if there were none: a temperature that has reached one can come back.
        """
        log_P = self.log_scale_P.float()
        bounded_P = log_P + (log_P.clamp(0.0, math.log(MAX_SCALE)) - log_P).detach()
        return bounded_P.exp()


def _stack(first: Signal, second: Signal) -> Signal:
    """Both views as one signal of 2 B rows, so that each encoder runs once."""
    return Signal(**{f.name: torch.cat([getattr(first, f.name), getattr(second, f.name)]) for f in fields(Signal)})
