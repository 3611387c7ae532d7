"""
2. Pretraining on two ranks: start, watch, continue, export
===========================================================

You are the training engineer. This tutorial pretrains the smallest model on the corpus of the first tutorial, with two
processes on one machine. It stops, continues, draws the run, and exports the weights.

It takes half a minute of processor time. You need ``pip install 'mcsp-pretraining[train]'``. A graphics card is used
where there is one.
"""

# %%
# Start
# -----
# ``--ranks 2`` starts DeepSpeed on this machine. A batch of eight subjects and ten steps show how it works. They teach
# the model nothing.

import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from mcsp.commands.main import run
from mcsp.run_log import read_metrics

WORK = Path("tutorial_output")
SETTINGS = [
    f"corpus_dir={WORK}/corpus",
    f"run_dir={WORK}/run",
    "schedule_steps=10",
    "batch={paired: 8, eeg: 0, fmri: 0}",
    "window_seconds={eeg: 10, fmri: 40}",
    "warmup_steps=2",
    "checkpoint_every=5",
    "validate_every=5",
    "validation_batches=1",
]


def pretrain(*words: str) -> None:
    """Run ``mcsp pretrain --ranks 2 ...`` as a terminal does, and show what it prints."""
    command = [sys.executable, "-m", "mcsp", "pretrain", "--ranks", "2", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)


os.environ.setdefault("OMP_NUM_THREADS", "1")
pretrain(*SETTINGS, "steps=6")

# %%
# Watch
# -----
# Every step writes a line to ``metrics.jsonl`` with all terms of the loss, by name. TensorBoard reads the same folder:
# ``tensorboard --logdir tutorial_output/run``.

last = read_metrics(WORK / "run")[-1]
for name in ("step", "loss", "samples_per_second", "data_wait_fraction"):
    print(f"{name:20s} {last[name]:.4g}")

# %%
# Continue
# --------
# The same command continues from the last checkpoint, here with more steps. The number of ranks may differ, because
# what a step reads depends on the corpus, the seed and the step alone (:doc:`/loading`). A run that was killed, or
# stopped with SIGTERM or a file ``STOP`` in its folder, continues in the same way. ``mcsp plot`` draws the run.

pretrain(*SETTINGS, "steps=10")
assert run(["plot", f"{WORK}/run", "--out", f"{WORK}/run.png"]) == 0
image = plt.imread(WORK / "run.png")
figure = plt.figure(figsize=(8, 8 * image.shape[0] / image.shape[1]), dpi=160)
figure.add_axes((0, 0, 1, 1)).imshow(image)
plt.axis("off")
plt.show()

# %%
# Export
# ------
# An export is a folder with ``model.safetensors``, the settings, the constants of the cleaning and a model card. It
# loads without DeepSpeed, and nothing in it is unpickled.

assert run(["export", f"{WORK}/run", f"{WORK}/model"]) == 0
print(*sorted(path.name for path in (WORK / "model").iterdir()), sep="\n")

# %%
# On a cluster
# ------------
# The command stays the same and a scheduler starts it:
#
# * **Hosts that you log in to**: ``deepspeed --hostfile hosts launchers/pretrain.py ...``
# * **Slurm**: ``launchers/slurm`` holds a job file. It sends SIGUSR1 before the time limit, the run saves and ends with
#   status 75, and the job queues itself again.
# * **Kubernetes**: ``launchers/kubernetes`` holds the manifests of a job with one pod for each host.
#
# ``mcsp pretrain --check ...`` says what a run would need in memory, hours and disk. :doc:`/training` has the details.
