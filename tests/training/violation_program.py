"""One rank of the test that ranks which touch different parameters are stopped: it prints what each way was told."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mcsp import distributed
from mcsp.config import PretrainConfig
from mcsp.training import engine
from mcsp.training.saving import state as fragments
from mcsp.training.trainer import Trainer


def told(trainer: Trainer, lacking: str) -> str:
    """The complaint about a step in which rank 1 lacks something; empty if there is none."""
    batches, model = trainer.dataset[0], trainer.module.model
    project = model.project
    if distributed.rank() == 1 and lacking == "fmri":
        batches = [replace(b, signals={m: s for m, s in b.signals.items() if m != lacking}) for b in batches]
    elif distributed.rank() == 1 and lacking:
        model.project = lambda m, d, h_BD: project(m, d, h_BD.detach() if f"{m}_{d}" == lacking else h_BD)
    try:
        trainer.train_step(batches)
    except ValueError as error:
        return str(error)
    finally:
        model.project = project
    return ""


def owned(trainer: Trainer) -> list[fragments.Fragment]:
    return list(fragments.owned(trainer.engine._engine))


def main(out: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    config = PretrainConfig.load(None, [*overrides, f"run_dir={out}-bf16", "precision=bf16", "weight_decay=0.5"])
    start = Trainer(config.model_copy(update={"deepspeed": Path("configs/deepspeed/zero0.json")}))
    rounded = {f.name: torch.equal(f.values["weight"], f.values["weight"].bfloat16().float()) for f in owned(start)}
    found["made"] = [all(rounded.values()), fragments.applied_steps(start.engine._engine)]
    batches = start.dataset[0]
    embedded = start.embed(batches)
    start.backward(start.loss(embedded)[0], embedded, batches)
    gradients = [p.grad for p in start.module.parameters() if p.grad is not None]
    exact = torch.stack([gradient.double().square().sum() for gradient in gradients]).sum().sqrt()
    found["norm"] = [float(start.engine._stage0_norm()), float(exact)]
    for stage, lacking in ((1, ""), (1, "fmri"), (3, "fmri"), (2, "eeg_spectral")):
        own = [f"run_dir={out}-{stage}{lacking}", f"deepspeed=configs/deepspeed/zero{stage}.json"]
        found[f"{stage}/{lacking}"] = told(Trainer(PretrainConfig.load(None, [*overrides, *own])), lacking)
    Path(f"{out}.{distributed.rank()}").write_text(json.dumps(found))
    engine.stop_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
