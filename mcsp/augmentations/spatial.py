"""Views in the spatial domain: which channels there are, and where. Pure functions of (signal, strengths, key).

Shape letters: B rows, C channels, T time samples.
"""

import torch
from torch import Tensor

from mcsp.augmentations.random import normal, uniform
from mcsp.batch import Signal
from mcsp.schema import Purpose


def drop_channels(signal: Signal, largest_fraction: float, key_B: Tensor) -> Signal:
    """Mask a random fraction, up to ``largest_fraction``, of each row's channels; one always stays."""
    channels = signal.x_BCT.shape[1]
    fraction_B1 = uniform(key_B, Purpose.DROPPED_FRACTION, 1) * largest_fraction
    draw_BC = uniform(key_B, Purpose.DROPPED_CHANNELS, channels).masked_fill(~signal.channel_valid_BC, -1.0)
    keep_BC = (draw_BC >= fraction_B1) | (draw_BC == draw_BC.amax(1, keepdim=True))
    return signal.replace(
        x_BCT=signal.x_BCT * keep_BC[..., None],
        channel_valid_BC=signal.channel_valid_BC & keep_BC,
        position_valid_BC=signal.position_valid_BC & keep_BC,
    )


def jitter_positions(signal: Signal, sd_mm: float, key_B: Tensor) -> Signal:
    """Move every channel by a Gaussian step: caps sit differently, parcels differ between people."""
    step_BC3 = normal(key_B, Purpose.POSITION, signal.x_BCT.shape[1], 3) * sd_mm
    moved = torch.where(signal.position_valid_BC[..., None], signal.position_BC3 + step_BC3, signal.position_BC3)
    return signal.replace(position_BC3=moved)
