"""The golden trace: loss and terms of ten steps of the nano model in plain torch, on windows of noise.

``python -m tests.training.golden`` writes ``assets/golden.json``. Do so only after a change that is meant to change the
numbers (initial weights, views, encoders, objective, optimizer), say so in the commit, and look at how they moved. A
change that is not meant to must leave the trace where it is. It needs no corpus: how one is built plays no part.

The test allows 1e-4 in the first step, where only rounding differs between machines, and 2e-2 later, because AdamW
divides by the size of gradients and so amplifies rounding.
"""

import json
from pathlib import Path

import torch

from mcsp.batch import Batch, Signal
from mcsp.config import PretrainConfig
from mcsp.losses.objective import objective
from mcsp.schema import Modality
from mcsp.training.engine import parameter_groups
from mcsp.training.pretrainer import Pretrainer

GOLDEN = Path(__file__).with_name("assets") / "golden.json"
STEPS, ROWS = 10, 6
SHAPES: dict[Modality, tuple[int, int, float]] = {"fmri": (12, 40, 0.5), "eeg": (8, 2000, 200.0)}


def batch(step: int) -> Batch:
    """Windows of noise with slow drifts, on channels at random places; two rows of each subject."""
    generator = torch.Generator().manual_seed(1000 + step)
    signals: dict[Modality, Signal] = {}
    for modality, (c, t, sfreq) in SHAPES.items():
        noise = torch.randn(ROWS, c, t, generator=generator)
        signals[modality] = Signal(
            x_BCT=10 * (noise + noise.cumsum(-1) / t**0.5),
            sfreq_B=torch.full((ROWS,), sfreq),
            channel_valid_BC=torch.ones(ROWS, c, dtype=torch.bool),
            time_valid_BT=torch.ones(ROWS, t, dtype=torch.bool),
            position_BC3=40 * torch.randn(ROWS, c, 3, generator=generator),
            position_valid_BC=torch.ones(ROWS, c, dtype=torch.bool),
            sample_B=torch.arange(ROWS),
            key_B=torch.randint(2**62, (ROWS,), generator=generator),
        )
    return Batch(signals, torch.arange(ROWS) // 2, torch.zeros(ROWS, dtype=torch.int64), tuple("abcdef"))


def trace() -> list[dict[str, float]]:
    """Loss and unweighted terms of every step."""
    config = PretrainConfig.load(None, ["corpus_dir=none", "run_dir=none"])
    torch.manual_seed(config.seed)
    module = Pretrainer(config.model, config.objective, config.augmentation)
    optimizer = torch.optim.AdamW(parameter_groups(module, config.weight_decay), lr=1e-3, betas=(0.9, 0.98))
    found = []
    for step in range(STEPS):
        rows = batch(step)
        loss, terms = objective(
            *module(rows), rows.subject_N, rows.site_N, config.objective, module.terms, module.predictions
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        losses = {name: value for name, value in terms.items() if not name.startswith("top1/")}
        found.append({"loss": float(loss.detach()), **{name: float(value) for name, value in losses.items()}})
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    GOLDEN.parent.mkdir(exist_ok=True)
    steps = [{name: round(value, 7) for name, value in step.items()} for step in trace()]
    GOLDEN.write_text("[\n" + ",\n".join(json.dumps(step) for step in steps) + "\n]\n")
