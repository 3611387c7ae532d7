"""Programs run without this package and give the model's numbers; what ONNX cannot hold is said in one line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mcsp.config import ModelConfig
from mcsp.downstream.product_log import log_by_products
from mcsp.downstream.program import INPUTS, EncoderProgram, example_inputs, record, write_onnx, write_program
from mcsp.model.mcsp import MCSP
from mcsp.model.tangent import LEAST_SHRINKAGE, log_by_eigenvectors


@pytest.mark.parametrize("anchors", [8, 48, 100, 128])
@pytest.mark.parametrize("shared", [0.0, 1.0, 100.0])
def test_the_logarithm_of_products_is_that_of_eigenvectors(anchors: int, shared: float) -> None:
    """From white noise to channels that are nearly one: condition numbers of 10 to 1,200."""
    generator = torch.Generator().manual_seed(anchors)
    x = torch.randn(3, anchors, 40, generator=generator, dtype=torch.float64)
    x = x + shared * torch.randn(3, 1, 40, generator=generator, dtype=torch.float64)
    x = x - x.mean(-1, keepdim=True)
    x = x / x.square().mean(-1, keepdim=True).sqrt()
    shrunk = (1 - LEAST_SHRINKAGE) * (x @ x.mT / 40) + LEAST_SHRINKAGE * torch.eye(anchors, dtype=torch.float64)
    expected, found = log_by_eigenvectors(shrunk), log_by_products(shrunk)
    assert float((found - expected).norm() / expected.norm()) < 1e-12
    assert float((torch.matrix_exp(found) - shrunk).norm() / shrunk.norm()) < 1e-12


WITHOUT_THE_PACKAGE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mcsp", "einops"):
            raise ModuleNotFoundError(f"no {name} here")
sys.meta_path.insert(0, Refuse())
import torch
program = torch.export.load(sys.argv[1]).module()
inputs = torch.load(sys.argv[2], weights_only=True)
torch.save(program(*inputs), sys.argv[3])
assert not any(name.startswith("mcsp") for name in sys.modules)
"""


def program_of(domains: tuple[str, ...] = ("spatial", "temporal", "spectral")) -> EncoderProgram:
    torch.manual_seed(3)
    model = MCSP(ModelConfig(domains=domains)).eval()  # type: ignore[arg-type]
    return EncoderProgram(model, "fmri", 0.5)


@pytest.mark.slow
def test_a_program_runs_where_the_package_cannot_be_imported(tmp_path: Path) -> None:
    program = program_of()
    write_program(record(program, 12, 40), tmp_path / "fmri.pt2")
    inputs = example_inputs("fmri", 12, 40, seed=5)
    inputs[2][:, 3:5] = False
    torch.save(inputs, tmp_path / "inputs.pt")
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE, *(tmp_path / n for n in ("fmri.pt2", "inputs.pt", "out.pt"))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PATH": ""}, timeout=120)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "out.pt"), program(*inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_onnx_gives_the_numbers_of_the_domains_that_it_can_hold(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    program = program_of(("temporal", "spectral"))
    write_onnx(record(program, 12, 40), tmp_path / "fmri.onnx")
    inputs = example_inputs("fmri", 12, 40, seed=5)
    session = onnxruntime.InferenceSession(tmp_path / "fmri.onnx")
    found = session.run(None, {n: x.numpy() for n, x in zip(INPUTS, inputs, strict=True)})[0]
    with torch.no_grad():
        expected = program(*inputs).numpy()
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)
