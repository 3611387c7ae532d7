"""What text names exists: pages and their headings, files of the repository, verbs, options and settings."""

import ast
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from cyclopts.exceptions import CycloptsError, UnknownOptionError
from pydantic import BaseModel

from benchmarks.ablation.settings import AblateConfig
from mcsp.commands.main import VERBS, application
from mcsp.commands.settings import keys_of
from mcsp.config import CorpusConfig, EvaluateConfig, ExplainConfig, FinetuneConfig, PretrainConfig

ROOT = Path(__file__).resolve().parents[2]
CODE = ("mcsp", "kernels", "data_sharding")
TOP = (*CODE, "launchers", "benchmarks", "configs", "examples", "docs", ".ci", "tests")
KINDS = {".py", ".md", ".rst", ".yaml", ".yml", ".json", ".sh", ".sbatch", ".html"}
MADE = {"settings.md"}  # by docs/conf.py, before each build


def texts() -> Iterator[Path]:
    yield from (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "Makefile"))
    for folder in (*TOP[:-1], ".github"):
        for path in (ROOT / folder).rglob("*"):
            made = {"results", "drawn", "generated", "tutorials", "tutorial_output", "__pycache__"} & set(path.parts)
            if path.suffix in KINDS and path.is_file() and not made and path.name not in MADE:
                yield path


TEXTS = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in texts()}
PAGES = {path: text for path, text in TEXTS.items() if path.suffix == ".md"}


def headings(page: Path) -> list[str]:
    code = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
    return re.findall(r"^#+ (.+)$", code.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)


def anchor(heading: str) -> str:
    """As GitHub and MyST make it of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")


def faults_of(reference: re.Match[str], page: Path) -> list[str]:
    where = reference.group()
    if page.name in MADE:
        return []
    if not page.is_file():
        return [f"{where}: no such page"]
    named, section = reference["anchor"], reference["section"]
    if named and named not in map(anchor, headings(page)):
        return [f"{where}: no such heading"]
    if section and not any(section.lower() in heading.lower() for heading in headings(page)):
        return [f"{where}: no such section"]
    return []


REFERENCE = re.compile(
    r"\bdocs/(?P<page>[\w-]+\.md)`*(?:#(?P<anchor>[\w-]+))?"
    r"(?:,? (?:section|part|under) \"?(?P<section>[\w ]+?)\"?(?=[.,;:)\n]))?"
)
LINK = re.compile(r"\]\((?!https?:|mailto:)(?P<page>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)(?P<section>)")


def test_a_named_page_exists_with_the_section_that_is_named() -> None:
    found = {
        f"{path}: {fault}"
        for path, text in TEXTS.items()
        for reference in REFERENCE.finditer(text)
        for fault in faults_of(reference, ROOT / "docs" / reference["page"])
    }
    assert not found


def test_a_link_leads_to_a_file_and_its_heading() -> None:
    found = []
    for path, text in PAGES.items():
        for link in LINK.finditer(re.sub(r"`[^`\n]+`", "", text)):
            target = (ROOT / path).parent / link["page"] if link["page"] else ROOT / path
            if target.suffix in (".md", ""):
                found += [] if target.is_dir() else [f"{path}: {fault}" for fault in faults_of(link, target)]
            elif not target.exists() and "drawn" not in target.parts:  # pictures that the build draws
                found.append(f"{path}: {link.group()}: no such file")
    assert not found


@pytest.mark.parametrize(
    "text", ["docs/methods.md", "docs/method.md#views-of", "docs/method.md, section 6.", "docs/method.md, part Vews."]
)
def test_a_reference_to_what_is_gone_is_found(text: str) -> None:
    (reference,) = REFERENCE.finditer(text)
    assert faults_of(reference, ROOT / "docs" / reference["page"])


@pytest.mark.parametrize(
    "text", ["docs/method.md", "docs/method.md#views", "docs/method.md, section Views.", "docs/settings.md"]
)
def test_a_reference_to_what_is_there_is_not(text: str) -> None:
    (reference,) = REFERENCE.finditer(text)
    assert not faults_of(reference, ROOT / "docs" / reference["page"])


def inline(text: str) -> list[str]:
    """Code inside of lines, without fenced blocks."""
    text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


INLINE = [(path, code) for path, text in PAGES.items() if path.name != "CHANGELOG.md" for code in inline(text)]


def spelled_out(name: str) -> list[str]:
    """``a{b,c}`` as the shell reads it."""
    before, brace, rest = name.partition("{")
    if not brace:
        return [name]
    inside, _, after = rest.partition("}")
    return list(chain.from_iterable(spelled_out(before + part + after) for part in inside.split(",")))


def test_files_that_pages_name_exist() -> None:
    tutorials = [
        (path, code)
        for path, text in TEXTS.items()
        if "tutorials_src" in path.parts
        for code in re.findall(r"``([^`]+)``", text)
    ]
    codes = [*INLINE, *tutorials]
    names = [(path, word.rstrip(".,;:")) for path, code in codes for word in code.split() if word.startswith(TOP)]
    names = [(path, name) for path, name in names if "/" in name and not re.search(r"[<>*=$\"()]|://", name)]
    files = [(path, file) for path, name in names for file in spelled_out(name.partition("::")[0])]
    assert len(files) > 50
    to_come = {"docs/settings.md", "mcsp/losses/covariance.py"}  # made by the build; made by the reader of a tutorial
    assert not [(str(path), name) for path, name in files if not (ROOT / name).exists() and name not in to_come]


def settings() -> set[str]:
    models: tuple[type[BaseModel], ...] = (
        CorpusConfig, PretrainConfig, EvaluateConfig, FinetuneConfig, ExplainConfig, AblateConfig,
    )  # fmt: skip
    return {key for model in models for key, _, _ in keys_of(model)}


def arguments() -> set[str]:
    trees = [ast.parse(text) for path, text in TEXTS.items() if path.suffix == ".py" and path.parts[0] in CODE]
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {a.arg for f in functions for a in [*f.args.args, *f.args.kwonlyargs]}


def test_settings_that_pages_name_exist() -> None:
    others = {"return_epochs", "model_kwargs", "detrend", "standardize"}  # of MOABB, Open EEG Bench, nilearn
    known = settings() | {key.partition(".")[0] for key in settings()} | arguments() | others
    given = re.compile(r"^([a-z][a-z_]*(?:\.[a-z_]+)*)=")
    found = [(str(path), m[0]) for path, code in INLINE for word in code.split() if (m := given.match(word))]
    assert len(found) > 30
    assert not [(path, name) for path, name in found if name.rstrip("=") not in known]


def test_verbs_and_options_that_pages_name_exist() -> None:
    verbs = {verb for group in VERBS.values() for verb in group}
    found = 0
    for path, code in INLINE:
        program, *words = code.split()
        if program != "mcsp" or not words or words[0] in ("--help", "VERB", "..."):
            continue
        assert words[0] in verbs, (path, code)
        found += 1
        try:
            application(words[0]).parse_args(words, print_error=False, exit_on_error=False)
        except UnknownOptionError as error:
            raise AssertionError(f"{path}: {code}: {error}") from None
        except CycloptsError:
            pass  # inside of a line arguments may be left out
    assert found > 10
