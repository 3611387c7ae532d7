"""Compile gates under another Triton: python tests/kernels/with_triton.py VERSION FOLDER [pytest options]

Installs that version alone into FOLDER, where it stays, and runs the tests of compilation with it.
"""

import os
import subprocess
import sys
from pathlib import Path

TESTS = ("test_contrastive_aot.py", "test_spectral_aot.py")


def main() -> int:
    """The exit status of the tests."""
    if len(sys.argv) < 3:
        print(__doc__)
        return 2
    number, folder, here = sys.argv[1], Path(sys.argv[2]).resolve(), Path(__file__).parent
    if not (folder / f"triton-{number}.dist-info").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder), f"triton=={number}"]
        subprocess.run(pip, check=True)
    paths = os.pathsep.join([str(folder), str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(str(here / name) for name in TESTS)]
    return subprocess.run([*command, *sys.argv[3:]], env=os.environ | {"PYTHONPATH": paths}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
