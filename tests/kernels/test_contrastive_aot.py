"""What the Triton contrast compiles to, without a GPU: for sm_80, sm_90 and gfx942, in every precision.

Compilation needs no driver: the compilers and disassemblers come with the triton package.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")
fused = pytest.importorskip("mcsp.kernels.contrastive.fused")

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SHARED_BUDGET = {80: 163 * 1024, 90: 227 * 1024, "gfx942": 64 * 1024}
KERNELS = [("sum_tiles", False), ("sum_tiles", True), ("grad_tiles", False)]
POINTERS = {"subject": "*i32", "site": "*i32", "table": "*i64", "valid": "*u8", "exact": "*u8"}


def compiled(name: str, exact: bool, precision: str, arch: Any, width: int, both: bool) -> Any:
    kernel, hip = getattr(fused, name), isinstance(arch, str)
    tiles = fused.tiles_for(precision, arch == 90, name == "grad_tiles")
    constants = {
        "D": width,
        "BM": tiles.rows,
        "BC": tiles.columns,
        "BD": tiles.depth,
        "SPAN": tiles.span,
        "BOTH": both,
        "SITES": True,
        "EXACT": exact,
        "PRECISION": fused.dot_precision(precision, hip),
        "UPCAST": False,
    }
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    operand = "*bf16" if precision == "bf16" else "*fp32"
    signature, aligned = {}, {}
    for i, argument in enumerate(kernel.arg_names):
        kind = next((kind for start, kind in POINTERS.items() if argument.startswith(start)), "*fp32")
        if argument in ("z_n_ptr", "z_N_ptr", "grad_ptr"):
            kind = operand
        pointer = argument.endswith("_ptr")
        signature[argument] = "constexpr" if argument in constants else kind if pointer else "i32"
        # Allocations begin at multiples of 16; pointers to one job's part of them may not.
        if argument in ("z_n_ptr", "z_N_ptr", "grad_ptr", "row_ptr", "column_ptr"):
            aligned[(i,)] = [["tt.divisibility", 16]]
    numbers = {(kernel.arg_names.index(key),): value for key, value in constants.items()}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=numbers, attrs=aligned)
    target = (
        triton.backends.compiler.GPUTarget("hip", arch, 64)
        if hip
        else triton.backends.compiler.GPUTarget("cuda", arch, 32)
    )
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages, "enable_fp_fusion": True}
    return triton.compile(source, target=target, options=options)


def check_nvidia(kernel: Any, arch: int, tmp_path: Path) -> None:
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    used = subprocess.run([TOOLS / "cuobjdump", "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    code = subprocess.run([TOOLS / "nvdisasm", "-c", cubin], capture_output=True, text=True, check=True).stdout
    assert re.search(r"STACK:(\d+)", used)[1] == "0", used
    assert not re.findall(r"\b(?:LDL|STL)\b", code), "local memory"
    assert not re.findall(r"\b(?:RED|ATOM|ATOMG|ATOMS|REDG)\b", code), "atomics"
    assert re.findall(r"\bHGMMA\b" if arch == 90 else r"\bHMMA\b", code), "no matrix instructions"


def check_amd(kernel: Any) -> None:
    code = kernel.asm["amdgcn"]
    assert re.search(r"\.private_segment_fixed_size: *(\d+)", code)[1] == "0"
    assert "scratch_" not in code.split(".amdgpu_metadata")[0].split(".amdhsa_")[0]
    assert "atomic" not in code
    assert "v_mfma" in code


@pytest.mark.parametrize("arch", [80, 90, "gfx942"])
@pytest.mark.parametrize("precision", ["bf16", "tf32", "bf16x3", "fp32"])
def test_compiles_to_matrix_instructions_without_spills_or_atomics(arch: Any, precision: str, tmp_path: Path) -> None:
    for name, exact in KERNELS:
        kernel = compiled(name, exact, precision, arch, width=512, both=True)
        assert kernel.metadata.shared <= SHARED_BUDGET[arch]
        check_amd(kernel) if isinstance(arch, str) else check_nvidia(kernel, arch, tmp_path)


@pytest.mark.parametrize("width", [48, 144])
@pytest.mark.parametrize("arch", [80, 90])
def test_widths_that_fit_no_tile_compile_as_well(arch: int, width: int, tmp_path: Path) -> None:
    for name, exact in KERNELS:
        check_nvidia(compiled(name, exact, "bf16", arch, width, both=False), arch, tmp_path)


def test_one_exponential_serves_a_row_and_a_column() -> None:
    """Where sums are not exact: as many as similarities, 128 x 128 over 256 threads."""
    ptx = compiled("sum_tiles", False, "bf16", 90, width=512, both=True).asm["ptx"]
    assert len(re.findall(r"ex2\.approx", ptx)) == 64
