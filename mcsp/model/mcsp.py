"""The model: six domain encoders and their projections.

Shape letters: B rows of a modality, D width of h, K projection width, F features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcsp.batch import Signal
from mcsp.config import ModelConfig
from mcsp.model.layers import SIZES
from mcsp.model.spatial import Connectivity, SpatialEncoder
from mcsp.model.spectral import SpectralEncoder, Spectrum
from mcsp.model.temporal import Patches, TemporalEncoder
from mcsp.schema import Domain, Modality

Encoder = SpatialEncoder | TemporalEncoder | SpectralEncoder
Measured = Connectivity | Patches | Spectrum


def _name(modality: Modality, domain: Domain) -> str:
    return f"{modality}_{domain}"


class MCSP(nn.Module):
    """Encodes windows of fMRI and EEG, of any montage, parcellation, rate and length.

    ``h`` is what a domain keeps of a window; ``z``, its L2-normalised projection, is what the objective compares.
    Downstream tasks get both. The width of h is a domain's own: the spatial one keeps anchors apart.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        kinds: dict[Domain, type[SpatialEncoder] | type[TemporalEncoder] | type[SpectralEncoder]] = {
            "spatial": SpatialEncoder,
            "temporal": TemporalEncoder,
            "spectral": SpectralEncoder,
        }
        width = SIZES[config.size][0]
        self.encoders, self.projections = nn.ModuleDict(), nn.ModuleDict()
        for modality in config.modalities:
            for domain in config.domains:
                encoder = kinds[domain](config, modality)
                self.encoders[_name(modality, domain)] = encoder
                self.projections[_name(modality, domain)] = nn.Sequential(
                    nn.LayerNorm(encoder.h_width),
                    nn.Linear(encoder.h_width, width),
                    nn.GELU(),
                    nn.Linear(width, config.projection_dim),
                )

    def encoder(self, modality: Modality, domain: Domain) -> Encoder:
        """The encoder of one domain."""
        found: Encoder = self.encoders[_name(modality, domain)]  # type: ignore[assignment]
        return found

    def encode_domain(self, modality: Modality, domain: Domain, signal: Signal) -> Tensor:
        """``h_BD`` of one domain."""
        return self.encode_measured(modality, domain, self.encoder(modality, domain).measure(signal))

    def encode_measured(self, modality: Modality, domain: Domain, measured: Measured) -> Tensor:
        """``h_BD`` of what the domain's encoder measured."""
        # Encoders are called as modules: ZeRO-3 has their parameters at hand, and compilation applies.
        h_BD: Tensor = self.encoders[_name(modality, domain)](measured)
        return h_BD

    def project(self, modality: Modality, domain: Domain, h_BD: Tensor) -> Tensor:
        """``z_BK``, L2-normalised in float32 at least."""
        z_BK = self.projections[_name(modality, domain)](h_BD)
        return F.normalize(z_BK if z_BK.dtype == torch.float64 else z_BK.float(), dim=-1)

    def encode(self, signals: dict[Modality, Signal]) -> dict[Modality, dict[Domain, Tensor]]:
        """``h_BD`` for each modality present and each domain.

        Raises:
            ValueError: a modality that the model was not built for.
        """
        self._checked(signals)
        return {m: {d: self.encode_domain(m, d, s) for d in self.config.domains} for m, s in signals.items()}

    def features(self, signals: dict[Modality, Signal]) -> dict[Modality, Tensor]:
        """``(B, F)`` per modality, float32: h of every domain, z of every domain, what was measured, side by side.

        F and the order depend on the configuration alone: :meth:`feature_widths` names the parts. To describe a
        recording, average :meth:`learned` over its windows, and take :meth:`measured` of the whole of it.

        Raises:
            ValueError: as :meth:`encode`.
        """
        return {m: torch.cat(self._parts(m, s, True, True), dim=-1) for m, s in self._checked(signals).items()}

    def learned(self, signals: dict[Modality, Signal]) -> dict[Modality, Tensor]:
        """The part of :meth:`features` that training changes, ``(B, F)`` per modality: h and z of every domain."""
        return {m: torch.cat(self._parts(m, s, True, False), dim=-1) for m, s in self._checked(signals).items()}

    def measured(self, signals: dict[Modality, Signal]) -> dict[Modality, Tensor]:
        """The rest of :meth:`features`, ``(B, F)`` per modality, of windows or recordings of any length."""
        empty = {m: s.x_BCT.new_zeros(len(s), 0) for m, s in self._checked(signals).items()}
        return {m: torch.cat([empty[m], *self._parts(m, s, False, True)], dim=-1) for m, s in signals.items()}

    def _parts(self, modality: Modality, signal: Signal, learned: bool, measured: bool) -> list[Tensor]:
        """Parts of :meth:`features` in their order; what both kinds rest on is measured once."""
        h: list[Tensor] = []
        skips: list[Tensor] = []
        for domain in self.config.domains:
            encoder = self.encoder(modality, domain)
            if isinstance(encoder, TemporalEncoder):  # it measures nothing
                h += [encoder(encoder.measure(signal))] if learned else []
            elif isinstance(encoder, SpatialEncoder):
                if learned or encoder.skip_widths:
                    channels, weights_BAC = encoder.channels(signal), encoder.anchors(signal)
                    connectivity = encoder.at_anchors(channels, weights_BAC)
                    h += [encoder(connectivity)] if learned else []
                    skips += encoder.skips(channels, weights_BAC, connectivity).values() if measured else []
            elif learned or encoder.skip_widths:
                spectrum = encoder.measure(signal)
                h += [encoder(spectrum)] if learned else []
                skips += encoder.skips(spectrum).values() if measured else []
        z = [self.project(modality, d, h_BD) for d, h_BD in zip(self.config.domains, h, strict=True)] if learned else []
        return [part.float() for part in h + z + skips]

    def feature_widths(self, modality: Modality) -> dict[str, int]:
        """The parts of :meth:`features` in order: those of :meth:`learned_widths`, then the skips (measured)."""
        widths = self.learned_widths(modality)
        for domain in self.config.domains:
            encoder = self.encoder(modality, domain)
            if not isinstance(encoder, TemporalEncoder):
                widths |= encoder.skip_widths
        return widths

    def learned_widths(self, modality: Modality) -> dict[str, int]:
        """The parts of :meth:`features` that training changes, which come first: h and z of every domain."""
        h: dict[str, int] = {d: self.encoder(modality, d).h_width for d in self.config.domains}
        return h | {f"{d}_z": self.config.projection_dim for d in self.config.domains}

    def measured_widths(self, modality: Modality) -> dict[str, int]:
        """The parts of :meth:`measured` in order."""
        learned = self.learned_widths(modality)
        return {name: width for name, width in self.feature_widths(modality).items() if name not in learned}

    def _checked(self, signals: dict[Modality, Signal]) -> dict[Modality, Signal]:
        unknown = [m for m in signals if m not in self.config.modalities]
        if unknown:
            raise ValueError(f"the model encodes {list(self.config.modalities)}, found a batch with {unknown}")
        return signals
