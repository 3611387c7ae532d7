"""Channels and windows that are bad, each told from one that just is not."""

import numpy as np
import pytest

from mcsp.config import EegConfig
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.clean.eeg_quality import (
    RawWatch,
    artefact_windows,
    check_unit,
    require_enough,
    scale_by_table,
    unlike_others,
)
from mcsp.data_sharding.clean.recording import robust_amplitude

SFREQ, SECONDS, CHANNELS = 100, 40, 8


def noise(seed: int = 0) -> np.ndarray:
    """Slow noise of 20 uV, ``(T, C)``."""
    steps = np.random.default_rng(seed).standard_normal((SFREQ * SECONDS, CHANNELS))
    x = np.apply_along_axis(lambda c: np.convolve(c, np.ones(10) / 10, "same"), 0, steps)
    return 20 * x / x.std(axis=0)


def odd_ones(x_TC: np.ndarray, usable_C: np.ndarray | None = None) -> list[int]:
    usable_C = np.ones(x_TC.shape[1], dtype=bool) if usable_C is None else usable_C
    return np.flatnonzero(unlike_others(x_TC, robust_amplitude(x_TC.T), usable_C)).tolist()


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_a_channel_much_weaker_is_as_odd_as_one_much_stronger(factor: float) -> None:
    x_TC = noise()
    assert odd_ones(x_TC) == []
    x_TC[:, 3] *= factor
    assert odd_ones(x_TC) == [3]


def test_a_rough_channel_is_odd_and_a_smooth_one_is_not() -> None:
    x_TC = noise()
    x_TC[:, 2] = 20 * np.random.default_rng(1).standard_normal(len(x_TC))
    x_TC[:, 5] = 28 * np.sin(2 * np.pi * 0.1 * np.arange(len(x_TC)) / SFREQ)
    assert odd_ones(x_TC) == [2]


def test_few_channels_have_no_outliers() -> None:
    x_TC = noise()
    x_TC[:, 0] *= 100
    usable_C = np.arange(CHANNELS) < 6
    assert odd_ones(x_TC, usable_C) == [0]
    usable_C[5] = False
    assert odd_ones(x_TC, usable_C) == []


def test_exactly_so_many_bad_channels_are_borne() -> None:
    bad = {"flat": np.array([1, 0, 0, 0], bool), "clipped": np.array([1, 1, 0, 0], bool)}
    assert require_enough(bad, 0.5).tolist() == [False, False, True, True]
    with pytest.raises(RecordingError, match=r"2 of 4 channels are bad \(1 flat, 2 clipped\)") as error:
        require_enough(bad, 0.49)
    assert error.value.reason == "clipped"
    tie = {"flat": np.array([1, 0], bool), "clipped": np.array([0, 1], bool)}
    with pytest.raises(RecordingError) as error:
        require_enough(tie, 1.0)
    assert error.value.reason == "flat", "one good channel is needed, and of a tie the first reason is told"


def watched(x_TC: np.ndarray, piece: int = 333) -> RawWatch:
    """Pieces that overlap, as a reader gives them."""
    watch = RawWatch(x_TC.shape[1], len(x_TC), SFREQ)
    x_CT = x_TC.T.astype(np.float32)
    watch.see(x_CT[:, : piece // 2], 0)
    watch.see(x_CT[:, : piece // 2], 0)  # given once more, and not counted twice
    for start in range(piece // 2, len(x_TC), piece):
        watch.see(x_CT[:, start : start + piece], start)
    assert watch.seen == len(x_TC)
    return watch


def test_what_passes_in_pieces_is_seen_as_a_whole() -> None:
    x_TC = noise()
    x_TC[: SFREQ * SECONDS * 6 // 10, 0] = 1.5
    x_TC[: SFREQ * SECONDS * 5 // 10, 1] = 1.5  # exactly half is not most
    x_TC[:, 2] = np.clip(x_TC[:, 2], None, 20)
    x_TC[:, 3] = np.clip(x_TC[:, 3], -20, None)
    watch = watched(x_TC)
    assert np.flatnonzero(watch.flat_C()).tolist() == [0]
    assert np.flatnonzero(watch.clipped_C()).tolist() == [2, 3]
    assert watch.flat_CW()[0].tolist() == [w < 24 for w in range(SECONDS)]
    touched = np.array([(x_TC[w * SFREQ : (w + 1) * SFREQ, 2] == 20).any() for w in range(SECONDS)])
    np.testing.assert_array_equal(watch.clipped_CW()[2], touched)
    assert not watch.clipped_CW()[4:].any()


def test_artefacts_are_relative_to_a_channel_however_quiet_it_is() -> None:
    """From a hundredth of a microvolt on; a signal in another unit is told by its own check."""
    for scale in (1e-3, 1.0, 1e3):
        x_TC = noise() * scale
        x_TC[900:1000, :3] *= 50
        found = artefact_windows(x_TC, np.ones(CHANNELS, dtype=bool), watched(x_TC), SFREQ)
        assert np.flatnonzero(found).tolist() == [9], scale


def test_a_window_is_an_artefact_where_more_than_a_quarter_of_the_channels_say_so() -> None:
    x_TC = noise()
    x_TC[500:600, :2] *= 50
    x_TC[900:1000, :3] *= 50
    x_TC[-30:, :3] *= 50  # inside the last window
    good_C = np.ones(CHANNELS, dtype=bool)
    found = artefact_windows(x_TC, good_C, watched(x_TC), SFREQ)
    assert np.flatnonzero(found).tolist() == [9, 39]
    good_C[0] = False  # what is bad anyway has no say: then 1 and 2 of 7
    assert np.flatnonzero(artefact_windows(x_TC, good_C, watched(x_TC), SFREQ)).tolist() == [9, 39]


def test_the_unit_of_the_table_is_taken_only_where_it_explains_the_amplitude() -> None:
    config = EegConfig()
    in_uv = noise()
    in_mv = in_uv / 1000
    table_C = np.full(CHANNELS, 1000.0)
    assert scale_by_table(in_mv, table_C, config) == (
        "no unit in the file, that of channels.tsv taken (8 channels times 1000)"
    )
    np.testing.assert_allclose(in_mv, in_uv, rtol=1e-6)
    before = in_uv.copy()
    assert scale_by_table(in_uv, table_C, config) == "" and (in_uv == before).all()


@pytest.mark.parametrize(("factor", "guess"), [(1e6, "microvolts where volts"), (1e-6, "volts where microvolts")])
def test_a_median_that_no_scalp_has_is_refused_with_a_guess(factor: float, guess: str) -> None:
    config, usable_C = EegConfig(), np.ones(4, dtype=bool)
    for at_limit in (config.min_amplitude_uv, config.max_amplitude_uv):
        check_unit(np.full(4, at_limit), usable_C, config)
        with pytest.raises(RecordingError, match="median channel amplitude"):
            check_unit(np.full(4, at_limit * (1.01 if at_limit > 1 else 0.99)), usable_C, config)
    with pytest.raises(RecordingError, match=guess):
        check_unit(np.full(4, 20 * factor), usable_C, config)
    check_unit(np.full(4, 20 * factor), ~usable_C, config)


def test_channels_are_odd_in_any_unit() -> None:
    """Amplitudes of a thousandth of a microvolt and of a volt, one weaker channel rougher than the others."""
    x_TC = noise()
    x_TC[:, 5] = 11 * np.random.default_rng(9).standard_normal(len(x_TC))
    assert odd_ones(x_TC) == odd_ones(1e-4 * x_TC) == odd_ones(1e5 * x_TC) == [5]
