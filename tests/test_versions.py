"""The files that name versions agree with each other, and .ci/resolve.py, which asks an index about them.

Covers: mcsp/version.py
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mcsp.version import __version__

ROOT = Path(__file__).resolve().parents[1]


def versions(name: str) -> dict[str, str]:
    """Versions by normalised name from the lines ``name==version`` of a file."""
    pairs = re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / name).read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in pairs}


def test_the_package_has_the_version_of_its_metadata_and_citation() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert __version__ == project["version"] and (cited is None or cited.group(1).strip('"') == __version__)


def test_every_declared_dependency_is_pinned_within_its_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    pins = versions("constraints.txt")
    outside = []
    for requirement in map(Requirement, lines):
        pin = pins.get(re.sub(r"[-_.]+", "-", requirement.name).lower())
        if pin is None or pin not in requirement.specifier:
            outside.append(f"{requirement}, found {pin}")
    assert outside == []


def test_the_locked_file_holds_the_same_versions_each_with_hashes() -> None:
    pins, locked = versions("constraints.txt"), versions("requirements.txt")
    own = {name: version for name, version in locked.items() if not re.match("(nvidia|cuda)-", name)}
    assert len(own) > 100
    assert own == {name: pins.get(name) for name in own}
    blocks = re.split(r"^(?=[A-Za-z])", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)[1:]
    assert [block.split()[0] for block in blocks if not re.search(r"--hash=sha256:[0-9a-f]{64}$", block, re.M)] == []


def test_make_installs_the_pinned_torch() -> None:
    named = re.findall(r"^TORCH_\w+ := torch==([\d.]+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert named == [versions("constraints.txt")["torch"]] * 2


@pytest.mark.skipif(
    not (shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")), reason="uv is not installed"
)
def test_without_an_index_resolving_is_skipped_in_words(tmp_path: Path) -> None:
    nowhere = {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple", "UV_CACHE_DIR": str(tmp_path), "UV_HTTP_RETRIES": "0"}
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "resolve.py"],
        env={**os.environ, **nowhere}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("SKIPPED, no package index was reached: ")
