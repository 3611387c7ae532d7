"""Who may import whom, read from the source: the layers of the project and the places of its heavy dependencies."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

LAYER_0 = {"mcsp", "mcsp.schema", "mcsp.config"}
LAYER_1 = {"mcsp.kernels", "mcsp.distributed", "mcsp.batch"}
LAYER_2 = {"mcsp.augmentations", "mcsp.model", "mcsp.losses", "mcsp.data_sharding"}
MAY_IMPORT: dict[str, set[str]] = {  # beside itself
    "mcsp": {"mcsp.model"},  # lazily, for mcsp.from_pretrained
    "mcsp.schema": set(),
    "mcsp.config": {"mcsp.schema"},
    "mcsp.kernels": set(),
    "mcsp.distributed": LAYER_0,
    "mcsp.batch": LAYER_0,
    "mcsp.augmentations": LAYER_0 | LAYER_1,
    "mcsp.model": LAYER_0 | LAYER_1,
    "mcsp.losses": LAYER_0 | LAYER_1,
    "mcsp.data_sharding": LAYER_0,
    "mcsp.training": LAYER_0 | LAYER_1 | LAYER_2,
    "mcsp.downstream": LAYER_0 | LAYER_1 | LAYER_2,
}


# Methods of an exported model that hand over to the layer above, imported where they are called: users of MNE and
# nilearn look for them on the model. Importing and loading a model stays with the core dependencies, as tested below.
HANDED_UP = {
    ("mcsp/model/pretrained.py", "mcsp.downstream.encode"),
    ("mcsp/model/pretrained.py", "mcsp.downstream.encode_eeg"),
    ("mcsp/model/pretrained.py", "mcsp.downstream.encode_bold"),
}


def declared(*extras: str) -> set[str]:
    """Import names of the core dependencies and of those in ``extras``."""
    optional = PYPROJECT["project"]["optional-dependencies"]
    lines = PYPROJECT["project"]["dependencies"] + [line for extra in extras for line in optional[extra]]
    names = {re.split(r"[\[<>=; ]", line)[0].lower() for line in lines}
    return {
        {"pyyaml": "yaml", "scikit-learn": "sklearn", "universal_pathlib": "upath"}.get(name, name) for name in names
    }


# Dependencies that only one place may know, wherever else their extra is installed.
ONLY_IN = {
    "triton": re.compile(r"kernels/\w+/fused\w*\.py"),
    "deepspeed": re.compile(r"mcsp/training/engine\.py"),
    "ray": re.compile(r"data_sharding/corpus\.py"),
}
THIRD_PARTY: dict[str, set[str]] = {
    "mcsp": set(),
    "mcsp.schema": {"numpy"},
    "mcsp.config": {"yaml", "pydantic"},
    "mcsp.kernels": {"torch", "numpy", "triton"},
    "mcsp.distributed": {"torch"},
    "mcsp.batch": {"torch", "numpy"},
    "mcsp.augmentations": declared(),
    "mcsp.model": declared(),
    "mcsp.losses": declared(),
    "mcsp.data_sharding": declared("corpus") - {"torch", "einops", "safetensors"},
    "mcsp.training": declared("train"),
    "mcsp.downstream": declared("evaluate", "lab", "hub", "onnx"),
}


def sources(root: Path, *folders: str) -> list[Path]:
    """Python files below ``folders``, relative to ``root``; each once, by its real path and not through a symlink."""
    found = [p for folder in folders for p in sorted((root / folder).rglob("*.py"))]
    return [p.relative_to(root) for p in found if p.resolve() == root.resolve() / p.relative_to(root)]


def part_of(module: str) -> str | None:
    """The part of the project that a dotted module or attribute belongs to; ``None`` outside the project."""
    if module == "mcsp.from_pretrained":
        return "mcsp.model"
    return max((part for part in MAY_IMPORT if f"{module}.".startswith(f"{part}.")), key=len, default=None)


def module_of(path: Path) -> str:
    """Dotted name under which a file is imported."""
    parts = path.with_suffix("").parts
    parts = parts if parts[0] == "mcsp" else ("mcsp", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(root: Path, path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, also inside functions and ``if TYPE_CHECKING``."""
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse((root / path).read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)


def violations(root: Path) -> list[str]:
    """Every import in the library that the tables above do not allow."""
    found = []
    for path in sources(root, "mcsp", "kernels", "data_sharding"):
        part = part_of(module_of(path))
        assert part is not None, f"{path}: belongs to no part; add it to the tables of this test"
        for line, name in imports(root, path):
            target, top = part_of(name), name.split(".")[0]
            if target is not None:
                handed_up = (path.as_posix(), name.rpartition(".")[0]) in HANDED_UP
                allowed = target == part or target in MAY_IMPORT[part] or handed_up
            else:
                place = ONLY_IN.get(top)
                allowed = top in sys.stdlib_module_names or (
                    top in THIRD_PARTY[part] and (place is None or place.fullmatch(path.as_posix()) is not None)
                )
            if not allowed:
                found.append(f"{path}:{line}: {part} must not import {name}")
    return found


