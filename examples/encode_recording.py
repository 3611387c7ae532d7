"""Encode one EEG recording of your own with an exported model: features for a classifier, no training stack needed.

python examples/encode_recording.py MODEL_DIR RECORDING.npz

The file holds ``x_CT`` (channels x time, microvolts, cleaned as the model's preprocessing.json says), ``sfreq`` [Hz]
and ``positions_mm`` (channels x 3; MNE's head frame, NaN where unknown). From MNE, after filtering and
average reference::

    np.savez("rec.npz", x_CT=raw.get_data("eeg") * 1e6, sfreq=raw.info["sfreq"],
             positions_mm=np.array([ch["loc"][:3] for ch in raw.info["chs"]]) * 1e3)

BOLD goes the same way as ``"fmri"``, with percent signal change, 1 / t_r as ``sfreq``, and MNI coordinates.

Shape letters: B windows, C channels, T time samples, F features.
"""

import sys

import numpy as np
import torch

import mcsp
from mcsp.batch import Signal


def windows_of(x_CT: np.ndarray, sfreq: float, positions_C3: np.ndarray, seconds: float) -> Signal:
    """Cut a recording into windows without overlap, as one row of a ``Signal`` each."""
    length = round(seconds * sfreq)
    n_windows = x_CT.shape[1] // length
    if n_windows == 0:
        raise ValueError(f"recording: expected at least {seconds:g} s, found {x_CT.shape[1] / sfreq:g} s")
    good_C = np.isfinite(x_CT).all(axis=1)
    known_C = np.isfinite(positions_C3).all(axis=1)
    x_BCT = np.nan_to_num(x_CT[:, : n_windows * length]).reshape(len(x_CT), n_windows, length).swapaxes(0, 1)
    return Signal(
        x_BCT=torch.tensor(x_BCT * good_C[:, None], dtype=torch.float32),
        sfreq_B=torch.full((n_windows,), float(sfreq)),
        channel_valid_BC=torch.tensor(good_C).expand(n_windows, -1),
        time_valid_BT=torch.ones(n_windows, length, dtype=torch.bool),
        position_BC3=torch.tensor(np.nan_to_num(positions_C3), dtype=torch.float32).expand(n_windows, -1, -1),
        position_valid_BC=torch.tensor(known_C & good_C).expand(n_windows, -1),
        sample_B=torch.arange(n_windows),
        key_B=torch.zeros(n_windows, dtype=torch.int64),
    )


def main() -> None:
    """Print the features of the recording: mean over its windows."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    try:
        model = mcsp.from_pretrained(sys.argv[1])
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    recording = np.load(sys.argv[2], allow_pickle=False)
    seconds = model.preprocessing["window_seconds"]["eeg"]
    signal = windows_of(recording["x_CT"], float(recording["sfreq"]), recording["positions_mm"], seconds)
    with torch.inference_mode():
        features_BF = model.features({"eeg": signal})["eeg"]
    print(f"{len(features_BF)} windows of {seconds:g} s, {features_BF.shape[1]} features each; mean over windows:")
    print(np.array2string(features_BF.mean(0).numpy(), precision=3, threshold=12))


if __name__ == "__main__":
    main()
