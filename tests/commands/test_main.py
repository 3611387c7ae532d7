"""``mcsp VERB``: every verb is found, helps without heavy imports, and refuses mistakes in one line.

Covers: mcsp/__main__.py, mcsp/commands/corpus.py, mcsp/commands/settings.py
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mcsp.commands.main import VERBS, application, launcher, run
from mcsp.commands.pretrain import read_evaluation
from mcsp.commands.settings import PLACES, takes
from mcsp.config import CorpusConfig, FinetuneConfig, PretrainConfig, find_config

ROOT = Path(__file__).resolve().parents[2]
ALL = [verb for verbs in VERBS.values() for verb in verbs]
HEAVY = ("torch", "numpy", "mne", "nibabel", "ray", "deepspeed", "sklearn", "pandas", "matplotlib")
Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    def call(*words: object) -> str:
        assert run([str(word) for word in words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    return call


def test_the_verbs_are_those_that_people_know(capsys: pytest.CaptureFixture[str]) -> None:
    expected = "build lint status report write-bids pretrain export encode predict evaluate finetune explain plot demo"
    assert set(expected.split()) <= set(ALL)
    assert run(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"│ {verb} " in printed for verb in ALL) and all(f"─ {group} ─" in printed for group in VERBS)


def test_help_of_every_verb_and_refusals_import_nothing_heavy(tmp_path: Path) -> None:
    """One process: what none of the calls imports, no single one does."""
    code = f"""
import sys
from mcsp.commands.main import run
for verb in {ALL}:
    assert run([verb, "--help"]) == 0, verb
for words in (["pretrian"], ["lint", "nowhere"], ["plot", "nowhere"], ["export", "nowhere", "out"], ["report", "x"],
              ["encode", "nowhere", "a.edf", "--out", "b.tsv"], ["predict", "nowhere", "a.edf", "--out", "b.tsv"],
              ["pretrain", "corpus_dir=nowhere", "run_dir=run"], ["build", "bids_root=nowhere", "out_dir=out"],
              ["evaluate", "model_dir=nowhere", "corpus_dir=b", "out_dir=c"], ["write-bids", "nowhere.tsv", "out"]):
    assert run(words) == 2, words
print(sorted(set(sys.modules) & set({HEAVY})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr.count("error: ") == len(done.stderr.splitlines()) == 11


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["pretrian"], ["pretrian", "Did you mean", "pretrain"]),
        (["pretrain", "--setps", "3"], ["--setps", "--steps"]),
        (["pretrain", "setps=3"], ["unknown key 'setps'; did you mean 'steps'?"]),
        (["pretrain", "--model.siez", "nano"], ["unknown key 'model.siez'; did you mean 'model.size'?"]),
        (["pretrain", "--model.size"], ["--model.size", "expected a value"]),
        (["pretrain", "--steps", "3", "steps=4"], ["steps", "expected one of them"]),
        (["finetune", "--depth", "headd"], ["headd", "last_layers"]),
        (["pretrain", "--address", "auto"], ["--address"]),
        (["build", "bids_root=s3://b/x", "out_dir=o"], ["bids_root", "of this machine", "sites.NAME.path=s3://b/x"]),
        (["build", "out_dir=o"], ["error: command line: expected bids_root=DIR or a list of sites\n"]),
        (["lint", "corpus", "--names", "file"], ["--privacy"]),
        (["demo-sites", "out", "--subjects", "1"], ["--subjects: expected at least 2, found 1"]),
    ],
)
def test_a_mistake_is_one_line_that_says_what_was_meant(refused: Refused, words: list[str], parts: list[str]) -> None:
    error = refused(*words)
    assert [part for part in parts if part not in error] == []


def test_a_folder_that_is_not_what_a_key_says_is_refused_at_once(refused: Refused, tmp_path: Path) -> None:
    assert "expected an exported model, found no such folder" in refused(
        "evaluate", f"model_dir={tmp_path / 'none'}", f"corpus_dir={tmp_path}", "out_dir=out"
    )
    (tmp_path / "config.json").touch()
    error = refused("evaluate", f"model_dir={tmp_path}", f"corpus_dir={tmp_path}", "out_dir=out")
    assert f"{tmp_path}: expected a finished corpus, found none (index.json is missing)" in error
    (tmp_path / "results.json").write_text('{"scores": []}')
    with pytest.raises(
        ValueError, match=r"results\.json: expected the results of mcsp evaluate, found those of another"
    ):
        read_evaluation(tmp_path)
    (tmp_path / "index.json").touch()
    (tmp_path / "names.txt").write_bytes("Müller\n".encode("latin-1"))
    error = refused("lint", str(tmp_path), "--privacy", "--names", str(tmp_path / "names.txt"))
    assert "names.txt: expected text in UTF-8, found another encoding" in error
    assert set(PLACES) <= {
        *FinetuneConfig.model_fields,
        *CorpusConfig.model_fields,
        "run_dir",
        "finetuned_dir",
        "classifier_dir",
    }


