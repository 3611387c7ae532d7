"""Tables on real people: the pages show what the result files say, and nothing of a person is in them."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(p for kind in ("abide", "eegmat") for p in (ROOT / "benchmarks" / "results").glob(f"{kind}_*.json"))


@pytest.fixture(scope="module")
def abide() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("abide")


def test_there_is_a_result_of_each() -> None:
    assert {file.name.split("_")[0] for file in FILES} == {"abide", "eegmat"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_page_of_results_shows_the_result_file(abide: ModuleType, file: Path) -> None:
    table = abide.table(json.loads(file.read_text()))
    assert len(table.splitlines()) > 8
    assert table in (ROOT / "docs/results.md").read_text()


def test_the_readme_shows_rows_of_the_result_file_and_the_unwelcome_ones_too(abide: ModuleType) -> None:
    table = abide.table(json.loads((ROOT / "benchmarks/results/abide_522.json").read_text())).splitlines()
    readme = (ROOT / "README.md").read_text()
    shown = readme.partition("abide.py --table` -->")[2].partition("<!-- end -->")[0].strip().splitlines()
    assert shown[:2] == table[:2] and set(shown) <= set(table)
    names = [row.split("|")[1].strip() for row in shown[2:]]
    assert {"pretrained", "untrained", "connectivity", "root of connectivity", "tangent space"} <= set(names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_result_file_names_no_person(file: Path) -> None:
    content = json.loads(file.read_text())
    assert len(content["runs"]["default"]) == 2 and content["people"] == content["runs"]["default"][0]["subjects"]
    assert not any(word in file.read_text() for word in ("sub-", "SUB_ID", "FILE_ID"))


def test_a_table_has_means_over_runs_and_few_labels_of_the_main_classifier(abide: ModuleType) -> None:
    def run(auroc: float) -> dict:
        """What one run says."""
        scores = {
            "auroc": {"value": auroc, "ci_low": auroc - 0.1, "ci_high": auroc + 0.1},
            "auroc_sites": {"value": 0.6},
        }
        rows = [
            {"features": name, "classifier": kind, "transductive": name.endswith("centred"), **scores}
            for name in ("pretrained", "pretrained, learned part", "pretrained, centred")
            for kind in ("linear SVM", "logistic")
        ]
        points = [{"features": "pretrained", "fraction": f, "auroc": auroc * f} for f in (0.1, 1.0)]
        return {"classification": rows, "label_efficiency": points}

    lines = abide.table({"runs": {"default": [run(0.6), run(0.7)], "a change": [run(0.5)]}}).splitlines()
    assert lines[2] == "| pretrained | linear SVM | 0.650 (0.550 to 0.750) | 0.600 | 0.065 |"
    assert lines[3] == "| pretrained | logistic | 0.650 (0.550 to 0.750) | 0.600 |  |"
    assert lines[6] == "| pretrained; a change | linear SVM | 0.500 (0.400 to 0.600) | 0.600 | 0.050 |"
    assert not any("centred" in line for line in lines) and len(lines) == 8
