"""Views in the spatial domain: which channels there are, and where. Pure functions of (signal, strengths, key).

Shape letters: B rows, C channels.
"""

import torch
from torch import Tensor

from mcsp.augmentations.random import normal, uniform
from mcsp.batch import Signal


def drop_channels(signal: Signal, largest_fraction: float, key_B: Tensor) -> Signal:
    """Mask a random fraction, up to ``largest_fraction``, of each row's channels; one always stays."""
    channels = signal.x_BCT.shape[1]
    fraction_B1 = uniform(key_B, 101, 1) * largest_fraction
    draw_BC = uniform(key_B, 102, channels).masked_fill(~signal.channel_valid_BC, -1.0)
    keep_BC = (draw_BC >= fraction_B1) | (draw_BC == draw_BC.amax(1, keepdim=True))
    return _keep(signal, keep_BC)


def channel_half(signal: Signal, which_B: Tensor, key_B: Tensor) -> Signal:
    """Keep one half of each row's channels; the same ``key_B`` with ``which_B`` False and True gives disjoint halves.

    The partition is random. Channels with a position are shared out first, so each half holds as many as the other up
    to one; a row with a single channel keeps it in both.
    """
    channels = signal.x_BCT.shape[1]
    draw_BC = uniform(key_B, 105, channels)
    # Placed channels sort before the others, and those before channels that are not valid.
    draw_BC = draw_BC + (~signal.position_valid_BC).float() + 2 * (~signal.channel_valid_BC).float()
    rank_BC = draw_BC.argsort(dim=1).argsort(dim=1)
    alone_B1 = signal.channel_valid_BC.sum(1, keepdim=True) < 2
    return _keep(signal, (rank_BC % 2 == which_B.long()[:, None]) | alone_B1)


def _keep(signal: Signal, keep_BC: Tensor) -> Signal:
    return signal.replace(
        x_BCT=signal.x_BCT * keep_BC[..., None],
        channel_valid_BC=signal.channel_valid_BC & keep_BC,
        position_valid_BC=signal.position_valid_BC & keep_BC,
    )


def jitter_positions(signal: Signal, sd_mm: float, key_B: Tensor) -> Signal:
    """Move every channel by a Gaussian step: caps sit differently, parcels differ between people."""
    step_BC3 = normal(key_B, 103, signal.x_BCT.shape[1], 3) * sd_mm
    moved = torch.where(signal.position_valid_BC[..., None], signal.position_BC3 + step_BC3, signal.position_BC3)
    return signal.replace(position_BC3=moved)
