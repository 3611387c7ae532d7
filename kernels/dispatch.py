"""Which implementation of an operation runs: by device, size and precision, from one table.

Each row names the file in benchmarks/results/ that justifies it. A device that no file speaks of takes the safe row.
"""

import importlib.util
import logging
import os
from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple, get_args

import torch

Impl = Literal["auto", "triton", "blocks", "reference"]
Precision = Literal["bf16", "tf32", "bf16x3", "fp32"]

_log = logging.getLogger(__name__)
_announced: set[tuple[str, ...]] = set()


class Row(NamedTuple):
    """One decision: the first row that fits is taken."""

    operation: str
    device: str  # "cpu", "sm_90" and so on, or "*" for any
    precisions: tuple[str, ...]  # of products; () for any
    most: int | None  # the largest size that the row is for, in what the operation counts; None: any
    impl: str
    evidence: str | None  # file in benchmarks/results/; None: the safe row


# Sizes: similarities (n N) of a pair for the losses, samples of the longest frame for spectra.
TABLE = (
    Row("contrastive_loss", "cpu", (), 2**13, "reference", "contrastive_cpu_202611.json"),
    Row("contrastive_loss", "cpu", (), None, "blocks", "contrastive_cpu_202611.json"),
    Row("contrastive_loss", "*", (), None, "blocks", None),
    Row("relational_distillation", "cpu", (), 2**13, "reference", "contrastive_cpu_202611.json"),
    Row("relational_distillation", "*", (), None, "blocks", None),
    Row("log_power", "*", (), None, "reference", None),
    Row("log_power_frames", "*", (), None, "reference", None),
)
# Memory for blocks of similarities [bytes]. A CPU's fits into a core's second-level cache beside what it is made of.
WORKSPACE_BYTES = {"cpu": 3 * 2**20}
WORKSPACE_BYTES_ELSEWHERE = 2**30


def choose(
    operation: str, impl: str, precision: str, device: torch.device, size: int, no_triton: Callable[[], str | None]
) -> str:
    """The implementation that runs: "triton", "blocks" or "reference".

    Args:
        operation: as in the table; also for the log and for errors.
        impl: "auto" takes the table's, or the safe row's where that cannot run.
        precision: of products.
        device: of the operands.
        size: what the operation counts, see the table.
        no_triton: why Triton cannot run here, None where it can; asked only where it would run.

    Raises:
        ValueError: unknown names, or an ``impl`` that cannot run here, with the reason.
    """
    for name, value, known in (("impl", impl, get_args(Impl)), ("precision", precision, get_args(Precision))):
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, found {value!r}")
    chosen = decided(operation, device_name(device), precision, size) if impl == "auto" else impl
    if chosen == "triton" and (reason := no_triton()):
        if impl != "auto":
            raise ValueError(f"{operation}: impl={impl!r} cannot run: {reason}")
        chosen = decided(operation, "*", precision, size)
    _announce(operation, chosen, precision)
    return chosen


def decided(operation: str, device: str, precision: str, size: int, table: tuple[Row, ...] | None = None) -> str:
    """The implementation of the first row that fits."""
    return next(
        row.impl
        for row in table or TABLE
        if row.operation == operation
        and row.device in (device, "*")
        and (not row.precisions or precision in row.precisions)
        and (row.most is None or size <= row.most)
    )


def device_name(device: torch.device) -> str:
    """ "sm_90" and so on for NVIDIA GPUs, else the type of the device."""
    if device.type != "cuda" or torch.version.hip is not None or not torch.cuda.is_available():
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@cache
def no_package() -> str | None:
    """Why there is no Triton; None where there is."""
    try:
        return "triton is not installed" if importlib.util.find_spec("triton") is None else None
    except ModuleNotFoundError:
        return "triton is not installed"


def no_gpu(device: torch.device) -> str | None:
    """Why Triton cannot run on this device; None where it can, as anywhere under its interpreter."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device.type != "cuda" or torch.version.hip is not None:
        return f"expected a tensor on an NVIDIA GPU, found {device}"
    capability = torch.cuda.get_device_capability(device)
    return None if capability >= (8, 0) else f"expected compute capability 8.0 or newer, found {capability}"


def workspace(device: torch.device) -> int:
    """Memory for blocks of similarities [bytes] where nobody asks for another."""
    return WORKSPACE_BYTES.get(device.type, WORKSPACE_BYTES_ELSEWHERE)


def _announce(*what: str) -> None:
    """Once for each operation, implementation and precision; a cached function could not be compiled."""
    if what not in _announced:
        _announced.add(what)
        _log.info("%s runs as %s (precision %s)", *what)
