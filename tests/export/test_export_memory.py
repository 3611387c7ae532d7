"""Consolidating weights leaves the optimizer's moments on disk."""

import subprocess
import sys
from pathlib import Path

import torch

from mcsp.training.saving.state import KINDS, Fragment, copy_state, write_state

VALUES = 4_000_000  # 16 MB of weights, twice that of moments, in each of two ranks' files
PROGRAM = """
import resource, sys
from pathlib import Path
from mcsp.training.saving.state import consolidate_weights
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
weights = consolidate_weights(Path(sys.argv[1]))
print(peak() - before, sum(w.numel() for w in weights.values()))
"""


def test_peak_memory_is_that_of_the_weights_and_one_copy_in_passing(tmp_path: Path) -> None:
    for rank in range(2):
        values = {kind: torch.full((VALUES,), float(rank)) for kind in KINDS}
        write_state(tmp_path, rank, copy_state([Fragment("model.a", rank * VALUES, (2 * VALUES,), values)], 1))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    used, count = done.stdout.split()
    assert int(count) == 2 * VALUES
    weights = 2 * VALUES * 4 / 2**20
    assert float(used) < 2 * weights + 16, "moments, twice the weights, were read as well"
