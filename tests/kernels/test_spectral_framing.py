"""Parts that spectra are made of, each against numpy: ends, windows, bins, bands, frames and blocks of rows."""

import math

import numpy as np
import pytest
import torch

from mcsp.kernels.spectral import framing
from mcsp.kernels.spectral.framing import FLAT_POWER, band_bins, bins_of, blocks, fourier_basis, frame_samples, in_order

VALID = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1, 0], [0] * 7]).bool()


def test_the_first_and_last_valid_sample_of_each_row() -> None:
    first, last = framing.valid_ends(VALID)
    assert first.tolist() == [0, 2, 5, 0] and last.tolist() == [6, 5, 5, -1] and first.dtype == torch.float64


def test_a_hann_window_is_periodic_from_the_first_valid_sample_to_the_last() -> None:
    expected = np.zeros((4, 7))
    expected[0] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(7) / 7)
    expected[1, 2:6] = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(4) / 4)) * [1, 0, 1, 1]
    np.testing.assert_allclose(framing.hann_over_valid(VALID), expected, atol=1e-15)
    window, density = framing._window(VALID, 50.0, torch.float64)
    np.testing.assert_allclose(density[:2], 1 / np.sqrt((expected[:2] ** 2).sum(1) * 50.0))
    assert density.isfinite().all() and torch.equal(window, framing.hann_over_valid(VALID))


def test_one_sided_factors_are_one_at_both_ends_and_nothing_above() -> None:
    freqs = torch.tensor([0.0, 1e-3, 49.9999, 50.0, 50.00004, 50.001, 80.0], dtype=torch.float64)
    root = math.sqrt(2)
    np.testing.assert_allclose(framing._one_sided(freqs, 100.0), [1, root, root, 1, 1, 0, 0])


def test_bins_are_the_nearest_and_minus_one_above_nyquist() -> None:
    freqs = torch.tensor([0.0, 10.0, 12.4, 50.0, 60.0], dtype=torch.float64)
    bins, on = bins_of(freqs, 100.0, torch.tensor([20, 21, 500]))
    assert bins.tolist() == [[0, 2, 2, 10, -1], [0, 2, 3, 10, -1], [0, 50, 62, 250, -1]]
    assert on.tolist() == [False, False, True]
    for off, found in ((0.9e-9, True), (1.1e-9, False)):  # of a turn in each sample
        _, [near] = bins_of(torch.tensor([10 + 100 * off], dtype=torch.float64), 100.0, torch.tensor([20]))
        assert bool(near) == found


def test_a_basis_is_cosines_then_sines() -> None:
    freqs = torch.tensor([0.0, 7.3, 50.0, 70.0], dtype=torch.float64)
    angle = 2 * np.pi * np.arange(9)[:, None] * freqs.numpy() / 100
    factor = np.array([1, np.sqrt(2), 1, 0])
    expected = np.concatenate([np.cos(angle) * factor, np.sin(angle) * factor], axis=1)
    np.testing.assert_allclose(fourier_basis(9, 100.0, freqs), expected, atol=1e-12)


def test_evenly_spaced_bins_are_a_view_and_any_others_are_in_their_order() -> None:
    spectrum = torch.arange(12.0)[None]
    for bins, view in (
        ([3], True),
        ([2, 3, 4], True),
        ([1, 4, 7], True),
        ([4, 1], False),
        ([1, 2, 4], False),
        ([5, 5], False),
    ):
        found = framing._take(spectrum, bins)
        assert found[0].tolist() == [float(b) for b in bins]
        assert (found.untyped_storage().data_ptr() == spectrum.untyped_storage().data_ptr()) == view, bins


def test_one_factor_serves_frequencies_that_are_all_inside() -> None:
    factor, bins = framing._plan(100, 100.0, (3.0, 4.0, 9.0))
    assert factor.tolist() == [math.sqrt(2)] and bins == [3, 4, 9]
    factor, bins = framing._plan(100, 100.0, (0.0, 4.0, 50.0, 70.0))
    np.testing.assert_allclose(factor, [1, math.sqrt(2), 1, 0])
    assert bins == [0, 4, 50, 50], "above Nyquist some bin stands in, times 0"
    assert framing._plan(100, 100.0, (3.0, 4.5))[1] is None


@pytest.mark.parametrize(("seconds", "hop", "expected"), [
    (1.0, None, (100, 50)), (1.01, None, (101, 50)), (0.02, None, (2, 1)), (3.0, 0.004, (300, 1)),
    (0.5, 0.256, (50, 26)),
])  # fmt: skip
def test_frames_and_hops_are_whole_samples(seconds: float, hop: float | None, expected: tuple[int, int]) -> None:
    assert frame_samples(300, 100.0, seconds, hop) == expected
    for wrong in (0.014, 3.006):
        with pytest.raises(ValueError, match="frame_seconds: expected between 2 and T=300 samples at 100 Hz"):
            frame_samples(300, 100.0, wrong, None)


