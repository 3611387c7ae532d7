"""One rank of the test of refused steps: a gradient not finite or too large changes nothing at any ZeRO stage."""

import math
import sys
from collections.abc import Callable

import torch

from mcsp import distributed
from mcsp.config import PretrainConfig
from mcsp.training import engine
from mcsp.training.trainer import Trainer


def take(trainer: Trainer, data: int, limit: float = math.inf, spoil: Callable[[torch.Tensor], None] | None = None):
    batches = trainer.dataset[data]
    embedded = trainer.embed(batches)
    share, _ = trainer.loss(embedded)
    handles = []
    if spoil and distributed.rank() == 1:
        z_MnK = embedded.z_MnK
        handles.append(z_MnK.register_hook(lambda grad: spoil(grad)))
    trainer.backward(share, embedded, batches)
    norm = trainer.engine.step(1e-3, limit)
    for handle in handles:
        handle.remove()
    return norm


def nan(grad: torch.Tensor) -> torch.Tensor:
    return torch.full_like(grad, math.nan)


def main(out: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    for stage in range(4):
        found = []
        for refused in (False, True):
            own = [f"run_dir={out}-{stage}-{refused}", f"deepspeed=configs/deepspeed/zero{stage}.json"]
            trainer = Trainer(PretrainConfig.load(None, [*overrides, *own]))
            norms = [take(trainer, 0)]
            if refused:
                bad = take(trainer, 5, spoil=nan)
                assert not math.isfinite(bad), f"ZeRO-{stage}: rank 1 had NaN gradients, the norm is {bad}"
                large = take(trainer, 6, limit=norms[0] / 1e6)
                assert math.isfinite(large) and large > norms[0] / 1e6, f"ZeRO-{stage}: norm {large}"
            norms.append(take(trainer, 1))
            z_MnK = trainer.embed(trainer.dataset[2]).z_MnK.detach()
            found.append((norms, distributed.gather_rows(z_MnK, dim=1)))
        assert found[0][0] == found[1][0], f"ZeRO-{stage}: norms {found[0][0]} and {found[1][0]}"
        assert torch.equal(found[0][1], found[1][1]), f"ZeRO-{stage}: a refused step changed weights or moments"
    engine.stop_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