def test_what_an_extra_would_bring_is_one_line_and_a_fault_of_this_package_is_none(tmp_path: Path) -> None:
    """In a process of its own, whose modules are not those of other tests."""
    for name, file in (("model", "config.json"), ("corpus", "index.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    code = """
import sys
sys.modules["sklearn"] = sys.modules["mcsp.evaluate.evaluate"] = None
from mcsp.commands.main import run
assert run(["encode", "model", "a.edf", "--out", "a.tsv"]) == 2
run(["evaluate", "model_dir=model", "corpus_dir=corpus", "out_dir=out"])
"""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60)
    told, *trace = done.stderr.splitlines()
    assert "sklearn" in told and told.endswith("pip install 'mcsp-pretraining[lab]'")
    assert trace[0].startswith("Traceback") and "mcsp.evaluate.evaluate" in trace[-1]


def test_an_object_store_without_credentials_is_one_line(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "nowhere")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # where nobody answers
    for verb in ("status", "lint"):
        error = refused(verb, "s3://bucket/no-credentials")
        assert "redentials" in error and "AWS_*" in error


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert run([*words, "--print-config"]) == 0
    found: dict = yaml.safe_load(capsys.readouterr().out)
    return found


def test_every_way_to_give_a_value_comes_to_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    given = ["corpus_dir=a", "run_dir=b"]
    file = tmp_path / "settings.yaml"
    file.write_text("steps: 7\nmodel: {size: small}\nwindow_seconds: {eeg: 4}\n")
    expected = PretrainConfig.load(file, given).dump()
    ways = [
        ["steps=7", "model.size=small", "window_seconds.eeg=4"],
        ["--steps", "7", "--model.size", "small", "--window_seconds.eeg", "4"],
        ["--steps=7", "--model.size=small", "--window-seconds={eeg: 4}"],
        ["--config", str(file)],
        ["--local_rank=0", "--config", str(file)],  # the deepspeed launcher adds it
    ]
    for way in ways:
        assert shown(capsys, "pretrain", *way, *given) == expected, way
    assert shown(capsys, "pretrain", "--config", str(file), *given, "--steps", "9")["steps"] == 9
    sites = shown(
        capsys, "build", "out_dir=o", "--sites.berlin-1.path", "folder", "--participants_columns", "[age, sex]"
    )
    assert sites["sites"]["berlin-1"]["path"] == "folder" and sites["participants_columns"] == ["age", "sex"]
    assert shown(capsys, "build", "out_dir=o", "bids_root=b", "--workers", "null")["workers"] is None


def test_help_names_every_key_with_its_choices_and_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["finetune", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert all(f"--{name} " in printed for name in FinetuneConfig.model_fields)
    assert "--model_dir PATH an export [required]" in printed
    assert "[last_layers] [choices: head, last_layers, full]" in printed
    assert run(["pretrain", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "─ batch ─" in printed and "samples with both modalities [32]" in printed
    assert "0 finished, 75 asked to stop (run it again), 74 disk full" in printed


def test_the_shell_completes_verbs_keys_and_choices() -> None:
    for shell in ("bash", "zsh", "fish"):
        script = application().generate_completion(shell=shell)  # type: ignore[arg-type]
        assert all(word in script for word in ("finetune", "depth", "last_layers"))


def test_configs_are_found_from_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("configs/pretrain/demo.yaml", "pretrain/demo.yaml"):
        assert find_config(name) == ROOT / "configs/pretrain/demo.yaml"
    own = tmp_path / "pretrain" / "demo.yaml"
    own.parent.mkdir()
    own.touch()
    assert find_config("pretrain/demo.yaml").resolve() == own, "a file of one's own comes first"
    assert find_config("nothing.yaml") == Path("nothing.yaml")


def test_a_command_gets_its_settings_and_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    seen = {}

    @takes(FinetuneConfig)
    def command(config: FinetuneConfig, *, check: bool = False) -> int:
        seen["steps"], seen["check"] = config.max_passes, check
        return 3

    app = application()
    app.command(command, name="own")
    assert run(["own", "model_dir=a", "corpus_dir=b", "out_dir=c", "--max_passes", "2", "--check"], app) == 3
    assert seen == {"steps": 2, "check": True}
    assert launcher("lint")(["nowhere"]) == 2 and "nowhere" in capsys.readouterr().err
