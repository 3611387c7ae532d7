"""Channels and windows that are bad, each told from one that just is not."""

import numpy as np
import pytest

from mcsp.config import EegConfig
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.clean.recording import (
    RawWatch,
    artefact_windows,
    check_unit,
    require_enough,
    robust_amplitude,
    scale_by_table,
    subsampled,
    unlike_others,
)

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
    """A signal in another unit is told by its own check."""
    for scale in (1e-4, 1.0, 1e3):
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


def test_a_channel_is_odd_beyond_five_robust_deviations_of_the_logarithm_of_at_least_a_fifth() -> None:
    """Where all are alike, a factor of e either way is borne; where they differ, 5 times 1.4826 of the median."""
    alike = [0.0] * 8 + [1.0, -1.0, 1.001, -1.001]
    differing = [-0.4] * 6 + [0.4] * 4 + [2.96, 2.97]  # 5 * 1.4826 * 0.4 = 2.965
    for logs, expected in ((alike, [10, 11]), (differing, [11])):
        amplitude_C, usable_C = np.exp(logs), np.ones(len(logs), dtype=bool)
        x_TC = noise()[:, :1] * amplitude_C  # one signal: all are as rough
        assert np.flatnonzero(unlike_others(x_TC, amplitude_C, usable_C)).tolist() == expected
        rough_C = unlike_others(x_TC, np.ones(len(logs)), usable_C)  # as much signal, and another roughness
        assert np.flatnonzero(rough_C).tolist() == [c for c in expected if logs[c] > 0]


