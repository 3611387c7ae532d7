"""Provenance of a result file: hardware, versions and commit, without paths of the machine."""

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def hardware() -> dict[str, Any]:
    """CPU model, usable cores, memory [GiB] and CUDA devices of this machine."""
    cpu = re.search(r"^model name\s*: (.*)$", _text("/proc/cpuinfo"), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", _text("/proc/meminfo"), re.MULTILINE)
    gpus = subprocess.run(["sh", "-c", "nvidia-smi -L 2>/dev/null"], capture_output=True, text=True, check=False).stdout
    return {
        "cpu": cpu.group(1) if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory.group(1)) / 2**20, 1) if memory else None,
        "gpus": [re.sub(r" \(UUID.*", "", line) for line in gpus.splitlines()],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def commit() -> str | None:
    """The commit of this code, with ``-dirty`` where tracked files were changed; None outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None if (ROOT / ".git").exists() else None


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Installed versions of distributions; None for one that is not installed."""
    return {name: _version(name) for name in packages}


def made_by(packages: Sequence[str]) -> dict[str, Any]:
    """Commit, machine and versions of ``packages``: what every result file says of its origin."""
    return {"commit": commit(), "hardware": hardware(), "versions": versions(packages)}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _text(path: str) -> str:
    return Path(path).read_text() if Path(path).is_file() else ""
