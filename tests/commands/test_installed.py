"""The wheel, installed where no checkout is: the demo, then encode, finetune and predict, as the commands of a lab.

The environment of the demo is fresh but for a path to the packages of the tests. A path adds no editable installs, so
the package comes from the wheel alone. Those of a lab hold what their extras name and nothing else.
"""

import csv
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.test_core_install import ROOT, build_wheel, fresh_environment
from tests.test_core_install import run as run_here

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def binaries(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands of the fresh environment are."""
    folder = tmp_path_factory.mktemp("fresh")
    run_here(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    found = folder / "venv" / "bin"
    install = [sys.executable, "-m", "pip", "--python", found / "python", "install", "-q", "--no-deps"]
    run_here(*install, wheel, cwd=folder)
    (site_packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site_packages / "packages-of-the-tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return found


def call(binaries: Path, folder: Path, *words: str | Path, status: int = 0) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MCSP"))}
    environment["PATH"] = f"{binaries}:{environment['PATH']}"
    command = ["mcsp", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=600)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stderr if status else done.stdout


def test_the_wheel_holds_files_alone_with_configs_and_the_type_marker(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.infolist()
        names = {entry.filename for entry in entries}
    links = [entry.filename for entry in entries if (entry.external_attr >> 28) == 0o12]
    assert links == []
    shipped = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.*")}
    assert {f"mcsp/{name}" for name in shipped} <= names
    assert {"mcsp/py.typed", "mcsp/kernels/dispatch.py", "mcsp/data_sharding/build/corpus.py"} <= names
    assert not [name for name in names if not name.startswith(("mcsp/", "mcsp_pretraining-"))]


def test_demo_encode_finetune_and_predict_from_the_wheel_in_an_empty_folder(binaries: Path, tmp_path: Path) -> None:
    where = subprocess.run(
        [binaries / "python", "-I", "-c", "import mcsp; print(mcsp.__file__)"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert where.stdout.startswith(str(binaries.parent)), where.stdout + where.stderr
    assert "demo" in call(binaries, tmp_path, "--help")
    printed = call(binaries, tmp_path, "demo", "out", "--smallest", "--steps", "4")
    assert "6/6 evaluation" in printed and (tmp_path / "out/evaluation/report.html").is_file()
    assert (tmp_path / "out/evaluation/classifier/classifier.json").is_file()
    bids = tmp_path / "out/bids/simulated-a"
    edf = sorted(bids.glob("sub-*/eeg/*_eeg.edf"))[0]
    assert "2 of 2 recordings" in call(
        binaries, tmp_path, "encode", "out/model", edf, next(bids.glob("sub-*/func/*_timeseries.tsv")),
        "--out", "features.tsv",
    )  # fmt: skip
    call(
        binaries, tmp_path, "finetune", "model_dir=out/model", "corpus_dir=out/corpus", "--out_dir", "tuned",
        "depth=head", "folds=2", "max_passes=1", "windows_per_recording=1",
    )  # fmt: skip
    for classifier in ("tuned/classifier", "out/evaluation/classifier"):
        call(binaries, tmp_path, "predict", classifier, edf, "none.edf", "--out", "table.tsv")
        with (tmp_path / "table.tsv").open(newline="") as file:
            good, bad = csv.DictReader(file, delimiter="\t")
        assert good["class"] in ("case", "control") and 0 < float(good["probability"]) < 1
        assert "no such file" in bad["error"]
    call(binaries, tmp_path, "pretrain", "setps=3", status=2)


def test_the_extras_of_a_lab_are_enough_and_what_another_lacks_is_one_line(
    wheel: Path, corpus_dir: Path, export_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lab = fresh_environment(tmp_path_factory.mktemp("lab"), wheel, "lab")
    folder = tmp_path_factory.mktemp("empty")
    bids = corpus_dir.parent / "bids" / "simulated-a"
    edf, table = next(bids.glob("sub-*/eeg/*_eeg.edf")), next(bids.glob("sub-*/func/*_timeseries.tsv"))
    settings = [f"model_dir={export_dir}", f"corpus_dir={corpus_dir}", "out_dir=tuned", "depth=head", "folds=2",
                "max_passes=1", "windows_per_recording=1"]  # fmt: skip
    call(lab, folder, "encode", export_dir, edf, table, "--out", "features.tsv")
    for words, extra in ((["finetune", *settings], "lab,evaluate"), (["lint", corpus_dir], "corpus")):
        told = call(lab, folder, *words, status=2)
        assert f"pip install 'mcsp-pretraining[{extra}]'" in told and told.count("\n") == 1, told
    both = fresh_environment(tmp_path_factory.mktemp("both"), wheel, "lab", "evaluate")
    call(both, folder, "finetune", *settings)
    told = call(lab, folder, "predict", "tuned/classifier", edf, table, "--out", "predictions.tsv")
    assert "predictions.tsv: 2 of 2 recordings" in told
