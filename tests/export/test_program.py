"""Programs run without this package and give the model's numbers, in torch and in ONNX, for any batch."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mcsp.config import ModelConfig
from mcsp.export.program import (
    INPUTS,
    METADATA,
    EncoderProgram,
    Recorded,
    example_inputs,
    record,
    write_onnx,
    write_program,
)
from mcsp.model.mcsp import MCSP
from mcsp.model.spatial import SpatialEncoder
from mcsp.model.tangent import LEAST_SHRINKAGE, log_by_eigenvectors, log_by_products
from tests.security.published import assert_names_no_machine


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
told = {"mcsp.json": ""}
torch.export.load(sys.argv[1], extra_files=told)
open(sys.argv[4], "w").write(told["mcsp.json"])
assert not any(name.startswith("mcsp") for name in sys.modules)
"""


CASES = {"fmri": (12, 40, 0.5), "eeg": (8, 500, 200.0)}  # channels, samples, Hz


@pytest.fixture(scope="module", params=CASES)
def recorded(request: pytest.FixtureRequest) -> Recorded:
    """All three domains, and what they measure."""
    channels, samples, sfreq = CASES[request.param]
    torch.manual_seed(3)
    program = EncoderProgram(MCSP(ModelConfig()).eval(), request.param, sfreq)
    return record(program, channels, samples)


def other_inputs(recorded: Recorded, rows: int, channels: int) -> tuple[torch.Tensor, ...]:
    inputs = example_inputs(recorded.program.modality, channels, recorded.samples, seed=5, rows=rows)
    inputs[2][:, 1] = False
    return inputs


@pytest.mark.slow
def test_a_program_runs_where_the_package_cannot_be_imported(recorded: Recorded, tmp_path: Path) -> None:
    write_program(recorded, tmp_path / "encoder.pt2")
    inputs = other_inputs(recorded, 4, recorded.channels - 3)
    torch.save(inputs, tmp_path / "inputs.pt")
    files = [tmp_path / name for name in ("encoder.pt2", "inputs.pt", "out.pt", "told.json")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE, *files],
        capture_output=True, text=True, cwd=tmp_path, env={"PATH": ""}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # A program takes the logarithm from products of matrices; the model has another way on a CPU for few channels.
    alike, exact = copy.deepcopy(recorded.program), copy.deepcopy(recorded.program).double()
    for part in alike.modules():
        if isinstance(part, SpatialEncoder):
            part.by_products = True
    with torch.no_grad():
        expected = alike(*inputs)
        truth = exact(*(x.double() if x.is_floating_point() else x for x in inputs))
    found = torch.load(tmp_path / "out.pt")
    assert float((found - expected).norm() / expected.norm()) < 1e-6
    assert float((found - truth).norm() / truth.norm()) < 3e-6
    assert json.loads((tmp_path / "told.json").read_text()) == recorded.description()


@pytest.mark.slow
def test_onnx_gives_the_features_of_every_domain_for_any_batch(recorded: Recorded, tmp_path: Path) -> None:
    """Each part on its own: the root of connectivity, imaginary coherence, spectra by ONNX's DFT."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    write_onnx(recorded, tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    widths = recorded.program.model.feature_widths(recorded.program.modality)
    assert {"spatial", "temporal", "spectral", "root"} <= widths.keys()
    for rows, channels in ((1, 3), (5, recorded.channels)):
        inputs = other_inputs(recorded, rows, channels)
        found = torch.from_numpy(session.run(None, {n: x.numpy() for n, x in zip(INPUTS, inputs, strict=True)})[0])
        with torch.no_grad():
            expected = recorded.program(*inputs)
        for part, a, b in zip(widths, *(x.split(list(widths.values()), -1) for x in (found, expected)), strict=True):
            assert float((a - b).norm()) <= 1e-4 * float(b.norm()), (part, rows, channels)  # zeros of two channels
    assert json.loads(session.get_modelmeta().custom_metadata_map[METADATA]) == recorded.description()
    for wrong in (other_inputs(recorded, 1, recorded.channels + 1), (inputs[0][..., 1:], *inputs[1:])):
        with pytest.raises(Exception, match=r"(?i)invalid"):
            session.run(None, {n: x.numpy() for n, x in zip(INPUTS, wrong, strict=True)})


def test_the_smallest_program_goes_both_ways(tmp_path: Path) -> None:
    """What ``make test`` sees of programs: one domain, four anchors; each writer compares with the model by itself."""
    pytest.importorskip("onnxruntime")
    torch.manual_seed(3)
    model = MCSP(ModelConfig(domains=("temporal",), modalities=("fmri",), fmri_anchors=4)).eval()
    recorded = record(EncoderProgram(model, "fmri", 0.5), 6, 16)
    write_program(recorded, tmp_path / "encoder.pt2")
    write_onnx(recorded, tmp_path / "encoder.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"encoder.pt2", "encoder.onnx"}
    assert_names_no_machine(tmp_path, tmp_path)


@pytest.mark.slow
def test_a_program_refuses_what_it_was_not_recorded_for(recorded: Recorded) -> None:
    run, inputs = recorded.exported.module(), other_inputs(recorded, 2, recorded.channels)
    with pytest.raises(AssertionError, match=rf"x_BCT.size\(\)\[2\] == {recorded.samples}"):
        run(inputs[0][..., 1:], *inputs[1:])
    with pytest.raises(AssertionError, match=rf"x_BCT.size\(\)\[1\] <= {recorded.channels}"):
        run(*other_inputs(recorded, 2, recorded.channels + 1))


def test_other_numbers_than_the_models_are_refused_part_by_part() -> None:
    torch.manual_seed(3)
    program = EncoderProgram(MCSP(ModelConfig()).eval(), "fmri", 0.5)
    recorded = Recorded(None, program, 6, 40)  # type: ignore[arg-type]
    recorded.check(program, 1e-5, "same")

    def rounded(*inputs: torch.Tensor) -> torch.Tensor:
        features_BF = program(*inputs)
        features_BF[:, -400:] *= 1 + 1e-3  # relative power, the smallest part
        return features_BF

    with pytest.raises(
        ValueError, match=r"^fmri\.onnx: relative_power of 1 windows of 4 channels differs .* by 1\.0e-03"
    ):
        recorded.check(rounded, 1e-4, "fmri.onnx")
