"""The module that DeepSpeed wraps: the model, what only training needs beside it, and the way from views to numbers
that the objective takes.

Shape letters: M stacked embeddings, n samples of this rank, B rows of a modality, K projection width, P pair terms,
Q predictions.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from mcsp.augmentations.views import halves_of_views, spatial_view, spectral_view, temporal_views
from mcsp.batch import Batch, Signal, rows_of
from mcsp.config import AugmentationConfig, ModelConfig, ObjectiveConfig
from mcsp.distributed import over_ranks
from mcsp.losses.objective import Target, initial_log_scale, pair_terms, slots
from mcsp.losses.shuffled import other_rows, place, places_Kn
from mcsp.model.layers import Block, TokenEncoder
from mcsp.model.mcsp import MCSP, Measured
from mcsp.model.spatial import SpatialEncoder
from mcsp.model.spectral import SpectralEncoder, Spectrum
from mcsp.schema import VIEWS, Domain, Modality
from mcsp.training.prediction import (
    Prediction,
    PredictionHead,
    connectivity_of,
    prediction_error,
    prediction_terms,
    spectrum_of,
)

_CACHE_BYTES = 8 << 20  # of windows that are measured together on a CPU; 2 to 8 MiB are about as fast
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

    @torch.no_grad()
    def start_at(self, batches: Sequence[Batch], device: torch.device) -> None:
        """Begin spatial tokens at the leading directions of what all ranks show, each its own share of the batches."""
        for modality in self.model.config.modalities if "spatial" in self.model.config.domains else ():
            encoder = self.model.encoder(modality, "spatial")
            assert isinstance(encoder, SpatialEncoder)
            moments = [encoder.moment(b.signals[modality]) for b in batches if modality in b.signals]
            encoder.start_at(over_ranks(torch.stack(moments).sum(0).to(device), "sum").cpu())
            for term in self.predictions:
                head = self.heads[_key(term.name)]
                if (term.modality, term.domain) == (modality, "spatial") and isinstance(head, PredictionHead):
                    head.start_at(encoder)

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
        # What has no time is drawn and measured of all rows at once: it is small, and each call costs. Ranks have other
        # numbers of groups, so no module is called for one: ZeRO-3 gathers parameters in the order of these calls.
        domains, config = self.model.config.domains, self.augmentation
        with self.part("views"):
            without_time = signal.replace(x_BCT=signal.x_BCT[..., :0])
            moved = [spatial_view(without_time, v, config) for v in VIEWS] if "spatial" in domains else []
        with self.part("measures"):
            anchors = self.model.encoder(modality, domains[0]).anchors
            weights = [anchors(of) for of in (without_time, *moved)]  # of windows and halves as they are, of views
            found, first = [], 0
            for rows in _in_cache(signal):
                stop, channels = first + len(rows), rows.x_BCT.shape[1]
                found.append(self._measure_rows(modality, rows, [w[first:stop, :, :channels] for w in weights]))
                first = stop
        views = {d: _joined([f[0][d] for f in found]) for d in domains}
        if "spectral" in domains:
            with self.part("views"):
                views["spectral"] = self._spectral_views(modality, signal, views["spectral"])
        return views, {name: _stacked([f[1][name] for f in found]) for name in found[0][1]}

    def _spectral_views(self, modality: Modality, signal: Signal, measured: Spectrum) -> Spectrum:
        encoder = self.model.encoder(modality, "spectral")
        assert isinstance(encoder, SpectralEncoder)
        freqs_F = encoder.freqs_F().to(signal.x_BCT.device)
        views = [
            spectral_view(power_BAF, freqs_F, signal, v, modality, self.augmentation)
            for v, power_BAF in enumerate(measured.power_BAF.chunk(len(VIEWS)))
        ]
        return measured._replace(power_BAF=torch.cat(views))

    def _measure_rows(
        self, modality: Modality, signal: Signal, weights: Sequence[Tensor]
    ) -> tuple[dict[Domain, Measured], dict[Target, Tensor]]:
        """What encoders read of both views, spectra not yet augmented; and what is to be predicted; (2 B, ...)."""
        config, model = self.augmentation, self.model
        with self.part("views"):
            halves = halves_of_views(signal) if config.opposite_halves else signal
        views: dict[Domain, Measured] = {}
        targets: dict[Target, Tensor] = {}
        wanted = {term.target for term in self.predictions if term.modality == modality}
        plain_BAC = torch.cat([weights[0]] * len(VIEWS))  # to the anchors, as the signal is
        for domain in model.config.domains:
            encoder, apart = model.encoder(modality, domain), domain in config.opposite_halves
            seen, seen_BAC = (halves, plain_BAC) if apart else (signal, weights[0])
            if isinstance(encoder, SpatialEncoder):
                channels = encoder.channels(seen)
                twice = channels if apart else _twice(channels)
                views[domain] = encoder.at_anchors(twice, torch.cat(list(weights[1:])))
                if "connectivity" in wanted:
                    channels = channels if apart else encoder.channels(halves, coherence=False)
                    targets["connectivity"] = _other_half(connectivity_of(encoder, channels, plain_BAC))
            elif isinstance(encoder, SpectralEncoder):
                spectrum = encoder.measure(seen, seen_BAC)
                views[domain] = spectrum if apart else _twice(spectrum)
                if "spectrum" in wanted:
                    spectrum = spectrum if apart else encoder.measure(halves, plain_BAC)
                    targets["spectrum"] = _other_half(spectrum_of(spectrum))
            else:
                with self.part("views"):
                    drawn = temporal_views(seen, config, apart)
                views[domain] = encoder.measure(drawn, plain_BAC)
        return views, targets

    def _prediction_errors(
        self, modality: Modality, domain: Domain, h_BD: Tensor, targets: dict[Target, Tensor]
    ) -> dict[str, Tensor]:
        """By name each view's error of what is predicted of the other half, (2 B,)."""
        found = {}
        for term in self.predictions:
            if (term.modality, term.domain) == (modality, domain) and term.target in targets:
                prediction: Prediction = self.heads[_key(term.name)](h_BD)
                found[term.name] = prediction_error(
                    prediction.predicted_BE, targets[term.target], prediction.mean_predicted_E, prediction.mean_target_E
                )
        return found

    def scale_P(self) -> Tensor:
        """Inverse temperatures in float32, within [1, MAX_SCALE]; one tensor (P,), as DeepSpeed takes no 0-dim ones.

        The gradient passes the bounds as if there were none: a temperature that has reached one can come back.
        """
        log_P = self.log_scale_P.float()
        bounded_P = log_P + (log_P.clamp(0.0, math.log(MAX_SCALE)) - log_P).detach()
        return bounded_P.exp()


