"""The fused spectral kernel compiled ahead of time: no GPU is needed to see what would run on one."""

import os
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

from mcsp.kernels.spectral import fused, launch  # noqa: E402
from tests.kernels.ahead_of_time import SHARED_BYTES, build, check  # noqa: E402

POINTERS = {"valid_ptr": "*u8", "rows_ptr": "*i32", "window_ptr": "*fp64", "line_ptr": "*fp64"}
SCALARS = {"eps": "fp32", "flat": "fp32"} | dict.fromkeys(("C", "stride_b", "stride_c", "stride_valid"), "i32")
# Frames of 2 s at 200 Hz in 5 bands, averaged; a BOLD window of 295 volumes.
SHAPES = {
    "eeg": {"P": 29, "FRAMES": 29, "OUT": 5, "FP": 128, "KP": 16, "LP": 416},
    "bold": {"P": 1, "FRAMES": 1, "OUT": 25, "FP": 64, "KP": 0, "LP": 320},
}


def check_forward(target: str, shape: str, channels: int, precision: str, folder: Path) -> None:
    kernel, options = fused.forward_kernel, launch.launch_options(channels)
    types = {name: SCALARS.get(name) or POINTERS.get(name, "*fp32") for name in kernel.arg_names}
    values: dict[str, Any] = SHAPES[shape] | {"BC": options.pop("BC"), "BF": launch.BLOCK_FREQS}
    values |= {"BT": launch.BLOCK_TIME, "PRECISION": launch.PRECISIONS[precision]}
    check(build(kernel, target, types, values, options), target, folder, products=True)


FEW = [("sm_90", "eeg", 19, "fp32"), ("sm_80", "bold", 16, "bf16"), ("sm_100", "bold", 400, "bf16x3")]


@pytest.mark.parametrize(("target", "shape", "channels", "precision"), FEW)
def test_compiles_within_the_target(target: str, shape: str, channels: int, precision: str, tmp_path: Path) -> None:
    check_forward(target, shape, channels, precision, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [16, 400])
@pytest.mark.parametrize("precision", launch.PRECISIONS)
@pytest.mark.parametrize("target", SHARED_BYTES)
def test_every_entry_of_the_table_compiles_within_the_target(
    target: str, precision: str, channels: int, tmp_path: Path
) -> None:
    for shape in SHAPES:
        check_forward(target, shape, channels, precision, tmp_path)