def test_bands_hold_the_bins_from_their_low_edge_to_below_their_high_one() -> None:
    assert band_bins([(1.0, 4.0), (3.5, 4.5)], 100.0, 100) == [[1.0, 2.0, 3.0], [4.0]]
    assert band_bins([(0.0, 1.0), (48.0, 80.0), (50.0, 60.0), (51.0, 60.0)], 100.0, 100) == [
        [0.0], [48.0, 49.0, 50.0], [50.0], [],
    ]  # fmt: skip
    [band] = band_bins([(1.0, 1.5)], float(np.float32(1 / 0.3)), 100)  # a rate that float32 has rounded
    assert len(band) == 15 and band[0] == pytest.approx(1.0, rel=1e-6)
    with pytest.raises(ValueError, match=r"expected bands that hold a multiple of 1 Hz, found \(1.2, 1.9\)"):
        band_bins([(1.2, 1.9)], 100.0, 100)
    assert band_bins([(1.2, 1.9)], 100.0, 1) == [[]], "one sample has no bins"


def test_blocks_have_rows_of_one_rate_and_a_size_that_a_cache_holds() -> None:
    x = torch.zeros(8, 4, 2**16)  # a quarter of a million numbers each row
    rates = torch.tensor([100.0, 50.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0])
    wanted = x[..., : 2**15].clone().requires_grad_()  # with a gradient a quarter of a million, 2 MiB, are a block
    plan = [(b.sfreq, b.rows, b.length, b.hop, b.whole) for b in blocks(wanted, rates, None, 2.0, 1.0)]
    assert plan == [(50.0, [1], 100, 50, True), *((100.0, r, 200, 100, True) for r in ([0, 2], [3, 4], [5, 6], [7]))]
    one = torch.full((8,), 100.0)
    assert [b.rows for b in blocks(wanted, one, None, None, None)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert all(b.x_bCT.dtype == torch.float64 for b in blocks(wanted, one, None, None, None))
    for same in (x, x.clone().requires_grad_()):
        with torch.no_grad():
            [whole] = blocks(same, one, None, None, None)
        assert whole.rows == [*range(8)], "without a gradient two million numbers, 8 MiB"
        assert whole.x_bCT.dtype == torch.float32
    assert [b.rows for b in blocks(x.repeat(1, 2, 1), one, None, None, None)] == [
        [*range(4)],
        [*range(4, 8)],
    ]
    small = list(blocks(x[:, :, :100].half(), one, torch.ones(8, 100, dtype=torch.bool), None, None))
    assert len(small) == 1 and small[0].x_bCT.dtype == torch.float32 and not small[0].whole


def test_rows_of_one_frame_are_as_long_as_from_their_first_valid_sample_to_their_last_where_that_counts() -> None:
    x, rates = torch.zeros(4, 1, 7), torch.full((4,), 10.0)
    plain = framing.planned_rows(x, rates, VALID, None, None, by_span=False)
    assert plain == [(10.0, 7, 0)] * 4
    by_span = framing.planned_rows(x, rates, VALID, None, None, by_span=True)
    assert by_span == [(10.0, 7, 0), (10.0, 4, 0), (10.0, 1, 0), (10.0, 0, 0)]
    assert framing.planned_rows(x, rates, None, None, None, by_span=True) == [(10.0, 7, 0)] * 4


def test_rows_return_to_their_places() -> None:
    parts = [torch.tensor([10, 30]), torch.tensor([0, 20])]
    assert in_order(parts, [1, 3, 0, 2]).tolist() == [0, 10, 20, 30]
    assert in_order([torch.tensor([5, 6])], [0, 1]).tolist() == [5, 6]
    assert FLAT_POWER == 1e-20


def test_what_is_left_of_an_offset_is_less_than_its_rounding() -> None:
    """Frames of 1e6 and noise of 1, counted in part."""
    counted = VALID[:, None, None].float()
    x = (torch.randn(4, 2, 3, 7, generator=torch.Generator().manual_seed(0)) + 1e6) * counted
    centred, rest, total = framing._centred(x, counted, False)
    assert total[..., 0].flatten().tolist() == [7, 3, 1, 1]
    assert float(centred.sum(-1).abs().max()) < 0.1 and (rest >= 0).all()
    assert not (centred * (1 - counted)).any() and float(centred[0].std()) > 0.3
    whole, _, seven = framing._centred(x, torch.ones(1, 1, 1, 7), True)
    torch.testing.assert_close(whole[0], centred[0])
    assert seven == 7.0
