"""Recordings with planted structure, a training loop in memory, and probes of what each domain's features hold.

Shape letters: N subjects, B rows, C channels, T time samples, F features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from benchmarks.ablation.discriminants import class_scores
from mcsp.batch import Batch, Signal
from mcsp.config import AugmentationConfig, ModelConfig, ObjectiveConfig
from mcsp.data_sharding.demo.simulate import electrode_positions_mm, parcel_lattice
from mcsp.losses.objective import objective
from mcsp.model.mcsp import MCSP
from mcsp.schema import Domain, Modality
from mcsp.training.pretrainer import Pretrainer

# fmt: off
CHANNELS = ("Fp1", "Fp2", "F3", "F4", "C3", "C4", "P3", "P4", "O1", "O2", "T7", "T8")
# fmt: on


def signal_of(
    x_BCT: np.ndarray, sfreq: float, positions_C3: np.ndarray, samples: Sequence[int] | None = None, key: int = 1
) -> Signal:
    """Windows of one montage as a :class:`Signal`, every channel and time sample valid."""
    rows, channels, length = x_BCT.shape
    return Signal(
        x_BCT=torch.from_numpy(x_BCT.astype(np.float32)),
        sfreq_B=torch.full((rows,), sfreq),
        channel_valid_BC=torch.ones(rows, channels, dtype=torch.bool),
        time_valid_BT=torch.ones(rows, length, dtype=torch.bool),
        position_BC3=torch.from_numpy(positions_C3.astype(np.float32)).expand(rows, -1, -1).clone(),
        position_valid_BC=torch.ones(rows, channels, dtype=torch.bool),
        sample_B=torch.arange(rows) if samples is None else torch.tensor(samples),
        key_B=torch.arange(rows) * 7919 + key * 1_000_003,
    )


def _shaped(rng: np.random.Generator, shape: tuple[int, ...], gain_F: np.ndarray) -> np.ndarray:
    """Gaussian noise of unit variance whose spectrum has amplitude ``gain_F``."""
    x = np.fft.irfft(np.fft.rfft(rng.standard_normal(shape)) * gain_F, shape[-1])
    return x / x.std(axis=-1, keepdims=True)


@dataclass(frozen=True)
class Montage:
    """Where and how fast one modality is recorded, and where its labels are planted."""

    positions_C3: np.ndarray
    sfreq: float
    seconds: float
    lowest_hz: float
    centres_hz: tuple[float, float]  # of the oscillation that the spectral label chooses
    width_hz: float
    back: tuple[int, ...]  # channels that have it
    together: tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]  # pairs of channels, by spatial label
    scale: float  # uV or percent


def _electrodes(*names: str) -> tuple[int, ...]:
    return tuple(CHANNELS.index(name) for name in names)


MONTAGES: dict[Modality, Montage] = {
    "eeg": Montage(
        electrode_positions_mm(CHANNELS), 200.0, 12.0, 1.0, (10.0, 20.0), 1.0, _electrodes("P3", "P4", "O1", "O2"),
        (
            (_electrodes("F3", "F4"), _electrodes("C3", "C4"), _electrodes("P3", "P4")),  # left with right
            (_electrodes("F3", "P3"), _electrodes("F4", "P4"), _electrodes("C3", "T7")),  # front with back
        ),
        10.0,
    ),
    "fmri": Montage(
        parcel_lattice(24)[1], 0.5, 400.0, 0.01, (0.04, 0.12), 0.01, (16, 17, 18, 19, 20, 21, 22, 23),
        (((0, 1), (4, 5), (8, 9)), ((0, 4), (1, 9), (5, 8))),
        1.0,
    ),
}  # fmt: skip


def three_labels(modality: Modality, n: int, seed: int) -> tuple[Signal, dict[Domain, np.ndarray]]:
    """Recordings of n people, and three independent labels, each carried in one way alone.

    * ``spatial``: which channels move together, one spectrum for all.
    * ``spectral``: a slow or a fast oscillation in some channels, the same variance, no channels together.
    * ``temporal``: whether bursts grow or fade over the window: time reversed, so that spectrum, covariance and
      coherence are the same in expectation.
    """
    rng, m = np.random.default_rng(seed), MONTAGES[modality]
    channels, samples = len(m.positions_C3), round(m.sfreq * m.seconds)
    hz_F = np.fft.rfftfreq(samples, 1 / m.sfreq)
    background_F = np.where(hz_F >= m.lowest_hz, np.maximum(hz_F / m.lowest_hz, 1.0) ** -0.5, 0.0)
    labels: dict[Domain, np.ndarray] = {d: rng.integers(2, size=n) for d in ("spatial", "spectral", "temporal")}
    x_NCT = np.empty((n, channels, samples))
    ramp_T = np.linspace(-1, 1, samples)
    for i in range(n):
        x_CT = _shaped(rng, (channels, samples), background_F)
        for pair in m.together[int(labels["spatial"][i])]:
            shared_T = _shaped(rng, (samples,), background_F)
            x_CT[list(pair)] = np.sqrt(0.5) * x_CT[list(pair)] + np.sqrt(0.5) * shared_T
        peak_F = np.exp(-0.5 * ((hz_F - m.centres_hz[labels["spectral"][i]]) / m.width_hz) ** 2)
        x_CT[list(m.back)] += 0.7 * _shaped(rng, (len(m.back), samples), peak_F)
        direction = 1 if labels["temporal"][i] else -1
        x_CT = x_CT * np.exp(0.7 * direction * ramp_T)  # bursts, louder at one end
        gains_C1 = np.exp(0.2 * rng.standard_normal((channels, 1)))
        x_NCT[i] = m.scale * gains_C1 * x_CT / x_CT.std(axis=1, keepdims=True)
    return signal_of(x_NCT, m.sfreq, m.positions_C3), labels


def positions_of(channels: Sequence[str] = CHANNELS) -> np.ndarray:
    return electrode_positions_mm(tuple(channels))


def auroc(x_NF: np.ndarray, y_N: np.ndarray) -> float:
    """Of shrunken linear discriminants in five folds."""
    y_N, score_N = y_N.astype(int), np.empty(len(y_N))
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(x_NF, y_N):
        scale = StandardScaler().fit(x_NF[train])
        score_M2 = class_scores(scale.transform(x_NF[train]), y_N[train], scale.transform(x_NF[test]))
        score_N[test] = score_M2[:, 1] - score_M2[:, 0]
    return float(roc_auc_score(y_N, score_N))


@torch.inference_mode()
def encoded(model: MCSP, modality: Modality, domain: Domain, signal: Signal) -> np.ndarray:
    """h of every row, float64 ``(B, F)``."""
    return model.eval().encode_domain(modality, domain, signal).double().numpy()


def train(
    model: ModelConfig,
    batch_of: Callable[[int], Batch],
    steps: int,
    *,
    objective_config: ObjectiveConfig | None = None,
    augmentation: AugmentationConfig | None = None,
    rate: float = 1e-3,
) -> MCSP:
    """AdamW on the whole objective with ``batch_of(step)``, in memory; the trained model."""
    torch.manual_seed(0)
    config = objective_config or ObjectiveConfig()
    module = Pretrainer(model, config, augmentation or AugmentationConfig())
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.05)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10)
        batch = batch_of(step)
        loss, _ = objective(*module(batch), batch.subject_N, batch.site_N, config, module.terms, module.predictions)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    return module.model.eval()


def rows_of(signal: Signal, rows: np.ndarray, key: int) -> Signal:
    """Some rows as a batch of their own, with a new randomness key."""
    index = torch.from_numpy(rows)
    fields = {name: getattr(signal, name)[index] for name in signal.__dataclass_fields__}
    own = {"sample_B": torch.arange(len(rows)), "key_B": torch.arange(len(rows)) * 7919 + key * 1_000_003}
    return Signal(**{**fields, **own})
