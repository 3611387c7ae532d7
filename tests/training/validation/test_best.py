"""Which checkpoint a run keeps as its best one, whatever happens; and what it keeps where it ends.

Covers: mcsp/training/validation/evaluations.py
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.ranks import run_ranks

PROGRAM = Path(__file__).with_name("best_program.py")


@pytest.fixture(scope="module")
def told(split_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("best")
    run_ranks(1, PROGRAM, str(out), *split_overrides, "batch={paired: 4, eeg: 0, fmri: 0}", seconds=500)
    return json.loads((out / "found.json").read_text())


def test_what_is_not_saved_is_not_the_best(told) -> None:
    """The best of all evaluations was one of a skipped step: it was nowhere, and none after it was good enough."""
    assert told["doubt"] == {"checkpoints": [1, 4], "best": [4], "said": 4}


def test_a_run_that_is_killed_behind_the_save_of_its_best_still_keeps_it(told) -> None:
    first, second = told["killed"]
    assert first == {"checkpoints": [1, 2], "best": [], "said": 2}
    assert second == {"checkpoints": [1, 2, 4], "best": [2], "said": 2}


def test_a_best_that_the_run_has_gone_back_behind_goes(told) -> None:
    first, second, third = told["later"]
    assert first == {"checkpoints": [1, 2, 4], "best": [4], "said": 4}
    assert second == {"checkpoints": [1, 2, 4], "best": [2], "said": 2}, "the best of before is found again"
    assert third["best"] == [6] and third["said"] == 6, "what is nowhere is no best: the next is kept"


def test_a_quantity_that_is_none_is_refused_also_in_a_run_that_goes_on(told) -> None:
    assert told["typing error"].startswith(
        "keep_best=los: expected a quantity of the evaluations, one of loss, people/eeg"
    )


def test_a_save_under_way_ends_before_a_run_of_collapsed_embeddings_does(told) -> None:
    assert told["alike"] == {
        "why": "collapsed: embeddings of a modality were all alike 1 evaluations in a row; checkpoints are from before",
        "checkpoints": [2], "best": [], "said": None,
    }  # fmt: skip


def test_stopped_while_weights_are_in_doubt_a_run_keeps_its_way_back(told) -> None:
    """With one checkpoint to keep, that of the stop took the place of the last good one."""
    stopped, why, end = told["only"]
    assert stopped["checkpoints"] == [2, 3] and why == "" and end["checkpoints"] == [6]


def test_a_run_that_is_asked_to_stop_in_its_last_step_has_finished(told) -> None:
    assert (told["last"]["code"], told["last"]["reason"], told["last"]["step"]) == (0, "finished", 4)
