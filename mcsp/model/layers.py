"""Layers that all six domain encoders share.

Shape letters: B rows, C channels, A anchors, T time samples, P tokens, D width, H heads, E head width.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mcsp.batch import Signal
from mcsp.config import ModelConfig
from mcsp.schema import BRAIN_CENTRE_MM, BRAIN_HALF_AXES_MM, Modality

# width, depth of each of the six encoders, heads, features per channel before the anchors.
SIZES: dict[str, tuple[int, int, int, int]] = {
    "nano": (96, 2, 4, 8),
    "small": (320, 3, 5, 16),
    "base": (512, 5, 8, 24),
    "large": (768, 7, 12, 32),
    "huge": (1280, 8, 20, 48),
}

# Features per token where h keeps tokens apart. In the spatial domain they are, before training, connectivity to that
# many mixtures of anchors, so fewer than the usual parcellations have networks (17 in Yeo et al., 2011) lose too much;
# 100 anchors at "huge" would otherwise give an h of 16,000.
NARROWEST_RESOLVED, WIDEST_RESOLVED = 16, 64

# Log-power below this (in uV^2/Hz or percent^2/Hz) says "nothing here": flat and masked channels have a floor of -20,
# which would drown everything else in a linear layer.
LOWEST_LOG_POWER = -6.0

# Region that anchors fill: half axes and centre [mm]. Head: the sphere that fits the 10-20 positions of MNE's
# standard_1005 montage best in head coordinates, whose origin lies between the ears. MNI: the ellipsoid of
# mcsp.schema. Width of the Gaussian: about the distance between neighbouring anchors.
_SCALP_RADIUS_MM, _SCALP_CENTRE_MM, _SCALP_LOWEST = 97.0, (0.0, 16.0, 45.0), -0.3
_ANCHOR_SIGMA_MM: dict[Modality, float] = {"eeg": 25.0, "fmri": 12.0}
# At parcels. Where centres are LEAST_DISTANCE_MM apart, each reads its own channel, and 2e-8 of any other.
_PARCEL_SIGMA_MM, LEAST_DISTANCE_MM = 0.5, 3.0


def anchor_positions_mm(modality: Modality, count: int) -> Tensor:
    """Fixed, mirror-symmetric anchor positions, float64 ``(count, 3)``, in head (EEG) or MNI (fMRI) millimetres.

    EEG: rings around the vertex, with points in proportion to their length. fMRI: points of the additive R-sequence in
    the right half of the brain (M. Roberts, 2018: "The unreasonable effectiveness of quasirandom sequences"), and their
    mirror images. ``count`` is even.
    """
    if count % 2:
        raise ValueError(f"anchors: expected an even number (left and right mirror each other), found {count}")
    return _scalp_anchors(count) if modality == "eeg" else _brain_anchors(count)


def _scalp_anchors(count: int) -> Tensor:
    widest = math.acos(_SCALP_LOWEST)
    rings = max(1, round(widest / math.sqrt(2 * math.pi * (1 - _SCALP_LOWEST) / count)))
    polar = [(i + 0.5) / rings * widest for i in range(rings)]
    # Rounded cumulative shares, so that the rings hold `count` points together.
    share = [sum(math.sin(p) for p in polar[: i + 1]) / sum(math.sin(p) for p in polar) for i in range(rings)]
    bounds = [0, *(round(s * count) for s in share)]
    points = []
    for i, p in enumerate(polar):
        on_ring = bounds[i + 1] - bounds[i]
        for k in range(on_ring):
            # From the nose, so that each ring mirrors itself; every other ring is turned by half a step.
            angle = 2 * math.pi * (k + 0.5 * (i % 2)) / on_ring
            points.append((math.sin(p) * math.sin(angle), math.sin(p) * math.cos(angle), math.cos(p)))
    centre = torch.tensor(_SCALP_CENTRE_MM, dtype=torch.float64)
    return centre + _SCALP_RADIUS_MM * torch.tensor(points, dtype=torch.float64)


def _brain_anchors(count: int) -> Tensor:
    golden = 1.22074408460575947536  # the real root of x^4 = x + 1
    points: list[tuple[float, ...]] = []
    n = 0
    while len(points) < count // 2:
        n += 1
        u, v, w = ((0.5 + n * golden**-k) % 1.0 for k in (1, 2, 3))
        x, y, z = u, 2 * v - 1, 2 * w - 1
        if x * x + y * y + z * z <= 1:
            unit = zip((x, y, z), BRAIN_HALF_AXES_MM, BRAIN_CENTRE_MM, strict=True)
            points.append(tuple(centre + axis * s for s, axis, centre in unit))
    half = torch.tensor(points, dtype=torch.float64)
    return torch.cat([half, half * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)])


class AnchorWeights(nn.Module):
    """Gaussian weights from a recording's channels to fixed anchor positions.

    This is how any montage and any parcellation reach one shape; no parameter belongs to a channel name. Rows sum to
    one over channels, so an anchor far from every channel takes the nearest ones. Channels without a position are
    left out; where no channel of a row has one, all count equally. Where the configuration names the parcels of an
    atlas, the positions are theirs: each reads its own channel, and of a recording of another atlas the nearest one.
    """

    anchors_um_A3: Tensor

    def __init__(self, modality: Modality, config: ModelConfig) -> None:
        super().__init__()
        parcels = config.parcels() if modality == "fmri" else ()
        self.sigma_mm = _PARCEL_SIGMA_MM if parcels else _ANCHOR_SIGMA_MM[modality]
        own_mm = torch.tensor(parcels, dtype=torch.float64)
        positions_mm = own_mm if parcels else anchor_positions_mm(modality, config.anchors(modality))
        # Integers, because a cast of the model to bf16 would round floating-point buffers by up to half a millimetre.
        micrometres = (positions_mm * 1000).round().to(torch.int32)
        self.register_buffer("anchors_um_A3", micrometres, persistent=False)

    def forward(self, signal: Signal) -> Tensor:
        """Weights ``(B, A, C)``, float32."""
        # One axis after the other, in place: a sum over three neighbours in memory takes several times as long.
        anchor_3A = (self.anchors_um_A3.float() / 1000).T.contiguous()
        position_3BC = signal.position_BC3.movedim(-1, 0).contiguous()
        x_BAC, y_BAC, z_BAC = (a_A[:, None] - p_BC[:, None] for a_A, p_BC in zip(anchor_3A, position_3BC, strict=True))
        distance2_BAC = x_BAC.square().addcmul_(y_BAC, y_BAC).addcmul_(z_BAC, z_BAC)
        placed_BC = signal.position_valid_BC & signal.channel_valid_BC
        any_placed_B1 = placed_BC.any(1, keepdim=True)
        usable_BC = placed_BC | (signal.channel_valid_BC & ~any_placed_B1)
        logits = distance2_BAC.mul_(torch.where(any_placed_B1[:, :, None], -1 / (2 * self.sigma_mm**2), 0.0))
        # A large finite number keeps rows without any valid channel finite (uniform over padding, which is zero).
        return logits.masked_fill_(~usable_BC[:, None], -1e9).softmax(-1)


def to_grid(signal: Signal, grid_hz: float) -> tuple[Tensor, Tensor]:
    """Interpolate linearly onto a common rate: ``(x_BCT, valid_BT)``; the identity where a row has that rate already.

    A grid point is valid if both of its neighbours are. Band-limiting is the corpus's business: rates far above
    ``grid_hz`` alias.
    """
    rates = signal.sfreq_B
    if bool((rates == grid_hz).all()):
        return signal.x_BCT, signal.time_valid_BT
    n_samples = signal.x_BCT.shape[-1]
    length = max(1, math.floor((n_samples - 1) / float(rates.min()) * grid_hz + 1e-4) + 1)
    device = signal.x_BCT.device
    steps_B1 = (rates.double() / grid_hz).to(device)[:, None]
    place_BT = torch.arange(length, device=device, dtype=torch.float64) * steps_B1
    low_BT = (place_BT + 1e-6).floor().long()
    fraction_BT = (place_BT - low_BT).clamp_min(0).to(signal.x_BCT.dtype)
    high_BT = low_BT + (fraction_BT > 1e-5)
    inside_BT = high_BT < n_samples
    low_BT, high_BT = low_BT.clamp_max(n_samples - 1), high_BT.clamp_max(n_samples - 1)
    valid_BT = inside_BT & signal.time_valid_BT.gather(1, low_BT) & signal.time_valid_BT.gather(1, high_BT)

    def at(index_BT: Tensor) -> Tensor:
        return signal.x_BCT.gather(2, index_BT[:, None].expand(-1, signal.x_BCT.shape[1], -1))

    x_BCT = torch.lerp(at(low_BT), at(high_BT), fraction_BT[:, None])
    return x_BCT * valid_BT[:, None], valid_BT


def at_least(signal: Signal, seconds: float) -> Signal:
    """Pad with invalid time where the batch is shorter than ``seconds``, so that a frame of that length fits."""
    if not seconds:
        return signal  # without waiting for a GPU to tell the rates
    short = math.ceil(seconds * float(signal.sfreq_B.max())) + 1 - signal.x_BCT.shape[-1]
    if short <= 0:
        return signal
    return signal.replace(x_BCT=F.pad(signal.x_BCT, (0, short)), time_valid_BT=F.pad(signal.time_valid_BT, (0, short)))


def centre(x_BCT: Tensor, valid_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Demean each channel over valid time; returns ``(x_BCT, variance BC)``, zero where time is not valid.

    What is not valid in ``x_BCT`` is zero already.
    """
    valid = valid_BT[:, None].to(x_BCT.dtype)
    count = valid.sum(-1, keepdim=True).clamp_min(1)
    mean_BC1 = x_BCT.sum(-1, keepdim=True) / count
    centred_BCT = (x_BCT - mean_BC1).mul_(valid)  # a CPU takes four times as long for both at once, as addcmul does
    return centred_BCT, torch.linalg.vector_norm(centred_BCT, dim=-1).square() / count[..., 0]