def test_every_import_is_one_that_the_layers_allow() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("mcsp/model/a.py", "from mcsp.losses.objective import objective"),
        ("mcsp/model/a.py", "from ..losses import objective"),
        ("mcsp/model/a.py", "from mcsp import training"),
        ("mcsp/model/a.py", "def f():\n    import triton"),
        ("mcsp/model/pretrained.py", "from mcsp.downstream.evaluate import evaluate"),
        ("mcsp/losses/a.py", "import pandas"),
        ("mcsp/downstream/a.py", "import mcsp.training.engine"),
        ("mcsp/training/loader.py", "import deepspeed.comm"),
        ("mcsp/schema.py", "import torch"),
        ("mcsp/config/base.py", "from mcsp.batch import Batch"),
        ("kernels/spectral/reference.py", "import triton"),
        ("kernels/spectral/reference.py", "from mcsp.distributed import rank"),
        ("kernels/spectral/reference.py", "from kernels.contrastive import reference"),
        ("data_sharding/eeg.py", "import torch"),
        ("data_sharding/plan.py", "import ray"),
        ("data_sharding/plan.py", "from mcsp.batch import collate"),
        ("data_sharding/plan.py", "from data_sharding import bids"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, path: str, line: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(line + "\n")
    assert len(violations(tmp_path)) == 1


def test_allowed_imports_pass(tmp_path: Path) -> None:
    for path, line in {
        "kernels/spectral/fused.py": "import torch, triton\nfrom mcsp.kernels.spectral.reference import log_power",
        "mcsp/training/engine.py": "import deepspeed\nfrom mcsp.data_sharding.reader import Corpus",
        "data_sharding/corpus.py": "import ray, os\nfrom mcsp.schema import Recording\nfrom . import plan",
        "mcsp/__init__.py": "def f():\n    from mcsp.model.pretrained import from_pretrained",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(line + "\n")
    assert violations(tmp_path) == []


def test_scripts_use_the_library_by_its_name_and_leave_heavy_packages_to_it() -> None:
    found = []
    for path in sources(ROOT, "launchers", "examples"):
        for line, name in imports(ROOT, path):
            if name.split(".")[0] in {"kernels", "data_sharding", *ONLY_IN}:
                found.append(f"{path}:{line}: imports {name}")
    assert found == []


def test_nothing_unpickles() -> None:
    loads = re.compile(
        r"^\s*(import|from) (pickle|dill|cloudpickle)\b|allow_pickle=True|weights_only=False", re.MULTILINE
    )
    paths = sources(ROOT, "mcsp", "kernels", "data_sharding", "launchers", "examples")
    assert [p for p in paths if loads.search((ROOT / p).read_text())] == []


def test_kernels_and_data_sharding_are_reached_through_relative_symlinks() -> None:
    for name in ("kernels", "data_sharding"):
        assert os.readlink(ROOT / "mcsp" / name) == f"../{name}"
        assert not (ROOT / name / "__init__.py").exists(), f"{name}/ must stay without __init__.py: see CONTRIBUTING.md"


def test_every_folder_with_code_is_installed() -> None:
    folders = {p.parent for p in sources(ROOT, "mcsp", "kernels", "data_sharding")}
    expected = {".".join(f.parts if f.parts[0] == "mcsp" else ("mcsp", *f.parts)) for f in folders}
    assert expected <= set(PYPROJECT["tool"]["setuptools"]["packages"])


# Words that the glossary of CONTRIBUTING.md replaces; after a dot they are other people's (mne.Epochs).
FORBIDDEN_WORDS = re.compile(r"(?<![a-z.])(epochs?|rois?|patients?|helpers?|segments?)(?![a-z])", re.IGNORECASE)
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX)\b")


def test_code_uses_the_words_of_the_glossary() -> None:
    found = []
    for path in sources(ROOT, "mcsp", "kernels", "data_sharding", "launchers", "examples"):
        assert path.stem not in {"utils", "helpers", "common", "misc"}, f"{path}: a file is named for what it holds"
        for number, line in enumerate((ROOT / path).read_text().splitlines(), start=1):
            match = FORBIDDEN_WORDS.search(line) or UNFINISHED.search(line)
            if match:
                found.append(f"{path}:{number}: {match.group()!r}")
    assert found == []


@pytest.mark.parametrize(
    "modules", ["mcsp", "mcsp.model.mcsp, mcsp.model.pretrained", "mcsp.losses.objective, mcsp.batch"]
)
def test_importing_the_model_needs_the_core_dependencies_only(modules: str) -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    heavy = declared(*extras) - declared()
    assert heavy > {"triton", "deepspeed", "ray", "mne", "webdataset", "pyarrow", "sklearn", "scipy", "pandas"}
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {heavy}:
            raise ModuleNotFoundError(f"import of {{name}}, which a lab may not have")
sys.meta_path.insert(0, Refuse())
import mcsp, {modules}
assert not set(sys.modules) & set({heavy}), set(sys.modules) & set({heavy})
torch = sys.modules.get("torch")
assert torch is None or not torch.cuda.is_initialized(), "a device was probed at import"
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr


def test_reading_a_corpus_needs_neither_torch_nor_ray_nor_mne() -> None:
    code = "import sys, mcsp.data_sharding.reader; print(sorted({'torch', 'ray', 'mne', 'nilearn'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr
