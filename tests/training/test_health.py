import json
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from mcsp.batch import Batch
from mcsp.config import HealthConfig
from mcsp.run_log import read_events, read_metrics
from mcsp.training.health import BadWindows, Health, clean, suspects
from tests.training.ranks import run_ranks, same, weights

ROOT = Path(__file__).resolve().parents[2]
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
    assert skip["step"] == 6 and skip["data"] == 5 and skip["because"] == "loss is nan"
    assert skip["not_finite_on_ranks"] == [1] and 1 <= len(skip["samples"]) <= 2, "its half of the batch"


@pytest.mark.multirank
def test_no_rank_remembers_every_phase_of_a_run(damaged) -> None:
    """Ranks that log nothing kept each phase and collective, on a GPU as an event of CUDA, to the end."""
    _, told = damaged
    assert told["single"]["phases"] < 10 and told["single"]["waits"] < 100, "of the last step, and the save behind it"


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
    assert told["never"]["why"] == "no way back"
    assert not list((out / "never" / "checkpoints").glob("step-*"))


@pytest.mark.multirank
def test_the_first_checkpoint_is_early(damaged) -> None:
    out, told = damaged
    assert told["early"]["read"] == [0, 1, 2, 3, *range(4, 11)] and not told["early"]["why"]
    [event] = [event for event in read_events(out / "early") if event["event"] == "rollback"]
    assert event["checkpoint"] == "step-00000001"


def replay(series: Sequence[tuple[float, float]], **settings: object) -> tuple[Health, list[int], list[int]]:
    """Feed losses and norms; what was skipped, and after which steps the run would have gone back."""
    health, skipped, back = Health(HealthConfig.parse(settings, "test")), [], []
    for step, (loss, norm) in enumerate(series):
        fault = health.fault("loss", loss, health.loss_limit())
        told = None if fault else norm
        fault = fault or health.fault("gradient norm", norm, health.norm_limit())
        health.seen(loss, told, counted=not fault)
        skipped += [step] * bool(fault)
        if health.why_back:
            back.append(step)
            health.not_finite = health.lost = 0
    return health, skipped, back


def healthy(steps: int, seed: int = 0) -> list[tuple[float, float]]:
    """A loss that falls from 20 to 10, and a norm that grows from 10 to 30, both with noise."""
    draw = random.Random(seed)
    return [
        (10 + 10 * math.exp(-i / 100) + draw.gauss(0, 0.3), 10 * 3 ** min(1, i / 200) * math.exp(draw.gauss(0, 0.15)))
        for i in range(steps)
    ]


def test_a_healthy_run_is_left_alone() -> None:
    health, skipped, back = replay(healthy(600))
    assert skipped == back == [] and health.levels[0] > 15 and health.levels[1] < 11


def test_a_run_on_real_people_is_left_alone_and_a_spike_in_it_is_not() -> None:
    """Losses and norms of 600 steps on ABIDE (result of benchmarks/studies/validation_curves.py), whose norms grow."""
    found = json.loads((ROOT / "benchmarks" / "results" / "validation_curves.json").read_text())["runs"]["abide"]
    series = list(zip(found["loss"], found["gradient_norm"], strict=True))
    assert len(series) == 600
    health, skipped, back = replay(series)
    assert skipped == back == [] and health.levels[1] < 0.6 * health.levels[0]
    assert statistics.median(n for _, n in series[-100:]) > 1.8 * statistics.median(n for _, n in series[:100])
    loss, norm = series[450]
    series[450] = loss, 30 * norm
    assert replay(series)[1] == [450]
    # A hundred times the learning rate: the loss of the untrained model, and more.
    lost = [(loss if step < 300 else 25.0, norm) for step, (loss, norm) in enumerate(series)]
    _, _, back = replay(lost)
    assert back and back[0] < 300 + 240


def test_an_isolated_spike_is_skipped() -> None:
    series = healthy(400)
    series[200], series[300] = (60.0, 30.0), (12.0, 900.0)
    _, skipped, back = replay(series)
    assert skipped == [200, 300] and not back


@pytest.mark.parametrize(("loss", "norm"), [(1.8, 1.0), (1.0, 8.0), (1.8, 8.0)])
def test_a_level_that_stays_is_followed(loss, norm) -> None:
    """A rise that the old rule took for spikes to the end."""
    series = [(a * (loss if i > 250 else 1), b * (norm if i > 250 else 1)) for i, (a, b) in enumerate(healthy(600))]
    health, skipped, back = replay(series)
    each = 5 * ((loss > 1) + (norm > 1))  # a skipped loss has no norm
    assert skipped == list(range(251, 251 + each)) and not back
    assert health.loss_limit() < 40 and health.norm_limit() < 2000, "later spikes are seen again"


