"""What every file of source has: a test, words of the glossary, nothing that unpickles."""

import ast
import re
from pathlib import Path

from tests.test_architecture import ROOT, sources

# Words that the glossary of CONTRIBUTING.md replaces; after a dot and in front of an underscore they are other people's
# (mne.Epochs, return_epochs, rois_cc200), and encode_epochs is named for what MNE calls its argument.
FORBIDDEN_WORDS = re.compile(
    r"(?<![a-z.])(?<!encode_)(?<!return_)(epochs?|rois?|patients?|helpers?|segments?)(?![a-z_])", re.IGNORECASE
)
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX)\b")


def mirror(path: Path) -> Path:
    """Where the tests of a source file lie: ``mcsp/model/layers.py`` -> ``tests/model/test_layers.py``."""
    below = path.parent.relative_to("mcsp") if path.parts[0] == "mcsp" else path.parent
    return Path("tests") / below / f"test_{path.name}"


def covered(root: Path) -> dict[Path, Path]:
    """Source file -> test file that names it after ``Covers:``, which ends the docstring at the top of the test."""
    found = {}
    for test in sorted((root / "tests").rglob("test_*.py")):
        told = (ast.get_docstring(ast.parse(test.read_text())) or "").partition("Covers:")[2]
        found |= {Path(name): test.relative_to(root) for name in re.split(r"[,\s]+", told) if name}
    return found


def faults_of_mirror(root: Path) -> list[str]:
    """Source files without a test of their name that no test names either, and names of files that are not there."""
    files = {p for p in sources(root, "mcsp", "kernels", "data_sharding", "launchers") if p.name != "__init__.py"}
    named = covered(root)
    found = [f"{test}: covers {path}, which is not there" for path, test in named.items() if path not in files]
    for path in sorted(files - named.keys()):
        if not (root / mirror(path)).is_file():
            found.append(f"{path}: expected {mirror(path)}, or a test that names it after 'Covers:'")
    return found


def test_every_source_file_has_a_test_of_its_name_or_one_that_names_it() -> None:
    assert faults_of_mirror(ROOT) == []


def test_a_source_file_without_tests_and_a_stale_name_are_found(tmp_path: Path) -> None:
    for path, text in {
        "mcsp/model/a.py": "", "tests/model/test_a.py": "", "kernels/b.py": "", "launchers/c.py": "",
        "tests/kernels/test_d.py": '"""D.\n\nCovers: launchers/c.py,\nkernels/b.py\n"""\n',
    }.items():  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert faults_of_mirror(tmp_path) == []
    (tmp_path / "kernels/b.py").rename(tmp_path / "kernels/e.py")
    assert faults_of_mirror(tmp_path) == [
        "tests/kernels/test_d.py: covers kernels/b.py, which is not there",
        "kernels/e.py: expected tests/kernels/test_e.py, or a test that names it after 'Covers:'",
    ]


def test_nothing_unpickles() -> None:
    loads = re.compile(
        r"^\s*(import|from) (pickle|dill|cloudpickle)\b|allow_pickle=True|weights_only=False", re.MULTILINE
    )
    paths = sources(ROOT, "mcsp", "kernels", "data_sharding", "launchers", "examples")
    assert [p for p in paths if loads.search((ROOT / p).read_text())] == []


def test_code_uses_the_words_of_the_glossary() -> None:
    found = []
    for path in sources(ROOT, "mcsp", "kernels", "data_sharding", "launchers", "examples"):
        assert path.stem not in {"utils", "helpers", "common", "misc"}, f"{path}: a file is named for what it holds"
        for number, line in enumerate((ROOT / path).read_text().splitlines(), start=1):
            match = FORBIDDEN_WORDS.search(line) or UNFINISHED.search(line)
            if match:
                found.append(f"{path}:{number}: {match.group()!r}")
    assert found == []
