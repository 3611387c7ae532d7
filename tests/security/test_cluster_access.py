"""A cluster that runs programs of whoever reaches it is refused; one with a token takes no job from a stranger."""

import json
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import ray

from mcsp.data_sharding.build.corpus import ray_session
from tests.data_sharding.build.test_cluster import KEY, RAY, free_port, stop


def post_job(dashboard: int, entrypoint: str) -> int:
    """The status that a job without a token is answered with; -1 where nothing listens yet."""
    content = json.dumps({"entrypoint": entrypoint}).encode()
    address = f"http://127.0.0.1:{dashboard}/api/jobs/"
    request = urllib.request.Request(address, content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return -1


def test_one_post_of_a_stranger_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (port, dashboard, agent, client), stolen = [free_port() for _ in range(4)], tmp_path / "stolen"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5e" * 32, "MCSP_SUBJECT_KEY": KEY}
    short = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
    with short as ray_folder, open(tmp_path / "head.txt", "wb") as log:
        head = subprocess.Popen(
            [RAY, "start", "--head", "--block", "--num-cpus=1", "--node-ip-address=127.0.0.1", f"--port={port}",
             "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
             f"--ray-client-server-port={client}", f"--temp-dir={ray_folder}"],
            env=environment, stdout=log, stderr=log, cwd=tmp_path,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while (status := post_job(dashboard, f"sh -c 'env > {stolen}'")) in (-1, 503):
                assert time.monotonic() < deadline and head.poll() is None, (tmp_path / "head.txt").read_text()
                time.sleep(0.5)
            ray.shutdown()
            monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
            with (
                pytest.raises(ValueError, match="expected a cluster with authentication") as refused,
                ray_session(address=f"127.0.0.1:{port}"),
            ):
                pass
        finally:
            stop(head)
    assert status in (401, 403), status
    assert "\n" not in str(refused.value) and not stolen.exists()
