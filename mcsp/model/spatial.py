"""Spatial domain: functional connectivity between fixed anchor positions, attention over anchors.

Shape letters: B rows, C channels, A anchors, T time samples, K connectivity measures, D width.
"""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from mcsp.batch import Signal
from mcsp.config import ModelConfig
from mcsp.config.model import SpatialForm
from mcsp.kernels.spectral import EEG_BANDS_HZ, imaginary_coherence
from mcsp.model.layers import SIZES, AnchorWeights, TokenEncoder, at_least, centre
from mcsp.model.tangent import (
    ROOT_SHRINKAGE,
    channel_factor,
    log_correlation,
    log_correlation_of_mixture,
    root_correlation,
    unit_triangle,
    upper_triangle,
)
from mcsp.schema import Modality

COHERENCE_FRAME_SECONDS = 2.0  # half a hertz of resolution: two bins and more in the narrowest band
# Root mean square of the correlation's form between anchors, for the scale of the first weights.
TYPICAL: dict[SpatialForm, float] = {"logarithm": 0.15, "root": 0.1}


class Channels(NamedTuple):
    """What the spatial domain measures on a window once, whatever channels a view keeps and wherever it puts them."""

    centred_BCT: Tensor  # demeaned time courses, zero where not valid
    std_BC: Tensor  # over valid time; 0 where a channel is flat
    coherence_BKCC: Tensor | None  # EEG: imaginary coherence of each band
    valid_BT: Tensor
    factor_BCC: Tensor | None = None  # of standardised channels, where they are fewer than anchors
    fourth_B: Tensor | None = None  # fourth moment of their norm, there


class Connectivity(NamedTuple):
    """What the spatial domain measures on a window, at the anchors."""

    measures_BKAA: Tensor  # logarithm or root of the correlation, and for EEG imaginary coherence of each band
    level_BA: Tensor  # log10 standard deviation


def fisher_z(channels: Channels) -> Tensor:
    """Fisher z of the correlation of channels over valid time ``(B, C, C)``, with a zero diagonal."""
    count_B11 = channels.valid_BT.sum(-1).clamp_min(1).to(channels.std_BC.dtype)[:, None, None]
    scale_BC = _reciprocal(channels.std_BC)
    covariance_BCC = channels.centred_BCT @ channels.centred_BCT.mT / count_B11
    correlation_BCC = (covariance_BCC * scale_BC[:, :, None] * scale_BC[:, None]).clamp(-0.999, 0.999)
    diagonal = torch.eye(correlation_BCC.shape[1], dtype=torch.bool, device=correlation_BCC.device)
    return torch.atanh(correlation_BCC).masked_fill(diagonal, 0.0)


