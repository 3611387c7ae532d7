"""Spectra of frames on a CPU without a gradient, by transforms with few passes over the samples.

The Hann window of L samples is three numbers in frequency: of the transform X of a frame as it is, the windowed one is
``X_k / 2 - (X_{k-1} + X_{k+1}) / 4``, and to demean the frame is to set X_0 to zero. Where all wanted bins are even,
the second half of the windowed frame is added to its first, and the bins are those of a transform of half the length,
to which the frame's mean adds nothing but bin 0.

Shape letters: b rows, C channels, T time samples, P frames, S half frames, H samples of half a frame, F frequencies.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_LIVELY = 8  # of the rounding of a mean; a variation below that is none
# Offset over a frame's deviation from which it is removed before the transform, which rounds by as much of it.
_LARGE_OFFSET = 100.0


class Transformed(NamedTuple):
    """Transforms of demeaned frames under a Hann window, and the frames' norms."""

    spectrum_bCPF: Tensor  # complex, still to be multiplied with ``factor``
    norm_bCP: Tensor  # of the demeaned frame
    offset_bCP: Tensor  # norm of what demeaning took away
    factor: float

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


def transformed(x_bCT: Tensor, length: int, hop: int, bins: range) -> Transformed:
    """``bins`` that :func:`fits` allows, of all frames."""
    found = _by_bins(x_bCT, length, hop, bins)
    large_bC = (found.offset_bCP > _LARGE_OFFSET * found.norm_bCP).any(-1)
    if not bool(large_bC.any()):
        return found
    # Channel by channel: what a row gives must not depend on the others of its batch.
    mean_bC1 = x_bCT.mean(-1, keepdim=True) * large_bC[..., None]
    return _by_bins(x_bCT - mean_bC1, length, hop, bins)


def _by_bins(x_bCT: Tensor, length: int, hop: int, bins: range) -> Transformed:
    if bins.step == 2:
        return _folded(x_bCT, length, bins)
    spectrum = torch.fft.rfft(x_bCT.unfold(-1, length, hop))
    offset_bCP = spectrum[..., 0].real.abs() / length**0.5
    # Parseval: each bin but the last of an even length stands for two.
    square_bCP = torch.linalg.vector_norm(torch.view_as_real(spectrum[..., 1:]), dim=(-2, -1)).square() * 2
    if length % 2 == 0:
        square_bCP -= spectrum[..., -1].real.square()
    spectrum[..., 0] = 0
    low, high = bins[0], bins[-1] + 1
    sides = spectrum[..., low - 1 : high - 1] + spectrum[..., low + 1 : high + 1]
    windowed = torch.sub(spectrum[..., low:high], sides, alpha=0.5)
    return Transformed(windowed, (square_bCP / length).sqrt(), offset_bCP, 0.5)


def _folded(x_bCT: Tensor, length: int, bins: range) -> Transformed:
    half = length // 2
    halves_bCSH = x_bCT[..., : x_bCT.shape[-1] // half * half].unflatten(-1, (-1, half))
    mean_bCS = halves_bCSH.mean(-1)
    square_bCS = torch.linalg.vector_norm(halves_bCSH - mean_bCS[..., None], dim=-1).square()
    apart_bCP = (mean_bCS[..., 1:] - mean_bCS[..., :-1]).square() * (half / 2)
    norm_bCP = (square_bCS[..., 1:] + square_bCS[..., :-1] + apart_bCP).sqrt()
    offset_bCP = (mean_bCS[..., 1:] + mean_bCS[..., :-1]).abs() * (length**0.5 / 2)
    # The window's second half is one less its first.
    window_H = torch.hann_window(length, dtype=x_bCT.dtype)[:half]
    late_bCPH = halves_bCSH[..., 1:, :]
    folded_bCPH = (halves_bCSH[..., :-1, :] - late_bCPH).mul_(window_H).add_(late_bCPH)
    spectrum = torch.fft.rfft(folded_bCPH)[..., bins[0] // 2 : bins[-1] // 2 + 1]
    return Transformed(spectrum, norm_bCP, offset_bCP, 1.0)
