"""The whole evaluation on a small corpus: numbers, report, determinism, and labels that cannot be used.

Covers: mcsp/evaluate/comparison.py, mcsp/evaluate/units.py, mcsp/evaluate/methods.py
"""

import hashlib
import json
import re
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mcsp.config import EvaluateConfig, ModelConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.data_sharding.store.table import Recordings
from mcsp.encode.pretrained import from_pretrained
from mcsp.evaluate.comparison import permuted
from mcsp.evaluate.evaluate import evaluate, untrained_like, with_windows
from mcsp.evaluate.methods import CLASSICAL
from mcsp.evaluate.readout.classifiers import SVM, on_grams
from mcsp.evaluate.readout.task import Task
from mcsp.evaluate.report.tables import MEASURES, terminal_table, verdict
from mcsp.evaluate.retrieval import CONTROLS, run_retrieval
from mcsp.evaluate.splits import Folds, k_fold
from mcsp.evaluate.units import read_labels
from mcsp.export.export import pretraining_subjects
from mcsp.model.mcsp import MCSP
from mcsp.model.weights import write_pretrained
from mcsp.run_log import read_metrics
from tests.security.published import assert_names_no_machine

PREPROCESSING = {"window_seconds": {"eeg": 10.0, "fmri": 30.0}, "hemodynamic_delay_seconds": 5.0}


@pytest.fixture(scope="module")
def config(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:
    """An export of a model that never saw the corpus, and a run folder with five logged steps."""
    folder = tmp_path_factory.mktemp("evaluation")
    torch.manual_seed(7)
    write_pretrained(MCSP(ModelConfig()), folder / "model", PREPROCESSING)
    subjects = "\n".join(pretraining_subjects(Corpus(corpus_dir)))
    (folder / "model" / "pretraining_subjects.txt").write_text(subjects + "\n")
    (folder / "run").mkdir()
    lines = [{"step": k, "loss": 9.0 - k, "loss/eeg/spatial": 1.0, "top1/fmri-eeg/spatial": 0.1 * k} for k in range(5)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "run" / "metrics.jsonl").write_text(text + '{"step": 5, "lo')
    return EvaluateConfig(
        model_dir=folder / "model",
        corpus_dir=corpus_dir,
        out_dir=folder / "out",
        run_dir=folder / "run",
        windows_per_recording=1,
        folds=2,
        seeds=1,
        label_fractions=(0.25, 1.0),
        retrieval_size=8,
        retrieval_draws=4,
        site_correction=("centred", "combat"),
    )


@pytest.fixture(scope="module")
def results(config: EvaluateConfig) -> dict:
    return evaluate(config)


def test_no_file_of_an_evaluation_names_the_machine(config: EvaluateConfig, results: dict) -> None:
    assert results["config"]["model_dir"] == "model" and results["config"]["corpus_dir"] == "corpus"
    assert_names_no_machine(config.out_dir, config.model_dir, config.corpus_dir)


def test_every_method_is_scored_under_both_protocols_on_the_same_folds(results: dict) -> None:
    scored = [
        (r["recordings"], r["protocol"], r["features"], r["classifier"])
        for r in results["classification"]
        if not r["transductive"]
    ]
    combat, svm, logistic = "ComBat + linear SVM", "linear SVM", "logistic"
    encoders = [(name, kind) for name in ("pretrained", "untrained") for kind in (svm, logistic)]
    encoders += [(f"{name}, learned part", svm) for name in ("pretrained", "untrained")]
    classical = {
        "eeg": [
            *(("band power", kind) for kind in (svm, logistic, "LDA")),
            *(("relative band power", kind) for kind in (svm, logistic, "LDA")),
            ("tangent space", svm),
        ],
        "fmri": [
            *(("connectivity", kind) for kind in (svm, logistic)),
            *(("root of connectivity", kind) for kind in (svm, logistic)),
            ("root of connectivity, denoised", svm),
            ("root of connectivity, denoised, pairs shuffled", svm),
            ("tangent space", svm),
        ],
        "both": [("root of connectivity + relative band power", kind) for kind in (svm, logistic)],
    }
    scored = [key for key in scored if key[2:] != ("covariates", logistic)]
    expected = {
        m: {*encoders, *kinds, ("pretrained", combat), (CLASSICAL[m], combat)} for m, kinds in classical.items()
    }
    assert len(scored) == len(set(scored))
    assert set(scored) == {
        (m, p, *k) for m, kinds in expected.items() for p in ("kfold", "leave_site_out") for k in kinds
    }
    for row in results["classification"]:
        assert row["subjects"] == 32
        assert row["auroc"]["ci_low"] <= row["auroc"]["value"] <= row["auroc"]["ci_high"]
        assert set(row["per_site"]) == {"simulated-a", "simulated-b"}
        is_pretrained = row["features"] == "pretrained" and row["classifier"] != combat
        assert ("pretrained_minus_this" in row) != is_pretrained
        assert ("permuted" in row) == ((row["features"], row["classifier"]) == ("pretrained", svm))
        assert all(low <= high for low, high in zip(row["roc_low"], row["roc_high"], strict=True))
    assert set(results["splits_sha256"]) == {f"{m}/{p}" for m in expected for p in ("kfold", "leave_site_out")}
    transductive = {r["features"] for r in results["classification"] if r["transductive"]}
    assert transductive == {f"{f}, site-centred" for f in ("pretrained", *CLASSICAL.values())}
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in results["splits_sha256"].values())
    # Montage and parcellation differ between the sites, so the site must be easy to tell.
    assert max(s["auroc"] for s in results["site_decoding"]) > 0.9


