from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.ranks import close_ranks, deepspeed, last_step


@pytest.fixture(autouse=True)
def no_rank_left() -> Iterator[None]:
    """A test that kills ranks leaves their pipes open."""
    yield
    close_ranks()


@pytest.fixture(scope="session")
def finished_run(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Two ranks, ZeRO-1, 20 steps, started by the deepspeed launcher and never interrupted; and its overrides."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    overrides = [
        f"corpus_dir={corpus_dir}", "steps=20", "batch={paired: 4, eeg: 0, fmri: 0}",
        "window_seconds={eeg: 10, fmri: 30}", "checkpoint_every=4", "warmup_steps=2", "keep_checkpoints=2",
    ]  # fmt: skip
    deepspeed(f"run_dir={run_dir}", *overrides).wait(timeout=240)
    assert last_step(run_dir) == 20
    return run_dir, overrides
