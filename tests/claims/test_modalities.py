"""What EEG and BOLD share is found across modalities: for people never seen, and at a site never seen.

Shape letters: N subjects, C channels of either modality, T time samples.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.signal import detrend

from mcsp.batch import Batch, Signal
from mcsp.config import ModelConfig
from mcsp.data_sharding.demo.simulate import SimulatedSite, parcel_lattice, simulate_subject
from mcsp.data_sharding.demo.sites import SIMULATED_A, SIMULATED_B
from mcsp.model.mcsp import MCSP
from mcsp.schema import Modality
from tests.claims.planted import positions_of, signal_of, train

SECONDS, WINDOW, DELAY = 130.0, {"eeg": 30.0, "fmri": 60.0}, 5.0
TRAINED_ON, ASKED, BATCH, STEPS = 48, 16, 32, 60
# One domain: what it takes of time is small, and power is what this simulator's modalities share.
CONFIG = ModelConfig(domains=("spectral",))
# fmt: off
NEW_SITE = SimulatedSite(
    name="simulated-new",
    n_subjects=ASKED,
    channels=("F3", "F4", "FC5", "FC6", "C1", "C2", "CP3", "CP4", "P1", "P2", "PO7", "PO8", "Oz", "Fz", "T7", "T8"),
    eeg_sfreq=160.0,
    line_hz=50.0,
    n_parcels=80,
    t_r=2.2,
    seconds=SECONDS,
    gain=1.0,
    seed=303,
)
# fmt: on


@dataclass(frozen=True)
class Site:
    """All recordings of one site."""

    site: SimulatedSite
    eeg_NCT: np.ndarray
    bold_NCT: np.ndarray

    @classmethod
    def make(cls, site: SimulatedSite) -> "Site":
        people = [simulate_subject(site, i) for i in range(site.n_subjects)]
        percent = [100 * (p.bold_PT / p.bold_PT.mean(1, keepdims=True) - 1) for p in people]
        return cls(site, np.stack([p.eeg_uv_CT for p in people]), detrend(np.stack(percent), axis=-1))

    def windows(self, rows: np.ndarray, start: float, key: int) -> dict[Modality, Signal]:
        """Simultaneous windows of some people, the BOLD one DELAY later."""
        site, cuts = self.site, {}
        parts = {
            "eeg": (self.eeg_NCT, site.eeg_sfreq, positions_of(site.channels), start),
            "fmri": (self.bold_NCT, 1 / site.t_r, parcel_lattice(site.n_parcels)[1], start + DELAY),
        }
        for modality, (x_NCT, sfreq, position_C3, seconds) in parts.items():
            first, length = round(seconds * sfreq), round(WINDOW[modality] * sfreq)
            cuts[modality] = signal_of(x_NCT[rows][..., first : first + length], sfreq, position_C3, key=key)
        return cuts  # type: ignore[return-value]


@torch.inference_mode()
def top1(model: MCSP, site: Site, rows: np.ndarray) -> float:
    """How often an EEG window's most similar BOLD window is its own; mean over three places in time."""
    hits = []
    for start in (0.0, 30.0, 60.0):
        encoded = model.encode(site.windows(rows, start, key=1))
        z = {m: model.project(m, "spectral", encoded[m]["spectral"]) for m in encoded}
        hits.append(((z["eeg"] @ z["fmri"].T).argmax(1) == torch.arange(len(rows))).float().mean().item())
    return float(np.mean(hits))


@pytest.mark.slow
def test_the_shared_activity_is_found_for_new_people_and_at_a_new_site() -> None:
    known = [
        Site.make(replace(site, n_subjects=TRAINED_ON + ASKED, seconds=SECONDS)) for site in (SIMULATED_A, SIMULATED_B)
    ]
    new = Site.make(NEW_SITE)

    def batch_of(step: int) -> Batch:
        rng, number = np.random.default_rng(step), step % 2
        rows = rng.choice(TRAINED_ON, BATCH, replace=False)
        signals = known[number].windows(rows, rng.uniform(0, SECONDS - WINDOW["fmri"] - DELAY - 1), step)
        return Batch(signals, torch.from_numpy(rows + 1000 * number), torch.full((BATCH,), number), ("",) * BATCH)

    trained = train(CONFIG, batch_of, STEPS)
    torch.manual_seed(0)
    untrained = MCSP(CONFIG).eval()
    held_out = np.arange(TRAINED_ON, TRAINED_ON + ASKED)
    asked = [(known[0], held_out), (known[1], held_out), (new, np.arange(ASKED))]
    after = [top1(trained, site, rows) for site, rows in asked]
    before = [top1(untrained, site, rows) for site, rows in asked]
    chance = 1 / ASKED
    assert min(after) > 4 * chance, after
    assert max(before) < 3 * chance, before
