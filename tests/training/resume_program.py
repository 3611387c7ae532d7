"""One rank of the tests of resuming: runs, one after the other, each started where a part of another is copied to."""

import json
import shutil
import sys
from pathlib import Path

import torch

from mcsp import distributed
from mcsp.config import PretrainConfig
from mcsp.training import engine
from mcsp.training.run import Run
from mcsp.training.saving import checkpoint
from mcsp.training.trainer import Trainer


def main(runs: str, *overrides: str) -> None:
    """``runs``: JSON list of [run_dir, [override ...], checkpoint to begin with or null]."""
    torch.set_num_threads(1)
    engine.start_process_group()
    for run_dir, own, begin in json.loads(runs):
        if begin and distributed.is_main() and not Path(run_dir).exists():
            shutil.copytree(begin, checkpoint.checkpoint_path(Path(run_dir), checkpoint.step_of(Path(begin))))
        torch.distributed.barrier()
        Run(Trainer(PretrainConfig.load(None, [*overrides, f"run_dir={run_dir}", *own]))).go()
    engine.stop_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
