import json
import math
from pathlib import Path

import pytest

from mcsp.config import HealthConfig
from mcsp.run_log import read_events, read_metrics
from mcsp.training.health import Health
from tests.training.ranks import run_ranks, same, weights

PROGRAM = Path(__file__).with_name("health_program.py")


@pytest.fixture(scope="module")
def damaged(corpus_dir, tmp_path_factory) -> tuple[Path, dict]:
    """Runs of two ranks, one of which meets windows that are not finite; and what both say of them."""
    out = tmp_path_factory.mktemp("damaged")
    overrides = [
        f"corpus_dir={corpus_dir}", "batch={paired: 4, eeg: 0, fmri: 0}", "window_seconds={eeg: 10, fmri: 30}",
        "warmup_steps=4", f"run_dir={out}/any",
    ]  # fmt: skip
    run_ranks(2, PROGRAM, str(out), *overrides)
    told = [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1], "ranks judged differently"
    return out, told[0]


@pytest.mark.multirank
def test_a_bad_step_is_skipped_on_all_ranks_and_the_rate_follows_applied_steps(damaged) -> None:
    out, told = damaged
    assert told["single"]["read"] == list(range(8)) and not told["single"]["why"]
    assert told["single"]["skipped_steps"] == 1 and told["single"]["in_a_row"] == 0
    lines = read_metrics(out / "single")
    assert math.isnan(lines[5]["loss"]) and math.isnan(lines[5]["gradient_norm"])
    assert lines[6]["learning_rate"] == lines[5]["learning_rate"], "the skipped step used up a part of the schedule"
    assert all(math.isfinite(line["loss"]) for i, line in enumerate(lines) if i != 5)
    [skip] = [event for event in read_events(out / "single") if event["event"] == "skip"]
    assert skip["step"] == 6 and skip["data"] == 5 and "not finite: [1]" in skip["because"]


@pytest.mark.multirank
def test_bad_data_is_left_behind_by_a_rollback(damaged) -> None:
    out, told = damaged
    # Checkpoint after step 4. Data 5 to 7 are skipped, the run goes back to step 4 and on to data 8.
    assert told["range"]["read"] == [*range(8), 8, 9, 10, 11]
    assert told["range"]["rollbacks"] == 1 and told["range"]["data_offset"] == 4
    assert [line["step"] for line in read_metrics(out / "range")] == list(range(1, 9))
    [event] = [event for event in read_events(out / "range") if event["event"] == "rollback"]
    assert event["checkpoint"] == "step-00000004" and event["data_skipped"] == "4 to 7"


@pytest.mark.multirank
def test_a_run_resumed_behind_a_rollback_reads_and_learns_the_same(damaged) -> None:
    out, told = damaged
    assert told["stopped"]["read"] == told["range"]["read"]
    assert same(weights(out / "stopped", 8), weights(out / "range", 8))


@pytest.mark.multirank
def test_rollbacks_are_bounded(damaged) -> None:
    out, told = damaged
    assert told["hopeless"]["why"] == "too many rollbacks" and told["hopeless"]["rollbacks"] == 1
    assert told["early"]["why"] == "no way back"
    assert not list((out / "early" / "checkpoints").glob("step-*"))


def test_spikes_are_far_above_the_recent_values() -> None:
    health = Health(HealthConfig(spike_window=8, spike_factor=10))
    steady = [2.0, 2.1, 1.9, 2.2]
    assert health.fault("loss", 1e9, steady[:3]) == "", "nothing to compare with yet"
    assert health.limit(steady) == pytest.approx(2.05 + 10 * 1.4826 * 0.1)
    assert health.fault("loss", 3.5, steady) == "" and "loss 3.6 is above 3.5" in health.fault("loss", 3.6, steady)
    assert health.limit([2.0] * 8) == pytest.approx(3.0), "a quiet stretch has a least spread"
    for i in range(20):
        health.counted(2.0, float(i))
    assert health.norms == [float(i) for i in range(12, 20)]
    for value in (math.nan, math.inf):
        assert health.fault("gradient norm", value, []) == f"gradient norm is {value}"
    assert Health(HealthConfig(spike_factor=0)).limit([1.0] * 128) == math.inf


def test_health_survives_a_checkpoint_bit_for_bit() -> None:
    health = Health(HealthConfig())
    for i in range(200):
        health.counted(math.exp(-i / 7), 1 / (i + 3))
    health.skipped()
    other = Health(HealthConfig())
    other.load_state(json.loads(json.dumps(health.state())))
    assert other.state() == health.state() and other.in_a_row == 1
