"""The recipe for datasets of strangers: what the container may do, and a build that has no network and few rights."""

import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from mcsp.data_sharding.bids.write import write_eeg, write_json
from mcsp.data_sharding.store.index import read_index
from mcsp.provenance import ROOT
from tests.data_sharding.conftest import CHANNELS, DESCRIPTION, KEY, eeg_uv

RECIPE = ROOT / "examples" / "foreign_sites"
# A namespace without network but for the loopback, as a container has it, a user without rights, no way to gain any.
WITHOUT_NETWORK = """
import array, ctypes, fcntl, os, socket, struct, sys
with socket.socket() as probe:
    fcntl.ioctl(probe, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # no new privileges
os.execv(sys.argv[1], sys.argv[1:])
"""


def told(tmp_path: Path, *settings: str) -> list[str]:
    """What the script would give to the container tool."""
    tool = tmp_path / "tool"
    tool.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    tool.chmod(0o755)
    for name in ("sites", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "key").write_text(KEY)
    command = [RECIPE / "build.sh", tmp_path / "sites", tmp_path / "out", tmp_path / "key", *settings]
    environment = {"PATH": os.environ["PATH"], "CONTAINER_TOOL": str(tool)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_container_has_no_network_no_rights_and_three_mounts(tmp_path: Path) -> None:
    arguments = told(tmp_path, "max_quarantined=20%")
    pairs = set(pairwise(arguments))
    assert {"--read-only", "--rm"} <= set(arguments)
    assert {("--network", "none"), ("--cap-drop", "ALL"), ("--security-opt", "no-new-privileges"),
            ("--user", f"{os.getuid()}:{os.getgid()}")} <= pairs  # fmt: skip
    mounts = [value for name, value in pairs if name == "--mount"]
    assert sorted(mount.endswith(",readonly") for mount in mounts) == [False, True, True]
    assert f"type=bind,src={tmp_path}/out,dst=/out" in mounts
    assert not any("MCSP_SUBJECT_KEY" in argument or KEY in argument for argument in arguments)
    settings = arguments[arguments.index("mcsp-builder") + 1 :]
    assert settings == ["bids_root=/sites", "out_dir=/out/corpus", "subject_key_file=/key", "max_quarantined=20%"]


def test_the_image_is_made_of_hashed_files_and_runs_as_nobody_in_particular() -> None:
    lines = (RECIPE / "Containerfile").read_text().splitlines()
    steps = [line.split(" ", 1) for line in lines if line and not line.startswith("#")]
    copied = [name for word, names in steps if word == "COPY" for name in names.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied) and {"mcsp", "requirements.txt"} <= set(copied)
    words = dict(steps)
    assert re.fullmatch(r"python:3\.11-bookworm@sha256:[0-9a-f]{64}", words["FROM"])
    assert "make setup LOCKED=1" in words["RUN"] and words["USER"] == "builder"
    assert str(ROOT / "launchers" / "build_corpus.py").endswith(eval(words["ENTRYPOINT"])[1])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None or os.getuid() != 0, reason="needs root and unshare")
def test_a_build_needs_no_network(tmp_path: Path) -> None:
    root = tmp_path / "sites" / "clinic"
    write_json(root / "dataset_description.json", DESCRIPTION)
    sidecar = {"SamplingFrequency": 250, "PowerLineFrequency": 50}
    write_eeg(root, "1", "rest", eeg_uv(), CHANNELS, sidecar)
    (tmp_path / "key").write_text(KEY)
    out = tmp_path / "corpus"
    build = [sys.executable, str(ROOT / "launchers/build_corpus.py"), f"bids_root={tmp_path / 'sites'}"]
    build += [f"out_dir={out}", f"subject_key_file={tmp_path / 'key'}", "workers=1"]
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", WITHOUT_NETWORK, *build],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read_index(out)["totals"]["all"]["recordings"] == 1
