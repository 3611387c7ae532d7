"""One rank of the tests of skipped steps: what must change nothing, and which data a run reads when some are bad."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mcsp import distributed
from mcsp.config import PretrainConfig
from mcsp.training import engine
from mcsp.training.reading.loader import StepDataset
from mcsp.training.run import Run
from mcsp.training.stopping import RunEnded
from mcsp.training.trainer import Trainer


def take(trainer: Trainer, data: int, limit: float = math.inf, spoil: bool = False) -> float:
    batches = trainer.dataset[data]
    embedded = trainer.embed(batches)
    share, _ = trainer.loss(embedded)
    if spoil and distributed.rank() == 1:
        embedded.z_MnK.register_hook(lambda grad: torch.full_like(grad, math.nan))
    trainer.backward(share, embedded, batches)
    return trainer.engine.step(1e-3, lambda norm, _: norm <= limit)[0]


def refused_steps_change_nothing(out: str, overrides: list[str]) -> None:
    for stage in range(4):
        found = []
        for refused in (False, True):
            own = [f"run_dir={out}-{stage}-{refused}", f"deepspeed=configs/deepspeed/zero{stage}.json"]
            trainer = Trainer(PretrainConfig.load(None, [*overrides, *own]))
            norms = [take(trainer, 0)]
            if refused:
                bad = take(trainer, 5, spoil=True)
                assert not math.isfinite(bad), f"ZeRO-{stage}: rank 1 had NaN gradients, the norm is {bad}"
                large = take(trainer, 6, limit=norms[0] / 1e6)
                assert math.isfinite(large) and large > norms[0] / 1e6, f"ZeRO-{stage}: norm {large}"
            norms.append(take(trainer, 1))
            z_MnK = trainer.embed(trainer.dataset[2]).z_MnK.detach()
            found.append((norms, distributed.gather_rows(z_MnK, dim=1)))
        assert found[0][0] == found[1][0], f"ZeRO-{stage}: norms {found[0][0]} and {found[1][0]}"
        assert torch.equal(found[0][1], found[1][1]), f"ZeRO-{stage}: a refused step changed weights or moments"


class Damaged(StepDataset):
    """Windows of rank 1 that are not finite where the data is bad; keeps a list of what was read."""

    bad: Callable[[int], bool]
    read: list[int]

    def __getitem__(self, step: int):
        self.read.append(step)
        batches = super().__getitem__(step)
        if not self.bad(step) or distributed.rank() != 1:
            return batches
        signals = {m: s.replace(x_BCT=torch.full_like(s.x_BCT, math.nan)) for m, s in batches[0].signals.items()}
        return [replace(batches[0], signals=signals), *batches[1:]]


def run(overrides: list[str], bad: Callable[[int], bool], stop_at: int = 10**9) -> tuple[list[int], str, Trainer]:
    holder: list[Trainer] = []
    trainer = Trainer(
        PretrainConfig.load(None, overrides),
        asked=lambda: "test" if distributed.rank() == 1 and holder[0].step + 1 == stop_at else "",
    )
    holder.append(trainer)
    trainer.dataset.__class__ = Damaged
    trainer.dataset.bad, trainer.dataset.read = bad, []
    try:
        Run(trainer).go()
    except RunEnded as end:
        return trainer.dataset.read, end.reason, trainer
    return trainer.dataset.read, "", trainer


def main(out: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    refused_steps_change_nothing(f"{out}/refused", list(overrides))
    both = [*overrides, "steps=8", "checkpoint_every=4", "keep_checkpoints=9", "health.rollback_after=3"]

    read, why, trainer = run([*both, f"run_dir={out}/single"], lambda data: data == 5)
    found: dict[str, Any] = {"single": {"read": read, "why": why, **trainer.health.state()}}
    clock = trainer.clock
    found["single"] |= {"phases": len(clock._marks), "waits": len(clock._waits)}

    def bad(data: int) -> bool:
        return 5 <= data <= 9

    read, why, trainer = run([*both, f"run_dir={out}/range"], bad)
    found["range"] = {"read": read, "why": why, **trainer.health.state()}
    # The same, stopped after step 7, while steps are being skipped; and again behind the rollback, after step 6.
    parts = [run([*both, f"run_dir={out}/stopped"], bad, stop)[0] for stop in (7, 6, 0)]
    found["stopped"] = {"read": [data for part in parts for data in part]}
    read, why, trainer = run([*both, f"run_dir={out}/hopeless", "health.max_rollbacks=1"], lambda data: data >= 5)
    found["hopeless"] = {"read": read, "why": why, **trainer.health.state()}
    # One good step is enough: its checkpoint is there to go back to. Without any there is no way.
    read, why, trainer = run([*both, f"run_dir={out}/early"], lambda data: 1 <= data <= 3)
    found["early"] = {"read": read, "why": why, **trainer.health.state()}
    _, why, _ = run([*both, f"run_dir={out}/never"], lambda data: True)
    found["never"] = {"why": why}
    (Path(out) / f"rank{distributed.rank()}.json").write_text(json.dumps(found))
    engine.stop_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
