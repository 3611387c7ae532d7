"""What one rank of 1,024 does, measured on a processor: its share of the contrast and of retrieval, and a checkpoint.

python benchmarks/studies/many_ranks.py            measures, writes benchmarks/results/many_ranks_cpu.json, prints
python benchmarks/studies/many_ranks.py --table    prints the table from the result file

One process plays rank 0: columns that others would send are noise, and it writes the files of a checkpoint that others
would write. Counted are operations that torch dispatches, and values read back from the device, of which a GPU would
have to be waited for.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mcsp.config import ModelConfig, ObjectiveConfig
from mcsp.kernels.contrastive import Columns, contrastive_loss, retrieval_accuracy
from mcsp.losses.objective import pair_terms, slots
from mcsp.training.saving.saver import Saver
from mcsp.training.saving.state import KINDS, Fragment, State, copy_state, write_ranges, write_state

RESULT = Path(__file__).parents[1] / "results" / "many_ranks_cpu.json"
RANKS, ROWS, WIDTH, REPEATS = 1024, 16, 128, 5
PARAMETERS, LENGTH = 200, 65_536  # of a model cut among ranks by ZeRO


class Counter(TorchDispatchMode):
    """Counts operations, and those that read a value back."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        name = str(func)
        self.waits += name.startswith(("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select"))
        return func(*args, **(kwargs or {}))


def measured(action: Callable[[], object]) -> dict[str, Any]:
    """Median and spread of processor seconds over repeats after one to warm up, and counts of one more."""
    seconds = []
    for repeat in range(REPEATS + 1):
        begin = time.process_time()
        action()
        if repeat:
            seconds.append(time.process_time() - begin)
    counter = Counter()
    with counter:
        action()
    quartiles = statistics.quantiles(seconds, n=4)
    return {
        "seconds": statistics.median(seconds), "quartiles": [quartiles[0], quartiles[2]],
        "operations": counter.operations, "waits": counter.waits,
    }  # fmt: skip


def objective_share() -> dict[str, Any]:
    """Contrast with its backward pass, and retrieval, of all pairs of a paired batch."""
    stack = slots(("fmri", "eeg"), ModelConfig().domains)
    pairs = [(term.a, term.b) for term in pair_terms(stack, ObjectiveConfig())]
    generator = torch.Generator().manual_seed(0)
    total = RANKS * ROWS
    z_MNK = torch.nn.functional.normalize(torch.randn(len(stack), total, WIDTH, generator=generator), dim=-1)
    subject_N, valid_MN = torch.arange(total) // 2, torch.ones(len(stack), total, dtype=torch.bool)
    columns = Columns(z_MNK, valid_MN, subject_N, torch.zeros_like(subject_N))
    scale_P = torch.full((len(pairs),), 10.0)
    own: dict[str, Any] = {"valid_Mn": valid_MN[:, :ROWS], "subject_n": subject_N[:ROWS], "columns": columns}

    def contrast() -> None:
        z_MnK: Tensor = z_MNK[:, :ROWS].clone().requires_grad_()
        contrastive_loss(z_MnK, pairs, scale_P, site_n=torch.zeros(ROWS, dtype=torch.int64), **own).sum().backward()

    def retrieval() -> None:
        retrieval_accuracy(z_MNK[:, :ROWS], pairs, **own)

    return {"pairs": len(pairs), "contrast": measured(contrast), "retrieval": measured(retrieval)}


def fragments(rank: int) -> list[Fragment]:
    """What ZeRO-3 leaves a rank of each parameter."""
    size = -(-LENGTH // RANKS)
    start = rank * size
    value = torch.zeros(min(size, LENGTH - start))
    return [Fragment(f"model.{i}", start, (LENGTH,), dict.fromkeys(KINDS, value)) for i in range(PARAMETERS)]


def checkpoint_share(folder: Path) -> dict[str, Any]:
    """Files that a rank opens at a start and how long that takes, with the list of ranges and without."""
    copies = [copy_state(fragments(rank), 1) for rank in range(RANKS)]
    names = [write_state(folder, rank, copied).name for rank, copied in enumerate(copies)]
    found: dict[str, Any] = {}
    for how in ("without ranges.json", "with ranges.json"):
        if how == "with ranges.json":
            found["ranges_bytes"] = write_ranges(folder, zip(names, copies, strict=True)).stat().st_size
        begin = time.process_time()
        state = State(folder)
        state.into(fragments(7))
        found[how] = {"opened": len(state._open), "seconds": time.process_time() - begin}
    return found


def save_share(folder: Path, values: int = 10_000_000) -> dict[str, Any]:
    """How long a save of 120 MB keeps the next step waiting, and how long until it is a checkpoint."""
    value = torch.zeros(values)
    mine = [Fragment("model.a", 0, (values,), dict.fromkeys(KINDS, value))]
    waits, whole = [], []
    for step in range(1, REPEATS + 1):
        saver = Saver(folder, 1)
        begin = time.perf_counter()
        saver.begin(step, {}, copy_state(mine, step))
        waits.append(time.perf_counter() - begin)
        saver.finish()
        whole.append(time.perf_counter() - begin)
    return {
        "bytes": 12 * values,
        "next_step_waits": statistics.median(waits),
        "until_checkpoint": statistics.median(whole),
    }


def main() -> None:
    """Measure or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true")
    if not parser.parse_args().table:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as name:
            saved, loaded = Path(name) / "saved", Path(name) / "loaded"
            loaded.mkdir()
            result = {
                "date": date.today().isoformat(), "cpu": platform.machine(), "cores": os.cpu_count(), "threads": 1,
                "versions": {package: version(package) for package in ("torch", "safetensors")},
                "ranks": RANKS, "rows": ROWS, "width": WIDTH, "repeats": REPEATS,
                "objective": objective_share(), "load": checkpoint_share(loaded), "save": save_share(saved),
            }  # fmt: skip
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(table(json.loads(RESULT.read_text())))


def table(result: dict[str, Any]) -> str:
    """The result file as Markdown."""
    lines = ["| one rank of 1,024 | processor s (quartiles) | operations | values read back |", "|---|---|---|---|"]
    for name, what in (("contrast", "contrast, forward and backward"), ("retrieval", "retrieval, logged steps alone")):
        r = result["objective"][name]
        low, high = r["quartiles"]
        lines.append(f"| {what} | {r['seconds']:.2f} ({low:.2f}-{high:.2f}) | {r['operations']} | {r['waits']} |")
    old, new, save = result["load"]["without ranges.json"], result["load"]["with ranges.json"], result["save"]
    lines += [
        "",
        f"A start opens {new['opened']} file of a checkpoint of {result['ranks']} ranks in {new['seconds']:.2f} s of "
        f"processor time, without the list of ranges {old['opened']} in {old['seconds']:.2f} s. A save of "
        f"{save['bytes'] / 1e6:.0f} MB keeps the next step waiting for {save['next_step_waits']:.2f} s and is a "
        f"checkpoint after {save['until_checkpoint']:.2f} s.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
