"""Recordings with planted structure, a training loop in memory, and probes of what each domain's features hold.

Shape letters: N subjects, B rows, C channels, T time samples, F features.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mcsp.batch import Batch, Signal
from mcsp.config import AugmentationConfig, ModelConfig, ObjectiveConfig
from mcsp.data_sharding.simulate import electrode_positions_mm
from mcsp.losses.objective import objective
from mcsp.model.mcsp import MCSP
from mcsp.schema import Domain, Modality
from mcsp.training.pretrainer import Pretrainer

# fmt: off
CHANNELS = ("Fp1", "Fp2", "F3", "F4", "C3", "C4", "P3", "P4", "O1", "O2", "T7", "T8")
# fmt: on
SFREQ = 200.0
SECONDS = 12.0


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


def three_labels(n: int, seed: int) -> tuple[np.ndarray, dict[Domain, np.ndarray]]:
    """EEG ``(N, C, T)`` uV of n people, and three independent labels, each carried in one way alone.

    * ``spatial``: which electrodes move together (left with right, or front with back), one spectrum for all.
    * ``spectral``: 10 Hz or 20 Hz over the back of the head, the same variance, no electrodes together.
    * ``temporal``: whether bursts grow or fade over the window: time reversed, so that spectrum, covariance and
      coherence are the same in expectation.
    """
    rng = np.random.default_rng(seed)
    samples = round(SFREQ * SECONDS)
    hz_F = np.fft.rfftfreq(samples, 1 / SFREQ)
    background_F = np.where(hz_F >= 1, np.maximum(hz_F, 1.0) ** -0.5, 0.0)
    labels: dict[Domain, np.ndarray] = {d: rng.integers(2, size=n) for d in ("spatial", "spectral", "temporal")}
    back = [CHANNELS.index(c) for c in ("P3", "P4", "O1", "O2")]
    together = {
        0: [("F3", "F4"), ("C3", "C4"), ("P3", "P4")],
        1: [("F3", "P3"), ("F4", "P4"), ("C3", "T7")],
    }
    x_NCT = np.empty((n, len(CHANNELS), samples))
    ramp_T = np.linspace(-1, 1, samples)
    for i in range(n):
        x_CT = _shaped(rng, (len(CHANNELS), samples), background_F)
        for pair in together[int(labels["spatial"][i])]:
            a, b = (CHANNELS.index(c) for c in pair)
            shared_T = _shaped(rng, (samples,), background_F)
            x_CT[[a, b]] = np.sqrt(0.5) * x_CT[[a, b]] + np.sqrt(0.5) * shared_T
        centre = 20.0 if labels["spectral"][i] else 10.0
        x_CT[back] += 0.7 * _shaped(rng, (4, samples), np.exp(-0.5 * ((hz_F - centre) / 1.0) ** 2))
        direction = 1 if labels["temporal"][i] else -1
        x_CT = x_CT * np.exp(0.7 * direction * ramp_T)  # bursts, louder at one end
        gains_C1 = np.exp(0.2 * rng.standard_normal((len(CHANNELS), 1)))
        x_NCT[i] = 10 * gains_C1 * x_CT / x_CT.std(axis=1, keepdims=True)
    return x_NCT, labels


def positions_of(channels: Sequence[str] = CHANNELS) -> np.ndarray:
    return electrode_positions_mm(tuple(channels))


def auroc(x_NF: np.ndarray, y_N: np.ndarray) -> float:
    """Of shrunken linear discriminants in five folds."""
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    reader = make_pipeline(StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"))
    return float(roc_auc_score(y_N, cross_val_predict(reader, x_NF, y_N, cv=folds, method="decision_function")))


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
