"""Starts the fused kernels and gives them a gradient; the only importer of ``fused``.

Shape letters: B rows, C channels, T time samples, P frames, F frequencies, K bands.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mcsp.kernels.spectral import fused
from mcsp.kernels.spectral.framing import FLAT_POWER
from mcsp.kernels.spectral.tables import FrameTables, frame_tables

# How the product is computed, on CUDA and on HIP. "x3" multiplies numbers split in two, as exact as float32 with TF32;
# CDNA3 has no such TF32, so bfloat16 in six products stands in.
PRECISIONS = {"fp32": ("tf32x3", "bf16x6"), "bf16x3": ("bf16x3", "bf16x3"), "tf32": ("tf32", "tf32")}
BLOCK_FREQS, BLOCK_TIME = 64, 16


def launch_options(channels: int, hip: bool) -> dict[str, Any]:
    """Channels per program and compiler options; every value is compiled ahead of time for all targets in the tests.

    More channels per warp do not fit the registers of sm_80 and sm_90 (HIP warps have twice the threads).
    """
    size = {"BC": 16, "num_warps": 4} if channels <= 16 else {"BC": 32, "num_warps": 4 if hip else 8}
    return size | {"enable_fp_fusion": True}


def unavailable(x_BCT: Tensor) -> str | None:
    """Why the kernels cannot take this tensor, or None."""
    if x_BCT.dtype == torch.float64 or not x_BCT.is_floating_point():
        return f"expected float32, float16 or bfloat16, found {x_BCT.dtype}"
    if x_BCT.device.type == "cpu" and not fused.INTERPRETED:
        return "expected a tensor on a GPU, found cpu"
    return None


class DensityFunction(torch.autograd.Function):
    """``(x_BCT, tables, ...) -> (B, C, P or 1, F)``: density plus ``eps`` times the level, or log10 of it."""

    @staticmethod
    def forward(ctx: Any, x_BCT: Tensor, tables: FrameTables, eps: float, log_floor: float, precision: str) -> Tensor:
        """``log_floor``: what is added before the logarithm; 0 leaves the logarithm out."""
        x_BCT = x_BCT if x_BCT.stride(2) == 1 else x_BCT.contiguous()
        rows, channels, times = x_BCT.shape
        frames = tables.frames
        out = x_BCT.new_empty(rows, channels, frames // tables.averaged, tables.n_freqs, dtype=torch.float32)
        hip = torch.version.hip is not None
        options = launch_options(channels, hip)
        grid = (rows, -(-channels // options["BC"]), out.shape[2] * (tables.padded_freqs // BLOCK_FREQS))
        shared = {
            "P": frames, "FP": tables.padded_freqs, "LP": tables.padded_length, "BF": BLOCK_FREQS, "BT": BLOCK_TIME,
            "LINEAR": tables.linear, "PRECISION": PRECISIONS[precision][hip] if not fused.INTERPRETED else "ieee",
            **options,
        }  # fmt: skip
        strides = (channels, times, x_BCT.stride(0), x_BCT.stride(1))
        both = {"FRAMES": tables.averaged, "F": tables.n_freqs, "LOG": log_floor > 0}
        fused.forward_kernel[grid](x_BCT, *tables.for_frames(), out, *strides, eps, log_floor, **shared, **both)
        ctx.save_for_backward(x_BCT, out if log_floor > 0 else out.new_empty(1))
        ctx.tables, ctx.eps, ctx.shared, ctx.both, ctx.strides = tables, eps, shared, both, strides
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """Two kernels; the gradient at the frequencies, (B, C, P, 2 F), lives only here."""
        x_BCT, out = ctx.saved_tensors
        tables: FrameTables = ctx.tables
        rows, channels, times = x_BCT.shape
        work = x_BCT.new_empty(rows, channels, tables.frames, 2 * tables.padded_freqs, dtype=torch.float32)
        stats = work.new_empty(rows, channels, tables.frames, 5)
        grad_x = torch.empty_like(x_BCT, memory_format=torch.contiguous_format)
        blocks = -(-channels // ctx.shared["BC"])
        fused.frequency_gradient_kernel[(rows, blocks, tables.frames)](
            x_BCT, *tables.for_frames(), out, grad_out.contiguous(), work, stats, *ctx.strides,
            ctx.eps, **ctx.shared, **ctx.both,
        )  # fmt: skip
        fused.sample_gradient_kernel[(rows, blocks, -(-times // BLOCK_TIME))](
            x_BCT, *tables.for_samples(), work, stats, grad_x, *ctx.strides, COVER=tables.cover(BLOCK_TIME),
            **ctx.shared,
        )  # fmt: skip
        return grad_x, None, None, None, None


def log_density(
    x_BCT: Tensor,
    sfreq_B: Tensor,
    freqs_F: Tensor | None,
    bands_hz: Sequence[tuple[float, float]] | None,
    *,
    time_valid_BT: Tensor | None,
    frame_seconds: float | None,
    hop_seconds: float | None,
    detrend: str,
    eps: float,
    average: bool,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """``(B, C, P, F or K)`` log-power, with P = 1 for the ``average`` over frames, and which frames count ``(B, P)``.

    Arguments, unit and errors as :func:`reference.log_power`; ``precision`` is a key of PRECISIONS.
    """
    multiples = (BLOCK_TIME, BLOCK_FREQS)
    frame = (time_valid_BT, frame_seconds, hop_seconds)
    tables = frame_tables(x_BCT, sfreq_B, freqs_F, bands_hz, *frame, detrend, average, multiples)
    log_floor = FLAT_POWER if tables.pool_BFK is None else 0.0
    out_BCPF = DensityFunction.apply(x_BCT, tables, eps, log_floor, precision)
    if tables.pool_BFK is not None:
        with torch.autocast(x_BCT.device.type, enabled=False):
            out_BCPF = torch.log10(out_BCPF @ tables.pool_BFK[:, None] + FLAT_POWER)
    return out_BCPF, tables.share_BP > 0
