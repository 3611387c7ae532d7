"""What a run leaves to look at."""

import math
from pathlib import Path

from mcsp.run_log import read_events, read_metrics


def test_a_line_that_a_full_disk_cut_off_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": null}\n{"step": 3, "lo')
    (tmp_path / "events.jsonl").write_text('{"event": "start", "step": 0}\n{"event"')
    first, second = read_metrics(tmp_path)
    assert first == {"step": 1, "loss": 2.0} and second["step"] == 2 and math.isnan(second["loss"])
    assert [event["event"] for event in read_events(tmp_path)] == ["start"]


def test_a_folder_without_metrics_has_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == [] and read_events(tmp_path) == []
