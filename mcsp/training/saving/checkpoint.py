"""Checkpoints that are complete or absent: written aside, digested, named last, verified before they are read.

``run_dir/checkpoints/step-00000100/`` holds ``state/`` (one file per rank, see :mod:`mcsp.training.saving.state`) and
``manifest.json`` with the digest of every file and of itself. Every file and folder is forced to disk before the rename
that makes it a checkpoint, and the rename itself after it. All ranks must see the same ``run_dir``.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mcsp import distributed
from mcsp.schema import SCHEMA_VERSION

_PREFIX, _ASIDE = "step-", "incomplete-"
MANIFEST = "manifest.json"
FORMAT = 2  # 1 held DeepSpeed's own files


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` optimizer steps lies."""
    return run_dir / "checkpoints" / f"{_PREFIX}{step:08d}"


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix(_PREFIX))


def save(
    run_dir: Path, step: int, facts: dict[str, Any], write: Callable[[Path], Path], keep: int, keep_every: int = 0
) -> Path:
    """Write a checkpoint and delete old ones; every rank calls it.

    Args:
        run_dir: of the run.
        step: optimizer steps taken.
        facts: enter the manifest (config, index hash ...).
        write: writes this rank's file below a folder and returns it.
        keep: the newest of this many stay.
        keep_every: those after a multiple of this many steps stay, too; 0: none.

    Raises:
        ValueError: some rank could not write, in one line; earlier checkpoints are as they were.
    """
    path = checkpoint_path(run_dir, step)
    aside = path.with_name(_ASIDE + path.name)
    problem, digests = "", {}
    if distributed.is_main():
        problem = _attempt(lambda: _prepare(aside))
    problem = distributed.gather_objects(problem)[0]
    if not problem:

        def write_own() -> None:
            file = write(aside)
            sync(file)
            digests[str(file.relative_to(aside))] = _digest(file)

        problem = _attempt(write_own)
        parts = distributed.gather_objects((problem, digests))
        problem = next((text for text, _ in parts if text), "")
        digests = {name: digest for _, part in parts for name, digest in part.items()}
    if distributed.is_main() and not problem:
        problem = _attempt(lambda: _seal(path, aside, {**facts, "step": step}, digests))
    if distributed.is_main() and problem:
        shutil.rmtree(aside, ignore_errors=True)  # a full disk gets its space back
    problem = distributed.gather_objects(problem)[0]
    if problem:
        raise ValueError(f"{path}: cannot save ({problem}); earlier checkpoints are kept")
    if distributed.is_main():
        _retire(run_dir, step, keep, keep_every)
    return path


def _attempt(action: Callable[[], None]) -> str:
    """Run it; what the disk had against it, or nothing."""
    try:
        action()
    except (OSError, SafetensorError) as error:
        return " ".join(str(error).split())
    return ""


def _prepare(aside: Path) -> None:
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)


def _seal(path: Path, aside: Path, facts: dict[str, Any], digests: dict[str, str]) -> None:
    """Turn a folder whose files are written and forced to disk into a checkpoint."""
    manifest = {"schema_version": SCHEMA_VERSION, "format": FORMAT, **facts, "files": dict(sorted(digests.items()))}
    with (aside / MANIFEST).open("w") as handle:
        json.dump({**manifest, "digest": _manifest_digest(manifest)}, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())
    for folder in (*(p for p in aside.rglob("*") if p.is_dir()), aside):
        sync(folder)
    if path.exists():  # a damaged one, passed over: these steps have been taken again
        _remove(path)
    aside.rename(path)
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


def _retire(run_dir: Path, step: int, keep: int, keep_every: int) -> None:
    """Delete old checkpoints, and those of later steps: they were passed over, and these steps are taken anew."""
    complete = _complete(run_dir)
    past = [p for p in complete if step_of(p) <= step]
    for path in complete:
        lasting = keep_every and step_of(path) % keep_every == 0
        if path not in past or (path not in past[-keep:] and not lasting):
            _remove(path)


