"""Spectral domain: log-power on a frequency axis in Hz, attention over frequency patches.

Shape letters: B rows, C channels, A anchors, F frequency bins, P frequency patches, D width, E numbers of a token.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from mcsp.batch import Signal
from mcsp.config import ModelConfig
from mcsp.kernels.spectral import BOLD_BANDS_HZ, EEG_BANDS_HZ, log_power
from mcsp.model.layers import LOWEST_LOG_POWER, SIZES, AnchorWeights, TokenEncoder, at_least, sinusoids
from mcsp.schema import HIGHEST_HZ, Modality

BINS_PER_PATCH = 5
_STEP_HZ: dict[Modality, float] = {"eeg": 1.0, "fmri": 0.01}  # from the first step up to HIGHEST_HZ
# Welch frames for EEG; a BOLD window is too short to be cut again.
_FRAME_SECONDS: dict[Modality, float | None] = {"eeg": 2.0, "fmri": None}


class Spectrum(NamedTuple):
    """What the spectral domain measures on a window, at the anchors."""

    power_BAF: Tensor  # log10 density; zero at frequencies that a row cannot have
    audible_BF: Tensor  # bool, which frequencies a row can have


class SpectralEncoder(nn.Module):
    """``Signal -> h_BD`` from each channel's power spectrum; absolute power is kept.

    Its skip is the log-power of each band at each anchor.
    """

    def __init__(self, config: ModelConfig, modality: Modality) -> None:
        super().__init__()
        width = SIZES[config.size][0]
        self.modality = modality
        n_anchors = config.anchors(modality)
        self.anchors = AnchorWeights(modality, config)
        self.n_bins = round(HIGHEST_HZ[modality] / _STEP_HZ[modality])
        self.n_patches = self.n_bins // BINS_PER_PATCH
        self.bands_hz = list((EEG_BANDS_HZ if modality == "eeg" else BOLD_BANDS_HZ).values())
        self.embed = nn.Linear(n_anchors * BINS_PER_PATCH, width)
        self.encoder = TokenEncoder(config.size, self.n_patches)
        self.h_width = self.encoder.h_width
        every = dict.fromkeys(("band_power", "relative_power"), n_anchors * len(self.bands_hz))
        self.skip_widths: dict[str, int] = {name: count for name, count in every.items() if name in config.skips}

    def forward(self, measured: Spectrum) -> Tensor:
        """``h_BD`` of what :meth:`measure` found; frequencies above a row's Nyquist frequency are masked."""
        source_BPE, valid_BP = _patches(measured)
        h_BD: Tensor = self.encoder(self._placed(self._tokens(source_BPE), valid_BP), valid_BP)
        return h_BD

    def measure(self, signal: Signal, weights_BAC: Tensor | None = None) -> Spectrum:
        """Power of the windows at the anchors; ``weights_BAC`` where they are known."""
        frame = _FRAME_SECONDS[self.modality]
        signal = at_least(signal, frame or 0.0)
        power_BCF = log_power(
            signal.x_BCT,
            signal.sfreq_B,
            self.freqs_F(),  # on the CPU: known without waiting for a GPU
            time_valid_BT=signal.time_valid_BT,
            frame_seconds=frame,
            hop_seconds=frame / 2 if frame else None,
        )
        rates_B = signal.sfreq_B.to(signal.x_BCT.device)  # of a batch on the host
        audible_BF = self.freqs_F().to(rates_B.device) < rates_B[:, None] / 2
        power_BCF = power_BCF.clamp_min(LOWEST_LOG_POWER) * audible_BF[:, None]
        weights_BAC = self.anchors(signal) if weights_BAC is None else weights_BAC
        return Spectrum(torch.einsum("bac,bcf->baf", weights_BAC, power_BCF), audible_BF)

    def _tokens(self, source_BPE: Tensor) -> Tensor:
        tokens_BPD: Tensor = self.embed(source_BPE.to(self.embed.weight.dtype))
        return tokens_BPD

    def _placed(self, tokens_BPD: Tensor, valid_BP: Tensor) -> Tensor:
        centre_P = rearrange(self.freqs_F().to(tokens_BPD.device), "(p f) -> p f", f=BINS_PER_PATCH).mean(-1)
        place_PD = sinusoids(centre_P.log2(), tokens_BPD.shape[-1], 0.5, 16.0)  # octaves, for both modalities
        return (tokens_BPD + place_PD.to(tokens_BPD)) * valid_BP[..., None]

    def skips(self, measured: Spectrum) -> dict[str, Tensor]:
        """Per band and anchor, ``(B, K * A)`` each, where ``config.skips`` names them.

        ``band_power`` is log10 of the mean density, ``relative_power`` log10 of the band's share of the power in all
        bands; 0 where a band is out of reach.
        """
        if not self.skip_widths:
            return {}
        power_BAF, audible_BF = measured
        freqs_F = self.freqs_F().to(power_BAF.device)
        low_K, high_K = freqs_F.new_tensor(self.bands_hz).T
        # A bin on an edge must not fall out of both of its bands by rounding.
        inside_KF = (freqs_F >= low_K[:, None] - 1e-6) & (freqs_F < high_K[:, None] - 1e-6)
        counts_BKF = (inside_KF & audible_BF[:, None]).to(power_BAF.dtype)
        total_BKA = torch.einsum("bkf,baf->bka", counts_BKF, 10**power_BAF)
        count_BK1 = counts_BKF.sum(-1, keepdim=True)
        share_BKA = total_BKA / total_BKA.sum(1, keepdim=True).clamp_min(1e-30)
        every = {"band_power": total_BKA / count_BK1.clamp_min(1), "relative_power": share_BKA}
        return {
            name: torch.where(count_BK1 > 0, torch.log10(every[name] + 1e-12), 0.0).flatten(1)
            for name in self.skip_widths
        }

    def freqs_F(self) -> Tensor:
        """The frequencies [Hz]."""
        return torch.arange(1, self.n_bins + 1, dtype=torch.float32) * _STEP_HZ[self.modality]


def _patches(measured: Spectrum) -> tuple[Tensor, Tensor]:
    """What tokens are made from, ``(B, P, A * BINS_PER_PATCH)``, and which are within reach, ``(B, P)``."""
    power_BAF, audible_BF = measured
    source_BPE = rearrange(power_BAF, "b a (p f) -> b p (a f)", f=BINS_PER_PATCH)
    return source_BPE, rearrange(audible_BF, "b (p f) -> b p f", f=BINS_PER_PATCH).all(-1)