def test_a_loss_that_is_lost_for_long_leads_back_and_one_that_recovers_does_not() -> None:
    """Learning rate times a hundred: the loss goes above that of the untrained model and stays there."""
    lost = [(a * (3.0 if i > 300 else 1), b) for i, (a, b) in enumerate(healthy(700))]
    _, skipped, back = replay(lost)
    assert skipped == [301, 302, 303, 304, 305]
    assert back and 300 + 200 < back[0] < 300 + 200 + 32
    recovers = [(a * (3.0 if 300 < i < 420 else 1), b) for i, (a, b) in enumerate(healthy(700))]
    assert not replay(recovers)[2]
    assert not replay(lost, lost_after=0)[2]


def test_weights_are_in_doubt_in_every_step_of_a_loss_that_is_lost() -> None:
    """The five spikes that make a new level, and the steps after it: a checkpoint of one would be gone back to."""
    health = Health(HealthConfig())
    for step, (loss, norm) in enumerate(healthy(400)):
        loss *= 3.0 if step > 300 else 1.0
        health.seen(loss, norm, counted=not health.fault("loss", loss, health.loss_limit()))
        assert health.doubtful == (step > 300), step


def test_a_loss_that_rises_slowly_is_in_doubt_from_its_third_high_step_on() -> None:
    """The level of 32 steps showed it 16 steps later; a checkpoint of these would be the one to go back to."""
    health, states = Health(HealthConfig(spike_factor=0)), []
    for step, loss in enumerate([3.0] * 40 + [1.0] * 60 + [4.0] * 20):
        health.seen(loss, 1.0, True)
        states.append(json.loads(json.dumps(health.state())))
        assert health.doubtful == (step >= 102), step
    assert [clean(state) for state in states] == [step < 102 for step in range(120)]
    assert health.lost == 20 - 16 and not health.why_back, "when a run goes back is as it was"


def test_a_loss_is_lost_from_half_as_much_again_as_its_best() -> None:
    health = Health(HealthConfig(spike_factor=0))
    assert not health.doubtful
    for loss, doubtful in ((1.0, False), (1.4, False), (1.6, True), (1.4, False)):
        for _ in range(64):
            health.seen(loss, 1.0, True)
        assert health.doubtful == doubtful, loss


def test_what_is_not_finite_leads_back_after_ten_in_a_row() -> None:
    series = healthy(300)
    series[100:109] = [(math.nan, math.nan)] * 9
    series[200:210] = [(12.0, math.inf)] * 10
    _, skipped, back = replay(series)
    assert skipped == [*range(100, 109), *range(200, 210)] and back == [209]


def test_a_run_that_is_continued_anywhere_decides_alike() -> None:
    series = healthy(500)
    series[220] = (12.0, 900.0)
    series[250:400] = [(2 * a, 9 * b) for a, b in series[250:400]]
    series[430] = (math.nan, math.nan)
    whole, skipped, _ = replay(series)
    assert skipped == [220, *range(250, 260), 430]
    for cut in (100, 221, 252, 300, 431):
        first = replay(series[:cut])[0]
        health = Health(HealthConfig())
        health.load_state(json.loads(json.dumps(first.state())))
        for loss, norm in series[cut:]:
            fault = health.fault("loss", loss, health.loss_limit())
            told = None if fault else norm
            health.seen(loss, told, counted=not (fault or health.fault("norm", norm, health.norm_limit())))
        assert health.state() == whole.state()


def test_limits() -> None:
    health = Health(HealthConfig(spike_window=8, spike_factor=10))
    for loss in (2.0, 2.1, 1.9):
        assert health.loss_limit() == math.inf, "nothing to compare with yet"
        health.seen(loss, 5.0, True)
    health.seen(2.2, 5.0, True)
    assert health.loss_limit() == pytest.approx(2.05 + 10 * 1.4826 * 0.1)
    assert health.norm_limit() == pytest.approx(5 * math.exp(0.5)), "a quiet stretch has a least spread"
    assert health.fault("loss", 3.6, 3.5) == "loss 3.6 is above 3.5" and not health.fault("loss", 3.5, 3.5)
    assert health.fault("gradient norm", math.nan, math.inf) == "gradient norm is nan"
    assert replay([*healthy(100), (1e9, 1e9)], spike_factor=0)[1] == []


