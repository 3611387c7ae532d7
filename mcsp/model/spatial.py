"""Spatial domain: functional connectivity on fixed anchor positions, attention over anchors.

Shape letters: B rows, C channels, A anchors, T time samples, K connectivity measures, D width.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from mcsp.batch import Signal
from mcsp.config import ModelConfig
from mcsp.kernels.spectral import EEG_BANDS_HZ, imaginary_coherence
from mcsp.model.layers import SIZES, AnchorWeights, TokenEncoder, at_least, standardise
from mcsp.schema import Modality

COHERENCE_FRAME_SECONDS = 2.0  # half a hertz of resolution: two bins and more in the narrowest band


def pearson(x_BCT: Tensor, time_valid_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Correlation of channels over valid time ``(B, C, C)`` with a zero diagonal, Fisher z, and log10 sd ``(B, C)``."""
    unit_BCT, log_std_BC = standardise(x_BCT, time_valid_BT)
    count = time_valid_BT.sum(-1).clamp_min(1).to(x_BCT.dtype)[:, None, None]
    correlation = (unit_BCT @ unit_BCT.mT / count).clamp(-0.999, 0.999)
    diagonal = torch.eye(x_BCT.shape[1], dtype=torch.bool, device=x_BCT.device)
    return torch.atanh(correlation).masked_fill(diagonal, 0.0), log_std_BC


class SpatialEncoder(nn.Module):
    """``Signal -> (h_BD, skip_BF)``: tokens are anchors, each holding its connectivity to all anchors.

    Pearson for BOLD; for EEG imaginary coherence per band beside it, which volume conduction cannot produce (Nolte et
    al. 2004). ``skip_BF`` is the anchors' Fisher-z connectivity, upper triangle: a linear probe can always fall back on
    it, with or without training.
    """

    def __init__(self, config: ModelConfig, modality: Modality) -> None:
        super().__init__()
        width = SIZES[config.size][0]
        self.modality = modality
        self.n_anchors = config.eeg_anchors if modality == "eeg" else config.fmri_anchors
        self.n_measures = 1 + (len(EEG_BANDS_HZ) if modality == "eeg" else 0)
        self.anchors = AnchorWeights(modality, self.n_anchors)
        self.embed = nn.Linear(self.n_measures * self.n_anchors, width)
        self.amplitude = nn.Linear(1, width)
        self.place_AD = nn.Parameter(torch.randn(self.n_anchors, width) * 0.02)
        self.encoder = TokenEncoder(config.size, self.n_anchors)

    def forward(self, signal: Signal) -> tuple[Tensor, Tensor]:
        """Encode the windows of one modality."""
        weights_BAC = self.anchors(signal)
        x_BCT = signal.x_BCT * signal.channel_valid_BC[..., None]
        correlation_BCC, log_std_BC = pearson(x_BCT, signal.time_valid_BT)
        measures = correlation_BCC[:, None]
        if self.modality == "eeg":
            framed = at_least(signal, COHERENCE_FRAME_SECONDS)
            coherence_BKCC = imaginary_coherence(
                framed.x_BCT * framed.channel_valid_BC[..., None],
                framed.sfreq_B,
                list(EEG_BANDS_HZ.values()),
                time_valid_BT=framed.time_valid_BT,
                frame_seconds=COHERENCE_FRAME_SECONDS,
                hop_seconds=COHERENCE_FRAME_SECONDS,
            )
            measures = torch.cat([measures, coherence_BKCC.to(measures.dtype)], 1)
        anchored_BKAA = torch.einsum("bac,bkcd,bed->bkae", weights_BAC, measures, weights_BAC)
        dtype = self.embed.weight.dtype
        tokens_BAD = self.embed(rearrange(anchored_BKAA, "b k a e -> b a (k e)").to(dtype))
        level_BA1 = torch.einsum("bac,bc->ba", weights_BAC, log_std_BC)[..., None]
        tokens_BAD = tokens_BAD + self.amplitude(level_BA1.to(dtype)) + self.place_AD
        all_valid = torch.ones(tokens_BAD.shape[:2], dtype=torch.bool, device=tokens_BAD.device)
        rows, columns = torch.triu_indices(self.n_anchors, self.n_anchors, offset=1, device=tokens_BAD.device)
        return self.encoder(tokens_BAD, all_valid), anchored_BKAA[:, 0, rows, columns]
