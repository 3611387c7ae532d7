"""What the Triton contrast and distillation compile to, without a GPU: every entry of the table of tiles.

Compilation needs no driver: the compilers and disassemblers come with the triton package.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mcsp.kernels.contrastive.tiles import loss_options, tiles_for

triton = pytest.importorskip("triton")
fused = pytest.importorskip("mcsp.kernels.contrastive.fused")
fused_losses = pytest.importorskip("mcsp.kernels.contrastive.fused_losses")
fused_distillation = pytest.importorskip("mcsp.kernels.contrastive.fused_distillation")

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SHARED_BUDGET = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}
PRECISIONS = ["bf16", "tf32", "bf16x3", "fp32"]
# Kernels that multiply, and what the table of tiles calls them.
PRODUCTS = [
    (fused.sum_tiles, "sums", {"EXACT": False}),
    (fused.sum_tiles, "sums", {"EXACT": True}),
    (fused.grad_tiles, "gradient", {}),
    (fused_distillation.distillation_tiles, "relations", {}),
    (fused_distillation.distillation_grad_tiles, "relations' gradient", {}),
]
OTHERS = [
    (fused.prepare, {"BD": 64}),
    (fused_losses.add_parts, {"BD": 64}),
    (fused_losses.close_losses, {"BM": 256}),
    (fused_losses.close_scales, {"SLOPED": True}),
    (fused_distillation.close_distillation, {}),
]
POINTERS = {"subject": "*i64", "site": "*i64", "table": "*i64", "pair": "*i64", "entry": "*i64", "first": "*i64"}
POINTERS |= {"valid": "*u8", "key": "*i32", "flag": "*i32", "exact": "*i32"}


def build(kernel: Any, arch: str, operand: str, constants: dict[str, Any], **options: Any) -> Any:
    """Compile for float32 embeddings that are multiplied as ``operand``."""
    hip, signature, aligned = arch == "gfx942", {}, {}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    for i, name in enumerate(kernel.arg_names):
        start = name.removesuffix("_ptr")
        raw = name == "z_ptr" and kernel is fused.prepare
        kind = operand if start in ("z", "operand") and not raw else POINTERS.get(start, "*fp32")
        signature[name] = "constexpr" if name in constants else kind if name.endswith("_ptr") else "i32"
        # Allocations begin at multiples of 16 bytes; n, N and widths may be any numbers.
        if name.endswith("_ptr"):
            aligned[(i,)] = [["tt.divisibility", 16]]
    numbers = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=numbers, attrs=aligned)
    target = ("hip", "gfx942", 64) if hip else ("cuda", int(arch[3:]), 32)
    options = {"enable_fp_fusion": True} | options
    return triton.compile(source, target=triton.backends.compiler.GPUTarget(*target), options=options)


def multiplied(kernel: Any, what: str, more: dict[str, Any], precision: str, arch: str, width: int, own: bool) -> Any:
    """A kernel that multiplies, with the tiles that the table gives it."""
    tiles = tiles_for(what, precision, arch[:3] if arch == "gfx942" else arch, width)
    constants = {
        "D": width,
        "BM": tiles.rows,
        "BC": tiles.columns,
        "BD": tiles.depth,
        "SPAN": tiles.span,
        "OWN": own,
        "SITES": True,
        "PRECISION": fused.dot_precision(precision, arch == "gfx942"),
        "UPCAST": False,
    }
    operand = "*bf16" if precision == "bf16" else "*fp32"
    return build(kernel, arch, operand, constants | more, num_warps=tiles.warps, num_stages=tiles.stages)


def check(kernel: Any, arch: str, tmp_path: Path, products: bool = True) -> None:
    """No stack, no local memory, no atomics, shared memory within the device's, and matrix instructions."""
    assert kernel.metadata.shared <= SHARED_BUDGET[arch]
    if arch == "gfx942":
        code = kernel.asm["amdgcn"]
        assert re.search(r"\.private_segment_fixed_size: *(\d+)", code)[1] == "0"
        assert "scratch_" not in code.split(".amdgpu_metadata")[0].split(".amdhsa_")[0]
        assert "atomic" not in code
        assert not products or "v_mfma" in code
        return
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    used = subprocess.run([TOOLS / "cuobjdump", "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    code = subprocess.run([TOOLS / "nvdisasm", "-c", cubin], capture_output=True, text=True, check=True).stdout
    assert re.search(r"STACK:(\d+)", used)[1] == "0", used
    assert not re.findall(r"\b(?:LDL|STL)\b", code), "local memory"
    assert not re.findall(r"\b(?:RED|ATOM|ATOMG|ATOMS|REDG)\b", code), "atomics"
    assert not products or re.findall(r"\bHGMMA\b" if arch == "sm_90" else r"\bHMMA\b", code), "no matrix instructions"


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("arch", SHARED_BUDGET)
def test_every_entry_of_the_table_compiles_to_matrix_instructions_without_spills_or_atomics(
    arch: str, precision: str, tmp_path: Path
) -> None:
    for kernel, what, more in PRODUCTS:
        check(multiplied(kernel, what, more, precision, arch, width=256, own=True), arch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("width", [48, 512])
@pytest.mark.parametrize("arch", SHARED_BUDGET)
def test_other_widths_compile_as_well(arch: str, width: int, tmp_path: Path) -> None:
    for kernel, what, more in PRODUCTS:
        check(multiplied(kernel, what, more, "bf16", arch, width, own=False), arch, tmp_path)


@pytest.mark.parametrize("arch", ["sm_90"])
def test_the_projections_of_the_model_compile(arch: str, tmp_path: Path) -> None:
    """The sums and the gradient at the model's width, and one exponential per similarity for its row and column."""
    sums = multiplied(*PRODUCTS[0], "bf16", arch, width=128, own=True)
    tiles = tiles_for("sums", "bf16", arch, 128)
    exponentials = len(re.findall(r"ex2\.approx", sums.asm["ptx"]))
    assert exponentials == tiles.rows * tiles.columns // (32 * tiles.warps)
    check(sums, arch, tmp_path)
    check(multiplied(*PRODUCTS[2], "bf16", arch, width=128, own=True), arch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("arch", SHARED_BUDGET)
def test_kernels_that_multiply_nothing_compile(arch: str, tmp_path: Path) -> None:
    for kernel, more in OTHERS:
        options = loss_options(arch == "gfx942") if kernel is fused_losses.close_losses else {"num_warps": 4}
        for own in (False, True):
            constants = {"D": 256, "BM": 64, "SITES": True, "OWN": own, "WEIGHTED": True, "UPCAST": False} | more
            check(build(kernel, arch, "*bf16", constants, **options), arch, tmp_path, products=False)
