"""Labels as they are: a planted age and three planted classes, evaluated and fine-tuned; missing ones and families.

Covers: mcsp/evaluate/units.py
"""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mcsp
from mcsp.commands.main import run
from mcsp.config import EvaluateConfig, FinetuneConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.data_sharding.store.table import Recordings
from mcsp.evaluate.evaluate import evaluate, label_folders
from mcsp.evaluate.finetune import Finetuning, finetune
from mcsp.evaluate.report.tables import terminal_table
from mcsp.evaluate.units import read_labels

POWER = "relative band power"


def relabelled(corpus_dir: Path, of: Callable[[str], dict[str, Any]]) -> Corpus:
    """The corpus with other columns of participants.tsv, by "site/subject"."""
    corpus = Corpus(corpus_dir)
    corpus.recordings = Recordings.of(
        replace(r, participant=json.dumps(of(f"{r.site}/{r.subject}"))) for r in corpus.recordings
    )
    return corpus


@pytest.fixture(scope="module")
def people(corpus_dir: Path) -> dict[str, dict[str, Any]]:
    """An age that rises with a subject's share of alpha in the EEG, three stages of it, and who is whose sibling.

    One subject has no age, another no stage.
    """
    corpus = Corpus(corpus_dir)
    alpha = {}
    for r in corpus.recordings:
        if r.modality == "eeg":
            x_TC = corpus.read_window(r, 0, r.n_samples).x_TC
            power_FC = np.abs(np.fft.rfft(x_TC, axis=0)) ** 2
            hz_F = np.fft.rfftfreq(len(x_TC), 1 / r.sfreq)
            share = power_FC[(hz_F > 8) & (hz_F < 13)].sum(0) / power_FC[(hz_F > 1) & (hz_F < 45)].sum(0)
            alpha[f"{r.site}/{r.subject}"] = float(np.log(share).mean())
    names = sorted(alpha)
    rank_N = np.argsort(np.argsort([alpha[name] for name in names])) / (len(names) - 1)
    age_N = np.round(20 + 60 * rank_N + np.random.default_rng(0).normal(0, 2, len(names)), 1)
    stage_N = np.array(["healthy", "mild", "severe"])[np.minimum((3 * rank_N).astype(int), 2)]
    found: dict[str, dict[str, Any]] = {
        name: {"age": float(age), "stage": str(stage), "family": f"F{i // 2}"}
        for i, (name, age, stage) in enumerate(zip(names, age_N, stage_N, strict=True))
    }
    found[names[0]]["age"], found[names[1]]["stage"] = None, "n/a"
    return found


