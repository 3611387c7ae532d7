"""Copy finished checkpoints to another place (such as an object store), and fetch them back.

``mirror_dir/checkpoints/step-00000100/`` holds what ``run_dir`` holds under that name. Such a store cannot rename, so
``manifest.json`` comes last: without it the others are not a checkpoint, and damaged ones differ from its digests.
"""

import os
import queue
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

from upath import UPath

from mcsp.data_sharding.store.files import location
from mcsp.training.saving import checkpoint

LOGS = ("metrics.jsonl", "events.jsonl", "config.json")
_PAUSES_SECONDS = (1.0, 5.0)


class Mirror(threading.Thread):
    """Copies one checkpoint after the other; of those that wait, only the newest. Rank 0 has one."""

    def __init__(self, run_dir: Path, place: Path | str, keep: int, keep_every: int) -> None:
        """Errors as of :func:`restore`."""
        super().__init__(daemon=True, name="mirror")
        self.run_dir, self.keep, self.keep_every = run_dir, keep, keep_every
        self.fs, self.root = _opened(place)
        self._waiting: queue.Queue[Path | None] = queue.Queue()
        self._closed = False
        self.start()

    def finished(self, path: Path) -> None:
        """Copy this checkpoint when its turn comes."""
        self._waiting.put(path)

    def close(self, seconds: float | None = None) -> bool:
        """Wait until the last checkpoint is copied, or could not be, and no longer than ``seconds``; whether it is."""
        if not self._closed:
            self._closed = True
            self._waiting.put(None)
        self.join(seconds)
        return not self.is_alive()

    def run(self) -> None:
        """Copy until :meth:`close`."""
        while (path := self._waiting.get()) is not None:
            newer = self._waiting.queue[0] if self._waiting.queue else None
            if newer is None:
                self._copy(path)

    def _copy(self, path: Path) -> None:
        """Copy and prune; training goes on whatever happens."""
        held = checkpoint.hold(path)  # a store may take longer than the run keeps a checkpoint
        try:
            self._try(held, path.name)
        finally:
            if held != path:
                shutil.rmtree(held, ignore_errors=True)

    def _try(self, path: Path, name: str) -> None:
        for pause in (*_PAUSES_SECONDS, None):
            try:
                self._upload(path, name)
                self._prune(checkpoint.step_of(Path(name)))
                return
            except Exception as error:  # noqa: BLE001, each store has its own, and none may end the run
                if pause is None or not os.path.exists(path):
                    reason = " ".join(str(error).split())
                    print(f"warning: {name} was not copied to {self.root} ({reason})", file=sys.stderr, flush=True)
                    return
                time.sleep(pause)

    def _upload(self, path: Path, name: str) -> None:
        files, folder = list(checkpoint.read_manifest(path)["files"]), f"{self.root}/checkpoints/{name}"
        self.fs.put([str(path / file) for file in files], [f"{folder}/{file}" for file in files])
        for log in LOGS:
            if (self.run_dir / log).exists():
                self.fs.put_file(str(self.run_dir / log), f"{self.root}/{log}")
        self.fs.put_file(str(path / checkpoint.MANIFEST), f"{folder}/{checkpoint.MANIFEST}")

    def _prune(self, step: int) -> None:
        """As :func:`mcsp.training.saving.checkpoint.retire`; the run went back behind those of later steps.

        A copy that was cut off has no manifest, takes nobody's place and goes.
        """
        steps = _steps(self.fs, self.root)
        past = sorted(
            s for s, folder in steps.items() if s <= step and self.fs.exists(f"{folder}/{checkpoint.MANIFEST}")
        )
        lasting = {s for s in past if s in past[-self.keep :] or (self.keep_every and s % self.keep_every == 0)}
        for gone in steps.keys() - lasting:
            manifest = f"{steps[gone]}/{checkpoint.MANIFEST}"
            if self.fs.exists(manifest):
                self.fs.rm_file(manifest)
            self.fs.rm(steps[gone], recursive=True)


def restore(place: Path | str, run_dir: Path, resume: str) -> None:
    """Fetch the newest whole checkpoint and the logs into a ``run_dir`` that has no checkpoint of its own.

    Raises:
        ValueError: a place that cannot be read, checkpoints there of which none is whole, or ``resume`` is "never".
    """
    if checkpoint.complete(run_dir):
        return
    fs, root = _opened(place)
    try:
        steps = _steps(fs, root)
        if steps and resume == "never":
            raise ValueError(f"mirror_dir={place}: resume=never, but it holds checkpoints; use another mirror_dir")
        for step in sorted(steps, reverse=True):
            if _fetch(fs, steps[step], checkpoint.checkpoint_path(run_dir, step)):
                for name in LOGS:
                    if fs.exists(f"{root}/{name}") and not (run_dir / name).exists():
                        fs.get_file(f"{root}/{name}", str(run_dir / name))
                return
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001, each store has its own
        raise ValueError(f"mirror_dir={place}: cannot be read ({' '.join(str(error).split())})") from None
    if steps:
        raise ValueError(f"mirror_dir={place}: none of {len(steps)} checkpoints can be read; use another mirror_dir")


def _fetch(fs: Any, source: str, path: Path) -> bool:
    """Fetch one checkpoint; whether it came whole."""
    folder = checkpoint.aside(path)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        fs.get(source, str(folder), recursive=True)
        names = checkpoint.read_manifest(folder)["files"]
    except (ValueError, FileNotFoundError) as error:
        print(f"warning: damaged checkpoint passed over: {error}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        return False
    for name in (*names, checkpoint.MANIFEST):
        checkpoint.sync(folder / name)
    checkpoint.give_name(folder, path)
    return True


def _opened(place: Path | str) -> tuple[Any, str]:
    """The file system, and the folder in it."""
    where = location(place)
    found = UPath(where.absolute().as_uri(), auto_mkdir=True) if isinstance(where, Path) else where
    return found.fs, found.path.rstrip("/")


def _steps(fs: Any, root: str) -> dict[int, str]:
    """Folder of each checkpoint there, whole or not, by step."""
    fs.invalidate_cache()
    try:
        names = fs.ls(f"{root}/checkpoints", detail=False)
    except FileNotFoundError:
        return {}
    found = (name.rstrip("/") for name in names)
    return {checkpoint.step_of(Path(name)): name for name in found if checkpoint.is_name(Path(name).name)}