def test_the_learned_part_is_compared_with_the_learned_part(results: dict) -> None:
    plain_rows = [r for r in results["classification"] if r["classifier"] == "linear SVM"]
    rows = {(r["recordings"], r["protocol"], r["features"]): r for r in plain_rows}
    for block in {key[:2] for key in rows}:
        whole, learned, plain = (
            rows[*block, f] for f in ("pretrained", "pretrained, learned part", "untrained, learned part")
        )
        assert learned["n_features"] == plain["n_features"] < whole["n_features"]
        for better, row in ((whole, learned), (learned, plain)):
            gain = row["pretrained_minus_this"]["auroc"]["value"]
            assert gain == pytest.approx(better["auroc"]["value"] - row["auroc"]["value"], abs=1e-9)
    assert {"pretrained, learned part"} < {p["features"] for p in results["label_efficiency"]}


def test_the_splits_are_written_down_with_their_digest(config: EvaluateConfig, results: dict) -> None:
    splits = json.loads((config.out_dir / "splits.json").read_text())
    assert {name: s["sha256"] for name, s in splits.items()} == results["splits_sha256"]
    for name, folds in splits.items():
        assert len(folds["test"]) == 1
        keys = [key for fold in folds["test"][0] for key in fold]
        assert len(keys) == len(set(keys)) == folds["units"] == 32
        assert hashlib.sha256(json.dumps(folds["test"][0]).encode()).hexdigest() == folds["sha256"], name


def test_label_efficiency_uses_fewer_units_for_smaller_fractions(results: dict) -> None:
    points = [p for p in results["label_efficiency"] if p["recordings"] == "fmri"]
    curve = [p for p in points if p["features"] == "pretrained"]
    assert all(("pretrained_minus_this" in p) == (p["features"] != "pretrained") for p in points)
    assert {p["protocol"] for p in points} == {"leave_site_out"}
    assert [p["fraction"] for p in curve] == [0.25, 1.0]
    assert curve[0]["training_units"] < 0.5 * curve[1]["training_units"]


