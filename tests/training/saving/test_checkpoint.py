"""The save protocol without a training run: every crash, every kind of damage, a full disk, other numbers of ranks.

Covers: mcsp/training/saving/saver.py, mcsp/training/saving/state.py
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mcsp.training.saving import checkpoint
from mcsp.training.saving.saver import Saver
from mcsp.training.saving.state import (
    EMA,
    KINDS,
    Copied,
    Fragment,
    State,
    consolidate_weights,
    copy_state,
    write_ranges,
    write_state,
)
from mcsp.training.stopping import EXIT_DISK, RunEnded
from tests.training.disks import small_disk

SHAPES = {"model.a": (5, 7), "model.b": (3,), "log_scale_P": (4,)}
FACTS = {"index_hash": "i" * 64, "world_size": 1, "zero_stage": 1, "arithmetic": "fp32 on cpu", "model_config": {}}
CONFIG: dict[str, Any] = {"steps": 10, "schedule_steps": None, "warmup_steps": 2, "seed": 0, "deepspeed": "zero1.json"}


def values(step: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    return {n: {k: torch.randn(shape, generator=generator) for k in KINDS} for n, shape in SHAPES.items()}


def fragments(step: int, rank: int = 0, world: int = 1) -> Iterator[Fragment]:
    """Each parameter cut among ranks, unevenly; later ranks may hold nothing of a short one."""
    for name, kinds in values(step).items():
        whole = kinds["weight"].numel()
        size = -(-whole // world)
        start, stop = min(whole, rank * size), min(whole, (rank + 1) * size)
        if start < stop:
            flat = {kind: value.flatten()[start:stop] for kind, value in kinds.items()}
            yield Fragment(name, start, SHAPES[name], flat)


def save(run_dir: Path, step: int, keep: int = 2, keep_every: int = 0) -> None:
    saver = Saver(run_dir, keep, keep_every)
    saver.begin(step, {**FACTS, "config": CONFIG}, copy_state(fragments(step), step))
    saver.finish()


def holds(path: Path, step: int) -> bool:
    weights = consolidate_weights(path)
    return all(torch.equal(weights[n.removeprefix("model.")], v["weight"]) for n, v in values(step).items() if "." in n)


def steps(run_dir: Path) -> list[int]:
    return sorted(checkpoint.step_of(p) for p in (run_dir / "checkpoints").glob("step-*"))


def in_child(action: Callable[[], None]) -> int:
    """Run it in a copy of this process; how that ended, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException:  # noqa: BLE001, the child must never return into the test
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(run_dir: Path, event: int, action: Callable[[], None]) -> int:
    """Run it in a child that dies by SIGKILL as it asks the system for its ``event``-th change below ``run_dir``."""
    count = 0

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if name in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and str(run_dir) in str(arguments[0]):
            count += 1
            if count == event:
                os.kill(os.getpid(), signal.SIGKILL)

    def child() -> None:
        sys.addaudithook(hook)
        action()

    return in_child(child)


@pytest.mark.parametrize("damaged", [False, True])
def test_killed_at_any_point_of_a_save_the_newest_complete_checkpoint_loads(tmp_path, capfd, damaged) -> None:
    template = tmp_path / "template"
    for step in (1, 2):
        save(template, step)
    if damaged:  # a third that was damaged, passed over, and is now written again
        save(template, 3, keep=3)
        next((template / "checkpoints" / "step-00000003" / "state").iterdir()).write_bytes(b"x")
    seen = []
    for event in range(1, 200):
        run_dir = tmp_path / f"killed{event}"
        shutil.copytree(template, run_dir)
        ended = killed_at(run_dir, event, lambda run_dir=run_dir: save(run_dir, 3))
        found = checkpoint.latest_checkpoint(run_dir)
        assert found is not None and checkpoint.step_of(found) in (2, 3), f"killed at event {event}: {found}"
        assert holds(found, checkpoint.step_of(found))
        seen.append(checkpoint.step_of(found))
        assert checkpoint.to_continue(run_dir, "auto") == found
        save(run_dir, 4)
        assert holds(checkpoint.latest_checkpoint(run_dir) or run_dir, 4)
        names = [p.name for p in (run_dir / "checkpoints").iterdir() if not p.name.startswith("step-")]
        assert names == (["damaged-step-00000003-1"] if damaged else []), "something was left behind"
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    assert ended == 0 and len(seen) > 12, f"only {len(seen)} points"
    assert seen == sorted(seen) and set(seen) == {2, 3}, f"{seen}: the rename is the one moment that counts"


