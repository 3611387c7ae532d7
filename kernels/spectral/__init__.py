"""Spectra of windows with any sampling rate and length; ``reference`` is the definition."""

from mcsp.kernels.spectral.power import log_power, log_power_frames
from mcsp.kernels.spectral.reference import BOLD_BANDS_HZ, EEG_BANDS_HZ, imaginary_coherence

__all__ = ["BOLD_BANDS_HZ", "EEG_BANDS_HZ", "imaginary_coherence", "log_power", "log_power_frames"]
