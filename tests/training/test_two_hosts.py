import subprocess
import sys
from pathlib import Path

import pytest

from mcsp.run_log import read_metrics
from tests.training import hosts
from tests.training.ranks import LAUNCHER, ROOT, environment, same, weights


@pytest.mark.slow
@pytest.mark.multirank
@pytest.mark.skipif(bool(hosts.missing()), reason=f"two hosts on one machine need: {hosts.missing()}")
def test_two_hosts_end_with_the_weights_of_one(finished_run, tmp_path) -> None:
    reference, overrides = finished_run
    (tmp_path / "env").write_text(f"GLOO_SOCKET_IFNAME={hosts.INTERFACE}\nDS_ACCELERATOR=cpu\nOMP_NUM_THREADS=1\n")
    env = environment() | {"DS_ENV_FILE": str(tmp_path / "env"), "PDSH_RCMD_TYPE": "ssh"}
    with hosts.two_hosts(tmp_path) as two:
        launch = [
            str(Path(sys.executable).with_name("deepspeed")), "--hostfile", str(tmp_path / "hostfile"),
            "--master_addr", hosts.ADDRESSES["a"], str(LAUNCHER), f"run_dir={tmp_path / 'run'}", *overrides,
        ]  # fmt: skip
        done = subprocess.run(
            two.command("a", *launch), env=env, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
        )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "hosta" in done.stdout + done.stderr and "hostb" in done.stdout + done.stderr
    assert same(weights(tmp_path / "run", 20), weights(reference, 20))
    assert [m["loss"] for m in read_metrics(tmp_path / "run")] == [m["loss"] for m in read_metrics(reference)]
