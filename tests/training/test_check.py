"""What ``--check`` forecasts, beside what the run then does."""

import re
from pathlib import Path

from mcsp.run_log import read_metrics
from tests.training.ranks import pretrain


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, f"{pattern!r} not in {text}"
    return float(found[1].replace(",", ""))


def test_the_forecast_holds_and_leaves_no_trace(pretrain_overrides: list[str], tmp_path: Path) -> None:
    # Weights that take more than the noise of what a process holds.
    own = [*pretrain_overrides, "model.size=small", "batch={paired: 2, eeg: 0, fmri: 0}"]
    told = pretrain(*own, "--check")
    assert not (tmp_path / "run").exists()
    pretrain(*own)
    [*_, last] = read_metrics(tmp_path / "run")
    memory = number(r"expect ([0-9.]+) GiB", told)
    assert abs(memory / last["memory_gib"] - 1) < 0.1
    [folder, *_] = (tmp_path / "run" / "checkpoints").glob("step-*")
    saved = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    assert abs(number(r"checkpoint: ([0-9.]+) MiB", told) * 2**20 / saved - 1) < 0.1
    steps = sorted(line["seconds_per_step"] for line in read_metrics(tmp_path / "run")[1:])
    forecast = number(r"time: ([0-9.]+) s per step", told)
    assert steps[0] / 2 < forecast < 2 * steps[-1], "of a machine that other work shares"
    assert number(r"encoders +([0-9.]+) ms", told) > 0 and number(r"optimizer +([0-9.]+) ms", told) > 0
    assert 24 * 2 / 3 < number(r"training split: ([0-9,]+) paired", told) <= 24


def test_it_refuses_what_the_run_would(pretrain_overrides: list[str]) -> None:
    told = pretrain(*pretrain_overrides, "--check", "window_seconds={eeg: 10, fmri: 3000}", expect=2)
    assert "error: " in told and "shorten window_seconds" in told
