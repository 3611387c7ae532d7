"""Spans and amplitudes of what was read."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.clean.recording import (
    CleanRecording,
    encode,
    require_good,
    robust_amplitude,
    spans_of,
    summarise,
    valid_seconds,
)

FP16_RELATIVE = 2.0**-11  # half a unit in the last place


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


@given(st.integers(-9, 9), st.integers(0, 2**31))
def test_physical_units_come_back_to_fp16_precision(exponent: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x_TC = (rng.standard_normal((300, 4)) * np.array([1, 1e-3, 30, 1e-5]) * 10.0**exponent).astype(np.float32)
    stored_TC, scale = encode(x_TC, np.ones(4, dtype=bool))
    assert stored_TC.dtype == np.dtype("<f2") and stored_TC.flags.c_contiguous
    restored = stored_TC.astype(np.float64) * scale
    smallest_normal = scale * 2.0**-14  # below, fp16 has fewer bits; that is a fifty millionth of the peak at most
    assert np.abs(x_TC).max() > 5e7 * smallest_normal
    np.testing.assert_allclose(restored, x_TC, rtol=FP16_RELATIVE, atol=FP16_RELATIVE * smallest_normal)


def test_a_bad_channel_neither_sets_the_scale_nor_overflows() -> None:
    x_TC = np.ones((10, 2), dtype=np.float32)
    x_TC[:, 1] = 1e9
    stored_TC, scale = encode(x_TC, np.array([True, False]))
    assert stored_TC[0, 0] * scale == 1.0 and (stored_TC[:, 1] == 65504).all()
    assert encode(-x_TC, np.array([True, False]))[0].tolist() == (-stored_TC).tolist()


def test_the_largest_good_value_is_stored_as_five_to_ten_thousand() -> None:
    """Also where it is negative; of zeros nothing is scaled."""
    one = np.ones(1, dtype=bool)
    for peak, expected in ((10_000.0, 1.0), (10_000.5, 2.0), (5_000.5, 1.0), (5_000.0, 0.5), (1e-3, 2.0**-23)):
        for x_TC in (np.array([[peak], [0.1 * peak]]), np.array([[-peak], [-0.1 * peak]])):
            stored_TC, scale = encode(x_TC.astype(np.float32), one)
            assert scale == expected and 5_000 <= np.abs(stored_TC).max() <= 10_000
    assert encode(np.zeros((3, 1), np.float32), one)[1] == 1.0


@given(st.integers(1, 9), st.integers(0, 2**31))
def test_the_amplitude_is_that_of_numpys_median(n: int, seed: int) -> None:
    x_CT = np.random.default_rng(seed).standard_normal((2, n))
    expected_C = 1.4826 * np.median(np.abs(x_CT - np.median(x_CT, axis=1)[:, None]), axis=1)
    np.testing.assert_array_equal(robust_amplitude(x_CT), expected_C)
