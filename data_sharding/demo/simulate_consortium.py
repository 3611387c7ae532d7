"""Simulated resting-state fMRI of a consortium: many sites, one population, a weak label in connectivity.

Twenty-four cortical sources with smooth maps move together as a symmetric matrix says: their covariance is ``expm(H)``,
so any sum of effects is a covariance. For subject i of site s in state q (matrices S x S)::

    H = H_population + sum_k (a_ik + y_i * d_k) U_k + own_i + H_s + H_q          BOLD = gain_s * W expm(H / 2) E + noise

* ``U_k``: the modes in which people differ, of falling variance. ``a_i`` and ``own_i`` are what stays with a person.
* ``d``: the label's direction. **An assumption, and a favourable one: it lies in the strongest modes**, so learning how
  people differ can help to find it with few labels. Where a disorder lies outside of them pretraining cannot help.
* ``H_q``: four states of mind, the same for everybody, that follow one another within a recording.
* ``H_s``, ``gain_s``: the site's signature in connectivity and amplitude, stronger than the label. Sites differ also in
  t_r, length, noise, motion and prevalence of the label.

The population is one for all seeds: another seed gives other sites and people of it, so a second consortium is a set
of sites that no training on the first one has seen. Numbers without a source are choices of ours; the strengths were
set so that a linear SVM on connectivity reaches what it reaches on real consortia of this size (AUROC 0.7 to 0.8).

Shape letters: P parcels, S sources, K modes, T volumes, N subjects.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from mcsp.data_sharding.demo.simulate import BOLD_BASELINE, LABELS, parcel_lattice

N_PARCELS = 200  # the number of the CC200 atlas (Craddock et al., Human Brain Mapping 2012)
N_SOURCES = 24
N_MODES = 12
N_STATES = 4
LABEL_MODES = 6  # the label lies in the span of so many strongest modes
POPULATION_SEED = 11
BAND_HZ = (0.008, 0.1)  # where resting-state BOLD fluctuates (Biswal et al., MRM 1995)
MAP_WIDTH_MM = 20.0  # Gaussian fall-off of a source around each of its centres

# Norms of the parts of H: how far from each other people, sites and states are.
POPULATION_NORM = 2.5
MODE_NORM = 1.1  # of the strongest mode, one standard deviation; mode k has it times k^-1/2
OWN_NORM = 0.8
SITE_NORM = 1.1
STATE_NORM = 1.0
LABEL_SHIFT = 1.5  # in standard deviations of the modes
STATE_SECONDS = 45.0  # mean stay in a state

BOLD_PERCENT = 0.5
NOISE_PERCENT = 0.5
DRIFT_PERCENT = 0.5
GAIN_SD = 0.25  # log gain of a site's parcels


@dataclass(frozen=True)
class Population:
    """What all people of all sites share."""

    maps_PS: np.ndarray
    mean_SS: np.ndarray
    modes_KSS: np.ndarray  # scaled: one standard deviation each
    label_K: np.ndarray  # unit norm, in standard deviations of the modes
    states_QSS: np.ndarray


@dataclass(frozen=True)
class ConsortiumSite:
    """One scanner: everything that differs between sites."""

    name: str
    number: int
    seed: int
    n_subjects: int
    t_r: float  # s
    n_volumes: int
    noise: float  # factor
    motion: float  # mean number of jerks in 100 volumes
    global_signal: float  # percent
    prevalence: float  # of cases


@dataclass(frozen=True)
class ConsortiumSubject:
    """One recording with its label and what was planted."""

    bold_PT: np.ndarray  # float32, raw scanner units (mean near 10,000)
    label: str  # "control" | "case"
    modes_K: np.ndarray  # the person's place in the modes, label included, in standard deviations
    state_T: np.ndarray  # int, which state each volume belongs to


def _symmetric(rng: np.random.Generator, *shape: int, norm: float) -> np.ndarray:
    """Random symmetric matrices ``(*shape, S, S)`` with Frobenius norm ``norm``."""
    x = rng.standard_normal((*shape, N_SOURCES, N_SOURCES))
    x = x + x.swapaxes(-1, -2)
    return norm * x / np.linalg.norm(x, axis=(-2, -1), keepdims=True)


@cache
def population() -> Population:
    """Maps, modes, states and label direction of everybody."""
    rng = np.random.default_rng(POPULATION_SEED)
    _, position_P3 = parcel_lattice(N_PARCELS)
    # Each source has two centres anywhere, as networks join distant places.
    centres = position_P3[rng.permutation(N_PARCELS)[: 2 * N_SOURCES]].reshape(N_SOURCES, 2, 3)
    distance_PS2 = np.linalg.norm(position_P3[:, None, None] - centres, axis=-1)
    maps_PS = np.exp(-0.5 * (distance_PS2 / MAP_WIDTH_MM) ** 2).sum(-1)
    scale_K = MODE_NORM * np.arange(1, N_MODES + 1) ** -0.5
    direction_K = np.where(np.arange(N_MODES) < LABEL_MODES, rng.choice([-1.0, 1.0], N_MODES), 0.0)
    return Population(
        maps_PS=maps_PS,
        mean_SS=_symmetric(rng, norm=POPULATION_NORM),
        modes_KSS=scale_K[:, None, None] * _symmetric(rng, N_MODES, norm=1.0),
        label_K=direction_K / np.linalg.norm(direction_K),
        states_QSS=_symmetric(rng, N_STATES, norm=STATE_NORM),
    )


def consortium(n_sites: int, n_subjects: int, seed: int = 0) -> list[ConsortiumSite]:
    """Sites of unequal size that have ``n_subjects`` together, at least 10 each.

    Raises:
        ValueError: fewer than 2 sites, or fewer than 12 subjects a site.
    """
    if n_sites < 2 or n_subjects < 12 * n_sites:
        raise ValueError(
            f"consortium: expected at least 2 sites and 12 subjects a site, found {n_subjects} subjects at {n_sites}"
        )
    rng = np.random.default_rng([seed, 0])
    share = rng.dirichlet(np.full(n_sites, 3.0))
    sizes = 10 + np.floor(share * (n_subjects - 10 * n_sites)).astype(int)
    sizes[np.argsort(-share)[: n_subjects - sizes.sum()]] += 1
    return [
        ConsortiumSite(
            name=f"simulated-fmri-{seed}-{number + 1:02d}",
            number=number,
            seed=seed,
            n_subjects=int(sizes[number]),
            t_r=float(rng.choice([1.5, 2.0, 2.0, 2.5, 3.0])),
            n_volumes=int(rng.integers(150, 301)),
            noise=float(rng.uniform(0.7, 1.4)),
            motion=float(rng.uniform(0.5, 4.0)),
            global_signal=float(rng.uniform(0.05, 0.3)),
            prevalence=float(rng.uniform(0.35, 0.65)),
        )
        for number in range(n_sites)
    ]


def _square_root(h_SS: np.ndarray) -> np.ndarray:
    """``expm(H / 2)`` with unit mean variance of the sources, so that effects change who moves with whom."""
    values, vectors = np.linalg.eigh(h_SS)
    root_SS = (vectors * np.exp(values / 2)) @ vectors.T
    return root_SS / np.sqrt((root_SS**2).sum() / N_SOURCES)


def _band_noise(rng: np.random.Generator, rows: int, n: int, t_r: float) -> np.ndarray:
    """Gaussian noise ``(rows, n)`` of unit variance in BAND_HZ, 1/f in power."""
    hz = np.fft.rfftfreq(n, t_r)
    shape = np.where((hz >= BAND_HZ[0]) & (hz <= BAND_HZ[1]), np.maximum(hz, BAND_HZ[0]) ** -0.5, 0.0)
    x = np.fft.irfft(np.fft.rfft(rng.standard_normal((rows, n))) * shape, n)
    return x / x.std(axis=1, keepdims=True)


def _artefacts(rng: np.random.Generator, site: ConsortiumSite) -> np.ndarray:
    """What is not brain, ``(P, T)`` percent: noise of parcels, global signal, drift, and jerks that decay."""
    n = site.n_volumes
    x_PT = NOISE_PERCENT * site.noise * rng.standard_normal((N_PARCELS, n))
    x_PT += site.global_signal * _band_noise(rng, 1, n, site.t_r)
    t = np.linspace(0, 1, n)
    x_PT += DRIFT_PERCENT * rng.standard_normal((N_PARCELS, 1)) * (t - 0.5)
    amount = site.motion * rng.gamma(2.0, 0.5) / 100  # people differ in how much they move
    jerks = (rng.uniform(size=n) < amount) * rng.normal(0, 1.0, n)
    decay = np.exp(-np.arange(n) * site.t_r / 4.0)
    return x_PT + rng.normal(0.5, 0.5, (N_PARCELS, 1)) * np.convolve(jerks, decay)[:n]


def simulate_consortium_subject(site: ConsortiumSite, index: int) -> ConsortiumSubject:
    """Subject ``index`` of ``site``, a function of ``(site, index)`` alone.

    Raises:
        ValueError: an index outside the site.
    """
    if not 0 <= index < site.n_subjects:
        raise ValueError(f"simulate: {site.name} has subjects 0..{site.n_subjects - 1}, found {index}")
    everybody = population()
    of_site = np.random.default_rng([site.seed, 1, site.number])
    site_SS = _symmetric(of_site, norm=SITE_NORM)
    gain_P1 = np.exp(GAIN_SD * of_site.standard_normal((N_PARCELS, 1)))
    rng = np.random.default_rng([site.seed, 2, site.number, index])
    # The nearest number of cases to the prevalence, in random order, so that every site has both.
    n_cases = round(site.prevalence * site.n_subjects)
    is_case = bool(of_site.permutation(site.n_subjects)[index] < n_cases)
    modes_K = rng.standard_normal(N_MODES) + LABEL_SHIFT * everybody.label_K * (is_case - 0.5)
    person_SS = np.tensordot(modes_K, everybody.modes_KSS, 1) + _symmetric(rng, norm=OWN_NORM)
    # A Markov chain of states.
    changes = rng.uniform(size=site.n_volumes) < site.t_r / STATE_SECONDS
    drawn = rng.integers(N_STATES, size=site.n_volumes)
    state_T = drawn[np.maximum.accumulate(np.where(changes, np.arange(site.n_volumes), 0))]
    noise_ST = _band_noise(rng, N_SOURCES, site.n_volumes, site.t_r)
    sources_ST = np.empty_like(noise_ST)
    for state, state_SS in enumerate(everybody.states_QSS):
        now = state_T == state
        sources_ST[:, now] = _square_root(everybody.mean_SS + person_SS + site_SS + state_SS) @ noise_ST[:, now]
    percent_PT = gain_P1 * (BOLD_PERCENT * everybody.maps_PS @ sources_ST) + _artefacts(rng, site)
    baseline_P1 = BOLD_BASELINE * rng.normal(1, 0.05, (N_PARCELS, 1))
    return ConsortiumSubject(
        bold_PT=(baseline_P1 * (1 + percent_PT / 100)).astype(np.float32),
        label=LABELS[is_case],
        modes_K=modes_K,
        state_T=state_T,
    )
