"""Starts the kernels around a library FFT and gives them a gradient.

Shape letters: B rows, C channels, T time samples, P frames, N samples of a transform, F frequencies, K bands.
"""

from typing import Any

import torch
from torch import Tensor

from mcsp.kernels.spectral import fused_fft
from mcsp.kernels.spectral.fft_tables import FftTables
from mcsp.kernels.spectral.framing import FLAT_POWER
from mcsp.kernels.spectral.tables import FrameTables, Request

BLOCK, BLOCK_BINS = 1024, 256
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": True}


class FftFunction(torch.autograd.Function):
    """``(x_BCT, tables, ...) -> (B, C, P or 1, F or K)``: log10 of the density and its floor, by FFT in float32."""

    @staticmethod
    def forward(
        ctx: Any, x_BCT: Tensor, request: Request, frames: FrameTables, fft: FftTables, linear: bool, eps: float,
        gaps: bool,
    ) -> Tensor:  # fmt: skip
        """Two launches around one FFT per kind of row; ``gaps``: whether frames may have samples that do not count."""
        rows, channels, _ = x_BCT.shape
        out = x_BCT.new_empty(rows, channels, frames.frames // frames.averaged, request.outputs, dtype=torch.float32)
        spectrum, stats = transformed(x_BCT, frames, fft, linear, gaps)
        parts = request.outputs if fft.widest else -(-request.outputs // BLOCK_BINS)
        fused_fft.power_kernel[(rows * channels, out.shape[2], parts)](
            spectrum, frames.rows_B4, fft.place_B4, frames.count_BP, frames.share_BP, frames.level_B, fft.bins, stats,
            out, channels, eps, FLAT_POWER, P=frames.frames, FRAMES=frames.averaged, OUT=request.outputs,
            WIDEST=fft.widest, BF=BLOCK_BINS, **OPTIONS,
        )  # fmt: skip
        ctx.save_for_backward(x_BCT, out)
        ctx.tables, ctx.linear, ctx.eps, ctx.gaps = (request, frames, fft), linear, eps, gaps
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """The frames are transformed again; gradients take the places of spectra and frames."""
        x_BCT, out = ctx.saved_tensors
        request, frames, fft = ctx.tables
        rows, channels, times = x_BCT.shape
        grad_out = grad_out.contiguous()
        spectrum, stats = transformed(x_BCT, frames, fft, ctx.linear, ctx.gaps)
        shared = {"P": frames.frames, "FRAMES": frames.averaged, "OUT": request.outputs, "BF": BLOCK_BINS, **OPTIONS}
        signals = rows * channels
        fused_fft.spectrum_gradient_kernel[(signals, frames.frames, -(-fft.most_bins // BLOCK_BINS))](
            spectrum, frames.rows_B4, fft.place_B4, frames.share_BP, fft.bins, fft.inverse, stats, out, grad_out,
            channels, fft.most_bins, WIDEST=fft.widest, **shared,
        )  # fmt: skip
        grad_frames = _inverse(spectrum, fft, channels)
        strides = (x_BCT.stride(0), x_BCT.stride(1), frames.valid_stride)
        fused_fft.frame_gradient_kernel[(signals, frames.frames)](
            x_BCT, frames.valid_BT, frames.rows_B4, fft.place_B4, frames.count_BP, frames.share_BP, frames.level_B,
            frames.window_WL, frames.line_WL, grad_frames, stats, out, grad_out, channels, *strides, ctx.eps,
            LP=frames.padded_length, BT=BLOCK, LINEAR=ctx.linear, WRAPPED=fft.wrapped, **shared,
        )  # fmt: skip
        grad_x = torch.empty_like(x_BCT, memory_format=torch.contiguous_format)
        fused_fft.gather_kernel[(signals, -(-times // BLOCK))](
            frames.valid_BT, frames.rows_B4, fft.place_B4, frames.share_BP, grad_frames, grad_x, channels, times,
            frames.valid_stride, P=frames.frames, COVER=request.most_over(BLOCK), BT=BLOCK, WRAPPED=fft.wrapped,
            **OPTIONS,
        )  # fmt: skip
        return grad_x, *[None] * 6


def transformed(x_BCT: Tensor, frames: FrameTables, fft: FftTables, linear: bool, gaps: bool) -> tuple[Tensor, Tensor]:
    """Spectra of all frames one after another, complex, and four numbers per frame ``(B, C, P, 4)``."""
    rows, channels, _ = x_BCT.shape
    # Frames that do not count stay as they are: nobody looks at their spectra.
    make = x_BCT.new_zeros if gaps or fft.padded else x_BCT.new_empty
    work = make(fft.samples, dtype=torch.float32)
    stats = work.new_empty(rows, channels, frames.frames, 4)
    fused_fft.frame_kernel[(rows * channels, frames.frames)](
        x_BCT, frames.valid_BT, frames.rows_B4, fft.place_B4, frames.count_BP, frames.share_BP, frames.window_WL,
        frames.line_WL, work, stats, channels, x_BCT.stride(0), x_BCT.stride(1), frames.valid_stride,
        P=frames.frames, LP=frames.padded_length, BT=BLOCK, LINEAR=linear, WRAPPED=fft.wrapped, **OPTIONS,
    )  # fmt: skip
    parts = []
    for group in fft.groups:
        part = work[group.start : group.start + group.samples(channels)]
        parts.append(torch.view_as_real(torch.fft.rfft(part.view(-1, group.length))).flatten())
    return parts[0] if len(parts) == 1 else torch.cat(parts), stats


def _inverse(spectrum: Tensor, fft: FftTables, channels: int) -> Tensor:
    """Adjoint of the transform of all frames, from gradients that are halved where it counts a bin twice."""
    parts, start = [], 0
    for group in fft.groups:
        bins = group.length // 2 + 1
        end = start + 2 * bins * group.samples(channels) // group.length
        part = torch.view_as_complex(spectrum[start:end].view(-1, bins, 2))
        parts.append(torch.fft.irfft(part, n=group.length, norm="forward").flatten())
        start = end
    return parts[0] if len(parts) == 1 else torch.cat(parts)
