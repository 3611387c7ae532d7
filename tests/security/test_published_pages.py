"""Names from outside stay text on every page and card: no tag, attribute, link, picture or formula comes of them.

Covers: mcsp/page.py
"""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import markdown
import numpy as np
import pytest
import torch
import yaml

from mcsp.config import ModelConfig
from mcsp.data_sharding.bids.tables import DESCRIPTION_NAME
from mcsp.data_sharding.inspect.report import dataset_card, make_page
from mcsp.data_sharding.inspect.survey import survey
from mcsp.data_sharding.store.index import Rejection
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.deployed import Head
from mcsp.evaluate.deploy import _card
from mcsp.evaluate.report.page import write_report
from mcsp.explain.report import write_attribution_report
from mcsp.export.card import model_card
from mcsp.model.mcsp import MCSP
from tests.evaluate.report.results import evaluation

ATTACK = (
    "\"'></svg></text><script>alert(1)</script><img src=x onerror=alert(2)> {{7*7}} {% raw %} $\\frac{$ "
    "[a](javascript:alert(3)) ![b](http://tracker.example/c.png) | `d` &lt;"
)
HARMLESS = "plain words that say nothing, as long as those of the attack, so that pictures have the same parts"


class Structure(HTMLParser):
    """Tags with the names of their attributes, in order; texts; and what attributes point to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.texts: list[str] = []
        self.targets: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.targets += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "action")]

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}",))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def check(attacked: str, harmless: str) -> None:
    """The attack changed words and nothing else, and the page says it."""
    found, expected = Structure(attacked), Structure(harmless)
    assert "<script>alert(1)</script>" in " ".join(found.texts)
    assert found.tags == expected.tags
    assert all(target.startswith(("#", "data:image/")) for target in found.targets)
    names = {name for tag in found.tags for name in tag[1:]}
    assert not {name for name in names if name.startswith("on")} and ("script",) not in found.tags
    assert "Content-Security-Policy" in attacked and "default-src 'none'" in attacked


@pytest.fixture(scope="module")
def corpus(corpus_dir: Path) -> Corpus:
    return Corpus(corpus_dir)


def corpus_page(corpus: Corpus, text: str) -> str:
    """The corpus report with ``text`` in every name that a corpus of somebody else chooses."""
    index = json.loads(json.dumps(corpus.index))
    index["index_hash"] = index["schema_version"] = text
    index["software"] = {f"{k}{text}": text for k in range(2)}
    index["config"] = {text: [text]}
    for kind in ("sites", "splits"):
        index["totals"][kind] = {f"{k}{text}": counts for k, counts in enumerate(index["totals"][kind].values())}
    groups = []
    for k, group in enumerate(survey(corpus)):
        examples = []
        for window in group.examples:
            r = window.recording
            names = [f"{text}{c}" for c in range(r.n_channels)]
            examples.append(replace(window, recording=replace(r, channels=names, subject=text, site=text)))
        site = next(iter(index["totals"]["sites"])) if k == 0 else f"{k}{text}"
        groups.append(replace(group, site=site, examples=examples, unreadable=[text]))
    index["reasons"] = {"unreadable": 1}
    return make_page(index, groups, [Rejection(text, text, "eeg", "unreadable", text)])


def test_the_corpus_report(corpus: Corpus) -> None:
    check(corpus_page(corpus, ATTACK), corpus_page(corpus, HARMLESS))


def test_the_evaluation_report(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(8, 5))
    pages = []
    for text in (ATTACK, HARMLESS):
        sites = [f"{text}{k % 2}" for k in range(8)]
        labelled = SimpleNamespace(y_N=np.arange(8) // 4, sites=sites, classes=[f"{text}a", f"{text}b"])
        write_report(tmp_path / "report.html", evaluation(text), {"eeg": features}, labelled, None)  # type: ignore[arg-type]
        pages.append((tmp_path / "report.html").read_text())
    check(*pages)
    assert '<p class="notice"><b>plain words' in pages[1], "nobody knows whom pretraining has seen: a warning"


def test_the_explanation(tmp_path: Path) -> None:
    pages = []
    for text in (ATTACK, HARMLESS):
        place = {
            "simulated": True, "channels": [f"{text}{c}" for c in range(3)], "positions_mm": [[0, 0, 0.0]] * 3,
            "position_known": [False] * 3,
        }  # fmt: skip
        site = {
            **place,
            "difference": 1.0,
            "attribution": [[0.5, 0.1]] * 3,
            "controls": {"random encoder": [[0.1, 0.1]] * 3},
        }
        pattern = {**place, "units": 8, "pattern": [0.1] * 3, "controls": {text: {"rank_correlation": None}}}
        found = {
            "bands": ["alpha", "other"], "pairs": 1, "relative_error": 0.1, "sites": {text: site},
            "patterns": {text: pattern}, "controls": {text: {"rank_correlation": 0.1, "difference": 0.1}},
        }  # fmt: skip
        results = {
            "versions": {text: text}, "corpus_index_hash": "0" * 12, "classes": [f"{text}a", f"{text}b"],
            "explained": text, "modalities": {"eeg": found, "fmri": found},
        }  # fmt: skip
        write_attribution_report(tmp_path, results)
        pages.append((tmp_path / "report.html").read_text())
    check(*(re.sub(r"base64,[^\"]*", "base64,", page) for page in pages))


def described(corpus: Corpus, text: str, folder: Path) -> Corpus:
    """A corpus that says ``text`` wherever its makers may."""
    rows = [replace(r, site=text, task=text) for r in corpus.recordings]
    source = {"Site": text, "License": text, "DOI": text}
    (folder / DESCRIPTION_NAME).write_text(json.dumps({"SourceDatasets": [source]}))
    return SimpleNamespace(recordings=rows, path=folder, index_hash=text)  # type: ignore[return-value]


def cards(corpus: Corpus, folder: Path) -> Iterator[str]:
    model = MCSP(ModelConfig())
    cleaning = {
        "eeg": {"highpass_hz": 1.0, "lowpass_hz": 45.0, "sfreq": 200.0},
        "fmri": {"bandpass_hz": None, "detrend": True, "confounds": []},
    }
    seconds = {"eeg": 10.0, "fmri": 30.0}
    for text in (ATTACK + "\n\n# heading\n\n<b>", HARMLESS):
        preprocessing = {
            "cleaning": {**cleaning, "fmri": {**cleaning["fmri"], "confounds": [text]}}, "min_seconds": seconds,
            "window_seconds": seconds, "parcellations": [],
        }  # fmt: skip
        run = {"batch": {"paired": 4}, "window_seconds": seconds, "seed": 0, "learning_rate": 1e-3}
        manifest = {"config": run, "step": 2, "zero_stage": 1}
        named = described(corpus, text, folder)
        yield model_card(model, manifest, [], named, preprocessing, 4, evaluation(text), None, None, text, text)


def test_the_card_of_a_classifier() -> None:
    """By its own function: fitting a classifier changes nothing of the words."""
    pages = []
    for text in (ATTACK, HARMLESS):
        facts = {"units": 8, "subjects": 8, "sites": {f"{text}{k}": 4 for k in range(2)}, "threshold": 0.5}
        facts |= {"simulated": [f"{text}0"], "skill": {"measure": "AUROC", "chance": 0.5, "estimate": None}}
        labelled = SimpleNamespace(classes=[f"{text}a", f"{text}b"])
        card = _card(text, labelled, {"eeg": Head({}, facts)}, {"overlap": text}, "made in a test")  # type: ignore[arg-type]
        pages.append(Structure(markdown.markdown(card, extensions=["tables", "fenced_code"])))
    assert pages[0].tags == pages[1].tags and pages[0].targets == []
    assert "<script>alert(1)</script>" in " ".join(pages[0].texts)


def test_the_card_of_a_corpus(corpus: Corpus) -> None:
    pages, fronts = [], []
    for text in (ATTACK + "\n\n# heading\n\n<b>", HARMLESS):
        counts = next(iter(corpus.index["totals"]["sites"].values()))
        index = {**corpus.index, "totals": {**corpus.index["totals"], "sites": {text: counts}}, "index_hash": "a"}
        source = {"License": text, "DOI": text}
        front, body = dataset_card(index, {(text, "eeg"): [text]}, {text: source})[4:].split("\n---\n", 1)
        fronts.append(yaml.safe_load(front))
        pages.append(Structure(markdown.markdown(body, extensions=["tables", "fenced_code"])))
    assert fronts[0] == fronts[1] and pages[0].tags == pages[1].tags and pages[0].targets == []
    assert "<script>alert(1)</script>" in " ".join(pages[0].texts)


def test_the_model_card(corpus: Corpus, tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = [card.removeprefix("---\n").split("\n---\n", 1) for card in cards(corpus, tmp_path)]
    fronts, bodies = zip(*parts, strict=True)
    first, second = map(yaml.safe_load, fronts)
    assert first.keys() == second.keys(), "what the Hub reads above the card stays data"
    attacked, harmless = (Structure(markdown.markdown(body, extensions=["tables", "fenced_code"])) for body in bodies)
    assert attacked.tags == harmless.tags
    assert attacked.targets == harmless.targets == []
    said = " ".join(attacked.texts)
    assert "<script>alert(1)</script>" in said and "](javascript:alert(3))" in said
