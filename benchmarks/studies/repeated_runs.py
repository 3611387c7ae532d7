"""Whether run after run ends with status 0: two ranks, ZeRO-3, two micro-batches, activation checkpointing.

python benchmarks/studies/repeated_runs.py [--runs 50] [--busy N]     writes benchmarks/results/repeated_runs.json

Each run is the command that users type, of two steps of the smallest model, on two simulated sites. A run counts as
ended well where the launcher's status is 0, ``exit.json`` says "finished", and no rank wrote "terminate called", which
is how threads that outlive the interpreter ended runs that had finished. Busy processors make that more likely:
``--busy`` keeps that many processes counting beside the runs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from mcsp.provenance import made_by

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
from bench_training import make_corpus  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "repeated_runs.json"
SETTINGS = (
    "steps=2", "batch={paired: 8, eeg: 0, fmri: 0}", "window_seconds={eeg: 4, fmri: 20}", "micro_batches=2",
    "activation_checkpointing=true", "deepspeed=configs/deepspeed/zero3.json", "validate_every=0", "warmup_steps=1",
)  # fmt: skip


def run(corpus: Path, run_dir: Path, port: int) -> dict[str, Any]:
    """Status of the launcher, reason in the exit record, seconds, and what was said where it did not end well."""
    command = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", "2", "--master_port", str(port)]
    command += [str(ROOT / "launchers" / "pretrain.py"), f"corpus_dir={corpus}", f"run_dir={run_dir}", *SETTINGS]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    record = run_dir / "exit.json"
    reason = json.loads(record.read_text())["reason"] if record.exists() else None
    found = {"status": done.returncode, "reason": reason, "seconds": round(time.perf_counter() - began, 1)}
    well = done.returncode == 0 and reason == "finished" and "terminate called" not in done.stderr
    return found if well else {**found, "said": done.stderr[-2000:]}


def main() -> None:
    """Run, write, print; status 1 where a run did not end well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--busy", type=int, default=0, help="processes that count beside the runs")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = []
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(arguments.busy)]
    try:
        with tempfile.TemporaryDirectory() as place:
            corpus = make_corpus(Path(place))
            for number in range(arguments.runs):
                runs.append(run(corpus, Path(place) / f"run-{number}", 29500 + number % 100))
                print(f"run {number + 1} of {arguments.runs}: {runs[-1]}", flush=True)
    finally:
        for process in busy:
            process.kill()
    well = sum("said" not in each for each in runs)
    content = {"what": __doc__, "date": date.today().isoformat(), **made_by(("torch", "deepspeed"))}
    content |= {"settings": SETTINGS, "busy": arguments.busy, "runs": len(runs), "ended_well": well, "each": runs}
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{well} of {len(runs)} runs ended well; {arguments.out}")
    sys.exit(int(well < len(runs)))


if __name__ == "__main__":
    main()
