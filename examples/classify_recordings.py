"""Cross-validate a linear probe on the frozen features of a folder of EEG recordings; every subject in one fold only.

python examples/classify_recordings.py MODEL_DIR BIDS_DIR LABEL POSITIVE

LABEL is a column of participants.tsv, POSITIVE one of its two values. Needs ``pip install '.[lab]'``. For
baselines in the same folds, sites left out and intervals, use launchers/evaluate.py.

Shape letters: N recordings, F features.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mcsp.encode.extractor import FeatureExtractor
from mcsp.evaluate.splits import k_fold

ENDINGS = (".edf", ".bdf", ".vhdr", ".set", ".fif")


def main() -> None:
    """Print the AUROC of each fold."""
    if len(sys.argv) != 5:
        raise SystemExit(__doc__)
    model_dir, bids_dir, label, positive = sys.argv[1:]
    labels = pd.read_csv(Path(bids_dir) / "participants.tsv", sep="\t", dtype=str).set_index("participant_id")[label]
    files = [f for f in sorted(Path(bids_dir).glob("sub-*/**/*_eeg.*")) if f.suffix in ENDINGS]
    files = [f for f in files if isinstance(labels.get(f.name.split("_")[0]), str)]
    subjects = [f.name.split("_")[0] for f in files]
    try:
        x_NF = FeatureExtractor(model_dir).fit_transform(files)
        y_N = np.array([int(labels[subject] == positive) for subject in subjects])
        folds = k_fold([f.name for f in files], y_N, subjects, folds=5, seeds=1).by_seed[0]
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=1000))
    scores = cross_val_score(probe, x_NF, y_N, cv=list(folds), scoring="roc_auc")
    print(f"{len(files)} recordings of {len(set(subjects))} subjects, AUROC per fold: {np.round(scores, 3)}")


if __name__ == "__main__":
    main()
