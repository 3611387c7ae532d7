"""The state of a build in words: none, running, silent, failed, complete."""

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mcsp.commands.main import launcher
from mcsp.data_sharding.build.progress import STATUS_FILE, BuildStatus, read_status, status_lines
from mcsp.data_sharding.store.files import location

main = launcher("status")
START = datetime(2026, 1, 1, 12, tzinfo=UTC)


def status(**changes: Any) -> dict[str, Any]:
    return {
        "state": "running",
        "started": START.isoformat(),
        "updated": (START + timedelta(minutes=30)).isoformat(),
        "sites": {
            "b": {"found": 100, "done": 25, "quarantined": 5, "hours": 3.0},
            "a": {"found": 4, "done": 4, "quarantined": 0, "hours": 1.0},
        },
        "shards": {"done": 3, "total": 11},
        "hours_per_second": 0.004,
        "seconds_left": 5400.0,
        **changes,
    }


def write(out: Path, content: dict[str, Any]) -> None:
    (out / STATUS_FILE).parent.mkdir(exist_ok=True)
    (out / STATUS_FILE).write_text(json.dumps(content))


def test_each_site_has_a_line(tmp_path: Path) -> None:
    lines = status_lines(tmp_path, status(), START + timedelta(minutes=31))
    cells = [line.split("  ") for line in lines]
    found = [[cell.strip() for cell in row if cell.strip()] for row in cells[:-1]]
    assert found == [
        ["site", "found", "done", "quarantined", "hours", "hours/s", "left"],
        ["a", "4", "4 (100 %)", "0", "1.00", "0.001", "done"],
        ["b", "100", "25 (25 %)", "5", "3.00", "0.003", "1 h 30 min"],
        ["all", "104", "29 (27 %)", "5", "4.00", "0.004", "1 h 30 min"],
    ]
    assert lines[-1] == f"{tmp_path}: running for 30 min 00 s, 3 of 11 shards done, as of 1 min 00 s ago"


@pytest.mark.parametrize(
    ("changes", "minutes", "words"),
    [
        ({"state": "complete"}, 9999, "complete, 3 of 11 shards in 30 min 00 s"),
        ({"state": "failed"}, 9999, "failed after 30 min 00 s"),
        ({}, 130, "nothing new for 1 h 40 min"),
        ({"seconds_left": None}, 31, "running"),
        ({"sites": {}}, 31, "running"),
    ],
)
def test_the_last_line_says_how_it_stands(tmp_path: Path, changes: dict[str, Any], minutes: int, words: str) -> None:
    assert words in status_lines(tmp_path, status(**changes), START + timedelta(minutes=minutes))[-1]


def test_where_there_is_no_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no build was started here" in status_lines(tmp_path, read_status(tmp_path), START)[0]
    (tmp_path / "index.json").touch()
    assert "a finished corpus" in status_lines(tmp_path, read_status(tmp_path), START)[0]
    assert main([str(tmp_path / "nowhere")]) == 2
    write(tmp_path, {"state": "running"})
    assert main([str(tmp_path)]) == 2
    (tmp_path / STATUS_FILE).write_text("{")
    assert main([str(tmp_path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [("no such folder" in e, "expected the keys" in e, "not readable as JSON" in e) for e in errors] == [
        (True, False, False), (False, True, False), (False, False, True),
    ]  # fmt: skip


def test_watching_ends_with_the_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, status())

    def finish() -> None:
        time.sleep(0.3)
        write(tmp_path, status(state="complete"))

    thread = threading.Thread(target=finish)
    thread.start()
    assert main([str(tmp_path), "--watch", "--interval", "0.1"]) == 0
    thread.join()
    verdicts = [line for line in capsys.readouterr().out.splitlines() if line.startswith(str(tmp_path))]
    assert len(verdicts) >= 2 and "complete" in verdicts[-1] and "complete" not in verdicts[0]


def test_a_status_is_read_from_an_object_store(tmp_path: Path) -> None:
    out = location("memory://watched/corpus")
    (out / STATUS_FILE).write_bytes(json.dumps(status()).encode())
    found = read_status(out)
    assert found == status()
    assert "memory://watched/corpus: running" in status_lines(out, found, START + timedelta(minutes=31))[-1]


def test_recordings_count_before_their_shard_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".build").mkdir()
    building = BuildStatus(tmp_path, {"a": 10, "b": 5}, shards=2)
    building.look({"train-1": {"a": [3, 1, 0.5], "b": [0, 0, 0.0]}})
    building.write("running")
    found = read_status(tmp_path)
    assert found is not None and found["sites"]["a"] == {"found": 10, "done": 4, "quarantined": 1, "hours": 0.5}
    assert (
        found["shards"] == {"done": 0, "total": 2}
        and found["hours_per_second"] > 0
        and found["seconds_left"] is not None
    )
    building.add("train-1", {"a": [6, 1, 1.0], "b": [5, 0, 1.0]}, kept=False)  # in place of what was known of it
    building.correct({"a": [6, 1, 1.0]}, {"a": [5, 2, 0.75]})
    building.say("warning: a line")
    building.close("complete")
    found = read_status(tmp_path)
    assert found is not None and found["sites"] == {
        "a": {"found": 10, "done": 7, "quarantined": 2, "hours": 0.75},
        "b": {"found": 5, "done": 5, "quarantined": 0, "hours": 1.0},
    }
    said = capsys.readouterr().err.splitlines()
    assert "warning: a line" in said and "complete, 1 of 2 shards" in said[-1]
    assert any(line.split()[:5] == ["a", "10", "7", "(70", "%)"] for line in said)


def test_what_was_there_before_does_not_count_as_speed(tmp_path: Path) -> None:
    (tmp_path / ".build").mkdir()
    building = BuildStatus(tmp_path, {"a": 100}, shards=2)
    building.add("train-1", {"a": [50, 0, 9.0]}, kept=True)
    building.write("running")
    found = read_status(tmp_path)
    assert found is not None and (found["hours_per_second"], found["seconds_left"]) == (0, None)
