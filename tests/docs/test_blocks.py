"""Every fenced block of the pages: Python runs, YAML and JSON load, commands pass their own parsers and run nothing."""

import json
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from mcsp.commands.main import _app, application, run
from mcsp.config import CorpusConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "kernels/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^ *```(.*)\n((?:.*\n)*?) *```$", re.MULTILINE)

# Python that other files run, because they look at what it prints or writes as well.
PYTHON_RUNS_IN = {
    "README.md": "tests/test_readme.py",
    "docs/downstream.md": "tests/encode/test_downstream_guide.py",
}
# What no test here runs or parses, and why: the beginning of the command.
NOT_PARSED = {
    "ray ": "a cluster of several machines; tests/data_sharding/build starts a local one",
    "ssh ": "a second machine",
    "kubectl ": "a Kubernetes cluster; tests/launchers/test_cluster_files.py reads the file",
    "tensorboard ": "another project's program",
    "python -m venv ": "installs; make setup and tests/test_core_install.py install",
    "export ": "a variable of the shell",
    ". ": "the shell's own",
}
# Blocks of text are output; a test compares the first with what is printed, the others show the form of a line.
TEXT_SHOWS = {
    "README.md": "tests/test_readme.py",
    "docs/training.md": "lines of a run: numbers and names differ from run to run",
    "docs/corpus-format.md": "the files of a corpus; tests/data_sharding/inspect/test_lint.py",
    "kernels/README.md": "formulas",
}
SCHEMAS = {"docs/cleaning.md": CorpusConfig}


class Block(NamedTuple):
    page: str
    language: str
    text: str


