"""
5. Add a loss, an augmentation or a file format
===============================================

You want to change the method or to read another file. This tutorial shows which files to touch. It tries each change
outside of them first, on real objects of the package.

You need ``pip install 'mcsp-pretraining[corpus,train]'``.
"""

# %%
# A loss
# ------
# A term of the loss is a function of the embeddings of one view pair. As an example we take the covariance term of
# VICReg (`arXiv 2105.04906 <https://arxiv.org/abs/2105.04906>`__), which makes the numbers of an embedding independent.

import csv
import shlex
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from mcsp.augmentations.views import uniform
from mcsp.batch import Signal
from mcsp.commands.main import run
from mcsp.data_sharding.demo.simulate import (
    electrode_positions_mm,
    parcel_lattice,
    simulate_subject,
)
from mcsp.data_sharding.demo.sites import SIMULATED_A
from mcsp.page import COLOURS

WORK = Path("tutorial_output")


def covariance_loss(z_BK: Tensor) -> Tensor:
    """Sum of squared covariances of different numbers of z, over K (VICReg, equation 3)."""
    z_BK = z_BK - z_BK.mean(0)
    covariance_KK = z_BK.T @ z_BK / (len(z_BK) - 1)
    return (
        covariance_KK.square().sum() - covariance_KK.diagonal().square().sum()
    ) / z_BK.shape[1]


torch.manual_seed(0)
independent_BK = torch.randn(512, 16, dtype=torch.float64)
copied_BK = independent_BK[:, :8].repeat(1, 2).requires_grad_()
print(
    f"independent {covariance_loss(independent_BK):.3f}, copied {covariance_loss(copied_BK):.3f}"
)
print(
    "gradient agrees:",
    torch.autograd.gradcheck(
        covariance_loss, copied_BK[:6].detach().requires_grad_()
    ),
)

# %%
# To keep it, touch these files:
#
# ================================== ====================================================================
# file                               change
# ================================== ====================================================================
# ``mcsp/losses/covariance.py``      the function, over the rows of all ranks (``gather_columns``)
# ``mcsp/losses/objective.py``       its line in ``objective``, its name in the log
# ``mcsp/config/model.py``           its weight in ``ObjectiveConfig``, with a description; default 0
# ``tests/losses/``                  a formula in float64; shares of two ranks add up to the whole batch
# ``docs/method.md``                 the formula and its source
# ================================== ====================================================================
#
# An augmentation
# ---------------
# A view is a pure function of a signal and a key for each row. No generator has a state, so a view is the same on any
# number of ranks. This one turns the sign of a whole recording, as swapped electrode leads would.


def flip_sign(signal: Signal, probability: float, key_B: Tensor) -> Signal:
    """Multiply a row by -1 with a probability."""
    flipped_B = (
        uniform(key_B, 1001) < probability
    )  # a number of its own in mcsp.schema.Purpose
    return signal.replace(
        x_BCT=torch.where(flipped_B[:, None, None], -signal.x_BCT, signal.x_BCT)
    )


x_CT = torch.from_numpy(simulate_subject(SIMULATED_A, 0).eeg_uv_CT[:, :1000])
rows, (channels, samples) = 8, x_CT.shape
positions_C3 = torch.from_numpy(
    electrode_positions_mm(SIMULATED_A.channels)
).float()
signal = Signal(
    x_BCT=x_CT.expand(rows, -1, -1).clone(),
    sfreq_B=torch.full((rows,), SIMULATED_A.eeg_sfreq),
    channel_valid_BC=torch.ones(rows, channels, dtype=torch.bool),
    time_valid_BT=torch.ones(rows, samples, dtype=torch.bool),
    position_BC3=positions_C3.expand(rows, -1, -1),
    position_valid_BC=torch.ones(rows, channels, dtype=torch.bool),
    sample_B=torch.arange(rows),
    key_B=torch.arange(rows),
)
view = flip_sign(signal, 0.5, signal.key_B)
assert torch.equal(view.x_BCT, flip_sign(signal, 0.5, signal.key_B).x_BCT)
figure, panel = plt.subplots(figsize=(7, 3.5), layout="constrained")
time = np.arange(samples) / SIMULATED_A.eeg_sfreq
for row in range(4):
    panel.plot(
        time, signal.x_BCT[row, 0] - 120 * row, color="grey", linewidth=0.8
    )
    panel.plot(
        time, view.x_BCT[row, 0] - 120 * row, color=COLOURS[row], linewidth=0.8
    )
panel.set(
    xlabel="time [s]",
    ylabel="four rows, [uV], shifted",
    yticks=[],
    title="before (grey) and after",
)
plt.show()

# %%
# To keep it, touch ``mcsp/augmentations/views.py`` (the function, and where it is applied),
# ``mcsp/schema.py`` (the number in ``Purpose``), ``AugmentationConfig`` in ``mcsp/config/model.py`` (its strength) and
# ``tests/augmentations``.
#
# A file format
# -------------
# Many formats need no code. ``mcsp write-bids`` takes a table with a row per file and writes BIDS: tables of time
# series, arrays, images, CIFTI, and EEG in one file. Columns that it does not know become labels of the person.

_, places = parcel_lattice(60)
lines = [
    f"{i}\t{x:.1f}\t{y:.1f}\t{z:.1f}" for i, (x, y, z) in enumerate(places, 1)
]
WORK.mkdir(exist_ok=True)
(WORK / "parcels.tsv").write_text(
    "label\tx_mm\ty_mm\tz_mm\n" + "\n".join(lines) + "\n"
)
np.save(WORK / "series.npy", simulate_subject(SIMULATED_A, 0).bold_PT.T)
with open(WORK / "manifest.csv", "w", newline="") as table:
    csv.writer(table).writerows(
        [
            ("path", "subject", "site", "t_r", "diagnosis"),
            ("series.npy", "17", "ours", "2.0", "control"),
        ]
    )
assert (
    run(
        shlex.split(
            f"write-bids {WORK}/manifest.csv {WORK}/written --atlas {WORK}/parcels.tsv"
        )
    )
    == 0
)
print(
    *sorted(
        path.relative_to(WORK)
        for path in (WORK / "written").rglob("*")
        if path.is_file()
    ),
    sep="\n",
)

# %%
# A format that needs code is a reader and its check:
#
# * EEG: ``_READERS`` and ``_CHECKS`` in ``data_sharding/clean/eeg_files.py``, and the suffix in
#   ``EEG_EXTENSIONS`` of ``data_sharding/bids/ref.py``.
# * BOLD: ``data_sharding/clean/fmri_files.py``.
# * A test that writes such a file and reads back the same values in uV, and one with a file cut short.
#
# ``CONTRIBUTING.md`` has the order of the folders, the tests and the words.
