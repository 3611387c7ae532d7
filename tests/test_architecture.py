"""Who may import whom, read from the source: the layers of the project and the places of its heavy dependencies."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = ("mcsp", "kernels", "data_sharding", "launchers", "benchmarks", "examples")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# The rooms, lowest first: a room imports from those that its row names, and never from others.
LAYER_0 = {
    "mcsp.version",
    "mcsp.schema",
    "mcsp.provenance",
    "mcsp.run_log",
    "mcsp.windows",
    "mcsp.wording",
    "mcsp.page",
    "mcsp.outside",
    "mcsp.output",
    "mcsp.config",
}
LAYER_1 = {"mcsp.kernels", "mcsp.distributed", "mcsp.batch"}
STORE, BIDS, PARCELS, CLEAN, INSPECT, BUILD, DEMO, CONVERT = (
    f"mcsp.data_sharding.{room}"
    for room in ("store", "bids", "parcels", "clean", "inspect", "build", "demo", "convert")
)
LAYER_2 = {"mcsp.augmentations", "mcsp.model", "mcsp.losses", STORE, BIDS, PARCELS, CLEAN, INSPECT, BUILD}
MAY_IMPORT: dict[str, set[str]] = {  # beside itself
    # Lazily: for mcsp.from_pretrained, and for python -m mcsp.
    "mcsp": {"mcsp.version", "mcsp.encode", "mcsp.commands"},
    "mcsp.version": set(),
    "mcsp.schema": set(),
    "mcsp.provenance": set(),
    "mcsp.run_log": set(),
    "mcsp.wording": set(),
    "mcsp.page": {"mcsp.wording"},
    "mcsp.outside": set(),
    "mcsp.output": set(),
    "mcsp.windows": {"mcsp.schema"},
    "mcsp.config": {"mcsp.schema"},
    "mcsp.kernels": set(),
    "mcsp.distributed": LAYER_0,
    "mcsp.batch": LAYER_0,
    "mcsp.augmentations": LAYER_0 | LAYER_1,
    "mcsp.model": LAYER_0 | LAYER_1,
    "mcsp.losses": LAYER_0 | LAYER_1,
    STORE: LAYER_0,
    BIDS: LAYER_0 | {STORE},
    PARCELS: LAYER_0 | {STORE, BIDS},
    CLEAN: LAYER_0 | {STORE, BIDS, PARCELS},
    # A build ends with its report, so what looks at a finished corpus lies below what builds one.
    INSPECT: LAYER_0 | {STORE, BIDS, CLEAN},
    BUILD: LAYER_0 | {STORE, BIDS, PARCELS, CLEAN, INSPECT},
    DEMO: LAYER_0 | {STORE, BIDS},
    CONVERT: LAYER_0 | {STORE, BIDS, PARCELS, CLEAN},
    "mcsp.training": LAYER_0 | LAYER_1 | LAYER_2,
    "mcsp.encode": LAYER_0 | LAYER_1 | LAYER_2,
    "mcsp.export": LAYER_0 | LAYER_1 | LAYER_2 | {"mcsp.encode"},
    "mcsp.evaluate": LAYER_0 | LAYER_1 | LAYER_2 | {"mcsp.encode", "mcsp.export"},
    "mcsp.explain": LAYER_0 | LAYER_1 | LAYER_2 | {"mcsp.encode", "mcsp.export", "mcsp.evaluate"},
    "mcsp.adapters": LAYER_0 | LAYER_1 | LAYER_2 | {"mcsp.encode"},
    "mcsp.commands": LAYER_0
    | {f"mcsp.{room}" for room in ("encode", "export", "evaluate", "explain", "training")}
    | {STORE, BIDS, INSPECT, BUILD, DEMO, CONVERT},
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
    "ray": re.compile(r"data_sharding/build/corpus\.py"),
}
PAGES = {"markupsafe"}  # comes with jinja2
DATA_PACKAGES = declared("corpus") - {"torch", "einops", "safetensors"} | PAGES
LAB_PACKAGES = declared("evaluate", "lab", "hub", "onnx") | PAGES
THIRD_PARTY: dict[str, set[str]] = {
    "mcsp": set(),
    "mcsp.version": set(),
    "mcsp.schema": {"numpy"},
    "mcsp.provenance": set(),
    "mcsp.run_log": set(),
    "mcsp.wording": set(),
    "mcsp.page": {"jinja2", "markupsafe"},
    "mcsp.outside": set(),
    "mcsp.output": set(),
    "mcsp.windows": {"numpy"},
    "mcsp.config": {"yaml", "pydantic"},
    "mcsp.kernels": {"torch", "numpy", "triton"},
    "mcsp.distributed": {"torch"},
    "mcsp.batch": {"torch", "numpy"},
    "mcsp.augmentations": declared(),
    "mcsp.model": declared(),
    "mcsp.losses": declared(),
    **dict.fromkeys((STORE, BIDS, PARCELS, CLEAN, INSPECT, BUILD, DEMO, CONVERT), DATA_PACKAGES),
    "mcsp.training": declared("train"),
    **dict.fromkeys(("mcsp.encode", "mcsp.export", "mcsp.evaluate", "mcsp.explain"), LAB_PACKAGES),
    "mcsp.adapters": declared("lab", "ecosystem"),
    "mcsp.commands": {"cyclopts", "yaml", "pydantic", "torch", "numpy", "matplotlib"},
}


def sources(root: Path, *folders: str) -> list[Path]:
    """Python files below ``folders``, relative to ``root``; each once, by its real path and not through a symlink."""
    found = [p for folder in folders for p in sorted((root / folder).rglob("*.py"))]
    return [p.relative_to(root) for p in found if p.resolve() == root.resolve() / p.relative_to(root)]


def part_of(module: str) -> str | None:
    """The part of the project that a dotted module or attribute belongs to; ``None`` outside the project."""
    if module in ("mcsp.from_pretrained", "mcsp.load_classifier"):
        return "mcsp.encode"
    return max((part for part in MAY_IMPORT if f"{module}.".startswith(f"{part}.")), key=len, default=None)


def module_of(path: Path) -> str:
    """Dotted name under which a file is imported."""
    parts = path.with_suffix("").parts
    parts = ("mcsp", *parts) if parts[0] in ("kernels", "data_sharding") else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(root: Path, path: Path, typing: bool = True) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, also inside functions.

    With ``typing`` also what stands below ``if TYPE_CHECKING``.
    """
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    tree = ast.parse((root / path).read_text())
    left_out: set[ast.AST] = set()
    if not typing:
        guards = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
        left_out = {node for guard in guards for node in ast.walk(guard)}
    for node in ast.walk(tree):
        if node in left_out:
            continue
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
                allowed = target == part or target in MAY_IMPORT[part]
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
        ("mcsp/model/weights.py", "from mcsp.encode.pretrained import from_pretrained"),
        ("mcsp/encode/a.py", "from mcsp.evaluate.evaluate import evaluate"),
        ("mcsp/export/a.py", "def f():\n    from mcsp.evaluate.units import Unit"),
        ("mcsp/losses/a.py", "import pandas"),
        ("mcsp/evaluate/a.py", "import mcsp.training.engine"),
        ("mcsp/training/reading/loader.py", "import deepspeed.comm"),
        ("mcsp/schema.py", "import torch"),
        ("mcsp/config/base.py", "from mcsp.batch import Batch"),
        ("kernels/spectral/reference.py", "import triton"),
        ("kernels/spectral/reference.py", "from mcsp.distributed import rank"),
        ("kernels/spectral/reference.py", "from kernels.contrastive import reference"),
        ("data_sharding/clean/eeg.py", "import torch"),
        ("data_sharding/build/plan.py", "import ray"),
        ("data_sharding/build/plan.py", "from mcsp.batch import collate"),
        ("data_sharding/bids/find.py", "from mcsp.data_sharding.clean.eeg import read_eeg"),
        ("data_sharding/store/index.py", "from mcsp.data_sharding.bids.find import Site"),
        ("data_sharding/build/plan.py", "from data_sharding import bids"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, path: str, line: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(line + "\n")
    assert len(violations(tmp_path)) == 1


def test_allowed_imports_pass(tmp_path: Path) -> None:
    for path, line in {
        "kernels/spectral/fused.py": "import torch, triton\nfrom mcsp.kernels.spectral.reference import log_power",
        "mcsp/training/engine.py": "import deepspeed\nfrom mcsp.data_sharding.store.reader import Corpus",
        "data_sharding/build/corpus.py": "import ray, os\nfrom mcsp.schema import Recording\nfrom . import plan",
        "mcsp/__init__.py": "def f():\n    from mcsp.encode.pretrained import from_pretrained",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(line + "\n")
    assert violations(tmp_path) == []


def graph(root: Path) -> dict[str, set[str]]:
    """Module -> modules of the project that its file imports, also inside functions; without ``TYPE_CHECKING``."""
    files = {module_of(path): path for path in sources(root, *CODE)}
    edges: dict[str, set[str]] = {}
    for module, path in files.items():
        named = {name for _, name in imports(root, path, typing=False)}
        known = {name if name in files else name.rpartition(".")[0] for name in named}
        edges[module] = {name for name in known if name in files and name != module}
    return edges


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The circles of a graph, one for each import that closes one."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> None:
        if module in way:
            found.append([*way[way.index(module) :], module])
        elif module not in done:
            for target in sorted(edges[module]):
                visit(target, [*way, module])
            done.add(module)

    for module in sorted(edges):
        visit(module, [])
    return found


def crowded(root: Path, most: int = 16) -> list[str]:
    """Folders with more source files than a reader can keep in mind."""
    folders = Counter(path.parent for path in sources(root, *CODE) if path.name != "__init__.py")
    return [f"{folder}: {n} files, expected at most {most}" for folder, n in folders.items() if n > most]


def test_no_circle_among_files_and_no_crowded_folder() -> None:
    assert circles(graph(ROOT)) == []
    assert crowded(ROOT) == []


def test_a_lazy_import_that_closes_a_circle_is_found(tmp_path: Path) -> None:
    (tmp_path / "mcsp/model").mkdir(parents=True)
    (tmp_path / "mcsp/model/a.py").write_text("from mcsp.model.b import f\n")
    (tmp_path / "mcsp/model/b.py").write_text("def f():\n    pass\n")
    assert circles(graph(tmp_path)) == []
    (tmp_path / "mcsp/model/b.py").write_text("def f():\n    from mcsp.model import a\n    a.f()\n")
    assert circles(graph(tmp_path)) == [["mcsp.model.a", "mcsp.model.b", "mcsp.model.a"]]


def test_a_seventeenth_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "mcsp/model").mkdir(parents=True)
    for number in range(17):
        assert crowded(tmp_path) == []
        (tmp_path / f"mcsp/model/file{number}.py").touch()
    assert len(crowded(tmp_path)) == 1


def test_scripts_use_the_library_by_its_name_and_leave_heavy_packages_to_it() -> None:
    found = []
    for path in sources(ROOT, "launchers", "examples"):
        for line, name in imports(ROOT, path):
            if name.split(".")[0] in {"kernels", "data_sharding", *ONLY_IN}:
                found.append(f"{path}:{line}: imports {name}")
    assert found == []


def test_kernels_and_data_sharding_are_reached_through_relative_symlinks() -> None:
    for name in ("kernels", "data_sharding"):
        assert os.readlink(ROOT / "mcsp" / name) == f"../{name}"
        assert not (ROOT / name / "__init__.py").exists(), f"{name}/ must stay without __init__.py: see CONTRIBUTING.md"


def test_every_folder_with_code_is_installed() -> None:
    folders = {p.parent for p in sources(ROOT, "mcsp", "kernels", "data_sharding")}
    expected = {".".join(f.parts if f.parts[0] == "mcsp" else ("mcsp", *f.parts)) for f in folders}
    assert expected <= set(PYPROJECT["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize(
    "modules", ["mcsp", "mcsp.model.mcsp, mcsp.encode.pretrained", "mcsp.losses.objective, mcsp.batch"]
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
    unwanted = "{'torch', 'ray', 'mne', 'nilearn'}"
    code = f"import sys, mcsp.data_sharding.store.reader; print(sorted({unwanted} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr
