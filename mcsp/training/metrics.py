"""What a run reports: ``metrics.jsonl``, TensorBoard files and a progress bar. Only rank 0 makes one."""

import json
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


class Metrics:
    """Writes one line per logged step; a resumed run continues the files without a gap or a repeated step."""

    def __init__(self, run_dir: Path, first_step: int, steps: int) -> None:
        self._path = run_dir / "metrics.jsonl"
        if self._path.exists():
            # Lines after the checkpoint belong to steps that will be taken again; the last may be cut off by a crash.
            kept = [line for line in self._path.read_text().splitlines() if _step_of(line) in range(1, first_step + 1)]
            self._path.write_text("".join(line + "\n" for line in kept))
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1 if first_step else None)
        self._bar = tqdm(total=steps, initial=first_step, desc="pretrain", unit="step", dynamic_ncols=True)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log the values of one step, counted from 1."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._bar.set_postfix(
            loss=f"{values['loss']:.3f}", samples_per_s=f"{values['samples_per_second']:.0f}", refresh=False
        )

    def advance(self) -> None:
        """Move the progress bar by one step."""
        self._bar.update()

    def close(self) -> None:
        """Flush everything."""
        self._bar.close()
        self._board.close()
        self._file.close()


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):
        return -1


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """All lines of ``metrics.jsonl``; empty where there is none."""
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