def test_a_second_rollback_leaves_the_data_of_the_first_behind() -> None:
    """Both go to the same checkpoint, whose own state knows of neither."""
    health = Health(HealthConfig())
    for _ in range(3):
        health.seen(2.0, 1.0, True)
    saved = json.loads(json.dumps(health.state()))
    for steps, offset in ((4, 4), (3, 7), (5, 12)):
        health.seen(math.nan, None, False)
        health.rolled_back(saved, steps)
        assert health.data_offset == offset
        assert health.not_finite == health.in_a_row == health.skipped_steps == 0 and health.losses == [2.0] * 3
    assert health.rollbacks == 3
    later = health.state()
    health.rolled_back(later, 2)
    assert (health.data_offset, health.rollbacks) == (14, 4)


def test_samples_of_several_skipped_steps_are_named() -> None:
    events = [{"event": "skip", "samples": names} for names in (["a", "b"], ["b", "c"], ["b", "a"], ["d"])]
    assert suspects([*events, {"event": "start"}, {"event": "skip"}]) == {"b": 3, "a": 2}
    assert list(suspects([*events, {"event": "skip", "samples": ["a", "b", "d"]}]).items()) == [
        ("b", 4),
        ("a", 3),
        ("d", 2),
    ]
    tied = [{"event": "skip", "samples": names} for names in (["z", "y", "x"], ["x", "y", "z"])]
    assert list(suspects(tied)) == ["x", "y", "z"]


def test_a_new_run_has_nothing_behind_it() -> None:
    assert Health(HealthConfig()).state() == {
        "losses": [], "log_norms": [], "loss_spikes": [], "norm_spikes": [], "levels": [], "lost": 0, "not_finite": 0,
        "skipped_steps": 0, "in_a_row": 0, "rollbacks": 0, "data_offset": 0,
    }  # fmt: skip


@pytest.mark.parametrize(("window", "needed"), [(8, 4), (9, 4), (11, 5)])
def test_half_a_window_rounded_down_is_compared_with(window: int, needed: int) -> None:
    health = Health(HealthConfig(spike_window=window, spike_factor=10))
    for n in range(1, 2 * window):
        health.seen(2.0, 0.01, True)
        assert (health.loss_limit() < math.inf) == (health.norm_limit() < math.inf) == (n >= needed)
        assert len(health.losses) == len(health.log_norms) == min(n, window)
    # The least spread of a loss is a twentieth of its median; that of a norm a factor of exp(0.05), also below 1.
    assert health.loss_limit() == pytest.approx(2.0 + 10 * 0.05 * 2.0)
    assert health.norm_limit() == pytest.approx(0.01 * math.exp(0.5))


def test_norms_of_nothing_and_norms_too_large_to_multiply() -> None:
    nothing, huge = (Health(HealthConfig(spike_window=4, spike_factor=10)) for _ in range(2))
    for _ in range(4):
        nothing.seen(-2.0, 0.0, True)
        huge.seen(-2.0, 1e307, True)
    assert nothing.norm_limit() == pytest.approx(1e-30 * math.exp(0.5)) and huge.norm_limit() == math.inf
    assert nothing.loss_limit() == pytest.approx(-2.0 + 10 * 0.05 * 2.0), "a loss below 0"


@pytest.mark.parametrize(("apart", "followed"), [(1, True), (2, True), (3, False)])
def test_five_spikes_among_the_last_ten_are_a_new_level(apart: int, followed: bool) -> None:
    """Of twenty values each, where every first, second or third is a spike."""
    for kind in ("loss", "gradient norm"):
        health = Health(HealthConfig(new_level_after=5))
        for _ in range(128):
            health.seen(2.0, 3.0, True)
        news = []
        for step in range(20):
            large = step % apart == 0
            loss, norm = (50.0, 3.0) if kind == "loss" else (2.0, 900.0)
            news.append(health.seen(loss if large else 2.0, norm if large else 3.0, not large))
        assert [i for i, told in enumerate(news) if told] == ([4 * apart] if followed else [])
        assert set(news) == ({"", kind} if followed else {""})
        values = health.losses if kind == "loss" else health.log_norms
        assert len(values) == (5 + 19 - 4 * apart if followed else 128), "what was seen before is forgotten"


def test_both_levels_may_be_new_in_one_step() -> None:
    health = Health(HealthConfig(new_level_after=3))
    told = [health.seen(2.0, 3.0, True) for _ in range(128)] + [health.seen(50.0, 900.0, False) for _ in range(3)]
    assert told == [""] * 130 + ["loss and gradient norm"]


