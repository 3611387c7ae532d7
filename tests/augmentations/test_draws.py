"""Draws and strengths of views, by value: each written out from the integer hash in numpy or Python.

Covers: mcsp/augmentations/views.py
"""

import numpy as np
import pytest
import torch

from mcsp.augmentations import views
from mcsp.augmentations.views import (
    drop_channels,
    halves,
    jitter_positions,
    log_gain,
    noisy,
    spatial_view,
    spectral_view,
    temporal_views,
)
from mcsp.config import AugmentationConfig
from mcsp.schema import DOMAINS, mix64
from tests.augmentations.test_views import make_signal

KEYS = [0, 1, 7932, 2**62 + 12345]
OFF = dict(channel_dropout=0, position_jitter_mm=0, time_mask=0, amplitude_jitter=0, noise=0, band_mask=0, tilt=0)


def drawn(key: int, purpose: int, *index: int) -> float:
    """Of 24 bits, as the module's docstring says."""
    bits = mix64(key ^ purpose)
    for i in index:
        bits = mix64(bits ^ i)
    return (mix64(bits) >> 40) / 2**24


def gaussian(key: int, purpose: int, *index: int) -> float:
    u, v = drawn(key, 2 * purpose + 1, *index), drawn(key, 2 * purpose + 2, *index)
    return float(np.sqrt(-2 * np.log(1 - u)) * np.cos(2 * np.pi * v))


def test_draws_are_functions_of_key_purpose_and_place() -> None:
    """Written out: other draws are other views from the same seed."""
    keys = torch.tensor(KEYS)
    assert views.uniform(keys, 3).tolist() == [drawn(key, 3) for key in KEYS]
    found = views.uniform(keys, 301, 2, 3)
    assert found.tolist() == [[[drawn(key, 301, i, j) for j in range(3)] for i in range(2)] for key in KEYS]
    expected = [[gaussian(key, 203, i) for i in range(5)] for key in KEYS]
    np.testing.assert_allclose(views.normal(keys, 203, 5), expected, rtol=1e-4, atol=1e-6)
    assert found.dtype == torch.float32 and drawn(0, 3) == pytest.approx(0.73751813, abs=1e-7)


def test_a_gpus_way_to_draw_gives_the_same_bits() -> None:
    keys = torch.tensor([*KEYS, -1, -(2**63), 2**63 - 1])
    assert torch.equal(views._mixed_by_torch(keys), views.mix64(keys))
    for shape in ((), (4,), (2, 3)):
        assert torch.equal(views._uniform_by_torch(keys, 101, *shape), views.uniform(keys, 101, *shape))


def test_noise_is_read_from_the_table_at_multiples_of_eight_in_its_first_half() -> None:
    table = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    found = views.white_noise(torch.tensor(KEYS), 204, 3, 100)
    for b, key in enumerate(KEYS):
        for channel in range(3):
            start = 8 * int(np.float32(drawn(key, 204, channel)) * np.float32(65536))
            assert torch.equal(found[b, channel], table[start : start + 100])


@pytest.mark.parametrize(("fraction", "sd"), [(0.4, 0.0), (0.0, 0.3), (0.9, 0.2)])
def test_a_span_and_a_gain_are_those_drawn(fraction: float, sd: float) -> None:
    signal = make_signal(rows=4, samples=200)
    valid = signal.time_valid_BT.clone()
    valid[1, 150:] = False
    signal = signal.replace(x_BCT=signal.x_BCT * valid[:, None], time_valid_BT=valid, key_B=torch.tensor(KEYS))
    found = temporal_views(signal, AugmentationConfig(**(OFF | {"time_mask": fraction, "amplitude_jitter": sd})))
    for row, key in enumerate([mix64(key ^ (1002 + view)) for view in (0, 1) for key in KEYS]):
        b, n = row % 4, 150 if row % 4 == 1 else 200
        span = int(drawn(key, 201) * fraction * n)
        start = int(drawn(key, 202) * (n - span + 1))
        seen = valid[b].clone()
        seen[start : start + span] = False
        assert torch.equal(found.time_valid_BT[row], seen)
        gain = np.exp(gaussian(key, 203) * sd)
        np.testing.assert_allclose(found.x_BCT[row], (signal.x_BCT[b] * seen * gain), rtol=1e-5)


def test_noise_is_relative_to_the_deviation_over_valid_time_of_valid_channels() -> None:
    signal = make_signal(rows=2, channels=3, samples=300)
    x, times = signal.x_BCT + torch.tensor([0.0, 50.0, -9.0])[:, None], signal.time_valid_BT.clone()
    channels = signal.channel_valid_BC.clone()
    times[1, 100:], channels[0, 2] = False, False
    x = x * times[:, None] * channels[..., None]
    signal = signal.replace(x_BCT=x, time_valid_BT=times, channel_valid_BC=channels)
    kept, found = x.clone(), noisy(signal, times.float(), 0.25, signal.key_B)
    noise = views.white_noise(signal.key_B, 204, 3, 300)
    for b in range(2):
        std = x[b][:, times[b]].double().std(1, correction=0)
        expected = x[b] + 0.25 * std[:, None] * noise[b]
        np.testing.assert_allclose(found[b], expected, atol=2e-3)
    assert not found[0, 2].any() and torch.equal(signal.x_BCT, kept)
    nothing = signal.replace(time_valid_BT=torch.zeros_like(times), x_BCT=torch.zeros_like(x))
    assert not noisy(nothing, torch.zeros_like(times).float(), 0.25, signal.key_B).any()


