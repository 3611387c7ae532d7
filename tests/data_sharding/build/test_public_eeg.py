"""Recordings of PhysioNet's "EEG during mental arithmetic" (Zyma et al. 2019, Data 4:14), where somebody has them.

``MCSP_EEGMAT`` names the folder with ``SubjectNN_1.edf`` and ``SubjectNN_2.edf``; nothing of them is in this project.
"""

import os
from pathlib import Path

import mne
import numpy as np
import pytest

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.write import write_json
from mcsp.data_sharding.build.corpus import build_corpus
from mcsp.data_sharding.build.pseudonyms import subject_hash
from mcsp.data_sharding.store.reader import Corpus
from tests.data_sharding.conftest import DESCRIPTION, KEY

FOLDER = os.environ.get("MCSP_EEGMAT")
# As the files name them, without "EEG ".
CHANNELS = ["Fp1", "Fp2", "F3", "F4", "F7", "F8", "T3", "T4", "C3", "C4"]
CHANNELS += ["T5", "T6", "P3", "P4", "O1", "O2", "Fz", "Cz", "Pz"]
TASKS = {"1": "rest", "2": "arithmetic"}

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FOLDER, reason="MCSP_EEGMAT names no folder of recordings")]


def expected_uv(path: Path, good_C: np.ndarray) -> np.ndarray:
    """MNE's own chain: 0.5 to 75 Hz, 200 Hz, average of the good electrodes; ``(C, T)``.

    By polyphase filters: by FFT MNE pads to a power of two, which is no whole number of samples at the new rate, and
    shifts the recording by half a sample.
    """
    raw = mne.io.read_raw_edf(path, include=[f"EEG {name}" for name in CHANNELS], preload=True, verbose="error")
    x_CT = raw.filter(0.5, 75, verbose="error").resample(200, method="polyphase", verbose="error").get_data() * 1e6
    return x_CT - x_CT[good_C].mean(axis=0)


def test_every_recording_is_stored_as_mne_would_process_it(tmp_path: Path, ray_here: None) -> None:
    files = sorted(Path(FOLDER or "").glob("Subject*_?.edf"))
    assert len(files) >= 2
    root = tmp_path / "bids/eegmat"
    write_json(root / "dataset_description.json", DESCRIPTION)
    for file in files:
        subject, part = file.stem.removeprefix("Subject").split("_")
        path = root / f"sub-{subject}/eeg/sub-{subject}_task-{TASKS[part]}_eeg.edf"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(file.absolute())
    index, _ = build_corpus(
        CorpusConfig(
            bids_root=root.parent,
            out_dir=tmp_path / "corpus",
            max_quarantined=0.0,
            trusted_link_targets=[Path(FOLDER or "")],
        )
    )
    assert index["totals"]["all"]["recordings"] == len(files) and index["reasons"] == {}
    corpus = Corpus(tmp_path / "corpus")
    stored = {(r.subject, r.task): r for r in corpus.recordings}
    lowest = 1.0
    for file in files:
        subject, part = file.stem.removeprefix("Subject").split("_")
        r = stored[subject_hash(KEY.encode(), "eegmat", subject), TASKS[part]]
        assert r.channels == [{"T3": "T7", "T4": "T8", "T5": "P7", "T6": "P8"}.get(name, name) for name in CHANNELS]
        good_C = np.array(r.channel_good)
        x_TC = corpus.read_window(r, 0, r.n_samples).x_TC
        truth_CT = expected_uv(file, good_C)[:, : len(x_TC)]
        inner = slice(1000, -1000)  # MNE pads otherwise at the ends
        for c in range(len(CHANNELS)):
            lowest = min(lowest, float(np.corrcoef(x_TC[inner, c], truth_CT[c, inner])[0, 1]))
    print(f"{len(files)} recordings, {len(CHANNELS)} channels each, lowest correlation {lowest:.6f}")
    assert lowest > 0.999
