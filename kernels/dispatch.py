"""Which implementation of a kernel runs: one place decides, and says once what it decided."""

import logging
from functools import cache
from typing import Literal, get_args

Impl = Literal["auto", "triton", "chunked", "reference"]
Precision = Literal["bf16", "tf32", "bf16x3", "fp32"]

_log = logging.getLogger(__name__)


def choose(operation: str, impl: str, precision: str, small: bool, no_triton: str | None = None) -> str:
    """The implementation that runs: "triton", "chunked" or "reference".

    Args:
        operation: name for the log and for errors.
        impl: "auto" takes Triton where nothing forbids it, else "reference" for small inputs and "chunked" for others.
        precision: only checked.
        small: whether the dense reference is the faster one and its memory is affordable.
        no_triton: why Triton cannot run, None where it can.

    Raises:
        ValueError: unknown names, or ``impl="triton"`` where it cannot run, with the reason.
    """
    for name, value, known in (("impl", impl, get_args(Impl)), ("precision", precision, get_args(Precision))):
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, found {value!r}")
    if impl == "triton" and no_triton is not None:
        raise ValueError(f"{operation}: impl='triton' cannot run: {no_triton}")
    chosen = impl
    if impl == "auto":
        chosen = "triton" if no_triton is None else "reference" if small else "chunked"
    _announce(operation, chosen, precision)
    return chosen


@cache
def _announce(operation: str, chosen: str, precision: str) -> None:
    _log.info("%s runs as %s (precision %s)", operation, chosen, precision)
