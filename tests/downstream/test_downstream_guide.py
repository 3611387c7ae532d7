"""docs/downstream.md is executed: every python and sh block, in order, in a folder as the page describes it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mcsp.data_sharding.reader import Corpus
from mcsp.downstream.export import preprocessing_of
from mcsp.model.pretrained import PretrainedMCSP, write_pretrained

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / "docs" / "downstream.md").read_text())


@pytest.fixture
def folder(corpus_dir: Path, pretrained: PretrainedMCSP, tmp_path: Path) -> Path:
    """``model/`` of a corpus, ``bids/`` and ``launchers/``."""
    run = {"config": {"window_seconds": {"eeg": 10.0, "fmri": 30.0}, "hemodynamic_delay_seconds": 5.0}}
    preprocessing = preprocessing_of(run, Corpus(corpus_dir), pretrained.config.modalities)
    write_pretrained(pretrained, tmp_path / "model", preprocessing)
    (tmp_path / "bids").symlink_to(corpus_dir.parent / "bids")
    (tmp_path / "launchers").symlink_to(ROOT / "launchers")
    return tmp_path


def run(folder: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_python_of_the_guide_runs(folder: Path) -> None:
    program = "\n".join(code for language, code in blocks() if language == "python")
    printed = run(folder, sys.executable, "-c", program)
    assert "average of the 19 good channels" in printed and "notch at 50 Hz" in printed
    assert "as in pretraining (simulated-a)" in printed
    assert "was not in the pretraining data" in printed
    assert "torch.Size([4, 2])" in printed and "'encoder': 0" in printed


@pytest.mark.slow
def test_the_commands_of_the_guide_end_in_a_report(folder: Path) -> None:
    program = "set -euo pipefail\n" + "\n".join(code for language, code in blocks() if language == "sh")
    printed = run(folder, "bash", "-c", program)
    for file in ("corpus/report.html", "evaluation/report.html", "evaluation/results.json", "finetuned/results.json"):
        assert (folder / file).is_file(), file
    assert "pretrained" in printed and "trained (head):" in printed


def test_the_guide_has_no_other_blocks() -> None:
    found = [language for language, _ in blocks()]
    assert found.count("") == 1 and set(found) == {"", "python", "sh"}
    assert all("pip install" in code for language, code in blocks() if not language)
