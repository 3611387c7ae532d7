"""``make mutate``: put one mistake at a time into named core files and see whether their tests notice.

Cosmic Ray finds the places and makes the changes, in a copy of the tree. Every mutant is tested in a fork of one
process that has imported the large packages already, so that it costs seconds. The mutants are a sample, drawn in turn
from all files; the files and the tests that must notice are below. Result: ``benchmarks/results/mutants.json``, with
the line of every survivor.
"""

import argparse
import difflib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
COSMIC_RAY = "cosmic-ray==8.7.0"
# A file of the core, and what pytest is told to run for each of its mutants: no test that builds a corpus or starts
# ranks, so that a mutant takes seconds.
TARGETS: dict[str, tuple[str, ...]] = {
    "mcsp/windows.py": ("tests/test_windows.py",),
    "mcsp/schema.py": ("tests/test_schema.py", "tests/test_batch.py"),
    "mcsp/wording.py": ("tests/test_wording.py",),
    "mcsp/training/health.py": ("tests/training/test_health.py",),
    "mcsp/training/reading/order.py": ("tests/training/reading/test_order.py",),
    "mcsp/training/rate.py": ("tests/training/test_rate.py",),
    "mcsp/training/saving/checkpoint.py": ("tests/training/saving/test_checkpoint.py", "-k", "not at_any_point"),
    "mcsp/evaluate/scores.py": ("tests/evaluate/test_scores.py", "tests/evaluate/test_roc_ties.py"),
    "mcsp/evaluate/splits.py": ("tests/evaluate/test_splits.py",),
    "mcsp/model/matrix_log.py": ("tests/model/test_tangent.py",),
    "kernels/contrastive/reference.py": ("tests/kernels/test_contrastive_reference.py",),
    "kernels/contrastive/problem.py": ("tests/kernels/test_contrastive_reference.py",
                                       "tests/kernels/test_contrastive_masks.py"),
    "kernels/spectral/reference.py": ("tests/kernels/test_spectral_bands.py",
                                      "tests/kernels/test_spectral_reference.py"),
    "data_sharding/clean/eeg_quality.py": ("tests/data_sharding/clean/test_eeg_quality.py",),
    "data_sharding/clean/recording.py": ("tests/data_sharding/clean/test_recording.py",
                                         "tests/data_sharding/clean/test_eeg_quality.py"),
    "data_sharding/build/privacy.py": (
        "tests/data_sharding/build/test_privacy.py", "-k", "kind or suspected or names or columns or hashes"
    ),
    "data_sharding/store/index.py": ("tests/data_sharding/store/test_index.py",),
    "data_sharding/bids/pairing.py": ("tests/data_sharding/bids/test_pairing.py",),
    "data_sharding/convert/manifest.py": ("tests/data_sharding/convert/test_manifest.py",),
}  # fmt: skip
# Mistakes that people make. Left out: bit operations (in annotations nothing would change) and unlikely exchanges.
ORDER, EQUAL = ("Lt", "LtE", "Gt", "GtE"), ("Eq", "NotEq")
OPERATORS = {f"ReplaceComparisonOperator_{a}_{b}" for kind in (ORDER, EQUAL) for a in kind for b in kind if a != b}
OPERATORS |= {f"ReplaceBinaryOperator_{a}" for a in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Div")}
OPERATORS |= {"ReplaceAndWithOr", "ReplaceOrWithAnd", "AddNot", "NumberReplacer", "ReplaceTrueWithFalse"}
OPERATORS |= {"ReplaceFalseWithTrue", "ReplaceContinueWithBreak", "ZeroIterationForLoop"}
OPERATORS |= {f"ReplaceUnaryOperator_Delete_{a}" for a in ("Not", "USub", "Invert")}
PRELOADED = ["torch", "scipy.signal", "scipy.stats", "pandas", "sklearn.metrics", "pyarrow", "mne", "hypothesis"]


def cosmic_ray(*arguments: str | Path, folder: Path) -> str:
    """What the command printed; the environment variable COSMIC_RAY names another that is installed."""
    command = [*os.environ.get("COSMIC_RAY", f"uv tool run {COSMIC_RAY}").split(), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def mutants_of(path: str, copy: Path) -> list[tuple[str, str, int, int]]:
    """File, operator, its occurrence and line of every mutant of a file."""
    options = copy / "mutate.toml"
    options.write_text(
        f'[cosmic-ray]\nmodule-path = "{path}"\ntimeout = 1.0\nexcluded-modules = []\ntest-command = "false"\n'
        '[cosmic-ray.distributor]\nname = "local"\n'
    )
    session = copy / "mutate.sqlite"
    session.unlink(missing_ok=True)
    cosmic_ray("init", options, session, folder=copy)
    found = []
    for line in cosmic_ray("dump", session, folder=copy).splitlines():
        [change] = json.loads(line)[0]["mutations"]
        if change["operator_name"].removeprefix("core/") in OPERATORS:
            found.append((path, change["operator_name"], change["occurrence"], change["start_pos"][0]))
    return sorted(found)


def outcome(tests: tuple[str, ...], copy: Path, seconds: float) -> str:
    """How the tests end in a fork of this process: "passed", "failed" or "too long"."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        os.environ["PYTHONPATH"] = str(copy)
        sys.dont_write_bytecode = True
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        try:
            code = int(pytest.main(["-x", "-q", "-m", "not slow and not multirank", "-p", "no:cacheprovider", *tests]))
        except BaseException:  # noqa: BLE001, the fork must not come back
            code = 1
        os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return "passed" if os.waitstatus_to_exitcode(status) == 0 else "failed"
        time.sleep(0.05)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "too long"


def changed_lines(before: str, after: str) -> list[str]:
    """Lines that a mutation took out and put in, with - and +."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return [line.strip() for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]


def sample(copy: Path, only: str, count: int, seed: int) -> list[tuple[str, str, int, int]]:
    """So many mutants, drawn in turn from all files."""
    draw = random.Random(seed)
    by_file = [mutants_of(path, copy) for path in TARGETS if only in path]
    for found in by_file:
        draw.shuffle(found)
    print(f"{sum(map(len, by_file))} mutants of {len(by_file)} files", flush=True)
    return [m for m in chain.from_iterable(zip_longest(*by_file)) if m is not None][:count]


def main() -> int:
    """Status 0, or 2 where the tests fail without any mutation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=100, help="how many are drawn")
    parser.add_argument("--seconds", type=float, default=3600.0, help="after so long no other is begun")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", default="", metavar="TEXT", help="files whose path has this in it")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "mutants.json")
    arguments = parser.parse_args()
    for name in PRELOADED:
        importlib.import_module(name)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        copy = Path(name) / "tree"
        shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(".*", "__pycache__", "demo_output"))
        mutants = sample(copy, arguments.only, arguments.mutants, arguments.seed)
        begin, usual = time.monotonic(), dict[str, float]()
        for path, operator, occurrence, line in mutants:
            if time.monotonic() - begin > arguments.seconds:
                break
            if path not in usual:
                start = time.monotonic()
                if outcome(TARGETS[path], copy, 600.0) != "passed":
                    print(f"error: {path}: its tests fail without any mutation", file=sys.stderr)
                    return 2
                usual[path] = time.monotonic() - start
            file = copy / path
            before = file.read_text()
            cosmic_ray("apply", path, operator, str(occurrence), folder=copy)
            change = changed_lines(before, file.read_text())
            ended = outcome(TARGETS[path], copy, 60 + 4 * usual[path])
            file.write_text(before)
            rows.append({"file": path, "line": line, "change": change, "killed": ended != "passed"})
            print(f"{'killed  ' if ended != 'passed' else 'SURVIVED'} {path}:{line} {' '.join(change)}", flush=True)
    report(rows, arguments.seed, arguments.out)
    return 0


def report(rows: list[dict[str, Any]], seed: int, out: Path) -> None:
    """Write the result, and print how many mutants of each file the tests noticed."""
    from mcsp.provenance import made_by  # not before: forks must import the copy

    files = Counter(row["file"] for row in rows)
    killed = Counter(row["file"] for row in rows if row["killed"])
    content = {
        **made_by(["pytest", "hypothesis"]),
        "tool": COSMIC_RAY,
        "seed": seed,
        "mutants": len(rows),
        "killed": killed.total(),
        "files": {path: {"mutants": n, "killed": killed[path]} for path, n in sorted(files.items())},
        "survivors": [{k: v for k, v in row.items() if k != "killed"} for row in rows if not row["killed"]],
    }
    out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    for path, n in sorted(files.items()):
        print(f"{killed[path]:4d} of {n:3d} killed  {path}")
    print(f"{killed.total():4d} of {len(rows):3d} killed, survivors in {out}")


if __name__ == "__main__":
    sys.exit(main())
