"""Controls of retrieval: near chance where nothing but the brain is shared, far above it where there is a schedule."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mcsp.config import EvaluateConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.pretrained import PretrainedMCSP
from mcsp.evaluate import retrieval as controls
from mcsp.evaluate.evaluate import untrained_like
from mcsp.evaluate.retrieval import CONTROLS, PairedCut, Pairs, find_pairs, run_retrieval, top1

SECONDS, DELAY = {"eeg": 30.0, "fmri": 30.0}, 5.0


@pytest.fixture(scope="module")
def cuts(corpus_dir: Path) -> list[PairedCut]:
    return find_pairs(Corpus(corpus_dir), ("train", "test"), SECONDS, DELAY)


@pytest.fixture(scope="module")
def similarity(corpus_dir: Path, cuts: list[PairedCut]) -> dict[str, np.ndarray]:
    return controls.ridge_similarities(Corpus(corpus_dir), cuts, SECONDS, DELAY)


def owners(cuts: list[PairedCut]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([c.eeg.subject for c in cuts]), np.array([c.eeg.site for c in cuts])


def test_others_are_of_the_site_and_the_time_and_other_minutes_of_the_recording(cuts: list[PairedCut]) -> None:
    subject_N, site_N = owners(cuts)
    minute_N = np.array([controls.minute_of(c) for c in cuts])
    other_N, shifted_N = controls.other_people(cuts), controls.other_minutes(cuts)
    assert (other_N >= 0).all()
    assert (subject_N[other_N] != subject_N).all() and (site_N[other_N] == site_N).all()
    assert np.abs(minute_N[other_N] - minute_N).max() <= controls.SAME_TIME_SECONDS
    asked = shifted_N >= 0  # windows lie at 0, 30 and 60 s: the middle one has no other minute
    assert asked.mean() == pytest.approx(2 / 3)
    assert (subject_N[shifted_N[asked]] == subject_N[asked]).all()
    assert np.abs(minute_N[shifted_N[asked]] - minute_N[asked]).min() >= controls.SHIFT_SECONDS
    alone = cuts[:1]
    assert controls.other_people(alone).tolist() == controls.other_minutes(alone).tolist() == [-1]


def test_simulated_pairs_are_found_by_band_power_and_by_no_control(cuts, similarity) -> None:
    subject_N, site_N = owners(cuts)
    power = Pairs(similarity["band power"], subject_N, site_N, np.ones(len(cuts), bool))
    scored = {
        "own": top1(power, 16, 40, "one site"),
        "other person": top1(power, 16, 40, "one site", controls.other_people(cuts)),
        "other minute": top1(power, 16, 40, "one site", controls.other_minutes(cuts)),
        "time": top1(replace(power, similarity_NN=similarity["time"]), 16, 40, "one site"),
    }
    found = {name: score["top1"] for name, score in scored.items() if score}
    assert found.pop("own") > 0.2
    assert set(found) == {"other person", "other minute", "time"}
    assert all(value < 0.13 for value in found.values()), found  # chance is 0.06
    own = top1(power, 16, 40, "one person")
    assert own is not None and own["chance"] == pytest.approx(1 / 3) and own["top1"] > 0.5


def test_a_schedule_that_all_people_share_is_found_by_the_time_alone() -> None:
    rng = np.random.default_rng(0)
    minute_N, people_N = np.tile(np.arange(6) * 60.0, 12), np.repeat(np.arange(12), 6)
    times_G = 2.0 * np.arange(15)
    x_NGK = np.stack([((m + times_G) / 600.0)[:, None] ** np.arange(1, 6) for m in minute_N])
    course = np.cumsum(rng.normal(size=(6, 15, 8)), axis=1)  # of each minute, the same for everybody
    y_NGR = course[np.tile(np.arange(6), 12)] + 0.5 * rng.normal(size=(72, 15, 8))
    expected = controls._expected(x_NGK, y_NGR, people_N, np.ones(72, bool), 72)
    similarity = controls._unit(expected) @ controls._unit(y_NGR).T
    of = Pairs(similarity, people_N, np.zeros(72), np.ones(72, bool))
    score = top1(of, 72, 1, "one person")
    assert score is not None and score["top1"] > 2 * score["chance"]
    none = controls._expected(x_NGK, rng.normal(size=y_NGR.shape), people_N, np.ones(72, bool), 72)
    chance = replace(of, similarity_NN=controls._unit(none) @ controls._unit(y_NGR).T)
    score = top1(chance, 72, 1, "one person")
    assert score is not None and score["top1"] < 2 * score["chance"]


def test_a_regression_never_saw_the_person_it_is_asked_about() -> None:
    """Their BOLD may be anything, without a change of what is expected for them."""
    x = np.random.default_rng(1).normal(size=(12, 5, 3))
    y, people = np.random.default_rng(2).normal(size=(12, 5, 4)), np.repeat(np.arange(4), 3)
    before = controls._expected(x, y, people, np.ones(12, bool), 12)
    y[:3] += 100.0
    after = controls._expected(x, y, people, np.ones(12, bool), 12)
    np.testing.assert_array_equal(before[:3], after[:3])
    assert np.abs(before[3:] - after[3:]).min() > 0


def test_numbers_without_their_controls_are_left_out(corpus_dir: Path, pretrained: PretrainedMCSP) -> None:
    """Windows of 60 s: one a recording, so there is no other minute."""
    config = EvaluateConfig(
        model_dir="x", corpus_dir=corpus_dir, out_dir="x", window_seconds={"eeg": 10, "fmri": 60}, retrieval_size=4
    )
    models = {"pretrained": pretrained, "untrained": untrained_like(pretrained)}
    rows, notes = run_retrieval(models, Corpus(corpus_dir), config)
    assert rows == [] and len(notes) == 6
    assert all("another minute" in note for note in notes if "one person" not in note), notes
    config = config.model_copy(update={"window_seconds": {"eeg": 10.0, "fmri": 30.0}})
    rows, _ = run_retrieval(models, Corpus(corpus_dir), config)
    assert {r["model"] for r in rows} == {"pretrained", "untrained", *CONTROLS}
