"""What a run leaves to look at.

Covers: mcsp/run_log.py
"""

import json
import math
import os
import time
import tracemalloc
from pathlib import Path

import pytest

from mcsp.config import PretrainConfig
from mcsp.run_log import iter_metrics, keep_steps, read_events, read_metrics
from mcsp.training.metrics import Metrics, Tracker, progress
from mcsp.training.trainer import values_of_pairs


def test_a_line_that_a_full_disk_cut_off_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": null}\n{"step": 3, "lo')
    (tmp_path / "events.jsonl").write_text('{"event": "start", "step": 0}\n{"event"')
    first, second = read_metrics(tmp_path)
    assert first == {"step": 1, "loss": 2.0} and second["step"] == 2 and math.isnan(second["loss"])
    assert [event["event"] for event in read_events(tmp_path)] == ["start"]


def test_damaged_lines_do_not_keep_a_run_from_going_on(tmp_path: Path) -> None:
    lines = [b'{"step": %d, "loss": 1.0}\n' % step for step in range(1, 7)]
    lines[2] = b'{"step": 3, "loss": 1\xff.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines) + b'{"step": 7, "l')
    (tmp_path / "events.jsonl").write_bytes(b'{"event": "start", "step": 0, "time": 5.0}\n\xff\n{"event": "sk')
    metrics = Metrics(tmp_path, 5, 10)
    metrics.event("start", 5)
    values = ("loss", "learning_rate", "gradient_norm", "samples_per_second", "data_wait_fraction", "skipped_steps")
    metrics.write(6, dict.fromkeys(values, 1.0))
    metrics.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 4, 5, 6]
    assert [(e["event"], e["step"]) for e in read_events(tmp_path)] == [("start", 0), ("start", 5)]
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(b"".join(lines[:5])), "lines stay as they are"


def test_pairs_that_no_batch_holds_are_not_shown() -> None:
    """They showed as a retrieval of 0.00 throughout."""
    names = ["loss", "top1/fmri-eeg/spatial", "loss/distillation/fmri-eeg/temporal", "top1/eeg/spatial"]
    names += ["loss/fmri/spatial-temporal", "temperature/fmri-eeg/spectral"]
    values = dict.fromkeys(names, 0.5)
    paired = PretrainConfig.load(None, ["corpus_dir=c", "run_dir=r"])
    assert values_of_pairs(paired, values) == values
    unpaired = PretrainConfig.load(None, ["corpus_dir=c", "run_dir=r", "batch.paired=0"])
    shown = values_of_pairs(unpaired, values)
    assert list(shown) == ["loss", "top1/eeg/spatial", "loss/fmri/spatial-temporal"]
    others = {"learning_rate": 1.0, "gradient_norm": 1.0, "samples_per_second": 1.0, "data_wait_fraction": 0.0}
    assert "top-1 0.50" in progress({**shown, **others, "skipped_steps": 0.0}, {})


def test_a_long_log_is_read_in_little_memory_and_replaced_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100,000 steps once took 22 s and 1.5 GiB at every start."""
    path = tmp_path / "metrics.jsonl"
    values = {f"loss/term-{i}": 1.0 / (i + 1) for i in range(73)}
    line = json.dumps({"step": 0, **values})[len('{"step": 0') :]
    path.write_text("".join(f'{{"step": {step}{line}\n' for step in range(1, 5001)))
    size = path.stat().st_size
    tracemalloc.start()
    try:
        keep_steps(tmp_path, 4000)
        first = next(iter_metrics(tmp_path))
        assert tracemalloc.get_traced_memory()[1] < size / 20
    finally:
        tracemalloc.stop()
    assert first["step"] == 1 and sum(1 for _ in iter_metrics(tmp_path)) == 4000

    def fails(*_: object) -> None:
        raise OSError("a crash")

    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        keep_steps(tmp_path, 4000)  # nothing to leave out: nothing is written
        with pytest.raises(OSError, match="a crash"):
            keep_steps(tmp_path, 10)
    assert path.read_bytes() == before


def test_a_folder_without_metrics_has_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == [] and read_events(tmp_path) == []


VALUES = dict.fromkeys(
    ("loss", "learning_rate", "gradient_norm", "samples_per_second", "data_wait_fraction", "skipped_steps"), 1.0
)


def test_tensorboard_shows_a_run_that_began_anew_once(tmp_path: Path) -> None:
    """Killed before its first checkpoint, a run begins with step 1 again; then it goes back to step 2."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first in (1.0, 2.0):
        metrics = Metrics(tmp_path, 0, 10)
        for step in (1, 2, 3):
            metrics.write(step, VALUES | {"loss": first})
        metrics.close()
        time.sleep(1.1)  # files are told apart, and put in order, by the second of their names
    metrics = Metrics(tmp_path, 3, 10)
    metrics.rewind(2)
    metrics.write(3, VALUES | {"loss": 3.0})
    metrics.close()
    found = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(point.step, point.value) for point in found] == [(1, 2.0), (2, 2.0), (3, 3.0)]
    assert [line["loss"] for line in read_metrics(tmp_path)] == [2.0, 2.0, 3.0]


def test_a_tracker_that_fails_is_told_nothing_more_and_ends_nothing(tmp_path: Path, capfd) -> None:
    """A server that is down for an hour ended the run of a week."""
    heard: dict[str, list[int]] = {"good": [], "bad": []}

    def fails(step: int, values: dict[str, float]) -> None:
        heard["bad"].append(step)
        raise ConnectionError("the server\nis down")

    def closed() -> None:
        raise ConnectionError("still down")

    good = Tracker("good", lambda step, values: heard["good"].append(step), closed)
    metrics = Metrics(tmp_path, 0, 10, [Tracker("bad", fails, lambda: heard["bad"].append(-1)), good])
    for step in (1, 2):
        metrics.write(step, VALUES)
    metrics.close()
    assert heard == {"good": [1, 2], "bad": [1]} and len(read_metrics(tmp_path)) == 2
    said = capfd.readouterr().err
    assert said.count("warning: bad gets no more metrics of this start (the server is down)") == 1
    assert "warning: good gets no more metrics of this start (still down)" in said
