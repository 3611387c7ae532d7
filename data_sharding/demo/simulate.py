"""Simulated simultaneous EEG-fMRI with known shared latent activity, for the demo and for tests.

Eight sources at fixed places in the brain oscillate in their own bands. The slow envelope of a source and its gain,
which differs between subjects, reach both modalities: the EEG as ``gain * envelope * carrier`` through a lead field,
the BOLD as the power ``(gain * envelope)**2`` through a haemodynamic response. Sites differ in montage, parcellation,
rates, amplifier gain and line noise, never in this relation, so what is learned on some subjects or at one site holds
for others. The label ``case`` raises gain and envelope coupling of one source pair. Numbers without a source are
choices of ours.

Shape letters: C electrodes, P parcels, S sources, T time samples of whatever is named (EEG, volumes, envelope).
"""

from dataclasses import dataclass
from functools import cache

import mne
import numpy as np
from scipy.signal import fftconvolve
from scipy.stats import gamma

ENVELOPE_HZ = 10.0  # rate at which envelopes are made and returned
HRF_SECONDS = 32.0  # length of the response, and how long the sources run before the recording starts
ENVELOPE_BAND_HZ = (0.01, 0.1)  # where resting-state BOLD fluctuates (Biswal et al., MRM 1995)

# Left source of each mirror pair: MNI x, y, z [mm] and carrier band [Hz].
SOURCE_PAIRS: dict[str, tuple[tuple[float, float, float], tuple[float, float]]] = {
    "occipital alpha": ((-22.0, -88.0, 14.0), (8.0, 11.0)),
    "central beta": ((-40.0, -22.0, 54.0), (16.0, 23.0)),
    "frontal theta": ((-28.0, 46.0, 28.0), (4.0, 7.0)),
    "temporal low beta": ((-54.0, -30.0, 4.0), (12.0, 15.0)),
}
SOURCE_POSITIONS_MM = np.array([(sign * x, y, z) for (x, y, z), _ in SOURCE_PAIRS.values() for sign in (1, -1)])
SOURCE_BANDS_HZ = [band for _, band in SOURCE_PAIRS.values() for _ in range(2)]
LABELS = ("control", "case")
CASE_PAIR = 1  # position in SOURCE_PAIRS of the pair that the label changes
CASE_LOG_GAIN = 0.6  # added to the log gain of that pair in cases
PAIR_COUPLING = 0.2  # correlation of the log envelopes within a pair
CASE_COUPLING = 0.5  # the same, for the changed pair in cases
GAIN_SD = 0.4  # between subjects, of the log gain
ENVELOPE_SD = 0.4  # over time, of the log envelope

CORTEX_CENTRE_MM = np.array([0.0, -18.0, 12.0])
CORTEX_AXES_MM = np.array([58.0, 78.0, 56.0])  # of the ellipsoid on which parcels lie, inside the brain's
PARCEL_WIDTH_MM = 22.0  # Gaussian fall-off of a source's response
SMEAR_MM = 40.0
SOURCE_UV = 8.0  # root mean square at an electrode 50 mm straight above a source of gain 1
SENSOR_NOISE_UV = 8.0
LINE_UV = 3.0
BOLD_BASELINE = 10_000.0
BOLD_PERCENT = 0.35  # signal change per unit of source power
BOLD_NOISE_PERCENT = 0.3
BOLD_DRIFT_PERCENT = 0.5


@dataclass(frozen=True)
class SimulatedSite:
    """One scanner: everything that differs between sites. Seconds must be at least 20."""

    name: str
    n_subjects: int
    channels: tuple[str, ...]  # 10-05 names
    eeg_sfreq: float  # Hz
    line_hz: float
    n_parcels: int  # even: mirror pairs
    t_r: float  # s
    seconds: float
    gain: float  # of the EEG amplifier
    seed: int


@dataclass(frozen=True)
class SimulatedSubject:
    """Both recordings of one subject; their first samples are at the same instant."""

    eeg_uv_CT: np.ndarray  # float32 microvolts
    bold_PT: np.ndarray  # float32, raw scanner units (mean near 10,000); volume k is at k * t_r
    label: str  # "control" | "case"
    envelopes_ST: np.ndarray  # float32, at ENVELOPE_HZ, from the first sample on; median near 1
    gains_S: np.ndarray  # float32, of the source amplitude


@cache
def _montage_mm(head_frame: bool) -> dict[str, np.ndarray]:
    name = "colin27_1005" if "colin27_1005" in mne.channels.get_builtin_montages() else "standard_1005"
    montage = mne.channels.make_standard_montage(name)  # the same positions: MNE 1.13 renamed them
    if head_frame:
        montage = mne.channels.transform_to_head(montage)
    return {channel: 1e3 * xyz for channel, xyz in montage.get_positions()["ch_pos"].items()}


