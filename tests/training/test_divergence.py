"""A planted divergence: the learning rate a hundred times too large from a step on, in a run through the loop.

Covers: mcsp/training/health.py, mcsp/training/trainer.py
"""

import json
import statistics
import subprocess
import sys

import torch

from mcsp.run_log import read_events, read_metrics
from mcsp.training.saving.state import consolidate_weights
from mcsp.training.stopping import EXIT_DATA
from tests.training.ranks import ROOT, environment

FIRST, SECOND, LOST_AFTER = 24, 44, 6  # applied steps that both divergences begin after; steps that count as lost
PROGRAM = f"""
import mcsp.training.trainer as trainer
usual, back = trainer.learning_rate, trainer.Trainer.roll_back
begin = {FIRST}

def learning_rate(config, applied_steps):
    return usual(config, applied_steps) * (100 if applied_steps >= begin else 1)

def roll_back(self, metrics):
    global begin
    back(self, metrics)
    begin = {SECOND}  # the cause has gone, and comes back later

trainer.learning_rate, trainer.Trainer.roll_back = learning_rate, roll_back
from launchers.pretrain import main
main()
"""


def test_a_run_that_diverges_goes_back_and_where_that_does_not_help_ends_with_its_last_good_checkpoint(
    corpus_dir, tmp_path
) -> None:
    run_dir = tmp_path / "run"
    overrides = [
        f"corpus_dir={corpus_dir}", f"run_dir={run_dir}", "steps=90", "batch={paired: 8, eeg: 0, fmri: 0}",
        "window_seconds={eeg: 4, fmri: 20}", "model.domains=[spectral]", "objective.prediction=0", "objective.alpha=0",
        "warmup_steps=2", "schedule=constant", "checkpoint_every=4", "keep_checkpoints=2", "health.spike_window=8",
        f"health.lost_after={LOST_AFTER}", "health.max_rollbacks=1",
    ]  # fmt: skip
    command = [sys.executable, "-c", PROGRAM, *overrides]
    done = subprocess.run(
        command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    ended = json.loads((run_dir / "exit.json").read_text())
    assert done.returncode == ended["exit_code"] == EXIT_DATA, done.stderr[-2000:]
    assert ended["reason"] == "too many rollbacks" and ended["step"] >= SECOND + LOST_AFTER

    [back] = [event for event in read_events(run_dir) if event["event"] == "rollback"]
    assert "above its first level" in back["because"]
    first, last = map(int, back["data_skipped"].split(" to "))
    assert FIRST - 4 <= first == int(back["checkpoint"].removeprefix("step-")) <= FIRST
    assert LOST_AFTER <= last - first + 1 <= 4 * LOST_AFTER, "neither early nor late"
    lines = read_metrics(run_dir)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    losses = [line["loss"] for line in lines]
    again = next(line["step"] for line in lines if line["learning_rate"] > 0.01)
    recovered = statistics.median(losses[again - 9 : again - 1])
    assert recovered < statistics.median(losses[:8]) / 1.5 and statistics.median(losses[-8:]) > 1.5 * recovered

    newest = max(path.name for path in (run_dir / "checkpoints").glob("step-*"))
    assert newest == f"step-{(again - 1) // 4 * 4:08d}", "of a later step, or not the last good one"
    weights = consolidate_weights(run_dir / "checkpoints" / newest)
    assert all(bool(torch.isfinite(weight).all()) for weight in weights.values())
