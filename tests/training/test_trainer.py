import json
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mcsp.config import PretrainConfig
from mcsp.training.metrics import read_metrics
from mcsp.training.trainer import learning_rate
from tests.training.ranks import LAUNCHER, ROOT, deepspeed, environment, last_step, same, start_ranks, weights


def pretrain(*overrides: str, expect: int = 0) -> str:
    """Run the launcher in one process; its output."""
    done = subprocess.run(
        [sys.executable, str(LAUNCHER), *overrides],
        env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


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
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
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
        assert [process.wait(timeout=60) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
    stopped = json.loads((run_dir / "exit.json").read_text())
    assert stopped["reason"] == "asked to stop" and 3 <= stopped["step"] < 20
    assert [p.name for p in (run_dir / "checkpoints").iterdir()] == [f"step-{stopped['step']:08d}"]
    if number == signal.SIGTERM:
        deepspeed(f"run_dir={run_dir}", *overrides).wait(timeout=240)
        assert same(weights(run_dir, 20), weights(reference, 20))
        assert json.loads((run_dir / "exit.json").read_text()) == {"reason": "finished", "step": 20}


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


def test_bf16_follows_fp32(pretrain_overrides, tmp_path) -> None:
    for precision in ("fp32", "bf16"):
        pretrain(*pretrain_overrides, f"run_dir={tmp_path / precision}", f"precision={precision}", "steps=3")
    fp32, bf16 = (read_metrics(tmp_path / precision) for precision in ("fp32", "bf16"))
    assert bf16[0]["loss"] != fp32[0]["loss"]
    assert all(abs(a["loss"] / b["loss"] - 1) < 0.03 for a, b in zip(bf16, fp32, strict=True))


def test_a_loss_that_is_not_finite_is_skipped_and_counted(pretrain_overrides, tmp_path) -> None:
    pretrain(*pretrain_overrides, "learning_rate=1e30", "gradient_clipping=0")
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert lines[0]["skipped_steps"] == 0
    assert lines[-1]["skipped_steps"] >= 3


def test_loader_processes_change_nothing(pretrain_overrides, tmp_path) -> None:
    for workers in (0, 2):
        pretrain(*pretrain_overrides, f"run_dir={tmp_path / f'workers{workers}'}", f"workers={workers}")
    assert same(weights(tmp_path / "workers0", 6), weights(tmp_path / "workers2", 6))


def test_damaged_checkpoints_are_passed_over_and_wrong_ones_refused(pretrain_overrides, tmp_path) -> None:
    run_dir = tmp_path / "run"
    pretrain(*pretrain_overrides)
    final = weights(run_dir, 6)
    state = run_dir / "checkpoints" / "step-00000006" / "state" / "mp_rank_00_model_states.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    output = pretrain(*pretrain_overrides)
    assert "damaged checkpoint passed over" in output and "mp_rank_00_model_states.pt" in output
    assert same(weights(run_dir, 6), final)

    refused = {
        "seed=5": "the config differs from the saved one (seed: 0 -> 5)",
        "resume=never": "resume=never, but it holds checkpoint step-00000006",
        "deepspeed=configs/deepspeed/zero2.json": "saved with zero_stage 1, this run has 2",
        f"run_dir={tmp_path / 'other'}": None,
    }
    for override, message in refused.items():
        if message:
            one_line(pretrain(*pretrain_overrides, override, expect=2), message)
    one_line(pretrain(*pretrain_overrides, f"run_dir={tmp_path / 'x'}", "resume=must", expect=2), "no valid checkpoint")
    manifest = run_dir / "checkpoints" / "step-00000006" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"index_hash": "0" * 64}))
    one_line(pretrain(*pretrain_overrides, expect=2), "checkpoint of another corpus")


def one_line(output: str, message: str) -> None:
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], output
    assert "Traceback" not in output


def test_bad_input_gets_one_line(pretrain_overrides, tmp_path) -> None:
    def refuse(*overrides: str, message: str) -> None:
        one_line(pretrain(*pretrain_overrides, *overrides, expect=2), message)

    refuse("stepz=5", message="unknown key 'stepz'; known keys: augmentation, batch, ")
    refuse("corpus_dir=/nowhere", message="/nowhere")
    refuse("batch={paired: 4, eeg: 2, fmri: 0}", message="batch.eeg=2, but the training split has no such sample")
    refuse("window_seconds={eeg: 10, fmri: 3000}", message="shorten window_seconds")
    refuse("deepspeed=none.json", message="none.json: cannot read the DeepSpeed config")
    one_line(pretrain("--config", "no.yaml", expect=2), "no.yaml: cannot read the config file")


def test_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    config = PretrainConfig(corpus_dir="c", run_dir="r", steps=110, warmup_steps=10, learning_rate=1e-2)
    rates = [learning_rate(config, step) for step in range(111)]
    assert rates[:3] == pytest.approx([1e-3, 2e-3, 3e-3])
    assert max(rates) == pytest.approx(1e-2)
    assert rates[110] == pytest.approx(1e-3)
    assert all(a >= b for a, b in pairwise(rates[10:]))
