"""The module that DeepSpeed wraps: the model, what only training needs beside it, and the way from views to numbers
that the objective takes.

Shape letters: M stacked embeddings, n samples of this rank, B rows of a modality, K projection width, P pair terms,
Q predictions.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from mcsp.augmentations.views import half_of_view, spatial_view, spectral_view, temporal_view
from mcsp.batch import Batch, Signal
from mcsp.config import AugmentationConfig, ModelConfig, ObjectiveConfig
from mcsp.losses import (
    initial_log_scale,
    pair_terms,
    prediction_error,
    prediction_terms,
    slots,
)
from mcsp.losses.prediction import Target
from mcsp.losses.shuffled import other_rows, place, places_Kn
from mcsp.model.layers import Block, TokenEncoder
from mcsp.model.mcsp import MCSP, Measured
from mcsp.model.spatial import Connectivity, SpatialEncoder
from mcsp.model.spectral import SpectralEncoder, Spectrum
from mcsp.schema import VIEWS, Domain, Modality
from mcsp.training.prediction import Prediction, PredictionHead, connectivity_of, spectrum_of

_CACHE_BYTES = 3 << 20  # of windows that are measured together on a CPU; 1.5 to 6 MiB are about as fast
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
        self.augmentation, self.shuffled = augmentation, objective.shuffled_pairs is not None
        self.part: Callable[[str], AbstractContextManager[Any]] = record_function  # around each part of a step
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
        places = places_Kn(batch) if self.shuffled else None
        if places is not None:
            valid_by_modality = {m: valid_n[places].all(0) for m, valid_n in valid_by_modality.items()}
        for modality, signal in batch.signals.items():
            measured, targets = self._measure(modality, signal)
            if places is not None:
                rows_B = other_rows(places, signal.sample_B)
                targets = {name: t.unflatten(0, (2, -1))[:, rows_B].flatten(0, 1) for name, t in targets.items()}
            for domain in self.model.config.domains:
                with self.part("encoders"):
                    h_BD = self.model.encode_measured(modality, domain, measured[domain])
                with self.part("heads"):
                    for v, z_BK in enumerate(self.model.project(modality, domain, h_BD).chunk(2)):
                        z_nK = z_BK.new_zeros(n, z_BK.shape[1]).index_copy(0, signal.sample_B, z_BK)
                        z_by_slot[modality, domain, v] = z_nK
                    for name, error_2B in self._prediction_errors(modality, domain, h_BD, targets).items():
                        error_B = error_2B.view(len(VIEWS), -1).mean(0)
                        error_by_name[name] = error_B.new_zeros(n).index_copy(0, signal.sample_B, error_B)
        some = next(iter(z_by_slot.values()))
        no_z, no_error, no_row = torch.zeros_like(some), some.new_zeros(n), some.new_zeros(n, dtype=torch.bool)
        z_M = [z_by_slot.get((s.modality, s.domain, s.view), no_z) for s in self.slots]
        return Output(
            torch.stack([z if places is None else z[places[place(s)]] for s, z in zip(self.slots, z_M, strict=True)]),
            torch.stack([valid_by_modality.get(s.modality, no_row) for s in self.slots]),
            self.scale_P(),
            # The last row is nothing: it keeps the stack from being empty.
            torch.stack([*(error_by_name.get(t.name, no_error) for t in self.predictions), no_error])[:-1],
        )

    @torch.no_grad()
    def _measure(self, modality: Modality, signal: Signal) -> tuple[dict[Domain, Measured], dict[Target, Tensor]]:
        """What encoders read of both views, and what each view is to predict: (2 B, ...), the first view's rows first.

        A window, or its half, is measured once: for the views that are made of it, and for the view that predicts it.
        """
        found = [self._measure_rows(modality, rows) for rows in _in_cache(signal)]
        views = {d: _joined([f[0][d][v] for v in VIEWS for f in found]) for d in self.model.config.domains}
        wanted = found[0][1]
        return views, {name: torch.cat([f[1][name][v] for v in VIEWS for f in found]) for name in wanted}

    def _measure_rows(
        self, modality: Modality, signal: Signal
    ) -> tuple[dict[Domain, list[Any]], dict[Target, list[Tensor]]]:
        config = self.augmentation
        with self.part("views"):
            halves = [half_of_view(signal, v) for v in VIEWS] if config.opposite_halves else []
        views: dict[Domain, list[Any]] = {}
        targets: dict[Target, list[Tensor]] = {}
        wanted = {term.target for term in self.predictions if term.modality == modality}
        for domain in self.model.config.domains:
            seen = halves if domain in config.opposite_halves else [signal]  # both views see the same one
            if domain == "spatial":
                views[domain], connectivity = self._spatial(modality, seen, halves, "connectivity" in wanted)
                targets |= connectivity
            elif domain == "spectral":
                views[domain], spectrum = self._spectral(modality, seen, halves, "spectrum" in wanted)
                targets |= spectrum
            else:
                with self.part("views"):
                    drawn = [temporal_view(seen[v % len(seen)], v, config) for v in VIEWS]
                with self.part("measures"):
                    views[domain] = [self.model.encoder(modality, domain).measure(view) for view in drawn]
        return views, targets

    def _spatial(
        self, modality: Modality, seen: list[Signal], halves: list[Signal], wanted: bool
    ) -> tuple[list[Connectivity], dict[Target, list[Tensor]]]:
        encoder = self.model.encoder(modality, "spatial")
        assert isinstance(encoder, SpatialEncoder)
        with self.part("measures"):
            channels = [encoder.channels(signal) for signal in seen]
        with self.part("views"):  # of which channels there are and where: time has no part in them
            without_time = [signal.replace(x_BCT=signal.x_BCT[..., :0]) for signal in seen]
            drawn = [spatial_view(without_time[v % len(seen)], v, self.augmentation) for v in VIEWS]
        with self.part("measures"):
            views = [encoder.at_anchors(channels[v % len(seen)], encoder.anchors(drawn[v])) for v in VIEWS]
            if not wanted:
                return views, {}
            of_halves = channels if seen is halves else [encoder.channels(half, coherence=False) for half in halves]
            other = [connectivity_of(encoder, of_halves[1 - v], halves[1 - v]) for v in VIEWS]
        return views, {"connectivity": other}

    def _spectral(
        self, modality: Modality, seen: list[Signal], halves: list[Signal], wanted: bool
    ) -> tuple[list[Spectrum], dict[Target, list[Tensor]]]:
        encoder = self.model.encoder(modality, "spectral")
        assert isinstance(encoder, SpectralEncoder)
        with self.part("measures"):
            spectra = [encoder.measure(signal) for signal in seen]
        with self.part("views"):
            freqs_F = encoder.freqs_F().to(seen[0].x_BCT.device)
            views = []
            for v in VIEWS:
                spectrum, signal = spectra[v % len(seen)], seen[v % len(seen)]
                power_BAF = spectral_view(spectrum.power_BAF, freqs_F, signal, v, modality, self.augmentation)
                views.append(spectrum._replace(power_BAF=power_BAF))
        if not wanted:
            return views, {}
        with self.part("measures"):
            of_halves = spectra if seen is halves else [encoder.measure(half) for half in halves]
            return views, {"spectrum": [spectrum_of(of_halves[1 - v]) for v in VIEWS]}

    def _prediction_errors(
        self, modality: Modality, domain: Domain, h_BD: Tensor, targets: dict[Target, Tensor]
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

    def scale_P(self) -> Tensor:
        """Inverse temperatures in float32, within [1, MAX_SCALE]; one tensor (P,), as DeepSpeed takes no 0-dim ones.

        The gradient passes the bounds as if there were none: a temperature that has reached one can come back.
        """
        log_P = self.log_scale_P.float()
        bounded_P = log_P + (log_P.clamp(0.0, math.log(MAX_SCALE)) - log_P).detach()
        return bounded_P.exp()


def _in_cache(signal: Signal) -> Iterator[Signal]:
    """The rows in groups that a processor's cache holds; all at once on a GPU, or where rates differ.

    Measuring passes over a window some tens of times, and main memory is slower than that.
    """
    rows = max(1, _CACHE_BYTES // max(1, signal.x_BCT[0].nbytes))
    if signal.x_BCT.device.type != "cpu" or rows >= len(signal) or bool((signal.sfreq_B != signal.sfreq_B[0]).any()):
        yield signal
        return
    for first in range(0, len(signal), rows):
        yield Signal(**{f.name: getattr(signal, f.name)[first : first + rows] for f in fields(Signal)})


def _joined(parts: Sequence[Any]) -> Any:
    """Named tuples of tensors as one, row after row; what is None in all stays None."""
    return type(parts[0])(*(None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)))


def _key(name: str) -> str:
    return name.removeprefix("prediction/").replace("/", "_").replace("-", "_")  # of a module: without dots
