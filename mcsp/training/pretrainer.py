"""The module that DeepSpeed wraps: the model, what only training needs beside it, and the way from views to numbers
that the objective takes.

Shape letters: M stacked embeddings, n samples of this rank, B rows of a modality, K projection width, P pair terms,
Q predictions.
"""

import math
from dataclasses import fields
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mcsp.augmentations.views import half_of_view, view
from mcsp.batch import Batch, Signal
from mcsp.config import AugmentationConfig, ModelConfig, ObjectiveConfig
from mcsp.losses import (
    initial_log_scale,
    pair_terms,
    prediction_error,
    prediction_terms,
    slots,
)
from mcsp.model.layers import Block, TokenEncoder
from mcsp.model.mcsp import MCSP
from mcsp.schema import VIEWS, Domain, Modality
from mcsp.training.prediction import Prediction, PredictionHead, connectivity_target, spectrum_target

MAX_SCALE = 100.0  # of logits, as in CLIP (arXiv 2103.00020); at least 1, as in OpenCLIP


class Output(NamedTuple):
    """In the order of the first arguments of :func:`mcsp.losses.objective.objective`."""

    z_MnK: Tensor  # one embedding per modality, domain and view
    valid_Mn: Tensor
    scale_P: Tensor  # inverse temperature of each pair
    error_Qn: Tensor  # of each prediction, mean of both views


class Pretrainer(nn.Module):
    """``Batch -> Output``. What it returns of a sample depends on that sample alone, as gradient caching needs it."""

    def __init__(
        self,
        model: ModelConfig,
        objective: ObjectiveConfig,
        augmentation: AugmentationConfig,
        *,
        activation_checkpointing: bool = False,
        compile_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.model = MCSP(model)
        for module in self.model.modules():
            if isinstance(module, TokenEncoder):
                module.recompute = activation_checkpointing
            if compile_blocks and isinstance(module, Block):
                # Block by block: all share what is compiled, and what is measured before them (lengths and rates that
                # decide about shapes) would only break the graph. In place, so the names of the weights stay.
                module.compile()
        self.augmentation = augmentation
        self.slots = slots(model.modalities, model.domains)
        self.terms = pair_terms(self.slots, objective)
        self.log_scale_P = nn.Parameter(initial_log_scale(self.slots, self.terms, objective))
        self.predictions = prediction_terms(self.slots, objective, augmentation.opposite_halves)
        self.heads = nn.ModuleDict()
        for term in self.predictions:
            self.heads[_key(term.name)] = PredictionHead.of(self.model, term.modality, term.domain, term.target)

    def forward(self, batch: Batch) -> Output:
        """Draw the views, embed them, and predict from each the half that it did not see."""
        n = len(batch)
        z_by_slot: dict[tuple[str, str, int], Tensor] = {}
        error_by_name: dict[str, Tensor] = {}
        valid_by_modality = {
            m: torch.zeros(n, dtype=torch.bool, device=s.x_BCT.device).index_copy(0, s.sample_B, s.row_valid_B)
            for m, s in batch.signals.items()
        }
        for modality, signal in batch.signals.items():
            halves = self._halves(signal)
            targets = self._targets(modality, halves)
            for domain in self.model.config.domains:
                h_BD = self._embed(modality, domain, signal, halves)
                for v, z_BK in enumerate(self.model.project(modality, domain, h_BD).chunk(2)):
                    z_nK = z_BK.new_zeros(n, z_BK.shape[1]).index_copy(0, signal.sample_B, z_BK)
                    z_by_slot[modality, domain, v] = z_nK
                for name, error_2B in self._prediction_errors(modality, domain, h_BD, targets).items():
                    error_B = error_2B.view(len(VIEWS), -1).mean(0)
                    error_by_name[name] = error_B.new_zeros(n).index_copy(0, signal.sample_B, error_B)
        some = next(iter(z_by_slot.values()))
        no_z, no_error, no_row = torch.zeros_like(some), some.new_zeros(n), some.new_zeros(n, dtype=torch.bool)
        return Output(
            torch.stack([z_by_slot.get((s.modality, s.domain, s.view), no_z) for s in self.slots]),
            torch.stack([valid_by_modality.get(s.modality, no_row) for s in self.slots]),
            self.scale_P(),
            # The last row is nothing: it keeps the stack from being empty.
            torch.stack([*(error_by_name.get(t.name, no_error) for t in self.predictions), no_error])[:-1],
        )

    @torch.no_grad()
    def _halves(self, signal: Signal) -> list[Signal]:
        """The half of each view, once for all domains and targets; the whole where no domain takes halves."""
        if not self.augmentation.opposite_halves:
            return [signal, signal]
        return [half_of_view(signal, v) for v in VIEWS]

    def _embed(self, modality: Modality, domain: Domain, signal: Signal, halves: list[Signal]) -> Tensor:
        """h of both views, (2 B, D)."""
        with torch.no_grad():
            both = _stack(*(view(signal, modality, domain, v, self.augmentation, halves[v]) for v in VIEWS))
        return self.model.encode_domain(modality, domain, both)

    def _prediction_errors(
        self, modality: Modality, domain: Domain, h_BD: Tensor, targets: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """By name each view's error of what is predicted of the other half, (2 B,)."""
        found = {}
        for term in self.predictions:
            if (term.modality, term.domain) == (modality, domain) and term.target in targets:
                prediction: Prediction = self.heads[_key(term.name)](h_BD)
                found[term.name] = prediction_error(
                    prediction.predicted_BE,
                    targets[term.target],
                    prediction.mean_predicted_E,
                    prediction.mean_target_E,
                )
        return found

    @torch.no_grad()
    def _targets(self, modality: Modality, halves: list[Signal]) -> dict[str, Tensor]:
        """What each view is to predict, (2 B, E) by name: measured on the other view's half, all channels, as it is."""
        wanted = {term.target for term in self.predictions if term.modality == modality}
        if not wanted:
            return {}
        other = _stack(*(halves[1 - v] for v in VIEWS))
        found = {}
        if "connectivity" in wanted:
            found["connectivity"] = connectivity_target(self.model, modality, other)
        if "spectrum" in wanted:
            found["spectrum"] = spectrum_target(self.model, modality, other)
        return found

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


def _key(name: str) -> str:
    return name.removeprefix("prediction/").replace("/", "_").replace("-", "_")  # of a module: without dots