def standardise(x_BCT: Tensor, valid_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Demean and scale each channel over valid time; returns ``(x_BCT, log10 standard deviation BC)``.

    The logarithm travels beside the standardised signal, so amplitude is not lost. Flat channels give zeros.
    """
    centred_BCT, variance_BC = centre(x_BCT, valid_BT)
    scale_BC1 = torch.rsqrt(variance_BC + 1e-12)[..., None]
    unit_BCT = centred_BCT * scale_BC1 if centred_BCT.requires_grad else centred_BCT.mul_(scale_BC1)
    return unit_BCT, 0.5 * torch.log10(variance_BC + 1e-6)


def sinusoids(position_P: Tensor, width: int, shortest: float, longest: float) -> Tensor:
    """Sines and cosines of a position, wavelengths from ``shortest`` to ``longest`` in its unit: ``(P, D)``."""
    count = width // 2
    steps = torch.linspace(0, 1, count, device=position_P.device, dtype=torch.float32)
    wavelength = shortest * (longest / shortest) ** steps
    phase_PK = 2 * math.pi * position_P.float()[:, None] / wavelength
    return F.pad(torch.cat([phase_PK.sin(), phase_PK.cos()], -1), (0, width - 2 * count))


class Block(nn.Module):
    """Pre-norm attention and MLP with scaled residual branches that start near the identity (LayerScale,
    arXiv 2103.17239), because what a linear classifier reads from the input must survive the depth."""

    def __init__(self, width: int, heads: int, residual_scale: float = 0.3) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale_attention = nn.Parameter(torch.full((width,), residual_scale))
        self.scale_mlp = nn.Parameter(torch.full((width,), residual_scale))

    def forward(self, x_BPD: Tensor, valid_BP: Tensor) -> Tensor:
        """Attend over the valid tokens; a row without any attends to all of them (they are zero)."""
        q, k, v = rearrange(self.qkv(self.norm_attention(x_BPD)), "b p (n h e) -> n b h p e", n=3, h=self.heads)
        mask = (valid_BP | ~valid_BP.any(1, keepdim=True))[:, None, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x_BPD = x_BPD + self.scale_attention * self.out(rearrange(attended, "b h p e -> b p (h e)"))
        return x_BPD + self.scale_mlp * self.down(F.gelu(self.up(self.norm_mlp(x_BPD))))


class TokenEncoder(nn.Module):
    """Blocks over tokens and a read-out that keeps every token's place: ``(B, P, D) -> h`` for a fixed P.

    No mean pooling: tokens are narrowed one by one and then read together into ``h_BD``. With ``resolved`` they are
    only put side by side, and no norm stands between the sum of all residuals and h: what a linear classifier reads
    from tokens it then reads from h as well, before any training.
    """

    def __init__(self, size: str, n_tokens: int, resolved: bool = False) -> None:
        super().__init__()
        width, depth, heads, _ = SIZES[size]
        narrow = max(8, width // 8)
        if resolved:
            narrow = min(max(narrow, NARROWEST_RESOLVED), WIDEST_RESOLVED)
        self.recompute = False  # keep the input of each block only, and run it again in the backward pass
        scale = 0.1 if resolved else 0.3
        self.blocks = nn.ModuleList(Block(width, heads, scale) for _ in range(depth))
        self.norm = nn.Identity() if resolved else nn.LayerNorm(width)
        self.narrow = nn.Linear(width, narrow)
        self.read = nn.Identity() if resolved else nn.Linear(n_tokens * narrow, width)
        self.h_width = n_tokens * narrow if resolved else width

    def attend(self, x_BPD: Tensor, valid_BP: Tensor) -> Tensor:
        """The blocks alone, ``(B, P, D)``; invalid tokens come out as zero."""
        again = self.recompute and torch.is_grad_enabled()
        for block in self.blocks:
            x_BPD = checkpoint(block, x_BPD, valid_BP, use_reentrant=False) if again else block(x_BPD, valid_BP)
        attended_BPD: Tensor = self.norm(x_BPD) * valid_BP[..., None]
        return attended_BPD

    def forward(self, x_BPD: Tensor, valid_BP: Tensor) -> Tensor:
        """Encode P tokens into ``h_BD``, D being ``h_width``."""
        h_BD: Tensor = self.read(rearrange(self.narrow(self.attend(x_BPD, valid_BP)), "b p k -> b (p k)"))
        return h_BD
