"""What is measured of a whole recording: the right band, region and pair, gaps left out, any parcellation."""

import numpy as np
import pytest
from scipy import signal
from sklearn.covariance import ledoit_wolf

from mcsp.batch import valid_times
from mcsp.evaluate.measured import (
    BRAIN_SIGMA_MM,
    SCALP_REGIONS_MM,
    SCALP_SIGMA_MM,
    Points,
    band_power,
    brain_lattice_mm,
    common_points,
    connectivity,
    covariance,
    log_band_power,
    root_connectivity,
    series,
)
from mcsp.kernels.spectral import EEG_BANDS_HZ
from mcsp.schema import Window
from tests.evaluate.test_features import recording

OWN = Points(None)


def window(x_TC: np.ndarray, position_C3: np.ndarray, sfreq: float, **changes: object) -> Window:
    """A window that is a whole recording."""
    n, c = x_TC.shape
    whole = {"channels": [str(i) for i in range(c)], "channel_good": [True] * c, "n_channels": c, "n_samples": n}
    whole |= {"positions_mm": position_C3.ravel().tolist(), "sfreq": sfreq, "valid_spans": [0, n], **changes}
    return Window(x_TC.astype(np.float32), recording(**whole), 0)


def scalp(window: Window) -> np.ndarray | None:
    """Log power (bands, regions)."""
    found = log_band_power(window, common_points("eeg"))
    return None if found is None else found[0].reshape(len(EEG_BANDS_HZ), -1)


@pytest.mark.parametrize("sfreq", [200.0, 256.0])
def test_band_power_finds_band_and_region(sfreq: float) -> None:
    """10 Hz of 20 uV at the right occipital electrode alone: 200 uV^2 in the alpha band there."""
    positions = np.array(list(SCALP_REGIONS_MM.values()))
    x_TC = np.random.default_rng(0).normal(scale=0.1, size=(round(20 * sfreq), len(positions)))
    region = list(SCALP_REGIONS_MM).index("right occipital")
    # Alone, and of whole cycles in each frame of 2 s: Hann's window then spreads it over three bins of alpha, no more.
    x_TC[:, region] = 20 * np.sin(2 * np.pi * 10 * np.arange(len(x_TC)) / sfreq)
    power_5R = scalp(window(x_TC, positions, sfreq))
    assert power_5R is not None
    alpha = list(EEG_BANDS_HZ).index("alpha")
    assert np.unravel_index(power_5R.argmax(), power_5R.shape) == (alpha, region)
    single = scalp(window(x_TC[:, [region]], positions[[region]], sfreq))
    assert single is not None
    np.testing.assert_allclose(single[alpha], np.log10(200), atol=1e-7)
    absolute, share = log_band_power(window(x_TC, positions, sfreq), OWN)  # type: ignore[misc]
    np.testing.assert_allclose(absolute.reshape(5, -1)[alpha, region], np.log10(200), atol=1e-7)
    np.testing.assert_allclose(share.reshape(5, -1)[alpha, region], 0.0, atol=1e-7)
    np.testing.assert_allclose((10 ** share.reshape(5, -1)).sum(axis=0), 1.0, atol=1e-12)


def test_power_is_of_valid_time_alone() -> None:
    positions = np.array(list(SCALP_REGIONS_MM.values()))
    x_TC = np.random.default_rng(1).normal(size=(4000, 10))
    expected = log_band_power(window(x_TC[1000:3000], positions, 200.0), OWN)
    x_TC[:1000] *= 50.0
    x_TC[3000:] = 0.0
    found = log_band_power(window(x_TC, positions, 200.0, valid_spans=[1000, 3000]), OWN)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    two = log_band_power(window(x_TC, positions, 200.0, valid_spans=[1000, 1100, 1500, 3000]), OWN)
    np.testing.assert_allclose(two, log_band_power(window(x_TC[1500:3000], positions, 200.0), OWN), atol=1e-6)


