"""
1. A consortium's corpus: build, look, check, hand over
=======================================================

You are the data engineer of a consortium. Each site sends a BIDS dataset. This tutorial turns two of them into one
corpus, looks at what was kept and what was refused, and checks the corpus before it goes to those who train.

You need ``pip install 'mcsp-pretraining[corpus]'`` and matplotlib.
"""

# %%
# The recordings
# --------------
# Two simulated sites with simultaneous EEG and BOLD take the place of yours. They differ in montage, parcellation and rates.
# We then cut one file in half, as an interrupted copy would.

import hashlib
import os
import shlex
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from mcsp.commands.main import run
from mcsp.data_sharding.store.reader import Corpus
from mcsp.page import COLOURS

WORK = Path("tutorial_output")


def mcsp(line: str) -> None:
    """Run ``mcsp ...`` as if you had typed it in a terminal."""
    assert run(shlex.split(line)) == 0


mcsp(
    f"demo-sites {WORK}/bids --only simulated-a simulated-b --subjects 12 --seconds 100"
)
broken = next((WORK / "bids" / "simulated-b").glob("sub-003/eeg/*_eeg.edf"))
broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])

# %%
# Build
# -----
# A corpus holds no subject identifiers. It holds hashes under a key that only you have. Keep the key: with it, a later
# build gives the same hashes. In a terminal, write ``export MCSP_SUBJECT_KEY=$(openssl rand -hex 32)``. This page takes
# a key that everybody can read, since no person is in these recordings. Only the columns of ``participants.tsv`` that
# you name are stored.

KEY = hashlib.sha256(b"the tutorials' key, which is no secret").hexdigest()
os.environ["MCSP_SUBJECT_KEY"] = KEY
mcsp(
    f"build bids_root={WORK}/bids out_dir={WORK}/corpus workers=1 "
    "'participants_columns=[diagnosis]' samples_per_shard=12 "
    "'split_fractions=[0.6, 0.25, 0.15]'"
)

# %%
# The table has a row per site. One recording was rejected, and the build went on without it. The reason is stored in
# the corpus; :doc:`/reasons` says what to do. If you repair the file and run the same command again, the build
# makes only the shard that changes.

(rejected,) = (WORK / "corpus").glob("rejected-*.jsonl")
print(rejected.read_text())

# %%
# Look
# ----
# ``report.html`` in the corpus shows every site; open it in a browser. Python reads any window by its position.
# Values come in physical units: EEG in uV, BOLD in percent signal change.

corpus = Corpus(WORK / "corpus")
key, recordings = next(iter(corpus.samples("train").items()))
figure, panels = plt.subplots(2, 1, figsize=(7, 5), layout="constrained")
for recording, colour, panel in zip(
    recordings, COLOURS[:2], panels, strict=True
):
    seconds = 10 if recording.modality == "eeg" else 80
    window = corpus.read_window(
        recording, start=0, n_samples=int(seconds * recording.sfreq)
    )
    time = np.arange(len(window.x_TC)) / recording.sfreq
    step = 6 * np.nanstd(window.x_TC)
    panel.plot(
        time,
        window.x_TC[:, :8] + step * np.arange(8),
        color=colour,
        linewidth=0.8,
    )
    panel.set(
        title=f"{recording.modality}, 8 of {window.x_TC.shape[1]} channels",
        xlabel="time [s]",
    )
    panel.set(ylabel=f"[{recording.unit}], shifted", yticks=[])
plt.show()

# %%
# Check and hand over
# -------------------
# ``lint`` reads every byte back and compares it with the index. With ``--privacy`` it looks for dates, names, record
# numbers and paths. Run both before you hand the corpus over.

mcsp(f"lint {WORK}/corpus")
mcsp(f"lint {WORK}/corpus --privacy")

# %%
# Then delete ``.build/``, which holds the private names, and copy the folder. The receiver runs ``mcsp lint`` as well.
# :doc:`/corpus` is the guide for a real consortium: a Ray cluster, object stores, and the options of each site.