class SpatialEncoder(nn.Module):
    """``Signal -> h``: tokens are anchors, each holding its connectivity to all anchors; h keeps them apart.

    Connectivity is the matrix logarithm of the anchors' correlation (:mod:`mcsp.model.tangent`) or, as the
    configuration says, its root; for EEG imaginary coherence per band beside it, which volume conduction cannot produce
    (Nolte et al. 2004). h is ``narrow(x + 0.1 f(x))`` for tokens x that are linear in connectivity: near the identity,
    so a linear probe reads from h what it reads from connectivity, and training adds to that. The skips are measured,
    not learned: Pearson correlation, its square root, its logarithm, and coherence.
    """

    def __init__(self, config: ModelConfig, modality: Modality) -> None:
        super().__init__()
        width = SIZES[config.size][0]
        self.modality = modality
        self.n_anchors = config.anchors(modality)
        self.form = config.spatial_form
        self.by_products: bool | None = None  # another formulation than the device's own
        self.bands_hz = list(EEG_BANDS_HZ.values()) if modality == "eeg" else []
        self.n_measures = 1 + len(self.bands_hz)
        self.anchors = AnchorWeights(modality, config)
        inputs = self.n_measures * self.n_anchors
        self.embed = nn.Linear(inputs, width)
        self.amplitude = nn.Linear(1, width)
        # Tokens of about unit size, of which connectivity is the largest part and amplitude a small one.
        nn.init.normal_(self.embed.weight, std=1 / (TYPICAL[config.spatial_form] * math.sqrt(inputs)))
        nn.init.normal_(self.amplitude.weight, std=0.1)
        self.place_AD = nn.Parameter(torch.randn(self.n_anchors, width) * 0.02)
        self.encoder = TokenEncoder(config.size, self.n_anchors, resolved=True)
        self.h_width = self.encoder.h_width
        pairs = self.n_anchors * (self.n_anchors - 1) // 2
        every: dict[str, int] = {"connectivity": pairs, "root": pairs, "tangent": pairs + self.n_anchors}
        if modality == "eeg":
            every["coherence"] = len(self.bands_hz) * pairs
        self.skip_widths: dict[str, int] = {name: count for name, count in every.items() if name in config.skips}

    def moment(self, signal: Signal) -> Tensor:
        """Sum of ``c c'`` over all anchors and windows, c what an anchor's token is made from; float64 ``(I, I)``."""
        rows_NI = _rows(self.measure(signal)).flatten(0, 1).double()
        return rows_NI.mT @ rows_NI

    @torch.no_grad()
    def start_at(self, moment_II: Tensor) -> None:
        """First weights by which h is, but for the blocks, what the leading eigenvectors say of each anchor's row.

        No other directions lose less of the rows (Eckart and Young, 1936). Tokens stay of about unit size.
        """
        leading_DI = torch.linalg.eigh(moment_II)[1].flip(1).mT[: len(self.embed.weight)]
        scale = math.sqrt(len(self.embed.weight) / len(moment_II)) / TYPICAL[self.form]
        self.embed.weight.zero_()[: len(leading_DI)] = scale * leading_DI
        self.encoder.narrow.weight.zero_().diagonal().fill_(1.0)

    def forward(self, measured: Connectivity) -> Tensor:
        """``h`` of what :meth:`measure` found, ``(B, A * k)``."""
        tokens_BAD = self._tokens(measured)
        h: Tensor = self.encoder(tokens_BAD + self.place_AD, _all_valid(tokens_BAD))
        return h

    def measure(self, signal: Signal, weights_BAC: Tensor | None = None) -> Connectivity:
        """Connectivity of the windows at the anchors; ``weights_BAC`` where they are known."""
        weights_BAC = self.anchors(signal) if weights_BAC is None else weights_BAC
        return self.at_anchors(self.channels(signal), weights_BAC)

    def channels(self, signal: Signal, coherence: bool = True) -> Channels:
        """What windows hold before channels go to anchors; without coherence where that is not wanted."""
        centred_BCT, variance_BC = centre(signal.x_BCT, signal.time_valid_BT)
        coherence_BKCC = None
        if self.bands_hz and coherence:
            framed = at_least(signal, COHERENCE_FRAME_SECONDS)
            coherence_BKCC = imaginary_coherence(
                framed.x_BCT, framed.sfreq_B, self.bands_hz, time_valid_BT=framed.time_valid_BT,
                frame_seconds=COHERENCE_FRAME_SECONDS, hop_seconds=COHERENCE_FRAME_SECONDS,
            ).to(centred_BCT.dtype)  # fmt: skip
        # The root of 0 has an infinite gradient, of which the samples of a flat channel would get NaN.
        std_BC = variance_BC.clamp_min(torch.finfo(variance_BC.dtype).tiny).sqrt()
        channels = Channels(centred_BCT, std_BC, coherence_BKCC, signal.time_valid_BT)
        return self._with_factor(channels)

    def _with_factor(self, channels: Channels) -> Channels:
        """With what the correlation of anchors is made from where that is shorter: on a CPU, without a gradient."""
        x_BCT = channels.centred_BCT
        if self.form != "logarithm" or self.by_products or x_BCT.device.type != "cpu":
            return channels
        if x_BCT.shape[1] >= min(self.n_anchors, x_BCT.shape[2]) or (x_BCT.requires_grad and torch.is_grad_enabled()):
            return channels
        with torch.autocast("cpu", enabled=False):
            factor_BCC, fourth_B = channel_factor(x_BCT, _reciprocal(channels.std_BC), channels.valid_BT)
        return channels._replace(factor_BCC=factor_BCC, fourth_B=fourth_B)

    def at_anchors(self, channels: Channels, weights_BAC: Tensor) -> Connectivity:
        """Channels carried to the anchors by ``weights_BAC``, which are zero where a channel takes no part."""
        std_BC = channels.std_BC
        measures_BKAA = self.correlation(channels, weights_BAC, self.form)[:, None]
        if channels.coherence_BKCC is not None:
            measures_BKAA = torch.cat([measures_BKAA, _at_anchors(weights_BAC, channels.coherence_BKCC)], 1)
        level_BA = torch.einsum("bac,bc->ba", weights_BAC, 0.5 * torch.log10(std_BC.square() + 1e-6))
        return Connectivity(measures_BKAA, level_BA)

    def correlation(
        self, channels: Channels, weights_BAC: Tensor, form: SpatialForm, shrinkage: float = ROOT_SHRINKAGE
    ) -> Tensor:
        """Logarithm or root of the correlation of the anchors, ``(B, A, A)``, of standardised channels."""
        scale_BC = _reciprocal(channels.std_BC)
        unit_BAC = weights_BAC.to(channels.std_BC.dtype) * scale_BC[:, None]
        with torch.autocast(unit_BAC.device.type, enabled=False):  # bf16 is too coarse for products over time
            if form == "logarithm" and channels.factor_BCC is not None and channels.fourth_B is not None:
                of_window = scale_BC, channels.factor_BCC, channels.fourth_B, channels.valid_BT
                return log_correlation_of_mixture(weights_BAC, channels.centred_BCT, *of_window)
            if form == "logarithm":
                return log_correlation(unit_BAC @ channels.centred_BCT, channels.valid_BT, self.by_products)
            # A root makes 3e-4 of the 1e-7 that float32 leaves of an eigenvalue that is zero; shrinkage covers that.
            wide = torch.float64 if shrinkage == 0.0 else unit_BAC.dtype
            course_BAT = unit_BAC.to(wide) @ channels.centred_BCT.to(wide)
            root_BAA = root_correlation(course_BAT, channels.valid_BT, self.by_products, shrinkage)
            return root_BAA.to(unit_BAC.dtype)

    def _tokens(self, measured: Connectivity) -> Tensor:
        dtype = self.embed.weight.dtype
        tokens_BAD: Tensor = self.embed(_rows(measured).to(dtype))
        return tokens_BAD + self.amplitude(measured.level_BA[..., None].to(dtype))

    def skips(self, channels: Channels, weights_BAC: Tensor, measured: Connectivity) -> dict[str, Tensor]:
        """The measured part of features, ``(B, F)`` each, where ``config.skips`` names them."""
        found: dict[str, Tensor] = {}
        if "connectivity" in self.skip_widths:
            found["connectivity"] = upper_triangle(_at_anchors(weights_BAC, fisher_z(channels)[:, None])[:, 0])
        if "root" in self.skip_widths:
            triangle_BQ = unit_triangle(self.correlation(channels, weights_BAC, "root", shrinkage=0.0))
            found["root"] = triangle_BQ * _connected(channels, weights_BAC)[:, None]
        if "tangent" in self.skip_widths:
            log_BAA = measured.measures_BKAA[:, 0]
            if self.form != "logarithm":
                log_BAA = self.correlation(channels, weights_BAC, "logarithm")
            found["tangent"] = upper_triangle(log_BAA, diagonal=True)
        if "coherence" in self.skip_widths:
            found["coherence"] = upper_triangle(measured.measures_BKAA[:, 1:]).flatten(1)
        return found


