"""A corpus in memory in which the label changes one electrode in one band, and the edges among six parcels.

Shape letters: C channels, T time samples.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mcsp.data_sharding.demo.simulate import electrode_positions_mm, parcel_lattice
from mcsp.schema import Modality, Recording, Window

# fmt: off
ELECTRODES = (
    "Fp1", "Fp2", "F7", "F3", "Fz", "F4", "F8", "T7", "C3", "Cz", "C4", "T8", "P7", "P3", "Pz", "P4", "P8", "O1", "O2",
)
# fmt: on
PLANTED_ELECTRODE, PLANTED_BAND, PLANTED_HZ = "C4", "beta", 20.0
PARCELS, PARCELS_MM = parcel_lattice(40)
PLANTED_PARCELS = (4, 11, 17, 22, 29, 36)
RATES: dict[Modality, float] = {"eeg": 200.0, "fmri": 0.5}
SAMPLES: dict[Modality, int] = {"eeg": 2000, "fmri": 120}


class PlantedCorpus:
    """What the evaluation uses of :class:`mcsp.data_sharding.store.reader.Corpus`."""

    path = Path("planted")
    index_hash = "0" * 64

    def __init__(self, subjects: int = 24, sites: int = 2) -> None:
        """So many subjects at each site, every other one a case."""
        self.recordings: list[Recording] = []
        self.x_TC: dict[str, np.ndarray] = {}
        for site in range(sites):
            for subject in range(subjects):
                rng = np.random.default_rng([site, subject])
                case = subject % 2 == 1
                for modality, x_CT in (("eeg", eeg(rng, case)), ("fmri", bold(rng, case))):
                    recording = _recording(modality, f"site-{site}", f"{subject:03d}", case)  # type: ignore[arg-type]
                    self.recordings.append(recording)
                    self.x_TC[recording.member] = x_CT.T.astype(np.float32)

    def samples(self) -> dict[str, list[Recording]]:
        """Recordings by sample."""
        found: dict[str, list[Recording]] = {}
        for recording in self.recordings:
            found.setdefault(recording.key, []).append(recording)
        return found

    def participant(self, recording: Recording) -> dict[str, str]:
        """The label."""
        return dict(json.loads(recording.participant))

    def read_window(self, recording: Recording, start: int, n_samples: int) -> Window:
        """A cut."""
        return Window(self.x_TC[recording.member][start : start + n_samples], recording, start)


def eeg(rng: np.random.Generator, case: bool) -> np.ndarray:
    """Pink noise of every electrode, a part of it shared by neighbours; in cases 20 Hz are louder at one electrode."""
    place_C3 = electrode_positions_mm(ELECTRODES)
    squared_CC = ((place_C3[:, None] - place_C3) ** 2).sum(-1)
    pink_CT = _shaped(rng, len(ELECTRODES), "eeg", lambda hz: np.maximum(hz, 1.0) ** -0.5 * (hz >= 1))
    x_CT = 10 * np.exp(-squared_CC / (2 * 30.0**2)) @ pink_CT
    rhythm_CT = _shaped(rng, len(ELECTRODES), "eeg", lambda hz: np.exp(-0.5 * ((hz - PLANTED_HZ) / 1.5) ** 2))
    gain_C = np.exp(0.25 * rng.standard_normal(len(ELECTRODES)))
    gain_C[ELECTRODES.index(PLANTED_ELECTRODE)] *= 1.8 if case else 1.0
    return x_CT + 4 * gain_C[:, None] * rhythm_CT


def bold(rng: np.random.Generator, case: bool) -> np.ndarray:
    """Slow noise of every parcel and of both sides together; in cases six parcels share another one."""

    def slow(rows: int) -> np.ndarray:
        return _shaped(rng, rows, "fmri", lambda hz: (hz > 0.01) & (hz < 0.1))

    own_CT, pairs_PT, shared_T = slow(len(PARCELS)), slow(len(PARCELS) // 2), slow(1)[0]
    x_CT = own_CT + np.repeat(pairs_PT, 2, axis=0)
    x_CT[list(PLANTED_PARCELS)] += (1.5 if case else 0.3) * shared_T
    return 0.5 * x_CT / x_CT.std(axis=1, keepdims=True)


def _shaped(
    rng: np.random.Generator, rows: int, modality: Modality, gain_of_hz: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Gaussian noise of unit variance with that amplitude spectrum."""
    hz_F = np.fft.rfftfreq(SAMPLES[modality], 1 / RATES[modality])
    white_RF = np.fft.rfft(rng.standard_normal((rows, SAMPLES[modality])))
    x_RT = np.fft.irfft(white_RF * gain_of_hz(hz_F), SAMPLES[modality])
    return x_RT / x_RT.std(axis=1, keepdims=True)


def _recording(modality: Modality, site: str, subject: str, case: bool) -> Recording:
    names, place_C3 = (ELECTRODES, electrode_positions_mm(ELECTRODES)) if modality == "eeg" else (PARCELS, PARCELS_MM)
    key = f"{site}_{subject}"
    return Recording(
        key=key, shard="", member=f"{key}.{modality}-0.npy", modality=modality, site=site, subject=subject, session="",
        task="rest", run="", split="test", sfreq=RATES[modality], unit="uV", scale=1.0, n_samples=SAMPLES[modality],
        n_channels=len(names), dtype="float32", byte_offset=0, crc_offset=0, block_samples=10, simulated=True,
        onset_seconds=0.0, channels=list(names), positions_mm=np.ravel(place_C3).tolist(),
        channel_good=[True] * len(names), valid_spans=[0, SAMPLES[modality]],
        participant=json.dumps({"diagnosis": "case" if case else "control"}),
    )  # fmt: skip
