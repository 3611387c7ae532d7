import json
import signal
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mcsp.run_log import read_metrics
from tests.training.ranks import LAUNCHER, deepspeed, last_step, pretrain, same, start_ranks, weights


@pytest.mark.slow
@pytest.mark.multirank
def test_kill_and_restart_ends_with_the_weights_of_an_uninterrupted_run(finished_run, tmp_path) -> None:
    reference, overrides = finished_run
    run_dir = tmp_path / "run"
    for target in (6, 13):  # killed in two places: after step 6, then after step 13, between checkpoints
        ranks = start_ranks(2, LAUNCHER, f"run_dir={run_dir}", *overrides)
        try:
            deadline = time.monotonic() + 120
            while last_step(run_dir) < target:
                assert time.monotonic() < deadline and ranks[0].poll() is None, ranks[0].communicate()[0]
                time.sleep(0.02)
        finally:
            for process in ranks:
                process.send_signal(signal.SIGKILL)
                process.wait()
        assert not (run_dir / "checkpoints" / "step-00000020").exists(), "the run ended before it was killed"
        assert list((run_dir / "checkpoints").glob("step-*")), "nothing was saved before the kill"
    deepspeed(f"run_dir={run_dir}", *overrides).wait(timeout=240)
    assert same(weights(run_dir, 20), weights(reference, 20))
    resumed, whole = read_metrics(run_dir), read_metrics(reference)
    assert [m["step"] for m in resumed] == list(range(1, 21)), "a step is missing or repeated in metrics.jsonl"
    assert [m["loss"] for m in resumed] == [m["loss"] for m in whole]


@pytest.mark.multirank
@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGUSR1])
def test_a_signal_to_one_rank_saves_and_ends_all(finished_run, tmp_path, number) -> None:
    reference, overrides = finished_run
    run_dir = tmp_path / "run"
    ranks = start_ranks(2, LAUNCHER, f"run_dir={run_dir}", *overrides, "checkpoint_every=1000")
    try:
        deadline = time.monotonic() + 120
        while last_step(run_dir) < 3:
            assert time.monotonic() < deadline and ranks[1].poll() is None, ranks[1].communicate()[0]
            time.sleep(0.02)
        ranks[1].send_signal(number)
        assert [process.wait(timeout=60) for process in ranks] == [75, 75]
    finally:
        for process in ranks:
            process.kill()
    stopped = json.loads((run_dir / "exit.json").read_text())
    assert stopped["reason"] == "asked to stop" and 3 <= stopped["step"] < 20 and stopped["exit_code"] == 75
    assert stopped["detail"] == f"{signal.Signals(number).name} on rank 1"
    assert [p.name for p in (run_dir / "checkpoints").iterdir()] == [f"step-{stopped['step']:08d}"]
    if number == signal.SIGTERM:
        deepspeed(f"run_dir={run_dir}", *overrides).wait(timeout=240)
        assert same(weights(run_dir, 20), weights(reference, 20))
        ended = json.loads((run_dir / "exit.json").read_text())
        assert (ended["reason"], ended["step"], ended["exit_code"]) == ("finished", 20, 0)


@pytest.mark.multirank
def test_two_ranks_follow_one_rank(finished_run, tmp_path) -> None:
    reference, overrides = finished_run
    pretrain(f"run_dir={tmp_path / 'run'}", *overrides)
    one, two = read_metrics(tmp_path / "run"), read_metrics(reference)
    assert abs(one[0]["loss"] / two[0]["loss"] - 1) < 1e-6
    # Later steps amplify rounding: Adam divides by the size of the gradient.
    assert all(abs(a["loss"] / b["loss"] - 1) < 1e-3 for a, b in zip(one, two, strict=True))


def test_what_a_run_leaves_behind(finished_run) -> None:
    run_dir, _ = finished_run
    lines = read_metrics(run_dir)
    assert {"loss", "gradient_norm", "samples_per_second", "data_wait_fraction", "skipped_steps"} <= lines[0].keys()
    names = {"loss/eeg/spatial", "loss/fmri-eeg/temporal", "loss/distillation/fmri-eeg/spectral", "top1/fmri/spectral"}
    assert names <= lines[0].keys()
    assert lines[-1]["loss"] < lines[0]["loss"]
    kept = sorted(p.name for p in (run_dir / "checkpoints").iterdir())
    assert kept == ["step-00000016", "step-00000020"], "keep_checkpoints=2"
    board = EventAccumulator(str(run_dir / "tensorboard"))
    board.Reload()
    assert [e.step for e in board.Scalars("loss")] == list(range(1, 21))
    assert board.Scalars("loss")[3].value == pytest.approx(lines[3]["loss"], rel=1e-6)


def test_a_finished_run_ends_at_once_and_changes_nothing(finished_run, tmp_path) -> None:
    run_dir, overrides = finished_run
    before = (run_dir / "metrics.jsonl").read_bytes()
    ranks = start_ranks(2, LAUNCHER, f"run_dir={run_dir}", *overrides)
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    assert (run_dir / "metrics.jsonl").read_bytes() == before
