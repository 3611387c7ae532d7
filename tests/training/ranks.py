"""Starts the ranks of a distributed program as processes of this machine, as a launcher would."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from mcsp.training.saving.state import consolidate_weights

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "launchers" / "pretrain.py"


def environment(rank: int = 0, world: int = 1, port: int | None = None) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    env |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    if port is not None:
        env |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{world}"}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    return env


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


STARTED: list[subprocess.Popen[str]] = []  # by the test that runs; it is left with none


def close_ranks() -> None:
    """End what a test has started and left, and close the pipes."""
    for process in STARTED:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    STARTED.clear()


def start_ranks(world: int, script: Path, *arguments: str) -> list[subprocess.Popen[str]]:
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env=environment(rank, world, port),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    STARTED.extend(started)
    return started


def run_ranks(world: int, script: Path, *arguments: str, seconds: float = 240) -> None:
    """Run to the end; raise with the output of a rank that failed."""
    processes = start_ranks(world, script, *arguments)
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, (process, output) in enumerate(zip(processes, outputs, strict=True)):
        assert process.returncode == 0, f"rank {rank} exited with {process.returncode}:\n{output[-3000:]}"


def deepspeed(*overrides: str) -> subprocess.Popen[bytes]:
    """The command that users type, on two CPU ranks."""
    command = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", "2"]
    command += ["--master_port", str(free_port()), str(LAUNCHER), *overrides]  # two at once would share the default
    env = environment() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def last_step(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return consolidate_weights(run_dir / "checkpoints" / f"step-{step:08d}")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def pretrain(*overrides: str, expect: int = 0, seconds: float = 240) -> str:
    """Run the launcher in one process; its output."""
    done = subprocess.run(
        [sys.executable, str(LAUNCHER), *overrides],
        env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr
