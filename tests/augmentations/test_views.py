"""Two views of a batch: what each augmentation does, alike for any ranks, and to valid samples alone."""

import pytest
import torch

from mcsp.augmentations import views
from mcsp.augmentations.views import (
    drop_channels,
    halves,
    halves_of_views,
    jitter_positions,
    log_gain,
    spatial_view,
    spectral_view,
    temporal_views,
)
from mcsp.batch import Signal, rows_of
from mcsp.config import AugmentationConfig
from mcsp.schema import MODALITIES, Modality, mix64


def make_signal(rows: int = 6, channels: int = 8, samples: int = 1000, sfreq: float = 200.0) -> Signal:
    generator = torch.Generator().manual_seed(1)
    return Signal(
        x_BCT=torch.randn(rows, channels, samples, generator=generator) * 20,
        sfreq_B=torch.full((rows,), sfreq),
        channel_valid_BC=torch.ones(rows, channels, dtype=torch.bool),
        time_valid_BT=torch.ones(rows, samples, dtype=torch.bool),
        position_BC3=torch.randn(rows, channels, 3, generator=generator) * 50,
        position_valid_BC=torch.ones(rows, channels, dtype=torch.bool),
        sample_B=torch.arange(rows),
        key_B=torch.arange(rows) * 7919 + 13,
    )


def half_of_view(signal: Signal, view: int) -> Signal:
    return rows_of(halves_of_views(signal), slice(view * len(signal), (view + 1) * len(signal)))


def padded(signal: Signal, channels: int) -> Signal:
    """The same signal with channels of garbage that are marked as not valid."""
    grown = torch.nn.functional.pad(signal.x_BCT, (0, 0, 0, channels))
    return signal.replace(
        x_BCT=grown,
        channel_valid_BC=torch.nn.functional.pad(signal.channel_valid_BC, (0, channels)),
        position_BC3=torch.nn.functional.pad(signal.position_BC3, (0, 0, 0, channels)),
        position_valid_BC=torch.nn.functional.pad(signal.position_valid_BC, (0, channels)),
    )


def test_tensor_hash_is_the_integer_hash() -> None:
    values = [0, 1, 2**31, 2**62 + 12345, 987654321987654321]
    got = views.mix64(torch.tensor(values)).tolist()
    assert [g % 2**64 for g in got] == [mix64(v) for v in values]


def test_draws_look_uniform_and_normal() -> None:
    keys = torch.arange(2000)
    u, n = views.uniform(keys, 5, 50), views.normal(keys, 6, 50)
    assert u.min() >= 0 and u.max() < 1
    assert abs(float(u.mean()) - 0.5) < 0.005 and abs(float(u.std()) - 12**-0.5) < 0.003
    assert abs(float(n.mean())) < 0.02 and abs(float(n.std()) - 1) < 0.01
    neighbours = torch.corrcoef(torch.stack([u[:-1, 0], u[1:, 0], u[:-1, 1]]))
    assert float((neighbours - torch.eye(3)).abs().max()) < 0.08


def temporal_view(signal: Signal, index: int, config: AugmentationConfig, apart: bool = False) -> Signal:
    rows = len(signal) // 2 if apart else len(signal)
    return rows_of(temporal_views(signal, config, apart), slice(index * rows, (index + 1) * rows))


