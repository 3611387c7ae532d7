"""The public log-power functions: arguments are checked here, and one of the implementations runs.

Shape letters: B rows, C channels, T time samples, F frequencies, P frames, K bands.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mcsp.kernels import dispatch
from mcsp.kernels.dispatch import Impl, Precision
from mcsp.kernels.spectral import reference
from mcsp.kernels.spectral.framing import on_host
from mcsp.kernels.spectral.reference import Bands


def log_power(
    x_BCT: Tensor,
    sfreq_B: Tensor,
    freqs_hz_F: Tensor | Sequence[float] | None = None,
    *,
    bands_hz: Bands | None = None,
    time_valid_BT: Tensor | None = None,
    frame_seconds: float | None = None,
    hop_seconds: float | None = None,
    eps: float = 1e-6,
    precision: Precision = "fp32",
    impl: Impl = "auto",
) -> Tensor:
    """Log10 of the power density per channel, averaged over frames (Welch's method), at frequencies or in bands.

    Definition, unit, remaining arguments and errors: :func:`mcsp.kernels.spectral.reference.log_power`.

    Args:
        precision: the least that the product of Triton's transform is made with, "fp32", "bf16x3", "tf32" or "bf16",
            which is off by 0.1; kernels/README.md has the table. Gradients are always those of the reference.
        impl: "reference" (any device), "triton" (NVIDIA GPUs, float32 and below), or "auto".

    Returns:
        (B, C, F) in unit^2/Hz, or (B, C, K).

    Raises:
        ValueError: arguments that do not fit, or an ``impl`` that cannot run here, with the reason.
    """
    options: dict[str, Any] = {
        "bands_hz": bands_hz,
        "time_valid_BT": time_valid_BT,
        "frame_seconds": frame_seconds,
        "hop_seconds": hop_seconds,
        "eps": eps,
    }
    if _chosen("log_power", x_BCT, sfreq_B, frame_seconds, impl, precision) == "reference":
        return reference.log_power(x_BCT, sfreq_B, freqs_hz_F, **options)
    return _fused(x_BCT, sfreq_B, freqs_hz_F, options, True, precision)[0][:, :, 0]


def log_power_frames(
    x_BCT: Tensor,
    sfreq_B: Tensor,
    freqs_hz_F: Tensor | Sequence[float] | None = None,
    *,
    frame_seconds: float,
    bands_hz: Bands | None = None,
    hop_seconds: float | None = None,
    time_valid_BT: Tensor | None = None,
    eps: float = 1e-6,
    precision: Precision = "fp32",
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Log10 of the power density per channel and frame; arguments, unit and errors as in :func:`log_power`.

    Returns:
        (B, C, P, F) or (B, C, P, K) log-power, -20 where a frame is not valid, and (B, P) bool, True where all
        samples of a frame are valid.
    """
    options: dict[str, Any] = {
        "bands_hz": bands_hz,
        "time_valid_BT": time_valid_BT,
        "frame_seconds": frame_seconds,
        "hop_seconds": hop_seconds,
        "eps": eps,
    }
    if _chosen("log_power_frames", x_BCT, sfreq_B, frame_seconds, impl, precision) == "reference":
        return reference.log_power_frames(x_BCT, sfreq_B, freqs_hz_F, **options)
    return _fused(x_BCT, sfreq_B, freqs_hz_F, options, False, precision)


def _fused(
    x_BCT: Tensor,
    sfreq_B: Tensor,
    freqs_hz_F: Tensor | Sequence[float] | None,
    options: dict[str, Any],
    average: bool,
    precision: str,
) -> tuple[Tensor, Tensor]:
    from mcsp.kernels.spectral import launch

    freqs_hz = reference.checked_freqs(freqs_hz_F, options["bands_hz"])
    return launch.log_density(x_BCT, sfreq_B, freqs_hz, average=average, precision=precision, **options)


def _chosen(
    operation: str, x_BCT: Tensor, sfreq_B: Tensor, frame_seconds: float | None, impl: str, precision: str
) -> str:
    if impl == "blocks":
        raise ValueError(f"{operation}: impl: expected one of auto, triton, reference, found 'blocks'")
    longest = x_BCT.shape[-1] if frame_seconds is None else int(frame_seconds * max(on_host(sfreq_B), default=0))
    return dispatch.choose(operation, impl, precision, x_BCT.device, longest, lambda: _no_triton(x_BCT))


def _no_triton(x_BCT: Tensor) -> str | None:
    if x_BCT.dtype == torch.float64 or not x_BCT.is_floating_point():
        return f"expected float32, float16 or bfloat16, found {x_BCT.dtype}"
    return dispatch.no_package() or dispatch.no_gpu(x_BCT.device)
