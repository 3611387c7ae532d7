"""``make mutate``: put one mistake at a time into named core files and see whether their tests notice.

Cosmic Ray finds the places and makes the changes, in a copy of the tree. Every mutant is tested in a fork of one
process that has imported the large packages already, so that it costs seconds. The mutants are a sample, drawn in turn
from all files; the files and the tests that are tried first are below. What these do not notice is tried once more,
with all tests of the file's room. Result: ``benchmarks/results/mutants.json``, with the line of every survivor and why
no test notices it. A run that was cut short goes on with ``--resume``, which also tries survivors again, after tests
were added for them: ``first`` counts what was found before.
"""

import argparse
import ast
import difflib
import hashlib
import importlib
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
COSMIC_RAY = "cosmic-ray==8.7.0"
# A file of the core, and what pytest is told to run for each of its mutants: no test that starts ranks, so that a
# mutant takes seconds; corpora are built once, before the first mutation.
TARGETS: dict[str, tuple[str, ...]] = {
    "mcsp/windows.py": ("tests/test_windows.py", "tests/training/reading/test_cuts.py"),
    "mcsp/schema.py": ("tests/test_schema.py", "tests/test_batch.py", "tests/data_sharding/store/test_index.py"),
    "mcsp/wording.py": ("tests/test_wording.py",),
    "mcsp/training/health.py": ("tests/training/test_health.py",),
    "mcsp/training/reading/loader.py": ("tests/training/reading/test_loader.py", "-k", "not test_a_run"),
    "mcsp/training/reading/order.py": ("tests/training/reading/test_order.py",),
    "mcsp/config/pretrain.py": ("tests/test_config_pretrain.py", "tests/training/test_rate.py", "tests/test_config.py"),
    "mcsp/training/saving/checkpoint.py": ("tests/training/saving/test_checkpoint.py",
                                           "tests/training/saving/test_starts.py", "-k", "not at_any_point"),
    "mcsp/evaluate/scores.py": ("tests/evaluate/test_scores.py", "tests/evaluate/test_roc_ties.py"),
    "mcsp/evaluate/splits.py": ("tests/evaluate/test_splits.py",),
    "kernels/contrastive/blocks.py": ("tests/kernels/test_contrastive_parts.py",
                                      "tests/kernels/test_contrastive_blocks.py",
                                      "tests/kernels/test_contrastive_cases.py"),
    "kernels/contrastive/reference.py": ("tests/kernels/test_contrastive_reference.py",),
    "kernels/contrastive/problem.py": ("tests/kernels/test_contrastive_parts.py",
                                       "tests/kernels/test_contrastive_reference.py",
                                       "tests/kernels/test_contrastive_masks.py",
                                       "tests/kernels/test_contrastive_blocks.py"),
    "kernels/spectral/reference.py": ("tests/kernels/test_spectral_bands.py",
                                      "tests/kernels/test_spectral_reference.py",
                                      "tests/kernels/test_spectral_errors.py",
                                      "tests/kernels/test_spectral_coherence.py"),
    "data_sharding/clean/eeg.py": ("tests/data_sharding/clean/test_eeg_filter.py",
                                   "tests/data_sharding/clean/test_eeg.py"),
    "data_sharding/clean/recording.py": ("tests/data_sharding/clean/test_recording.py",
                                         "tests/data_sharding/clean/test_eeg_quality.py"),
    "data_sharding/build/privacy.py": ("tests/data_sharding/build/test_privacy.py",),
    "data_sharding/store/index.py": ("tests/data_sharding/store/test_index.py",),
    "data_sharding/store/reader.py": ("tests/data_sharding/store/test_reader.py",),
    "data_sharding/bids/ref.py": ("tests/data_sharding/bids/test_versions.py",
                                  "tests/data_sharding/bids/test_find.py",
                                  "tests/data_sharding/bids/test_pairing.py",
                                  "tests/data_sharding/clean/test_fmri_files.py"),
    "data_sharding/convert/to_bids.py": ("tests/data_sharding/convert/test_manifest.py",),
    "data_sharding/bids/tables.py": ("tests/data_sharding/bids/test_tables.py",),
    "data_sharding/bids/find.py": ("tests/data_sharding/bids/test_versions.py",
                                   "tests/data_sharding/bids/test_find.py",
                                   "tests/data_sharding/bids/test_select.py",
                                   "tests/data_sharding/bids/test_participants.py"),
    "data_sharding/parcels/series.py": ("tests/data_sharding/parcels/test_series.py",
                                        "tests/data_sharding/clean/test_fmri_files.py"),
    "data_sharding/parcels/parcellation.py": ("tests/data_sharding/parcels/test_parcellation.py",
                                              "tests/data_sharding/clean/test_fmri_files.py"),
    "data_sharding/parcels/atlases.py": ("tests/data_sharding/parcels/test_spaces.py",
                                         "tests/data_sharding/parcels/test_atlases.py",
                                         "tests/data_sharding/clean/test_fmri_files.py"),
    "data_sharding/clean/eeg_headers.py": ("tests/data_sharding/clean/test_eeg_header_sizes.py",
                                           "tests/data_sharding/clean/test_eeg_headers.py",
                                           "tests/data_sharding/clean/test_eeg_reasons.py"),
    "data_sharding/clean/eeg_channels.py": ("tests/data_sharding/clean/test_eeg_channels.py",
                                            "tests/data_sharding/clean/test_eeg_frames.py"),
    "data_sharding/clean/fmri.py": ("tests/data_sharding/clean/test_fmri.py",
                                    "tests/data_sharding/clean/test_fmri_confounds.py",
                                    "tests/data_sharding/clean/test_fmri_files.py",
                                    "tests/data_sharding/clean/test_fmri_layouts.py"),
    "data_sharding/clean/fmri_files.py": ("tests/data_sharding/clean/test_fmri.py",
                                          "tests/data_sharding/clean/test_fmri_voxels.py",
                                          "tests/data_sharding/clean/test_fmri_files.py",
                                          "tests/data_sharding/clean/test_fmri_layouts.py"),
    "data_sharding/clean/eeg_files.py": ("tests/data_sharding/clean/test_eeg_times.py",
                                         "tests/data_sharding/clean/test_eeg_headers.py",
                                         "tests/data_sharding/clean/test_eeg_files.py"),
    "data_sharding/clean/eeg_frames.py": ("tests/data_sharding/clean/test_eeg_frames.py",),
    "data_sharding/build/plan.py": ("tests/data_sharding/build/test_plan_shards.py",
                                    "tests/data_sharding/build/test_plan.py"),
    "data_sharding/build/pseudonyms.py": ("tests/data_sharding/build/test_pseudonyms.py",),
    "data_sharding/build/shards.py": ("tests/data_sharding/build/test_shards.py",
                                      "tests/data_sharding/build/test_samples.py"),
    "data_sharding/store/table.py": ("tests/data_sharding/store/test_table.py",),
    "kernels/spectral/framing.py": ("tests/kernels/test_spectral_framing.py",
                                    "tests/kernels/test_spectral_cases.py", "tests/kernels/test_spectral_reference.py"),
    "mcsp/batch.py": ("tests/test_batch.py",),
    "mcsp/augmentations/views.py": ("tests/augmentations/test_draws.py", "tests/augmentations/test_views.py"),
    "mcsp/losses/objective.py": ("tests/losses/test_objective.py",),
    "mcsp/training/prediction.py": ("tests/training/test_prediction.py",),
    "mcsp/model/tangent.py": ("tests/model/test_tangent.py",),
    "mcsp/model/spatial.py": ("tests/model/test_spatial.py", "tests/model/test_encoders.py",
                              "tests/model/test_skips.py"),
    "mcsp/model/temporal.py": ("tests/model/test_temporal.py", "tests/model/test_encoders.py"),
    "mcsp/training/reading/schedule.py": ("tests/training/reading/test_schedule.py",
                                          "tests/training/reading/test_cuts.py"),
    "mcsp/training/validation/measures.py": ("tests/training/validation/test_measures.py",),
    "mcsp/evaluate/measured.py": ("tests/evaluate/test_measured.py",),
    "mcsp/evaluate/readout/grams.py": ("tests/evaluate/readout/test_grams.py",),
    "mcsp/evaluate/readout/classifiers.py": ("tests/evaluate/readout/test_classifiers.py",
                                             "tests/evaluate/readout/test_probe.py",
                                             "tests/evaluate/readout/test_task.py"),
    "mcsp/evaluate/readout/harmonize.py": ("tests/evaluate/readout/test_harmonize.py",),
    "mcsp/evaluate/readout/task.py": ("tests/evaluate/readout/test_task.py",),
}  # fmt: skip
# The room of a file at the top: those who use it.
USERS = ("tests/test_batch.py", "tests/test_schema.py", "tests/test_windows.py", "tests/model", "tests/losses",
         "tests/training/reading", "tests/encode")  # fmt: skip
