"""Starts the fused kernel and gives it a gradient.

Shape letters: B rows, C channels, T time samples, P frames, F frequencies, K bands.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mcsp.kernels.spectral import fused, reference
from mcsp.kernels.spectral.framing import FLAT_POWER, planned_rows
from mcsp.kernels.spectral.tables import FrameTables, ProductTables, Request, frame_tables, product_tables

# How the product is computed. "x3" multiplies numbers split in two, as exact as float32 with TF32.
PRECISIONS = {"fp32": "tf32x3", "bf16x3": "bf16x3", "tf32": "tf32", "bf16": "bf16"}
BLOCK_FREQS, BLOCK_TIME = 64, 64 if fused.INTERPRETED else 16


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
        ctx: Any, x_BCT: Tensor, request: Request, frames: FrameTables, product: ProductTables, eps: float,
        precision: str, definition: Callable[[Tensor], Tensor], *given: Tensor,
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
        fused.forward_kernel[grid](
            x_BCT, frames.valid_BT, frames.rows_B4, frames.count_BP, frames.share_BP, frames.level_B,
            frames.window_WL, frames.line_W2, product.basis_GL2F, product.line_W2F, product.pool_GFK, out,
            channels, x_BCT.stride(0), x_BCT.stride(1), frames.valid_stride, eps, FLAT_POWER,
            P=frames.frames, FRAMES=frames.averaged, OUT=request.outputs, FP=product.padded_freqs,
            KP=product.padded_bands, LP=frames.padded_length, BF=BLOCK_FREQS, BT=BLOCK_TIME, PRECISION=named, **options,
        )  # fmt: skip
        ctx.save_for_backward(x_BCT, *given)
        ctx.definition = definition
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """That of the definition, in float64: a gradient has the transform over its square."""
        # The definition has the rates and mask; asking for them finds out whether they were changed since.
        x_BCT, *given = ctx.saved_tensors
        x_BCT = x_BCT.detach().requires_grad_()
        with torch.enable_grad():
            (grad_x,) = torch.autograd.grad(ctx.definition(x_BCT), x_BCT, grad_out)
        return grad_x, *[None] * (6 + len(given))


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
    options = {"bands_hz": bands_hz, "time_valid_BT": time_valid_BT, "frame_seconds": frame_seconds}
    options |= {"hop_seconds": hop_seconds, "eps": eps}

    def definition(x_BCT: Tensor) -> Tensor:
        if average:
            return reference.log_power(x_BCT, sfreq_B, freqs_hz, **options)[:, :, None]  # type: ignore[arg-type]
        return reference.log_power_frames(x_BCT, sfreq_B, freqs_hz, **options)[0]  # type: ignore[arg-type]

    given = (sfreq_B,) if time_valid_BT is None else (sfreq_B, time_valid_BT)
    out = ProductFunction.apply(x_BCT, request, frames, product, eps, precision, definition, *given)
    return out, frames.share_BP > 0
