"""Saves that are killed or find no space, and runs that start from another's weights.

Covers: mcsp/training/saving/continues.py
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mcsp.run_log import read_metrics
from mcsp.training.saving import checkpoint
from mcsp.training.stopping import EXIT_DISK
from tests.training.disks import grow, small_disk
from tests.training.ranks import LAUNCHER, ROOT, deepspeed, environment, pretrain, run_ranks, same, start_ranks, weights


@pytest.mark.slow
@pytest.mark.multirank
def test_killed_within_saves_a_run_ends_with_the_weights_of_an_uninterrupted_one(finished_run, tmp_path) -> None:
    """Rank 0 dies before the manifest and within the deletion of an old one, rank 1 behind its file, rank 0 once more.

    ``test_checkpoint.py`` goes through every point; here the other rank, DeepSpeed and the loader are there, too.
    """
    reference, overrides = finished_run
    run_dir = tmp_path / "run"
    program = Path(__file__).parents[1] / "crash_program.py"
    for rank, event in ((0, 10), (0, 39), (1, 4), (0, 12)):
        ranks = start_ranks(2, program, str(rank), str(event), f"run_dir={run_dir}", *overrides)
        try:
            assert ranks[rank].wait(timeout=200) == -signal.SIGKILL, ranks[rank].communicate()[0]
        finally:
            for process in ranks:
                process.kill()
                process.wait()
    found = deepspeed(f"run_dir={run_dir}", *overrides).wait(timeout=240)
    assert found == 0 and same(weights(run_dir, 20), weights(reference, 20))
    assert [m["step"] for m in read_metrics(run_dir)] == list(range(1, 21))
    assert {p.name[:5] for p in (run_dir / "checkpoints").iterdir()} == {"step-"}


@pytest.mark.slow
@pytest.mark.multirank
def test_a_full_disk_ends_a_run_in_one_line_and_with_more_space_it_goes_on(finished_run, tmp_path) -> None:
    reference, overrides = finished_run
    saved = sum(f.stat().st_size for f in (reference / "checkpoints" / "step-00000020").rglob("*"))
    with small_disk(tmp_path / "disk", int(2.7 * saved)) as disk:
        options = [f"run_dir={disk / 'run'}", *overrides, "keep_checkpoints=5"]
        ranks = start_ranks(2, LAUNCHER, *options)
        outputs = [process.communicate(timeout=200)[0] for process in ranks]
        assert [process.returncode for process in ranks] == [EXIT_DISK, EXIT_DISK], outputs
        errors = [line for line in outputs[0].splitlines() if line.startswith("cannot save after step ")]
        assert len(errors) == 1 and "step-00000008: " in errors[0] and "No space left" in errors[0], outputs
        ended = json.loads((disk / "run" / "exit.json").read_text())
        assert (ended["reason"], ended["exit_code"]) == ("cannot save", EXIT_DISK)
        assert "Traceback" not in "".join(outputs)
        kept = sorted((disk / "run" / "checkpoints").iterdir())
        assert [checkpoint.read_manifest(path)["step"] for path in kept] == [1, 4]
        grow(disk, 8 * saved)
        run_ranks(2, LAUNCHER, *options)
        assert same(weights(disk / "run", 20), weights(reference, 20))


@pytest.mark.slow
def test_a_disk_that_metrics_fill_ends_a_run_with_a_line_that_says_so(pretrain_overrides, tmp_path) -> None:
    """Beside it the thread that writes for TensorBoard may tell its own trouble."""
    with small_disk(tmp_path / "disk", 2**16) as disk:
        options = [*pretrain_overrides, f"run_dir={disk / 'run'}", "steps=1000", "checkpoint_every=1000"]
        said = pretrain(*options, expect=EXIT_DISK)
        assert said.count(f"error: {disk / 'run'}: [Errno 28] No space left on device; make room") == 1
        ended = json.loads((disk / "run" / "exit.json").read_text())
        assert ended["exit_code"] == EXIT_DISK and "No space left" in ended["detail"]
        assert read_metrics(disk / "run")


@pytest.mark.slow
def test_a_new_run_starts_from_a_run_a_checkpoint_or_an_export(finished_run, tmp_path) -> None:
    reference, overrides = finished_run
    wanted = weights(reference, 20)
    model = tmp_path / "model"
    export = [sys.executable, str(ROOT / "launchers" / "export.py"), str(reference), str(model)]
    subprocess.run(export, check=True, cwd=ROOT, env=environment(), capture_output=True)
    options = [*overrides, "learning_rate=1e-12", "steps=1", "warmup_steps=0", "seed=3"]
    sources = (reference, reference / "checkpoints" / "step-00000016", model)
    for number, source in enumerate(sources):
        out = tmp_path / f"from{number}"
        said = pretrain(*options, f"run_dir={out}", f"init_from={source}", "deepspeed=configs/deepspeed/zero0.json")
        assert str(source) in said
        started = weights(out, 1)
        expected = weights(reference, 16) if number == 1 else wanted
        assert all(torch.allclose(started[n], expected[n], rtol=0, atol=1e-9) for n in wanted)
    wrong = pretrain(*options, f"run_dir={tmp_path / 'w'}", f"init_from={model}", "model.projection_dim=64", expect=2)
    assert "weights of another architecture (model.projection_dim: 128 -> 64)" in wrong
    nothing = pretrain(*options, f"run_dir={tmp_path / 'w'}", f"init_from={tmp_path}", expect=2)
    assert "expected a run with a checkpoint, a checkpoint or an export, found none" in nothing