BLOCKS = [
    Block(str(page.relative_to(ROOT)), language, text)
    for page in PAGES
    for language, text in FENCE.findall(page.read_text(encoding="utf-8"))
    if not language.startswith("{")  # directives of Sphinx, which its own build reads
]


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def commands(text: str) -> list[list[str]]:
    """The words of each command, without comments and what a pipe or redirection gets."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = list(shlex.shlex(line, posix=True, punctuation_chars="&|;<>")) if "$(" in line else None
        words = words or shlex.split(line, comments=True)
        start = 0
        for end, word in enumerate([*words, "&&"]):
            if word in ("&&", "&", "|", ";", ">"):
                if words[start:end]:
                    found.append(words[start:end])
                start = end + 1
    return found


def commented(text: str) -> list[str]:
    """Command lines in comments and docstrings, with what they may leave out and without what they explain."""
    lines = re.findall(r"^[#: ]*?(?:[\w ]+: +)?((?:mcsp|python|deepspeed) [\w-][^\n]+)", text, re.MULTILINE)
    lines = [re.split(r"  +", line)[0].replace("[", "").replace("]", "") for line in lines if "=[" not in line]
    left_out = ("...", "--config FILE", "python -m mcsp.")
    return [line for line in lines if not any(part in line for part in left_out)]


SOURCES = [
    path
    for folder, kind in (("configs", "*.yaml"), ("mcsp/commands", "*.py"), ("benchmarks", "*.py"), ("examples", "*.py"))
    for path in sorted((ROOT / folder).rglob(kind))
]
COMMANDS = [(block.page, words) for block in of("sh", "bash") for words in commands(block.text)]
COMMANDS += [
    (str(path.relative_to(ROOT)), shlex.split(line)) for path in SOURCES for line in commented(path.read_text())
]


def parsed(words: list[str]) -> str:
    """Give a command line to its own parser; what was done with it, or the error that the command would give."""
    if words[:3] == ["ray", "job", "submit"]:
        return parsed(words[words.index("--") + 1 :])
    if " ".join(words).startswith(tuple(NOT_PARSED)):
        return "not parsed"
    first, *rest = words
    if first == "mcsp":
        return verb(rest)
    if first == "make":
        return make(rest)
    if first == "pip":
        return pip(rest)
    if first == "sbatch":
        assert (ROOT / rest[0]).is_file(), rest[0]
        return verb(["pretrain", f"run_dir={rest[1]}", *rest[2:]])  # as the file itself says
    if first == "deepspeed":
        from deepspeed.launcher.runner import parse_args

        given = parse_args(rest)
        return script([given.user_script, *given.user_args])
    if first == "python":
        return script(rest)
    raise AssertionError(f"{first}: expected a program that this test knows, or a line in NOT_PARSED")


def verb(words: list[str]) -> str:
    app = application(words[0])
    _, bound, _ = app.parse_args(words, print_error=False, exit_on_error=False)
    if "key_value" in bound.signature.parameters:  # settings: the schema judges them, and shows what they come to
        assert run([*words, "--print-config"]) == 0, words
        return "settings"
    return "arguments"


def make(words: list[str]) -> str:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, given, _ = word.partition("=")
        known = rf"\$\({name}\)" if given else rf"^{re.escape(name)}:.* ## "
        assert re.search(known, makefile, re.MULTILINE), f"make {word}: expected a target or variable of the Makefile"
    return "targets"


def pip(words: list[str]) -> str:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {name for word in words for part in re.findall(r"\[([\w,]+)\]", word) for name in part.split(",")}
    assert named <= set(extras), named
    assert words[0] == "install"
    assert "-c" not in words or (ROOT / words[words.index("-c") + 1]).is_file()
    return "extras"


def script(words: list[str]) -> str:
    if words[:2] == ["-m", "mcsp"]:
        return verb(words[2:])
    if words[:2] == ["-m", "benchmarks.ablation"] and words[2] != "--table":
        from benchmarks.ablation.__main__ import ablate

        app = _app("ablation")
        app.default(ablate)
        assert run([*words[2:], "--print-config"], app) == 0
        return "settings"
    if words[0] == "-m":
        words = [f"{words[1].replace('.', '/')}/__main__.py", *words[2:]]
    source = (ROOT / words[0]).read_text()
    if launched := re.search(r'launcher\("([\w-]+)"\)', source):
        return verb([launched[1], *words[1:]])
    folders = (ROOT / "benchmarks", (ROOT / words[0]).parent)
    names = re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE)
    beside = [folder / f"{name}.py" for folder in folders for name in names]
    source += "".join(path.read_text() for path in beside if path.is_file())  # where options may be defined for several
    for option in (word for word in words[1:] if word.startswith("--")):
        named = option.replace("--no-", "--")  # argparse makes --no-x of a switch --x
        assert f'"{option}"' in source or f'"{named}"' in source, f"{words[0]} has no option {option}"
    assert all((ROOT / w).is_file() for w in words[1:] if w.startswith("benchmarks/"))
    return "options"


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}: {' '.join(w)[:60]}" for page, w in COMMANDS])
def test_a_command_passes_its_own_parser(
    page: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert parsed(words), page


@pytest.mark.parametrize(
    "line",
    [
        "mcsp pretrain corpus_dir=c run_dir=r stepz=1", "mcsp lint DIR --privcy", "mcsp export RUN", "make demos",
        "make demo DEM=smallest", "pip install '.[labs]'", "python launchers/evaluate.py model_dir=m labels=x",
        "deepspeed --hostfil h launchers/pretrain.py corpus_dir=c", "python benchmarks/abide.py --tables",
        "sbatch launchers/slurm/pretrain.sbatch run corpus=c", "python -m benchmarks.ablation corpus=c", "mcsq lint",
    ],
)  # fmt: skip
def test_a_wrong_command_does_not(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (words,) = commands(line)
    with pytest.raises((Exception, SystemExit)):  # each parser has an error of its own
        parsed(words)


def test_there_is_a_command_of_most_kinds_and_no_list_names_what_is_gone() -> None:
    lines = [" ".join(words) + " " for _, words in COMMANDS]
    assert {line.split()[0] for line in lines} >= {"mcsp", "make", "pip", "python", "deepspeed", "sbatch"}
    unused = {start for start in NOT_PARSED if not any(line.startswith(start) for line in lines)}
    assert unused <= {"tensorboard "}
    assert {block.page for block in of("text")} == set(TEXT_SHOWS)
    assert {block.page for block in of("yaml")} == set(SCHEMAS)


def test_every_block_names_its_language() -> None:
    assert not [block for block in BLOCKS if block.language not in ("python", "sh", "bash", "yaml", "json", "text")]


@pytest.mark.parametrize("block", of("yaml", "json"), ids=lambda block: block.page)
def test_values_load(block: Block, tmp_path: Path) -> None:
    if block.language == "json":
        assert json.loads(block.text)
        return
    (tmp_path / "page.yaml").write_text(block.text)
    loaded = SCHEMAS[block.page].load(tmp_path / "page.yaml", [f"out_dir={tmp_path}"])
    given = yaml.safe_load(block.text)
    assert given and all(name in loaded.dump() for name in given)


def test_python_that_another_test_runs_is_read_by_it() -> None:
    for page, test in PYTHON_RUNS_IN.items():
        assert Path(page).name in (ROOT / test).read_text(), test
    assert {block.page for block in of("python")} == {*PYTHON_RUNS_IN, *PREPARED}


def a_corpus(folder: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    corpus_dir = request.getfixturevalue("corpus_dir")
    (folder / "DIR").symlink_to(corpus_dir)
    (folder / "train-00000.tar").symlink_to(sorted((corpus_dir / "shards").glob("train-*.tar"))[0])
    return {}


def an_export_and_trials(folder: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the page takes for granted: a model, a recording with trials, datasets of both packages."""
    pytest.importorskip("braindecode.models", exc_type=(ImportError, OSError), reason="extra ecosystem")
    pytest.importorskip("moabb.evaluations", reason="extra ecosystem")
    import mne
    import numpy as np
    from braindecode.datasets import create_from_X_y
    from moabb.datasets.fake import FakeDataset
    from moabb.paradigms import LeftRightImagery

    (folder / "model").symlink_to(request.getfixturevalue("export_dir"))
    pipelines = folder / "configs" / "moabb"
    pipelines.mkdir(parents=True)
    text = (ROOT / "configs/moabb/mcsp.yml").read_text()
    (pipelines / "mcsp.yml").write_text(text)
    names, rng = ["Fp1", "Fp2", "C3", "C4", "O1", "O2"], np.random.default_rng(0)
    raw = mne.io.RawArray(2e-5 * rng.standard_normal((6, 4000)), mne.create_info(names, 200.0, "eeg"), verbose="ERROR")
    x_NCT, y_N = 2e-5 * rng.standard_normal((24, 6, 400)).astype("float32"), np.arange(24) % 2
    windows = create_from_X_y(
        x_NCT, y_N, drop_last_window=False, sfreq=200.0, ch_names=names, window_size_samples=400,
        window_stride_samples=400,
    )  # fmt: skip
    trials = FakeDataset(
        event_list=("left_hand", "right_hand"), n_sessions=1, n_runs=1, n_subjects=1, n_events=20, duration=70,
        channels=("C3", "Cz", "C4", "Fz", "Pz"), seed=1,
    )  # fmt: skip
    paradigm = LeftRightImagery(fmin=1, fmax=40)
    return {"raw": raw, "windows_dataset": windows, "paradigm": paradigm, "datasets": [trials]}


PREPARED: dict[str, Callable[[Path, pytest.FixtureRequest], dict[str, Any]]] = {
    "docs/corpus-format.md": a_corpus,
    "docs/ecosystem.md": an_export_and_trials,
}
CHECKED: dict[str, Callable[[dict[str, Any]], bool]] = {
    "docs/corpus-format.md": lambda names: names["window"].x_TC.dtype == "float32" and len(list(names["shard"])) > 1,
    "docs/ecosystem.md": lambda names: len(names["net"].history) == 5 and names["net"].history[-1, "train_loss"] > 0,
}


@pytest.mark.filterwarnings("default")  # braindecode's and MOABB's own
@pytest.mark.parametrize("page", PREPARED)
def test_the_python_of_a_page_runs_in_order(
    page: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_MNE_FAKE_HOME_DIR", "MNE_DATA", "MOABB_RESULTS"):  # MOABB writes into the settings of MNE
        monkeypatch.setenv(name, str(tmp_path))
    names = PREPARED[page](tmp_path, request)
    monkeypatch.chdir(tmp_path)
    for block in of("python"):
        if block.page == page:
            exec(compile(block.text, page, "exec"), names)
    assert CHECKED[page](names)
