"""Evaluations in runs of one and two ranks, on people that are set aside.

Covers: mcsp/training/validation/validate.py
"""

import json
import math
import signal
import time
from pathlib import Path

import pytest
import torch

from mcsp.commands.plot import draw
from mcsp.config import PretrainConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.export.card import curve_rows
from mcsp.run_log import read_events, read_metrics
from mcsp.training.validation.validate import Validation, chunks_per_batch, collapsed, validation_schedule
from tests.training.ranks import LAUNCHER, pretrain, run_ranks, start_ranks

PROGRAM = Path(__file__).with_name("validation_program.py")


@pytest.fixture(scope="module")
def runs(split_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict]]:
    out = tmp_path_factory.mktemp("validated")
    for world in (2, 1):
        run_ranks(world, PROGRAM, str(out), *split_overrides)
    return out, {path.stem: json.loads(path.read_text()) for path in out.glob("world*.json")}


def of_validation(line: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name.startswith("validation/")}


@pytest.mark.multirank
def test_the_same_weights_give_the_same_bits_on_any_number_of_ranks_and_at_any_stage(runs) -> None:
    out, told = runs
    last = of_validation(read_metrics(out / "whole")[-1])
    assert len(last) > 60 and all(math.isfinite(value) for value in last.values())
    assert told["world2-rank0"]["zero1"] == told["world2-rank1"]["zero1"] == last
    assert told["world1-rank0"]["zero1"] == last
    assert told["world2-rank0"]["zero3"] == last


@pytest.mark.multirank
def test_halves_are_encoded_of_one_window_of_each_person(runs) -> None:
    """Of 32 windows, in four chunks; of a chunk without a new person one is encoded all the same."""
    _, told = runs
    values, windows = told["world1-rank0"]["of 32 windows"]
    for modality in ("eeg", "fmri"):
        people = values[f"validation/people/{modality}"]
        assert people <= windows[modality] <= people + 3 < 32


@pytest.mark.multirank
def test_a_run_that_was_stopped_logs_the_same(runs) -> None:
    out, _ = runs
    whole, stopped = (read_metrics(out / name) for name in ("whole", "stopped"))
    assert [bool(of_validation(line)) for line in whole] == [True, True, False, True], "untrained, 2, last"
    assert [of_validation(line) for line in stopped] == [of_validation(line) for line in whole]


