"""The launch files for Slurm and Kubernetes: well-formed, consistent with the launcher, and their scripts run here."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mcsp.training import stopping

ROOT = Path(__file__).resolve().parents[2]
SBATCH = ROOT / "launchers" / "slurm" / "pretrain.sbatch"
KUBERNETES = ROOT / "launchers" / "kubernetes" / "pretrain.yaml"


def kubernetes() -> dict[str, dict]:
    return {document["kind"]: document for document in yaml.safe_load_all(KUBERNETES.read_text())}


def container() -> dict:
    return kubernetes()["Job"]["spec"]["template"]["spec"]["containers"][0]


def test_scripts_are_bash() -> None:
    for script in (SBATCH.read_text(), container()["args"][0]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_sbatch_asks_slurm_before_anything_runs_and_treats_exit_statuses_as_the_launcher_means_them() -> None:
    lines = SBATCH.read_text().splitlines()
    options = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert options and max(options) < first_command, "sbatch ignores options behind the first command"
    assert {"#SBATCH --requeue", "#SBATCH --ntasks-per-node=1"} <= {lines[i] for i in options}
    assert any(re.fullmatch(r"#SBATCH --signal=B:USR1@\d+", lines[i]) for i in options)
    text = SBATCH.read_text()
    assert f'"$code" = {stopping.EXIT_AGAIN} ' in text and f'"$code" = {stopping.EXIT_HUNG} ' in text
    assert f"/{stopping.STOP_FILE}" in text


def test_kubernetes_job_is_consistent() -> None:
    spec = kubernetes()["Job"]["spec"]
    pod, name = spec["template"]["spec"], kubernetes()["Job"]["metadata"]["name"]
    environment = {entry["name"]: entry["value"] for entry in container()["env"]}
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(environment["NODES"])
    assert container()["resources"]["limits"]["nvidia.com/gpu"] == int(environment["GPUS"])
    assert pod["subdomain"] == kubernetes()["Service"]["metadata"]["name"]
    assert kubernetes()["Service"]["spec"]["selector"] == {"job-name": name}
    assert f"{name}-$i.{pod['subdomain']}" in container()["args"][0]
    mounted = {mount["name"] for mount in container()["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    rules = [rule for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    by_action = {rule["action"]: rule["onExitCodes"]["values"] for rule in rules}
    again = [stopping.EXIT_DISK, stopping.EXIT_AGAIN]  # a full disk waits for room
    assert by_action == {"Ignore": again, "FailJob": [stopping.EXIT_INPUT, stopping.EXIT_DATA, stopping.EXIT_COLLAPSED]}
    assert all(rule["onExitCodes"]["containerName"] == container()["name"] for rule in rules)
    assert container()["envFrom"] == [{"configMapRef": {"name": kubernetes()["ConfigMap"]["metadata"]["name"]}}]
    assert "--config" in kubernetes()["ConfigMap"]["data"]["PRETRAIN_ARGUMENTS"]


def test_the_pod_has_no_rights_that_it_does_not_need() -> None:
    pod = kubernetes()["Job"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert re.fullmatch(r"[^:@]+@sha256:[0-9a-f]{64}", container()["image"]), "an image by its digest"
    # The root is read-only: what is written lies in a volume.
    writable = [mount["mountPath"] for mount in container()["volumeMounts"] if not mount.get("readOnly")]
    environment = {entry["name"]: entry["value"] for entry in container()["env"]}
    assert {"/tmp", "/dev/shm"} <= set(writable) and "hostfile=$(mktemp)" in container()["args"][0]
    assert all(any(environment[name].startswith(path) for path in writable) for name in ("RUN_DIR", "HOME"))


def stand_ins(folder: Path) -> None:
    """What Slurm's commands do for one node: srun starts the task here, scontrol answers and notes the requeue."""
    srun = '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nSLURM_NODEID=0 exec "$@"\n'
    scontrol = f'#!/bin/bash\nif [ "$1" = show ]; then echo localhost; else echo "$@" >>{folder}/requeued; fi\n'
    for name, text in (("srun", srun), ("scontrol", scontrol)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def stop_after(run_dir: Path, process: subprocess.Popen, number: int, step: int) -> int:
    """Send a signal once ``step`` is logged; the exit status."""
    try:
        deadline = time.monotonic() + 150
        metrics = run_dir / "metrics.jsonl"
        while not metrics.exists() or len(metrics.read_text().splitlines()) < step:
            assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
            time.sleep(0.1)
        process.send_signal(number)
        return process.wait(timeout=90)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("said", "status", "restarts", "requeued"),
    [
        (stopping.EXIT_AGAIN, 143, 0, True),  # one launcher ended, and srun killed the others
        (stopping.EXIT_HUNG, 137, 0, True),
        (stopping.EXIT_HUNG, 137, 5, False),
        (0, 0, 0, False),
        (2, 143, 0, False),
        (stopping.EXIT_DISK, 143, 0, False),
        (None, 1, 0, False),  # nothing said in this start; what is there is of the last
        (None, stopping.EXIT_AGAIN, 0, True),
    ],
)
def test_slurm_starts_a_run_again_for_what_the_run_says_and_not_for_the_status_of_srun(
    tmp_path, said, status, restarts, requeued
) -> None:
    run_dir = tmp_path / "run"
    stand_ins(tmp_path)
    run_dir.mkdir()
    (run_dir / "exit.json").write_text(json.dumps({"exit_code": stopping.EXIT_AGAIN}))
    os.utime(run_dir / "exit.json", (1, 1))
    write = f"echo '{json.dumps({'reason': 'x', 'exit_code': said})}' >{run_dir}/exit.json" if said is not None else ""
    (tmp_path / "srun").write_text(f"#!/bin/bash\nsleep 0.02\n{write}\nexit {status}\n")
    env = {**os.environ, "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    env |= {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "localhost", "SLURM_SUBMIT_DIR": str(ROOT)}
    done = subprocess.run(
        ["bash", str(SBATCH), str(run_dir)], env={**env, "SLURM_RESTART_COUNT": str(restarts)}, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert (tmp_path / "requeued").exists() == requeued, done.stdout + done.stderr
    assert done.returncode == (status if said is None else said)


def test_ports_are_below_those_that_the_kernel_gives_away() -> None:
    [line] = [line for line in SBATCH.read_text().splitlines() if line.startswith("port=")]
    script = f"for SLURM_JOB_ID in $(seq 0 97 100000); do {line}; echo $port; done"
    ports = [int(port) for port in subprocess.check_output(["bash", "-c", script], text=True).split()]
    assert min(ports) > 1024 and max(ports) < 32768 and len(set(ports)) > 900
    assert all(int(port) < 32768 for port in re.findall(r"--master_port (\d+)", container()["args"][0]))


@pytest.mark.slow
@pytest.mark.multirank
def test_both_scripts_stop_with_a_checkpoint_and_continue(pretrain_overrides, tmp_path) -> None:
    run_dir = tmp_path / "run"
    arguments = [o for o in pretrain_overrides if not o.startswith(("run_dir", "steps", "checkpoint_every"))]
    arguments += ["checkpoint_every=100000"]
    stand_ins(tmp_path)
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    env |= {"PATH": f"{tmp_path}:{Path(sys.executable).parent}:{env['PATH']}", "DS_ACCELERATOR": "cpu"}
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "localhost", "SLURM_GPUS_ON_NODE": "2"}
    slurm |= {"SLURM_SUBMIT_DIR": str(ROOT)}

    def sbatch(steps: int) -> subprocess.Popen:
        command = ["bash", str(SBATCH), str(run_dir), *arguments, f"steps={steps}"]
        return subprocess.Popen(command, env=env | slurm, cwd=tmp_path, stdout=subprocess.PIPE, text=True)

    assert stop_after(run_dir, sbatch(4000), signal.SIGUSR1, 2) == stopping.EXIT_AGAIN
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    first = json.loads((run_dir / "exit.json").read_text())
    assert first["detail"] == "file STOP on rank 0" and not list(run_dir.glob("hostfile-*"))

    pod = {"JOB_COMPLETION_INDEX": "0", "NODES": "1", "GPUS": "2", "MASTER_ADDR": "127.0.0.1"}
    # The arguments of a pod come from one variable, which the shell splits at spaces: values go into a file.
    config = tmp_path / "mine.yaml"
    values = [o.split("=", 1) for o in arguments] + [["steps", "4000"]]
    config.write_text("".join(f"{key}: {value}\n" for key, value in values))
    pod |= {"RUN_DIR": str(run_dir), "PRETRAIN_ARGUMENTS": f"--config {config}"}
    command = [*container()["command"], container()["args"][0]]
    started = subprocess.Popen(command, env=env | pod, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert stop_after(run_dir, started, signal.SIGTERM, first["step"] + 2) == stopping.EXIT_AGAIN
    second = json.loads((run_dir / "exit.json").read_text())
    assert second["step"] > first["step"] and second["detail"] == "file STOP on rank 0"
