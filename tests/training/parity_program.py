"""One rank of the parity test: loss, terms, gradients and updated weights of one global batch, by ZeRO stage."""

import sys
from itertools import product
from pathlib import Path

import torch

from mcsp import distributed
from mcsp.config import PretrainConfig
from mcsp.training import engine
from mcsp.training.state import consolidate_weights
from mcsp.training.trainer import Trainer


def main(out: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    results = {}
    for stage, micro_batches in product(range(4), (1, 2)):
        own = [f"run_dir={out}-zero{stage}-{micro_batches}", f"deepspeed=configs/deepspeed/zero{stage}.json"]
        own += [f"micro_batches={micro_batches}"]
        config = PretrainConfig.load(None, [*overrides, *own])
        trainer = Trainer(config)
        batches = trainer.dataset[0]
        embedded = trainer.embed(batches)
        share, terms = trainer.loss(embedded)
        total = distributed.sum_over_ranks(torch.stack([share, *terms.values()]))
        trainer.backward(share, embedded, batches)
        gradients = trainer.engine.gradients()
        norm = trainer.engine.step(1e-3)
        trainer.step = 1
        trainer.save()
        weights = consolidate_weights(config.run_dir / "checkpoints" / "step-00000001")
        found = {"total": total, "gradients": gradients, "norm": norm, "weights": weights}
        results[stage, micro_batches] = found
    if distributed.is_main():
        torch.save(results, Path(out))
    engine.stop_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
