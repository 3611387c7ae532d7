"""The command for a day with a GPU: every stage, without one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, str(ROOT / "benchmarks" / "gpu_day.py"), "--rehearse", "--out"]


@pytest.mark.slow
def test_a_rehearsal_runs_every_stage_to_the_verdict_and_a_second_one_does_nothing_again(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    first = subprocess.run([*COMMAND, str(tmp_path)], capture_output=True, text=True, check=False)
    logs = "".join(path.read_text()[-1500:] for path in tmp_path.glob("*.log"))
    assert first.returncode == 0, first.stdout + logs
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    for stage in ("card", "correctness", "tuner", "bench", "train", "verdict"):
        assert found[stage]["ended"] == "done"
    tests = found["correctness"]["tests"].values()
    assert all(counts["tests"] > 0 and not counts["failures"] + counts["errors"] for counts in tests)
    assert {row["device"] for row in found["verdict"]["rows"]} == {"cpu"}
    assert first.stdout.rstrip().splitlines()[-1].startswith("{")
    second = subprocess.run([*COMMAND, str(tmp_path)], capture_output=True, text=True, check=False)
    assert second.stdout.count("done before") == 6


def test_a_stage_that_fails_or_takes_too_long_is_named_and_its_results_are_kept(tmp_path: Path) -> None:
    command = [*COMMAND, str(tmp_path), "--only", "card", "verdict", "--minutes", "0.001"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "card: out of time" in done.stdout and "no verdict" in done.stdout
    assert json.loads((tmp_path / "card.json").read_text())["ended"] == "out of time"
