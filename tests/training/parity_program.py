"""One rank of the parity test: loss, terms, gradients and updated weights of one global batch, by ZeRO stage."""

import sys
from pathlib import Path

import torch

from mcsp import distributed
from mcsp.config import PretrainConfig
from mcsp.training import engine
from mcsp.training.trainer import Trainer


def main(out: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    results = {}
    for stage in range(4):
        own = [f"run_dir={out}-zero{stage}", f"deepspeed=configs/deepspeed/zero{stage}.json"]
        config = PretrainConfig.load(None, [*overrides, *own])
        trainer = Trainer(config)
        share, terms = trainer.loss(trainer.dataset[0])
        total = distributed.sum_over_ranks(torch.stack([share, *terms.values()]))
        trainer.engine.backward(share)
        gradients = trainer.engine.gradients()
        norm = trainer.engine.step(1e-3)
        trainer.step = 1
        trainer.save()
        weights = engine.consolidate_weights(config.run_dir / "checkpoints" / "step-00000001")
        results[stage] = {"total": total, "gradients": gradients, "norm": norm, "weights": weights}  # fmt: skip
    if distributed.is_main():
        torch.save(results, Path(out))
    engine.stop_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
