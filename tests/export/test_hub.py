"""The Hub: what is pushed to an interface like the Hub's comes back by its name and revision, with no other network."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import mcsp
from mcsp.config import ModelConfig
from mcsp.encode.pretrained import is_repository
from mcsp.export.hub import front_matter, push_to_hub
from mcsp.model.mcsp import MCSP
from mcsp.model.weights import write_pretrained
from tests.export.hub_server import COMMIT, Hub, running_hub

constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "export"
    write_pretrained(MCSP(ModelConfig(domains=("temporal",))), folder, {"window_seconds": {"eeg": 5.0}})
    (folder / "README.md").write_text("---\nlicense: other\n---\n# A card\n")
    return folder


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_hub() as found:
        yield found


@pytest.fixture(scope="module")
def program(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python in a process of its own: the Hub's client reads its settings when it is imported."""
    home = tmp_path_factory.mktemp("home")

    def run(code: str, **settings: str) -> subprocess.CompletedProcess[str]:
        known = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": "hf_test", "NO_PROXY": "127.0.0.1"}
        environment = {**os.environ, **known, **settings}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)

    return run


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_what_is_pushed_comes_back_by_name_and_revision(
    export: Path, hub: Hub, program: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    hub.files["lab/model"] = {"old.bin": b"of an earlier export"}
    expected = {p.name: p.read_bytes() for p in export.iterdir()}
    (export / "evaluation").mkdir()
    (export / "evaluation" / "subject.key").write_text("a secret")
    (export / "notes.txt").write_text("names of people")
    done = program(
        f"from mcsp.export.hub import front_matter, push_to_hub; print(push_to_hub({str(export)!r}, 'lab/model'))"
    )
    assert done.stdout.strip().endswith(f"lab/model/commit/{COMMIT}"), done.stderr
    assert hub.private == {"lab/model": True}
    assert hub.files["lab/model"] == expected
    code = """
import mcsp, sys
model = mcsp.from_pretrained("lab/model", revision=sys.argv[1] if len(sys.argv) > 1 else "v1")
print(model.preprocessing, sum(float(p.detach().double().sum()) for p in model.parameters()))
"""
    done = program(code)
    model = mcsp.from_pretrained(export)
    total = sum(float(p.detach().double().sum()) for p in model.parameters())
    assert done.stdout.strip() == f"{model.preprocessing} {total}", done.stderr
    assert "v1" in hub.revisions
    hub.files["lab/model"]["config.json"] = b"{}"  # what was downloaded is kept, with its commit
    assert program(code, HF_HUB_OFFLINE="1").stdout == done.stdout


def test_a_corpus_is_pushed_as_a_dataset_with_its_card_once_it_is_sound(
    corpus_dir: Path, hub: Hub, program: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    corpus = shutil.copytree(corpus_dir, tmp_path / "corpus")
    (corpus / ".build").mkdir(exist_ok=True)
    (corpus / ".build" / "private").touch()
    code = f"from mcsp.export.hub import push_to_hub; print(push_to_hub({str(corpus)!r}, 'lab/corpus'))"
    done = program(code)
    assert done.returncode == 0, done.stderr
    assert (hub.kinds["lab/corpus"], hub.private["lab/corpus"]) == ("dataset", True)
    pushed = {name.split("/")[0] for name in hub.files["lab/corpus"]}
    assert pushed == {path.name for path in corpus.iterdir() if not path.name.startswith(".")}
    assert hub.files["lab/corpus"]["README.md"].startswith(b"---\nlicense: ")
    shard = next((corpus / "shards").rglob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1024])
    hub.files["lab/corpus"].clear()
    done = program(code)
    assert "expected a sound corpus, found" in done.stderr and hub.files["lab/corpus"] == {}


def test_what_cannot_be_had_is_one_line(program: Callable[..., subprocess.CompletedProcess[str]], hub: Hub) -> None:
    hub.files["lab/damaged"] = {"config.json": b"{}", "model.safetensors": b"", "preprocessing.json": b"{}"}
    code = """
import mcsp
for name, revision in (("lab/none", None), ("lab/damaged", "v9"), ("lab/damaged", None)):
    try:
        mcsp.from_pretrained(name, revision)
    except ValueError as error:
        print(error)
"""
    none, revision, damaged = program(code).stdout.splitlines()
    assert none.startswith("lab/none: no such folder, and not to be had from the Hub (")
    assert revision.startswith("lab/damaged: no such folder, and not to be had from the Hub (")
    assert "config.json" in damaged and "format_version" in damaged


def test_without_the_client_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"^lab/model: no such folder; .* pip install 'mcsp-pretraining\[hub\]'$"):
        mcsp.from_pretrained("lab/model")


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_what_the_hubs_own_client_has_kept_loads_without_a_network(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    kept = tmp_path / "cache" / "models--lab--model"
    shutil.copytree(export, kept / "snapshots" / COMMIT)
    (kept / "refs").mkdir()
    for name in ("main", "v1"):
        (kept / "refs" / name).write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = mcsp.from_pretrained("lab/model", revision, tmp_path / "cache")
    assert same(found, mcsp.from_pretrained(export))
    (kept / "snapshots" / COMMIT / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged or changed"):
        mcsp.from_pretrained("lab/model", revision, tmp_path / "cache")


def test_a_damaged_export_is_not_pushed_and_folders_stay_folders(export: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json"):
        push_to_hub(tmp_path, "lab/model")
    assert is_repository("lab/model") and is_repository("lab-1/model.v2")
    for other in ("nowhere", "a/b/c", "/no/such/folder", "./runs/export", "../export", str(export), Path("lab/model")):
        assert not is_repository(other)
    with pytest.raises(ValueError, match="a folder has no revision, found 'v1'"):
        mcsp.from_pretrained(export, revision="v1")
    with pytest.raises(ValueError, match="expected an exported model"):
        mcsp.from_pretrained("nowhere")


def test_the_card_says_to_the_hub_what_it_is_and_what_it_scored() -> None:
    cards = pytest.importorskip("huggingface_hub.repocard")
    interval = {"value": 0.71234, "ci_low": 0.6, "ci_high": 0.8}
    row = {"recordings": "eeg", "protocol": "kfold", "features": "pretrained", "classifier": "linear SVM"}
    rows = [
        {**row, "transductive": False, "auroc": interval, "balanced_accuracy": 0.65},
        {**row, "transductive": True, "auroc": interval},
        {**row, "transductive": False, "features": "untrained", "auroc": interval},
    ]
    evaluation = {
        "label": {"name": "diagnosis"}, "sites": {"site-a": {"simulated": True}}, "corpus_index_hash": "ab" * 32,
        "classification": rows,
    }  # fmt: skip
    known = cards.ModelCard(front_matter("nano", ("eeg", "fmri"), evaluation) + "# MCSP").data
    assert (known.license, known.license_name, known.pipeline_tag, known.library_name) == (
        "other", "terms-of-the-weights", "feature-extraction", "mcsp",
    )  # fmt: skip
    assert known.tags == ["eeg", "fmri", "self-supervised"]
    scores = {(r.task_name, r.dataset_name, r.metric_type): r.metric_value for r in known.eval_results}
    asked = ("diagnosis from eeg, kfold, linear SVM", "site-a (simulated)")
    assert scores == {(*asked, "roc_auc"): 0.7123, (*asked, "balanced_accuracy"): 0.65}
    age = {"r2": interval, "r": interval, "mae": {**interval, "value": 7.5}}
    rows[:] = [{**row, "transductive": False, **age}]
    known = cards.ModelCard(front_matter("nano", ("eeg",), evaluation) + "# MCSP").data
    assert {r.metric_type: r.metric_value for r in known.eval_results} == {
        "r_squared": 0.7123, "pearsonr": 0.7123, "mae": 7.5,
    }  # fmt: skip
    assert cards.ModelCard(front_matter("nano", ("eeg",), None) + "# MCSP").data.eval_results is None