@pytest.mark.parametrize(("window", "width"), [(8, 8), (31, 31), (32, 32), (128, 32)])
def test_the_level_of_a_loss_is_the_median_of_32_steps(window: int, width: int) -> None:
    health = Health(HealthConfig(spike_window=window, spike_factor=0))
    for n in range(1, width + 1):
        health.seen(float(n), 1.0, True)
        assert bool(health.levels) == (n == width)
    middle = (width + 1) / 2
    assert health.levels == [middle, middle]
    for _ in range(width):
        health.seen(0.5, 1.0, True)
    assert health.levels == [middle, 0.5]


def test_a_run_goes_back_after_exactly_so_many_lost_steps() -> None:
    health = Health(HealthConfig(spike_window=4, spike_factor=0, lost_after=3))
    for loss in (2.0, 1.0):
        for _ in range(4):
            health.seen(loss, 1.0, True)
    lost = []
    for _ in range(6):
        health.seen(9.0, 1.0, True)
        lost.append((health.lost, health.why_back))
    # The median of four is above the first level from the second high loss on: (1 + 9) / 2.
    assert [n for n, _ in lost] == [0, 1, 2, 3, 4, 5] and [bool(why) for _, why in lost] == [False] * 3 + [True] * 3
    assert lost[3][1] == "the loss was above its first level 2 for 3 steps, after 1"
    health.seen(math.nan, None, False)
    assert (health.lost, health.not_finite, health.in_a_row, health.skipped_steps) == (5, 1, 1, 1)
    for _ in range(3):
        health.seen(1.0, 1.0, True)
    assert (health.lost, health.not_finite, health.in_a_row, health.skipped_steps) == (0, 0, 0, 1)


def test_between_the_first_level_and_half_as_much_again_as_the_best_nothing_is_lost() -> None:
    """Above the first level but near the best, or far from the best but below the first: both may be learning."""
    for first, best, now, lost in ((2.0, 1.9, 2.5, False), (9.0, 1.0, 8.0, False), (2.0, 1.9, 3.0, True)):
        health = Health(HealthConfig(spike_window=4, spike_factor=0))
        for loss in (first, best, now):
            for _ in range(4):
                health.seen(loss, 1.0, True)
        assert (health.lost > 0, health.doubtful) == (lost, lost), (first, best, now)


def test_a_checkpoint_is_clean_where_nothing_was_wrong() -> None:
    states = [{"in_a_row": skipped, "lost": lost} for skipped in (0, 1, 2) for lost in (0, 1)]
    assert [clean(state) for state in states] == [True, False, False, False, False, False]


@pytest.mark.parametrize(("most", "bad", "read", "ends"), [
    (0.01, 10, 64, False), (0.01, 11, 64, True), (0.01, 50, 5000, False), (0.01, 51, 5000, True),
    (3, 3, 10, False), (3, 4, 10**9, True), (1, 1, 10, False), (1, 2, 10, True), (0, 0, 10, False), (0, 1, 10**9, True),
])  # fmt: skip
def test_too_many_bad_windows_are_a_fraction_or_a_number(most: float, bad: int, read: int, ends: bool) -> None:
    counter = BadWindows(most)
    counter.add(bad, read)
    assert bool(counter.too_many()) == ends
    assert not ends or counter.too_many().startswith(f"{bad} of {read} windows could not be read, more than max_bad")


def test_each_bad_place_is_logged_once_and_counted_every_time(caplog: pytest.LogCaptureFixture) -> None:
    empty = torch.zeros(0)
    found = [Batch({}, empty, empty, (), ("a.tar: block 3", "b.tar: block 1")), Batch({}, empty, empty, ())]
    counter = BadWindows(1)
    assert counter.tell(found) == counter.tell(found) == 2
    assert [r.getMessage().split(": ", 1)[1] for r in caplog.records] == list(found[0].unreadable)


def test_windows_left_out_are_counted_by_site_over_ranks_and_steps() -> None:
    counter = BadWindows(0.5)
    assert counter.tell([]) == 0 and counter.left_out == {} and (counter.bad, counter.read) == (0, 0)
    counter.add(1, 10, [{"a": 2}, {"a": 1, "b": 4}])
    counter.add(2, 20, [{"b": 1}])
    assert (counter.bad, counter.read, counter.left_out) == (3, 30, {"a": 3, "b": 5})