def group_of(name: str) -> str:
    """The part of the module that a parameter belongs to: eeg_spatial, eeg_spatial_projection, heads, temperatures."""
    parts = name.split(".")
    if parts[0] == "model":
        return parts[2] + ("_projection" if parts[1] == "projections" else "")
    return "temperatures" if parts[0] == "log_scale_P" else "heads"


def _in_cache(signal: Signal) -> Iterator[Signal]:
    """Neighbouring rows of one rate in groups that a processor's cache holds, without the padding that no row of a
    group needs; all at once on a GPU.

    Measuring passes over a window some tens of times, and main memory is slower than that.
    """
    if signal.x_BCT.device.type != "cpu":
        yield signal
        return
    channels, samples = _extents(signal.channel_valid_BC), _extents(signal.time_valid_BT)
    rates, values = signal.sfreq_B.tolist(), _CACHE_BYTES // signal.x_BCT.element_size()
    first = 0
    while first < len(signal):
        stop, c, t = first + 1, channels[first], samples[first]
        while stop < len(signal) and rates[stop] == rates[first]:
            wider, longer = max(c, channels[stop]), max(t, samples[stop])
            if (stop + 1 - first) * wider * longer > values:
                break
            stop, c, t = stop + 1, wider, longer
        rows = rows_of(signal, slice(first, stop))
        yield rows.replace(
            x_BCT=rows.x_BCT[:, :c, :t],
            channel_valid_BC=rows.channel_valid_BC[:, :c],
            time_valid_BT=rows.time_valid_BT[:, :t],
            position_BC3=rows.position_BC3[:, :c],
            position_valid_BC=rows.position_valid_BC[:, :c],
        )
        first = stop


def _extents(valid_BI: Tensor) -> list[int]:
    """One past the last valid place of each row, at least 1."""
    place_I = torch.arange(1, valid_BI.shape[1] + 1)
    return (valid_BI * place_I).amax(1).clamp_min(1).tolist()


def _twice(measured: Any) -> Any:
    """A named tuple of tensors with all rows for one view and again for the other."""
    return type(measured)(*(None if x is None else torch.cat([x] * len(VIEWS)) for x in measured))


def _other_half(target_BE: Tensor) -> Tensor:
    """What was measured of each view's half, in the place of the view that predicts it."""
    return target_BE.roll(len(target_BE) // len(VIEWS), 0)


def _joined(parts: Sequence[Any]) -> Any:
    """Named tuples of tensors that hold the rows of one view, then of the other, as one such; padded with zeros.

    What is None in all stays None.
    """
    if len(parts) == 1:
        return parts[0]
    columns = zip(*parts, strict=True)
    return type(parts[0])(*(None if column[0] is None else _stacked(column) for column in columns))


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Rows of all tensors view by view, (sum of rows, ...) of the largest shape."""
    tensors = [x.chunk(len(VIEWS))[v] for v in VIEWS for x in tensors]
    shape = [max(sizes) for sizes in zip(*(x.shape[1:] for x in tensors), strict=True)]
    if all(list(x.shape[1:]) == shape for x in tensors):
        return torch.cat(tensors)
    whole, first = tensors[0].new_zeros(sum(len(x) for x in tensors), *shape), 0
    for x in tensors:
        whole[(slice(first, first + len(x)), *(slice(size) for size in x.shape[1:]))] = x
        first += len(x)
    return whole


def _key(name: str) -> str:
    return name.removeprefix("prediction/").replace("/", "_").replace("-", "_")  # of a module: without dots
