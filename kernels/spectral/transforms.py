"""Spectra of frames on a CPU without a gradient, with few passes over the samples.

Frames are demeaned once, as an offset is first taken from the few channels that have a large one. Where all wanted bins
are even, the second half of the windowed frame is added to its first, and the bins are those of a transform of half the
length, to which the frame's mean adds nothing but bin 0.

Shape letters: b rows, C channels, T time samples, P frames, S half frames, H samples of half a frame, F frequencies.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_LIVELY = 8  # of the rounding of a mean; a variation below that is none
# Offset over a frame's deviation from which the channel's is removed first, as each sum rounds by as much of it.
_LARGE_OFFSET = 100.0


class Transformed(NamedTuple):
    """Transforms of demeaned frames under a Hann window, and the frames' norms."""

    spectrum_bCPF: Tensor  # complex
    norm_bCP: Tensor  # of the demeaned frame
    offset_bCP: Tensor  # norm of what demeaning took away

    @property
    def lively_bCP(self) -> Tensor:
        """Bool, whether a frame varies by more than rounding."""
        return self.norm_bCP > _LIVELY * torch.finfo(self.norm_bCP.dtype).eps * self.offset_bCP


def fits(length: int, hop: int, bins: list[int]) -> range | None:
    """The bins as a range, where :func:`transformed` can find them."""
    step = bins[1] - bins[0] if len(bins) > 1 else 1
    if bins[0] < 1 or bins[-1] >= length // 2 or step not in (1, 2):
        return None
    if step == 2 and (bins[0] % 2 or length != 2 * hop):
        return None
    wanted = range(bins[0], bins[-1] + 1, step)
    return wanted if list(wanted) == bins else None


def transformed(x_bCT: Tensor, window_L: Tensor, hop: int, bins: range) -> Transformed:
    """``bins`` that :func:`fits` allows, of all frames under ``window_L``, a periodic Hann window."""
    found = _by_bins(x_bCT, window_L, hop, bins)
    large_bC = (found.offset_bCP > _LARGE_OFFSET * found.norm_bCP).any(-1)
    if not bool(large_bC.any()):
        return found
    # Channel by channel: what a row gives must not depend on the others of its batch.
    mean_bC1 = x_bCT.mean(-1, keepdim=True) * large_bC[..., None]
    return _by_bins(x_bCT - mean_bC1, window_L, hop, bins)


def _by_bins(x_bCT: Tensor, window_L: Tensor, hop: int, bins: range) -> Transformed:
    if bins.step == 2:
        return _folded(x_bCT, window_L, bins)
    length = len(window_L)
    frames_bCPL = x_bCT.unfold(-1, length, hop)
    mean_bCP = frames_bCPL.mean(-1)
    centred_bCPL = frames_bCPL - mean_bCP[..., None]
    norm_bCP = torch.linalg.vector_norm(centred_bCPL, dim=-1)
    spectrum = torch.fft.rfft(centred_bCPL.mul_(window_L))
    return Transformed(spectrum[..., bins[0] : bins[-1] + 1], norm_bCP, mean_bCP.abs() * length**0.5)


def _folded(x_bCT: Tensor, window_L: Tensor, bins: range) -> Transformed:
    length, half = len(window_L), len(window_L) // 2
    halves_bCSH = x_bCT[..., : x_bCT.shape[-1] // half * half].unflatten(-1, (-1, half))
    mean_bCS = halves_bCSH.mean(-1)
    square_bCS = torch.linalg.vector_norm(halves_bCSH - mean_bCS[..., None], dim=-1).square()
    apart_bCP = (mean_bCS[..., 1:] - mean_bCS[..., :-1]).square() * (half / 2)
    norm_bCP = (square_bCS[..., 1:] + square_bCS[..., :-1] + apart_bCP).sqrt()
    offset_bCP = (mean_bCS[..., 1:] + mean_bCS[..., :-1]).abs() * (length**0.5 / 2)
    # The window's second half is one less its first.
    late_bCPH = halves_bCSH[..., 1:, :]
    folded_bCPH = (halves_bCSH[..., :-1, :] - late_bCPH).mul_(window_L[:half]).add_(late_bCPH)
    spectrum = torch.fft.rfft(folded_bCPH)[..., bins[0] // 2 : bins[-1] // 2 + 1]
    return Transformed(spectrum, norm_bCP, offset_bCP)
