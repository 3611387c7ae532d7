"""What result files say of their origin, also without git, and the memory of this process."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def commit(*folders: str) -> dict[str, object]:
    """The commit, and whether ``folders`` were changed since; None where git or its folder is missing."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        head, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", *folders)
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "changed_since": None}
    return {"commit": head, "changed_since": bool(changed)}


def resident_mib(which: str) -> float:
    """Memory of this process [MiB]: ``VmRSS`` now, ``VmHWM`` its peak (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) / 1024