@pytest.mark.slow
@pytest.mark.multirank
def test_a_run_that_was_killed_evaluates_to_the_same_bits(split_overrides, tmp_path) -> None:
    """SIGKILL to both ranks after the first checkpoint behind an evaluation, then a resume."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = [*split_overrides, "steps=6"]
    run_ranks(2, LAUNCHER, *options, f"run_dir={whole}")
    ranks = start_ranks(2, LAUNCHER, *options, f"run_dir={killed}")
    try:
        deadline = time.monotonic() + 120
        while not (killed / "checkpoints" / "step-00000002").exists():
            assert time.monotonic() < deadline and ranks[0].poll() is None, ranks[0].communicate()[0]
            time.sleep(0.005)
    finally:
        for process in ranks:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert not (killed / "checkpoints" / "step-00000006").exists(), "the run ended before it was killed"
    run_ranks(2, LAUNCHER, *options, f"run_dir={killed}")
    expected, found = read_metrics(whole), read_metrics(killed)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    assert [bool(of_validation(line)) for line in found] == [True, True, False, True, False, True]
    assert [of_validation(line) for line in found] == [of_validation(line) for line in expected]


@pytest.mark.multirank
def test_every_term_and_measure_is_there_and_the_people_are_others(runs) -> None:
    out, _ = runs
    first = read_metrics(out / "whole")[0]
    terms = {name for name in first if name.startswith(("loss", "top1/"))}
    assert {f"validation/{name}" for name in terms} <= first.keys()
    for modality in ("eeg", "fmri"):
        for domain in ("spatial", "temporal", "spectral"):
            for name in ("half_error", "identification", "rank_h", "rank_z", "site_h", "site_input"):
                assert f"validation/{name}/{modality}/{domain}" in first
    assert first["validation/people/eeg"] >= 8
    assert first["validation/identification/eeg/spatial"] > 2 / first["validation/people/eeg"], "better than chance"


@pytest.mark.multirank
def test_the_best_checkpoint_is_kept(runs) -> None:
    out, _ = runs
    lines = read_metrics(out / "whole")
    name = "validation/half_error/eeg/spatial"
    best = min((2, 4), key=lambda step: lines[step - 1][name])
    assert [path.name for path in (out / "whole" / "best").iterdir()] == [f"step-{best:08d}"]
    manifest = json.loads((out / "whole" / "best" / f"step-{best:08d}" / "manifest.json").read_text())
    assert manifest["validated"]["best"] == lines[best - 1][name] and manifest["step"] == best


@pytest.mark.multirank
def test_plot_and_card_show_them(runs, tmp_path) -> None:
    out, _ = runs
    lines = read_metrics(out / "whole")
    draw(out / "whole", lines, read_events(out / "whole"), tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 100_000
    first, last = lines[0]["validation/half_error/eeg/spatial"], lines[-1]["validation/half_error/eeg/spatial"]
    assert f"| half_error/eeg/spatial | {first:.4g} | {last:.4g} |" in curve_rows(lines)


def test_embeddings_that_stay_all_alike_end_the_run_behind_a_good_checkpoint(split_overrides, tmp_path) -> None:
    """A hundred times the learning rate from the start."""
    run = [*split_overrides, f"run_dir={tmp_path}", "steps=60", "learning_rate=0.1"]
    output = pretrain(*run, expect=66)
    ended = json.loads((tmp_path / "exit.json").read_text())
    assert ended["reason"] == "collapsed" and ended["step"] < 60 and "all alike" in output
    alike = [event for event in read_events(tmp_path) if event["event"] == "collapse"]
    assert [event["step"] for event in alike[-3:]] == [ended["step"] - 4, ended["step"] - 2, ended["step"]]
    assert all(
        {f"eeg/{d}" for d in ("spatial", "temporal", "spectral")} <= set(event["domains"]) for event in alike[-3:]
    )
    saved = [int(path.name.removeprefix("step-")) for path in (tmp_path / "checkpoints").glob("step-*")]
    assert saved and max(saved) < alike[0]["step"], "one was saved of weights that were of no use"


def test_windows_are_of_the_validation_split(split_overrides, split_corpus_dir) -> None:
    config = PretrainConfig.load(None, [*split_overrides, "run_dir=any"])
    schedule = validation_schedule(config, Corpus(split_corpus_dir))
    assert schedule is not None
    cuts = [cut for step in range(3) for draw in schedule.draws(step) for cut in draw.cuts]
    assert {cut.recording.split for cut in cuts} == {"validation"}
    again = validation_schedule(config, Corpus(split_corpus_dir))
    assert again is not None and [d for s in range(3) for d in again.draws(s)] == [
        d for s in range(3) for d in schedule.draws(s)
    ]


def test_a_corpus_without_people_set_aside_has_no_evaluations(corpus_dir, split_overrides) -> None:
    config = PretrainConfig.load(None, [*split_overrides, "run_dir=any"])
    assert validation_schedule(config, Corpus(corpus_dir)) is None


def test_chunks_are_equal_and_small() -> None:
    assert chunks_per_batch([64]) == 4 and chunks_per_batch([32, 16, 16]) == 4
    assert chunks_per_batch([4]) == 1 and chunks_per_batch([34, 2]) == 2, "no smaller equal ones"


def test_collapse_is_all_domains_of_a_modality() -> None:
    ranks = {f"validation/rank_z/{m}/{d}": 9.0 for m in ("eeg", "fmri") for d in ("spatial", "temporal")}
    assert collapsed(ranks) == ([], False)
    ranks["validation/rank_z/eeg/spatial"] = 1.01
    assert collapsed(ranks) == (["eeg/spatial"], False)
    ranks["validation/rank_z/eeg/temporal"] = math.nan
    assert collapsed(ranks) == (["eeg/spatial", "eeg/temporal"], True)


@pytest.mark.parametrize(("people", "judged"), [(1, False), (3, False), (4, True)])
def test_a_validation_split_of_few_people_is_no_collapse(people: int, judged: bool) -> None:
    """The rank of one row is 1 whatever the model does."""
    ranks = {"validation/rank_z/eeg/spatial": 1.0, "validation/people/eeg": float(people)}
    assert collapsed(ranks)[1] == judged


def test_people_are_those_with_a_window_that_is_fit_to_be_learned_from() -> None:
    """Two chunks of three samples; the second person's first window is rubbish, the third person has no other."""
    whole = {
        "subject": torch.tensor([[11, 22, 33], [22, 44, 11]]),
        "row eeg": torch.tensor([[0, 1, 2], [0, 1, 2]]),
        "usable eeg": torch.tensor([[True, False, False], [True, True, True]]),
    }
    assert Validation._people(Validation.__new__(Validation), whole, "eeg") == [0, 3, 4]
