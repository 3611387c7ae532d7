"""Spans and amplitudes of what was read."""

from dataclasses import replace

import numpy as np
import pytest

from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.clean.recording import (
    CleanRecording,
    require_good,
    robust_amplitude,
    spans_of,
    summarise,
    valid_seconds,
)


def test_spans_are_the_stretches_that_are_true() -> None:
    assert spans_of(np.array([True, True, False, True])) == [0, 2, 3, 4]
    assert spans_of(np.zeros(3, dtype=bool)) == []


def test_valid_seconds_are_those_of_all_spans() -> None:
    recording = CleanRecording(np.zeros((400, 1)), 40.0, "uV", ["A"], np.zeros((1, 3)), np.ones(1, dtype=bool))
    assert valid_seconds(recording) == 0
    assert valid_seconds(replace(recording, valid_spans=[40, 80, 100, 300])) == 6.0


def test_amplitude_is_that_of_a_gaussian_and_ignores_spikes() -> None:
    x_CT = 7 * np.random.default_rng(0).standard_normal((2, 20_000))
    x_CT[1, ::50] = 1e6
    amplitude_C = robust_amplitude(x_CT)
    np.testing.assert_allclose(amplitude_C, 7, rtol=0.03)
    good_C = np.array([True, False])
    assert summarise(amplitude_C, good_C, 0.25) == {
        "bad_channels": 1.0,
        "amplitude": amplitude_C[0],
        "artefact_fraction": 0.25,
    }
    assert summarise(amplitude_C, good_C, 1 / 3)["artefact_fraction"] == 0.333333


def test_the_median_of_an_even_number_is_between_both_and_nan_stays() -> None:
    x_CT = np.array([[0.0, 1.0, 5.0, 9.0], [0.0, 1.0, np.nan, 9.0]])
    np.testing.assert_allclose(robust_amplitude(x_CT), [1.4826 * 2.5, np.nan])


def test_one_good_channel_is_enough() -> None:
    yes, no = np.ones(2, dtype=bool), np.zeros(2, dtype=bool)
    assert require_good(yes, np.array([True, False])).tolist() == [False, True]
    for finite_C, flat_C, reason in ((no, no, "non-finite"), (yes, yes, "flat")):
        with pytest.raises(RecordingError) as error:
            require_good(finite_C, flat_C)
        assert error.value.reason == reason