def test_the_verdict_counts_the_questions_by_their_paired_intervals(results: dict) -> None:
    strict = [r for r in results["classification"] if not r["transductive"]]
    main = {(r["protocol"], r["recordings"], r["features"]): r for r in strict if r["classifier"] == "linear SVM"}
    values = [r["auroc"]["value"] for key, r in main.items() if key[2] == "pretrained"]
    said = verdict(strict, MEASURES["auroc"])
    assert said.count(".") == 3 and said.startswith(
        f"The pretrained model has an AUROC of {min(values):.2f} to {max(values):.2f} in 6 questions; "
    )
    gains = [main[p, r, "untrained"]["pretrained_minus_this"]["auroc"] for p, r, f in main if f == "untrained"]
    higher, lower = sum(g["ci_low"] > 0 for g in gains), sum(g["ci_high"] < 0 for g in gains)
    counts = f"higher in {higher} of 6, lower in {lower}, without a clear difference in {6 - higher - lower}"
    assert f"against the same model without pretraining it scores {counts}" in said
    gain = {"value": 0.1, "ci_low": 0.01, "ci_high": 0.2}
    better = [{**r, "pretrained_minus_this": {"auroc": gain}} for r in strict if r["features"] == "untrained"]
    first = [r for r in strict if r["features"] == "pretrained"]
    assert "higher in 6 of 6, lower in 0, without a clear difference in 0" in verdict(first + better, MEASURES["auroc"])
    assert "classical" not in verdict(first + better, MEASURES["auroc"]) and verdict(better, MEASURES["auroc"]) == ""


def test_shuffled_labels_score_one_half(results: dict) -> None:
    found = [r["permuted"] for r in results["classification"] if "permuted" in r]
    assert len(found) == 6
    for row in found:
        assert row["draws"] == 20 and abs(row["mean"] - 0.5) < 4 * row["sd"] / np.sqrt(20)
        assert row["p"] in [k / 21 for k in range(1, 22)]
    assert sum("shuffled labels" in line for line in terminal_table(results).splitlines()) == 6


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_labels_of_a_site_that_is_only_tested_score_one_half(seed: int) -> None:
    """Its labels are any order, whatever was learned: mean 1/2, and the standard deviation of Mann and Whitney."""
    rng = np.random.default_rng(seed)
    sites, subjects = ["a"] * 24 + ["b"] * 16, [str(i) for i in range(40)]
    labelled = SimpleNamespace(subjects=subjects, sites=sites, y_N=np.arange(40) % 2, task=Task(("control", "case")))
    x_NF = rng.normal(size=(40, 6)) + labelled.y_N[:, None]
    method = SimpleNamespace(readout=lambda rows: on_grams(SVM, lambda train: x_NF @ x_NF.T))
    folds = Folds("leave_site_out", (((np.arange(24), np.arange(24, 40)),),), "")
    found = permuted(method, np.arange(40), labelled, folds, 200, {"value": 0.9})  # type: ignore[arg-type]
    deviation = np.sqrt(17 / (12 * 8 * 8))
    assert abs(found["mean"] - 0.5) < 4 * deviation / np.sqrt(200)
    assert found["sd"] == pytest.approx(deviation, rel=4 / np.sqrt(2 * 200))
    assert found["p"] < 0.05


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_labels_score_one_half_in_folds_too(seed: int) -> None:
    """Many features of few people: folds that were stratified for other labels would give 0.4."""
    rng = np.random.default_rng(seed)
    subjects = [str(i) for i in range(32)]
    labelled = SimpleNamespace(subjects=subjects, sites=["a"] * 16 + ["b"] * 16, y_N=np.arange(32) % 2)
    labelled.task = Task(("control", "case"))
    x_NF = rng.normal(size=(32, 200))
    method = SimpleNamespace(readout=lambda rows: on_grams(SVM, lambda train: x_NF @ x_NF.T))
    folds = k_fold(subjects, labelled.y_N, subjects, 3, 1)
    found = permuted(method, np.arange(32), labelled, folds, 100, {"value": 0.5})  # type: ignore[arg-type]
    assert abs(found["mean"] - 0.5) < 4 * found["sd"] / np.sqrt(100)


