"""The encoders of the three domains: what must not change their results, and what must.

Covers: mcsp/model/layers.py, mcsp/model/mcsp.py, mcsp/model/spatial.py, mcsp/model/spectral.py,
mcsp/model/temporal.py
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mcsp.batch import Signal, collate
from mcsp.config import ModelConfig
from mcsp.kernels.spectral import BOLD_BANDS_HZ, EEG_BANDS_HZ
from mcsp.model import temporal
from mcsp.model.layers import SIZES, anchor_positions_mm, sinusoids, to_grid
from mcsp.model.mcsp import MCSP
from mcsp.model.spatial import Channels, fisher_z
from mcsp.model.temporal import TIME_BINS, TemporalEncoder
from mcsp.schema import DOMAINS, HIGHEST_HZ, MODALITIES
from tests.test_batch import window

RATE = {"eeg": 200.0, "fmri": 0.5}


def make_signal(modality: str, rows: int = 3, channels: int = 9, seconds: float = 20.0, seed: int = 0) -> Signal:
    generator = torch.Generator().manual_seed(seed)
    seconds = seconds if modality == "eeg" else 4 * seconds
    samples = round(seconds * RATE[modality])
    noise = torch.randn(rows, channels, samples, generator=generator)
    mixing = torch.randn(rows, channels, channels, generator=generator)
    return Signal(
        x_BCT=mixing @ noise * (5.0 if modality == "eeg" else 0.5),
        sfreq_B=torch.full((rows,), RATE[modality]),
        channel_valid_BC=torch.ones(rows, channels, dtype=torch.bool),
        time_valid_BT=torch.ones(rows, samples, dtype=torch.bool),
        position_BC3=torch.nn.functional.normalize(torch.randn(rows, channels, 3, generator=generator), dim=-1) * 80,
        position_valid_BC=torch.ones(rows, channels, dtype=torch.bool),
        sample_B=torch.arange(rows),
        key_B=torch.arange(rows),
    )


def with_padding(signal: Signal, channels: int, samples: int) -> Signal:
    grow = torch.nn.functional.pad
    return signal.replace(
        x_BCT=grow(signal.x_BCT, (0, samples, 0, channels)),
        time_valid_BT=grow(signal.time_valid_BT, (0, samples)),
        channel_valid_BC=grow(signal.channel_valid_BC, (0, channels)),
        position_BC3=grow(signal.position_BC3, (0, 0, 0, channels)),
        position_valid_BC=grow(signal.position_valid_BC, (0, channels)),
    )


@pytest.fixture(scope="module")
def model() -> MCSP:
    torch.manual_seed(3)
    return MCSP(ModelConfig()).eval()


def parts(model: MCSP, modality: str, signal: Signal) -> dict[str, torch.Tensor]:
    """Every part of the features by name."""
    widths = model.feature_widths(modality)
    with torch.no_grad():
        found = model.features({modality: signal})[modality].split(list(widths.values()), dim=1)
    return dict(zip(widths, found, strict=True))


def compare(model: MCSP, modality: str, one: Signal, other: Signal, bound: float) -> None:
    a, b = parts(model, modality, one), parts(model, modality, other)
    with torch.no_grad():
        encoded = model.encode({modality: one})[modality]
    for name in a:
        error = float((a[name] - b[name]).abs().max())
        assert error < bound, f"{modality}/{name}: {error}"
    for domain in DOMAINS:
        assert torch.equal(encoded[domain], a[domain])


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize(("channels", "samples"), [(5, 0), (0, 37), (4, 230)])
def test_masked_channels_and_time_change_nothing(model, modality, channels, samples) -> None:
    signal = make_signal(modality)
    compare(model, modality, signal, with_padding(signal, channels, samples), 1e-5)


@pytest.mark.parametrize("modality", MODALITIES)
def test_order_of_channels_does_not_matter(model, modality) -> None:
    signal = make_signal(modality)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    shuffled = signal.replace(x_BCT=signal.x_BCT[:, order], position_BC3=signal.position_BC3[:, order])
    compare(model, modality, signal, shuffled, 1e-5)


@pytest.mark.parametrize("modality", MODALITIES)
def test_rows_do_not_see_each_other(model, modality) -> None:
    both = make_signal(modality, rows=4)
    alone = Signal(**{n: getattr(both, n)[2:3] for n in Signal.__dataclass_fields__})
    with torch.no_grad():
        whole, part = model.encode({modality: both})[modality], model.encode({modality: alone})[modality]
    for domain in DOMAINS:
        torch.testing.assert_close(whole[domain][2:3], part[domain], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize(
    ("channels", "seconds", "rate"), [(1, 3.0, 1.0), (64, 11.0, 1.37), (6, 0.5, 0.5), (256, 8.0, 2.0)]
)
def test_any_montage_length_and_rate_gives_finite_features_of_one_shape(
    model, modality, channels, seconds, rate
) -> None:
    signal = make_signal(modality, 2, channels, seconds)
    signal = signal.replace(sfreq_B=torch.tensor([1.0, rate]) * RATE[modality])
    with torch.no_grad():
        features = model.features({modality: signal})[modality]
    width, z = SIZES["nano"][0], {f"{domain}_z": 128 for domain in DOMAINS}
    assert model.feature_widths(modality) == {
        "eeg": {"spatial": 32 * 16, "temporal": width, "spectral": width, **z,
                "root": 32 * 31 // 2, "coherence": 5 * 32 * 31 // 2, "band_power": 5 * 32,
                "relative_power": 5 * 32},
        "fmri": {"spatial": 100 * 16, "temporal": width, "spectral": width, **z,
                 "root": 100 * 99 // 2, "band_power": 4 * 100, "relative_power": 4 * 100},
    }[modality]  # fmt: skip
    assert features.shape == (2, sum(model.feature_widths(modality).values()))
    assert features.isfinite().all()


@pytest.mark.parametrize("modality", MODALITIES)
def test_channels_without_positions_and_dead_rows_stay_finite_with_gradients(model, modality) -> None:
    signal = make_signal(modality)
    valid = signal.channel_valid_BC.clone()
    valid[1] = False
    valid[2, 1:] = False
    signal = signal.replace(
        position_valid_BC=torch.zeros_like(valid), channel_valid_BC=valid, x_BCT=signal.x_BCT * valid[..., None]
    )
    signal.x_BCT[0, 3] = 0.0  # flat, and nobody has marked it
    signal.x_BCT.requires_grad_()
    model.zero_grad()
    h = model.encode({modality: signal})[modality]
    sum(v.square().sum() for v in h.values()).backward()
    assert all(v.isfinite().all() for v in h.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert signal.x_BCT.grad.isfinite().all(), "what an attribution reads"


def test_every_parameter_gets_a_gradient(model) -> None:
    model.zero_grad()
    total = torch.zeros(())
    for modality in MODALITIES:
        for domain, h in model.encode({modality: make_signal(modality)})[modality].items():
            z = model.project(modality, domain, h)
            torch.testing.assert_close(z.norm(dim=-1), torch.ones(3))
            total = total + (z * torch.linspace(-1, 1, z.shape[-1])).sum()
    total.backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().any()]
    assert not silent


def test_amplitude_reaches_every_domain(model) -> None:
    for modality in MODALITIES:
        signal = make_signal(modality)
        with torch.no_grad():
            quiet, loud = (
                model.encode({modality: s})[modality] for s in (signal, signal.replace(x_BCT=3 * signal.x_BCT))
            )
        for domain in DOMAINS:
            assert float((quiet[domain] - loud[domain]).abs().max()) > 1e-3, f"{modality}/{domain}"


def test_grid_is_linear_interpolation_and_identity_at_its_own_rate() -> None:
    signal = make_signal("fmri", rows=2, channels=2)
    same, valid = to_grid(signal, 0.5)
    assert same is signal.x_BCT and valid is signal.time_valid_BT
    ramp = torch.arange(40.0).expand(2, 2, 40)
    short = torch.arange(40) < torch.tensor([[40], [31]])
    signal = signal.replace(x_BCT=ramp, sfreq_B=torch.tensor([0.5, 0.8]), time_valid_BT=short)
    x, valid = to_grid(signal, 1.0)
    seconds = torch.arange(x.shape[-1])
    torch.testing.assert_close(x[0, 0][valid[0]], (seconds * 0.5)[valid[0]])
    torch.testing.assert_close(x[1, 1][valid[1]], (seconds * 0.8)[valid[1]], rtol=1e-5, atol=1e-5)
    assert valid[0].sum() == 79 and valid[1].sum() == int(30 / 0.8) + 1


@pytest.mark.parametrize("modality", MODALITIES)
def test_anchors_mirror_each_other_and_are_spread(modality) -> None:
    points = anchor_positions_mm(modality, 100)
    assert points.shape == (100, 3)
    mirrored = points * torch.tensor([-1.0, 1, 1], dtype=points.dtype)
    assert float(torch.cdist(mirrored, points).amin(1).max()) < 1e-4
    distance = torch.cdist(points, points).fill_diagonal_(1e9).amin(1)
    assert float(distance.median()) > 8
    with pytest.raises(ValueError, match="even number"):
        anchor_positions_mm(modality, 33)


def test_every_electrode_and_lobe_has_an_anchor_nearby() -> None:
    from mcsp.data_sharding.clean.eeg_channels import standard_positions_mm

    names = ("Fp1", "Fz", "F7", "C3", "Cz", "T8", "P4", "Pz", "O1", "Oz")
    electrodes = torch.tensor(np.stack([standard_positions_mm()[name.lower()][1] for name in names]))
    assert float(torch.cdist(electrodes.double(), anchor_positions_mm("eeg", 32)).amin(1).max()) < 35
    lobes = torch.tensor([[-20.0, 50, 10], [45, -20, 50], [-50, -10, -20], [10, -90, 0], [0, -60, 40]]).double()
    assert float(torch.cdist(lobes, anchor_positions_mm("fmri", 100)).amin(1).max()) < 25


def test_a_modality_the_model_was_not_built_for_is_refused() -> None:
    model = MCSP(ModelConfig(modalities=("fmri",)))
    with pytest.raises(ValueError, match=r"encodes \['fmri'\], found a batch with \['eeg'\]"):
        model.encode({"eeg": make_signal("eeg")})


@pytest.mark.parametrize(
    ("size", "millions"), [("nano", 1.9), ("small", 26), ("base", 104), ("large", 319), ("huge", 1001)]
)
def test_sizes(size, millions) -> None:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in MCSP(ModelConfig(size=size)).parameters())
    assert abs(parameters / 1e6 - millions) < 0.03 * millions


def test_the_scale_of_a_recording_in_arbitrary_units_changes_no_feature() -> None:
    torch.manual_seed(0)
    model = MCSP(ModelConfig(modalities=("fmri",))).eval()
    cut = window("fmri", n_samples=60, n_channels=30, sfreq=0.5)
    found = []
    for unit, factor in (("a.u.", 1.0), ("a.u.", 10.0), ("percent", 1.0), ("percent", 3.0)):
        scaled = replace(cut, x_TC=cut.x_TC * np.float32(factor), recording=replace(cut.recording, unit=unit))
        with torch.inference_mode():
            found.append(model.features(collate([[scaled]]).signals)["fmri"])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[3], found[2], rtol=1e-2, atol=1e-2), "percent has a scale"


def test_the_highest_band_ends_where_the_models_range_does() -> None:
    for modality, bands in (("eeg", EEG_BANDS_HZ), ("fmri", BOLD_BANDS_HZ)):
        spectral = MCSP(ModelConfig(modalities=(modality,))).encoder(modality, "spectral")
        assert max(high for _, high in bands.values()) == HIGHEST_HZ[modality] == pytest.approx(spectral.freqs_F()[-1])


def test_bins_of_time_are_means_of_valid_patches_also_beside_gaps_and_for_few_patches() -> None:
    """Patches that are all alike give every bin the same, whatever is missing; a bin that sees none is 0."""
    valid_BP = torch.zeros(4, 40, dtype=torch.bool)
    valid_BP[0], valid_BP[1, :3], valid_BP[2, :20:2], valid_BP[3, 39] = True, True, True, True
    x_BPD = torch.where(valid_BP[..., None], torch.tensor([2.0, -3.0]), 99.0)
    binned_BJD = TemporalEncoder._bin_time(x_BPD, valid_BP)
    assert binned_BJD.shape == (4, TIME_BINS, 2)
    torch.testing.assert_close(binned_BJD[:3], torch.tensor([2.0, -3.0]).expand(3, TIME_BINS, 2))
    assert not binned_BJD[3, :-1].any() and binned_BJD[3, -1].tolist() == [2.0, -3.0]
    rising_BPD = torch.arange(24.0)[None, :, None]
    means = TemporalEncoder._bin_time(rising_BPD, torch.ones(1, 24, dtype=torch.bool))[0, 1:-1, 0]
    torch.testing.assert_close(means, torch.arange(2.5, 22, 2))


def test_connections_are_fisher_z_of_pearson_over_valid_time_of_either_sign() -> None:
    x_BCT = torch.randn(2, 5, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_BCT[:, 1], x_BCT[:, 2], x_BCT[1, 4] = -x_BCT[:, 0], x_BCT[:, 3] - x_BCT[:, 0], 0.0
    valid_BT = torch.ones(2, 300, dtype=torch.bool)
    valid_BT[0, 200:] = False
    seen_B1T, n_B11 = valid_BT[:, None], valid_BT.sum(1)[:, None, None]
    centred_BCT = (x_BCT - (x_BCT * seen_B1T).sum(-1, keepdim=True) / n_B11) * seen_B1T
    std_BC = (centred_BCT.square().sum(-1) / n_B11[..., 0]).sqrt()
    found = fisher_z(Channels(centred_BCT, std_BC, None, valid_BT))
    expected = torch.stack([torch.corrcoef(x[:, valid]) for x, valid in zip(x_BCT, valid_BT, strict=True)]).nan_to_num()
    expected = torch.atanh(expected.clamp(-0.999, 0.999)) * (1 - torch.eye(5))
    torch.testing.assert_close(found, expected)
    assert found[0, 0, 1].item() == pytest.approx(-3.8002, abs=1e-4) and not found[1, 4].any()


def test_places_in_time_are_waves_of_two_patches_to_ten_minutes(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another longest wave is another model under the same name, and no shape would tell."""
    asked: list[tuple[float, ...]] = []

    def recorded(centre_P: torch.Tensor, width: int, shortest: float, longest: float) -> torch.Tensor:
        asked.append((shortest, longest))
        return sinusoids(centre_P, width, shortest, longest)

    monkeypatch.setattr(temporal, "sinusoids", recorded)
    for modality in MODALITIES:
        parts(model, modality, make_signal(modality))
    assert set(asked) == {
        (2 * model.config.eeg_patch_seconds, 600.0), (2 * model.config.fmri_patch_seconds, 600.0),
    }  # fmt: skip
