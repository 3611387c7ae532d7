"""Checkpoints that are complete or absent: written aside, digested, named last, verified before they are read.

``run_dir/checkpoints/step-00000100/`` holds ``state/`` (one file per rank, see :mod:`mcsp.training.saving.state`) and
``manifest.json`` with the digest of every file and of itself. Every file and folder is forced to disk before the rename
that makes it a checkpoint, and the rename itself after it. All ranks must see the same ``run_dir``.
"""

import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcsp.outside import parse_json, read_bounded, sha256_file, sha256_json
from mcsp.schema import SCHEMA_VERSION

PREFIX, _ASIDE, _DAMAGED = "step-", "incomplete-", "damaged-"
MANIFEST = "manifest.json"
FORMAT = 2  # 1 held DeepSpeed's own files


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` optimizer steps lies."""
    return run_dir / "checkpoints" / f"{PREFIX}{step:08d}"


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix(PREFIX))


def aside(path: Path) -> Path:
    """The folder in which a checkpoint is written."""
    return path.with_name(_ASIDE + path.name)


def seal(path: Path, facts: dict[str, Any], digests: dict[str, str]) -> None:
    """Turn the folder aside, whose files are written and forced to disk, into a checkpoint."""
    folder = aside(path)
    manifest = {"schema_version": SCHEMA_VERSION, "format": FORMAT, **facts, "files": dict(sorted(digests.items()))}
    with (folder / MANIFEST).open("w") as handle:
        json.dump({**manifest, "digest": _manifest_digest(manifest)}, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())
    give_name(folder, path)


def give_name(folder: Path, path: Path) -> None:
    """Make a folder whose files are whole and on the disk a checkpoint."""
    for below in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
        sync(below)
    if path.exists():  # these steps have been taken again
        drop(path)
    folder.rename(path)
    sync(path.parent)
    sync(path.parents[1])


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Delete a checkpoint; killed in the middle, what is left does not look like one."""
    doomed = path.with_name(f"{_ASIDE}deleted-{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def drop(path: Path) -> None:
    """Delete a checkpoint that the run has gone back behind; one that cannot be read is kept under another name."""
    try:
        read_manifest(path)
    except ValueError:
        number = next(n for n in itertools.count(1) if not path.with_name(f"{_DAMAGED}{path.name}-{n}").exists())
        path.rename(path.with_name(f"{_DAMAGED}{path.name}-{number}"))
    else:
        _remove(path)


def hold(path: Path) -> Path:
    """A checkpoint's files in a folder that is not retired, as hard links, for the caller to delete; else itself."""
    folder = path.with_name(f"{_ASIDE}held-{path.name}")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        shutil.copytree(path, folder, copy_function=os.link)
    except (OSError, shutil.Error):  # no hard links on this file system, or retired just now
        shutil.rmtree(folder, ignore_errors=True)
        return path
    return folder


def retire(run_dir: Path, step: int, keep: int, keep_every: int) -> None:
    """Delete old checkpoints, and drop those of later steps: they were passed over, and these steps are taken anew."""
    drop_after(run_dir, step)
    for path in complete(run_dir)[:-keep]:
        if not keep_every or step_of(path) % keep_every:
            _remove(path)


def drop_after(run_dir: Path, step: int) -> None:
    """Drop checkpoints of later steps, which a rollback has undone or which were passed over."""
    for path in complete(run_dir):
        if step_of(path) > step:
            drop(path)


def complete(run_dir: Path, folder: str = "checkpoints") -> list[Path]:
    """The checkpoints in a folder of the run, readable or not, in order of steps; not what else somebody put there."""
    return sorted((path for path in (run_dir / folder).glob(f"{PREFIX}*") if is_name(path.name)), key=step_of)


def is_name(name: str) -> bool:
    """Whether a folder of this name is a checkpoint: a copy such as ``step-00000100.old`` is not."""
    digits = name.removeprefix(PREFIX)
    return name.startswith(PREFIX) and digits.isascii() and digits.isdigit()


def _manifest_digest(manifest: dict[str, Any]) -> str:
    values = {name: value for name, value in manifest.items() if name != "digest"}
    return sha256_json(values)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of one checkpoint; ``ValueError`` naming the file that is missing, damaged or changed."""
    try:
        manifest: dict[str, Any] = parse_json(read_bounded(path / MANIFEST))
    except OSError as error:
        raise ValueError(f"{path}: not a checkpoint, {MANIFEST} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"{path / MANIFEST}: not valid JSON ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("digest") != _manifest_digest(manifest):
        found = manifest.get("format", 1) if isinstance(manifest, dict) else None
        if found != FORMAT:
            raise ValueError(f"{path / MANIFEST}: expected checkpoint format {FORMAT}, found {found}")
        raise ValueError(f"{path / MANIFEST}: damaged or changed, its content differs from its own digest")
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"{file}: listed in the manifest, but missing")
        if sha256_file(file) != expected:
            raise ValueError(f"{file}: content differs from its digest in the manifest")
    return manifest


def latest_checkpoint(
    run_dir: Path, fits: Callable[[dict[str, Any]], bool] = bool, folder: str = "checkpoints"
) -> Path | None:
    """The newest checkpoint in a folder of the run whose files are all as written and whose manifest ``fits``.

    Damaged ones are named on stderr and passed over.
    """
    for path in reversed(complete(run_dir, folder)):
        try:
            if not fits(read_manifest(path)):
                continue
        except (ValueError, OSError) as error:
            print(f"warning: damaged checkpoint passed over: {error}", file=sys.stderr, flush=True)
            continue
        return path
    return None


def to_continue(run_dir: Path, resume: str) -> Path | None:
    """The checkpoint that a start continues from; ``None``: start anew. What a killed save left behind is deleted.

    Later ones, which could not be read, get another name: nothing will overwrite or retire them.

    Raises:
        ValueError: ``resume`` ("auto", "never" or "must") forbids what is there, or there are checkpoints of which none
            can be read: starting anew would be a silent loss of the run.
    """
    for path in (run_dir / "checkpoints").glob(f"{_ASIDE}*"):
        shutil.rmtree(path, ignore_errors=True)  # NFS keeps files that are still open somewhere, as .nfs*
    found = latest_checkpoint(run_dir)
    if found is not None and resume == "never":
        raise ValueError(f"{run_dir}: resume=never, but it holds checkpoint {found.name}; use another run_dir")
    if found is None and (unread := complete(run_dir)):
        raise ValueError(
            f"{run_dir / 'checkpoints'}: none of {len(unread)} checkpoints ({unread[0].name} to {unread[-1].name}) can "
            "be read, see the warnings above; put a copy back, or move the folder away to start anew"
        )
    if found is None and resume == "must":
        raise ValueError(f"{run_dir}: resume=must, but it holds no valid checkpoint")
    if found is not None:
        drop_after(run_dir, step_of(found))
    return found
