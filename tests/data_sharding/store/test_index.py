"""The index: written after its tables, a digest over every shard, and totals where people come again."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mcsp.data_sharding.store import index
from mcsp.data_sharding.store.index import (
    Rejection,
    Repair,
    index_hash,
    make_index,
    read_rejected,
    read_repairs,
    reasons_of,
    totals_of,
    write_index,
)
from mcsp.data_sharding.store.table import Recordings
from mcsp.schema import Recording, block_bounds
from tests.test_batch import window


def row(subject: str, session: str, modality: str = "eeg", split: str = "train", seconds: float = 60.0) -> Recording:
    recording = window().recording
    return replace(
        recording, key=f"a_{subject}_{session}", subject=subject, session=session, modality=modality, split=split,
        site="a", n_samples=round(seconds * recording.sfreq),
    )  # fmt: skip


def test_the_index_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails before, a folder with an index is a whole corpus."""
    out, scratch = tmp_path / "corpus", tmp_path / "scratch"
    out.mkdir()
    scratch.mkdir()
    tables = {name: scratch / name for name in ("recordings-0.arrow", "rejected-0.jsonl", "repairs-0.jsonl")}
    published: list[str] = []
    real = index.publish

    def third_fails(temporary: Path, path: Path) -> None:
        if len(published) == 2:
            raise OSError("no space left on device")
        real(temporary, path)
        published.append(path.name)

    for file in tables.values():
        file.write_bytes(b"x")
    with monkeypatch.context() as patch:
        patch.setattr(index, "publish", third_fails)
        with pytest.raises(OSError, match="no space"):
            write_index(out, {"a": 1}, tables)
    assert sorted(p.name for p in out.iterdir()) == ["recordings-0.arrow", "rejected-0.jsonl"]
    for file in tables.values():
        file.write_bytes(b"x")
    with pytest.raises(ValueError, match="JSON compliant"):  # other readers of JSON than Python's know no NaN
        write_index(out, {"a": math.nan}, {})
    assert not (out / "index.json").exists()
    write_index(out, {"a": 1}, tables)
    assert sorted(p.name for p in out.iterdir()) == ["index.json", *tables]


def test_the_hash_is_that_of_every_shard_in_any_order() -> None:
    shards = [{"name": f"train-0000{i}.tar", "sha256": f"{i}" * 64} for i in range(3)]
    whole = index_hash(shards)
    assert index_hash(shards[::-1]) == whole
    others = [shards[:2], shards[1:], [*shards, shards[0]], [shards[0], {**shards[1], "sha256": "7" * 64}, shards[2]]]
    assert len({whole, *map(index_hash, others)}) == 5


def test_people_who_come_again_count_once_and_their_sessions_apart() -> None:
    rows = [
        row("1", "first"), row("1", "first", "fmri"), row("1", "second"), row("2", "first", split="test", seconds=30.0)
    ]  # fmt: skip
    found = totals_of(Recordings.of(rows), {("a", "flat"): 1}, {"a": True, "empty": False})
    assert found["all"] == {
        "found": 5, "rejected": 1, "recordings": 4, "samples": 3, "subjects": 2, "hours": round(210 / 3600, 6)
    }  # fmt: skip
    assert found["splits"]["train"] == {"recordings": 3, "samples": 2, "subjects": 1, "hours": 0.05}
    assert found["splits"]["validation"]["subjects"] == 0
    assert found["modalities"]["fmri"]["samples"] == 1 and found["modalities"]["eeg"]["samples"] == 3
    assert found["sites"]["empty"] == {
        "simulated": False, "found": 0, "rejected": 0, "recordings": 0, "samples": 0, "subjects": 0, "hours": 0.0
    }  # fmt: skip
    nothing = totals_of(Recordings.of([]), {}, {"a": True})
    assert nothing["all"]["found"] == nothing["splits"]["train"]["samples"] == nothing["all"]["subjects"] == 0


@pytest.mark.parametrize(
    ("n", "bounds"), [(1, [0, 1]), (9, [0, 9]), (10, [0, 10]), (11, [0, 10, 11]), (30, [0, 10, 20, 30])]
)
def test_blocks_end_with_the_recording(n: int, bounds: list[int]) -> None:
    np.testing.assert_array_equal(block_bounds(n, 10), bounds)


def test_tables_of_lines_are_text_that_people_read(tmp_path: Path) -> None:
    entries = [Rejection("Züri", "sub-1_eeg.edf", "eeg", "flat", "µV"), Rejection("b", "c", "fmri", "motion", "d")]
    index._write_lines(tmp_path / "lines", entries)
    text = (tmp_path / "lines").read_text(encoding="utf-8")
    assert "Züri" in text and "µV" in text and text.count("\n") == 2
    assert list(index.read_entries(tmp_path / "lines", Rejection)) == entries


def test_each_table_is_the_one_that_the_index_names(tmp_path: Path) -> None:
    rejection, repair = Rejection("a", "sub-1_eeg.edf", "eeg", "flat", "d"), Repair("a", "sub-2", "eeg", "unit")
    digest = "0" * 64
    described = {
        "config": {}, "software": {}, "fingerprint": "", "subject_key_fingerprint": "", "simulated": {"a": True},
        "shards": [{"name": "train-00001.tar", "sha256": digest, "bytes": 1, "samples": 1, "recordings": 1}],
    }  # fmt: skip
    (tmp_path / "scratch").mkdir()
    found, tables = make_index(described, [row("x", "")], [rejection], [repair], tmp_path / "scratch")
    write_index(tmp_path, found, tables)
    assert found["schema_version"] == 2, "older corpora cannot be read any more"
    assert list(read_rejected(tmp_path)) == [rejection] and list(read_repairs(tmp_path)) == [repair]


def test_the_index_is_text_that_people_read_in_order_of_its_names(tmp_path: Path) -> None:
    write_index(tmp_path, {"b": {"y": 2, "x": "µ"}, "a": 1}, {})
    text = (tmp_path / "index.json").read_text()
    assert text == '{\n "a": 1,\n "b": {\n  "x": "\\u00b5",\n  "y": 2\n }\n}\n'


def test_totals_are_counted_by_site_split_and_modality() -> None:
    of_other_site = replace(row("1", "x", split="test"), site="b", key="b_1_x")
    rows = [row("1", "x", seconds=3600.0), row("1", "x", "fmri", seconds=1800.0), of_other_site,
            row("1", "y", "fmri", seconds=0.02)]  # fmt: skip
    bad = {("a", "motion"): 1, ("a", "flat"): 1, ("b", "motion"): 1}
    found = totals_of(Recordings.of(rows), bad, {"a": True, "b": False})
    hours = sum(r.seconds for r in rows) / 3600
    assert found["all"] == {"found": 7, "rejected": 3, "recordings": 4, "samples": 3, "subjects": 2,
                            "hours": round(hours, 6)}  # fmt: skip
    assert found["sites"]["a"]["rejected"] == 2 and found["sites"]["b"]["rejected"] == 1
    assert (found["sites"]["a"]["subjects"], found["sites"]["b"]["subjects"]) == (1, 1), "subjects are a site's own"
    assert found["splits"]["test"]["recordings"] == 1 and found["splits"]["train"]["samples"] == 2
    assert found["modalities"]["eeg"] == {"recordings": 2, "samples": 2, "subjects": 2, "hours": 1.016667}
    assert list(reasons_of(bad).items()) == [("flat", 1), ("motion", 2)]
