"""The simulator: what both modalities share is there, is the same at every site, and is not more than intended.

Covers: data_sharding/demo/sites.py
"""

from dataclasses import replace

import mne
import numpy as np
import pytest
from scipy.signal import butter, fftconvolve, sosfiltfilt, welch
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from mcsp.data_sharding.demo import simulate
from mcsp.data_sharding.demo.simulate import SimulatedSite, SimulatedSubject, simulate_subject
from mcsp.data_sharding.demo.sites import SIMULATED_A, SIMULATED_B

SITES = (SIMULATED_A, SIMULATED_B)
WINDOW_SECONDS = 60.0


@pytest.fixture(scope="module")
def subjects() -> dict[str, list[SimulatedSubject]]:
    return {site.name: [simulate_subject(site, index) for index in range(32)] for site in SITES}


def percent(subject: SimulatedSubject) -> np.ndarray:
    mean_P1 = subject.bold_PT.mean(axis=1, keepdims=True)
    return 100 * (subject.bold_PT / mean_P1 - 1)


def power_per_volume(site: SimulatedSite, subject: SimulatedSubject, band: tuple[float, float]) -> np.ndarray:
    """Mean power of every electrode in ``band`` from each volume to the next."""
    x_CT = sosfiltfilt(butter(3, band, "band", fs=site.eeg_sfreq, output="sos"), subject.eeg_uv_CT)
    n = subject.bold_PT.shape[1]
    step = round(site.eeg_sfreq * site.t_r)
    return (x_CT[:, : n * step] ** 2).reshape(len(x_CT), n, step).mean(axis=2)


def convolved(site: SimulatedSite, power: np.ndarray) -> np.ndarray:
    response = simulate.hemodynamic_response(1 / site.t_r)
    return fftconvolve(power, response[None], axes=1)[:, : power.shape[1]]


def demeaned(x: np.ndarray) -> np.ndarray:
    return x - x.mean(axis=1, keepdims=True)


def nearest(site: SimulatedSite, source: int) -> tuple[int, int]:
    """Electrode that sees a source best, and the parcel closest to it."""
    _, parcels_P3 = simulate.parcel_lattice(site.n_parcels)
    distance_P = np.linalg.norm(parcels_P3 - simulate.SOURCE_POSITIONS_MM[source], axis=1)
    return int(simulate.lead_field(site.channels)[:, source].argmax()), int(distance_P.argmin())


def test_a_subject_is_a_function_of_site_and_index() -> None:
    site = replace(SIMULATED_B, seconds=30.0)
    first, again, other = simulate_subject(site, 3), simulate_subject(site, 3), simulate_subject(site, 4)
    np.testing.assert_array_equal(first.eeg_uv_CT, again.eeg_uv_CT)
    np.testing.assert_array_equal(first.bold_PT, again.bold_PT)
    assert first.eeg_uv_CT.shape == (len(site.channels), 30 * 200)
    assert first.bold_PT.shape == (site.n_parcels, 20)
    assert not np.allclose(first.eeg_uv_CT, other.eeg_uv_CT)
    assert not np.allclose(first.gains_S, other.gains_S)


def test_latent_activity_does_not_depend_on_how_it_is_recorded() -> None:
    here = replace(SIMULATED_A, seconds=30.0)
    there = replace(SIMULATED_B, seconds=30.0, seed=SIMULATED_A.seed)
    for index in range(4):
        one, two = simulate_subject(here, index), simulate_subject(there, index)
        assert one.label == two.label
        np.testing.assert_array_equal(one.gains_S, two.gains_S)
        np.testing.assert_array_equal(one.envelopes_ST, two.envelopes_ST)


def test_labels_are_balanced_in_every_pair_and_not_in_one_order(subjects: dict[str, list[SimulatedSubject]]) -> None:
    for name in subjects:
        cases = np.array([subject.label == "case" for subject in subjects[name]])
        np.testing.assert_array_equal(cases[::2] ^ cases[1::2], True)
        assert 0 < cases[::2].sum() < len(cases) // 2


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_amplitudes_are_those_of_recordings(site: SimulatedSite, subjects: dict[str, list[SimulatedSubject]]) -> None:
    for subject in subjects[site.name]:
        assert 4 < np.median(subject.eeg_uv_CT.std(axis=1)) < 60
        assert np.abs(subject.eeg_uv_CT).max() < 1000
        assert 9_500 < subject.bold_PT.mean() < 10_500
        assert subject.bold_PT.min() > 5_000
        assert 0.2 < np.median(percent(subject).std(axis=1)) < 2
    hz, density_CF = welch(subjects[site.name][0].eeg_uv_CT, site.eeg_sfreq, nperseg=int(4 * site.eeg_sfreq))
    above = hz > 35
    assert (hz[above][density_CF[:, above].argmax(axis=1)] == site.line_hz).all()


