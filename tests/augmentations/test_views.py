import pytest
import torch

from mcsp.augmentations import random as counter
from mcsp.augmentations.spatial import channel_half, drop_channels, jitter_positions, kept_edges, mask_region
from mcsp.augmentations.spectral import add_line, randomise_phase, reshape_spectrum
from mcsp.augmentations.temporal import (
    add_noise,
    crop,
    flip_polarity,
    mask_time,
    time_half,
    warp_amplitude,
    warp_time,
)
from mcsp.augmentations.views import edges_of_view, half_of_view, view
from mcsp.batch import Signal
from mcsp.config import AugmentationConfig
from mcsp.schema import DOMAINS, MODALITIES, Domain, mix64


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


EVERYTHING = AugmentationConfig(
    opposite_halves=DOMAINS, half_gap=0.2, region_mask_mm=30, edge_dropout=0.3, crop=0.1, time_warp=0.2,
    amplitude_warp=0.2, line_noise=0.3, phase=1.0, disjoint_channels=MODALITIES, polarity=True, gain=0.2,
)  # fmt: skip


@pytest.mark.parametrize("config", [AugmentationConfig(), EVERYTHING], ids=["defaults", "everything"])
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


@pytest.mark.parametrize("channels", [1, 2, 6, 7, 200])
def test_channel_halves_are_disjoint_even_and_hold_everything(channels) -> None:
    signal = make_signal(rows=40, channels=channels, samples=10)
    unplaced = signal.replace(position_valid_BC=signal.position_valid_BC & (torch.arange(channels) % 3 > 0))
    valid = signal.channel_valid_BC & (torch.arange(channels) < max(1, channels - 1))
    for s in (signal, unplaced, unplaced.replace(channel_valid_BC=valid, position_valid_BC=valid)):
        first, second = (channel_half(s, torch.full((40,), w), s.key_B) for w in (False, True))
        both = first.channel_valid_BC & second.channel_valid_BC
        count = s.channel_valid_BC.sum(1)
        assert torch.equal(first.channel_valid_BC | second.channel_valid_BC, s.channel_valid_BC)
        assert not both[count > 1].any()
        for part in (first, second):
            assert ((part.channel_valid_BC.sum(1) - count / 2).abs() <= 0.5).all()
            placed = part.position_valid_BC.sum(1) - s.position_valid_BC.sum(1) / 2
            assert (placed.abs() <= 0.5).all()
            assert (part.x_BCT[s.channel_valid_BC & ~part.channel_valid_BC] == 0).all()
    assert channels < 6 or len({tuple(row) for row in first.channel_valid_BC.tolist()}) > 5, "the same in every row"


@pytest.mark.parametrize("gap", [0.0, 0.3])
def test_time_halves_lie_at_both_ends_of_the_valid_extent(gap) -> None:
    signal = make_signal(rows=30)
    valid = torch.ones(30, 1000, dtype=torch.bool)
    valid[::2, 600:], valid[:, :100], valid[3] = False, False, False
    ramp = (torch.arange(1000.0) + 1).expand(30, 8, 1000)
    signal = signal.replace(x_BCT=ramp * valid[:, None], time_valid_BT=valid)
    early, late = (time_half(signal, torch.full((30,), w), gap) for w in (False, True))
    for row in range(30):
        if row == 3:
            assert not early.time_valid_BT[3].any() and not late.time_valid_BT[3].any()
            continue
        stop = 1000 if row % 2 else 600
        length = round((stop - 100) * (1 - gap) / 2)
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
    assert torch.equal(half_of_view(early, 1, config).x_BCT, second.x_BCT)
    assert view(early, "eeg", "spectral", 0, config).x_BCT.shape[-1] == 1000


def test_modalities_can_differ_in_whether_views_share_channels() -> None:
    signal, config = make_signal(), AugmentationConfig(disjoint_channels=("fmri",), channel_dropout=0)
    kept = {
        m: [view(signal, m, "spatial", v, config).channel_valid_BC.sum(1).tolist() for v in (0, 1)] for m in MODALITIES
    }
    assert kept["fmri"] == [[4] * 6] * 2 and kept["eeg"] == [[8] * 6] * 2


