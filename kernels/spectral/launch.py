"""Starts the fused kernels and gives them a gradient.

Shape letters: B rows, C channels, T time samples, P frames, F frequencies, K bands.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mcsp.kernels.spectral import fused
from mcsp.kernels.spectral.framing import FLAT_POWER, planned_rows
from mcsp.kernels.spectral.tables import FrameTables, ProductTables, Request, frame_tables, product_tables

# How the product is computed. "x3" multiplies numbers split in two, as exact as float32 with TF32.
PRECISIONS = {"fp32": "tf32x3", "bf16x3": "bf16x3", "tf32": "tf32", "bf16": "bf16"}
BLOCK_FREQS, BLOCK_TIME = 64, 64 if fused.INTERPRETED else 16
# Frequencies per step of the gather: numbers that are split in two take twice the registers, and shorter steps of
# those that are not are unrolled until they take more.
GATHER_FREQS = {"fp32": 32, "bf16x3": 32, "tf32": 64, "bf16": 64}


def launch_options(channels: int) -> dict[str, Any]:
    """Channels per program and compiler options; every value is compiled ahead of time for all targets in the tests.

    More channels per warp do not fit the registers of sm_80 and sm_90. A thread may have all the registers that there
    are: without a word ptxas may take 168, so that three blocks fit, and spill the rest.
    """
    size = {"BC": 16, "num_warps": 4} if channels <= 16 else {"BC": 32, "num_warps": 8}
    return size | {"maxnreg": 255, "enable_fp_fusion": True}


class ProductFunction(torch.autograd.Function):
    """``(x_BCT, tables, ...) -> (B, C, P or 1, F or K)``: log10 of the density and its floor, by matrix products."""

    @staticmethod
    def forward(
        ctx: Any, x_BCT: Tensor, request: Request, frames: FrameTables, product: ProductTables,
        eps: float, precision: str,
    ) -> Tensor:  # fmt: skip
        """One launch."""
        rows, channels, _ = x_BCT.shape
        out = x_BCT.new_empty(rows, channels, frames.frames // frames.averaged, request.outputs, dtype=torch.float32)
        options = launch_options(channels)
        blocks = 1 if product.padded_bands else product.padded_freqs // BLOCK_FREQS
        grid = (rows, -(-channels // options["BC"]), out.shape[2] * blocks)
        named = PRECISIONS[precision]
        if fused.INTERPRETED and named != "bf16":  # which multiplies in float32 whatever is asked for
            named = "ieee"
        shared = {
            "P": frames.frames, "FP": product.padded_freqs, "LP": frames.padded_length, "BF": BLOCK_FREQS,
            "BT": BLOCK_TIME, "PRECISION": named, **options,
        }  # fmt: skip
        strides = (x_BCT.stride(0), x_BCT.stride(1), frames.valid_stride)
        both = {"FRAMES": frames.averaged, "OUT": request.outputs, "KP": product.padded_bands}
        tables = (
            frames.valid_BT, frames.rows_B4, frames.count_BP, frames.share_BP, frames.level_B, frames.window_WL,
            product.basis_GL2F, product.sums_W2F, product.pool_GFK,
        )  # fmt: skip
        fused.forward_kernel[grid](x_BCT, *tables, out, channels, *strides, eps, FLAT_POWER, **shared, **both)
        ctx.save_for_backward(x_BCT, out)
        ctx.tables, ctx.strides, ctx.eps, ctx.shared, ctx.both = tables, strides, eps, shared, both
        ctx.cover, ctx.precision = request.most_over(BLOCK_TIME), precision
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """Two launches; the gradient at the frequencies, (B, C, P, 2 F), lives only here."""
        x_BCT, out = ctx.saved_tensors
        valid, rows_table, _, share, _, window, basis, _, _ = ctx.tables
        rows, channels, times = x_BCT.shape
        frames = ctx.shared["P"]
        work = x_BCT.new_empty(rows, channels, frames, 2 * ctx.shared["FP"], dtype=torch.float32)
        stats = work.new_empty(rows, channels, frames, 3)
        grad_x = torch.empty_like(x_BCT, memory_format=torch.contiguous_format)
        blocks = -(-channels // ctx.shared["BC"])
        fused.frequency_gradient_kernel[(rows, blocks, frames)](
            x_BCT, *ctx.tables, out, grad_out.contiguous(), work, stats, channels, *ctx.strides, ctx.eps,
            **ctx.shared, **ctx.both,
        )  # fmt: skip
        fused.sample_gradient_kernel[(rows, blocks, -(-times // BLOCK_TIME))](
            x_BCT, valid, rows_table, share, window, basis, work, stats, grad_x, channels, times, *ctx.strides,
            COVER=ctx.cover, **ctx.shared | {"BF": GATHER_FREQS[ctx.precision]},
        )  # fmt: skip
        return grad_x, *[None] * 5


def log_density(
    x_BCT: Tensor,
    sfreq_B: Tensor,
    freqs_hz: tuple[float, ...] | None,
    bands_hz: Sequence[tuple[float, float]] | None,
    *,
    time_valid_BT: Tensor | None,
    frame_seconds: float | None,
    hop_seconds: float | None,
    eps: float,
    average: bool,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """``(B, C, P, F or K)`` log-power, with P = 1 for the ``average`` over frames, and which frames count ``(B, P)``.

    Arguments, unit and errors as :func:`reference.log_power`; ``precision`` is a key of PRECISIONS.
    """
    plan = planned_rows(x_BCT, sfreq_B, time_valid_BT, frame_seconds, hop_seconds, bands_hz is not None)
    x_BCT = x_BCT if x_BCT.stride(2) == 1 else x_BCT.contiguous()
    request = Request(
        rows=tuple(plan),
        n_times=x_BCT.shape[2],
        framed=frame_seconds is not None,
        freqs=freqs_hz,
        bands=None if bands_hz is None else tuple((low, high) for low, high in bands_hz),
        average=average,
        multiple=BLOCK_TIME,
        device=x_BCT.device,
    )
    frames = frame_tables(request, time_valid_BT)
    product = product_tables(request, frames, BLOCK_FREQS)
    return ProductFunction.apply(x_BCT, request, frames, product, eps, precision), frames.share_BP > 0
