"""The Hub's conventions, against a folder in place of the Hub."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mcsp.config import ModelConfig
from mcsp.export import hub
from mcsp.model.mcsp import MCSP
from mcsp.model.weights import write_pretrained

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def export(tmp_path: Path) -> Path:
    write_pretrained(MCSP(ModelConfig(domains=("temporal",))), tmp_path / "export", {"window_seconds": {"eeg": 5.0}})
    return tmp_path / "export"


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_what_is_pushed_comes_back_and_a_folder_needs_no_hub(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote, asked = tmp_path / "remote", {}

    class Api:
        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
            asked["private"] = private

        def upload_folder(self, repo_id: str, folder_path: str, **_: Any) -> SimpleNamespace:
            shutil.copytree(folder_path, remote / repo_id)
            return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")

    def snapshot_download(repo_id: str, allow_patterns: list[str], **_: Any) -> str:
        assert {"config.json", "model.safetensors", "SHA256SUMS"} <= set(allow_patterns)
        return str(remote / repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert hub.push_to_hub(export, "lab/model").endswith("lab/model/commit/1")
    assert asked == {"private": True}
    assert same(hub.from_pretrained("lab/model"), hub.from_pretrained(export))


@pytest.mark.parametrize("revision", [None, "v1", "c" * 40])
def test_what_the_hubs_own_client_has_kept_loads_by_its_name_without_a_network(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    kept = tmp_path / "cache" / "models--lab--model"
    shutil.copytree(export, kept / "snapshots" / ("c" * 40))
    (kept / "refs").mkdir()
    for name in ("main", "v1"):
        (kept / "refs" / name).write_text("c" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found = hub.from_pretrained("lab/model", revision, tmp_path / "cache")
    assert same(found, hub.from_pretrained(export))
    assert found.preprocessing == {"window_seconds": {"eeg": 5.0}}
    (kept / "snapshots" / ("c" * 40) / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged or changed"):
        hub.from_pretrained("lab/model", revision, tmp_path / "cache")


def test_a_repository_that_cannot_be_had_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"^lab/model: no such folder, and not to be had from the Hub \(\S") as error:
        hub.from_pretrained("lab/model", cache_dir=tmp_path)
    assert "\n" not in str(error.value)


def test_a_damaged_export_is_not_pushed_and_what_is_no_name_is_refused(export: Path) -> None:
    (export / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json"):
        hub.push_to_hub(export, "lab/model")
    for wrong in ("nowhere", "a/b/c", "/no/such/folder"):
        with pytest.raises(ValueError, match="expected a folder or a repository owner/name, found neither"):
            hub.from_pretrained(wrong)
