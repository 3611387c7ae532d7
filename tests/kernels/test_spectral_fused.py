"""The fused spectral kernels: interpreted in a process of their own, on the GPU where there is one, and refused.

Covers: kernels/spectral/fused.py, kernels/spectral/launch.py, kernels/spectral/tables.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mcsp.kernels.spectral import log_power, log_power_frames

PROGRAM = "interpreted_spectral.py"


def run(interpret: str, marked: str) -> None:
    """Triton reads the variable when it is imported."""
    pytest.importorskip("triton")
    path = Path(__file__).with_name(PROGRAM)
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-m", marked, str(path)]
    environment = os.environ | {"TRITON_INTERPRET": interpret}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_interpreted_kernels_agree_with_the_reference() -> None:
    run("1", "not slow")


@pytest.mark.slow
def test_interpreted_kernels_agree_with_the_reference_on_many_shapes() -> None:
    run("1", "slow")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kernels_on_the_gpu_agree_with_the_reference() -> None:
    run("0", "slow or not slow")


@pytest.mark.parametrize(
    ("options", "dtype", "message"),
    [
        ({"impl": "triton"}, torch.float32, "impl='triton' cannot run: .*(not installed|found cpu)"),
        ({"impl": "triton"}, torch.float64, "impl='triton' cannot run: .*(not installed|found torch.float64)"),
        ({"impl": "blocks"}, torch.float32, "impl: expected one of auto, triton, reference, found 'blocks'"),
        ({"impl": "fast"}, torch.float32, "impl: expected one of .*, found 'fast'"),
        ({"precision": "fp8"}, torch.float32, "precision: expected one of .*, found 'fp8'"),
    ],
)
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter runs on the CPU")
def test_what_cannot_run_is_refused_with_the_reason(options: dict, dtype: torch.dtype, message: str) -> None:
    x, sfreq = torch.randn(1, 2, 40, dtype=dtype), torch.tensor([20.0])
    with pytest.raises(ValueError, match=message):
        log_power(x, sfreq, [3.0], **options)
    with pytest.raises(ValueError, match=message):
        log_power_frames(x, sfreq, [3.0], frame_seconds=1.0, **options)


def test_auto_on_a_cpu_is_the_reference() -> None:
    x, sfreq = torch.randn(1, 2, 40), torch.tensor([20.0])
    assert torch.equal(log_power(x, sfreq, [3.0]), log_power(x, sfreq, [3.0], impl="reference"))