@pytest.mark.parametrize("domain", DOMAINS)
def test_gain_is_one_number_per_row_and_view_in_every_domain(domain: Domain) -> None:
    signal = make_signal(rows=300)
    off = {"amplitude_jitter": 0, "noise": 0}
    plain, scaled = (
        [view(signal, "eeg", domain, v, AugmentationConfig(gain=gain, **off)).x_BCT for v in (0, 1)]
        for gain in (0.0, 0.5)
    )
    ratio = [s.std((1, 2)) / p.std((1, 2)) for s, p in zip(scaled, plain, strict=True)]
    for r, s, p in zip(ratio, scaled, plain, strict=True):
        torch.testing.assert_close(s, p * r[:, None, None], rtol=1e-3, atol=1e-3)
        assert abs(float(r.log().std()) - 0.5) < 0.08
    assert not torch.allclose(*ratio)


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
def test_by_default_views_keep_the_sign_and_all_channels(modality) -> None:
    signal, plain = make_signal(rows=100), AugmentationConfig(channel_dropout=0, time_mask=0)
    for number in (0, 1):
        assert view(signal, modality, "spatial", number, plain).channel_valid_BC.all()
        kept = (view(signal, modality, "temporal", number, plain).x_BCT * signal.x_BCT).sum((1, 2)) > 0
        assert kept.all()
        flipped = view(signal, modality, "temporal", number, plain.model_copy(update={"polarity": True}))
        negative = float(((flipped.x_BCT * signal.x_BCT).sum((1, 2)) < 0).float().mean())
        assert 0.3 < negative < 0.7 if modality == "eeg" else negative == 0


def test_polarity_flips_whole_rows() -> None:
    signal = make_signal(rows=200)
    ratio = flip_polarity(signal, signal.key_B).x_BCT / signal.x_BCT
    assert set(ratio.unique().tolist()) == {-1.0, 1.0}
    assert 0.35 < float((ratio[:, 0, 0] < 0).float().mean()) < 0.65


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


def test_a_region_is_masked_around_a_channel_and_something_stays() -> None:
    signal = make_signal(rows=200, channels=30)
    masked = mask_region(signal, 60.0, signal.key_B)
    hidden = ~masked.channel_valid_BC
    assert (masked.x_BCT[hidden] == 0).all() and not masked.position_valid_BC[hidden].any()
    assert 0.03 < float(hidden.float().mean()) < 0.5
    distance = torch.cdist(signal.position_BC3, signal.position_BC3)
    for row in range(200):
        if hidden[row].any():  # some hidden channel is the centre: what it is nearest to is hidden first
            inside, outside = hidden[row].nonzero()[:, 0], (~hidden[row]).nonzero()[:, 0]
            nearest_kept = distance[row][inside][:, outside].amin(1)
            assert bool((nearest_kept >= distance[row][inside][:, inside].amax(1)).any()), (
                "no ball holds what is hidden and no more"
            )
    all_of_it = mask_region(signal, 1e5, signal.key_B)
    assert (all_of_it.channel_valid_BC.sum(1) >= 1).all()
    unplaced = signal.replace(position_valid_BC=torch.zeros_like(signal.position_valid_BC))
    assert torch.equal(mask_region(unplaced, 60.0, signal.key_B).x_BCT, signal.x_BCT)


def test_edges_are_dropped_in_both_directions() -> None:
    signal = make_signal(rows=30)
    kept = kept_edges(signal.key_B, 40, 0.25)
    assert torch.equal(kept, kept.mT) and kept.shape == (30, 40, 40)
    off_diagonal = ~torch.eye(40, dtype=torch.bool)
    assert abs(float(kept[:, off_diagonal].float().mean()) - 0.75) < 0.02
    assert edges_of_view(signal, 40, 0, AugmentationConfig()) is None
    first, second = (edges_of_view(signal, 40, v, AugmentationConfig(edge_dropout=0.25)) for v in (0, 1))
    assert first is not None and second is not None and not torch.equal(first, second)


def test_crop_shifts_the_window() -> None:
    signal = make_signal(rows=100)
    signal = signal.replace(x_BCT=(torch.arange(1000.0) + 1).expand(100, 8, 1000))
    out = crop(signal, 0.3, signal.key_B)
    assert out.x_BCT.shape[-1] == 700 and out.time_valid_BT.all()
    starts = out.x_BCT[:, 0, 0]
    assert (out.x_BCT.diff(dim=-1) == 1).all()
    assert 1 <= float(starts.min()) < 20 and 280 < float(starts.max()) <= 301


