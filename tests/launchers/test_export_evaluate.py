"""Run, export, evaluate through the launchers, as a user does; bad input gets one line.

Covers: mcsp/export/card.py, mcsp/export/curves.py, launchers/evaluate.py, launchers/export.py,
mcsp/commands/recordings.py, mcsp/commands/pretrain.py
"""

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mcsp
from mcsp.config.model import SKIPS
from mcsp.data_sharding.store.reader import Corpus
from mcsp.export.export import fixed_signals
from mcsp.training.saving.checkpoint import latest_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def launch(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launchers" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Call a launcher, or a verb, that must refuse its input, in this process; returns the error line."""

    def call(name: str, *arguments: str | Path) -> str:
        is_script = name.endswith(".py")
        path = str(ROOT / "launchers" / name if is_script else ROOT / "mcsp" / "__main__.py")
        monkeypatch.setattr(sys, "argv", [path, *([] if is_script else [name]), *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(path, run_name="__main__")
        assert stop.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        return lines[0]

    return call


@pytest.fixture(scope="module")
def run_dir(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    run = tmp_path_factory.mktemp("pretrained") / "run"
    done = launch(
        "pretrain.py", f"corpus_dir={corpus_dir}", f"run_dir={run}", "steps=2", "batch={paired: 4, eeg: 0, fmri: 0}",
        "window_seconds={eeg: 10, fmri: 30}", "warmup_steps=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def export(run_dir: Path) -> Path:
    out = run_dir.parent / "model"
    done = launch("export.py", run_dir, out)
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stdout
    return out


def test_the_export_is_complete_and_says_what_it_is(export: Path, run_dir: Path, corpus_dir: Path) -> None:
    from mcsp.training.saving.state import consolidate_weights

    corpus = Corpus(corpus_dir)
    model = mcsp.from_pretrained(export)
    checkpoint = latest_checkpoint(run_dir)
    assert checkpoint is not None
    weights = consolidate_weights(checkpoint)
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], w) for name, w in model.state_dict().items())
    assert model.preprocessing["window_seconds"] == {"eeg": 10.0, "fmri": 30.0}
    assert model.preprocessing["units"] == {"eeg": "uV", "fmri": "percent"}
    assert model.preprocessing["cleaning"]["eeg"]["sfreq"] == 200.0
    assert model.preprocessing["corpus_index_hash"] == corpus.index_hash
    card = (export / "README.md").read_text()
    assert "fp32 on cpu, products of the contrast fp32." in card
    assert "Simulated sites: simulated-a, simulated-b" in card
    assert "for 2 steps" in card
    assert "1 rank for 0.0" in card and "GiB of memory per rank" in card
    assert "No evaluation came with this export." in card
    assert "![loss by step](loss.png)" in card
    assert (export / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert all(line.rstrip(" |").split("|")[-1].strip() for line in card.splitlines() if line.startswith("| simulated"))
    subjects = (export / "pretraining_subjects.txt").read_text().split()
    assert set(subjects) == {f"{r.site}/{r.subject}" for r in corpus.recordings if r.split == "train"}
    for file in export.iterdir():
        if file.suffix in (".md", ".json", ".txt"):
            assert str(run_dir.parent) not in file.read_text()
            assert str(corpus_dir) not in file.read_text()


def test_the_card_answers_a_user_and_a_data_protection_officer(export: Path, corpus_dir: Path) -> None:
    card = (export / "README.md").read_text()
    bids = corpus_dir.parent / "bids" / "simulated-a"
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    places = {
        "path/to/this/folder": export,
        "sub-01_task-rest_eeg.edf": next(bids.glob("sub-*/eeg/*_eeg.edf")),
        "sub-01_task-rest_space-MNI152NLin6Asym_bold.nii.gz": next(bids.glob("sub-*/func/*_timeseries.tsv")),
        "tpl-MNI152NLin6Asym_dseg.nii.gz": next(bids.glob("*_dseg.tsv")),
    }
    for name, path in places.items():
        assert f'"{name}"' in code
        code = code.replace(name, str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=export.parent, timeout=120)
    assert done.returncode == 0, done.stderr
    model = mcsp.from_pretrained(export)
    for modality in ("eeg", "fmri"):
        widths = model.feature_widths(modality)
        assert f"({sum(widths.values())},)" in done.stdout
        line = next(line for line in card.splitlines() if line.startswith(f"* **{modality}**"))
        measured = line.partition("measured in the same recording")[2]
        assert all(f"{name} {width}" in line for name, width in widths.items())
        assert {name for name in widths if f"{name} " in measured} == set(widths) & set(SKIPS)
    for fact in (
        "in microvolts", "0.5 to 75 Hz, 200 Hz, average reference", "percent signal change", "no band-pass",
        "Parcellations seen in pretraining: ", r"60 parcels \(Lattice60\_01\_L to ", "parcels, TR ", " CC0 |",
        "19 channels", "**Contact:** not given", "Under another key no hash can match",
        "keyed hashes of the pretraining subjects", "Not a medical device",
    ):  # fmt: skip
        assert fact in card, fact
    assert model.preprocessing["subject_key_fingerprint"][:12] in card
    header = pytest.importorskip("huggingface_hub").ModelCard(card).data  # what the Hub shows and filters by
    assert (header.license, header.library_name) == ("other", "mcsp")


def test_sha256sum_agrees(export: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=export, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert len(done.stdout.splitlines()) == len(list(export.iterdir())) - 1


def test_an_export_of_one_modality_in_bfloat16_is_half_as_large_and_gives_the_same_features(
    export: Path, run_dir: Path, tmp_path: Path
) -> None:
    done = launch("export.py", run_dir, tmp_path / "eeg", "--dtype", "bf16", "--modalities", "eeg")
    assert done.returncode == 0, done.stderr
    assert "its weights rounded to bf16" in done.stdout
    whole, part = mcsp.from_pretrained(export), mcsp.from_pretrained(tmp_path / "eeg")
    assert part.config.modalities == ("eeg",)
    assert set(part.preprocessing["units"]) == {"eeg"}
    weights = whole.state_dict()
    assert all(torch.equal(w, weights[name].bfloat16().float()) for name, w in part.state_dict().items())
    size = (tmp_path / "eeg" / "model.safetensors").stat().st_size
    eeg_parameters = sum(w.numel() for name, w in weights.items() if ".eeg_" in name)
    assert 2 * eeg_parameters < size < 2.2 * eeg_parameters
    signal = fixed_signals(("eeg",))
    with torch.inference_mode():
        a, b = (m.features(signal)["eeg"] for m in (whole, part))
    assert (a - b).norm() / a.norm() < 0.01


@pytest.mark.slow
def test_programs_and_results_go_along(export: Path, run_dir: Path, tmp_path: Path) -> None:
    row = {
        "recordings": "fmri", "protocol": "kfold", "features": "pretrained", "classifier": "logistic",
        "transductive": False, "auroc": {"value": 0.81, "ci_low": 0.7, "ci_high": 0.9},
    }  # fmt: skip
    results = {
        "classification": [row, {**row, "transductive": True, "auroc": {"value": 0.99, "ci_low": 0, "ci_high": 1}}],
        "sites": {"simulated-a": {"simulated": True}}, "subjects": 32, "subjects_seen_in_pretraining": 24,
        "corpus_index_hash": "0" * 64, "label": {"name": "diagnosis", "classes": ["control", "case"]},
    }  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps(results))
    out = tmp_path / "model"
    options = ["--modalities", "fmri", "--format", "torch-export", "--evaluation", tmp_path]
    options += ["--contact", "models@example.org", "--terms", "CC BY-NC 4.0"]
    done = launch("export.py", run_dir, out, *options)
    assert done.returncode == 0, done.stderr
    card = (out / "README.md").read_text()
    assert "0.810 (0.700 to 0.900)" in card and "0.990" not in card and "24 of them seen in pretraining" in card
    assert "**Contact:** models@example.org" in card and "of the weights:** CC BY-NC 4.0" in card
    assert "model.encode_raw(" not in card
    program = json.loads((out / "programs.json").read_text())["fmri"]
    _, _, samples = program["inputs"]["x_BCT"]
    channels = program["channels_at_most"]
    inputs = torch.randn(2, channels, samples), torch.randn(2, channels, 3), torch.ones(2, channels, dtype=torch.bool)
    features = torch.export.load(out / "fmri.pt2").module()(*inputs)
    assert features.shape == (2, sum(program["features_BF"].values()))
    assert "fmri.pt2" in (out / "SHA256SUMS").read_text()
    rate, seconds = program["sfreq_hz"], program["window_seconds"]
    assert samples == round(30 * rate)
    assert f"`fmri.pt2`: fmri at {rate:g} Hz, windows of exactly {seconds:g} s, at most {channels} channels" in card


def test_exporting_again_replaces_the_export_and_leaves_nothing_beside_it(export: Path, run_dir: Path) -> None:
    before = {p.name: p.read_bytes() for p in export.iterdir()}
    beside = sorted(export.parent.iterdir())
    assert launch("export.py", run_dir, export).returncode == 0
    assert {p.name: p.read_bytes() for p in export.iterdir()} == before
    assert sorted(export.parent.iterdir()) == beside


def test_evaluate_prints_the_table_and_the_paths(export: Path, run_dir: Path, corpus_dir: Path, tmp_path: Path) -> None:
    done = launch(
        "evaluate.py", "--config", ROOT / "configs" / "evaluate" / "demo.yaml", f"model_dir={export}",
        f"corpus_dir={corpus_dir}", f"out_dir={tmp_path}", f"run_dir={run_dir}", "folds=2", "seeds=1",
        "windows_per_recording=1", "retrieval_size=8", "retrieval_draws=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "report.html") in done.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    for row in results["classification"]:
        assert f"{row['auroc']['value']:.3f}" in done.stdout
    assert (tmp_path / "report.html").stat().st_size > 20_000


def test_a_run_without_a_checkpoint(refuse: Callable[..., str], tmp_path: Path) -> None:
    error = refuse("export.py", tmp_path, tmp_path / "model")
    assert f"{tmp_path}: expected a pretraining run, found none (metrics.jsonl is missing)" in error
    assert not (tmp_path / "model").exists()


def test_a_folder_that_is_no_export_is_not_replaced(refuse: Callable[..., str], run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    error = refuse("export.py", run_dir, tmp_path)
    assert "expected a new folder or an earlier export to replace" in error
    assert (tmp_path / "thesis.txt").exists()


def test_another_corpus_than_the_checkpoints(
    refuse: Callable[..., str], run_dir: Path, corpus_dir: Path, tmp_path: Path
) -> None:
    other = tmp_path / "corpus"
    other.mkdir()
    for file in corpus_dir.iterdir():
        if file.name != "index.json":
            (other / file.name).symlink_to(file)
    index = json.loads((corpus_dir / "index.json").read_text())
    (other / "index.json").write_text(json.dumps({**index, "index_hash": "0" * 64}))
    error = refuse("export.py", run_dir, tmp_path / "model", "--corpus", other)
    assert "the checkpoint belongs to another corpus" in error
    assert "found 000000000000" in error


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("model_dir=nowhere", "nowhere: expected an exported model, found no such folder"),
        ("corpus_dir=nowhere", "nowhere: expected a finished corpus, found no such folder"),
        ("label=handedness", "no sample has the label 'handedness'"),
        ("fold=3", "unknown key 'fold'; did you mean 'folds'? known keys: batch_size, bids_root, classes, corpus_dir"),
    ],
)
def test_evaluate_refuses_bad_input(
    refuse: Callable[..., str], export: Path, corpus_dir: Path, tmp_path: Path, change: str, expected: str
) -> None:
    arguments = [f"model_dir={export}", f"corpus_dir={corpus_dir}", f"out_dir={tmp_path / 'out'}", change]
    assert expected in refuse("evaluate.py", *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("model_dir=nowhere", "nowhere: expected an exported model"),
        ("label=handedness", "no sample has the label 'handedness'"),
        ("classes=[case, patient]", "expected two classes or more ['case', 'patient'], found 2: ['case', 'control']"),
        ("folds=40", "folds=40: expected at least that many subjects in each class, found 16 and 16"),
        ("depth=half", "depth: Input should be 'head', 'last_layers' or 'full' (found 'half')"),
    ],
)
def test_finetune_refuses_bad_input(
    refuse: Callable[..., str], export: Path, corpus_dir: Path, tmp_path: Path, change: str, expected: str
) -> None:
    arguments = [f"model_dir={export}", f"corpus_dir={corpus_dir}", f"out_dir={tmp_path / 'out'}", change]
    assert expected in refuse("finetune", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_refusal_is_one_line_and_no_stack_trace(tmp_path: Path) -> None:
    done = launch("export.py", tmp_path / "nowhere", tmp_path / "model")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def example(name: str, *arguments: str | Path) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_examples_encode_recordings(export: Path, corpus_dir: Path) -> None:
    site = corpus_dir.parent / "bids" / "simulated-b"
    printed = example("encode_recording.py", export, next(site.glob("sub-*/eeg/*_eeg.edf")))
    assert "average of the 14 good channels" in printed and "features, mean over 4 windows" in printed
    printed = example("encode_recording.py", export, next(site.glob("sub-*/func/*_timeseries.tsv")))
    assert "as in pretraining (simulated-b)" in printed and "nan" not in printed


def test_the_example_classifies_a_folder(export: Path, corpus_dir: Path) -> None:
    printed = example("classify_recordings.py", export, corpus_dir.parent / "bids/simulated-a", "diagnosis", "case")
    assert printed.startswith("16 recordings of 16 subjects, AUROC per fold: [")