def _connected(channels: Channels, weights_BAC: Tensor) -> Tensor:
    """Bool ``(B,)``: whether two channels take part, as one alone makes all anchors alike."""
    live_BC = (weights_BAC != 0).any(1) & (channels.std_BC > 1e-6)
    return live_BC.sum(-1) > 1


def _reciprocal(std_BC: Tensor) -> Tensor:
    """``1 / std``, and next to nothing for what is flat up to rounding."""
    return torch.rsqrt(std_BC.square() + 1e-12)


def _rows(measured: Connectivity) -> Tensor:
    """What each anchor's token is made from; without the diagonal of the logarithm, much of which all windows share."""
    diagonal = torch.eye(measured.measures_BKAA.shape[-1], dtype=torch.bool, device=measured.level_BA.device)
    return rearrange(measured.measures_BKAA.masked_fill(diagonal, 0.0), "b k a e -> b a (k e)")


def _at_anchors(weights_BAC: Tensor, measures_BKCC: Tensor) -> Tensor:
    return torch.einsum("bac,bkcd,bed->bkae", weights_BAC, measures_BKCC, weights_BAC)


def _all_valid(tokens_BAD: Tensor) -> Tensor:
    return torch.ones(tokens_BAD.shape[:2], dtype=torch.bool, device=tokens_BAD.device)
