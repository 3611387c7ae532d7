"""What every part agrees on, with its numbers written out: a moved constant changes corpora and runs without a word."""

from dataclasses import replace

import numpy as np
import pytest

from mcsp.schema import (
    BLOCK_SAMPLES,
    BRAIN_CENTRE_MM,
    BRAIN_HALF_AXES_MM,
    DOMAINS,
    HIGHEST_HZ,
    MODALITIES,
    SCALE_FREE,
    SPLITS,
    UNITS,
    VIEWS,
    Purpose,
    Window,
    mix64,
    random_key,
    text_key,
    unit_interval,
    units_of,
)
from tests.test_batch import window


def test_the_hash_is_splitmix64() -> None:
    """The first outputs of Vigna's splitmix64.c with the seeds 0 and 1234567."""
    assert mix64(0) == 0xE220A8397B1DCDAF
    assert mix64(0x9E3779B97F4A7C15) == 0x6E789E6AA1B965F4
    assert mix64(1234567) == 6457827717110365317


def test_keys_depend_on_every_part_and_their_order() -> None:
    keys = [random_key(*parts) for parts in ((1, 2), (2, 1), (1, 2, 0), (1,), (), (-1, 2))]
    assert len(set(keys)) == 6 and all(0 <= key < 2**64 for key in keys)
    assert random_key() == 0 and random_key(0) == mix64(0) and random_key(0, 5) == mix64(mix64(0) ^ 5)
    assert random_key(-1) == random_key(2**64 - 1)
    draws = [unit_interval(key) for key in range(2000)]
    assert all(0 <= draw < 1 for draw in draws) and sum(draws) / 2000 == pytest.approx(0.5, abs=0.02)


def test_texts_are_numbers_that_fit_into_int64() -> None:
    assert text_key("") != text_key("a") != text_key("b")
    assert all(0 <= text_key(str(i)) < 2**63 for i in range(200))
    assert any(text_key(str(i)) >= 2**62 for i in range(200))


def test_words_and_their_order() -> None:
    assert (MODALITIES, DOMAINS) == (("fmri", "eeg"), ("spatial", "temporal", "spectral"))
    assert (SPLITS, VIEWS) == (("train", "validation", "test"), (0, 1))
    assert units_of("eeg") == ("uV",) and units_of("fmri") == ("percent", "a.u.")


def test_units_and_limits_are_those_that_corpora_were_built_with() -> None:
    assert HIGHEST_HZ == {"eeg": 45.0, "fmri": 0.25}
    assert UNITS == {"eeg": "uV", "fmri": "percent"} and SCALE_FREE == "a.u."
    assert BLOCK_SAMPLES == {"eeg": 400, "fmri": 10}
    assert BRAIN_CENTRE_MM == (0.0, -18.0, 16.0) and BRAIN_HALF_AXES_MM == (66.0, 82.0, 56.0)


def test_the_number_of_every_purpose_is_written_out() -> None:
    """Another number draws another run from the same seed."""
    assert {name: int(purpose) for name, purpose in Purpose.__members__.items()} == dict(
        ORDER=0, SAMPLE=1, TURN=2, CUT=3, FIRST_WINDOW=0, SECOND_WINDOW=1, SLOT=0, MEMBER=1, VISIT=2, SITE=3,
        OFFSET=4, SITES=5, STEPS=6, DROP_MODALITY=1, WHICH_MODALITY=2, WHICH_RECORDING=3, START=4, LATE_VIEW=106,
        VIEW=1000, DROPPED_FRACTION=101, DROPPED_CHANNELS=102, POSITION=103, MASKED_LENGTH=201, MASKED_PLACE=202,
        AMPLITUDE=203, NOISE=204, BAND_WIDTH=301, BAND_PLACE=302, BAND_KEPT=303, TILT=304,
    )  # fmt: skip


def test_purposes_that_meet_under_one_key_differ() -> None:
    """Equal numbers are allowed for keys that are never folded with the same parts."""
    of_order = (Purpose.SLOT, Purpose.MEMBER, Purpose.VISIT, Purpose.SITE, Purpose.OFFSET, Purpose.SITES, Purpose.STEPS)
    assert [int(p) for p in of_order] == list(range(7))
    of_view = (
        Purpose.DROPPED_FRACTION, Purpose.DROPPED_CHANNELS, Purpose.POSITION, Purpose.MASKED_LENGTH,
        Purpose.MASKED_PLACE, Purpose.AMPLITUDE, Purpose.NOISE, Purpose.BAND_WIDTH, Purpose.BAND_PLACE,
        Purpose.BAND_KEPT, Purpose.TILT,
    )  # fmt: skip
    assert len({int(p) for p in of_view}) == len(of_view)
    for together in (
        (Purpose.FIRST_WINDOW, Purpose.SECOND_WINDOW),
        (Purpose.ORDER, Purpose.SAMPLE, Purpose.TURN),
        (Purpose.DROP_MODALITY, Purpose.WHICH_MODALITY, Purpose.WHICH_RECORDING, Purpose.START),
    ):
        assert len({int(p) for p in together}) == len(together)


def test_a_window_ends_behind_its_last_sample() -> None:
    found = window(n_samples=20)
    assert (found.start, found.stop) == (0, 20) and Window(np.zeros((7, 3)), found.recording, 5).stop == 12


def test_duration_and_positions_of_a_recording() -> None:
    recording = replace(window(n_samples=50, n_channels=2).recording, positions_mm=[1.0, 2.0, 3.0, 4.0, 5.0, 6.5])
    assert recording.seconds == 0.25
    assert recording.positions_C3.dtype == np.float32 and recording.positions_C3.tolist() == [[1, 2, 3], [4, 5, 6.5]]
    assert (recording.participant, recording.quality, recording.space) == ("{}", "{}", "")