@pytest.mark.parametrize("domain", ["spatial", "temporal"])
@pytest.mark.parametrize("opposite", [False, True])
def test_a_view_depends_on_its_row_alone(domain: str, opposite: bool) -> None:
    config = AugmentationConfig()

    def drawn(signal: Signal, index: int) -> Signal:
        if domain == "temporal":
            return temporal_view(halves_of_views(signal) if opposite else signal, index, config, opposite)
        return spatial_view(half_of_view(signal, index) if opposite else signal, index, config)

    signal = make_signal()
    whole, part, wide = drawn(signal, 0), drawn(rows_of(signal, [4, 1]), 0), drawn(padded(signal, 3), 0)
    for name in signal.__dataclass_fields__:
        torch.testing.assert_close(getattr(part, name), getattr(whole, name)[[4, 1]], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(wide.x_BCT[:, :8], whole.x_BCT, rtol=1e-5, atol=1e-4)
    assert not wide.channel_valid_BC[:, 8:].any() and (wide.x_BCT[:, 8:] == 0).all()
    other = drawn(signal, 1)
    changed = [n for n in signal.__dataclass_fields__ if not torch.equal(getattr(whole, n), getattr(other, n))]
    assert changed, "both views are the same"


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_spectral_view_depends_on_its_row_alone(modality: Modality) -> None:
    signal, config = make_signal(sfreq=200.0 if modality == "eeg" else 0.5), AugmentationConfig()
    freqs_F = torch.arange(1, 46.0) if modality == "eeg" else torch.arange(1, 26) * 0.01
    power_BAF = torch.randn(6, 3, len(freqs_F))
    first, second = (spectral_view(power_BAF, freqs_F, signal, v, modality, config) for v in (0, 1))
    part = spectral_view(power_BAF[[4, 1]], freqs_F, rows_of(signal, [4, 1]), 0, modality, config)
    torch.testing.assert_close(part, first[[4, 1]])
    assert not torch.equal(first, second)
    off = AugmentationConfig(band_mask=0, tilt=0)
    assert torch.equal(spectral_view(power_BAF, freqs_F, signal, 0, modality, off), power_BAF)


def test_time_halves_lie_at_both_ends_of_the_valid_extent() -> None:
    signal = make_signal(rows=30)
    valid = torch.ones(30, 1000, dtype=torch.bool)
    valid[::2, 600:], valid[:, :100], valid[3] = False, False, False
    ramp = (torch.arange(1000.0) + 1).expand(30, 8, 1000)
    signal = signal.replace(x_BCT=ramp * valid[:, None], time_valid_BT=valid)
    both = halves(signal, torch.zeros(30, dtype=torch.bool))
    early, late = rows_of(both, slice(30)), rows_of(both, slice(30, 60))
    for row in range(30):
        if row == 3:
            assert not early.time_valid_BT[3].any() and not late.time_valid_BT[3].any()
            continue
        stop = 1000 if row % 2 else 600
        length = (stop - 100) // 2
        kept = [half.x_BCT[row, 0][half.time_valid_BT[row]].tolist() for half in (early, late)]
        assert kept[0] == [float(t + 1) for t in range(100, 100 + length)]
        assert kept[1] == [float(t + 1) for t in range(stop - length, stop)]


@pytest.mark.parametrize("ragged", [False, True])
def test_each_row_is_cut_at_its_own_place_and_length(ragged: bool) -> None:
    signal = make_signal(rows=6)
    valid = torch.rand(6, 1000, generator=torch.Generator().manual_seed(0)) < 0.9
    valid[1, :300], valid[2, 501:], valid[3] = False, False, False
    signal = signal.replace(x_BCT=signal.x_BCT * valid[:, None], time_valid_BT=valid)
    start, length = torch.tensor([0, 300, 250, 0, 500, 1] * 2), torch.full((12,), 500)
    if ragged:
        length = torch.tensor([500, 350, 250, 500, 500, 499, 500, 500, 250, 500, 300, 10])
        start = torch.tensor([0, 300, 250, 0, 500, 1, 2, 499, 700, 0, 700, 990])  # the last ends with the signal
    x_2BCL, valid_2BL = views._cuts(signal, start, length, 500)
    assert x_2BCL.shape == (12, 8, 500) and valid_2BL.shape == (12, 500)
    for row, (first, count) in enumerate(zip(start.tolist(), length.tolist(), strict=True)):
        assert torch.equal(x_2BCL[row, :, :count], signal.x_BCT[row % 6, :, first : first + count])
        assert torch.equal(valid_2BL[row, :count], valid[row % 6, first : first + count])
        assert not x_2BCL[row, :, count:].any() and not valid_2BL[row, count:].any()
    assert not valid_2BL[3].any()


def test_halves_of_both_views_are_opposite_and_drawn() -> None:
    signal = make_signal(rows=50)
    early = signal.replace(x_BCT=torch.arange(1000.0).expand(50, 8, 1000).clone() + 1)
    first, second = (half_of_view(early, v) for v in (0, 1))
    assert first.x_BCT.shape[-1] == 500
    assert 10 < int((first.x_BCT[:, 0, 0] == 1).sum()) < 40, "which view is early is not drawn"
    assert torch.equal(
        first.x_BCT + 500 * (first.x_BCT[..., :1] == 1), second.x_BCT + 500 * (second.x_BCT[..., :1] == 1)
    )


def test_channel_dropout_stays_within_its_fraction_and_keeps_one() -> None:
    signal = make_signal(rows=400)
    dropped = 1 - drop_channels(signal, 0.5, signal.key_B).channel_valid_BC.float().mean(1)
    assert 0.2 < float(dropped.mean()) < 0.3
    assert float(drop_channels(signal, 0.999, signal.key_B).channel_valid_BC.sum(1).min()) >= 1


def test_position_jitter_has_the_stated_width_and_leaves_unknown_positions() -> None:
    signal = make_signal(rows=300)
    unknown = signal.replace(position_valid_BC=signal.position_valid_BC & (torch.arange(8) > 0))
    moved = jitter_positions(unknown, 4.0, signal.key_B).position_BC3 - signal.position_BC3
    assert float(moved[:, 0].abs().max()) == 0
    assert abs(float(moved[:, 1:].std()) - 4) < 0.15


def test_time_mask_hides_one_span_of_valid_time() -> None:
    signal = make_signal(rows=100)
    masked = temporal_views(signal, AugmentationConfig(time_mask=0.4, amplitude_jitter=0))
    hidden = ~masked.time_valid_BT
    assert 0.15 < float(hidden.float().mean()) < 0.25 and float(hidden.float().mean(1).max()) <= 0.4
    assert (hidden.int().diff(dim=1).abs().sum(1) <= 2).all()
    assert (masked.x_BCT.abs().sum(1)[hidden] == 0).all()


def test_noise_is_relative_to_each_channel() -> None:
    signal = make_signal()
    signal = signal.replace(x_BCT=signal.x_BCT * torch.logspace(-2, 2, 8)[:, None])
    noisy = temporal_views(signal, AugmentationConfig(noise=0.1, time_mask=0, amplitude_jitter=0)).x_BCT
    ratio = (noisy.view(2, *signal.x_BCT.shape) - signal.x_BCT).std(-1) / signal.x_BCT.std(-1)
    assert float((ratio - 0.1).abs().max()) < 0.02


def test_views_keep_the_sign_and_all_channels() -> None:
    signal, plain = make_signal(rows=100), AugmentationConfig(channel_dropout=0, time_mask=0)
    for number in (0, 1):
        assert spatial_view(signal, number, plain).channel_valid_BC.all()
        assert ((temporal_view(signal, number, plain).x_BCT * signal.x_BCT).sum((1, 2)) > 0).all()


def test_a_band_is_attenuated_within_the_range_that_is_read() -> None:
    keys, freqs_F = torch.arange(400) * 7919 + 13, torch.arange(1, 121) * 0.5
    gain_BF = log_gain(freqs_F, torch.full((400,), 200.0), 0.3, 0.0, 45.0, keys)
    low = gain_BF < 0
    assert set(gain_BF[~low].tolist()) == {0.0}
    assert (low.int().diff(dim=1).abs().sum(1) <= 2).all(), "more than one band"
    assert 0.1 < float(low.float().mean(1).max()) <= 0.3 * 45 / 60 + 0.02 and not low[:, freqs_F >= 45].any()
    kept = 10 ** (gain_BF[low] / 2)  # of the amplitude
    assert 0.1 <= float(kept.min()) < 0.12 and 0.48 < float(kept.max()) <= 0.5
    slow = log_gain(freqs_F, torch.full((400,), 20.0), 0.3, 0.5, 45.0, keys)
    assert (slow[:, freqs_F >= 10] == 0).all(), "frequencies that a row cannot have"


def test_a_tilt_is_a_straight_line_over_log_frequency_with_the_stated_width() -> None:
    keys, freqs_F = torch.arange(2000) * 7919 + 13, torch.tensor([2.0, 11.25, 22.5, 45.0])
    gain_BF = log_gain(freqs_F, torch.full((2000,), 200.0), 0.0, 0.4, 45.0, keys)
    exponent_B = (gain_BF[:, 3] - gain_BF[:, 0]) / torch.log10(torch.tensor(22.5))
    assert abs(float(exponent_B.std()) - 0.4) < 0.02 and abs(float(exponent_B.mean())) < 0.03
    assert float(gain_BF[:, 1].abs().max()) < 1e-6, "the middle moves"
    torch.testing.assert_close(gain_BF[:, 2], exponent_B * torch.log10(torch.tensor(2.0)), rtol=1e-4, atol=1e-5)


def test_noise_is_white_standard_normal_and_differs_between_channels() -> None:
    noise = views.white_noise(torch.arange(40), 5, 16, 3000)
    assert abs(float(noise.mean())) < 0.01 and abs(float(noise.std()) - 1) < 0.01
    correlation = torch.corrcoef(noise[:3].flatten(0, 1)) - torch.eye(48)
    assert float(correlation.abs().max()) < 0.1
    assert float((noise[..., 1:] * noise[..., :-1]).mean().abs()) < 0.01
    assert views.white_noise(torch.arange(1), 5, 1, 1 << 19).shape == (1, 1, 524288)
    with pytest.raises(ValueError, match="at most 524288 time samples, found 524289"):
        views.white_noise(torch.arange(1), 5, 1, (1 << 19) + 1)
