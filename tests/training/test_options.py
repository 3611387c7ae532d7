"""What a run keeps and tells beside its weights: a moving average, a trace, norms of parts, memory; and trackers.

Covers: mcsp/training/metrics.py
"""

import gzip
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mcsp.run_log import read_metrics
from mcsp.training.metrics import check_installed, trackers
from mcsp.training.saving.state import EMA, consolidate_weights
from tests.training.ranks import pretrain, same

DECAY = 0.5


@pytest.fixture(scope="module")
def observed(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run that saves each of its five steps."""
    folder = tmp_path_factory.mktemp("observed") / "run"
    overrides = [
        f"corpus_dir={corpus_dir}", "steps=5", "batch={paired: 4, eeg: 0, fmri: 0}", "warmup_steps=2",
        "window_seconds={eeg: 10, fmri: 30}", "checkpoint_every=1", "keep_checkpoints=9", f"ema_decay={DECAY}",
        "profile_steps=[2, 3]", "validate_every=2", "log_every=100", "micro_batches=2",
    ]  # fmt: skip
    pretrain(f"run_dir={folder}", *overrides)
    return folder, overrides


def checkpoint(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:08d}"


def test_the_average_is_that_of_the_weights_of_every_step(observed) -> None:
    run_dir, _ = observed
    average = consolidate_weights(checkpoint(run_dir, 1), EMA)
    assert same(average, consolidate_weights(checkpoint(run_dir, 1)))
    for step in range(2, 6):
        decay = min(DECAY, (1 + step) / (10 + step))
        weights = consolidate_weights(checkpoint(run_dir, step))
        average = {name: torch.lerp(value, weights[name], 1 - decay) for name, value in average.items()}
    found = consolidate_weights(checkpoint(run_dir, 5), EMA)
    assert all(torch.allclose(found[name], average[name], rtol=1e-6, atol=1e-9) for name in found)
    assert not same(found, weights)


def test_a_run_that_is_continued_at_another_stage_has_the_same_average(observed, tmp_path) -> None:
    run_dir, overrides = observed
    for step in range(1, 4):
        shutil.copytree(checkpoint(run_dir, step), checkpoint(tmp_path, step))
    told = pretrain(f"run_dir={tmp_path}", *overrides, "deepspeed=configs/deepspeed/zero3.json")
    assert "continues from step-00000003: 3 of 5 steps are taken" in told and "at ZeRO-3: the same data" in told
    # Stages round differently, and AdamW amplifies it; the average of the wrong range would be far away.
    found, whole = (consolidate_weights(checkpoint(folder, 5), EMA) for folder in (tmp_path, run_dir))
    assert all(torch.allclose(found[name], whole[name], rtol=0, atol=1e-5) for name in whole)


def test_without_an_average_there_is_none_to_export(finished_run) -> None:
    run_dir, _ = finished_run
    with pytest.raises(ValueError, match="found none; the run needs ema_decay"):
        consolidate_weights(checkpoint(run_dir, 20), EMA)


def test_steps_that_are_looked_at_closely_have_norms_of_parts_and_memory(observed) -> None:
    run_dir, _ = observed
    lines = read_metrics(run_dir)
    assert [line["step"] for line in lines] == [1, 2, 4, 5]
    for line in lines:
        parts = {name: value for name, value in line.items() if name.startswith("gradient_norm/")}
        assert {"gradient_norm/eeg_spatial", "gradient_norm/fmri_spectral_projection", "gradient_norm/heads"} <= set(
            parts
        )
        assert math.sqrt(sum(v * v for v in parts.values())) == pytest.approx(line["gradient_norm"], rel=1e-5)
        assert line["memory_gib/rank-0"] == pytest.approx(line["memory_gib"], rel=0.05)
        assert line["read_seconds/paired"] > 0
        assert 0.5 < line["real_share/eeg"] <= 1.0 and 0.3 < line["real_share/fmri"] <= 1.0


def test_a_trace_holds_the_steps_that_were_asked_for(observed) -> None:
    run_dir, _ = observed
    events = json.loads(gzip.decompress((run_dir / "profile" / "rank-00000.json.gz").read_bytes()))["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert names.count("aten::_foreach_lerp_") == 2, "the average moves once a step; on a CPU AdamW has none of these"
    assert "aten::addmm" in names and "autograd::engine::evaluate_function: AddmmBackward0" in names


def test_a_tracker_without_its_package_is_refused_before_the_first_step() -> None:
    with pytest.raises(ValueError, match="expected the package not_installed, found none; pip install not_installed"):
        check_installed(["not_installed"])


def test_mlflow_without_a_database_or_a_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    present = {"mlflow": "a spec", "sqlalchemy": None}
    monkeypatch.setattr("importlib.util.find_spec", present.get)
    with pytest.raises(ValueError, match="expected MLFLOW_TRACKING_URI or sqlalchemy: pip install mlflow"):
        check_installed(["mlflow"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    check_installed(["mlflow"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its database's package
def test_mlflow_gets_every_line_and_goes_on_in_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow: Any = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")  # the smallest package of MLflow has no database
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)  # where nothing else is left
    for step in (1, 2):  # as in two starts of one run
        [record] = trackers(["mlflow"], tmp_path, {"seed": 0})
        record.log(step, {"loss": 3.0 - step, "loss/eeg/spatial": 1.0})
        record.close()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    history = client.get_metric_history((tmp_path / "mlflow-id").read_text(), "loss")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.0)]
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", "mlflow", "mlflow-id"}


def test_wandb_goes_on_in_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (1, 2):
        [record] = trackers(["wandb"], tmp_path, {"seed": 0})
        record.log(step, {"loss": 3.0 - step})
        record.close()
    identity = (tmp_path / "wandb-id").read_text()
    assert len([path for path in (tmp_path / "wandb").glob("offline-run-*") if path.name.endswith(identity)]) == 2
