"""Runs interpreted_contrastive.py in a process of its own, as Triton decides on import whether it interprets.

Covers: kernels/contrastive/fused.py
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = [Path(__file__).with_name(name) for name in ("interpreted_contrastive.py", "interpreted_cases.py")]


@pytest.mark.parametrize(
    ("interpret", "which"),
    [
        pytest.param("1", "not slow", id="interpreter"),
        pytest.param("1", "slow", id="interpreter, larger shapes", marks=pytest.mark.slow),
        pytest.param("0", "", id="gpu", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
    ],
)
def test_triton_equals_dense_autograd(interpret: str, which: str) -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": interpret}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", which, *map(str, PROGRAMS)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-1000:]
    assert re.search(r"\b\d+ passed", result.stdout), result.stdout[-500:]


def test_a_machine_without_triton_runs_without_it() -> None:
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")
sys.meta_path.insert(0, Refuse())
import torch
from mcsp.kernels import dispatch
from mcsp.kernels.contrastive import contrastive_loss
dispatch.TABLE = (dispatch.Row("contrastive_loss", "cpu", (), None, "triton", "a file"), *dispatch.TABLE)
z, scale = torch.eye(4)[None], torch.ones(1)
print(contrastive_loss(z, [(0, 0)], scale).item())
try:
    contrastive_loss(z, [(0, 0)], scale, impl="triton")
except ValueError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stderr
    assert float(lines[0]) == pytest.approx(0.7437, abs=1e-4)
    assert lines[1] == "contrastive_loss: impl='triton' cannot run: triton is not installed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_embeddings_on_a_cpu_are_refused() -> None:
    pytest.importorskip("triton")
    from mcsp.kernels.contrastive import contrastive_loss

    message = "contrastive_loss: impl='triton' cannot run: expected a tensor on an NVIDIA GPU, found cpu"
    with pytest.raises(ValueError, match=message):
        contrastive_loss(torch.eye(4)[None], [(0, 0)], torch.ones(1), impl="triton")