@pytest.fixture
def corpus(corpus_dir: Path, people: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Corpus:
    found = relabelled(corpus_dir, people.__getitem__)
    for module in ("evaluate", "finetune"):
        monkeypatch.setattr(f"mcsp.evaluate.{module}.open_corpus", lambda *_: found)
    return found


def test_age_and_stage_are_evaluated_in_one_call(
    corpus: Corpus, corpus_dir: Path, export_dir: Path, people: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    config = EvaluateConfig(
        model_dir=export_dir, corpus_dir=corpus_dir, out_dir=tmp_path, label="age", more_labels=("stage",), folds=3,
        seeds=1, windows_per_recording=1, label_fractions=(0.4, 1.0), permutations=5, retrieval_size=4,
        retrieval_draws=1, group_column="family", site_correction=("centred", "combat"),
    )  # fmt: skip
    results = evaluate(config)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    stage = results["more_labels"]["stage"]
    assert json.loads((tmp_path / "stage" / "results.json").read_text()) == stage
    assert (results["label"]["kind"], stage["label"]["kind"]) == ("number", "classes")
    assert (results["label"]["missing"], stage["label"]["missing"]) == (1, 1)
    assert stage["label"]["classes"] == ["healthy", "mild", "severe"] and sum(stage["label"]["units"]) == 31
    assert any("different numbers and is taken as a number" in note for note in results["notes"])

    kinds = (results, "r2", "r_sites", 0.5, "ridge"), (stage, "auroc", "auroc_sites", 0.7, "linear SVM")
    for found, main, within, least, classifier in kinds:
        rows = found["classification"]
        blocks = {(r["recordings"], r["protocol"]) for r in rows}
        assert blocks == {(m, p) for m in ("eeg", "fmri", "both") for p in ("kfold", "leave_site_out")}
        of_power = [r for r in rows if (r["recordings"], r["features"], r["classifier"]) == ("eeg", POWER, classifier)]
        new, left_out = of_power
        assert new[main]["value"] > least  # it was planted there
        assert left_out[within]["value"] > 0.6  # a site's own level of power may shift what is said of all of it
        assert all(r[main]["ci_low"] < r[main]["value"] < r[main]["ci_high"] for r in of_power)
        for row in rows:
            if "pretrained_minus_this" in row:
                assert {main, within} <= row["pretrained_minus_this"].keys()
        chance = 0.5 if main == "auroc" else 0.0
        assert all(r["permuted"]["mean"] < chance + 0.25 for r in rows if "permuted" in r)
        curve = [p for p in found["label_efficiency"] if p["features"] == POWER]
        assert [p["fraction"] for p in curve] == [0.4, 1.0] and curve[0]["training_units"] < curve[1]["training_units"]
        assert "pretrained_minus_this" in curve[0] and curve[1][within] > 0.6
    assert {r["classifier"] for r in results["classification"]} == {"ridge", "ComBat + ridge"}
    for row in stage["classification"]:
        assert np.sum(row["confusion"]) == pytest.approx(31) and set(row["per_class"]) == {"healthy", "mild", "severe"}
    table = terminal_table(results)
    assert "R²" in table and "label stage:" in table
    for folder in (tmp_path, tmp_path / "stage"):
        assert (folder / "report.html").stat().st_size > 10_000
    check_numbers(tmp_path / "classifier", corpus_dir, people, 0.5)
    check_stages(tmp_path / "stage" / "classifier", corpus_dir)


def recordings_of(corpus_dir: Path) -> list[Path]:
    return sorted((corpus_dir.parent / "bids").glob("simulated-*/sub-*/eeg/*_eeg.edf"))[::2]


def check_numbers(folder: Path, corpus_dir: Path, people: dict[str, dict[str, Any]], least_r: float) -> None:
    """What ``mcsp predict`` says of every file; a corpus hides who is who, so that ages are compared in order."""
    out = folder.parent / "ages.tsv"
    edfs = recordings_of(corpus_dir)
    assert run(["predict", str(folder), *map(str, edfs), "none.edf", "--out", str(out)]) == 0
    with out.open(newline="") as file:
        *rows, bad = csv.DictReader(file, delimiter="\t")
    assert list(rows[0]) == [
        "recording", "modality", "value", "low", "high", "distance", "closer", "flags", "error",
    ]  # fmt: skip
    assert "no such file" in bad["error"] and bad["value"] == bad["low"] == bad["high"] == "n/a"
    value_N, low_N, high_N = (np.array([float(row[name]) for row in rows]) for name in ("value", "low", "high"))
    facts = mcsp.load_classifier(folder).heads["eeg"].facts
    np.testing.assert_allclose(high_N - low_N, 2 * facts["interval"]["half_width"], atol=1e-5)
    known_N = np.array([person["age"] for person in people.values() if person["age"] is not None])
    assert facts["range"] == [known_N.min(), known_N.max()]
    quantiles = np.linspace(0.1, 0.9, 9)
    off = np.quantile(value_N, quantiles) - np.quantile(known_N, quantiles)
    assert np.abs(off).max() < 15 and value_N.std() > 8  # years
    skill = facts["skill"]
    assert skill["measure"] == "r" and skill["estimate"]["value"] > least_r
    assert (
        not any("not shown" in row["flags"] for row in rows)
        and f"r {skill['estimate']['value']:.2f}" in (folder / "README.md").read_text()
    )


def check_stages(folder: Path, corpus_dir: Path) -> None:
    found = list(map(mcsp.load_classifier(folder).predict_or_tell, recordings_of(corpus_dir)))
    assert {p.label for p in found} == {"healthy", "mild", "severe"}
    for p in found:
        assert list(p.probabilities) == ["healthy", "mild", "severe"] and p.value is p.interval is None
        assert sum(p.probabilities.values()) == pytest.approx(1)
        assert p.label == max(p.probabilities, key=p.probabilities.__getitem__)


def test_age_and_stage_are_fine_tuned(corpus: Corpus, corpus_dir: Path, export_dir: Path, tmp_path: Path) -> None:
    config = FinetuneConfig(
        model_dir=export_dir, corpus_dir=corpus_dir, out_dir=tmp_path, label="age", folds=2, depth="head",
        max_passes=8, windows_per_recording=1, batch_size=16, learning_rate=0.01,
    )  # fmt: skip
    found = finetune(config)
    tuned, frozen = found["scores"]
    assert tuned["r"]["value"] > 0.2 and tuned["mae"]["value"] < 25  # years, not standard scores
    gain = found["scores"][0]["finetuned_minus_frozen"]["value"]
    assert gain == pytest.approx(tuned["r2"]["value"] - frozen["r2"]["value"])
    predictor = mcsp.load_classifier(tmp_path / "classifier")
    assert predictor.task == {"kind": "regression", "label": "age", "classes": []}
    edf, bold = recordings_of(corpus_dir)[0], next((corpus_dir.parent / "bids").glob("*/sub-*/func/*_timeseries.tsv"))
    for of_file in map(predictor.predict_or_tell, [edf, bold]):
        assert of_file.error == of_file.label == "" and of_file.probabilities == {}
        assert of_file.value is not None and of_file.interval is not None and 0 < of_file.value < 100
        head = predictor.heads[of_file.modality]  # type: ignore[index]
        assert of_file.interval[1] - of_file.value == pytest.approx(head.facts["interval"]["half_width"])
        assert 15 < float(head.arrays["bias_O"][0]) < 85  # years, not standard scores
    stage = finetune(config.model_copy(update={"label": "stage", "max_passes": 2}))
    for row in stage["scores"]:
        assert np.sum(row["confusion"]) == pytest.approx(31) and 0 <= row["auroc"]["value"] <= 1
    (of_file,) = map(mcsp.load_classifier(tmp_path / "classifier").predict_or_tell, [edf])
    assert list(of_file.probabilities) == ["healthy", "mild", "severe"] and of_file.label in of_file.probabilities
    run = Finetuning(config.model_copy(update={"label": "stage"}))
    without = np.flatnonzero(run.labelled.y_N != 2)
    with pytest.raises(ValueError, match=r"fold 0: expected every class beside the inner split, found .* units of 2"):
        run.train(without, 0)


def test_siblings_are_on_one_side_and_one_subject_of_two_families_is_refused(corpus: Corpus, corpus_dir: Path) -> None:
    labelled = read_labels(corpus, "stage", group_column="family")
    assert len(labelled.units) == 31 and len(set(labelled.groups)) < len(set(labelled.subjects)) == 31
    assert all(group.split("/")[0] == site for group, site in zip(labelled.groups, labelled.sites, strict=True))
    assert labelled.part(np.arange(4)).groups == labelled.groups[:4]
    with pytest.raises(ValueError, match="no sample has the group_column 'clan'"):
        read_labels(corpus, "stage", group_column="clan")
    sessions = iter(range(1000))
    two = relabelled(corpus_dir, lambda name: {"stage": "mild" if "a/" in name else "x", "family": str(next(sessions))})
    keys = {f"{r.site}/{r.subject}": f"{r.key}-{r.modality}" for r in two.recordings}
    two.recordings = Recordings.of(
        replace(r, key=f"{r.key}-{r.modality}", task="") for r in two.recordings if f"{r.site}/{r.subject}" in keys
    )
    with pytest.raises(ValueError, match="group_column 'family': expected one value of subject"):
        read_labels(two, "stage", group_column="family")


@pytest.mark.parametrize(
    ("value", "arguments", "kind", "classes"),
    [
        (lambda i: i % 4, {}, "classes", ["0", "1", "2", "3"]),
        (lambda i: i % 12, {"kind": "classes"}, "classes", [str(k) for k in range(12)]),
        (lambda i: i % 4, {"kind": "number"}, "number", []),
        (lambda i: i * 0.5, {}, "number", []),
        (lambda i: ["td", "a", "b"][i % 3], {}, "classes", ["td", "a", "b"]),
        (lambda i: i, {"classes": ("1", "0")}, "binary", ["1", "0"]),
    ],
)
def test_the_kind_of_a_label_is_found_or_given(
    corpus_dir: Path, value: Callable[[int], Any], arguments: dict[str, Any], kind: str, classes: list[str]
) -> None:
    names = sorted({f"{r.site}/{r.subject}" for r in Corpus(corpus_dir).recordings})
    corpus = relabelled(corpus_dir, lambda name: {"x": value(names.index(name))})
    labelled = read_labels(corpus, "x", **arguments)
    assert (labelled.task.kind, labelled.classes) == (kind, classes)
    assert (labelled.y_N.dtype.kind == "f") == (kind == "number")
    assert labelled.left_out == (30 if kind == "binary" else 0)
    assert len(labelled.notes) == (not arguments and not isinstance(value(0), str))


@pytest.mark.parametrize(
    ("value", "arguments", "message"),
    [
        (lambda i: "high" if i else 3, {"kind": "number"}, r"expected three different numbers or more, found \['high'"),
        (lambda i: i % 2, {"kind": "number"}, r"expected three different numbers or more, found \['0', '1'\]"),
        (lambda i: i % 3, {"classes": ("0", "7")}, r"expected two classes or more \['0', '7'\], found 3"),
        (lambda i: i % 3, {"classes": ("0", "0")}, "expected two classes or more"),
        (
            lambda i: i,
            {"kind": "number", "classes": ("0", "1")},
            r"expected three different numbers or more, found classes=",
        ),
    ],
)
def test_labels_that_are_not_what_was_said(
    corpus_dir: Path, value: Callable[[int], Any], arguments: dict[str, Any], message: str
) -> None:
    names = sorted({f"{r.site}/{r.subject}" for r in Corpus(corpus_dir).recordings})
    corpus = relabelled(corpus_dir, lambda name: {"x": value(names.index(name))})
    with pytest.raises(ValueError, match=message):
        read_labels(corpus, "x", **arguments)


def test_a_label_named_twice_is_refused(corpus: Corpus, corpus_dir: Path, export_dir: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(
        model_dir=export_dir, corpus_dir=corpus_dir, out_dir=tmp_path, label="age", more_labels=("age",)
    )
    with pytest.raises(ValueError, match="more_labels: expected other labels than 'age', each once"):
        evaluate(config)


def test_every_further_label_has_a_folder_that_nothing_else_has() -> None:
    found = label_folders(["a b", "a_b", "classifier", "corpus", ".."])
    assert found == {"a b": "a_b", "a_b": "a_b_", "classifier": "classifier_", "corpus": "corpus_", "..": "__"}
