"""Draw the response of the one pass over EEG above that of MNE's filters, and their difference: docs/eeg-filter.png.

.venv/bin/python benchmarks/studies/eeg_filter_response.py
"""

from pathlib import Path

import matplotlib
import mne
import numpy as np
import scipy.fft

from mcsp.config import EegConfig
from mcsp.data_sharding.clean.eeg import kernels_of, line_harmonics, response

OUT = Path(__file__).parents[2] / "docs" / "eeg-filter.png"
SFREQ, LINE_HZ, N = 500.0, 50.0, 1 << 17


def mne_response(config: EegConfig) -> np.ndarray:
    """Amplitude response of ``notch_filter`` and ``filter_data``, from an impulse."""
    impulse = np.zeros((1, N))
    impulse[0, N // 2] = 1.0
    notched = mne.filter.notch_filter(impulse, SFREQ, line_harmonics(LINE_HZ, SFREQ, config), verbose="ERROR")
    filtered = mne.filter.filter_data(notched, SFREQ, config.highpass_hz, config.lowpass_hz, verbose="ERROR")
    return np.abs(scipy.fft.rfft(filtered[0]))


def main() -> None:
    """Draw and write."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    config = EegConfig()
    hz = scipy.fft.rfftfreq(N, 1 / SFREQ)
    ours = np.abs(response(kernels_of(SFREQ, config, LINE_HZ), N))
    theirs = mne_response(config)
    ours, theirs = (np.where(hz > config.sfreq / 2, 0.0, r) for r in (ours, theirs))  # resampling ends the band
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 5.5), sharex="col", layout="constrained")
    for column, (low, high) in enumerate(((0, 3), (40, 110))):
        shown = (hz >= low) & (hz <= high)
        for values, style, label in ((theirs, "-", "MNE: notch, band-pass, resample"), (ours, "--", "one pass")):
            axes[0, column].plot(hz[shown], 20 * np.log10(np.maximum(values[shown], 1e-6)), style, label=label)
        axes[1, column].plot(hz[shown], np.abs(ours - theirs)[shown], color="black", linewidth=0.8)
        axes[1, column].set_xlabel("Hz")
        axes[0, column].set_ylim(-90, 5)
    axes[0, 0].set_ylabel("response [dB]")
    axes[1, 0].set_ylabel("|difference of responses|")
    axes[0, 0].legend(loc="lower right")
    figure.suptitle(f"{SFREQ:g} Hz, line at {LINE_HZ:g} Hz, to {config.sfreq:g} Hz (MNE {mne.__version__})")
    figure.savefig(OUT, dpi=110, metadata={"Software": None})
    print(f"largest difference {np.abs(ours - theirs).max():.2g}; wrote {OUT}")


if __name__ == "__main__":
    main()
