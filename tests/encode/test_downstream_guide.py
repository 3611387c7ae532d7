"""docs/downstream.md is executed: every python and sh block, in order, in a folder as the page describes it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcsp.config import ModelConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.deployed import Head, write_classifier
from mcsp.encode.pretrained import PretrainedMCSP, from_pretrained
from mcsp.encode.window_classifier import MCSPClassifier
from mcsp.evaluate.deploy import heads_of
from mcsp.export import program
from mcsp.export.export import preprocessing_of
from mcsp.model.mcsp import MCSP
from mcsp.model.weights import write_pretrained
from tests.encode import test_bold as test_encode_bold
from tests.encode import test_eeg as test_encode_eeg

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "downstream.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall(GUIDE.read_text())


@pytest.fixture
def folder(corpus_dir: Path, pretrained: PretrainedMCSP, tmp_path: Path) -> Path:
    """``model/`` of a corpus, ``bids/``, and the command as an installation has it."""
    run = {"config": {"window_seconds": {"eeg": 10.0, "fmri": 30.0}, "hemodynamic_delay_seconds": 5.0}}
    preprocessing = preprocessing_of(run, Corpus(corpus_dir), pretrained.config.modalities)
    write_pretrained(pretrained, tmp_path / "model", preprocessing)
    (tmp_path / "bids").symlink_to(corpus_dir.parent / "bids")
    command = tmp_path / "bin" / "mcsp"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m mcsp "$@"\n')
    command.chmod(0o755)
    return tmp_path


def write_small_program(folder: Path) -> None:
    """As export would, of one domain, because a program of the whole model takes half a minute to record."""
    model = MCSP(ModelConfig(domains=("temporal",), modalities=("fmri",), fmri_anchors=4)).eval()
    recorded = program.record(program.EncoderProgram(model, "fmri", 0.5), 6, 16)
    program.write_program(recorded, folder / "fmri.pt2")
    (folder / "programs.json").write_text(json.dumps({"fmri": {"files": ["fmri.pt2"], **recorded.description()}}))


def write_small_classifier(folder: Path, model: PretrainedMCSP) -> None:
    """As finetune would, with a head of zeros."""
    sizes = {m: sum(model.feature_widths(m).values()) for m in model.config.modalities}
    facts = {
        "windows_per_recording": 1, "window_seconds": 10.0, "measured_of": "windows", "threshold": 0.5,
        "calibration": {"slope": 1.0, "bias": [0.0, 0.0]}, "distances": [0.0, 1.0], "channels": {"x": ["Cz"]},
        "skill": {"measure": "AUROC", "chance": 0.5, "estimate": None},
        "simulated": [],
    }  # fmt: skip
    arrays = heads_of(MCSPClassifier(model, 2, sizes, "head"))
    heads = {m: Head({**a, "centre_F": a["mean_F"], "spread_F": a["scale_F"]}, facts) for m, a in arrays.items()}
    task = {"kind": "classification", "label": "diagnosis", "classes": ["control", "case"]}
    write_classifier(folder, model, heads, task, {}, "")


def run(folder: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_python_of_the_guide_runs(folder: Path) -> None:
    write_small_program(folder / "model")
    write_small_classifier(folder / "finetuned" / "classifier", from_pretrained(folder / "model"))
    code = "\n".join(code for language, code in blocks() if language == "python")
    printed = run(folder, sys.executable, "-c", code)
    assert "average of the 19 good channels" in printed and "notch at 50 Hz" in printed
    assert "as in pretraining (simulated-a)" in printed
    assert "was not in the pretraining data" in printed and ", expected one of pretraining: " in printed
    assert "torch.Size([4, 2])" in printed and "'encoder': 0" in printed
    assert "torch.Size([3, " in printed and "'temporal': " in printed
    assert (folder / "features").is_dir()
    assert "case {'control': 0.5, 'case': 0.5}" in printed


@pytest.mark.slow
def test_the_commands_of_the_guide_end_in_a_report(folder: Path) -> None:
    commands = "set -euo pipefail\n" + "\n".join(code for language, code in blocks() if language == "sh")
    printed = run(folder, "bash", "-c", commands)
    for file in ("corpus/report.html", "evaluation/report.html", "evaluation/results.json", "finetuned/results.json"):
        assert (folder / file).is_file(), file
    assert "pretrained" in printed and "trained (head):" in printed
    assert "predictions.tsv: 32 of 32 recordings" in printed
    assert "OVERLAP NOT CHECKED" in printed  # the page makes a key of its own


def test_the_guide_has_no_other_blocks() -> None:
    found = [language for language, _ in blocks()]
    assert found.count("bash") == 1 and set(found) == {"bash", "python", "sh"}
    assert all("pip install" in code for language, code in blocks() if language == "bash")


def test_every_mistake_of_the_guide_gives_the_line_that_the_guide_quotes(pretrained: PretrainedMCSP) -> None:
    def error_of(make: Callable[[], Any]) -> str:
        with pytest.raises(ValueError) as error:  # noqa: PT011, what it says is what is tested
            make()
        return str(error.value)

    found = [error_of(lambda m=m: pretrained.encode_raw(m())) for m, _ in test_encode_eeg.MISTAKES.values()]
    found += [error_of(lambda m=m: m(pretrained)) for m, _ in test_encode_bold.MISTAKES.values()]
    tables = GUIDE.read_text().split("| mistake | what you get |")[1:]
    quoted = [line.split("`")[-2] for table in tables for line in table.partition("\n\n")[0].splitlines()[2:]]
    assert len(quoted) == 5
    for line in quoted:
        pattern = ".*".join(re.escape(part) for part in line.split("…"))
        assert any(re.search(pattern, message) for message in found), line
