import pytest
import torch

from mcsp.augmentations import random as counter
from mcsp.augmentations.spatial import drop_channels, jitter_positions
from mcsp.augmentations.spectral import reshape_spectrum
from mcsp.augmentations.temporal import add_noise, mask_time, time_half
from mcsp.augmentations.views import half_of_view, view
from mcsp.batch import Signal
from mcsp.config import AugmentationConfig
from mcsp.schema import DOMAINS, MODALITIES, mix64


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


def rows_of(signal: Signal, index: list[int]) -> Signal:
    return Signal(**{name: getattr(signal, name)[index] for name in signal.__dataclass_fields__})


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
    got = counter.mix64(torch.tensor(values)).tolist()
    assert [g % 2**64 for g in got] == [mix64(v) for v in values]


def test_draws_look_uniform_and_normal() -> None:
    keys = torch.arange(2000)
    u, n = counter.uniform(keys, 5, 50), counter.normal(keys, 6, 50)
    assert u.min() >= 0 and u.max() < 1
    assert abs(float(u.mean()) - 0.5) < 0.005 and abs(float(u.std()) - 12**-0.5) < 0.003
    assert abs(float(n.mean())) < 0.02 and abs(float(n.std()) - 1) < 0.01
    neighbours = torch.corrcoef(torch.stack([u[:-1, 0], u[1:, 0], u[:-1, 1]]))
    assert float((neighbours - torch.eye(3)).abs().max()) < 0.08


