"""`make demo` and `make test` in a fresh clone with an empty home: times and exit codes.

python benchmarks/studies/fresh_machine.py [--out FILE]     writes benchmarks/results/fresh_machine.json
python benchmarks/studies/fresh_machine.py --table          prints that file as a table

Only committed files are measured. pip's settings on the machine (a mirror, a proxy) stay as they are; its cache does
not, since it lies in the home folder.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mcsp.provenance import hardware

ROOT = Path(__file__).resolve().parents[2]
STAGES = {"demo": ["make", "demo"], "test": ["make", "test"], "demo_again": ["make", "demo"]}
PACKAGES = ("torch", "deepspeed", "ray", "webdataset", "mne", "nilearn", "numpy")


def versions(python: Path) -> dict[str, str]:
    """Versions of the packages that the clone's own environment holds; empty if it has none."""
    if not python.exists():
        return {}
    code = (
        f"from importlib.metadata import version; import json; print(json.dumps({{p: version(p) for p in {PACKAGES}}}))"
    )
    result = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return dict(json.loads(result.stdout)) if result.returncode == 0 else {}


def run(command: list[str], clone: Path, environment: dict[str, str], log: Path) -> dict[str, object]:
    """Run one command in the clone, showing its output and keeping it in ``log``; seconds, exit code, closing lines."""
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=clone, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            file.write(line)
        code = process.wait()
    seconds = round(time.monotonic() - start, 1)
    stages = re.findall(r"^\s+(\d+) s  (\d/\d \w+)", log.read_text(), re.MULTILINE)
    summary = re.findall(r"^=* ?(\d+ (?:passed|failed).*?) ?=*$", log.read_text(), re.MULTILINE)
    result: dict[str, object] = {"command": " ".join(command), "exit_code": code, "seconds": seconds}
    if stages:
        result["stage_seconds"] = {name: int(took) for took, name in stages}
    if summary:
        result["summary"] = summary[-1]
    return result


def demo_results(clone: Path) -> dict[str, object]:
    """Scores and retrieval of the demo's evaluation, and the last step's rates."""
    folder = clone / "demo_output"
    try:
        results = json.loads((folder / "evaluation/results.json").read_text())
        last = json.loads((folder / "run/metrics.jsonl").read_text().splitlines()[-1])
    except OSError:
        return {}
    kept = ("step", "loss", "samples_per_second", "seconds_per_step", "data_wait_fraction", "skipped_steps")
    classification = [{k: v for k, v in row.items() if not k.startswith("roc")} for row in results["classification"]]
    return {
        "last_step": {k: last[k] for k in kept},
        "classification": classification,
        **{k: results[k] for k in ("label_efficiency", "site_decoding", "retrieval")},
    }


def table(result: dict[str, Any]) -> str:
    """The measured numbers as Markdown."""
    demo = result["demo_results"]
    rows = {(r["subjects_of"], r["candidates_from"], r["model"]): r for r in demo["retrieval"]}
    models = [m for m in dict.fromkeys(m for *_, m in rows) if m not in ("untrained", "pretrained")]
    lines: list[str] = []
    if models:  # a number without its controls says nothing
        head = ["EEG window finds its own BOLD window among 64", "untrained", "pretrained", *models, "chance"]
        lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for subjects, scope in dict.fromkeys((s, c) for s, c, _ in rows) if models else ():
        found = [rows[subjects, scope, model] for model in ("untrained", "pretrained", *models)]
        cells = [f"{r['top1']:.3f} ± {r['sd']:.3f}" for r in found]
        lines.append(f"| {subjects} subjects, {scope} | {' | '.join(cells)} | {found[0]['chance']:.3f} |")
    lines += [
        "",
        "| AUROC of the simulated diagnosis | method | new subjects | site left out | mean within left-out sites |",
        "|---|---|---|---|---|",
    ]
    by_protocol = {(r["recordings"], r["features"], r["classifier"], r["protocol"]): r for r in demo["classification"]}
    for recordings, features, classifier in dict.fromkeys(key[:3] for key in by_protocol):
        shown = [by_protocol.get((recordings, features, classifier, p)) for p in ("kfold", "leave_site_out")]
        cells = [
            f"{r['auroc']['value']:.3f} ({r['auroc']['ci_low']:.2f}-{r['auroc']['ci_high']:.2f})" if r else "-"
            for r in shown
        ]
        cells.append(f"{shown[1]['auroc_sites']['value']:.3f}" if shown[1] else "-")
        lines.append(f"| {recordings} | {features}, {classifier} | {' | '.join(cells)} |")
    seconds = ", ".join(f"{name} {run['seconds']:.0f} s" for name, run in result["runs"].items())
    lines += ["", f"{seconds} (the first demo includes the set-up)"]
    return "\n".join(lines)


def main() -> int:
    """Clone, run, write the result file; status 1 if a command failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/fresh_machine.json")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), help="default: all")
    parser.add_argument("--table", action="store_true", help="print the result file as Markdown; run nothing")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.out.read_text())))
        return 0
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    with tempfile.TemporaryDirectory(prefix="fresh_machine_") as folder:
        clone, home = Path(folder) / "clone", Path(folder) / "home"
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("MCSP_", "PYTHON", "VIRTUAL_ENV", "XDG_CACHE"))
        }
        environment = {**kept, "HOME": str(home)}
        runs = {}
        for name in arguments.stages:
            command = STAGES[name]
            runs[name] = run(command, clone, environment, Path(folder) / f"{name}.log")
        result = {
            "commit": commit.stdout.strip(),
            "hardware": hardware(),
            "versions": versions(clone / ".venv/bin/python"),
            "note": "demo includes set-up of .venv; demo_again shows what a second call re-uses",
            "runs": runs,
            "demo_results": demo_results(clone),
        }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return int(any(r["exit_code"] != 0 for r in runs.values()))


if __name__ == "__main__":
    raise SystemExit(main())
