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

from mcsp.kernels.spectral import fused, fused_fft, launch, launch_fft  # noqa: E402

# Shared memory of one block in bytes: A100, H100 (CUDA C++ programming guide, opt-in maximum), MI300 (LDS).
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_90": (GPUTarget("cuda", 90, 32), 227 * 1024),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 64 * 1024),
}
POINTERS = {"valid_ptr": "*u8", "rows_ptr": "*i32", "place_ptr": "*i64", "bins_ptr": "*i32", "inverse_ptr": "*i32"}
SCALARS = {"eps": "fp32", "flat": "fp32"} | dict.fromkeys(
    ("C", "T", "stride_b", "stride_c", "stride_valid", "most_bins"), "i32"
)
PRODUCT = (fused.forward_kernel, fused.frequency_gradient_kernel, fused.sample_gradient_kernel)
FFT = (
    fused_fft.frame_kernel,
    fused_fft.power_kernel,
    fused_fft.spectrum_gradient_kernel,
    fused_fft.frame_gradient_kernel,
    fused_fft.gather_kernel,
)
# Frames of 2 s at 200 Hz in 5 bands, averaged; a BOLD window of 295 volumes with a line taken out.
SHAPES = {
    "eeg": {"P": 29, "FRAMES": 29, "OUT": 5, "FP": 128, "KP": 16, "LP": 416, "LINEAR": False, "COVER": 3},
    "bold": {"P": 1, "FRAMES": 1, "OUT": 25, "FP": 64, "KP": 0, "LP": 320, "LINEAR": True, "COVER": 1},
}
# Rows of 30 s at 200 Hz of which parts are valid, in bands; frames of 6 s, averaged, with a line taken out.
FFT_SHAPES = {
    "rows": {"P": 1, "FRAMES": 1, "OUT": 5, "WIDEST": 450, "LP": 6144, "LINEAR": False, "WRAPPED": True, "COVER": 1},
    "frames": {"P": 9, "FRAMES": 9, "OUT": 45, "WIDEST": 0, "LP": 2048, "LINEAR": True, "WRAPPED": False, "COVER": 4},
}


def compiled(kernel: Any, target: str, values: dict[str, Any], options: dict[str, Any]) -> Any:
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


def check(result: Any, target: str, products: bool, folder: Path) -> None:
    """No stack, no local memory, no atomics; matrix instructions where there are products."""
    assert result.metadata.shared <= TARGETS[target][1]
    if target == "gfx942":
        code = result.asm["amdgcn"]
        assert bool(re.search(r"\bv_mfma_", code)) == products
        assert not re.search(r"\bscratch_(load|store)|atomic", code)
        assert re.search(r"\.private_segment_fixed_size:\s*0\b", code)
        return
    usage, code = sass(result.asm["cubin"], folder)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found is not None
    assert (found[2], found[3]) == ("0", "0"), f"stack and local bytes: {found[0]}"
    assert not re.search(r"\b(LDL|STL)\b", code)
    assert not re.search(r"\b(RED|ATOM|ATOMG|ATOMS)\b", code)
    assert bool(re.search(r"\bHG?MMA", code)) == products


def check_product(kernel: Any, target: str, shape: str, channels: int, precision: str, folder: Path) -> None:
    hip = target.startswith("gfx")
    options = launch.launch_options(channels, hip)
    values = SHAPES[shape] | {"BC": options.pop("BC"), "BF": launch.BLOCK_FREQS, "BT": launch.BLOCK_TIME}
    if kernel is fused.sample_gradient_kernel:
        values["BF"] = launch.GATHER_FREQS[precision]
    values["PRECISION"] = launch.PRECISIONS[precision][hip]
    check(compiled(kernel, target, values, options), target, True, folder)


def check_fft(kernel: Any, target: str, shape: str, folder: Path) -> None:
    values = FFT_SHAPES[shape] | {"BF": launch_fft.BLOCK_BINS, "BT": launch_fft.BLOCK}
    check(compiled(kernel, target, values, launch_fft.OPTIONS), target, False, folder)


FEW = [
    *itertools.product(PRODUCT, ["sm_90"], ["eeg"], [19], ["fp32"]),
    *itertools.product(PRODUCT[:2], ["sm_80"], ["bold"], [16], ["bf16"]),
    *itertools.product(PRODUCT[1:], ["gfx942"], ["bold"], [400], ["bf16x3"]),
]


@pytest.mark.parametrize(("kernel", "target", "shape", "channels", "precision"), FEW)
def test_compiles_within_the_target(
    kernel: Any, target: str, shape: str, channels: int, precision: str, tmp_path: Path
) -> None:
    check_product(kernel, target, shape, channels, precision, tmp_path)


@pytest.mark.parametrize("kernel", FFT)
def test_long_frames_compile_within_the_target(kernel: Any, tmp_path: Path) -> None:
    check_fft(kernel, "sm_90", "frames", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [16, 400])
@pytest.mark.parametrize("precision", launch.PRECISIONS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_entry_of_the_table_compiles_within_the_target(
    target: str, precision: str, channels: int, tmp_path: Path
) -> None:
    for kernel, shape in itertools.product(PRODUCT, SHAPES):
        check_product(kernel, target, shape, channels, precision, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_of_long_frames_compiles_within_the_target(target: str, tmp_path: Path) -> None:
    for kernel, shape in itertools.product(FFT, FFT_SHAPES):
        check_fft(kernel, target, shape, tmp_path)
