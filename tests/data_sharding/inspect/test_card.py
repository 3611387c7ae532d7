"""The dataset card: what the Hub reads of it, the counts of the index, and nothing else of the corpus."""

import json
from pathlib import Path
from typing import Any

import pytest

from mcsp.commands.main import launcher
from mcsp.data_sharding.bids.reasons import REASONS
from mcsp.data_sharding.bids.tables import DESCRIPTION_NAME, read_sources
from mcsp.data_sharding.inspect.report import CARD_NAME, dataset_card
from mcsp.data_sharding.store.reader import Corpus
from mcsp.wording import markdown

cards = pytest.importorskip("huggingface_hub.repocard")


main = launcher("report")


def index_of(licenses: dict[str, str], **all_: int) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """An index of one sample a site, and what the sites say of themselves."""
    site = {"found": 1, "recordings": 1, "rejected": 0, "samples": 1, "subjects": 1, "hours": 0.5}
    names = {name: {**site, "simulated": name.startswith("simulated")} for name in licenses}
    count = len(licenses)
    everything = dict.fromkeys(("found", "recordings", "samples", "subjects"), count) | {"rejected": 0, "hours": 0.5}
    totals = {"all": everything | all_, "sites": names, "modalities": {"eeg": site}, "splits": {"train": site}}
    index = {"totals": totals, "reasons": {}, "index_hash": "ab" * 32}
    return index, {name: {"Site": name, "License": text} for name, text in licenses.items()}


def test_the_report_writes_a_card_with_the_counts_of_the_index(copied: Path) -> None:
    (copied / CARD_NAME).unlink()  # the build wrote it
    assert main([str(copied)]) == 0
    text = (copied / CARD_NAME).read_text(encoding="utf-8")
    index = Corpus(copied).index
    known = cards.DatasetCard(text).data
    assert known.size_categories == ["n<1K"] and known.task_categories == ["feature-extraction"]
    assert known.tags == ["eeg", "fmri", "webdataset", "bids", "timeseries"]
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    for site, counts in index["totals"]["sites"].items():
        if counts["recordings"]:
            kind = "simulated" if counts["simulated"] else "recorded"
            numbers = f"{counts['subjects']} | {counts['samples']} | {counts['hours']:.2f}"
            assert f"| {kind} | {numbers} | " in rows[site] and rows[site].endswith(f"| {counts['rejected']} |")
    for split, counts in index["totals"]["splits"].items():
        assert f"| {split} | {counts['subjects']} | {counts['samples']} | {counts['recordings']} |" in text
    assert index["reasons"]
    for reason, count in index["reasons"].items():
        assert rows[reason].startswith(f"| {reason} | {count} | {markdown(REASONS[reason].meaning)}")
    assert index["index_hash"] in text and str(copied) not in text
    assert not any(recording.subject in text for recording in Corpus(copied).recordings)


@pytest.mark.parametrize(
    ("licenses", "expected"),
    [
        ({"a": "CC0", "b": "cc0 1.0"}, "cc0-1.0"),
        ({"a": "CC BY 4.0", "simulated": "CC0"}, "cc-by-4.0"),
        ({"a": "CC0", "b": "CC-BY-4.0"}, "other"),
        ({"a": "CC0", "b": ""}, "other"),
        ({"a": "my own terms"}, "other"),
        ({"simulated": "CC0"}, "other"),
    ],
)
def test_the_licence_is_that_of_all_recorded_sites_or_other(licenses: dict[str, str], expected: str) -> None:
    index, sources = index_of(licenses)
    known = cards.DatasetCard(dataset_card(index, {}, sources)).data
    assert known.license == expected
    assert ("license_name" in known.to_dict()) == (expected == "other")


def test_sizes_are_of_samples_and_text_from_outside_makes_no_markup() -> None:
    for samples, size in ((999, "n<1K"), (1000, "1K<n<10K"), (250_000, "100K<n<1M"), (20_000_000, "10M<n<100M")):
        index, sources = index_of({"a": "<img src=x> [click](http://x) | 1 |"}, samples=samples)
        text = dataset_card(index, {("a", "eeg"): ["1 recording, 250 Hz"]}, sources)
        assert cards.DatasetCard(text).data.size_categories == [size]
        assert (
            "<img" not in text and "[click](" not in text and r"\| 1 \|" in text and "eeg: 1 recording, 250 Hz" in text
        )


def test_a_description_from_outside_costs_no_report(tmp_path: Path) -> None:
    assert read_sources(tmp_path) == {}
    for content in ({}, {"SourceDatasets": "x"}, {"SourceDatasets": ["x", {}, {"Site": "a"}]}):
        (tmp_path / DESCRIPTION_NAME).write_text(json.dumps(content))
        assert set(read_sources(tmp_path)) <= {"a"}
