"""Tables on real people: the pages show what the result files say, and nothing of a person is in them."""

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
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
def test_the_page_of_results_shows_the_main_rows_of_the_result_file(abide: ModuleType, file: Path) -> None:
    """All of the main classifier and the covariates, so that no unwelcome one is missing; and none that differs."""
    content, page = json.loads(file.read_text()), (ROOT / "docs/results.md").read_text()
    rows = abide.table(content).splitlines()
    shown = [row for row in rows if re.match(r"\|( features |---|[^|]*\| linear SVM |( covariates ))", row)]
    assert 8 < len(shown) < len(rows)
    assert "\n" + "\n".join(shown) + "\n" in page.replace("\n\n", "\n") and abide.leaks(content) in page


STUDIES = sorted(
    p
    for kind in ("read_out", "learned_gain", "spatial_tokens", "levers")
    for p in (ROOT / "benchmarks/results").glob(f"{kind}_*.json")
)
# Pages that speak of real people, where that part of each begins, and what ends it.
PARTS = {
    "docs/results.md": ("## ABIDE-I", None),
    "docs/evidence.md": ("## Read-out on real people", "## A simulated"),
}
# In the order of the columns.
COLUMNS = ("auroc", "auroc_sites", "auroc_twentieth_of_labels", "auroc_tenth_of_labels")


def part(page: str) -> str:
    start, end = PARTS[page]
    text = (ROOT / page).read_text().partition(start)[2]
    return text.partition(end)[0] if end else text


def differences(content: object) -> Iterator[tuple[str, ...]]:
    """Every value with its interval, as pages write a difference."""
    if isinstance(content, dict):
        if {"value", "ci_low", "ci_high"} <= set(content):
            yield tuple(f"{content[key]:+.3f}" for key in ("value", "ci_low", "ci_high"))
        content = list(content.values())
    if isinstance(content, list):
        for value in content:
            yield from differences(value)


SIGNED = r"([+-]\d\.\d{3}) \[([+-]\d\.\d{3}), ([+-]\d\.\d{3})\]"


@pytest.mark.parametrize("page", PARTS)
def test_every_number_about_people_is_of_a_result_file(abide: ModuleType, page: str) -> None:
    contents = [json.loads(file.read_text()) for file in (*FILES, *STUDIES)]
    known = {triple for content in contents for triple in differences(content)}
    lines = part(page).splitlines()
    prose = " ".join(line for line in lines if not line.startswith("|"))
    found = re.findall(SIGNED, prose)
    assert len(found) > 2 and set(found) <= known
    shown = " ".join(f"{abide.table(content)} {abide.leaks(content)}" for content in contents if "runs" in content)
    scores, rows = set(re.findall(r"\d\.\d{3}", shown)), set()
    for content in contents:
        of = [[f"{row[key]:.3f}" for key in COLUMNS if key in row] for row in content.get("rows", {}).values()]
        rows |= {tuple(row) for row in of}
        scores |= {row[0] for row in of}
        told = [content.get("denoiser_membership", {}).get("auroc"), *content.get("membership_by_rank", {}).values()]
        told += [value for told_of in content.get("beside_the_label", {}).values() for value in told_of.values()]
        told.append(content.get("membership_of_start"))
        half = content.get("half_at_parcels", {})
        learned = [row for row in half.get("classification", ()) if "learned part" in row["features"]]
        for interval in [row["auroc"] for row in (*learned, *half.get("membership", ()))]:
            told += [interval[key] for key in ("value", "ci_low", "ci_high")]
        told += [row["auroc"] for row in half.get("site_decoding", ())]
        told += [share for shares in content.get("shares", {}).values() for share in shares]
        scores |= {f"{value:.3f}" for value in told if value is not None}
    if page == "docs/evidence.md":  # the other page has whole tables, which a test of their own compares
        tables = [tuple(re.findall(r"\d\.\d{3}", line)) for line in lines if line.startswith("|")]
        assert {row for row in tables if len(row) > 2 and not set(row) <= scores} <= rows
        scores |= {value for row in rows for value in row}
    assert set(re.findall(r"\d\.\d{3}", re.sub(SIGNED, "", prose))) <= scores


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

    runs = {"default": [run(0.6), run(0.7)], "a change": [run(0.5)]}
    lines = abide.table({"runs": runs}).splitlines()
    assert lines[2] == "| pretrained | linear SVM | 0.650 (0.550 to 0.750) | 0.600 | 0.065 |"
    assert lines[3] == "| pretrained | logistic | 0.650 (0.550 to 0.750) | 0.600 |  |"
    assert lines[6] == "| pretrained; a change | linear SVM | 0.500 (0.400 to 0.600) | 0.600 | 0.050 |"
    assert not any("centred" in line for line in lines) and len(lines) == 8


def test_leaks_have_means_over_runs_and_the_people_of_the_run_of_half_of_them(abide: ModuleType) -> None:
    def run(auroc: float) -> dict:
        names = ("pretrained", "pretrained, learned part")
        return {"site_decoding": [{"features": name, "auroc": auroc} for name in names]}

    told = {"value": 0.61, "ci_low": 0.5, "ci_high": 0.7}
    half = {**run(0.1), "membership": [{"model": "pretrained", "auroc": told}]}
    lines = abide.leaks({"runs": {"default": [run(0.8), run(0.9)], abide.HALF: [half]}}).splitlines()
    assert lines[2:] == ["| pretrained | 0.850 |  |", "| pretrained, learned part | 0.850 | 0.610 (0.500 to 0.700) |"]
    assert abide.leaks({"runs": {"default": [run(0.8)]}}).splitlines()[3] == "| pretrained, learned part | 0.800 |"
    one_site = {"site_decoding": []}
    assert abide.leaks({"runs": {"default": [one_site]}}) == ""
    lines = abide.leaks({"runs": {"default": [one_site], abide.HALF: [{**one_site, **half, "site_decoding": []}]}})
    assert lines.splitlines()[2:] == ["| pretrained, learned part | 0.610 (0.500 to 0.700) |"]


