"""Nothing that may identify a person is sealed into a corpus, and rejected files are listed under public names.

Covers: data_sharding/bids/tables.py, data_sharding/build/privacy.py
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mcsp.config import CorpusConfig, SiteConfig
from mcsp.data_sharding.bids.ref import Site
from mcsp.data_sharding.bids.tables import dataset_description, source_dataset
from mcsp.data_sharding.bids.write import write_eeg, write_json, write_participants, write_tsv
from mcsp.data_sharding.build.corpus import build_corpus
from mcsp.data_sharding.build.privacy import (
    find_identifiers_in_index,
    find_identifiers_in_lists,
    find_identifiers_in_table,
)
from mcsp.data_sharding.build.pseudonyms import session_label, subject_hash
from mcsp.data_sharding.build.seal import people, publish_rejections, publish_repair
from mcsp.data_sharding.inspect.report import REPORT_NAME
from mcsp.data_sharding.store.index import Rejection, Repair, read_rejected
from mcsp.data_sharding.store.reader import Corpus
from mcsp.data_sharding.store.table import Recordings
from tests.data_sharding.conftest import CHANNELS, DESCRIPTION, eeg_uv

KEY = b"a key for tests alone"


@pytest.mark.parametrize("session", ["20190504", "04May2019", "2019", "may19"])
def test_a_session_that_may_be_a_date_becomes_letters_of_its_own_for_each_subject(session: str) -> None:
    label = session_label(KEY, "a", "1", session)
    assert label.isalpha() and len(label) == 32 and label != session_label(KEY, "a", "2", session)
    assert [session_label(KEY, "a", "1", kept) for kept in ("", "baseline", "01", "month12")] == [
        "", "baseline", "01", "month12",
    ]  # fmt: skip


def test_rejections_are_published_as_reason_subject_and_measurements_and_kept_in_private(tmp_path: Path) -> None:
    private = tmp_path / "rejected.tsv"
    rejected = [
        Rejection("a", "sub-7/eeg/sub-7_acq-anna_eeg.edf", "eeg", "bad-table", "x.tsv: 'Anna', born 1987-05-12"),
        Rejection("a", "sub-Xüyz07/eeg/sub-Xüyz07_eeg.edf", "eeg", "too-short", "sub-Xüyz07_eeg.edf: 5.0 s, expected "
                  "at least 10 s"),
    ]  # fmt: skip
    published = list(publish_rejections(private, rejected, KEY))
    assert [(r.site, r.file, r.modality, r.reason, r.detail) for r in published] == [
        ("a", f"sub-{subject_hash(KEY, 'a', '7')}", "eeg", "bad-table", ""),
        ("a", f"sub-{subject_hash(KEY, 'a', 'Xüyz07')}", "eeg", "too-short", "5.0 s, 10 s"),
    ]
    lines = [line.split("\t") for line in private.read_text().splitlines()]
    assert lines[1] == ["a", published[0].file, "bad-table", rejected[0].file, rejected[0].detail]
    assert len(lines) == 3


def test_repairs_are_published_by_their_kind() -> None:
    file = "sub-7/eeg/sub-7_eeg.edf"
    told = {
        "sub-7_eeg.edf: 2 EEG channels without a position are left out: Anna, Meier": (
            "EEG channels without a position are left out"
        ),
        "sub-7_events.tsv: 2 events begin after the end at 40.0 s and are ignored": "events begin after the end",
        "something that this list does not know: Anna": "put right",
    }
    for text, kind in told.items():
        public = publish_repair(Repair("a", file, "eeg", text), KEY)
        assert public == Repair("a", f"sub-{subject_hash(KEY, 'a', '7')}", "eeg", kind)


INDEX_PLANTS: list[tuple[list[Any], str, str]] = [
    (["config", "note"], "mail a@b.org", "e-mail"),
    (["config", "sites"], {"a": {"path": "/data/clinic/raw"}}, "path"),
    (["shards", 0, "name"], "train-0012345-anna.tar", "name"),
    (["totals", "sites", "anna"], {}, "name"),
]


@pytest.mark.parametrize(("place", "value", "kind"), INDEX_PLANTS)
def test_what_is_planted_in_the_index_is_found(built: Path, place: list[Any], value: Any, kind: str) -> None:
    index = json.loads((built / "index.json").read_text())
    description = json.loads((built / "dataset_description.json").read_text())
    names = frozenset({"anna"})
    assert list(find_identifiers_in_index(index, description, names)) == []
    target = index
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = value
    assert any(f": {kind}" in line for line in find_identifiers_in_index(index, description, names))


def test_what_is_planted_in_the_lists_is_found(built: Path) -> None:
    rejected = list(read_rejected(built))
    assert rejected and list(find_identifiers_in_lists(rejected, frozenset({"anna"}))) == []
    for change, kind in (({"file": "sub-anna/eeg/x.edf"}, "subject id"), ({"detail": "recorded 04.05.2019"}, "date")):
        assert any(
            f": {kind}" in line for line in find_identifiers_in_lists([replace(rejected[0], **change)], frozenset())
        )
    repair = Repair("a", "x.edf", "eeg", "header of Anna put right")
    assert any(": name" in line for line in find_identifiers_in_lists([repair], frozenset({"anna"})))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"task": "rest04May2019"}, "date"),
        ({"session": "20190504"}, "date"),
        ({"channels": ["C3", "Anna", *CHANNELS[2:]]}, "name"),
        ({"participant": '{"note": "0012345"}'}, "record number"),
        ({"participant": '{"birth_year": 1987}'}, "column"),
        ({"quality": '{"a@b.org": 1}'}, "e-mail"),
        ({"run": "sub-7"}, "subject id"),
    ],
)
def test_what_is_planted_in_the_table_is_found(built: Path, change: dict[str, Any], kind: str) -> None:
    rows = list(Corpus(built).recordings)
    names = frozenset({"anna"})
    assert list(find_identifiers_in_table(Recordings.of(rows), names)) == []
    rows[1] = replace(rows[1], **change)
    assert any(kind in line for line in find_identifiers_in_table(Recordings.of(rows), names))


def test_a_build_that_would_publish_a_name_is_not_sealed(ray_here: None, tmp_path: Path) -> None:
    root = tmp_path / "bids" / "a"
    write_json(root / "dataset_description.json", DESCRIPTION)
    columns = {"last_name": {}, "group": {}}
    write_participants(root, columns, [("sub-1", "Mustermann", "case"), ("sub-2", "Musterfrau", "mustermann, again")])
    for n in ("1", "2"):
        sidecar = {"SamplingFrequency": 250, "PowerLineFrequency": 50}
        write_eeg(root, n, "rest", eeg_uv(15, seed=int(n)), CHANNELS, sidecar)
    site = Site("a", root, False, None)
    assert people([site]) == {"mustermann", "musterfrau"}
    sites = {"a": SiteConfig(path=root)}
    config = CorpusConfig(sites=sites, out_dir=tmp_path / "corpus", participants_columns=["group"])
    with pytest.raises(ValueError, match=r"not sealed, personal data is suspected: .*group: name like 'xxxxxxxxxx'"):
        build_corpus(config)
    assert not (config.out_dir / "index.json").exists() and not (config.out_dir / REPORT_NAME).exists()
    write_tsv(root / "participants.tsv", ("participant_id", "group"), [("sub-1", "case"), ("sub-2", "control")])
    again = config.model_copy(update={"out_dir": tmp_path / "again"})
    build_corpus(again)
    assert (again.out_dir / REPORT_NAME).is_file()


def test_the_description_names_the_sources_and_nobody(tmp_path: Path, built: Path) -> None:
    given = {
        "Name": "Resting EEG", "BIDSVersion": "1.10.0", "License": "CC0", "DatasetDOI": "doi:10.18112/x.ds001234",
        "ReferencesAndLinks": ["https://doi.org/10.1000/1234567"], "Authors": ["Anna Mustermann"],
        "Acknowledgements": "we thank Anna", "Simulated": True,
    }  # fmt: skip
    write_json(tmp_path / "dataset_description.json", given)
    source = source_dataset("a", tmp_path)
    assert source == {
        "Site": "a", "Name": "Resting EEG", "License": "CC0", "DOI": "doi:10.18112/x.ds001234",
        "ReferencesAndLinks": ["https://doi.org/10.1000/1234567"], "Simulated": True,
    }  # fmt: skip
    assert source_dataset("b", tmp_path / "nowhere") == {"Site": "b"}
    description = dataset_description({"seed": 1}, {"mcsp": "9", "mne": "1"}, {"a": tmp_path})
    assert list(find_identifiers_in_index({}, description, frozenset({"anna"}))) == []
    other = dataset_description({"seed": 2}, {"mcsp": "9", "mne": "1"}, {"a": tmp_path})
    assert description["GeneratedBy"][0]["ConfigSHA256"] != other["GeneratedBy"][0]["ConfigSHA256"]
    written = json.loads((built / "dataset_description.json").read_text())
    assert [source["Site"] for source in written["SourceDatasets"]] == ["damaged", "images", "paired"]
    assert written["GeneratedBy"][0]["Name"] == "mcsp-pretraining" and written["DatasetType"] == "derivative"
