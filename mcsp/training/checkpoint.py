"""Checkpoints that are complete or absent: written aside, digested, named last, verified before they are read.

``run_dir/checkpoints/step-00000100/`` holds ``state/`` (DeepSpeed's files) and ``manifest.json``. All ranks must see
the same ``run_dir``.
"""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from mcsp.schema import SCHEMA_VERSION

_PREFIX = "step-"


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` optimizer steps lies."""
    return run_dir / "checkpoints" / f"{_PREFIX}{step:08d}"


def aside_path(path: Path) -> Path:
    """Where a checkpoint is written before it is complete; a crash leaves it there and the next save clears it."""
    return path.with_name("incomplete-" + path.name)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(path: Path, facts: dict[str, Any], keep: int) -> None:
    """Turn a folder written at :func:`aside_path` into a checkpoint, and delete all but the newest ``keep``.

    ``facts`` (step, config, index hash ...) enter the manifest beside the digest of every file. One rank calls it.
    """
    aside = aside_path(path)
    files = sorted(p for p in aside.rglob("*") if p.is_file())
    for file in files:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    digests = {str(p.relative_to(aside)): _digest(p) for p in files}
    manifest = {"schema_version": SCHEMA_VERSION, **facts, "files": digests}
    with (aside / "manifest.json").open("w") as handle:
        json.dump(manifest, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())
    if path.exists():
        shutil.rmtree(path)
    aside.rename(path)
    for old in _complete(path.parents[1])[:-keep]:
        shutil.rmtree(old)


def clear_incomplete(run_dir: Path) -> None:
    """Delete what a killed save left behind."""
    for path in (run_dir / "checkpoints").glob("incomplete-*"):
        shutil.rmtree(path)


def _complete(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "checkpoints").glob(f"{_PREFIX}*"))


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of one checkpoint; ``ValueError`` naming the file that is missing, damaged or changed."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: not a checkpoint, manifest.json is missing") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path / 'manifest.json'}: not valid JSON ({error})") from None
    for name, digest in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"{file}: listed in the manifest, but missing")
        if _digest(file) != digest:
            raise ValueError(f"{file}: content differs from its digest in the manifest")
    return manifest


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint whose files are all as written; damaged ones are named on stderr and passed over."""
    for path in reversed(_complete(run_dir)):
        try:
            read_manifest(path)
        except ValueError as error:
            print(f"warning: damaged checkpoint passed over: {error}", file=sys.stderr, flush=True)
            continue
        return path
    return None


# Keys that may differ between a run and its continuation: they change no weight.
_FREE = {"corpus_dir", "run_dir", "checkpoint_every", "keep_checkpoints", "log_every", "resume", "workers"}


def check_continues(path: Path, manifest: dict[str, Any], facts: dict[str, Any]) -> None:
    """Raise ``ValueError`` unless a run with ``facts`` may continue from this checkpoint bit for bit."""
    if manifest["index_hash"] != facts["index_hash"]:
        raise ValueError(
            f"{path}: checkpoint of another corpus (index {manifest['index_hash'][:12]}, the given corpus has "
            f"{facts['index_hash'][:12]}); use that corpus, another run_dir, or resume=never with an empty run_dir"
        )
    for name in ("world_size", "zero_stage"):
        if manifest[name] != facts[name]:
            raise ValueError(
                f"{path}: saved with {name} {manifest[name]}, this run has {facts[name]}; start it with the same"
            )
    old, new = manifest["config"], facts["config"]
    changed = [k for k in sorted((set(old) | set(new)) - _FREE) if old.get(k) != new.get(k)]
    if changed:
        found = "; ".join(f"{k}: {old.get(k)} -> {new.get(k)}" for k in changed)
        raise ValueError(f"{path}: the config differs from the saved one ({found}); restore it or use another run_dir")
