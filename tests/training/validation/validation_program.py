"""One rank of the tests of evaluations: runs that are whole and stopped, and the last weights at other ZeRO stages."""

import json
import sys
from collections import Counter
from pathlib import Path

import torch

from mcsp import distributed
from mcsp.batch import Signal
from mcsp.config import PretrainConfig
from mcsp.schema import Modality
from mcsp.training import engine
from mcsp.training.run import Run
from mcsp.training.trainer import Trainer
from mcsp.training.validation.evaluations import Evaluations


def run(overrides: list[str], stop_at: int = 10**9) -> None:
    holder: list[Trainer] = []
    config = PretrainConfig.load(None, overrides)
    holder.append(Trainer(config, asked=lambda: "test" if holder[0].step + 1 == stop_at else ""))
    Run(holder[0]).go()


def evaluated(overrides: list[str]) -> tuple[dict[str, float], Counter[str]]:
    """The values, and of how many windows of each modality this rank encoded the halves."""
    validation = Evaluations(Trainer(PretrainConfig.load(None, [*overrides, "resume=must"])), None).validation
    assert validation is not None
    encode, windows = validation._of_halves, Counter[str]()

    def counted(modality: Modality, signal: Signal) -> dict[str, torch.Tensor]:
        windows[modality] += len(signal)
        return encode(modality, signal)

    validation._of_halves = counted  # type: ignore[method-assign]
    return validation.evaluate(), windows


def main(out: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    both = [*overrides, "steps=4", "keep_best=half_error/eeg/spatial", f"run_dir={out}/whole"]
    found: dict[str, object] = {}
    if distributed_world() > 1:
        run(both)
        for stop in (1, 3, 0):
            run([*both, f"run_dir={out}/stopped"], stop)
        found["zero3"], _ = evaluated([*both, "deepspeed=configs/deepspeed/zero3.json"])
    found["zero1"], _ = evaluated(both)
    if distributed.world_size() == 1:
        found["of 32 windows"] = evaluated([*both, "validation_batches=4"])
    (Path(out) / f"world{distributed.world_size()}-rank{distributed.rank()}.json").write_text(json.dumps(found))
    engine.stop_process_group()


def distributed_world() -> int:
    engine.start_process_group()
    return distributed.world_size()


if __name__ == "__main__":
    main(*sys.argv[1:])
