"""What the recipe makes of one fixed recording of each modality, as a hash: equal on machines that compute alike."""

import hashlib
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.find import Site, find_recordings
from mcsp.data_sharding.bids.write import write_eeg, write_json, write_parcellated_bold, write_parcellation
from mcsp.data_sharding.clean.readers import read_recording
from mcsp.data_sharding.store.encoding import encode

_CHANNELS = ["Fp1", "Fp2", "C3", "C4", "O1", "O2", "Cz", "Pz"]
_PARCELS = ["left", "right", "middle"]


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """SHA-256 over the stored bytes of a synthetic EDF file and a synthetic parcellated BOLD table.

    They pass reading, cleaning and encoding under the default configuration. Sums of a few sines and a linear
    congruential sequence, so that no random generator of a library is part of it.
    """
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(prefix="mcsp-fingerprint-") as folder:
        root = Path(folder)
        write_json(root / "dataset_description.json", {"Name": "fingerprint", "BIDSVersion": "1.10.0"})
        write_eeg(root, "1", "rest", _signals(len(_CHANNELS), 40 * 250), _CHANNELS, _EEG_SIDECAR)
        bold = 10_000 + _signals(len(_PARCELS), 120)
        write_parcellation(root, "three", _PARCELS, np.array([[-40.0, 0, 20], [40, 0, 20], [0, -50, 30]]))
        write_parcellated_bold(root, "1", "three", _PARCELS, bold, {"RepetitionTime": 1.5})
        config = CorpusConfig(bids_root=root, out_dir=root, min_seconds={"eeg": 0, "fmri": 0})
        for ref in find_recordings(Site("fingerprint", root, True, None)):
            clean = read_recording(ref, config)
            stored_TC, scale = encode(clean.x_TC, clean.channel_good_C)
            digest.update(f"{ref.modality} {stored_TC.shape} {scale}".encode() + stored_TC.tobytes())
    return digest.hexdigest()


_EEG_SIDECAR = {"SamplingFrequency": 250, "PowerLineFrequency": 50}


def _signals(n_channels: int, n_samples: int) -> np.ndarray:
    """Sines of three frequencies per channel plus pseudo-random steps, amplitude about 30, ``(C, T)``."""
    t = np.arange(n_samples)
    rows = []
    for channel in range(n_channels):
        sines = sum(20 / k * np.sin(2 * np.pi * t * (k + channel) / (31.7 * k)) for k in (1, 2, 3))
        noise = (t * 1103515245 + 12345 + channel * 99991) % 65521 / 65521 - 0.5
        rows.append(sines + 10 * noise)
    return np.array(rows)