def test_every_field_of_a_manifest_is_under_its_digest(tmp_path) -> None:
    save(tmp_path, 1)
    path = checkpoint.checkpoint_path(tmp_path, 1)
    file = path / checkpoint.MANIFEST
    sound = json.loads(file.read_text())
    assert {"schema_version", "format", "config", "files", "index_hash", "world_size"} <= set(sound)
    assert (sound["schema_version"], sound["format"]) == (2, 2), "older checkpoints cannot be read any more"
    changed = [{**sound, name: [value, "another"]} for name, value in sound.items()]
    changed += [{k: v for k, v in sound.items() if k != name} for name in sound]
    changed += [{**sound, "more": 1}, {**sound, "config": {**sound["config"], "seed": 1}}]
    for manifest in changed:
        file.write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match=r"differs from its own digest|expected checkpoint format"):
            checkpoint.read_manifest(path)
    file.write_text(json.dumps(sound))
    assert checkpoint.read_manifest(path) == sound


def test_killed_in_the_middle_of_a_file(tmp_path) -> None:
    save(tmp_path, 1)

    def half(folder: Path, rank: int, copied: Copied) -> Path:
        path = write_state(folder, rank, copied)
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
        return path

    def killed() -> None:
        saver = Saver(tmp_path, 2, write=half)
        saver.begin(2, FACTS, copy_state(fragments(2), 2))
        saver.finish()

    assert in_child(killed) == -signal.SIGKILL
    assert steps(tmp_path) == [1]
    assert checkpoint.step_of(checkpoint.latest_checkpoint(tmp_path) or tmp_path) == 1


def test_every_file_and_folder_is_forced_to_disk_before_and_after_the_rename(tmp_path, monkeypatch) -> None:
    done: list[str] = []
    real_fsync, real_rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(os.readlink(f"/proc/self/fd/{fd}")), real_fsync(fd))[1])
    monkeypatch.setattr(Path, "rename", lambda a, b: (done.append(f"{a} -> {b}"), real_rename(a, b))[1])
    save(tmp_path, 1)
    folder = tmp_path / "checkpoints"
    aside, final = folder / "incomplete-step-00000001", folder / "step-00000001"
    renamed = done.index(f"{aside} -> {final}")
    before = {str(aside / "state" / "rank-00000.safetensors"), str(aside / "manifest.json"), str(aside / "state")}
    assert {*before, str(aside)} <= set(done[:renamed])
    assert {str(folder), str(tmp_path)} <= set(done[renamed:]), "the folder of the first checkpoint is new, too"


