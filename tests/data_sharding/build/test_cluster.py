"""Clusters of Ray on this machine: the same bytes from any number of nodes, after any death, by `ray job submit`."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from mcsp.commands.main import launcher
from mcsp.config import CorpusConfig
from mcsp.data_sharding.build.corpus import build_corpus
from mcsp.data_sharding.inspect.lint import lint_corpus
from mcsp.data_sharding.store.index import BUILD_NAME
from tests.data_sharding.conftest import KEY
from tests.object_store import object_store

pytestmark = [pytest.mark.slow, pytest.mark.multirank]
ROOT = Path(__file__).resolve().parents[3]
RAY = Path(sys.executable).parent / "ray"


watch = launcher("status")


def files(folder: Path) -> dict[str, bytes]:
    """Everything of a corpus but the state of its build."""
    found = (p for p in folder.rglob("*") if p.is_file() and BUILD_NAME not in p.parts)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


lint = launcher("lint")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Cluster]]:
    """Starts raylets of one CPU each; stops only those."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if ray.is_initialized():
        ray.shutdown()
    started: list[Cluster] = []

    def start(nodes: int, head_cpus: int = 1) -> Cluster:
        head = {"num_cpus": head_cpus, "include_dashboard": False}
        started.append(Cluster(initialize_head=True, head_node_args=head))
        for _ in range(nodes - 1):
            started[-1].add_node(num_cpus=1)
        return started[-1]

    yield start
    for one in started:
        one.shutdown()


@pytest.fixture(scope="module")
def small(bids_root: Path) -> dict[str, object]:
    """Two sites and shards of one sample, so that there are many tasks."""
    sites = {name: {"path": str(bids_root / name)} for name in ("paired", "images")}
    return {"sites": sites, "samples_per_shard": 1, "max_quarantined": 1.0, "participants_columns": ["diagnosis"]}


