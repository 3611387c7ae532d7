"""Do the versions fit together? Resolves constraints.txt and the lower bounds of pyproject.toml; downloads no wheel.

python .ci/resolve.py           fails where a set does not resolve, a package is not pinned, or a pin is not needed
python .ci/resolve.py --lock    also writes requirements.txt: what `make setup` installs, with hashes, for stock torch

Sets: Python 3.11 to 3.13 on Linux, each with the stock wheel of torch and with its build for CPUs, and the lower bounds
with the stock wheel. Without network it says so and ends with 0.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
# What torch's build for CPUs asks for, from the METADATA of torch-2.13.0+cpu: no CUDA and no Triton. It is stated here,
# because that build comes from another index than everything else.
CPU_TORCH = """
[[dependency-metadata]]
name = "torch"
version = "2.13.0"
requires-dist = ["filelock", "typing-extensions>=4.10.0", "setuptools>=77.0.3", "sympy>=1.13.3", "networkx>=2.5.1",
                 "jinja2", "fsspec>=0.8.5"]
"""
CUDA = re.compile(r"(nvidia|cuda)-")  # torch pins these itself
BUILD_TOOLS = {"wheel"}  # `make setup` installs it; nothing asks for it
UNREACHABLE = re.compile(r"dns error|error sending request|connection|timed out", re.IGNORECASE)


Resolved = subprocess.CompletedProcess[str]


def uv(*options: str) -> Resolved:
    """Resolve pyproject.toml with all extras, or those named. All but DeepSpeed must have wheels."""
    command = [
        shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv", "pip", "compile", "pyproject.toml",
        "--quiet", "--no-annotate", "--no-header", "--python-platform", "x86_64-manylinux_2_28",
        "--only-binary", ":all:", "--no-binary", "deepspeed", *options,
        *(() if "--extra" in options else ("--all-extras",)),
    ]  # fmt: skip
    environment = {"UV_HTTP_TIMEOUT": "30", "UV_HTTP_RETRIES": "2", **os.environ}
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False, env=environment)


def names(lines: str) -> set[str]:
    """Normalised names of the lines ``name==version``."""
    return {re.sub(r"[-_.]+", "-", name).lower() for name in re.findall(r"^([\w.-]+)==", lines, re.MULTILINE)}


def resolve_all() -> dict[str, Resolved]:
    """Every set by its title, resolved side by side, because most of the time is waiting for the index."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as config, ThreadPoolExecutor(9) as pool:
        config.write(CPU_TORCH)
        config.flush()
        sets = {}
        for python in PYTHONS:
            version = ("--python-version", python)
            pins = ("-c", "constraints.txt", *version)
            sets[f"pins, Python {python}, stock torch"] = pool.submit(uv, *pins)
            sets[f"pins, Python {python}, torch for CPUs"] = pool.submit(uv, *pins, "--config-file", config.name)
            lowest = ("--resolution", "lowest-direct", *version)
            sets[f"lower bounds, Python {python}, stock torch"] = pool.submit(uv, *lowest)
        return {title: resolved.result() for title, resolved in sets.items()}


def write_lock() -> Resolved:
    """Hashes of every file of every package that `make setup` installs; the peers of the benchmarks are left out."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    chosen = [option for extra in extras if extra != "bench" for option in ("--extra", extra)]
    pins = ("-c", "constraints.txt", "--python-version", PYTHONS[0])
    return uv(*pins, *chosen, "--generate-hashes", "--output-file", "requirements.txt")


def main() -> int:
    """Print what every set came to; 1 where one does not resolve or the pins are not what is installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lock", action="store_true", help="write requirements.txt with hashes")
    lock = parser.parse_args().lock
    found = resolve_all()
    for title, resolved in found.items():
        if resolved.returncode and UNREACHABLE.search(resolved.stderr):
            print(f"SKIPPED, no package index was reached: {resolved.stderr.strip().splitlines()[-1].strip()}")
            return 0
        print(f"{title}: {f'{len(names(resolved.stdout))} packages' if not resolved.returncode else resolved.stderr}")
    if any(resolved.returncode for resolved in found.values()):
        print("error: expected versions that fit together; see above which do not", file=sys.stderr)
        return 1
    pinned = names((ROOT / "constraints.txt").read_text())
    needed = set().union(*(names(resolved.stdout) for title, resolved in found.items() if title.startswith("pins")))
    missing = sorted(name for name in needed - pinned if not CUDA.match(name))
    unused = sorted(pinned - needed - BUILD_TOOLS)
    if missing or unused:
        print(f"error: constraints.txt: without a pin {missing}, pinned and never installed {unused}", file=sys.stderr)
        return 1
    if lock:
        written = write_lock()
        print(written.stderr or "requirements.txt: written")
        return written.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
