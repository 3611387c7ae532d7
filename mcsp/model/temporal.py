"""Temporal domain: patches of the time course, attention over time.

Channels reach the anchors *before* attention (not after, as in channel-independent encoders such as CBraMod, arXiv
2412.07236): attention then costs P^2 instead of (C P)^2, and the tokens stay resolved by place.

Shape letters: B rows, C channels, A anchors, T time samples, P patches, L samples per patch, F frequency bins,
J time bins, W features per channel, D width, E numbers of a token.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mcsp.batch import Signal
from mcsp.config import ModelConfig
from mcsp.kernels.spectral import log_power_frames
from mcsp.model.layers import LOWEST_LOG_POWER, SIZES, AnchorWeights, TokenEncoder, sinusoids, standardise, to_grid
from mcsp.schema import HIGHEST_HZ, Modality

TIME_BINS = 12  # the read-out sees this many equal parts of the window, whatever its length


class Patches(NamedTuple):
    """What the temporal domain measures on a window: patches of each channel."""

    wave_BCPL: Tensor  # standardised over the window
    log_std_BC: Tensor  # log10 standard deviation over the window
    power_BCPF: Tensor | None  # EEG: log10 power density of each patch
    weights_BAC: Tensor  # from channels to anchors
    valid_BP: Tensor


class TemporalEncoder(nn.Module):
    """``Signal -> h_BD`` from the course of the signal in time."""

    def __init__(self, config: ModelConfig, modality: Modality) -> None:
        super().__init__()
        width, _, _, features = SIZES[config.size]
        self.modality = modality
        self.grid_hz = config.eeg_grid_hz if modality == "eeg" else config.fmri_grid_hz
        self.patch_seconds = config.eeg_patch_seconds if modality == "eeg" else config.fmri_patch_seconds
        self.patch_samples = max(1, round(self.grid_hz * self.patch_seconds))
        anchors = config.anchors(modality)
        self.anchors = AnchorWeights(modality, config)
        self.wave = nn.Linear(self.patch_samples, features)
        # A patch's own power spectrum beside its waveform, as in CBraMod: the phase of an oscillation differs from
        # patch to patch, its power is what lasts. BOLD patches are too short to have one.
        self.n_bins = int(HIGHEST_HZ["eeg"]) if modality == "eeg" else 0  # in steps of 1 Hz
        self.spectrum = nn.Linear(self.n_bins, features) if self.n_bins else None
        self.amplitude = nn.Linear(1, features)
        self.embed = nn.Linear(anchors * features, width)
        self.encoder = TokenEncoder(config.size, TIME_BINS)
        self.h_width = self.encoder.h_width

    def forward(self, measured: Patches) -> Tensor:
        """``h_BD`` of what :meth:`measure` found."""
        attended_BPD = self._attend(self._tokens(measured), measured.valid_BP)
        binned_BJD = self._bin_time(attended_BPD, measured.valid_BP)
        return self.encoder.read(rearrange(self.encoder.narrow(binned_BJD), "b j k -> b (j k)"))

    def measure(self, signal: Signal, weights_BAC: Tensor | None = None) -> Patches:
        """Cut the windows into patches on the common grid; a last part of a patch is left out.

        ``weights_BAC`` from channels to anchors where they are known.
        """
        x_BCT, valid_BT = to_grid(signal, self.grid_hz)
        short = self.patch_samples - x_BCT.shape[-1]
        if short > 0:  # shorter than one patch: padded to one, which is not whole and so not valid
            x_BCT, valid_BT = F.pad(x_BCT, (0, short)), F.pad(valid_BT, (0, short))
        n_patches = x_BCT.shape[-1] // self.patch_samples
        whole = n_patches * self.patch_samples
        unit_BCT, log_std_BC = standardise(x_BCT, valid_BT)
        valid_BP = rearrange(valid_BT[:, :whole], "b (p l) -> b p l", p=n_patches).all(-1)
        power_BCPF = None
        if self.n_bins:
            power_BCPF, _ = log_power_frames(  # of all patches: what is not valid holds zeros
                x_BCT,
                torch.full((len(x_BCT),), self.grid_hz),  # on the CPU: known without waiting for a GPU
                list(range(1, self.n_bins + 1)),
                frame_seconds=self.patch_seconds,
                hop_seconds=self.patch_seconds,
            )
            power_BCPF = power_BCPF.clamp_min(LOWEST_LOG_POWER)
            power_BCPF = torch.where(valid_BP[:, None, :, None], power_BCPF, LOWEST_LOG_POWER)
        return Patches(
            rearrange(unit_BCT[..., :whole], "b c (p l) -> b c p l", p=n_patches),
            log_std_BC,
            power_BCPF,
            self.anchors(signal) if weights_BAC is None else weights_BAC,
            valid_BP,
        )

    def _attend(self, tokens_BPD: Tensor, valid_BP: Tensor) -> Tensor:
        centre_P = (torch.arange(tokens_BPD.shape[1], device=tokens_BPD.device) + 0.5) * self.patch_seconds
        place_PD = sinusoids(centre_P, tokens_BPD.shape[-1], 2 * self.patch_seconds, 600.0)
        return self.encoder.attend((tokens_BPD + place_PD.to(tokens_BPD)) * valid_BP[..., None], valid_BP)

    def _tokens(self, measured: Patches) -> Tensor:
        """``(B, P, D)`` from nonlinear features of each channel's patch, carried to the anchors."""
        dtype = self.embed.weight.dtype
        features = self.wave(measured.wave_BCPL.to(dtype))
        features = features + self.amplitude(measured.log_std_BC[..., None, None].to(dtype))
        if self.spectrum is not None:
            assert measured.power_BCPF is not None
            features = features + self.spectrum(measured.power_BCPF.to(dtype))
        anchored = torch.einsum("bac,bcpw->bpaw", measured.weights_BAC.to(dtype), F.gelu(features))
        tokens_BPD: Tensor = self.embed(rearrange(anchored, "b p a w -> b p (a w)"))
        return tokens_BPD

    @staticmethod
    def _bin_time(x_BPD: Tensor, valid_BP: Tensor) -> Tensor:
        """Average tokens into TIME_BINS equal parts of each row's own window: ``(B, J, D)``.

        Windows with fewer patches than bins share a patch between neighbouring bins (linear weights).
        """
        n_patches = x_BPD.shape[1]
        patches_B = n_patches - valid_BP.flip(1).int().argmax(1)  # one past the last valid patch
        place_BP = (torch.arange(n_patches, device=x_BPD.device) + 0.5) / patches_B[:, None] * TIME_BINS
        bin_J = torch.arange(TIME_BINS, device=x_BPD.device) + 0.5
        reach_B = (TIME_BINS / patches_B).clamp_min(1.0)
        weights = (1 - (place_BP[:, None] - bin_J[:, None]).abs() / reach_B[:, None, None]).clamp_min(0)
        weights = weights * valid_BP[:, None]
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-6)
        return weights.to(x_BPD.dtype) @ x_BPD
