"""Attacks by an export of somebody else: what it says of itself must not cost memory before it is believed.

Covers: mcsp/outside.py
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mcsp import outside
from mcsp.model.weights import write_sums
from mcsp.outside import read_object

# Megabytes that a refusal may take beyond what loading a sound export took.
MOST_MB = 60
LOADS = """
import resource, sys
from mcsp import from_pretrained
sound, hostile = sys.argv[1:]
from_pretrained(sound)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    from_pretrained(hostile)
except ValueError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"eeg_anchors": 1_000_000}, "eeg_anchors: Input should be less than or equal to 1024"),
        ({"size": "huge"}, "weights do not match the configuration: expected"),
        ({"modalities": ["fmri"] * 10_000}, "modalities: Tuple should have at most 2 items"),
    ],
)
def test_a_model_larger_than_its_weights_is_refused_before_it_takes_memory(
    change: dict[str, Any], line: str, export_dir: Path, tmp_path: Path
) -> None:
    hostile = shutil.copytree(export_dir, tmp_path / "hostile")
    config = json.loads((hostile / "config.json").read_text())
    config["model"] |= change
    (hostile / "config.json").write_text(json.dumps(config))
    write_sums(hostile)
    result = subprocess.run(
        [sys.executable, "-c", LOADS, export_dir, hostile], capture_output=True, text=True, check=True
    )
    refusal, megabytes = result.stdout.splitlines()
    assert line in refusal and int(megabytes) < MOST_MB, result.stdout


@pytest.mark.parametrize("name", ["config.json", "preprocessing.json"])
@pytest.mark.parametrize("attack", ["deep", "large", "list"])
def test_json_beyond_the_limits_is_one_line(
    name: str, attack: str, export_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mcsp import from_pretrained

    monkeypatch.setattr(outside, "MOST_BYTES", 1 << 20)
    hostile = shutil.copytree(export_dir, tmp_path / "hostile")
    (hostile / name).write_text(
        {"deep": "[" * 100_000, "large": '{"a": "' + "a" * (1 << 20) + '"}', "list": "[]"}[attack]
    )
    write_sums(hostile)
    expected = {"deep": "nested too deep", "large": "more than 1,048,576 bytes", "list": "expected a JSON object"}
    with pytest.raises(ValueError, match=rf"{name}.*{expected[attack]}") as error:
        from_pretrained(hostile)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.json: cannot be read \(No such file or directory\)"):
        read_object(tmp_path / "absent.json")