def square_waves(range_W: np.ndarray) -> np.ndarray:
    """A second of each peak-to-peak range, the same in all channels."""
    wave = np.tile([0.5, -0.5], SFREQ // 2)
    return np.repeat(np.outer(range_W, wave).reshape(-1, 1), CHANNELS, axis=1)


def test_a_window_is_an_artefact_beyond_five_robust_deviations_of_its_range() -> None:
    alike = np.ones(SECONDS)
    alike[[7, 9]] = np.e, 1.001 * np.e  # where all are alike: 5 * 0.2
    differing = np.exp([-0.4] * 20 + [0.4] * 18 + [2.96, 2.97])
    for range_W, expected in ((alike, [9]), (differing, [39])):
        x_TC = square_waves(range_W)
        found = artefact_windows(x_TC, np.ones(CHANNELS, dtype=bool), watched(x_TC), SFREQ)
        assert np.flatnonzero(found).tolist() == expected


def test_windows_that_are_flat_or_clipped_in_many_channels_are_artefacts() -> None:
    x_TC = noise()
    x_TC[500:600, :3] = 1.5
    x_TC[900:920, 5:] = 400.0
    found = artefact_windows(x_TC, np.ones(CHANNELS, dtype=bool), watched(x_TC), SFREQ)
    assert np.flatnonzero(found).tolist() == [5, 9]


def test_a_channel_is_clipped_where_more_than_a_hundredth_stays_at_an_extreme_and_its_windows_from_ten_samples_on() -> (
    None
):
    x_TC = noise()
    for channel, sign, n in ((0, 1, 41), (1, 1, 42), (2, -1, 41), (3, -1, 42), (4, 1, 10), (5, 1, 11), (6, -1, 10),
                             (7, -1, 11)):  # fmt: skip
        x_TC[1500 : 1500 + n, channel] = sign * 500.0  # n - 1 of them stay where they were; 40 of 4000 are borne
    watch = watched(x_TC)
    assert np.flatnonzero(watch.clipped_C()).tolist() == [1, 3]
    assert np.flatnonzero(watch.clipped_CW().any(axis=1)).tolist() == [0, 1, 2, 3, 5, 7]
    assert np.flatnonzero(watch.clipped_CW()[5]).tolist() == [15]


def test_only_what_stays_at_the_very_extreme_of_the_whole_counts() -> None:
    x_TC = noise()
    x_TC[100:200, 0] = 100.0
    x_TC[3000:3005, 0] = 200.0  # a new extreme, at which four samples stay
    x_TC[100:112, 1], x_TC[3000:3012, 1] = 100.0, 100.0  # the same extreme again: 11 and 11
    watch = watched(x_TC)
    assert not watch.clipped_CW()[0].any()
    assert np.flatnonzero(watch.clipped_CW()[1]).tolist() == [1, 30]
    assert watch.held_2C[0, :2].tolist() == [4, 22]


@pytest.mark.parametrize("piece", [2, 99, 101, 202, 4000])
def test_the_windows_do_not_depend_on_the_pieces(piece: int) -> None:
    x_TC = noise()
    watch = watched(x_TC, piece)
    x_WTC = x_TC.astype(np.float32).reshape(SECONDS, SFREQ, CHANNELS)
    np.testing.assert_array_equal(watch.high_CW, x_WTC.max(axis=1).T)
    np.testing.assert_array_equal(watch.low_CW, x_WTC.min(axis=1).T)
    np.testing.assert_array_equal(watch.extreme_2C, [x_WTC.max(axis=(0, 1)), -x_WTC.min(axis=(0, 1))])


def test_less_than_a_second_is_one_window() -> None:
    watch = RawWatch(1, 60, 100.0)
    watch.see(np.ones((1, 60), np.float32), 0)
    assert watch.flat_CW().tolist() == [[True]] and watch.edges.tolist() == [0]


@pytest.mark.parametrize(("n", "stride"), [(1, 1), (32_767, 1), (32_768, 2), (49_152, 3)])
def test_medians_are_over_sixteen_thousand_samples_and_less_than_twice_as_many(n: int, stride: int) -> None:
    x_TC = np.stack([np.arange(n), -np.arange(n)], axis=1)
    np.testing.assert_array_equal(subsampled(x_TC), x_TC[::stride].T)


def test_each_unit_of_a_table_is_judged_by_its_own_channels() -> None:
    factor_C = np.array([1.0, 1.0, 1e3, 1e3, 1e3, 1e6, 1e6, 1e3])
    expected = noise()
    x_TC = expected / np.where(np.arange(CHANNELS) < 7, factor_C, 1.0)
    assert scale_by_table(x_TC, factor_C, EegConfig()) == (
        "no unit in the file, that of channels.tsv taken (4 channels times 1000, 2 channels times 1e+06)"
    )
    expected[:, 7] *= 1e3  # the median of its unit decides
    np.testing.assert_allclose(x_TC, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "factor", "scaled"), [(1, 1e3, 1e3, False), (1e-3, 1, 1e-3, False), (1e3, 1e3, 1e3, True)]
)
def test_amplitudes_at_the_limits_are_those_of_a_scalp(low: float, high: float, factor: float, scaled: bool) -> None:
    """What the file says is believed where it may be; limits as multiples of the amplitude that was read."""
    x_TC = noise()
    median = float(np.median(robust_amplitude(subsampled(x_TC))))
    config = EegConfig(min_amplitude_uv=median * low, max_amplitude_uv=median * high)
    assert bool(scale_by_table(x_TC, np.full(CHANNELS, factor), config)) == scaled


@pytest.mark.parametrize(
    ("median", "guess"),
    [
        (5.01e8, ""), (5e8, " (microvolts where volts"), (1e6, " (microvolts where volts"), (9.9e5, ""),
        (5e5, " (millivolts taken for volts"), (5001.0, " (millivolts taken for volts"),
        (0.09, " (millivolts where"), (5.1e-4, ""), (1.01e-3, " (millivolts where"), (4.9e-4, " (volts where"),
        (1.01e-6, " (volts where"), (0.99e-6, ""),
    ],
)  # fmt: skip
def test_the_guess_is_the_unit_in_which_the_recording_would_have_1_to_500_microvolts(median: float, guess: str) -> None:
    with pytest.raises(RecordingError) as error:
        check_unit(np.full(3, median), np.ones(3, dtype=bool), EegConfig())
    assert str(error.value).partition("expected 0.1 to 5000 uV")[2].startswith(guess)
    assert bool(str(error.value).endswith("uV")) == (not guess)