ROOM_SECONDS = 240.0
# Survivors that no test can or should notice: the change, and why.
_REASONS = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text())["reason"]
REASONS: dict[str, str] = {f"{row['file']}: {row['change']}": row["why"] for row in _REASONS}
# Mistakes that people make. Left out: bit operations (in annotations nothing would change) and unlikely exchanges.
ORDER, EQUAL = ("Lt", "LtE", "Gt", "GtE"), ("Eq", "NotEq")
OPERATORS = {f"ReplaceComparisonOperator_{a}_{b}" for kind in (ORDER, EQUAL) for a in kind for b in kind if a != b}
OPERATORS |= {f"ReplaceBinaryOperator_{a}" for a in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Div")}
OPERATORS |= {"ReplaceAndWithOr", "ReplaceOrWithAnd", "AddNot", "NumberReplacer", "ReplaceTrueWithFalse"}
OPERATORS |= {"ReplaceFalseWithTrue", "ReplaceContinueWithBreak", "ZeroIterationForLoop"}
OPERATORS |= {f"ReplaceUnaryOperator_Delete_{a}" for a in ("Not", "USub", "Invert")}
KILLED, SURVIVED, NOT_TRIED = "killed", "SURVIVED", "not tried"
PYTEST = ["-x", "-q", "-m", "not slow and not multirank", "-p", "no:cacheprovider"]
PYTEST += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what is imported before, see PRELOADED
PRELOADED = ["torch", "scipy.signal", "scipy.stats", "pandas", "sklearn.metrics", "pyarrow", "mne", "hypothesis"]


class Mutant(NamedTuple):
    """One mistake: the operator's how-manieth place in a file, and the line."""

    file: str
    operator: str
    occurrence: int
    line: int


def cosmic_ray(*arguments: str | Path, folder: Path) -> str:
    """What the command printed; the environment variable COSMIC_RAY names another that is installed."""
    command = [*os.environ.get("COSMIC_RAY", f"uv tool run {COSMIC_RAY}").split(), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def unjudged(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where no test can judge: (line, column) from and to.

    Texts of errors and of the log, annotations, decorators, and what the code asserts of itself, as by ``strict=``.
    """
    nodes: list[ast.AST | None] = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Raise() | ast.Call(func=ast.Attribute(value=ast.Name("_log"))):
                nodes.append(node)
            case ast.Assert() | ast.keyword(arg="strict"):
                nodes.append(node)
            case ast.AnnAssign() | ast.arg():
                nodes.append(node.annotation)
            case ast.FunctionDef():
                nodes += [node.returns, *node.decorator_list]
            case ast.ClassDef():
                nodes += node.decorator_list
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in nodes if n is not None]  # type: ignore[attr-defined]


def mutants_of(paths: Sequence[str], copy: Path) -> dict[str, list[Mutant]]:
    """Every mutant of each file that a test can judge."""
    options, session = copy / "mutate.toml", copy / "mutate.sqlite"
    options.write_text(
        f"[cosmic-ray]\nmodule-path = {json.dumps(list(paths))}\ntimeout = 1.0\nexcluded-modules = []\n"
        'test-command = "false"\n[cosmic-ray.distributor]\nname = "local"\n'
    )
    cosmic_ray("init", options, session, folder=copy)
    left_out = {path: unjudged((copy / path).read_text()) for path in paths}
    found: dict[str, list[Mutant]] = {path: [] for path in paths}
    for line in cosmic_ray("dump", session, folder=copy).splitlines():
        [change] = json.loads(line)[0]["mutations"]
        path, place = change["module_path"], tuple(change["start_pos"])
        judgeable = not any(start <= place < end for start, end in left_out[path])
        if judgeable and change["operator_name"].removeprefix("core/") in OPERATORS:
            found[path].append(Mutant(path, change["operator_name"], change["occurrence"], place[0]))
    return {path: sorted(mutants) for path, mutants in found.items()}


def outcome(tests: tuple[str, ...], copy: Path, seconds: float) -> str:
    """How the tests end in a fork of this process: "passed", "failed" or "too long".

    Too long are so many seconds of the processor, whatever else it does meanwhile, or four times as many by the clock.
    """
    pid = os.fork()
    if pid == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds) + 1))
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        os.environ["PYTHONPATH"] = str(copy)
        sys.dont_write_bytecode = True
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        try:
            code = int(pytest.main([*PYTEST, *tests]))
        except BaseException:  # noqa: BLE001, the fork must not come back
            code = 1
        os._exit(code)
    end = time.monotonic() + 4 * seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            return "passed" if code == 0 else "too long" if code == -signal.SIGXCPU else "failed"
        time.sleep(0.05)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "too long"


def _children_seconds() -> float:
    """Of the processor, that ended children of this process took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def changed_lines(before: str, after: str) -> list[str]:
    """Lines that a mutation took out and put in, with - and +."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return [line.strip() for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]


def sample(copy: Path, paths: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """So many mutants, drawn in turn from all files; what is drawn of a file does not depend on the others."""
    by_file = mutants_of(paths, copy)
    for path, found in by_file.items():
        random.Random(f"{seed} {path}").shuffle(found)
    print(f"{sum(map(len, by_file.values()))} mutants of {len(by_file)} files", flush=True)
    return [m for m in chain.from_iterable(zip_longest(*by_file.values())) if m is not None][:count]


def room(path: str) -> tuple[str, ...]:
    """The folders of tests that belong to a file's folder, the nearest first; of a file at the top, its users'."""
    parts = Path(path.removeprefix("mcsp/")).parent.parts
    if parts[:1] == ("data_sharding",):
        return (str(Path("tests", *parts)),)  # all rooms of the builder take too long
    folders = [Path("tests", *parts[:n]) for n in range(len(parts), 0, -1)]
    return tuple(str(folder) for folder in folders if (ROOT / folder).is_dir()) or USERS


def judge(rows: Sequence[dict[str, Any]], copy: Path, seconds: float) -> str:
    """Try every mutant that was not noticed yet, and put the outcome into its row; none is begun after ``seconds``.

    Returns:
        Which tests fail without any mutation, in words; mostly nothing.
    """
    begin, usual, sound = time.monotonic(), dict[str, float](), set[tuple[str, ...]]()
    for row in rows:
        path = row["file"]
        if row["outcome"] == KILLED:
            continue
        if time.monotonic() - begin > seconds:
            break
        if path not in usual:
            start = _children_seconds()
            if (ended := outcome(TARGETS[path], copy, 600.0)) != "passed":
                return f"{path}: expected tests that pass without any mutation, found {ended}"
            usual[path] = _children_seconds() - start
        file = copy / path
        before = file.read_text()
        cosmic_ray("apply", path, row["operator"], str(row["occurrence"]), folder=copy)
        row["change"] = changed_lines(before, file.read_text())
        row["tests"] = outcome(TARGETS[path], copy, 10 + 3 * usual[path])
        row["outcome"] = SURVIVED if row["tests"] == "passed" else KILLED
        by_room = row["outcome"] == SURVIVED and outcome(room(path), copy, ROOM_SECONDS) == "failed"
        file.write_text(before)
        if by_room:
            if room(path) not in sound and outcome(room(path), copy, 2 * ROOM_SECONDS) == "failed":
                return f"{' '.join(room(path))}: expected tests that pass without any mutation"
            sound.add(room(path))
            row["outcome"] = KILLED
        row.setdefault("first", row["outcome"])
        print(f"{row['outcome']} {path}:{row['line']} {' '.join(row['change'])}", flush=True)
    return ""


def resumed(out: Path, copy: Path, seed: int) -> list[dict[str, Any]]:
    """The rows of a run that was cut short; those of files that have changed since are drawn again."""
    found = json.loads(out.read_text())
    changed = [path for path, of_file in found["files"].items() if of_file["sha256"] != sha256(copy / path)]
    again = [row for row in found["sample"] if row["file"] in changed]
    return [row for row in found["sample"] if row["file"] not in changed] + drawn(copy, changed, len(again), seed)


def drawn(copy: Path, paths: Sequence[str], count: int, seed: int) -> list[dict[str, Any]]:
    """A row for each mutant of a new sample."""
    mutants = sample(copy, paths, count, seed) if paths else []
    return [{**mutant._asdict(), "outcome": NOT_TRIED} for mutant in mutants]


def main() -> int:
    """Status 0, or 2 where the tests fail without any mutation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=100, help="how many are drawn")
    parser.add_argument("--seconds", type=float, default=3600.0, help="after so long no other is begun")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", default="", metavar="TEXT", help="files whose path has this in it")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "mutants.json")
    parser.add_argument("--resume", action="store_true", help="go on with --out: what survived or was not tried")
    arguments = parser.parse_args()
    for name in PRELOADED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        copy = Path(name) / "tree"
        os.environ.setdefault("MCSP_TEST_CORPORA", str(Path(name) / "corpora"))
        shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(".*", "__pycache__", "demo_output"))
        if arguments.resume:
            rows = resumed(arguments.out, copy, arguments.seed)
        else:
            rows = drawn(copy, [p for p in TARGETS if arguments.only in p], arguments.mutants, arguments.seed)
        fault = judge(rows, copy, arguments.seconds)
        hashes = {path: sha256(copy / path) for path in TARGETS}
    report(rows, hashes, arguments.seed, arguments.out)
    if fault:
        print(f"error: {fault}", file=sys.stderr)
    return 2 if fault else 0


def report(rows: Sequence[dict[str, Any]], hashes: Mapping[str, str], seed: int, out: Path) -> None:
    """Write the result, and print how many mutants of each file the tests noticed."""
    from mcsp.provenance import made_by  # not before: forks must import the copy

    by_file = {path: Counter(row["outcome"] for row in rows if row["file"] == path) for path in TARGETS}
    total = Counter(row["outcome"] for row in rows)
    survivors = [row for row in rows if row["outcome"] == SURVIVED]
    content = {
        **made_by(["pytest", "hypothesis"]),
        "tool": COSMIC_RAY,
        "seed": seed,
        "total": total,
        "first": Counter(row.get("first", NOT_TRIED) for row in rows),
        "killed_by_time": sum(row.get("tests") == "too long" for row in rows),
        "files": {path: {**of_file, "sha256": hashes[path]} for path, of_file in by_file.items() if of_file},
        "survivors": [
            {name: row[name] for name in ("file", "line", "change")}
            | {"reason": REASONS.get(reason_key(row), "unknown")}
            for row in survivors
        ],
        "sample": rows,
    }
    out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    for path, of_file in ((path, of_file) for path, of_file in by_file.items() if of_file):
        print(f"{of_file[KILLED]:4d} killed, {of_file[SURVIVED]} survived  {path}")
    print(f"{total[KILLED]:4d} of {total[KILLED] + total[SURVIVED]} killed, {total[NOT_TRIED]} not tried: {out}")


def sha256(file: Path) -> str:
    """Of a file's content."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def reason_key(row: dict[str, Any]) -> str:
    """A survivor's key among the reasons: its file and what the mistake put in."""
    return f"{row['file']}: {' '.join(line for line in row['change'] if line[0] == '+')}"


if __name__ == "__main__":
    sys.exit(main())