N_PARCELS, SITES = 12, ("Caltech", "MaxMun_a", "Olin")


@pytest.fixture
def data(abide: ModuleType, tmp_path: Path) -> Path:
    """Simulated people as nilearn lays them out, 14 at each of three sites; one more without a series."""
    rng, rows = np.random.default_rng(0), []
    (tmp_path / abide.SERIES).mkdir(parents=True)
    mixing = rng.normal(size=(4, N_PARCELS))
    for k in range(14 * len(SITES) + 1):
        site = SITES[k % len(SITES)]
        name = f"{site}_{51000 + k:07d}"
        rows.append([51000 + k, name, 1 + k // len(SITES) % 2, 20.0 + k % 7, 1 + k % 2, 0.1])
        if k < 14 * len(SITES):
            x_TP = rng.normal(size=(90, 4)) @ mixing + rng.normal(size=(90, N_PARCELS))
            np.savetxt(tmp_path / abide.SERIES / f"{name}_rois_cc200.1D", x_TP, fmt="%.4f", header="#1 #2")
    columns = ["SUB_ID", "FILE_ID", "DX_GROUP", "AGE_AT_SCAN", "SEX", "func_mean_fd"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / abide.PHENOTYPES, index=False)
    places = pd.DataFrame(rng.uniform(-50, 50, (N_PARCELS, 3)), columns=["x_mm", "y_mm", "z_mm"])
    places.rename_axis("label").to_csv(tmp_path / "cc200_positions.tsv", sep="\t")
    return tmp_path


def test_a_limit_takes_people_of_all_sites(abide: ModuleType, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert abide.people(data, 7)["site"].value_counts().to_dict() == {"Caltech": 3, "MaxMun_a": 2, "Olin": 2}
    assert len(abide.people(data)) == 42
    assert "series of 42 of the 43 people in the table; 7 of them are used" in capsys.readouterr().out


def test_what_is_missing_is_one_line(abide: ModuleType, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error() -> str:
        out = ["--limit", "9", "--out", str(data / "out.json")]
        assert abide.main(["--data", str(data), "--work", str(data / "work"), *out]) == 1
        return capsys.readouterr().err

    positions, table = data / "cc200_positions.tsv", data / abide.PHENOTYPES
    text = positions.read_text()
    positions.unlink()
    assert (
        error() == f"error: {positions}: expected the centres of the parcels (label, x_mm, y_mm, z_mm), found no file\n"
    )
    positions.write_text("".join(text.splitlines(keepends=True)[:-1]))
    assert f"expected {N_PARCELS - 1} columns as {positions}, found {N_PARCELS}" in error()
    positions.write_text(text)
    (data / "work" / "asked.json").write_text('{"people": 42}')
    assert "take another --work" in error()
    table.write_text(table.read_text().replace("Olin", "Elsewhere"))
    for file in (data / abide.SERIES).glob("Olin*"):
        file.rename(file.with_name(file.name.replace("Olin", "Elsewhere")))
    assert "found ['Elsewhere']" in error()
    for file in (data / abide.SERIES).iterdir():
        file.unlink()
    assert "expected *_rois_cc200.1D of people in" in error()


def test_recordings_of_eeg_come_in_pairs(abide: ModuleType, tmp_path: Path) -> None:
    eegmat = importlib.import_module("eegmat")
    for name in ("Subject00_1", "Subject00_2", "Subject01_1", "Subject01_2"):
        (tmp_path / f"{name}.edf").touch()
    assert [file.stem for file in eegmat.recordings(tmp_path, 1)] == ["Subject00_1", "Subject00_2"]
    assert len(eegmat.recordings(tmp_path, None)) == 4
    (tmp_path / "Subject01_2.edf").unlink()
    with pytest.raises(ValueError, match="expected two files of everyone, found one of Subject01"):
        eegmat.recordings(tmp_path, None)


@pytest.mark.slow
def test_the_smallest_run_ends_with_the_tables_and_goes_on_after_an_interruption(
    abide: ModuleType, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = data / "result.json"
    small = ["model.fmri_anchors=8", "batch={paired: 0, eeg: 0, fmri: 8}", "window_seconds={fmri: 100}"]
    command = ["--data", str(data), "--seeds", "0", "--steps", "2", "--limit", "36", "--out", str(out), "--set", *small]
    assert abide.main(command) == 0
    first = json.loads(out.read_text())
    assert first["people"] == 36 and list(first["runs"]) == ["default", abide.SHUFFLED, abide.HALF]
    (half,) = first["runs"][abide.HALF]
    assert {row["model"] for row in half["membership"]} == {"pretrained", "untrained"}
    ended = data / "mcsp/default-0-run/exit.json"
    ended.write_text(json.dumps({**json.loads(ended.read_text()), "reason": "signal"}))
    (data / "mcsp/half-0-evaluation/results.json").unlink()
    capfd.readouterr()
    assert abide.main(command) == 0
    shown = capfd.readouterr().out
    assert json.loads(out.read_text())["runs"] == first["runs"]
    assert abide.table(first) in shown and abide.leaks(first) in shown
    assert shown.count("launchers/evaluate.py") == 1 and shown.count("launchers/pretrain.py") == 1