def electrode_positions_mm(channels: tuple[str, ...], head_frame: bool = True) -> np.ndarray:
    """Positions ``(C, 3)`` [mm] of 10-05 electrodes on MNE's template head (Colin27).

    In the head frame (origin between the ears, x to the right, y to the nose), as MNE keeps them in a recording; or,
    with ``head_frame=False``, in the template's own frame, which is that of MNI coordinates. Raises ``ValueError`` on
    a name that the montage does not have.
    """
    known = _montage_mm(head_frame)
    unknown = [channel for channel in channels if channel not in known]
    if unknown:
        raise ValueError(f"simulate: expected channel names of the 10-05 system, found {unknown}")
    return np.array([known[channel] for channel in channels])


def parcel_lattice(n_parcels: int) -> tuple[list[str], np.ndarray]:
    """Names and MNI centres ``(P, 3)`` [mm] of a parcellation of the cortical ellipsoid into mirror pairs.

    A Fibonacci lattice (equal areas; the part below the temporal lobes is left out). Raises ``ValueError`` unless
    ``n_parcels`` is even and at least 2.
    """
    if n_parcels < 2 or n_parcels % 2:
        raise ValueError(f"simulate: expected an even number of parcels, at least 2, found {n_parcels}")
    k = np.arange(n_parcels // 2)
    height = 1 - (k + 0.5) * 1.6 / (n_parcels // 2)
    angle = np.pi * (0.05 + 0.9 * ((k * (np.sqrt(5) - 1) / 2) % 1))  # the right half, away from the midline
    radius = np.sqrt(1 - height**2)
    right_P3 = np.stack([radius * np.sin(angle), radius * np.cos(angle), height], axis=1)
    both_P3 = np.stack([right_P3 * [-1, 1, 1], right_P3], axis=1).reshape(-1, 3)
    names = [f"Lattice{n_parcels}_{number + 1:02d}_{side}" for number in k for side in "LR"]
    return names, (CORTEX_CENTRE_MM + CORTEX_AXES_MM * both_P3).round(1)


def lead_field(channels: tuple[str, ...]) -> np.ndarray:
    """Potential ``(C, S)`` of each source's radial dipole, 1 at 50 mm straight above it.

    A current dipole in an infinite homogeneous conductor (Nunez and Srinivasan, Electric Fields of the Brain, 2006),
    its distances lengthened by ``SMEAR_MM`` in quadrature for the blur of the skull: signs and smooth fall-off of scalp
    potentials, and none of the detail of a head model.
    """
    outward_S3 = SOURCE_POSITIONS_MM - CORTEX_CENTRE_MM
    outward_S3 /= np.linalg.norm(outward_S3, axis=1, keepdims=True)
    difference_CS3 = electrode_positions_mm(channels, head_frame=False)[:, None] - SOURCE_POSITIONS_MM
    distance_CS = np.hypot(np.linalg.norm(difference_CS3, axis=2), SMEAR_MM)
    potential_CS = np.einsum("csx,sx->cs", difference_CS3, outward_S3) / distance_CS**3
    return potential_CS * np.hypot(50.0, SMEAR_MM) ** 3 / 50.0


def hemodynamic_response(rate_hz: float) -> np.ndarray:
    """Canonical double gamma at ``rate_hz``, unit area: peak near 5 s, undershoot near 15 s (as in SPM)."""
    t = np.arange(0, HRF_SECONDS, 1 / rate_hz)
    response = gamma.pdf(t, 6) - gamma.pdf(t, 16) / 6
    return response / response.sum()


def _shaped_noise(
    rng: np.random.Generator, rows: int, n: int, rate_hz: float, band_hz: tuple[float, float] | None
) -> np.ndarray:
    """Gaussian noise ``(rows, n)`` of unit variance in a band, or where None, 1/f in power down to 0.5 Hz."""
    hz = np.fft.rfftfreq(n, 1 / rate_hz)
    gain = 1 / np.sqrt(np.maximum(hz, 0.5)) if band_hz is None else (hz >= band_hz[0]) & (hz <= band_hz[1])
    shaped = np.fft.irfft(np.fft.rfft(rng.standard_normal((rows, n))) * gain, n)
    return shaped / shaped.std(axis=1, keepdims=True)


def _label(site: SimulatedSite, index: int) -> str:
    """Each two neighbours are one control and one case, in random order."""
    first = int(np.random.default_rng([site.seed, 0, index // 2]).integers(2))
    return LABELS[(first + index) % 2]


def _latent(site: SimulatedSite, index: int, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Gains ``(S,)`` and envelopes ``(S, T)`` at ENVELOPE_HZ, beginning HRF_SECONDS before the recordings."""
    rng = np.random.default_rng([site.seed, 1, index])
    n_sources = len(SOURCE_POSITIONS_MM)
    log_gains_S = GAIN_SD * rng.standard_normal(n_sources)
    coupling_S = np.full(n_sources, PAIR_COUPLING)
    if label == "case":
        changed = slice(2 * CASE_PAIR, 2 * CASE_PAIR + 2)
        log_gains_S[changed] += CASE_LOG_GAIN
        coupling_S[changed] = CASE_COUPLING
    n = int(np.ceil((HRF_SECONDS + site.seconds) * ENVELOPE_HZ)) + 1
    own_ST = _shaped_noise(rng, n_sources, n, ENVELOPE_HZ, ENVELOPE_BAND_HZ)
    pair_ST = _shaped_noise(rng, n_sources // 2, n, ENVELOPE_HZ, ENVELOPE_BAND_HZ).repeat(2, axis=0)
    log_ST = np.sqrt(1 - coupling_S)[:, None] * own_ST + np.sqrt(coupling_S)[:, None] * pair_ST
    return np.exp(log_gains_S), np.exp(ENVELOPE_SD * log_ST)


def _eeg(site: SimulatedSite, index: int, amplitude_ST: np.ndarray) -> np.ndarray:
    """EEG ``(C, T)`` [uV] of source amplitudes ``(S, T)`` given at ENVELOPE_HZ from the first sample on."""
    rng = np.random.default_rng([site.seed, 2, index])
    n = round(site.seconds * site.eeg_sfreq)
    t = np.arange(n) / site.eeg_sfreq
    slow_t = np.arange(amplitude_ST.shape[1]) / ENVELOPE_HZ
    sources_ST = np.stack([np.interp(t, slow_t, row) for row in amplitude_ST])
    for row, band in zip(sources_ST, SOURCE_BANDS_HZ, strict=True):
        row *= _shaped_noise(rng, 1, n, site.eeg_sfreq, band)[0]
    n_channels = len(site.channels)
    eeg_CT = SOURCE_UV * lead_field(site.channels) @ sources_ST
    eeg_CT += SENSOR_NOISE_UV * _shaped_noise(rng, n_channels, n, site.eeg_sfreq, None)
    line_C1 = LINE_UV * rng.lognormal(0, 0.5, (n_channels, 1))
    eeg_CT += line_C1 * np.sin(2 * np.pi * (site.line_hz * t + rng.uniform(size=(n_channels, 1))))
    return (site.gain * eeg_CT).astype(np.float32)


def _bold(site: SimulatedSite, index: int, power_ST: np.ndarray) -> np.ndarray:
    """BOLD ``(P, T)`` of source power ``(S, T)`` given at ENVELOPE_HZ from HRF_SECONDS before the first volume on."""
    rng = np.random.default_rng([site.seed, 3, index])
    n = int(site.seconds / site.t_r)
    response_ST = fftconvolve(power_ST, hemodynamic_response(ENVELOPE_HZ)[None], axes=1)[:, : power_ST.shape[1]]
    t = np.arange(n) * site.t_r
    slow_t = np.arange(power_ST.shape[1]) / ENVELOPE_HZ - HRF_SECONDS
    response_ST = np.stack([np.interp(t, slow_t, row) for row in response_ST])
    _, parcels_P3 = parcel_lattice(site.n_parcels)
    distance_PS = np.linalg.norm(parcels_P3[:, None] - SOURCE_POSITIONS_MM, axis=2)
    percent_PT = BOLD_PERCENT * np.exp(-0.5 * (distance_PS / PARCEL_WIDTH_MM) ** 2) @ response_ST
    percent_PT += BOLD_NOISE_PERCENT * rng.standard_normal((site.n_parcels, n))
    percent_PT += 0.5 * BOLD_NOISE_PERCENT * rng.standard_normal(n)  # what all parcels share
    half_turns_P1 = rng.uniform(0.2, 1.2, (site.n_parcels, 1))  # slower than the slowest envelope
    drift_PT = np.cos(np.pi * (half_turns_P1 * t / site.seconds + rng.uniform(size=(site.n_parcels, 1))))
    percent_PT += BOLD_DRIFT_PERCENT * drift_PT
    baseline_P1 = BOLD_BASELINE * rng.normal(1, 0.05, (site.n_parcels, 1))
    return (baseline_P1 * (1 + percent_PT / 100)).astype(np.float32)


def simulate_subject(site: SimulatedSite, index: int) -> SimulatedSubject:
    """Subject ``index`` of ``site``, a function of ``(site, index)`` alone.

    Label, gains and envelopes depend on ``site.seed``, ``site.seconds`` and ``index``; montage, parcellation and rates
    change only how they are recorded. Raises ``ValueError`` on an index outside the site, a recording shorter than
    20 s, an unknown channel or an odd number of parcels.
    """
    if not 0 <= index < site.n_subjects:
        raise ValueError(f"simulate: {site.name} has subjects 0..{site.n_subjects - 1}, found {index}")
    if site.seconds < 20:
        raise ValueError(f"simulate: {site.name}: expected at least 20 seconds, found {site.seconds:g}")
    label = _label(site, index)
    gains_S, envelopes_ST = _latent(site, index, label)
    amplitude_ST = gains_S[:, None] * envelopes_ST
    skip = round(HRF_SECONDS * ENVELOPE_HZ)
    return SimulatedSubject(
        eeg_uv_CT=_eeg(site, index, amplitude_ST[:, skip:]),
        bold_PT=_bold(site, index, amplitude_ST**2),
        label=label,
        envelopes_ST=envelopes_ST[:, skip:].astype(np.float32),
        gains_S=gains_S.astype(np.float32),
    )