def test_channels_below_the_drawn_fraction_are_dropped_and_the_highest_stays() -> None:
    signal = make_signal(rows=40, samples=10)
    valid = signal.channel_valid_BC.clone()
    valid[:, 5:], valid[39] = False, False
    placed = valid & (torch.arange(8) != 1)
    signal = signal.replace(channel_valid_BC=valid, position_valid_BC=placed, x_BCT=signal.x_BCT * valid[..., None])
    found = drop_channels(signal, 0.9, signal.key_B)
    for b, key in enumerate(signal.key_B.tolist()):
        draw = np.array([drawn(key, 102, c) for c in range(8)])
        draw[~valid[b].numpy()] = -1
        keep = ((draw >= 0.9 * drawn(key, 101, 0)) | (draw == draw.max())) & valid[b].numpy()
        assert found.channel_valid_BC[b].tolist() == keep.tolist()
        assert found.position_valid_BC[b].tolist() == (keep & placed[b].numpy()).tolist()
        np.testing.assert_array_equal(found.x_BCT[b], signal.x_BCT[b].numpy() * keep[:, None])
        assert b == 39 or keep.any()


def test_positions_move_by_what_is_drawn_for_each_axis() -> None:
    signal = make_signal(rows=2, channels=3, samples=10)
    moved = jitter_positions(signal, 4.0, torch.tensor([5, 6])).position_BC3 - signal.position_BC3
    expected = [[[4 * gaussian(key, 103, c, axis) for axis in range(3)] for c in range(3)] for key in (5, 6)]
    np.testing.assert_allclose(moved, expected, atol=1e-4)


@pytest.mark.parametrize(("rate", "highest"), [(200.0, 45.0), (60.0, 45.0), (0.5, 0.25), (2.0, 0.25)])
def test_a_gain_is_a_band_and_a_slope(rate: float, highest: float) -> None:
    freqs = np.arange(1, 121) * highest / 90
    keys = torch.arange(50) * 7919 + 13
    found = log_gain(torch.from_numpy(freqs).float(), torch.full((50,), rate), 0.3, 0.4, highest, keys)
    top = min(rate / 2, highest)
    for b, key in enumerate(keys.tolist()):
        width = drawn(key, 301, 0) * 0.3 * top
        low = drawn(key, 302, 0) * (top - width)
        slope = 0.4 * gaussian(key, 304, 0) * np.log10(np.clip(freqs / (top / 4), 0.05, 20))
        band = 2 * np.log10(0.1 + 0.4 * drawn(key, 303, 0)) * ((freqs >= low) & (freqs < low + width))
        expected = np.where(freqs < rate / 2, band + slope, 0)
        edge = np.minimum(np.abs(freqs - low), np.abs(freqs - low - width)) < 1e-5 * top
        np.testing.assert_allclose(found[b].numpy()[~edge], expected[~edge], atol=1e-5)


def test_the_slope_is_bounded_at_both_ends() -> None:
    freqs = torch.tensor([0.001, 0.5625, 11.25, 225.0, 1000.0])
    found = log_gain(freqs, torch.full((3,), 4000.0), 0.0, 0.4, 45.0, torch.tensor([1, 2, 3]))
    assert torch.equal(found[:, 0], found[:, 1]) and torch.equal(found[:, 3], found[:, 4])
    assert (found[:, 0] != 0).all() and (found[:, 0] * found[:, 3] < 0).all()


def test_each_domain_and_view_has_a_key_of_its_own() -> None:
    signal = make_signal(rows=2)
    keys = {(d, v): views._key_B(signal.key_B, d, v).tolist() for d in DOMAINS for v in (0, 1)}
    for (domain, view), found in keys.items():
        number = 1000 + 2 * ("spatial", "temporal", "spectral").index(domain) + view
        assert [key % 2**64 for key in found] == [mix64(key ^ number) for key in signal.key_B.tolist()]


def test_each_strength_alone_is_applied_and_none_leaves_the_signal_as_it_is() -> None:
    signal, freqs = make_signal(), torch.arange(1, 46.0)
    power = torch.zeros(6, 2, 45)
    for strength, value in {"": 0.0, **dict.fromkeys(OFF, 0.5)}.items():
        config = AugmentationConfig(**(OFF | ({strength: value} if strength else {})))
        spatial, temporal = spatial_view(signal, 0, config), temporal_views(signal, config)
        spectral = spectral_view(power, freqs, signal, 0, "eeg", config)
        changed = {
            "channel_dropout": not torch.equal(spatial.channel_valid_BC, signal.channel_valid_BC),
            "position_jitter_mm": not torch.equal(spatial.position_BC3, signal.position_BC3),
            "time_mask": not torch.equal(temporal.time_valid_BT, signal.time_valid_BT.repeat(2, 1)),
            "band_mask": bool((spectral == 0).any() and spectral.any()),
        }
        assert [name for name, found in changed.items() if found] == [n for n in changed if n == strength]
        same = [spatial is signal, torch.equal(temporal.x_BCT, signal.x_BCT.repeat(2, 1, 1)), spectral is power]
        expected = [strength not in ("channel_dropout", "position_jitter_mm")]
        expected += [strength not in ("time_mask", "amplitude_jitter", "noise"), strength not in ("band_mask", "tilt")]
        assert same == expected, strength


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_halves_of_short_rows_have_a_sample_at_least(samples: int) -> None:
    signal = make_signal(rows=2, channels=1, samples=samples)
    both = halves(signal, torch.tensor([False, True]))
    half = max(1, samples // 2)
    x = signal.x_BCT
    expected = [x[0, :, :half], x[1, :, samples - half :], x[0, :, samples - half :], x[1, :, :half]]
    assert both.x_BCT.shape == (4, 1, half) and torch.equal(both.x_BCT, torch.stack(expected))
    assert both.time_valid_BT.all() and both.key_B.tolist() == signal.key_B.tolist() * 2