def discard_after(run_dir: Path, step: int) -> None:
    """Delete checkpoints of later steps, which a rollback has undone."""
    for path in _complete(run_dir):
        if step_of(path) > step:
            _remove(path)


def clear_incomplete(run_dir: Path) -> None:
    """Delete what a killed save left behind."""
    for path in (run_dir / "checkpoints").glob(f"{_ASIDE}*"):
        shutil.rmtree(path)


def _complete(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "checkpoints").glob(f"{_PREFIX}*"))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest_digest(manifest: dict[str, Any]) -> str:
    values = {name: value for name, value in manifest.items() if name != "digest"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of one checkpoint; ``ValueError`` naming the file that is missing, damaged or changed."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: not a checkpoint, {MANIFEST} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"{path / MANIFEST}: not valid JSON ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("digest") != _manifest_digest(manifest):
        found = manifest.get("format", 1) if isinstance(manifest, dict) else None
        if found != FORMAT:
            raise ValueError(f"{path / MANIFEST}: expected checkpoint format {FORMAT}, found {found}")
        raise ValueError(f"{path / MANIFEST}: damaged or changed, its content differs from its own digest")
    for name, digest in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"{file}: listed in the manifest, but missing")
        if _digest(file) != digest:
            raise ValueError(f"{file}: content differs from its digest in the manifest")
    return manifest


def latest_checkpoint(run_dir: Path, fits: Callable[[dict[str, Any]], bool] = bool) -> Path | None:
    """The newest checkpoint whose files are all as written and whose manifest ``fits``.

    Damaged ones are named on stderr and passed over.
    """
    for path in reversed(_complete(run_dir)):
        try:
            if not fits(read_manifest(path)):
                continue
        except ValueError as error:
            print(f"warning: damaged checkpoint passed over: {error}", file=sys.stderr, flush=True)
            continue
        return path
    return None


# Keys that may differ between a run and its continuation: the same batches, the same gradient but for rounding; and
# what whoever watches over a run decides about.
_FREE = {
    "corpus_dir", "run_dir", "checkpoint_every", "keep_checkpoints", "keep_every", "log_every", "resume", "workers",
    "max_bad_windows", "cache_dir", "cache_gb",
    "steps", "schedule_steps", "deepspeed", "micro_batches", "activation_checkpointing", "compile", "init_from",
    "health", "watchdog_seconds", "validate_every", "validation_batches", "keep_best", "collapse_after",
}  # fmt: skip


def check_continues(path: Path, manifest: dict[str, Any], facts: dict[str, Any]) -> None:
    """Raise ``ValueError`` unless a run with ``facts`` may continue from this checkpoint.

    Ranks, ZeRO stage and micro-batches may differ: the data stay the same, the numbers up to rounding.
    """
    if manifest["index_hash"] != facts["index_hash"]:
        raise ValueError(
            f"{path}: checkpoint of another corpus (index {manifest['index_hash'][:12]}, the given corpus has "
            f"{facts['index_hash'][:12]}); use that corpus, another run_dir, or resume=never with an empty run_dir"
        )
    old, new = manifest["config"], facts["config"]
    changed = [k for k in sorted((set(old) | set(new)) - _FREE) if old.get(k) != new.get(k)]
    if changed:
        found = "; ".join(f"{k}: {old.get(k)} -> {new.get(k)}" for k in changed)
        raise ValueError(
            f"{path}: the config differs from the saved one ({found}); restore it, or start another run_dir from these "
            f"weights with init_from={path}"
        )
    lengths = [config.get("schedule_steps") or config["steps"] for config in (old, new)]
    if lengths[0] != lengths[1]:
        raise ValueError(
            f"{path}: its learning rate was scheduled over {lengths[0]} steps, this run asks for {lengths[1]}; add "
            f"schedule_steps={lengths[0]} (steps beyond it keep the final rate), or start another run_dir with "
            f"init_from={path}"
        )