def test_every_flipped_byte_truncation_and_missing_file_is_noticed(tmp_path, capfd) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    path = checkpoint.checkpoint_path(tmp_path, 2)
    for file in (p for p in path.rglob("*") if p.is_file()):
        content = file.read_bytes()
        for place in {0, 7, 8, *range(9, len(content), 61), len(content) - 1}:
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(ValueError, match=str(path)):
                checkpoint.read_manifest(path)
        for length in (0, len(content) // 2, len(content) - 1):
            file.write_bytes(content[:length])
            assert checkpoint.step_of(checkpoint.latest_checkpoint(tmp_path) or path) == 1
            assert f"damaged checkpoint passed over: {path}" in capfd.readouterr().err
        file.unlink()
        assert checkpoint.step_of(checkpoint.latest_checkpoint(tmp_path) or path) == 1
        assert f"damaged checkpoint passed over: {path}" in capfd.readouterr().err
        file.write_bytes(content)
    assert checkpoint.read_manifest(path)["step"] == 2


def test_retention_keeps_the_last_and_every_nth_and_drops_an_abandoned_future(tmp_path) -> None:
    for step in range(1, 9):
        save(tmp_path, step, keep=2, keep_every=3)
    assert steps(tmp_path) == [3, 6, 7, 8]
    save(tmp_path, 7, keep=1, keep_every=3)
    assert steps(tmp_path) == [3, 6, 7], "a run that went back to 6 must not find 8 again"


def test_a_checkpoint_that_is_not_to_retire_others_leaves_them(tmp_path) -> None:
    """Of weights in doubt: saved twice in a row, it took the place of the only one to go back to."""
    for step, retire in ((1, True), (2, False), (3, False), (4, True)):
        saver = Saver(tmp_path, keep=1)
        saver.begin(step, {**FACTS, "config": CONFIG}, copy_state(fragments(step), step), retire=retire)
        saver.finish()
        assert steps(tmp_path) == (list(range(1, step + 1)) if step < 4 else [4])


def test_the_newest_checkpoint_that_fits_may_lie_behind_newer_ones_that_do_not(tmp_path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=9)
    found = checkpoint.latest_checkpoint(tmp_path, lambda manifest: manifest["step"] < 3)
    assert found is not None and checkpoint.step_of(found) == 2
    assert checkpoint.latest_checkpoint(tmp_path, lambda manifest: manifest["step"] > 4) is None


def test_an_average_of_the_weights_is_read_where_there_is_one_and_never_the_weights_instead(tmp_path) -> None:
    save(tmp_path, 1)
    path = checkpoint.checkpoint_path(tmp_path, 1)
    with pytest.raises(ValueError, match="expected a moving average of the weights, found none"):
        consolidate_weights(path, EMA)
    averaged = [replace(f, values={**f.values, EMA: f.values["weight"] + 1}) for f in fragments(2)]
    write_state(tmp_path / "with", 0, copy_state(averaged, 2))
    average = consolidate_weights(tmp_path / "with", EMA)
    assert {n: tuple(v.shape) for n, v in average.items()} == {"a": (5, 7), "b": (3,)}
    assert all(torch.equal(v, values(2)[f"model.{n}"]["weight"] + 1) for n, v in average.items())


def test_equal_states_have_equal_files(tmp_path) -> None:
    for name in "abcdef":
        (tmp_path / name).mkdir()
    files = {write_state(tmp_path / name, 0, copy_state(fragments(1), 11)).read_bytes() for name in "abcdef"}
    assert len(files) == 1


@pytest.mark.parametrize(("before", "after"), [(1, 3), (2, 1), (3, 4), (8, 2)])
def test_any_number_of_ranks_reads_what_any_other_wrote(tmp_path, before, after) -> None:
    for rank in range(before):
        write_state(tmp_path, rank, copy_state(fragments(1, rank, before), 11))
    state = State(tmp_path)
    assert state.steps == 11
    for rank in range(after):
        mine = list(fragments(2, rank, after))
        state.into(mine)
        expected = list(fragments(1, rank, after))
        for a, b in zip(mine, expected, strict=True):
            assert all(torch.equal(a.values[kind], b.values[kind]) for kind in KINDS)
    (tmp_path / "state" / "rank-00000.safetensors").unlink()
    if before > 1:
        with pytest.raises(ValueError, match=r"expected 35 values of weight model.a from 0, found"):
            State(tmp_path).whole("weight", "model.a")


def test_each_rank_opens_the_files_that_hold_its_ranges_and_no_others(tmp_path) -> None:
    """Where ``ranges.json`` is: with 1,024 ranks, opening all would be a million of opens at each start."""
    copies = [copy_state(fragments(1, rank, 8), 11 if rank < 7 else 0) for rank in range(8)]
    assert not copies[7].ranges, "a rank that owns nothing has taken no step"
    files = [write_state(tmp_path, rank, copied).name for rank, copied in enumerate(copies)]
    write_ranges(tmp_path, zip(files, copies, strict=True))
    for rank in range(8):
        state, mine = State(tmp_path), list(fragments(2, rank, 8))
        assert state.steps == 11 and state.shapes == SHAPES
        state.into(mine)
        assert all(
            torch.equal(a.values[kind], b.values[kind])
            for a, b in zip(mine, fragments(1, rank, 8), strict=True)
            for kind in KINDS
        )
        assert set(state._open) == ({f"rank-{rank:05d}.safetensors"} if mine else set())
    half = State(tmp_path)
    half.into(fragments(2, 0, 2))
    assert 1 < len(half._open) < 8


def test_a_save_goes_on_behind_the_next_steps_and_later_changes_do_not_enter_it(tmp_path) -> None:
    """The weights of the next steps are written into the same memory while the copy is on its way to disk."""
    may_write = threading.Event()

    def slow(folder: Path, rank: int, copied: Copied) -> Path:
        assert may_write.wait(20)
        return write_state(folder, rank, copied)

    saver, health = Saver(tmp_path, 2, write=slow), [1.0]
    mine = list(fragments(1))
    saver.begin(1, {**FACTS, "config": CONFIG, "health": {"losses": health}}, copy_state(mine, 1))
    health.append(2.0)
    for fragment in mine:
        for value in fragment.values.values():
            value.add_(1)
    for _ in range(3):
        saver.settle()
    assert steps(tmp_path) == []
    may_write.set()
    deadline = time.monotonic() + 20
    while not steps(tmp_path):
        assert time.monotonic() < deadline
        saver.settle()
    saver.finish()
    found = checkpoint.latest_checkpoint(tmp_path)
    assert found is not None and holds(found, 1)
    assert checkpoint.read_manifest(found)["health"] == {"losses": [1.0]}


def spoil(run_dir: Path, step: int) -> None:
    next((checkpoint.checkpoint_path(run_dir, step) / "state").glob("*.safetensors")).write_bytes(b"x")


def test_where_no_checkpoint_can_be_read_nothing_starts_and_nothing_is_deleted(tmp_path, capfd) -> None:
    for step in (1, 2):
        save(tmp_path, step)
        spoil(tmp_path, step)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for resume in ("auto", "never", "must"):
        with pytest.raises(ValueError, match=r"none of 2 checkpoints \(step-00000001 to step-00000002\) can be read"):
            checkpoint.to_continue(tmp_path, resume)
        assert capfd.readouterr().err.count("damaged checkpoint passed over") == 2
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert checkpoint.to_continue(tmp_path / "new", "auto") is None


def test_a_checkpoint_that_could_not_be_read_stays_under_another_name(tmp_path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, keep=9)
    spoil(tmp_path, 2)
    spoil(tmp_path, 3)
    found = checkpoint.to_continue(tmp_path, "auto")
    assert found is not None and checkpoint.step_of(found) == 1
    save(tmp_path, 2, keep=1)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "damaged-step-00000002-1", "damaged-step-00000003-1", "step-00000002",
    ]  # fmt: skip
    spoil(tmp_path, 2)
    save(tmp_path, 2)
    assert (tmp_path / "checkpoints" / "damaged-step-00000002-2").is_dir() and steps(tmp_path) == [2]


