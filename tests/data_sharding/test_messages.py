"""What a person sees of a build that fails: drivers and workers of their own, one line that says why, no traceback."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data_sharding.conftest import KEY

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.multirank]


@pytest.fixture(scope="module")
def sites(bids_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of two sound and two bad recordings."""
    root = tmp_path_factory.mktemp("few") / "bids"
    for subject in ("01", "02", "05", "23"):
        source = bids_root / "damaged" / f"sub-{subject}"
        shutil.copytree(source, root / "damaged" / f"sub-{subject}")
    shutil.copytree(bids_root / "damaged/sub-01", root / "damaged/sub-09")
    for file in (root / "damaged/sub-09").rglob("sub-01*"):
        file.rename(file.with_name(file.name.replace("sub-01", "sub-09")))
    for file in ("dataset_description.json", *(path.name for path in (bids_root / "damaged").glob("*_dseg.*"))):
        shutil.copy(bids_root / "damaged" / file, root / "damaged")
    return root


def build(sites: Path, out: Path, *options: str, **environment: str) -> tuple[int, list[str]]:
    """Status of the launcher and its last lines: those from the error on."""
    command = [sys.executable, str(ROOT / "launchers/build_corpus.py"), f"bids_root={sites}", f"out_dir={out}"]
    base = {**os.environ, "PYTHONPATH": str(ROOT), "MCSP_SUBJECT_KEY": KEY}
    result = subprocess.run(
        [*command, "workers=2", "samples_per_shard=1", *options],
        env={**base, **environment}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert "Traceback" not in result.stderr and "Unhandled" not in result.stderr, result.stderr
    lines = result.stderr.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    assert len(starts) == (result.returncode != 0), result.stderr
    return result.returncode, lines[starts[0] :] if starts else lines


def test_each_way_to_fail_says_so_in_one_line(sites: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    status, lines = build(sites, out, "on_error=raise")
    assert status == 2 and len(lines) == 1 and lines[0].endswith("(on_error: raise)")
    assert lines[0].startswith("error: damaged/sub-")

    # The same folder goes on; the reasons follow the line as a table, and the private list says which files.
    status, lines = build(sites, out)
    assert status == 1
    assert lines[0] == (
        "error: 4 of 5 recordings are bad (80.0 %), max_quarantined allows 5 %; nothing was sealed, "
        f"{out}/.build/rejected.tsv names the files"
    )
    assert sorted(line.split()[1] for line in lines[1:]) == ["duplicate", "flat", "no-baseline", "unreadable"]
    assert "sub-05_task-rest_eeg.edf" in (out / ".build/rejected.tsv").read_text()
    assert not (out / "index.json").exists()

    status, lines = build(sites, out, MCSP_SUBJECT_KEY=KEY[::-1])
    assert status == 2 and len(lines) == 1 and "holds a corpus of another configuration, subject key" in lines[0]
    status, lines = build(sites, out, MCSP_SUBJECT_KEY="")
    assert status == 2 and len(lines) == 1 and "MCSP_SUBJECT_KEY is not set" in lines[0]

    (out / ".build/fingerprint.txt").write_text("0" * 64)
    status, lines = build(sites, out, "max_quarantined=100%")
    assert status == 2 and len(lines) == 1 and "computes other values than the first worker" in lines[0]


def test_a_warning_names_each_bad_recording(sites: Path, tmp_path: Path) -> None:
    status, lines = build(sites, tmp_path / "corpus", "on_error=warn", "max_quarantined=100%")
    assert status == 0
    warned = sorted(line.split(": ")[2] for line in lines if line.startswith("warning: damaged/"))
    assert warned == ["duplicate", "flat", "no-baseline", "unreadable"]
