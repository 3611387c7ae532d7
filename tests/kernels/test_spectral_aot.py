"""The fused spectral kernels compiled ahead of time: no GPU is needed to see what would run on one."""

import itertools
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from mcsp.kernels.spectral import fused, launch  # noqa: E402

# Shared memory of one block in bytes: A100, H100 (CUDA C++ programming guide, opt-in maximum), MI300 (LDS).
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_90": (GPUTarget("cuda", 90, 32), 227 * 1024),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 64 * 1024),
}
POINTERS = {"valid_ptr": "*u8", "rows_ptr": "*i32"}
SCALARS = {"C": "i32", "T": "i32", "stride_b": "i32", "stride_c": "i32", "eps": "fp32", "flat": "fp32"}
KERNELS = (fused.forward_kernel, fused.frequency_gradient_kernel, fused.sample_gradient_kernel)
# Frames of 2 s at 200 Hz with 88 bins, averaged; a BOLD window of 295 volumes with a line taken out.
SHAPES = {
    "eeg": {"P": 29, "FRAMES": 29, "F": 88, "FP": 128, "LP": 416, "LINEAR": False, "LOG": False, "COVER": 3},
    "bold": {"P": 1, "FRAMES": 1, "F": 25, "FP": 64, "LP": 320, "LINEAR": True, "LOG": True, "COVER": 1},
}


def compiled(kernel: Any, target: str, shape: str, channels: int, precision: str) -> Any:
    hip = target.startswith("gfx")
    options = launch.launch_options(channels, hip)
    values = SHAPES[shape] | {"BC": options.pop("BC")} | {"BF": launch.BLOCK_FREQS, "BT": launch.BLOCK_TIME}
    values["PRECISION"] = launch.PRECISIONS[precision][hip]
    constants, signature, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in values:
            constants[(i,)], signature[name] = values[name], "constexpr"
        else:
            signature[name] = SCALARS.get(name) or POINTERS.get(name, "*fp32")
            if signature[name].startswith("*"):
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=TARGETS[target][0], options=options)


def sass(binary: bytes, folder: Path) -> tuple[str, str]:
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    path = folder / "kernel.cubin"
    path.write_bytes(binary)
    usage = subprocess.run([tools / "cuobjdump", "-res-usage", path], capture_output=True, text=True, check=True)
    code = subprocess.run([tools / "nvdisasm", "-c", path], capture_output=True, text=True, check=True)
    return usage.stdout, code.stdout


CASES = [
    *itertools.product(KERNELS, TARGETS, ["eeg"], [19], ["fp32"]),
    *itertools.product(KERNELS, ["sm_80", "gfx942"], ["bold"], [16], ["bf16x3"]),
    *itertools.product(KERNELS, ["sm_90"], ["bold"], [400], ["tf32"]),
]


@pytest.mark.parametrize(("kernel", "target", "shape", "channels", "precision"), CASES)
def test_compiles_within_the_target(
    kernel: Any, target: str, shape: str, channels: int, precision: str, tmp_path: Path
) -> None:
    result = compiled(kernel, target, shape, channels, precision)
    assert result.metadata.shared <= TARGETS[target][1]
    if target == "gfx942":
        code = result.asm["amdgcn"]
        assert re.search(r"\bv_mfma_", code)
        assert not re.search(r"\bscratch_(load|store)|atomic", code)
        assert re.search(r"\.private_segment_fixed_size:\s*0\b", code)
        return
    usage, code = sass(result.asm["cubin"], tmp_path)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found is not None
    assert (found[2], found[3]) == ("0", "0"), f"stack and local bytes: {found[0]}"
    assert not re.search(r"\b(LDL|STL)\b", code)
    assert not re.search(r"\b(RED|ATOM|ATOMG|ATOMS)\b", code)
    assert re.search(r"\bHG?MMA", code)