def test_files_that_a_file_system_will_not_delete_do_not_block_a_start_or_a_save(tmp_path) -> None:
    """As NFS keeps ``.nfs*`` while somebody holds a deleted file open; here a mount keeps its folder."""
    save(tmp_path, 1)
    left = tmp_path / "checkpoints" / "incomplete-step-00000002" / "state"
    left.mkdir(parents=True)
    (left / "rank-00007.safetensors").write_bytes(b"of a killed save")
    with small_disk(left / ".nfs0001", 2**16):
        found = checkpoint.to_continue(tmp_path, "auto")
        assert found is not None and checkpoint.step_of(found) == 1
        assert not (left / "rank-00007.safetensors").exists() and (left / ".nfs0001").exists()
        save(tmp_path, 3)
    assert steps(tmp_path) == [1, 3]


def test_a_full_disk_gets_one_line_and_keeps_the_old_checkpoints(tmp_path) -> None:
    value = torch.zeros(100_000)
    large = copy_state([Fragment("model.a", 0, (100_000,), dict.fromkeys(KINDS, value))], 2)
    with small_disk(tmp_path / "disk", 2**18) as disk:
        save(disk, 1)
        saver = Saver(disk, 2)
        saver.begin(2, FACTS, large)
        with pytest.raises(RunEnded, match=r"No space left on device.*earlier checkpoints are kept") as caught:
            saver.finish()
        assert "\n" not in str(caught.value) and caught.value.code == EXIT_DISK
        assert [p.name for p in (disk / "checkpoints").iterdir()] == ["step-00000001"]
        saver.begin(2, {**FACTS, "config": CONFIG}, copy_state(fragments(2), 2))
        saver.finish()  # the space of the failed one is free again, and its problem is forgotten
        assert steps(disk) == [1, 2]
