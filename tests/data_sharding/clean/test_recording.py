"""Spans and amplitudes of what was read."""

import numpy as np

from mcsp.data_sharding.clean.recording import robust_amplitude, spans_of, summarise


def test_spans_are_the_stretches_that_are_true() -> None:
    assert spans_of(np.array([True, True, False, True])) == [0, 2, 3, 4]
    assert spans_of(np.zeros(3, dtype=bool)) == []


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