def test_power_without_any_valid_time_is_that_of_the_whole_window() -> None:
    """Nothing is left out then; whoever reads windows has refused such a one before."""
    positions, x_TC = np.array(list(SCALP_REGIONS_MM.values())), np.random.default_rng(1).normal(size=(450, 10))
    nothing, everything = (window(x_TC, positions, 200.0, valid_spans=spans) for spans in ([0, 0], [0, 450]))
    assert not valid_times(nothing).any()
    whole = signal.welch(nothing.x_TC.astype(np.float64), fs=200.0, nperseg=400, axis=0)[1][16:26].sum(axis=0) * 0.5
    np.testing.assert_allclose(band_power(everything)[0][2], whole, rtol=1e-6)
    found_KC, good_C = band_power(window(x_TC[:400], positions, 200.0, valid_spans=[0, 0]))
    np.testing.assert_allclose(found_KC, band_power(window(x_TC[:400], positions, 200.0))[0], rtol=1e-12)
    assert good_C.all()


def test_a_bad_channel_takes_the_power_of_those_around_it() -> None:
    positions = np.array(list(SCALP_REGIONS_MM.values()))
    x_TC = np.random.default_rng(1).normal(size=(2000, 10))
    plain = log_band_power(window(x_TC, positions, 200.0), OWN)
    x_TC[:, 3] *= 1000.0
    found = log_band_power(window(x_TC, positions, 200.0, channel_good=[i != 3 for i in range(10)]), OWN)
    np.testing.assert_allclose(found, plain, atol=0.3)  # of noise of one kind everywhere
    nowhere = positions.copy()
    nowhere[3] = np.nan
    assert log_band_power(window(x_TC, nowhere, 200.0, channel_good=[i != 3 for i in range(10)]), OWN) is None


def test_band_power_does_not_depend_on_the_order_of_channels_and_skips_unknown_ones() -> None:
    rng = np.random.default_rng(1)
    positions = np.array(list(SCALP_REGIONS_MM.values()))
    x_TC = rng.normal(size=(2000, 10)) * np.arange(1, 11)
    order = rng.permutation(10)
    expected = scalp(window(x_TC, positions, 200.0))
    np.testing.assert_allclose(scalp(window(x_TC[:, order], positions[order], 200.0)), expected)
    wider = np.concatenate([positions, np.full((1, 3), np.nan)])
    loud = np.concatenate([x_TC, 1000 * rng.normal(size=(2000, 1))], axis=1)
    np.testing.assert_allclose(scalp(window(loud, wider, 200.0)), expected)
    assert scalp(window(x_TC, np.full((10, 3), np.nan), 200.0)) is None


def test_connectivity_is_pearson_and_flat_parcels_count_as_zero() -> None:
    x_TC = np.random.default_rng(2).normal(size=(60, 6)).cumsum(axis=0)
    fmri = {"modality": "fmri", "unit": "percent"}
    expected = np.arctanh(np.corrcoef(x_TC.T)[np.triu_indices(6, 1)])
    found = connectivity(series(window(x_TC, np.zeros((6, 3)), 0.5, **fmri), OWN, True))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    x_TC[:, 0] = 3.0
    found = connectivity(series(window(x_TC, np.zeros((6, 3)), 0.5, **fmri), OWN, True))
    assert (found[:5] == 0).all()
    np.testing.assert_allclose(found[5:], expected[5:], rtol=1e-4)


