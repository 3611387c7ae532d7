"""The model: six domain encoders and their projections.

Shape letters: B rows of a modality, D width, K projection width, F features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcsp.batch import Signal
from mcsp.config import ModelConfig
from mcsp.model.layers import SIZES
from mcsp.model.spatial import SpatialEncoder
from mcsp.model.spectral import SpectralEncoder
from mcsp.model.temporal import TemporalEncoder
from mcsp.schema import Domain, Modality


def _name(modality: Modality, domain: Domain) -> str:
    return f"{modality}_{domain}"


class MCSP(nn.Module):
    """Encodes windows of fMRI and EEG, of any montage, parcellation, rate and length.

    ``h`` is what downstream tasks use; ``z``, the L2-normalised projection, is what the objective compares.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        kinds: dict[Domain, type[SpatialEncoder] | type[TemporalEncoder] | type[SpectralEncoder]] = {
            "spatial": SpatialEncoder,
            "temporal": TemporalEncoder,
            "spectral": SpectralEncoder,
        }
        pairs = [(m, d) for m in config.modalities for d in config.domains]
        width = SIZES[config.size][0]
        self.encoders = nn.ModuleDict({_name(m, d): kinds[d](config, m) for m, d in pairs})
        self.projections = nn.ModuleDict(
            {
                _name(m, d): nn.Sequential(
                    nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, config.projection_dim)
                )
                for m, d in pairs
            }
        )

    def encode_domain(self, modality: Modality, domain: Domain, signal: Signal) -> tuple[Tensor, Tensor | None]:
        """``h_BD`` of one domain, and the spatial domain's connectivity skip ``(B, F)``."""
        out = self.encoders[_name(modality, domain)](signal)
        return out if isinstance(out, tuple) else (out, None)

    def project(self, modality: Modality, domain: Domain, h_BD: Tensor) -> Tensor:
        """``z_BK``, L2-normalised in float32 at least."""
        z_BK = self.projections[_name(modality, domain)](h_BD)
        return F.normalize(z_BK if z_BK.dtype == torch.float64 else z_BK.float(), dim=-1)

    def encode(self, signals: dict[Modality, Signal]) -> dict[Modality, dict[Domain, Tensor]]:
        """``h_BD`` for each modality present and each domain.

        Raises:
            ValueError: a modality that the model was not built for.
        """
        self._check(signals)
        return {m: {d: self.encode_domain(m, d, s)[0] for d in self.config.domains} for m, s in signals.items()}

    def features(self, signals: dict[Modality, Signal]) -> dict[Modality, Tensor]:
        """``(B, F)`` per modality, float32: h of every domain, then the connectivity skip, side by side.

        F depends on the configuration alone. Average over the windows of a recording to describe the recording.
        """
        self._check(signals)
        out: dict[Modality, Tensor] = {}
        for modality, signal in signals.items():
            parts = [self.encode_domain(modality, d, signal) for d in self.config.domains]
            columns = [h for h, _ in parts] + [skip for _, skip in parts if skip is not None]
            out[modality] = torch.cat([c.float() for c in columns], dim=-1)
        return out

    def _check(self, signals: dict[Modality, Signal]) -> None:
        unknown = [m for m in signals if m not in self.config.modalities]
        if unknown:
            raise ValueError(f"the model encodes {list(self.config.modalities)}, found a batch with {unknown}")