@pytest.mark.parametrize(
    "config", [AugmentationConfig(), AugmentationConfig(opposite_halves=DOMAINS)], ids=["defaults", "halves"]
)
@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("modality", ["eeg", "fmri"])
def test_a_view_depends_on_its_row_alone(domain, modality, config) -> None:
    signal = make_signal(sfreq=200.0 if modality == "eeg" else 0.5)
    whole = view(signal, modality, domain, 0, config)
    part = view(rows_of(signal, [4, 1]), modality, domain, 0, config)
    wide = view(padded(signal, 3), modality, domain, 0, config)
    for name in signal.__dataclass_fields__:
        torch.testing.assert_close(getattr(part, name), getattr(whole, name)[[4, 1]], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(wide.x_BCT[:, :8], whole.x_BCT, rtol=1e-5, atol=1e-4)
    assert not wide.channel_valid_BC[:, 8:].any() and (wide.x_BCT[:, 8:] == 0).all()
    other = view(signal, modality, domain, 1, config)
    changed = [n for n in signal.__dataclass_fields__ if not torch.equal(getattr(whole, n), getattr(other, n))]
    assert changed, "both views are the same"


def test_time_halves_lie_at_both_ends_of_the_valid_extent() -> None:
    signal = make_signal(rows=30)
    valid = torch.ones(30, 1000, dtype=torch.bool)
    valid[::2, 600:], valid[:, :100], valid[3] = False, False, False
    ramp = (torch.arange(1000.0) + 1).expand(30, 8, 1000)
    signal = signal.replace(x_BCT=ramp * valid[:, None], time_valid_BT=valid)
    early, late = (time_half(signal, torch.full((30,), w)) for w in (False, True))
    for row in range(30):
        if row == 3:
            assert not early.time_valid_BT[3].any() and not late.time_valid_BT[3].any()
            continue
        stop = 1000 if row % 2 else 600
        length = (stop - 100) // 2
        kept = [half.x_BCT[row, 0][half.time_valid_BT[row]].tolist() for half in (early, late)]
        assert kept[0] == [float(t + 1) for t in range(100, 100 + length)]
        assert kept[1] == [float(t + 1) for t in range(stop - length, stop)]


def test_views_of_a_domain_are_opposite_halves_of_the_same_draw_everywhere() -> None:
    signal = make_signal(rows=50)
    early = signal.replace(x_BCT=torch.arange(1000.0).expand(50, 8, 1000).clone() + 1)
    config = AugmentationConfig(
        opposite_halves=("spatial", "temporal"), channel_dropout=0, time_mask=0, noise=0, amplitude_jitter=0
    )
    first, second = (view(early, "fmri", "spatial", v, config) for v in (0, 1))
    assert first.x_BCT.shape[-1] == 500
    assert 10 < int((first.x_BCT[:, 0, 0] == 1).sum()) < 40, "which view is early is not drawn"
    assert torch.equal(
        first.x_BCT + 500 * (first.x_BCT[..., :1] == 1), second.x_BCT + 500 * (second.x_BCT[..., :1] == 1)
    )
    assert torch.equal(view(early, "eeg", "temporal", 0, config).x_BCT, first.x_BCT)
    assert torch.equal(half_of_view(early, 1).x_BCT, second.x_BCT)
    assert view(early, "eeg", "spectral", 0, config).x_BCT.shape[-1] == 1000


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
    masked = mask_time(signal, 0.4, signal.key_B)
    hidden = ~masked.time_valid_BT
    assert 0.15 < float(hidden.float().mean()) < 0.25 and float(hidden.float().mean(1).max()) <= 0.4
    assert (hidden.int().diff(dim=1).abs().sum(1) <= 2).all()
    assert (masked.x_BCT.abs().sum(1)[hidden] == 0).all()


def test_noise_is_relative_to_each_channel() -> None:
    signal = make_signal()
    signal = signal.replace(x_BCT=signal.x_BCT * torch.logspace(-2, 2, 8)[:, None])
    ratio = (add_noise(signal, 0.1, signal.key_B).x_BCT - signal.x_BCT).std(-1) / signal.x_BCT.std(-1)
    assert float((ratio - 0.1).abs().max()) < 0.02


@pytest.mark.parametrize("modality", MODALITIES)
def test_views_keep_the_sign_and_all_channels(modality) -> None:
    signal, plain = make_signal(rows=100), AugmentationConfig(channel_dropout=0, time_mask=0)
    for number in (0, 1):
        assert view(signal, modality, "spatial", number, plain).channel_valid_BC.all()
        kept = (view(signal, modality, "temporal", number, plain).x_BCT * signal.x_BCT).sum((1, 2)) > 0
        assert kept.all()


def test_spectral_view_keeps_the_mean_and_attenuates_one_band() -> None:
    signal = make_signal(rows=50)
    signal = signal.replace(x_BCT=signal.x_BCT + 5)
    out = reshape_spectrum(signal, 0.3, 0.0, 45.0, signal.key_B)
    gain = torch.fft.rfft(out.x_BCT).abs() / torch.fft.rfft(signal.x_BCT).abs()
    torch.testing.assert_close(out.x_BCT.mean(-1), signal.x_BCT.mean(-1), rtol=1e-4, atol=1e-4)
    low = gain[..., 1:] < 0.6
    assert torch.equal(low[:, 0], low[:, -1]), "the band is not the same in all channels"
    assert float(low.float().mean()) > 0.02
    assert float(gain[..., 1:][~low].sub(1).abs().max()) < 1e-2
    assert not low[..., torch.fft.rfftfreq(1000, 1 / 200)[1:] > 45.1].any()


def test_noise_is_white_standard_normal_and_differs_between_channels() -> None:
    noise = counter.white_noise(torch.arange(40), 5, 16, 3000)
    assert abs(float(noise.mean())) < 0.01 and abs(float(noise.std()) - 1) < 0.01
    correlation = torch.corrcoef(noise[:3].flatten(0, 1)) - torch.eye(48)
    assert float(correlation.abs().max()) < 0.1
    assert float((noise[..., 1:] * noise[..., :-1]).mean().abs()) < 0.01
    with pytest.raises(ValueError, match="at most 1048576 time samples, found 1048577"):
        counter.white_noise(torch.arange(1), 5, 1, (1 << 20) + 1)
