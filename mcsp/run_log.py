"""Read what a pretraining run wrote about itself: ``metrics.jsonl`` and ``events.jsonl``."""

import json
import math
from pathlib import Path
from typing import Any


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """All whole lines of ``metrics.jsonl``, ``null`` as NaN; empty where there is none."""
    lines = _whole_lines(run_dir / "metrics.jsonl")
    return [{name: math.nan if value is None else value for name, value in line.items()} for line in lines]


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """All whole lines of ``events.jsonl``, oldest first; empty where there is none."""
    return _whole_lines(run_dir / "events.jsonl")


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:  # cut off by a crash or a full disk
            continue
    return found
