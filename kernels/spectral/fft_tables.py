"""Where frames and their spectra stand in the workspace of a long transform, and which bins are wanted.

Shape letters: B rows, C channels, F frequencies, K bands, N samples of a transform, G kinds of rows.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from mcsp.kernels.spectral.framing import band_bins, bins_of
from mcsp.kernels.spectral.tables import Request


@dataclass(frozen=True)
class Group:
    """Rows of one kind, side by side in the workspace; each row is ``(C, frames, N)``."""

    start: int  # in samples
    rows: int
    frames: int
    length: int  # N

    def samples(self, channels: int) -> int:
        """Samples of all its frames."""
        return self.rows * channels * self.frames * self.length


@dataclass(frozen=True)
class FftTables:
    """Tables of one batch, on its device."""

    place_B4: Tensor  # int64: first sample, first bin, N, frames
    bins: Tensor  # int32: (G, F) bins, -1 above sfreq / 2; or (G, K, 2) first bin of a band and one past its last
    inverse: Tensor  # int32 (G, most bins): which frequency a bin is, -1 for none; (1, 1) for bands
    groups: tuple[Group, ...]
    samples: int
    widest: int  # most bins of a band; 0 for frequencies
    wrapped: bool  # whether a frame lies outside of the first N samples of its row
    padded: bool  # whether a transform is longer than its frame

    @property
    def most_bins(self) -> int:
        """Bins of the longest transform."""
        return max(group.length for group in self.groups) // 2 + 1


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def fft_tables(request: Request, channels: int) -> FftTables | None:
    """Tables, or None where the frequencies are not distinct bins of transforms that are at most twice too long."""
    bins: list[list[int]] = []
    lengths: list[int] = []
    for rate, span, _ in request.kinds:
        length = max(span, 1)
        if request.freqs is not None:
            found = transform_length(length, rate, request.freqs)
            if found is None:
                return None
            length, wanted = found
            bins.append(wanted)
        else:
            bands = band_bins(request.bands or (), rate, span)
            first = [round(band[0] * length / rate) if band else 0 for band in bands]
            bins.append([edge for low, band in zip(first, bands, strict=True) for edge in (low, low + len(band))])
        lengths.append(length)
    groups, place_B4, start, first_bin = [], torch.zeros(len(request.rows), 4, dtype=torch.int64), 0, 0
    for g, (length, frames) in enumerate(zip(lengths, request.frames, strict=True)):
        rows = [b for b, kind in enumerate(request.kind_of_B) if kind == g]
        group = Group(start, len(rows), frames, length)
        groups.append(group)
        per_row = channels * frames
        for i, b in enumerate(rows):
            at = (start + i * per_row * length, first_bin + i * per_row * (length // 2 + 1), length, frames)
            place_B4[b] = torch.tensor(at)
        start += group.samples(channels)
        first_bin += len(rows) * per_row * (length // 2 + 1)
    most = max(lengths) // 2 + 1
    table = torch.tensor(bins, dtype=torch.int32)
    inverse = torch.full((1, 1), -1, dtype=torch.int32)
    widest = 0
    if request.freqs is not None:
        inverse = torch.full((len(lengths), most), -1, dtype=torch.int32)
        for g, wanted in enumerate(bins):
            for f, k in enumerate(wanted):
                if k >= 0:
                    inverse[g, k] = f
    else:
        table = table.unflatten(1, (-1, 2))
        widest = max(1, int((table[..., 1] - table[..., 0]).max()))
    return FftTables(
        place_B4=place_B4.to(request.device),
        bins=table.to(request.device),
        inverse=inverse.to(request.device),
        groups=tuple(groups),
        samples=start,
        widest=widest,
        wrapped=not request.framed and min(lengths) < request.n_times,
        padded=any(length > span for length, (_, span, _) in zip(lengths, request.kinds, strict=True)),
    )


def transform_length(length: int, rate: float, freqs: tuple[float, ...]) -> tuple[int, list[int]] | None:
    """The best N from ``length`` to twice that whose bins are ``freqs``, and those bins; None where there is none.

    A frame is filled up with zeros to N, which changes no value at its bins. Among several the first without a prime
    factor above 7 is taken, so that no length is slow because it is prime.
    """
    wanted = torch.tensor(freqs, dtype=torch.float64)
    found: dict[int, list[int]] = {}
    for lengths in torch.arange(length, 2 * length + 1).split(max(1, 2**20 // len(freqs))):
        bins_NF, on_bins_N = bins_of(wanted, rate, lengths)
        for n, bins in zip(lengths[on_bins_N].tolist(), bins_NF[on_bins_N].tolist(), strict=True):
            known = [k for k in bins if k >= 0]
            if len(set(known)) == len(known):
                found[n] = bins
    if not found:
        return None
    best = next((n for n in found if _smooth(n)), next(iter(found)))
    return best, found[best]


def _smooth(n: int) -> bool:
    """No prime factor above 7."""
    for prime in (2, 3, 5, 7):
        while n % prime == 0:
            n //= prime
    return n == 1
