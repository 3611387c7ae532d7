"""The whole evaluation on a small corpus: numbers, report, determinism, and labels that cannot be used.

Covers: mcsp/evaluate/comparison.py, mcsp/evaluate/diagnostics.py, mcsp/evaluate/units.py,
mcsp/evaluate/report/figures.py, mcsp/evaluate/report/page.py, mcsp/evaluate/report/tables.py
"""

import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from mcsp.config import EvaluateConfig, ModelConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.data_sharding.store.table import Recordings
from mcsp.encode.pretrained import from_pretrained
from mcsp.evaluate.evaluate import evaluate, untrained_like, with_windows
from mcsp.evaluate.methods import CLASSICAL
from mcsp.evaluate.report.tables import summary_lines, terminal_table
from mcsp.evaluate.retrieval.rows import CONTROLS, run_retrieval
from mcsp.evaluate.units import read_labels
from mcsp.export.export import pretraining_subjects
from mcsp.model.mcsp import MCSP
from mcsp.model.weights import write_pretrained
from mcsp.run_log import read_metrics

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


def test_one_sentence_says_what_each_block_shows(results: dict) -> None:
    lines = summary_lines(results["classification"])
    assert len(lines) == 6
    assert all("pretrained AUROC" in line and "untrained" in line for line in lines)
    assert not any("site-centred" in line for line in lines)


def test_shuffled_labels_score_one_half(results: dict) -> None:
    found = [r["permuted"] for r in results["classification"] if "permuted" in r]
    assert len(found) == 6
    for permuted in found:
        # Below one half where sites are told apart: a site with more cases in training has fewer of them in the test.
        assert permuted["draws"] == 20 and 0.3 < permuted["mean"] < 0.6
        assert permuted["p"] in [k / 21 for k in range(1, 22)]
    assert sum("shuffled labels" in line for line in terminal_table(results).splitlines()) == 6


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
        if tag == "img":
            self.images.append(values["src"] or "")
        self.elsewhere += [v for k in ("href", "src") if (v := values.get(k)) and not v.startswith("data:")]
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_one_well_formed_file_with_every_score(config: EvaluateConfig, results: dict) -> None:
    text = (config.out_dir / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.elsewhere == []
    assert len(page.images) == 4
    assert all(image.startswith("data:image/png;base64,iVBOR") for image in page.images)
    assert "What these numbers do not show: 32 subjects of 2 sites" in text
    plain = re.sub("</?span[^>]*>", "", text)
    for row in results["classification"]:
        assert f"{row['auroc']['value']:.3f} ({row['auroc']['ci_low']:.3f} to {row['auroc']['ci_high']:.3f})" in plain
    assert "All labelled recordings are simulated" in text
    assert "24 of the 32 subjects were in the pretraining data" in " ".join(text.split())
    table = terminal_table(results)
    assert "untrained" in table
    assert "warning: 24 of the 32 subjects were in the pretraining data." in table
    assert "simulated sites: simulated-a, simulated-b" in table


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