@pytest.mark.parametrize("measure", [connectivity, root_connectivity])
def test_connectivity_at_a_lattice_is_comparable_across_parcellations(measure) -> None:
    """Two parcellations of one brain agree with each other far better than either with another brain."""
    lattice = brain_lattice_mm()
    coarse, fine = lattice[::2] + 5.0, lattice[np.random.default_rng(3).permutation(len(lattice))]

    def activity(seed: int, positions: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(seed)
        sources_mm, source_T6 = rng.uniform(-60, 60, (6, 3)), rng.normal(size=(300, 6))
        return source_T6 @ np.exp(-((sources_mm[:, None] - positions[None]) ** 2).sum(-1) / (2 * 40.0**2))

    vectors = [
        measure(series(window(activity(seed, positions), positions, 0.5), common_points("fmri"), True))
        for seed, positions in ((0, coarse), (0, fine), (1, coarse))
    ]
    same, other = (np.corrcoef(vectors[0], v)[0, 1] for v in vectors[1:])
    assert len(vectors[0]) == len(lattice) * (len(lattice) - 1) // 2
    assert same > 0.85
    assert other < same - 0.2


@pytest.mark.parametrize(("samples", "atol"), [(400, 1e-12), (30, 1e-8)])
def test_the_root_of_connectivity_is_what_its_definition_says(samples: int, atol: float) -> None:
    """Written out with eigenvectors in numpy; more and fewer samples than parcels, one of which is flat."""
    x_TC = np.random.default_rng(4).normal(size=(samples, 40)).cumsum(axis=0)
    x_TC[:, 7] = 2.0
    std_C = x_TC.std(axis=0)
    z_TC = (x_TC - x_TC.mean(axis=0)) / np.where(std_C < 1e-6, 1, std_C)
    correlation = z_TC.T @ z_TC / len(z_TC)
    np.fill_diagonal(correlation, 1)
    value, vector = np.linalg.eigh(correlation)
    expected = ((vector * np.sqrt(np.maximum(value, 0))) @ vector.T)[np.triu_indices(40, 1)]
    expected -= expected.mean()
    # Of fewer samples, eigenvalues that are 0 are 1e-17 by rounding, whose root is 3e-9.
    np.testing.assert_allclose(root_connectivity(x_TC), expected / np.linalg.norm(expected), atol=atol)


def test_places_and_widths_are_written_out() -> None:
    """Another place or width is another baseline from the same recordings."""
    right = {
        "frontal": (51, 87, 78), "central": (66, 24, 105), "temporal": (85, 15, 31), "parietal": (55, -44, 100),
        "occipital": (30, -80, 55),
    }  # fmt: skip
    expected = {f"left {name}": (-x, y, z) for name, (x, y, z) in right.items()}
    assert expected | {f"right {name}": place for name, place in right.items()} == SCALP_REGIONS_MM
    assert (SCALP_SIGMA_MM, BRAIN_SIGMA_MM) == (25.0, 15.0)
    eeg, fmri = common_points("eeg"), common_points("fmri")
    assert (eeg.sigma_mm, fmri.sigma_mm, OWN.places_R3) == (25.0, 15.0, None)
    np.testing.assert_array_equal(eeg.places_R3, list(SCALP_REGIONS_MM.values()))
    grid = np.array(
        [(x, y, z) for x in range(-105, 106, 30) for y in range(-105, 106, 30) for z in range(-105, 106, 30)]
    )
    inside = (grid[:, 0] / 70) ** 2 + (grid[:, 1] / 88) ** 2 + (grid[:, 2] / 65) ** 2 < 1
    np.testing.assert_array_equal(fmri.places_R3, grid[inside] + [0, -18, 10])


def test_a_place_is_the_gaussian_mean_of_the_channels_around_it() -> None:
    """Two channels at 10 and 40 mm from one place, and a third that is bad, not finite, flat or nowhere."""
    x_TC = np.random.default_rng(5).normal(size=(80, 3)) * [2.0, 5.0, 1.0]
    positions = np.array([[10.0, 0, 0], [0, 40.0, 0], [1.0, 0, 0]])
    place = Points(np.zeros((1, 3)), 20.0)
    weight = np.exp(-np.array([100.0, 1600.0]) / 800)
    weight /= weight.sum()
    both = x_TC[:, :2].astype(np.float32)
    for what in ("bad", "not finite", "flat", "nowhere"):
        x, where, good = x_TC.copy(), positions.copy(), [True, True, what != "bad"]
        if what in ("not finite", "flat"):
            x[:, 2] = np.inf if what == "not finite" else 3.0
        where[2, 1] = np.nan if what == "nowhere" else 0
        cut = window(x, where, 0.5, channel_good=good)
        np.testing.assert_allclose(series(cut, place, False)[:, 0], both @ weight, atol=1e-6)
        z = (both - both.mean(0)) / both.std(0) @ weight
        np.testing.assert_allclose(series(cut, place, True)[:, 0], (z - z.mean()) / z.std(), atol=1e-5)
    assert series(window(x_TC, np.full((3, 3), np.nan), 0.5), place, True) is None
    assert series(window(x_TC, positions, 0.5, channel_good=[False] * 3), place, False) is None
    far = series(window(x_TC, positions + 1e4, 0.5), place, False)
    assert np.isfinite(far).all(), "the nearest channel always counts"


def test_channels_themselves_are_in_their_unit_over_valid_time_and_zero_where_bad() -> None:
    x_TC = np.random.default_rng(6).normal(size=(50, 3)) + 4
    x_TC[20, 2] = np.nan
    cut = window(x_TC, np.full((3, 3), np.nan), 0.5, channel_good=[True, False, True], valid_spans=[5, 15, 30, 50])
    stored = Window(cut.x_TC / np.float32(4), cut.recording, 0, 4.0)
    kept = np.r_[5:15, 30:50]
    np.testing.assert_allclose(series(stored, OWN, False), cut.x_TC[kept] * [1, 0, 1], atol=1e-6)
    standard = series(stored, OWN, True)
    np.testing.assert_allclose(standard[:, 0], (x_TC[kept, 0] - x_TC[kept, 0].mean()) / x_TC[kept, 0].std(), atol=1e-5)
    assert not standard[:, 1].any() and standard.shape == (30, 3)
    lost = window(x_TC, np.zeros((3, 3)), 0.5, valid_spans=[0, 50])
    assert not series(lost, OWN, False)[:, 2].any(), "a channel with a value that is not finite"


def test_alike_channels_are_limited_and_covariance_is_shrunk() -> None:
    x_TC = np.random.default_rng(7).normal(size=(40, 3))
    x_TC[:, 1], x_TC[:, 2] = x_TC[:, 0], -x_TC[:, 0]
    limit = np.arctanh(0.999)
    np.testing.assert_allclose(connectivity(x_TC), [limit, -limit, -limit])
    np.testing.assert_array_equal(covariance(x_TC), ledoit_wolf(x_TC)[0])


@pytest.mark.parametrize("sfreq", [100.0, 100.5])  # frames of 200 and, odd, of 201 samples
def test_power_is_the_mean_of_all_frames_of_two_seconds_inside_valid_spans(sfreq: float) -> None:
    """Hann's window, half overlap, each frame without its mean: written out frame by frame."""
    frame, spans = round(2 * sfreq), [(0, 517), (600, 799), (850, 1050 + (sfreq > 100)), (1060, 1510)]
    x_TC = np.random.default_rng(8).normal(size=(1600, 3)).cumsum(0).astype(np.float32).astype(np.float64)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frame) / frame)
    found = []
    for a, b in spans:
        for start in range(a, b - frame + 1, frame - frame // 2):
            part = x_TC[start : start + frame]
            density = np.abs(np.fft.rfft((part - part.mean(0)) * hann[:, None], axis=0)) ** 2 / (
                sfreq * (hann**2).sum()
            )
            density[1 : None if frame % 2 else -1] *= 2
            found.append(density)
    assert len(found) == 8
    hz = np.arange(frame // 2 + 1) * sfreq / frame
    bands = {"delta": (1, 4), "theta": (4, 8), "alpha": (8, 13), "beta": (13, 30), "gamma": (30, 45)}
    expected = [np.mean(found, 0)[(hz >= a) & (hz < b)].sum(0) * sfreq / frame for a, b in bands.values()]
    assert list(EEG_BANDS_HZ) == list(bands)
    cut = window(x_TC, np.zeros((3, 3)), sfreq, valid_spans=[edge for span in spans for edge in span])
    power_KC, good_C = band_power(cut)
    np.testing.assert_allclose(power_KC, expected, rtol=1e-9)
    assert good_C.all()


def test_a_channel_without_power_is_not_good_and_the_share_of_little_power_is_finite() -> None:
    x_TC = np.random.default_rng(9).normal(size=(1000, 3))
    x_TC[:, 1] = 0.0
    positions = np.array([[0.0, 0, 90], [30.0, 0, 85], [-30.0, 0, 85]])
    power_KC, good_C = band_power(window(x_TC, positions, 200.0))
    assert good_C.tolist() == [True, False, True] and not power_KC[:, 1].any()
    absolute, share = (found.reshape(5, 3) for found in log_band_power(window(x_TC, positions, 200.0), OWN))
    # Channels at 0 and 2 are about 30 and 60 mm from channel 1; the width for a bad channel is that of the scalp.
    squared = ((positions[[0, 2]] - positions[1]) ** 2).sum(1)
    weight = np.exp(-squared / (2 * 25.0**2)) / np.exp(-squared / (2 * 25.0**2)).sum()
    log_KC = np.log10(power_KC[:, [0, 2]] + 1e-6)
    np.testing.assert_allclose(absolute[:, 1], log_KC @ weight, rtol=1e-12)
    np.testing.assert_allclose(absolute[:, [0, 2]], log_KC, rtol=1e-12)
    np.testing.assert_allclose(share[:, [0, 2]], log_KC - np.log10((power_KC[:, [0, 2]] + 1e-6).sum(0)), rtol=1e-12)
    assert log_band_power(window(0 * x_TC, positions, 200.0), OWN) is None