def test_a_warp_of_time_keeps_the_ends_and_bounds_the_speed() -> None:
    signal = make_signal(rows=50)
    ramp = signal.replace(x_BCT=torch.arange(1000.0).expand(50, 8, 1000))
    out = warp_time(ramp, 0.3, signal.key_B).x_BCT
    speed = out.diff(dim=-1)[..., :-1]
    assert 0.69 < float(speed.min()) < 0.8 and 1.2 < float(speed.max()) < 1.31
    assert float(out[..., 0].abs().max()) < 1e-2 and float((out[..., -1] - 999).abs().max()) < 0.5
    assert len({round(float(v), 3) for v in out[:, 0, 500]}) > 30


def test_a_warp_of_amplitude_is_smooth_and_the_same_in_all_channels() -> None:
    signal = make_signal(rows=300)
    log_gain = (warp_amplitude(signal, 0.2, signal.key_B).x_BCT / signal.x_BCT).log()
    assert float((log_gain[:, 0] - log_gain[:, 5]).abs().max()) < 1e-4
    assert abs(float(log_gain.std()) - 0.2) < 0.02
    assert float(log_gain.diff(dim=-1).abs().max()) < 0.02


def test_hum_is_at_50_or_60_hz_and_stays_out_of_slow_recordings() -> None:
    signal = make_signal(rows=60)
    added = add_line(signal, 0.5, signal.key_B).x_BCT - signal.x_BCT
    power = torch.fft.rfft(added).abs().square()
    line = power[..., [250, 300]]  # bins of 0.2 Hz
    assert float((line.sum(-1) / power.sum(-1)).min()) > 0.999
    assert 10 < int((line[:, 0, 0] > line[:, 0, 1]).sum()) < 50
    ratio = added.std(-1) / signal.x_BCT.std(-1)
    assert float(ratio.max()) < 0.51 and abs(float(ratio.mean()) - 0.25) < 0.03
    slow = make_signal(rows=60, sfreq=90.0)
    assert torch.equal(add_line(slow, 0.5, slow.key_B).x_BCT, slow.x_BCT)


@pytest.mark.parametrize("samples", [999, 1000])
def test_random_phases_keep_spectra_and_cross_spectra(samples) -> None:
    signal = make_signal(samples=samples)
    signal = signal.replace(x_BCT=signal.x_BCT + signal.x_BCT.roll(1, dims=1) + 7)
    out = randomise_phase(signal, 1.0, signal.key_B)
    old, new = torch.fft.rfft(signal.x_BCT.double()), torch.fft.rfft(out.x_BCT.double())
    cross = [x[:, 0] * x[:, 1].conj() for x in (old, new)]
    scale = old.abs().square().mean()
    assert float((old.abs() - new.abs()).abs().max() / scale.sqrt()) < 1e-4
    assert float((cross[0] - cross[1]).abs().max() / scale) < 1e-4
    assert float(torch.corrcoef(torch.stack([signal.x_BCT[0, 0], out.x_BCT[0, 0]]))[0, 1].abs()) < 0.2
    torch.testing.assert_close(out.x_BCT.mean(-1), signal.x_BCT.mean(-1), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(randomise_phase(signal, 0.0, signal.key_B).x_BCT, signal.x_BCT, rtol=1e-4, atol=1e-3)


def test_noise_is_white_standard_normal_and_differs_between_channels() -> None:
    noise = counter.white_noise(torch.arange(40), 5, 16, 3000)
    assert abs(float(noise.mean())) < 0.01 and abs(float(noise.std()) - 1) < 0.01
    correlation = torch.corrcoef(noise[:3].flatten(0, 1)) - torch.eye(48)
    assert float(correlation.abs().max()) < 0.1
    assert float((noise[..., 1:] * noise[..., :-1]).mean().abs()) < 0.01
    with pytest.raises(ValueError, match="at most 1048576 time samples, found 1048577"):
        counter.white_noise(torch.arange(1), 5, 1, (1 << 20) + 1)
