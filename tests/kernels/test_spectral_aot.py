"""The fused spectral kernels compiled ahead of time: no GPU is needed to see what would run on one."""

import itertools
import os
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

from mcsp.kernels.spectral import fused, launch  # noqa: E402
from tests.kernels.ahead_of_time import SHARED_BYTES, build, check  # noqa: E402

POINTERS = {"valid_ptr": "*u8", "rows_ptr": "*i32"}
SCALARS = {"eps": "fp32", "flat": "fp32"} | dict.fromkeys(("C", "T", "stride_b", "stride_c", "stride_valid"), "i32")
PRODUCT = (fused.forward_kernel, fused.frequency_gradient_kernel, fused.sample_gradient_kernel)
# Frames of 2 s at 200 Hz in 5 bands, averaged; a BOLD window of 295 volumes.
SHAPES = {
    "eeg": {"P": 29, "FRAMES": 29, "OUT": 5, "FP": 128, "KP": 16, "LP": 416, "COVER": 3},
    "bold": {"P": 1, "FRAMES": 1, "OUT": 25, "FP": 64, "KP": 0, "LP": 320, "COVER": 1},
}


def compiled(kernel: Any, target: str, values: dict[str, Any], options: dict[str, Any]) -> Any:
    types = {name: SCALARS.get(name) or POINTERS.get(name, "*fp32") for name in kernel.arg_names}
    return build(kernel, target, types, values, options)


def check_product(kernel: Any, target: str, shape: str, channels: int, precision: str, folder: Path) -> None:
    options = launch.launch_options(channels)
    values = SHAPES[shape] | {"BC": options.pop("BC"), "BF": launch.BLOCK_FREQS, "BT": launch.BLOCK_TIME}
    if kernel is fused.sample_gradient_kernel:
        values["BF"] = launch.GATHER_FREQS[precision]
    values["PRECISION"] = launch.PRECISIONS[precision]
    check(compiled(kernel, target, values, options), target, folder, products=True)


FEW = [
    *itertools.product(PRODUCT, ["sm_90"], ["eeg"], [19], ["fp32"]),
    *itertools.product(PRODUCT[:2], ["sm_80"], ["bold"], [16], ["bf16"]),
    *itertools.product(PRODUCT[1:], ["sm_100"], ["bold"], [400], ["bf16x3"]),
]


@pytest.mark.parametrize(("kernel", "target", "shape", "channels", "precision"), FEW)
def test_compiles_within_the_target(
    kernel: Any, target: str, shape: str, channels: int, precision: str, tmp_path: Path
) -> None:
    check_product(kernel, target, shape, channels, precision, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [16, 400])
@pytest.mark.parametrize("precision", launch.PRECISIONS)
@pytest.mark.parametrize("target", SHARED_BYTES)
def test_every_entry_of_the_table_compiles_within_the_target(
    target: str, precision: str, channels: int, tmp_path: Path
) -> None:
    for kernel, shape in itertools.product(PRODUCT, SHAPES):
        check_product(kernel, target, shape, channels, precision, tmp_path)