def test_simulated_sites_and_overlap_are_declared(results: dict) -> None:
    assert {site: v["simulated"] for site, v in results["sites"].items()} == {"simulated-a": True, "simulated-b": True}
    assert (results["subjects"], results["subjects_seen_in_pretraining"]) == (32, 24)
    assert results["label"]["classes"] == ["control", "case"]
    assert all(set(r["simulated"].values()) == {True} for r in results["retrieval"])


def test_retrieval_has_before_and_after_for_held_out_and_training(results: dict) -> None:
    rows = {(r["subjects_of"], r["candidates_from"], r["model"]) for r in results["retrieval"]}
    assert len(rows) == len(results["retrieval"]) == 2 * 3 * (2 + len(CONTROLS))
    assert all(r["chance"] == (1 / 3 if r["candidates_from"] == "one person" else 1 / 8) for r in results["retrieval"])
    text = terminal_table(results)
    assert all(text.count(control) == 6 for control in CONTROLS)


class Page(HTMLParser):
    """Collects tags that stay open, images and links to elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []
        self.elsewhere: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "svg":
            self.images.append(values["aria-label"] or "")
        self.elsewhere += [v for k in ("href", "src") if (v := values.get(k)) and not v.startswith("data:")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_one_well_formed_file_with_every_score(config: EvaluateConfig, results: dict) -> None:
    text = (config.out_dir / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.elsewhere == []
    # A forest and a ROC curve for each of six questions, few labels of three kinds, the run's three panels, two maps.
    assert len(page.images) == len(set(page.images)) == 6 + 6 + 3 + 3 + 2
    assert text.index("AUROC of every method") < text.index("<table>")
    assert "What these numbers do not show: 32 subjects of 2 sites" in text
    plain = re.sub(r"</?span[^>]*>", "", text)
    for row in results["classification"]:
        assert f"{row['auroc']['value']:.3f} ({row['auroc']['ci_low']:.3f} to {row['auroc']['ci_high']:.3f})" in plain
    assert "All labelled recordings are simulated" in text
    assert "24 of the 32 subjects were in the pretraining data" in " ".join(text.split())


def test_the_terminal_table_keeps_its_columns_apart(
    results: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = terminal_table(results)
    lines, said = table.splitlines(), " ".join(table.split())
    for row in results["classification"]:
        name = f"{row['features']}, {row['classifier']}{' *' * row['transductive']}"
        assert f"{name} {row['auroc']['value']:.3f} (" in said, name
    ends = {line.index(" (") for line in lines if re.match(r"  .*  \d\.\d{3} \(", line)}
    assert len(ends) == 1 and max(map(len, lines)) <= 80
    assert "warning: 24 of the 32 subjects were in the pretraining data." in table
    assert "simulated sites: simulated-a, simulated-b" in table
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = terminal_table(results)
    assert "\x1b[1;36m  pretrained, linear SVM" in coloured and "m  untrained" not in coloured
    assert "\x1b[1;33mwarning: 24 of the 32" in coloured
    assert re.sub("\x1b\\[[0-9;]*m", "", coloured) == table
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal_table(results) == table


def test_the_same_input_gives_the_same_files(config: EvaluateConfig, results: dict, tmp_path: Path) -> None:
    again = evaluate(config.model_copy(update={"out_dir": tmp_path}))
    same = {k: v for k, v in again.items() if k != "config"}
    assert same == {k: v for k, v in results.items() if k != "config"}
    assert json.loads((tmp_path / "results.json").read_text()) == again
    assert (tmp_path / "splits.json").read_bytes() == (config.out_dir / "splits.json").read_bytes()
    assert (tmp_path / "report.html").read_bytes() == (config.out_dir / "report.html").read_bytes()


def test_curves_stop_at_a_line_cut_off_by_a_crash(config: EvaluateConfig) -> None:
    assert config.run_dir is not None
    assert [line["step"] for line in read_metrics(config.run_dir)] == [0, 1, 2, 3, 4]
    assert read_metrics(config.out_dir / "nowhere") == []


def test_the_untrained_model_is_always_the_same_and_not_the_trained_one(config: EvaluateConfig) -> None:
    model = from_pretrained(config.model_dir)
    first, second = untrained_like(model).state_dict(), untrained_like(model).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], weight) for name, weight in model.state_dict().items())


def test_a_model_of_one_modality_is_evaluated_without_retrieval(config: EvaluateConfig, tmp_path: Path) -> None:
    write_pretrained(MCSP(ModelConfig(modalities=("fmri",))), tmp_path, {"window_seconds": {"fmri": 30.0}})
    model = from_pretrained(tmp_path)
    assert with_windows(config, model).window_seconds == {"fmri": 30.0, "eeg": 30.0}
    rows, notes = run_retrieval({"pretrained": model}, Corpus(config.corpus_dir), config)
    assert rows == []
    assert notes == ["No cross-modal retrieval: the model knows fmri only."]


def test_a_missing_label_column_is_named_with_those_there_are(config: EvaluateConfig) -> None:
    with pytest.raises(ValueError, match=r"no sample has the label 'handedness'; found the columns \['diagnosis'\]"):
        evaluate(config.model_copy(update={"label": "handedness"}))


def test_labels_of_one_class_are_refused_and_unknown_values_left_out_and_counted(corpus_dir: Path) -> None:
    corpus = Corpus(corpus_dir)
    everyone = list(corpus.recordings)
    corpus.recordings = Recordings.of(r for r in everyone if "case" in r.participant)
    with pytest.raises(ValueError, match=r"expected two classes or more, found 1: \['case'\]"):
        read_labels(corpus, "diagnosis")
    values = ["case", "control", "other", "n/a"]
    keys = sorted({r.key for r in everyone})
    of_key = {key: values[i % 4] for i, key in enumerate(keys)}
    of_all = [replace(r, participant=json.dumps({"diagnosis": of_key[r.key]})) for r in everyone]
    corpus.recordings = Recordings.of(of_all)
    assert read_labels(corpus, "diagnosis").classes == ["control", "case", "other"]
    corpus.recordings = Recordings.of(r for r in of_all if of_key[r.key] != "other")
    labelled = read_labels(corpus, "diagnosis")
    assert (labelled.missing, labelled.left_out) == (8, 0)
    assert [u.key for u in labelled.units] == [key for key in keys if of_key[key] in ("case", "control")]
    assert np.bincount(labelled.y_N).tolist() == [8, 8]
    corpus.recordings = Recordings.of(of_all)
    chosen = read_labels(corpus, "diagnosis", ("other", "case"))
    assert chosen.classes == ["other", "case"] and (chosen.missing, chosen.left_out) == (8, 8)
    assert [of_key[u.key] for u in chosen.units] == [["other", "case"][y] for y in chosen.y_N]


def test_a_task_can_be_the_label_with_several_units_per_subject(corpus_dir: Path) -> None:
    corpus = Corpus(corpus_dir)
    tasks = {"eeg": "rest", "fmri": "arithmetic"}
    corpus.recordings = Recordings.of(replace(r, task=tasks[r.modality]) for r in corpus.recordings)
    labelled = read_labels(corpus, "task")
    assert labelled.classes == ["rest", "arithmetic"]
    assert len(labelled.units) == 2 * len(corpus.samples())
    for unit, y in zip(labelled.units, labelled.y_N, strict=True):
        assert {r.task for r in unit.recordings} == {labelled.classes[y]}
        assert unit.key.endswith(f"/{labelled.classes[y]}")
    assert sorted(Counter(labelled.subjects).values()) == [2] * len(corpus.samples())


def test_more_folds_than_subjects_are_refused_before_anything_slow(config: EvaluateConfig) -> None:
    with pytest.raises(ValueError, match="at least that many subjects in each class, found 16 and 16"):
        evaluate(config.model_copy(update={"folds": 20}))


def test_a_run_without_metrics_is_refused(config: EvaluateConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a pretraining run with metrics\.jsonl, found none"):
        evaluate(config.model_copy(update={"run_dir": tmp_path}))
