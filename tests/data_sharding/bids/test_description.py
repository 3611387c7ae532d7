"""What a corpus says of its sources and its making."""

from pathlib import Path

from mcsp.data_sharding.bids.tables import dataset_description, read_sources, source_dataset, terms_of
from mcsp.data_sharding.bids.write import write_json


def test_the_description_depends_on_no_order(tmp_path: Path) -> None:
    sources = {"b": tmp_path, "a": tmp_path}
    one = dataset_description({"x": 1, "y": {"a": 1, "b": 2}}, {"mcsp": "1", "mne": "2", "edfio": "3"}, sources)
    two = dataset_description(
        {"y": {"b": 2, "a": 1}, "x": 1}, {"edfio": "3", "mcsp": "1", "mne": "2"}, dict(sorted(sources.items()))
    )
    assert one == two
    assert [source["Site"] for source in one["SourceDatasets"]] == ["a", "b"]
    [made] = one["GeneratedBy"]
    assert made["Version"] == "1" and made["Description"].endswith("with edfio 3, mne 2")
    other = dataset_description({"x": 1, "y": {"a": 1, "b": 3}}, {}, {})["GeneratedBy"][0]
    assert other["ConfigSHA256"] != made["ConfigSHA256"]


def test_of_a_source_its_name_and_terms_go_along_and_nobody_elses(tmp_path: Path) -> None:
    given = {
        "Name": "Rest", "License": "CC0", "DatasetDOI": "doi:1", "Authors": ["A. Person"], "Simulated": "yes",
        "ReferencesAndLinks": ["https://example.org", 7], "DatasetVersion": "",
    }  # fmt: skip
    write_json(tmp_path / "dataset_description.json", given)
    links = ["https://example.org"]
    expected = {"Site": "s", "Name": "Rest", "License": "CC0", "DOI": "doi:1", "ReferencesAndLinks": links}
    assert source_dataset("s", tmp_path) == expected
    write_json(tmp_path / "dataset_description.json", {"SourceDatasets": [expected, {"Name": "of no site"}, 3]})
    assert read_sources(tmp_path) == {"s": expected}
    assert read_sources(tmp_path / "absent") == {}
    assert terms_of(expected) == "CC0, doi:1" and terms_of({}) == "not stated"
