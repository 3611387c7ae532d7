"""The package, installed with its core dependencies and nothing else, loads an export and encodes.

The environment is fresh and sees no other site-packages. The wheel is built from this tree and installed into it; the
core dependencies and theirs are linked from the environment of the tests, because downloading torch takes minutes.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from mcsp.config import ModelConfig
from mcsp.model.mcsp import MCSP
from mcsp.model.weights import write_pretrained

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import importlib.util, sys
import mcsp
assert not mcsp.__file__.startswith(sys.argv[2]), mcsp.__file__
present = [n for n in ("mne", "nibabel", "scipy", "sklearn", "pandas", "ray", "deepspeed", "triton", "tqdm", "pyarrow")
           if importlib.util.find_spec(n)]
print("beyond the core:", [n for n in present if n != "triton"])  # a CUDA build of torch brings triton along
model = mcsp.from_pretrained(sys.argv[1])
import torch
from mcsp.batch import Signal
torch.manual_seed(0)
signal = Signal(10 * torch.randn(1, 4, 400), torch.tensor([200.0]), torch.ones(1, 4, dtype=torch.bool),
                torch.ones(1, 400, dtype=torch.bool), 50 * torch.randn(1, 4, 3), torch.ones(1, 4, dtype=torch.bool),
                torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
with torch.inference_mode():
    features = model.features({"eeg": signal})["eeg"]
assert torch.isfinite(features).all()
print("features", *features.shape, f"{features.double().sum():.6f}")
try:
    model.encode_raw("recording.edf")
except ImportError as error:
    print("encode_raw:", error)
"""


def distributions_of(*extras: str) -> list[str]:
    """Normalised names of the core dependencies, those of extras, and of everything that they need here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for e in extras for line in project["optional-dependencies"][e])]
    waiting, found = [Requirement(line).name for line in lines], []
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name not in found:
            found.append(name)
            needed = [Requirement(line) for line in distribution(name).requires or []]
            waiting += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def link(name: str, site_packages: Path) -> None:
    """Link what a distribution installed at the top of its site-packages."""
    files = distribution(name).files or []
    tops = {Path(file).parts[0] for file in files} - {"..", "__pycache__"}
    for top in tops:
        if not (site_packages / top).exists():
            (site_packages / top).symlink_to(distribution(name).locate_file(top))


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=cwd, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_wheel(folder: Path) -> Path:
    """The wheel of this tree, built without network from a copy in ``folder``."""
    for name in ("mcsp", "kernels", "data_sharding", "configs"):
        shutil.copytree(ROOT / name, folder / "src" / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "src" / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder]
    run(*command, folder / "src", cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def fresh_environment(folder: Path, wheel: Path, *extras: str) -> Path:
    """Where the commands are of a new environment that holds the wheel with these extras, and no more."""
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    commands = folder / "venv" / "bin"
    install = [sys.executable, "-m", "pip", "--python", commands / "python", "install", "-q", "--no-deps"]
    run(*install, wheel, cwd=folder)
    (site_packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    for name in distributions_of(*extras):
        link(name, site_packages)
    return commands


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the installed wheel."""
    folder = tmp_path_factory.mktemp("core")
    return fresh_environment(folder, build_wheel(folder)) / "python"


@pytest.mark.slow
def test_a_fresh_environment_with_the_core_alone_loads_and_encodes(python: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = MCSP(ModelConfig()).eval()
    write_pretrained(model, tmp_path / "model", {"units": {"eeg": "uV"}})
    printed = run(python, "-I", "-c", PROGRAM, tmp_path / "model", ROOT, cwd=tmp_path).splitlines()
    assert printed[0] == "beyond the core: []"
    widths = sum(model.feature_widths("eeg").values())
    assert printed[1].startswith(f"features 1 {widths} ")
    page = "from mcsp.page import render; print(render('frame.html.jinja', title='<title>', footer=''))"
    assert "<h1>&lt;title&gt;</h1>" in run(python, "-I", "-c", page, cwd=tmp_path), "the wheel holds the templates"
    assert printed[2] == (
        "encode_raw: mne, scipy, nibabel not installed, expected for recordings: pip install 'mcsp-pretraining[lab]'"
    )
