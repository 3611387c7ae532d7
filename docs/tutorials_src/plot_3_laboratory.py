"""
3. A laboratory: from a folder of EEG to a report
=================================================

You have labelled EEG of one laboratory and weights that somebody pretrained. This tutorial encodes the recordings,
compares the features with simpler ones, and classifies one more recording.

You need ``pip install 'mcsp-pretraining[corpus,evaluate]'``.
"""

# %%
# The recordings
# --------------
# Your folder is a BIDS dataset with a column ``diagnosis`` in ``participants.tsv``. Here we simulate one: sixteen
# subjects, a montage of ten electrodes that the pretraining never saw, one minute each.

import hashlib
import json
import os
import shlex
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import mcsp
from mcsp.commands.main import run
from mcsp.data_sharding.bids.write import (
    write_eeg,
    write_json,
    write_participants,
)
from mcsp.data_sharding.demo.simulate import simulate_subject
from mcsp.data_sharding.demo.sites import SIMULATED_A
from mcsp.page import COLOURS

WORK = Path("tutorial_output")
OURS = WORK / "our-lab"
KEY = hashlib.sha256(b"the tutorials' key, which is no secret").hexdigest()
os.environ["MCSP_SUBJECT_KEY"] = KEY
ELECTRODES = ("Fz", "F3", "F4", "C3", "Cz", "C4", "P3", "Pz", "P4", "Oz")
site = replace(
    SIMULATED_A,
    name="our-lab",
    n_subjects=16,
    channels=ELECTRODES,
    seconds=60.0,
    seed=7,
)
labels = []
for number in range(16):
    person = simulate_subject(site, number)
    about = {
        "SamplingFrequency": site.eeg_sfreq,
        "PowerLineFrequency": site.line_hz,
        "EEGReference": "n/a",
    }
    recording = write_eeg(
        OURS, f"{number:02d}", "rest", person.eeg_uv_CT, ELECTRODES, about
    )
    labels.append((f"sub-{number:02d}", person.label))
write_participants(
    OURS, {"diagnosis": {"Description": "simulated label"}}, labels
)
write_json(
    OURS / "dataset_description.json",
    {"Name": "our laboratory", "BIDSVersion": "1.10.0"},
)

# %%
# One recording
# -------------
# Three lines encode a file. ``report`` says what was done to it, and ``features`` are what a classifier reads. Each
# part of the features has a name. This model comes from the second tutorial and learned almost nothing.

model = mcsp.from_pretrained(WORK / "model")
eeg = model.encode_raw(recording)
print(eeg.report)
print(eeg.features.shape)
for part, width in model.feature_widths("eeg").items():
    print(f"  {part:15s} {width:5d}")

# %%
# All recordings, compared
# ------------------------
# ``mcsp encode`` writes such features to a table. ``mcsp evaluate`` goes further: it cleans the folder as the
# pretraining did, trains a classifier in every fold, and does the same with an untrained model and with classical
# features. A gain over those is what pretraining is worth to you.


def command(line: str) -> None:
    """Run ``mcsp ...`` as if you had typed it in a terminal."""
    assert run(shlex.split(line)) == 0


command(
    f"evaluate model_dir={WORK}/model bids_root={OURS} out_dir={WORK}/evaluation label=diagnosis "
    "'protocols=[kfold]' folds=4 seeds=1 permutations=0 'label_fractions=[0.5, 1.0]' windows_per_recording=2"
)

# %%
# ``report.html`` in ``out_dir`` shows all of it in a browser, and ``results.json`` holds the same numbers. Sixteen
# subjects are too few for a conclusion: look at the width of the intervals.

rows = json.loads((WORK / "evaluation" / "results.json").read_text())[
    "classification"
]
rows = [
    row
    for row in rows
    if row["classifier"] == "linear SVM" and not row["transductive"]
]
score = np.array(
    [
        [row["auroc"][key] for key in ("value", "ci_low", "ci_high")]
        for row in rows
    ]
)
figure, panel = plt.subplots(
    figsize=(7, 0.5 + 0.4 * len(rows)), layout="constrained"
)
reach = np.abs(score[:, 1:] - score[:, :1]).T
panel.errorbar(
    score[:, 0],
    np.arange(len(rows)),
    xerr=reach,
    fmt="o",
    color=COLOURS[0],
    capsize=3,
)
panel.axvline(0.5, color="grey", linestyle=":")
panel.set(
    yticks=range(len(rows)),
    yticklabels=[row["features"] for row in rows],
    xlim=(0, 1.02),
)
panel.set(xlabel="AUROC of people left out, 95 % interval; 0.5 is chance")
panel.invert_yaxis()
plt.show()

# %%
# A new recording
# ---------------
# ``evaluate`` also wrote a classifier. It gives a class, a calibrated probability, and the distance of the
# recording from the training data. It is made for research. It is not a medical device.

command(
    f"predict {WORK}/evaluation/classifier {recording} --out {WORK}/predictions.tsv"
)
head, row = (
    line.split("\t")
    for line in (WORK / "predictions.tsv").read_text().splitlines()
)
print(
    *(f"{name:22s} {value}" for name, value in zip(head, row, strict=True)),
    sep="\n",
)

# %%
# That person was among those the classifier was trained on, so this only shows the form of the answer.
# :doc:`/downstream` has the scikit-learn transformer and the plain PyTorch module; :doc:`/evaluation` explains every
# number of the report.
