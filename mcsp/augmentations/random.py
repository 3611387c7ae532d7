"""Counter-based randomness for tensors: a draw is a function of (key of the row, purpose, element index) alone.

So a view does not depend on the device, on padding, on which rank holds the row, or on what was drawn before. The
integer function is SplitMix64, the same as :func:`mcsp.schema.mix64`.

Shape letters: B rows, C channels, T time samples.
"""

import functools
import math

import numpy as np
import torch
from torch import Tensor

# Of SplitMix64; as numpy's integers, because making these from Python's takes half the time of a small draw.
_ADDED, _SHIFTS = np.uint64(0x9E3779B97F4A7C15), tuple(np.uint64(bits) for bits in (30, 27, 31))
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_DROPPED = np.uint64(40)  # the 24 bits that a float32 holds are left


def _signed(value: int) -> int:
    """The int64 with the same bits as an unsigned 64-bit integer (torch has no wrapping uint64 arithmetic)."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix64(x: Tensor) -> Tensor:
    """SplitMix64 finaliser on int64 tensors, bit for bit :func:`mcsp.schema.mix64`."""
    if x.device.type == "cpu":  # draws are small and many, and numpy, which has unsigned integers, takes a third
        return torch.from_numpy(_mixed(x.numpy().view(np.uint64)).view(np.int64))
    x = x + _signed(int(_ADDED))
    x = (x ^ _shift_right(x, int(_SHIFTS[0]))) * _signed(int(_FACTORS[0]))
    x = (x ^ _shift_right(x, int(_SHIFTS[1]))) * _signed(int(_FACTORS[1]))
    return x ^ _shift_right(x, int(_SHIFTS[2]))


def _mixed(x: np.ndarray) -> np.ndarray:
    x = x + _ADDED
    x ^= x >> _SHIFTS[0]
    x *= _FACTORS[0]
    x ^= x >> _SHIFTS[1]
    x *= _FACTORS[1]
    x ^= x >> _SHIFTS[2]
    return x


def uniform(key_B: Tensor, purpose: int, *shape: int) -> Tensor:
    """Floats in [0, 1), float32 ``(B, *shape)``. Element (b, i, j ...) depends on key, purpose, i, j ... only."""
    if key_B.device.type == "cpu":
        mixed = _mixed(key_B.numpy().view(np.uint64) ^ np.uint64(purpose))
        for size in shape:
            mixed = _mixed(mixed[..., None] ^ np.arange(size, dtype=np.uint64))
        return torch.from_numpy((_mixed(mixed) >> _DROPPED).astype(np.float32) * np.float32(2.0**-24))
    bits = mix64(key_B ^ purpose)
    for size in shape:
        bits = mix64(bits[..., None] ^ torch.arange(size, device=key_B.device))
    return _shift_right(mix64(bits), int(_DROPPED)).float() * 2.0**-24


def normal(key_B: Tensor, purpose: int, *shape: int) -> Tensor:
    """Standard normal numbers, float32 ``(B, *shape)`` (Box and Muller, 1958)."""
    u, v = uniform(key_B, 2 * purpose + 1, *shape), uniform(key_B, 2 * purpose + 2, *shape)
    return torch.sqrt(-2 * torch.log(1 - u)) * torch.cos(2 * math.pi * v)


@functools.cache
def _noise_table(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1 << 20, generator=generator).to(device)


def white_noise(key_B: Tensor, purpose: int, channels: int, samples: int) -> Tensor:
    """Standard normal noise ``(B, C, T)``: each channel reads a fixed table of 2^20 numbers from a random place.

    One hash per channel instead of one per value: hashing every sample of an EEG batch costs more than the model's
    first layer. Places are multiples of 8 in the first half of the table, whatever the length, and rows are copied as a
    whole.

    Raises:
        ValueError: windows longer than half the table.
    """
    table = _noise_table(key_B.device)
    most = len(table) // 2
    if samples > most:
        raise ValueError(f"white_noise: expected at most {most} time samples, found {samples}")
    places_NT = table[: most + samples - 8].unfold(0, samples, 8)
    start_BC = (uniform(key_B, purpose, channels) * len(places_NT)).long()
    return places_NT.index_select(0, start_BC.flatten()).view(*start_BC.shape, samples)
