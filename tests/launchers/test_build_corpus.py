"""The command lines of the corpus: one clear line on bad input, never a stack trace."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mcsp.data_sharding.bids.write import write_eeg, write_json, write_parcellated_bold, write_parcellation
from tests.conftest import SUBJECT_KEY

ROOT = Path(__file__).resolve().parents[2]


def call(launcher: str, *arguments: object, key: str | None = SUBJECT_KEY) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "MCSP_SUBJECT_KEY"} | {"OMP_NUM_THREADS": "1"}
    if key is not None:
        environment["MCSP_SUBJECT_KEY"] = key
    script = [str(ROOT / "launchers" / launcher)] if launcher.endswith(".py") else ["-m", "mcsp", launcher]
    command = [sys.executable, *script, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def assert_one_line(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode == 2, result
    assert "Traceback" not in result.stderr + result.stdout
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


def write_site(root: Path) -> None:
    """Two sound recordings, an unreadable EDF and a sidecar without RepetitionTime."""
    rng = np.random.default_rng(0)
    write_json(root / "dataset_description.json", {"Name": "x", "BIDSVersion": "1.10.0"})
    sidecar = {"SamplingFrequency": 200}
    for subject in ("01", "02"):
        path = write_eeg(root, subject, "rest", rng.normal(0, 20, (4, 4000)), ["Fp1", "Fp2", "O1", "O2"], sidecar)
    path.write_bytes(b"not an EDF")
    bold = 1000 + rng.normal(0, 10, (3, 50))
    write_parcellation(root, "S", list("abc"), np.diag([20.0, 30, 40]))
    write_parcellated_bold(root, "01", "S", list("abc"), bold, {"RepetitionTime": 2.0})
    write_parcellated_bold(root, "03", "S", list("abc"), bold, {})


def test_too_many_bad_recordings_end_with_status_1_else_build_says_what_it_rejected_and_lint_agrees(
    tmp_path: Path,
) -> None:
    write_site(tmp_path / "bids" / "clinic")
    out = tmp_path / "corpus"
    strict = ("build_corpus.py", f"bids_root={tmp_path / 'bids'}", f"out_dir={out}", "workers=1")
    result = call(*strict)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "2 of 4 recordings are bad (50.0 %), max_quarantined allows 5 %" in result.stderr
    assert "clinic  missing-t_r  1 of 4" in result.stderr
    assert "4 (100 %)" in result.stderr  # the progress bar
    assert not (out / "index.json").exists()

    arguments = (*strict, "max_quarantined=60%")
    built = call(*arguments)
    assert built.returncode == 0, built.stderr
    assert built.stdout.splitlines()[1].split() == ["clinic", "4", "2", "2", "1", "0.03"]
    assert "rejected 1 x unreadable" in built.stdout and "rejected 1 x missing-t_r" in built.stdout

    again = call(*arguments)
    assert again.returncode == 0 and f"already complete: {out}" in again.stdout

    linted = call("lint", out)
    assert linted.returncode == 0 and linted.stdout.strip() == f"{out}: sound (1 samples, 2 recordings, 0.03 h)"
    shard = next((out / "shards").glob("*.tar"))
    shard.chmod(0o644)
    content = bytearray(shard.read_bytes())
    content[2000] ^= 1
    shard.write_bytes(content)
    linted = call("lint", out)
    assert linted.returncode == 1 and "does not match its CRC-32" in linted.stdout

    index = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text(json.dumps({**index, "schema_version": 99}))
    assert_one_line(call("lint", out), "index.json", "schema version 99", "this code reads version")


@pytest.mark.parametrize("launcher", ["build_corpus.py", "lint"])
def test_help_says_what_it_does(launcher: str) -> None:
    result = call(launcher, "--help")
    assert result.returncode == 0 and "corpus" in result.stdout


def test_bad_input_gives_one_line_and_status_2(tmp_path: Path) -> None:
    write_site(tmp_path / "bids" / "clinic")
    root, out = f"bids_root={tmp_path / 'bids'}", f"out_dir={tmp_path / 'out'}"
    missing = f"bids_root={tmp_path / 'nowhere'}"
    assert_one_line(
        call("build_corpus.py", missing, out),
        "nowhere: expected a BIDS dataset or a folder of some, found no such folder",
    )
    assert_one_line(call("build_corpus.py", root, out, key=None), "MCSP_SUBJECT_KEY", "openssl rand -hex 32")
    assert_one_line(
        call("build_corpus.py", root, out, "samples_per_shards=3"), "samples_per_shards", "known keys", "seed"
    )
    assert_one_line(
        call("build_corpus.py", root, f"out_dir={ROOT / 'launchers'}"), "not empty and no build of a corpus"
    )
    assert_one_line(call("lint", tmp_path / "nowhere"), "nowhere: expected a finished corpus, found no such folder")
    assert not (tmp_path / "out").exists()
    assert_one_line(call("build_corpus.py", root, out, "--address", "127.0.0.1:1"), "Ray at 127.0.0.1:1: cannot")
