"""The public log-power functions: arguments are checked here, and one of the implementations runs.

Shape letters: B rows, C channels, T time samples, F frequencies, P frames, K bands.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mcsp.kernels.dispatch import Impl, Precision, choose
from mcsp.kernels.spectral import reference
from mcsp.kernels.spectral.reference import Bands

# `auto` takes the fused kernels once they have passed their tests on a GPU; until then one has to ask for them.
TRITON_BY_DEFAULT = False


def log_power(
    x_BCT: Tensor,
    sfreq_B: Tensor,
    freqs_hz_F: Tensor | Sequence[float] | None = None,
    *,
    bands_hz: Bands | None = None,
    time_valid_BT: Tensor | None = None,
    frame_seconds: float | None = None,
    hop_seconds: float | None = None,
    detrend: str = "constant",
    eps: float = 1e-6,
    precision: Precision = "fp32",
    impl: Impl = "auto",
) -> Tensor:
    """Log10 of the power density per channel, averaged over frames (Welch's method), at frequencies or in bands.

    Definition, unit, remaining arguments and errors: :func:`mcsp.kernels.spectral.reference.log_power`.

    Args:
        precision: the least that the transform's product is made with, "fp32", "bf16x3", "tf32" or "bf16", which is off
            by 0.1; the reference always computes in float32 (float64 for float64). kernels/README.md has the table.
        impl: "reference" (any device), "triton" (CUDA and HIP, float32 and below), or "auto".

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
        "detrend": detrend,
        "eps": eps,
    }
    if _chosen("log_power", x_BCT, impl, precision) == "reference":
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
    detrend: str = "constant",
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
        "detrend": detrend,
        "eps": eps,
    }
    if _chosen("log_power_frames", x_BCT, impl, precision) == "reference":
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

    freqs_hz = reference.checked_freqs(freqs_hz_F, options["bands_hz"], options["detrend"])
    return launch.log_density(x_BCT, sfreq_B, freqs_hz, average=average, precision=precision, **options)


def _chosen(operation: str, x_BCT: Tensor, impl: str, precision: str) -> str:
    if impl == "chunked":
        raise ValueError(f"{operation}: impl: expected one of auto, triton, reference, found 'chunked'")
    return choose(operation, impl, precision, True, _no_triton(x_BCT, impl))


def _no_triton(x_BCT: Tensor, impl: str) -> str | None:
    """Why Triton cannot run; None where it can. A Triton that is there and broken is an error, not a reason."""
    if impl == "reference":
        return None
    if impl == "auto" and not TRITON_BY_DEFAULT:
        return "it has not been run on a GPU"
    try:
        from mcsp.kernels.spectral.launch import unavailable
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        return "triton is not installed"
    return unavailable(x_BCT)
