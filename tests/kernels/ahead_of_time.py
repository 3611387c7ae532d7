"""Compiles Triton kernels for GPUs that are not there, and reads what came out; for the tests beside it.

Compilation needs no driver: the compilers and disassemblers come with the triton package.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import triton

# Shared memory that one block may have [bytes] (CUDA C++ programming guide): A100, H100 and H200, B200.
SHARED_BYTES = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def build(kernel: Any, arch: str, types: dict[str, str], constants: dict[str, Any], options: dict[str, Any]) -> Any:
    """The compiled kernel; pointers stand at multiples of 16 bytes, as allocations do."""
    signature, aligned, numbers = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], numbers[(i,)] = "constexpr", constants[name]
            continue
        signature[name] = types[name]
        if types[name].startswith("*"):
            aligned[(i,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=numbers, attrs=aligned)
    target = triton.backends.compiler.GPUTarget("cuda", int(arch[3:]), 32)
    return triton.compile(source, target=target, options={"enable_fp_fusion": True} | options)


def check(kernel: Any, arch: str, folder: Path, products: bool) -> None:
    """No stack, no local memory, no atomics, shared memory within the device's, matrix instructions for products."""
    assert kernel.metadata.shared <= SHARED_BYTES[arch]
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    used = subprocess.run([TOOLS / "cuobjdump", "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    code = subprocess.run([TOOLS / "nvdisasm", "-c", cubin], capture_output=True, text=True, check=True).stdout
    stack, local = re.search(r"STACK:(\d+).* LOCAL:(\d+)", used).groups()  # type: ignore[union-attr]
    assert (stack, local) == ("0", "0"), used
    assert not re.search(r"\b(?:LDL|STL)\b", code), "local memory"
    assert not re.search(r"\b(?:RED|ATOM|ATOMG|ATOMS|REDG)\b", code), "atomics"
    assert bool(re.search(r"\b(?:HMMA|HGMMA|UTCHMMA|UTCQMMA)\b", code)) == products, "matrix instructions"
