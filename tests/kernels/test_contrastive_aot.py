"""What the Triton kernels of contrast and distillation compile to, without a GPU: every candidate of the tiles."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

from mcsp.kernels.contrastive import fused
from tests.kernels.ahead_of_time import SHARED_BYTES, build, check

KERNELS = {
    "contrast": (fused.contrast_sums_kernel, fused.contrast_gradient_kernel),
    "relations": (fused.relation_sums_kernel, fused.relation_gradient_kernel),
}
POINTERS = {"subject_r": "*i64", "subject_c": "*i64", "site_r": "*i64", "site_c": "*i64", "valid_r": "*i1"}
POINTERS |= {"valid_c": "*i1"}
CASES = [(name, kernel, tile) for name, kernels in KERNELS.items() for kernel in kernels for tile in range(5)]


def compiled(name: str, kernel: Any, number: int, arch: str, out: str = "*bf16", masks: bool = True) -> Any:
    tiles = fused.CANDIDATES[name]
    tile = tiles[number % len(tiles)]
    types = {
        x: POINTERS.get(x.removesuffix("_ptr"), "*fp32") if x.endswith("_ptr") else "i32" for x in kernel.arg_names
    }
    types["out_ptr"] = out
    constants = {"BM": tile.rows, "BK": tile.columns, "SITES": masks, "MASKED": masks, "BOTH": True, "UPCAST": False}
    return build(kernel, arch, types, constants, {"num_warps": tile.warps})


@pytest.mark.parametrize("arch", SHARED_BYTES)
@pytest.mark.parametrize("name", KERNELS)
def test_the_tiles_that_are_taken_compile_without_spills_and_atomics(name: str, arch: str, tmp_path: Path) -> None:
    for kernel in KERNELS[name]:
        check(compiled(name, kernel, 0, arch), arch, tmp_path, products=False)


@pytest.mark.slow
@pytest.mark.parametrize("arch", SHARED_BYTES)
def test_every_candidate_compiles_without_spills_and_atomics(arch: str, tmp_path: Path) -> None:
    for name, kernel, number in CASES:
        for out, masks in (("*bf16", True), ("*fp32", False)):
            check(compiled(name, kernel, number, arch, out, masks), arch, tmp_path, products=False)


def test_a_similarity_costs_one_exponential_for_its_row_and_one_for_its_column() -> None:
    tile = fused.TILES["contrast"]
    for kernel in KERNELS["contrast"]:
        found = len(re.findall(r"ex2\.approx", compiled("contrast", kernel, 0, "sm_90").asm["ptx"]))
        assert found == 2 * tile.rows * tile.columns // (32 * tile.warps)
