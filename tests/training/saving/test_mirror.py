"""Checkpoints on an object store: a local server that speaks S3, and a folder."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcsp.training.saving import checkpoint, mirror
from mcsp.training.saving.mirror import Mirror, restore
from mcsp.training.saving.saver import Saver
from mcsp.training.saving.state import copy_state
from tests.object_store import object_store
from tests.training.saving.test_checkpoint import CONFIG, FACTS, fragments, holds, save


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with object_store("runs"):
        yield "s3://runs"


@pytest.fixture(params=["object store", "folder"])
def place(request: pytest.FixtureRequest, bucket: str, tmp_path: Path) -> str:
    return f"{bucket}/{tmp_path.name}" if request.param == "object store" else str(tmp_path / "mirror")


def saved(run_dir: Path, place: str, steps: range, keep: int = 2, keep_every: int = 0) -> None:
    """Save after each step, as a run does, and end."""
    copies = Mirror(run_dir, place, keep, keep_every)
    for step in steps:
        saver = Saver(run_dir, keep, keep_every, finished=copies.finished)
        saver.begin(step, {**FACTS, "config": CONFIG}, copy_state(fragments(step), step))
        saver.finish()
        while copies._waiting.queue:  # every one is copied here; a run that is faster than its store skips some
            time.sleep(0.01)
    (run_dir / "metrics.jsonl").write_text('{"step": 1}\n')
    copies.finished(checkpoint.checkpoint_path(run_dir, steps[-1]))
    copies.close()


def there(place: str) -> list[int]:
    return sorted(mirror._steps(*mirror._opened(place)))


def test_a_bare_machine_continues_from_the_newest_whole_copy(place, tmp_path, capfd) -> None:
    run_dir = tmp_path / "run"
    saved(run_dir, place, range(1, 5))
    assert there(place)[-1] == 4 and len(there(place)) <= 2
    restore(place, run_dir, "auto")  # has checkpoints of its own: nothing is fetched
    (run_dir / "config.json").write_text("of the run")
    copies = Mirror(run_dir, place, 2, 0)
    copies.finished(checkpoint.checkpoint_path(run_dir, 4))
    copies.close()
    bare = tmp_path / "bare"
    left = checkpoint.aside(checkpoint.checkpoint_path(bare, 4)) / "state" / "rank-00007.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"of a fetch that was cut off")
    (bare / "config.json").write_text("its own")
    restore(place, bare, "auto")
    found = checkpoint.to_continue(bare, "auto")
    assert found is not None and checkpoint.step_of(found) == 4 and holds(found, 4)
    assert {p.name for p in (found / "state").iterdir()} == {"rank-00000.safetensors", "ranges.json"}
    assert (bare / "metrics.jsonl").read_text() == '{"step": 1}\n'
    assert (bare / "config.json").read_text() == "its own"
    with pytest.raises(ValueError, match="resume=never, but it holds checkpoints"):
        restore(place, tmp_path / "other", "never")
    assert "warning" not in capfd.readouterr().err


def test_a_checkpoint_that_is_fetched_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch) -> None:
    place, bare = str(tmp_path / "mirror"), tmp_path / "bare"
    saved(tmp_path / "run", place, range(1, 2))
    done: list[str] = []
    real_fsync, real_rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(os.readlink(f"/proc/self/fd/{fd}")), real_fsync(fd))[1])
    monkeypatch.setattr(Path, "rename", lambda a, b: (done.append("renamed"), real_rename(a, b))[1])
    restore(place, bare, "auto")
    aside = bare / "checkpoints" / "incomplete-step-00000001"
    files = {"manifest.json", "state", "state/ranges.json", "state/rank-00000.safetensors"}
    assert {str(aside), *(str(aside / name) for name in files)} <= set(done[: done.index("renamed")])


def test_a_store_is_waited_for_as_long_as_one_likes(tmp_path, monkeypatch) -> None:
    save(tmp_path / "run", 1)
    copies, may_copy = Mirror(tmp_path / "run", str(tmp_path / "mirror"), 2, 0), threading.Event()
    upload = copies._upload
    monkeypatch.setattr(copies, "_upload", lambda *which: (may_copy.wait(20), upload(*which)))
    copies.finished(checkpoint.checkpoint_path(tmp_path / "run", 1))
    assert not copies.close(0.05) and not copies.close(0.05)
    may_copy.set()
    assert copies.close(20) and there(str(tmp_path / "mirror")) == [1]


def test_a_store_may_take_longer_than_a_checkpoint_is_kept(place, tmp_path, monkeypatch, capfd) -> None:
    """A store that was slower than the run never got a whole checkpoint."""
    run_dir = tmp_path / "run"
    save(run_dir, 1, keep=1)
    copies = Mirror(run_dir, place, 1, 0)
    put = copies.fs.put

    def slow(*arguments: object, **options: object) -> None:
        save(run_dir, 2, keep=1)
        put(*arguments, **options)

    monkeypatch.setattr(copies.fs, "put", slow)
    copies.finished(checkpoint.checkpoint_path(run_dir, 1))
    copies.close()
    assert there(place) == [1] and "warning" not in capfd.readouterr().err
    assert os.listdir(run_dir / "checkpoints") == ["step-00000002"]
    restore(place, tmp_path / "bare", "auto")
    found = checkpoint.to_continue(tmp_path / "bare", "auto")
    assert found is not None and holds(found, 1)


def test_copies_that_were_cut_off_or_damaged_are_passed_over(place, tmp_path, capfd) -> None:
    run_dir = tmp_path / "run"
    saved(run_dir, place, range(1, 2), keep=9)
    saved(run_dir, place, range(2, 3), keep=9)
    saved(run_dir, place, range(3, 4), keep=9)
    fs, root = mirror._opened(place)
    fs.rm_file(f"{root}/checkpoints/step-00000003/manifest.json")  # killed before the last file
    with fs.open(f"{root}/checkpoints/step-00000002/state/rank-00000.safetensors", "wb") as file:
        file.write(b"damaged")
    bare = tmp_path / "bare"
    bare.mkdir()
    restore(place, bare, "auto")
    found = checkpoint.to_continue(bare, "auto")
    assert found is not None and checkpoint.step_of(found) == 1 and holds(found, 1)
    assert capfd.readouterr().err.count("damaged checkpoint passed over") == 2
    fs.rm_file(f"{root}/checkpoints/step-00000001/manifest.json")
    with pytest.raises(ValueError, match="none of 3 checkpoints can be read"):
        restore(place, tmp_path / "again", "auto")


def test_an_abandoned_future_and_old_copies_go(place, tmp_path) -> None:
    saved(tmp_path / "run", place, range(1, 2), keep=2, keep_every=1)
    saved(tmp_path / "run", place, range(8, 9), keep=2, keep_every=1)
    assert there(place) == [1, 8]
    saved(tmp_path / "run", place, range(6, 7), keep=2, keep_every=4)
    assert there(place) == [1, 6], "a run that went back to 6 must not find 8 again"
    saved(tmp_path / "run", place, range(7, 8), keep=2, keep_every=4)
    assert there(place) == [6, 7]
    fs, root = mirror._opened(place)
    fs.rm_file(f"{root}/checkpoints/step-00000007/manifest.json")  # as a copy that was cut off
    saved(tmp_path / "run", place, range(8, 9), keep=2)
    assert there(place) == [6, 8], "what cannot be read takes the place of a whole copy"


def test_a_store_that_fails_is_told_and_ends_nothing(tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.setattr(mirror, "_PAUSES_SECONDS", (0.01,))
    (tmp_path / "mirror").write_text("a file, not a folder")
    saved(tmp_path / "run", str(tmp_path / "mirror"), range(1, 2))
    assert "warning: step-00000001 was not copied to " in capfd.readouterr().err
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step-00000001"]
    with pytest.raises(ValueError, match="nosuch://a: cannot use nosuch://"):
        restore("nosuch://a", tmp_path / "bare", "auto")


def test_a_copy_or_a_deletion_that_fails_half_way_leaves_no_manifest(place, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(mirror, "_PAUSES_SECONDS", (0.01,))

    def fails(*arguments: object, **options: object) -> None:
        raise OSError("the store went away")

    run_dir = tmp_path / "run"
    saved(run_dir, place, range(1, 2), keep=9)
    fs, root = mirror._opened(place)
    for step, method in ((3, "put"), (1, "rm")):
        save(run_dir, 3, keep=9)
        copies = Mirror(run_dir, place, 1, 0)
        with monkeypatch.context() as broken:
            broken.setattr(copies.fs, method, fails)
            copies.finished(checkpoint.checkpoint_path(run_dir, 3))
            copies.close()
        assert "step-00000003 was not copied" in capfd.readouterr().err
        fs.invalidate_cache()
        assert not fs.exists(f"{root}/checkpoints/step-{step:08d}/manifest.json"), method
    assert fs.exists(f"{root}/checkpoints/step-00000003/manifest.json"), "the second time it came whole"


def test_of_checkpoints_that_wait_the_newest_is_copied_also_where_the_run_ends(tmp_path, monkeypatch) -> None:
    run_dir, place = tmp_path / "run", str(tmp_path / "mirror")
    for step in (1, 2, 3):
        save(run_dir, step, keep=9)
    copies, may_copy = Mirror(run_dir, place, 9, 0), threading.Event()
    upload = copies._upload
    monkeypatch.setattr(copies, "_upload", lambda *which: (may_copy.wait(20), upload(*which)))
    for step in (1, 2, 3):
        copies.finished(checkpoint.checkpoint_path(run_dir, step))
        while step == 1 and copies._waiting.queue:
            time.sleep(0.01)
    copies._waiting.put(None)  # as close does
    may_copy.set()
    copies.join(20)
    assert there(place) == [1, 3]
