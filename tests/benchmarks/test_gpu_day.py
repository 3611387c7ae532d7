"""The command for a day with a GPU: every stage, without one."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_day

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


def test_what_a_stage_has_started_ends_with_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of tests that goes on would take part in what the next stage measures."""
    monkeypatch.setattr(gpu_day, "ROOT", tmp_path)
    stages = tmp_path / "gpu_stages.py"
    stages.write_text(
        "import subprocess, sys, pathlib\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        "child.wait()\n"
    )
    monkeypatch.setattr(gpu_day, "__file__", str(stages.with_name("gpu_day.py")))
    assert gpu_day.run_stage("tuner", tmp_path, 5.0, False)["ended"] == "out of time"
    status = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    for _ in range(100):
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the program that the stage started goes on")


@pytest.mark.parametrize(
    ("stage", "found", "line"),
    [
        ("correctness", {"ended": "out of time"}, "correctness: out of time"),
        (
            "correctness",
            {"tests": {"a.py": {"failed": ["out of time"], "errors": 0}}, "ended": "done"},
            "a.py: out of time",
        ),
        ("tuner", {"ended": "failed"}, "tuner: failed"),
        ("card", {"ended": "failed"}, "card: failed"),
    ],
)
def test_what_was_not_shown_sets_nothing(tmp_path: Path, stage: str, found: dict[str, object], line: str) -> None:
    of_all = {"card": {"device": "x", "ended": "done"}, "correctness": {"tests": {}, "ended": "done"}}
    of_all |= {"tuner": {"implementations": [], "best": {}, "ended": "done"}, stage: found}
    for name, content in of_all.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    done = subprocess.run([*COMMAND, str(tmp_path), "--only", "verdict"], capture_output=True, text=True, check=False)
    assert done.stdout.rstrip().splitlines()[-2:] == ["Set nothing; these failed:", line]
    assert json.loads((tmp_path / "verdict.json").read_text())["rows"] == []
