"""Encode one recording of your own with an exported model, and say what was done to it.

python examples/encode_recording.py MODEL_DIR RECORDING [LABEL_IMAGE T_R]

EEG: EDF, BDF, BrainVision (.vhdr), EEGLAB (.set) or FIF. BOLD: a table of parcels (``*_timeseries.tsv`` with its
sidecar), or a 4-D NIfTI with a label image and the repetition time in seconds. Needs ``pip install '.[lab]'``.
"""

import sys

import numpy as np

import mcsp


def main() -> None:
    """Print the report and the features of the recording: mean over its windows."""
    if len(sys.argv) not in (3, 5):
        raise SystemExit(__doc__)
    model_dir, recording = sys.argv[1:3]
    try:
        model = mcsp.from_pretrained(model_dir)
        if len(sys.argv) == 5:
            encoded = model.encode_bold(recording, t_r=float(sys.argv[4]), parcellation=sys.argv[3])
        elif recording.endswith((".tsv", ".1D", ".nii", ".nii.gz")):
            encoded = model.encode_bold(recording)
        else:
            encoded = model.encode_raw(recording)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    print(encoded.report)
    print(f"{encoded.features.size} features, mean over {len(encoded.window_features)} windows:")
    print(np.array2string(encoded.features, precision=3, threshold=12))


if __name__ == "__main__":
    main()
