"""Cross-modal retrieval: right where the answer is known, at chance where there is none, aligned in time."""

from pathlib import Path

import numpy as np
import pytest

from mcsp.data_sharding.store.reader import Corpus
from mcsp.evaluate.retrieval import Pairs, find_pairs, top1


def pairs(similarity_NN: np.ndarray, windows_per_subject: int = 2, subjects_per_site: int = 20) -> Pairs:
    subject_N = np.arange(len(similarity_NN)) // windows_per_subject
    holds_N = np.ones(len(similarity_NN), bool)
    return Pairs(similarity_NN, subject_N.astype(str), (subject_N // subjects_per_site).astype(str), holds_N)


def test_a_perfect_model_always_finds_the_window() -> None:
    score = top1(pairs(np.eye(80)), 64, 5)
    assert (score["top1"], score["sd"], score["top1_subject"]) == (1.0, 0.0, 1.0)
    assert score["chance"] == 1 / 64
    assert (score["candidates"], score["windows"], score["subjects"]) == (64, 80, 40)


def test_windows_without_a_signal_are_neither_asked_for_nor_candidates() -> None:
    similarity_NN = np.eye(80)
    similarity_NN[[3, 4]] = 9.0  # what a model makes of nothing is alike
    similarity_NN[:, [3, 4]] = 9.0
    of = pairs(similarity_NN)
    of.holds_N[[3, 4]] = False
    score = top1(of, 80, 1)
    assert (score["top1"], score["candidates"], score["windows"]) == (1.0, 78, 78)
    score = top1(of, 80, 1, query_N=np.full(80, 3))  # stands in for others, and holds nothing
    assert score is None
    assert top1(of, 80, 1, query_N=np.where(np.arange(80) == 7, 3, np.arange(80)))["windows"] == 77


def test_random_similarities_are_at_chance() -> None:
    similarity = np.random.default_rng(0).normal(size=(400, 400))
    score = top1(pairs(similarity), 16, 200)
    assert score["top1"] == pytest.approx(1 / 16, abs=0.015)
    assert score["top1_subject"] == pytest.approx(score["chance_subject"], abs=0.015)


def test_knowing_only_the_subject_is_told_apart_from_knowing_the_window() -> None:
    same_NN = np.equal.outer(np.arange(80) // 2, np.arange(80) // 2)
    score = top1(pairs(same_NN + 0.1 * np.random.default_rng(1).random((80, 80))), 80, 1)
    assert score["top1_subject"] == 1.0
    assert 0.3 < score["top1"] < 0.7


def test_knowing_only_the_site_gains_nothing_within_a_site() -> None:
    site_N = np.arange(80) // 40
    similarity = np.equal.outer(site_N, site_N) + 0.1 * np.random.default_rng(2).random((80, 80))
    within = top1(pairs(similarity), 20, 100, "one site")
    over_all = top1(pairs(similarity), 20, 100)
    assert within["top1"] == pytest.approx(1 / 20, abs=0.02)
    assert over_all["top1"] > 1.5 / 20


def test_fewer_windows_than_asked_for_are_all_used_and_said() -> None:
    score = top1(pairs(np.eye(10)), 64, 3)
    assert (score["candidates"], score["requested"], score["draws"]) == (10, 64, 3)
    assert score["chance"] == pytest.approx(0.1)
    assert top1(pairs(np.eye(1)), 64, 3) is None
    assert top1(pairs(np.eye(10), 1), 64, 3, "one person") is None


def test_the_same_call_gives_the_same_numbers() -> None:
    similarity = np.random.default_rng(3).normal(size=(50, 50))
    assert top1(pairs(similarity), 8, 9, "one site") == top1(pairs(similarity), 8, 9, "one site")


def test_pairs_are_aligned_with_the_delay_and_never_overlap(corpus_dir: Path) -> None:
    corpus = Corpus(corpus_dir)
    seconds, delay = {"eeg": 10.0, "fmri": 30.0}, 5.0
    cuts = find_pairs(corpus, ("test",), seconds, delay)
    held_out = corpus.samples("test")
    assert {cut.eeg.key for cut in cuts} == set(held_out)
    assert len(cuts) == 3 * len(held_out)  # starts at 0, 30, 60 s of 100 s
    for cut in cuts:
        eeg_onset = cut.eeg.onset_seconds + cut.eeg_start / cut.eeg.sfreq
        fmri_onset = cut.fmri.onset_seconds + cut.fmri_start / cut.fmri.sfreq
        assert fmri_onset - eeg_onset == pytest.approx(delay, abs=0.51 / cut.fmri.sfreq)
        assert cut.fmri_start + round(30 * cut.fmri.sfreq) <= cut.fmri.n_samples
    for key in held_out:
        starts = [cut.fmri_start / cut.fmri.sfreq for cut in cuts if cut.eeg.key == key]
        assert min(np.diff(starts)) >= 28.0
    assert find_pairs(corpus, ("validation",), seconds, delay) == []
