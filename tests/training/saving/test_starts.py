"""What a start may continue from: manifests that are none, every choice of ``resume``, a rollback.

Covers: mcsp/training/saving/checkpoint.py
"""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from mcsp.training.saving import checkpoint
from tests.training.saving.test_checkpoint import save, spoil, steps


def test_what_is_no_manifest_of_this_format_is_told_apart(tmp_path) -> None:
    path = checkpoint.checkpoint_path(tmp_path, 12)
    assert (path.name, path.parent, checkpoint.step_of(path)) == ("step-00000012", tmp_path / "checkpoints", 12)
    path.mkdir(parents=True)
    for content, said in (
        ("[]", "expected checkpoint format 2, found None"), ("{}", "expected checkpoint format 2, found 1"),
        ('{"format": 3}', "expected checkpoint format 2, found 3"), ("{", "not valid JSON"),
        ('{"format": 2}', "damaged or changed, its content differs from its own digest"),
    ):  # fmt: skip
        (path / checkpoint.MANIFEST).write_text(content)
        with pytest.raises(ValueError, match=said):
            checkpoint.read_manifest(path)
    (path / checkpoint.MANIFEST).unlink()
    with pytest.raises(
        ValueError, match=r"step-00000012: not a checkpoint, manifest.json cannot be read \(No such file"
    ):
        checkpoint.read_manifest(path)


@pytest.mark.parametrize("resume", ["auto", "never", "must"])
@pytest.mark.parametrize("there", [False, True])
def test_a_start_finds_what_it_may_continue_from(tmp_path, resume: str, there: bool) -> None:
    for step in (1, 2) if there else ():
        save(tmp_path, step)
    if there == (resume == "never") and resume != "auto":
        refused = "resume=never, but it holds checkpoint step-00000002" if there else "holds no valid checkpoint"
        with pytest.raises(ValueError, match=refused):
            checkpoint.to_continue(tmp_path, resume)
    else:
        found = checkpoint.to_continue(tmp_path, resume)
        assert found == (checkpoint.checkpoint_path(tmp_path, 2) if there else None)
    assert steps(tmp_path) == ([1, 2] if there else [])


def test_a_rollback_drops_later_steps_alone(tmp_path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=9)
    spoil(tmp_path, 4)
    checkpoint.drop_after(tmp_path, 2)
    assert steps(tmp_path) == [1, 2]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name[0] != "s"] == ["damaged-step-00000004-1"]
    checkpoint.retire(tmp_path, 2, keep=1, keep_every=0)
    assert steps(tmp_path) == [2]


def test_a_retired_checkpoint_of_which_a_file_stays_is_out_of_the_way(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS keeps a file that somebody holds open: what is left does not look like a checkpoint."""
    for step in (1, 2):
        save(tmp_path, step, keep=9)
    real = os.unlink

    def unlink(name: Any, **more: Any) -> None:
        if Path(name).name == "manifest.json":
            raise OSError(16, "Device or resource busy")
        real(name, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        checkpoint.retire(tmp_path, 2, keep=1, keep_every=0)
    assert steps(tmp_path) == [2]
    [left] = [p for p in (tmp_path / "checkpoints").iterdir() if p.name != "step-00000002"]
    assert left.name == "incomplete-deleted-step-00000001" and [p.name for p in left.rglob("*")] == ["manifest.json"]
    assert checkpoint.to_continue(tmp_path, "auto") == checkpoint.checkpoint_path(tmp_path, 2) and not left.exists()


def test_what_else_somebody_puts_beside_checkpoints_is_none_of_them(tmp_path) -> None:
    """A copy of one by another name ended the run at its next save, and every start after that."""
    for step in (1, 2):
        save(tmp_path, step)
    folder = tmp_path / "checkpoints"
    for name in ("step-00000001.old", "step-", "step-00000002 copy", "step-latest"):
        shutil.copytree(folder / "step-00000001", folder / name)
    assert checkpoint.to_continue(tmp_path, "auto") == checkpoint.checkpoint_path(tmp_path, 2)
    save(tmp_path, 3)
    checkpoint.drop_after(tmp_path, 2)
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["step-00000002"]
    assert len(list(folder.iterdir())) == 5, "they stay as they are"
