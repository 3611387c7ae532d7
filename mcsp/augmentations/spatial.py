"""Views in the spatial domain: which channels there are, and where. Pure functions of (signal, strengths, key).

Shape letters: B rows, C channels, A anchors.
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


def mask_region(signal: Signal, largest_radius_mm: float, key_B: Tensor) -> Signal:
    """Mask the channels within a random radius of a random channel: a bad cap corner, a dropout of signal in BOLD.

    The channel that is furthest away always stays; channels without a position are left alone.
    """
    placed_BC = signal.position_valid_BC & signal.channel_valid_BC
    draw_BC = uniform(key_B, 108, placed_BC.shape[1]).masked_fill(~placed_BC, -1.0)
    centre_B1 = draw_BC.argmax(1, keepdim=True)
    centre_B13 = signal.position_BC3.gather(1, centre_B1[..., None].expand(-1, -1, 3))
    distance_BC = (signal.position_BC3 - centre_B13).norm(dim=-1).masked_fill(~placed_BC, -1.0)
    radius_B1 = uniform(key_B, 109, 1) * largest_radius_mm
    hidden_BC = placed_BC & (distance_BC < radius_B1) & (distance_BC < distance_BC.amax(1, keepdim=True))
    return _keep(signal, ~hidden_BC)


def kept_edges(key_B: Tensor, anchors: int, fraction: float) -> Tensor:
    """Which connections between anchors stay, bool ``(B, A, A)``, symmetric; ``fraction`` of them are dropped."""
    draw_BAA = uniform(key_B, 110, anchors, anchors).triu(1)
    return (draw_BAA + draw_BAA.mT) >= fraction


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
