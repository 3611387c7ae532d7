"""Seconds of help and of a typing error: `mcsp` against earlier launchers.

python benchmarks/studies/command_times.py            measures, writes benchmarks/results/command_times.json, prints
python benchmarks/studies/command_times.py --table    prints the table from the result file

Each command line is a process of its own. Processor seconds are user and system together, so that other work on the
machine counts little; seconds are those that a person waits. The launchers are those of the commit BEFORE, from git.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from mcsp.commands.main import VERBS
from mcsp.provenance import made_by

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "command_times.json"
BEFORE = "cf44571"
REPEATS = 3
LAUNCHERS = {verb: verb for verb in ("pretrain", "evaluate", "finetune", "export")} | {
    "build": "build_corpus", "lint": "lint_corpus", "report": "corpus_report", "plot": "plot_run",
    "status": "corpus_status", "write-bids": "write_bids", "explain": "explain", "demo-sites": "demo_sites",
}  # fmt: skip
CASES: dict[str, list[str]] = {
    "help": ["--help"],
    **{f"help of {verb}": [verb, "--help"] for verbs in VERBS.values() for verb in verbs},
    "a verb mistyped": ["pretrian"],
    "a key mistyped": ["pretrain", "corpus_dir=a", "run_dir=b", "setps=3"],
    "a value that is no number": ["pretrain", "corpus_dir=a", "run_dir=b", "steps=many"],
    "evaluate without the export": ["evaluate", "model_dir=nowhere", "corpus_dir=nowhere", "out_dir=out"],
    "finetune without the export": ["finetune", "model_dir=nowhere", "corpus_dir=nowhere", "out_dir=out"],
    "pretrain without the corpus": ["pretrain", "corpus_dir=nowhere", "run_dir=run"],
    "build without the datasets": ["build", "bids_root=nowhere", "out_dir=out"],
    "lint without the corpus": ["lint", "nowhere"],
    "report without the corpus": ["report", "nowhere"],
    "export without the run": ["export", "nowhere", "out"],
    "plot without the run": ["plot", "nowhere"],
}


def measure(command: list[str], folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Median, least and largest of both kinds of seconds, after one run that fills caches; and the exit status."""
    found: dict[str, list[float]] = {"seconds": [], "processor_seconds": []}
    for repeat in range(REPEATS + 1):
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if repeat:
            found["seconds"].append(time.perf_counter() - began)
            found["processor_seconds"].append(used.ru_utime + used.ru_stime)
    rounded = {
        name: {"median": round(statistics.median(v), 3), "least": round(min(v), 3), "largest": round(max(v), 3)}
        for name, v in found.items()
    }
    return {"status": process.returncode, **rounded}


def measure_all() -> dict[str, Any]:
    """Every case after, and before where the launcher existed."""
    rows = {}
    with tempfile.TemporaryDirectory() as place:
        old, empty = Path(place) / "old", Path(place) / "empty"
        old.mkdir()
        empty.mkdir()
        archive = subprocess.run(["git", "archive", BEFORE], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(old)], input=archive, check=True)
        for title, words in CASES.items():
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            rows[title] = {"after": measure([sys.executable, "-m", "mcsp", *words], empty, environment)}
            if words[0] in LAUNCHERS:
                script = old / "launchers" / f"{LAUNCHERS[words[0]]}.py"
                environment["PYTHONPATH"] = str(old)
                rows[title]["before"] = measure([sys.executable, str(script), *words[1:]], empty, environment)
    return {
        "date": date.today().isoformat(),
        "repeats": REPEATS,
        "before": BEFORE,
        "rows": rows,
        **made_by(["cyclopts"]),
    }


def table(content: dict[str, Any]) -> str:
    """Markdown: processor seconds, and seconds in brackets, medians."""
    lines = ["| | before | after |", "|---|---|---|"]
    for title, row in content["rows"].items():
        cells = []
        for when in ("before", "after"):
            found = row.get(when)
            cells.append(
                f"{found['processor_seconds']['median']:.2f} ({found['seconds']['median']:.2f})" if found else ""
            )
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the result file")
    if not parser.parse_args().table:
        RESULT.write_text(json.dumps(measure_all(), indent=1) + "\n")
    print(table(json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
