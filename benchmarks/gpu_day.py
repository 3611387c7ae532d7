"""All measurements that need a GPU, in one command: python benchmarks/gpu_day.py --minutes 30 --out DIR

Six stages, each in a process of its own with a time limit of its own; each writes DIR/<stage>.json when it ends, and
what it has found so far while it runs. A stage that is done is not done again, so the command can be given once more
after an interruption; the verdict is found anew where another stage was. It needs neither git nor a network nor root.
The stages are in ``gpu_stages.py``:

card         the device, its rates of matrix products and of copying
correctness  value tests against float64, none left out after a failure; the same bits twice; offsets beyond 2^31; a
             CUDA graph; compute-sanitizer where it is installed
tuner        every tile that compiles without spilling; then blocks and Triton beside each other by precision, D and N
bench        the benchmarks of contrast and spectra beside dense, compiled and other packages' losses
train        one step of every size of model: tokens/s, MFU, memory, the losses' share, with and without Triton
verdict      rows for the table of ``kernels/dispatch.py`` and tiles for ``kernels/contrastive/fused.py``

``--rehearse`` runs every stage on any machine in minutes: Triton's interpreter, tiny shapes, numbers that mean nothing.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Shares of the time given.
SHARES = {"card": 0.05, "correctness": 0.25, "tuner": 0.2, "bench": 0.25, "train": 0.2, "verdict": 0.05}


def run_stage(stage: str, out: Path, limit_seconds: float, rehearse: bool) -> dict[str, Any]:
    """What the stage has written, with how it ended: "done", "failed" or "out of time"."""
    path = out / f"{stage}.json"
    found = read(path)
    if found.get("ended") == "done":
        print(f"{stage}: done before", flush=True)
        return found
    command = [sys.executable, str(Path(__file__).with_name("gpu_stages.py")), stage, "--out", str(out)]
    command += ["--rehearse"] if rehearse else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment |= {"TRITON_INTERPRET": "1"} if rehearse else {}
    command += ["--seconds", str(limit_seconds)]
    start = time.monotonic()
    with (out / f"{stage}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            ended = "done" if process.wait(limit_seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            ended = "out of time"
        with contextlib.suppress(ProcessLookupError):  # what it has started would take part in the next stage
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    found = read(path) | {"ended": ended, "seconds": round(time.monotonic() - start, 1)}
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{stage}: {ended} after {found['seconds']:.0f} s", flush=True)
    return found


def read(path: Path) -> dict[str, Any]:
    """A stage's file; empty where there is none."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return found


def main() -> int:
    """Run the stages, print the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="for all stages together")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--rehearse", action="store_true", help="every stage without a GPU, on tiny shapes")
    parser.add_argument("--only", nargs="*", choices=SHARES, default=list(SHARES), help="these stages")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    ended: dict[str, str] = {}
    done_before: dict[str, bool] = {}
    for stage in options.only:
        if stage == "verdict" and any(not before for before in done_before.values()):
            (options.out / "verdict.json").unlink(missing_ok=True)
        done_before[stage] = read(options.out / f"{stage}.json").get("ended") == "done"
        found = run_stage(stage, options.out, 60 * options.minutes * SHARES[stage], options.rehearse)
        ended[stage] = found["ended"]
    verdict = read(options.out / "verdict.json")
    print("\n".join(verdict.get("lines", ["no verdict"])))
    return 0 if set(ended.values()) == {"done"} else 1


if __name__ == "__main__":
    sys.exit(main())