@pytest.fixture(scope="module")
def expected(small: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes that one worker makes, without a death."""
    out = tmp_path_factory.mktemp("expected") / "corpus"
    if ray.is_initialized():
        ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCSP_SUBJECT_KEY", KEY)
        build_corpus(CorpusConfig.parse({**small, "out_dir": out, "workers": 1}, "test"))
    return files(out)


@pytest.mark.parametrize("nodes", [2, 3])
def test_the_same_bytes_from_any_number_of_nodes(
    cluster: Callable[..., Cluster], small: dict, expected: dict, tmp_path: Path, nodes: int
) -> None:
    config = CorpusConfig.parse({**small, "out_dir": tmp_path / "corpus"}, "test")
    build_corpus(config, cluster(nodes).address)
    assert files(tmp_path / "corpus") == expected


def start_driver(small: dict, out: Path, *arguments: str) -> subprocess.Popen[str]:
    config = out.parent / "config.yaml"
    config.write_text(json.dumps({**small, "out_dir": str(out)}))
    command = [sys.executable, str(ROOT / "launchers/build_corpus.py"), "--config", str(config), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MCSP_SUBJECT_KEY": KEY}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_receipts(out: Path, n: int, driver: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while len(list((out / BUILD_NAME / "receipts").glob("*.jsonl"))) < n:
        assert driver.poll() is None and time.monotonic() < deadline, "the build ended or stands still"
        time.sleep(0.05)


def kill_busy_worker(raylets: list[int], driver: subprocess.Popen[str]) -> int:
    """Kill the first worker of these nodes that is seen building; the raylet that it belonged to."""
    deadline = time.monotonic() + 120
    while True:
        assert driver.poll() is None and time.monotonic() < deadline, "no worker of these nodes builds"
        for raylet in raylets:
            for child in psutil.Process(raylet).children():
                with suppress(psutil.NoSuchProcess):
                    if child.cmdline()[:1] and child.cmdline()[0].startswith("ray::_build_or_keep"):
                        child.kill()
                        return raylet
        time.sleep(0.02)


def test_the_death_of_a_worker_and_of_a_node_changes_nothing(
    cluster: Callable[..., Cluster], small: dict, expected: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # Ray sets it where it finds a token
    # The head builds nothing, or it would be done before the others have started.
    nodes, out = cluster(3, head_cpus=0), tmp_path / "corpus"
    raylets = [node.all_processes["raylet"][0].process.pid for node in nodes.worker_nodes]
    refused = start_driver(small, out, "--address", nodes.address)
    assert "expected a cluster with authentication" in refused.communicate(timeout=120)[1] and refused.returncode == 2
    driver = start_driver({**small, "allow_open_cluster": True}, out, "--address", nodes.address)
    bereaved = kill_busy_worker(raylets, driver)
    (other,) = set(raylets) - {bereaved}
    assert driver.poll() is None
    os.kill(other, signal.SIGKILL)
    _, errors = driver.communicate(timeout=240)
    assert driver.returncode == 0, errors
    assert files(out) == expected and lint_corpus(out) == []


def test_the_death_of_the_driver_is_continued(small: dict, expected: dict, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    driver = start_driver(small, out, "workers=2")
    wait_for_receipts(out, 2, driver)
    driver.kill()
    driver.communicate()
    assert not (out / "index.json").exists()
    again = start_driver(small, out, "workers=2")
    _, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    assert files(out) == expected


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_a_submitted_job_builds_the_same(small: dict, expected: dict, tmp_path: Path) -> None:
    """``ray start`` with a token, ``ray job submit --working-dir``, and a stop of what was started here alone."""
    (port, dashboard, agent, client), out = [free_port() for _ in range(4)], tmp_path / "corpus"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS")}
    environment |= {"MCSP_SUBJECT_KEY": KEY, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5e" * 32}
    # The paths of Ray's sockets must stay below 108 characters, so they cannot lie in tmp_path.
    short = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
    with short as ray_folder, open(tmp_path / "head.txt", "wb") as log:
        head = subprocess.Popen(
            [RAY, "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1", f"--port={port}",
             "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
             f"--ray-client-server-port={client}", f"--temp-dir={ray_folder}"],
            env=environment, stdout=log, stderr=log, cwd=tmp_path,
        )  # fmt: skip
        (tmp_path / "config.yaml").write_text(json.dumps({**small, "out_dir": str(out)}))
        try:
            submitted = submit(dashboard, job_folder(tmp_path), tmp_path / "config.yaml", environment)
        finally:
            stop(head)
    said = submitted.stdout[-3000:] + submitted.stderr[-3000:] + (tmp_path / "head.txt").read_text()[-2000:]
    assert submitted.returncode == 0, said
    assert files(out) == expected
    status = json.loads((out / BUILD_NAME / "status.json").read_text())
    assert status["state"] == "complete"


def submit(
    dashboard: int, checkout: Path, config: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """The job's end; asked again while the head does not take jobs yet."""
    command = [RAY, "job", "submit", f"--address=http://127.0.0.1:{dashboard}", "--working-dir", str(checkout), "--"]
    command += [sys.executable, "launchers/build_corpus.py", "--config", str(config)]
    deadline = time.monotonic() + 120
    while True:
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=240, check=False, cwd=checkout
        )
        taken = "submitted successfully" in result.stdout
        if result.returncode == 0 or taken or time.monotonic() > deadline:
            return result
        time.sleep(3)


def stop(head: subprocess.Popen[bytes]) -> None:
    """End what ``ray start --block`` started, and nothing else."""
    children = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
    head.terminate()
    head.wait(60)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def job_folder(tmp_path: Path) -> Path:
    """What is uploaded: the code, as in a checkout without its environment and results."""
    folder = tmp_path / "checkout"
    without = shutil.ignore_patterns("__pycache__")
    for name in ("mcsp", "data_sharding", "kernels", "launchers", "configs"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=without)
    return folder


@pytest.mark.parametrize("workers", [2])
def test_an_object_store_holds_the_same_bytes(
    small: dict, expected: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    """A local server that speaks S3; what lies in it is downloaded and compared."""
    with object_store("consortium") as store:
        config = CorpusConfig.parse(
            {**small, "out_dir": "s3://consortium/corpus", "private_dir": tmp_path / "private", "workers": workers},
            "test",
        )
        index, was_there = build_corpus(config)
        assert not was_there
        assert build_corpus(config) == (index, True)
        assert [lint(["s3://consortium/corpus", *options]) for options in ([], ["--privacy"])] == [0, 0]
        assert watch(["s3://consortium/corpus"]) == 0
        store.get("consortium/corpus", str(tmp_path / "copy"), recursive=True)
    assert files(tmp_path / "copy") == expected
    assert "complete, " in capsys.readouterr().out