def test_hemodynamic_response_peaks_at_five_seconds_and_undershoots() -> None:
    response = simulate.hemodynamic_response(10.0)
    assert response.sum() == pytest.approx(1)
    assert 4.5 <= response.argmax() / 10 <= 5.5
    assert response[100:200].min() < 0 and abs(response[-1]) < 0.01 * response.max()


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_bold_follows_the_power_of_every_source_after_the_response(
    site: SimulatedSite, subjects: dict[str, list[SimulatedSubject]]
) -> None:
    lags = range(0, round(12 / site.t_r))
    delayed = np.zeros(len(lags))
    for source, band in enumerate(simulate.SOURCE_BANDS_HZ):
        electrode, parcel = nearest(site, source)
        agreement = []
        for subject in subjects[site.name][:12]:
            power_CT, bold_T = power_per_volume(site, subject, band), percent(subject)[parcel]
            skip = round(simulate.HRF_SECONDS / site.t_r)
            agreement.append(np.corrcoef(convolved(site, power_CT)[electrode, skip:], bold_T[skip:])[0, 1])
            n = len(bold_T) - len(lags)
            delayed += [np.corrcoef(power_CT[electrode, :n], bold_T[lag : lag + n])[0, 1] for lag in lags]
        assert np.mean(agreement) > 0.35, f"source {source}"
    assert 3 <= delayed.argmax() * site.t_r <= 7


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_a_decoder_finds_the_fmri_window_of_subjects_it_never_saw(
    site: SimulatedSite, subjects: dict[str, list[SimulatedSubject]]
) -> None:
    """Ridge from band power to BOLD on 16 subjects; top-1 among 64 windows of 16 others, chance 1/64."""
    bands = list(dict.fromkeys(simulate.SOURCE_BANDS_HZ))
    known, held_out = subjects[site.name][:16], subjects[site.name][16:]

    def features(subject: SimulatedSubject) -> np.ndarray:
        power = np.concatenate([power_per_volume(site, subject, band) for band in bands])
        return demeaned(convolved(site, power)).T

    x = np.concatenate([features(subject) for subject in known])
    y = np.concatenate([demeaned(percent(subject)).T for subject in known])
    scaler = StandardScaler().fit(x)
    decoder = Ridge(alpha=100.0).fit(scaler.transform(x), y)
    n = round(WINDOW_SECONDS / site.t_r)

    def windows(x_PT: np.ndarray) -> list[np.ndarray]:
        cut = [demeaned(x_PT[:, k * n : (k + 1) * n]).ravel() for k in range(4)]
        return [one / np.linalg.norm(one) for one in cut]

    guesses = np.array([w for s in held_out for w in windows(decoder.predict(scaler.transform(features(s))).T)])
    actual = np.array([w for s in held_out for w in windows(percent(s))])
    strangers = np.array([w for s in known for w in windows(percent(s))])
    assert guesses.shape[0] == actual.shape[0] == 64
    assert ((guesses @ actual.T).argmax(axis=1) == np.arange(64)).mean() > 0.6
    assert ((guesses @ strangers.T).argmax(axis=1) == np.arange(64)).mean() < 0.1


def test_the_label_shows_in_both_modalities_and_never_fully() -> None:
    changed = (2 * simulate.CASE_PAIR, 2 * simulate.CASE_PAIR + 1)
    band = simulate.SOURCE_BANDS_HZ[changed[0]]
    for site in (replace(one, seconds=120.0) for one in SITES):
        cases, eeg, bold = [], [], []
        places = [nearest(site, source) for source in changed]
        for index in range(site.n_subjects):
            subject = simulate_subject(site, index)
            cases.append(subject.label == "case")
            power_C = power_per_volume(site, subject, band).mean(axis=1)
            eeg.append(sum(np.log(power_C[electrode]) for electrode, _ in places))
            bold.append(sum(np.log(percent(subject)[parcel].std()) for _, parcel in places))
        for name, score in (("eeg", eeg), ("bold", bold)):
            assert 0.75 < roc_auc_score(cases, score) < 0.99, (site.name, name)


def test_electrode_positions_are_those_that_mne_gives_a_recording() -> None:
    channels = SIMULATED_B.channels
    raw = mne.io.RawArray(np.zeros((len(channels), 10)), mne.create_info(list(channels), 100.0, "eeg"), verbose=False)
    raw.set_montage("colin27_1005" if "colin27_1005" in mne.channels.get_builtin_montages() else "standard_1005")
    expected = [1e3 * channel["loc"][:3] for channel in raw.info["chs"]]
    np.testing.assert_allclose(simulate.electrode_positions_mm(channels), expected, atol=0.01)


def test_the_lead_field_is_strongest_above_a_source() -> None:
    channels = ("O1", "O2", "C3", "C4", "AF3", "AF4", "T7", "T8")
    np.testing.assert_array_equal(simulate.lead_field(channels).argmax(axis=0), np.arange(8))
    assert simulate.lead_field(channels).min() < 0


@pytest.mark.parametrize("n_parcels", [2, 48, 60, 200])
def test_parcels_are_mirror_pairs_with_names(n_parcels: int) -> None:
    names, xyz_P3 = simulate.parcel_lattice(n_parcels)
    assert len(set(names)) == n_parcels
    np.testing.assert_allclose(xyz_P3[::2] * [-1, 1, 1], xyz_P3[1::2])
    assert (xyz_P3[1::2, 0] > 0).all()
    assert all(name.endswith(side) for name, side in zip(names, "LR" * (n_parcels // 2), strict=True))
    assert len(np.unique(xyz_P3, axis=0)) == n_parcels


@pytest.mark.parametrize(
    ("change", "index", "message"),
    [
        ({}, 48, "subjects 0..47, found 48"),
        ({"seconds": 5.0}, 0, "at least 20 seconds, found 5"),
        ({"channels": ("Cz", "EKG")}, 0, r"10-05 system, found \['EKG'\]"),
        ({"n_parcels": 7}, 0, "even number of parcels, at least 2, found 7"),
    ],
)
def test_impossible_requests_are_refused(change: dict, index: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate_subject(replace(SIMULATED_A, **change), index)
