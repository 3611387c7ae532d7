"""Spectral domain: log-power on a frequency axis in Hz, attention over frequency patches.

Shape letters: B rows, C channels, A anchors, F frequency bins, P frequency patches, D width.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from mcsp.batch import Signal
from mcsp.config import ModelConfig
from mcsp.kernels.spectral import log_power
from mcsp.model.layers import LOWEST_LOG_POWER, SIZES, AnchorWeights, TokenEncoder, at_least, sinusoids
from mcsp.schema import Modality

BINS_PER_PATCH = 5
# EEG: 1-45 Hz, the range of the classical bands; BOLD: 0.01-0.25 Hz, slow-5 to slow-2 (Zuo et al., NeuroImage 2010).
_STEP_HZ: dict[Modality, float] = {"eeg": 1.0, "fmri": 0.01}
_BINS: dict[Modality, int] = {"eeg": 45, "fmri": 25}
# Welch frames for EEG; a BOLD window is too short to be cut again.
_FRAME_SECONDS: dict[Modality, float | None] = {"eeg": 2.0, "fmri": None}


class SpectralEncoder(nn.Module):
    """``Signal -> h_BD`` from each channel's power spectrum; absolute power is kept."""

    def __init__(self, config: ModelConfig, modality: Modality) -> None:
        super().__init__()
        width = SIZES[config.size][0]
        self.modality = modality
        n_anchors = config.eeg_anchors if modality == "eeg" else config.fmri_anchors
        self.anchors = AnchorWeights(modality, n_anchors)
        self.n_patches = _BINS[modality] // BINS_PER_PATCH
        self.embed = nn.Linear(n_anchors * BINS_PER_PATCH, width)
        self.encoder = TokenEncoder(config.size, self.n_patches)

    def forward(self, signal: Signal) -> Tensor:
        """Encode the windows of one modality; frequencies above a row's Nyquist frequency are masked."""
        step = _STEP_HZ[self.modality]
        freqs_F = torch.arange(1, _BINS[self.modality] + 1, dtype=torch.float32) * step
        frame = _FRAME_SECONDS[self.modality]
        signal = at_least(signal, frame or 0.0)
        power_BCF = log_power(
            signal.x_BCT,
            signal.sfreq_B,
            freqs_F,  # on the CPU: known without waiting for a GPU
            time_valid_BT=signal.time_valid_BT,
            frame_seconds=frame,
            hop_seconds=frame / 2 if frame else None,
        )
        freqs_F = freqs_F.to(signal.x_BCT.device)
        power_BCF = power_BCF.clamp_min(LOWEST_LOG_POWER)
        audible_BF = freqs_F < signal.sfreq_B[:, None] / 2
        anchored_BAF = torch.einsum("bac,bcf->baf", self.anchors(signal), power_BCF * audible_BF[:, None])
        tokens = rearrange(anchored_BAF, "b a (p f) -> b p (a f)", f=BINS_PER_PATCH)
        valid_BP = rearrange(audible_BF, "b (p f) -> b p f", f=BINS_PER_PATCH).all(-1)
        tokens_BPD = self.embed(tokens.to(self.embed.weight.dtype))
        centre_P = rearrange(freqs_F, "(p f) -> p f", f=BINS_PER_PATCH).mean(-1)
        place_PD = sinusoids(centre_P.log2(), tokens_BPD.shape[-1], 0.5, 16.0)  # octaves, for both modalities
        return self.encoder((tokens_BPD + place_PD.to(tokens_BPD)) * valid_BP[..., None], valid_BP)
