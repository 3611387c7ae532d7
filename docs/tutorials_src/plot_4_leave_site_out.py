"""
4. BOLD parcel series of many sites: leave one site out
=======================================================

Does a classifier hold at a scanner that it has never seen? This tutorial takes parcel series in the layout in which
nilearn fetches ABIDE, builds a corpus of them, and tests each site with a classifier of the other sites.

You need ``pip install 'mcsp-pretraining[corpus,evaluate]'``.
"""

# %%
# The series
# ----------
# The true data come with one call of nilearn. Their terms are CC BY-NC-SA 3.0.
#
# .. code-block:: python
#
#    from nilearn.datasets import fetch_abide_pcp
#
#    fetch_abide_pcp(pipeline="cpac", band_pass_filtering=True, global_signal_regression=True,
#                    derivatives=["rois_cc200"], quality_checked=False)
#
# So that this page needs no network, we write simulated people in the same layout: three sites, forty-two people, 200
# parcels. As in ABIDE, the series have mean zero.

import csv
import hashlib
import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from mcsp.commands.main import run
from mcsp.data_sharding.demo.simulate import parcel_lattice
from mcsp.data_sharding.demo.simulate_consortium import (
    consortium,
    simulate_consortium_subject,
)
from mcsp.page import COLOURS

WORK = Path("tutorial_output")
FOLDER = WORK / "nilearn" / "ABIDE_pcp"
SERIES = FOLDER / "cpac" / "filt_global"
SITES = {"NYU": 2.0, "KKI": 2.5, "USM": 2.0}  # repetition times [s]
SERIES.mkdir(parents=True, exist_ok=True)
names, places = parcel_lattice(200)
people = [("SUB_ID", "SITE_ID", "FILE_ID", "DX_GROUP", "AGE_AT_SCAN", "SEX")]
age = np.random.default_rng(0).uniform(8, 30, 99).round(1)
for (name, t_r), simulated in zip(
    SITES.items(), consortium(3, 42, seed=5), strict=True
):
    site = replace(simulated, t_r=t_r, n_volumes=120)
    for index in range(site.n_subjects):
        person = simulate_consortium_subject(site, index)
        subject = 50000 + len(people)
        file = f"{name}_{subject:07d}"
        series_TP = (person.bold_PT - person.bold_PT.mean(1, keepdims=True)).T
        header = "\t".join(f"#{i}" for i in range(1, 201))
        np.savetxt(
            SERIES / f"{file}_rois_cc200.1D",
            series_TP,
            "%.4f",
            "\t",
            header=header,
            comments="",
        )
        group = {"case": 1, "control": 2}[person.label]
        people.append(
            (
                str(subject),
                name,
                file,
                str(group),
                str(age[len(people)]),
                str(1 + subject % 2),
            )
        )
with open(
    FOLDER / "Phenotypic_V1_0b_preprocessed1.csv", "w", newline=""
) as table:
    csv.writer(table).writerows(people)
rows = [
    f"{i}\t{x:.1f}\t{y:.1f}\t{z:.1f}" for i, (x, y, z) in enumerate(places, 1)
]
(WORK / "places.tsv").write_text(
    "label\tx_mm\ty_mm\tz_mm\n" + "\n".join(rows) + "\n"
)

# %%
# A corpus
# --------
# ``examples/abide.py`` reads the layout, knows the repetition time of every site, writes a BIDS dataset for each and
# builds the corpus. With the true data, leave ``--abide`` and ``--atlas`` out: nilearn fetches both.

KEY = hashlib.sha256(b"the tutorials' key, which is no secret").hexdigest()
os.environ["MCSP_SUBJECT_KEY"] = KEY
example = f"../../examples/abide.py {WORK}/abide --abide {WORK}/nilearn --atlas {WORK}/places.tsv --workers 1"
done = subprocess.run(
    [sys.executable, *shlex.split(example)],
    capture_output=True,
    text=True,
    check=False,
)
assert done.returncode == 0, done.stderr
print(done.stdout)

# %%
# Leave one site out
# ------------------
# Every site is tested once, by a classifier of all other sites. The export is compared with an untrained model and
# with the correlation of parcels, with the same classifier.

settings = "label=diagnosis 'protocols=[leave_site_out]' seeds=1 permutations=0 'label_fractions=[1.0]'"
places_of = f"model_dir={WORK}/model corpus_dir={WORK}/abide/corpus out_dir={WORK}/sites"
assert (
    run(shlex.split(f"evaluate {places_of} {settings} windows_per_recording=1"))
    == 0
)

# %%
# The picture has a point for each site and kind of features. With some fourteen people per site, the differences
# mean nothing. The README has the result on 522 people of ABIDE: the gain there comes from the read-out, not from
# pretraining.

found = json.loads((WORK / "sites" / "results.json").read_text())[
    "classification"
]
shown = [
    row
    for row in found
    if row["classifier"] == "linear SVM" and not row["transductive"]
][:6]
figure, panel = plt.subplots(figsize=(7, 4), layout="constrained")
for number, (row, colour) in enumerate(zip(shown, COLOURS, strict=False)):
    sites = sorted(row["per_site"])
    value, low, high = (
        np.array([row["per_site"][s][k] for s in sites])
        for k in ("value", "ci_low", "ci_high")
    )
    place = np.arange(len(sites)) + 0.1 * (number - len(shown) / 2)
    panel.errorbar(
        place,
        value,
        yerr=[value - low, high - value],
        fmt="o",
        color=colour,
        label=row["features"],
    )
panel.axhline(0.5, color="grey", linestyle=":")
panel.set(
    xticks=range(len(sites)),
    xticklabels=sites,
    ylim=(0, 1.03),
    ylabel="AUROC at the site left out",
)
figure.legend(loc="outside lower center", ncols=3)
plt.show()

# %%
# :doc:`/evaluation` explains intervals and baselines, and how the report measures what the features hold of the site.
