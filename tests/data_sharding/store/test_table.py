"""The table of recordings: rows come back as they went in, and cost nothing until they are asked for."""

import math
import os
import pickle
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pytest

from mcsp.data_sharding.store import table as store_table
from mcsp.data_sharding.store.table import SCHEMA, Recordings, Samples, make_batch, write_table
from mcsp.schema import Recording


def recording(key: str, modality: str = "eeg", n_channels: int = 3, **changes: object) -> Recording:
    fields = {
        "key": key, "shard": "train-000000.tar", "member": f"{key}.{modality}-0.npy", "modality": modality,
        "site": "s", "subject": key, "session": "", "task": "rest", "run": "", "split": "train", "sfreq": 200.0,
        "unit": "uV", "scale": 0.5, "n_samples": 1000, "n_channels": n_channels, "dtype": "float16",
        "byte_offset": 1 << 40, "crc_offset": 0, "block_samples": 100, "simulated": True, "onset_seconds": 1.5,
        "channels": [f"c{i}" for i in range(n_channels)], "positions_mm": [math.nan] * 3 + [0.1] * (3 * n_channels - 3),
        "channel_good": [i > 0 for i in range(n_channels)], "valid_spans": [0, 10, 20, 1000],
        "participant": '{"age": 3}', "quality": '{"amplitude": 1.5}',
    }  # fmt: skip
    return Recording(**{**fields, **changes})


def encode_table(recordings: Iterable[Recording]) -> pa.Buffer:
    """The bytes of a table, made in memory."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_batch(make_batch(recordings))
    return sink.getvalue()


def opened(path: Path, rows: list[Recording]) -> Recordings:
    write_table(path, rows)
    return Recordings.open(path)


def same(a: Recording, b: Recording) -> bool:
    return all(
        np.array_equal(x, y, equal_nan=isinstance(x, float) or name == "positions_mm") and type(x) is type(y)
        for (name, x), y in zip(vars(a).items(), vars(b).values(), strict=True)
    )


ROWS = [
    recording("a"),
    recording("a", "fmri", 5, sfreq=0.5, unit="percent", channel_good=[True] * 5),
    recording("b", simulated=False, valid_spans=[], onset_seconds=math.inf, session="séance", positions_mm=[-0.0] * 9),
    recording("c", split="test", site="t", shard="test-000000.tar"),
]


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    table = opened(tmp_path / "t", ROWS)
    assert len(table) == 4 and all(same(a, b) for a, b in zip(table, ROWS, strict=True))
    assert same(table[-1], ROWS[-1]) and [r.key for r in table[1:3]] == ["a", "b"]
    for wrong in (4, -5):
        with pytest.raises(IndexError, match="of 4 recordings"):
            table[wrong]


def test_a_list_that_rows_share_is_looked_at_once_and_one_that_is_equal_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [recording(key) for key in "abcdef"]
    shared = [replace(row, channels=rows[0].channels, positions_mm=rows[0].positions_mm) for row in rows]
    asked: list[object] = []
    key = store_table._key
    monkeypatch.setattr(store_table, "_key", lambda value: asked.append(value) or key(value))
    assert encode_table(rows) == encode_table(shared)
    assert sum(value is rows[0].channels for value in asked) == 2  # once in either table


def test_an_empty_table_has_no_rows(tmp_path: Path) -> None:
    table = opened(tmp_path / "t", [])
    assert list(table) == [] and dict(Samples(table)) == {} and table.column("sfreq").shape == (0,)


def test_montages_are_stored_once_and_a_nan_is_a_nan(tmp_path: Path) -> None:
    own_nan = [[float("nan")] * 1200 for _ in range(200)]  # 200 different objects that do not equal each other
    names = [f"parcel {i}" for i in range(400)]
    rows = [recording(f"s{i:03d}", n_channels=400, channels=names, positions_mm=nan) for i, nan in enumerate(own_nan)]
    assert encode_table(rows).size < 200 * 300 + 400 * 60
    assert encode_table(rows) == encode_table(iter(rows)), "the same rows must give the same bytes"


def test_a_table_grows_on_the_disk_and_not_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    own = [rng.normal(size=9).tolist() for _ in range(40)]
    rows = [recording(f"s{i:04d}", positions_mm=own[i % 40], valid_spans=[0, i]) for i in range(3000)]
    write_table(tmp_path / "t", iter(rows))
    assert (tmp_path / "t").read_bytes() == encode_table(rows).to_pybytes()
    assert all(same(a, b) for a, b in zip(Recordings.open(tmp_path / "t"), rows, strict=True))
    # Beyond what is remembered a list is stored again, and reads the same.
    monkeypatch.setattr(store_table, "_REMEMBERED_LISTS", 10)
    write_table(tmp_path / "u", iter(rows))
    table = Recordings.open(tmp_path / "u")
    assert len(table.distinct("positions_mm")) > 40 and all(same(a, b) for a, b in zip(table, rows, strict=True))


def test_columns_are_arrays(tmp_path: Path) -> None:
    table = opened(tmp_path / "t", ROWS)
    assert table.column("sfreq").tolist() == [200, 0.5, 200, 200]
    assert table.column("n_samples").dtype == np.int64 and not table.column("n_samples").flags.owndata
    assert table.column("simulated").tolist() == [True, True, False, True]
    assert table.column("key").tolist() == ["a", "a", "b", "c"]
    assert table.column("site").tolist() == ["s", "s", "s", "t"]
    codes, names = table.codes("modality")
    assert [names[code] for code in codes] == ["eeg", "fmri", "eeg", "eeg"]
    with pytest.raises(ValueError, match="column positions_mm: holds lists"):
        table.column("positions_mm")
    codes, names = table.codes("key")
    assert [names[code] for code in codes] == ["a", "a", "b", "c"]
    with pytest.raises(ValueError, match="column sfreq: expected one of texts"):
        table.codes("sfreq")


def test_samples_are_rows_of_one_key_in_order_of_keys() -> None:
    # Sorted by member, "a-b" comes before "a".
    rows = sorted([*ROWS, recording("a-b"), recording("a", "fmri", member="a.fmri-1.npy")], key=lambda r: r.member)
    samples = Samples(Recordings.of(rows))
    assert {key: len(found) for key, found in samples.items()} == {"a": 3, "a-b": 1, "b": 1, "c": 1}
    assert list(samples) == ["a", "a-b", "b", "c"]
    assert list(Samples(Recordings.of(rows), "test")) == ["c"] and not Samples(Recordings.of(rows), "validation")


def test_other_readers_of_arrow_files_read_it(tmp_path: Path) -> None:
    opened(tmp_path / "t", ROWS)
    rows = pyarrow.feather.read_table(tmp_path / "t").to_pylist()
    assert rows[1]["channels"] == ROWS[1].channels and rows[3]["site"] == "t"


def test_a_table_of_other_columns_is_refused(tmp_path: Path) -> None:
    for columns, message in (
        ({"key": ["a"]}, "missing columns"),
        ({name: [1] for name in vars(ROWS[0])}, "expected one"),
    ):
        with pa.OSFile(str(tmp_path / "t"), "wb") as file, pa.ipc.new_file(file, pa.table(columns).schema) as writer:
            writer.write_table(pa.table(columns))
        with pytest.raises(ValueError, match=message) as error:
            Recordings.open(tmp_path / "t")
        assert "\n" not in str(error.value) and str(tmp_path / "t") in str(error.value)


def test_a_table_that_is_cut_off_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    """Reading on would end the process by SIGBUS, without a word."""
    write_table(tmp_path / "t.arrow", [])
    recordings = Recordings.open(tmp_path / "t.arrow")
    recordings.check_whole()
    Recordings.of([]).check_whole()
    os.truncate(tmp_path / "t.arrow", 100)
    with pytest.raises(ValueError, match=r"t.arrow: had \d+ bytes when it was opened, now 100; a corpus must not"):
        recordings.check_whole()
    (tmp_path / "t.arrow").unlink()
    with pytest.raises(ValueError, match=r"t.arrow: cannot be read any more \(No such file"):
        recordings.check_whole()


def test_a_truncated_table_is_refused(tmp_path: Path) -> None:
    content = encode_table([replace(ROWS[0], key=f"k{i}") for i in range(100)]).to_pybytes()
    for size in (0, 10, len(content) // 2, len(content) - 1):
        (tmp_path / "t").write_bytes(content[:size])
        with pytest.raises(ValueError, match="cannot read the table of recordings"):
            Recordings.open(tmp_path / "t")


def test_another_process_gets_the_name_of_a_mapped_file_and_the_rows_of_a_table_in_memory(tmp_path: Path) -> None:
    rows = [recording(f"k{i:04d}", n_channels=20) for i in range(300)]
    file = tmp_path / "recordings.arrow"
    write_table(file, rows)
    mapped, held = Recordings.open(file), Recordings.of(rows)
    assert len(pickle.dumps(mapped)) < 1000 < len(pickle.dumps(held))
    for found in (mapped, held):
        again = pickle.loads(pickle.dumps(found))
        assert repr(list(again)) == repr(list(found)) == repr(rows)
    assert pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(mapped))))._file == file


def test_lists_of_every_row_lie_side_by_side(tmp_path: Path) -> None:
    rows = [replace(ROWS[0], valid_spans=spans) for spans in ([0, 10], [], [3, 7, 20, 90])]
    for table in (opened(tmp_path / "t", rows), Recordings.of(rows)):
        values, starts = table.flat("valid_spans")
        assert values.tolist() == [0, 10, 3, 7, 20, 90] and starts.tolist() == [0, 2, 2, 6]
        assert values.dtype == starts.dtype == np.int64
        for other in ("positions_mm", "sfreq", "key"):
            with pytest.raises(ValueError, match=f"column {other}: expected a list that is stored row by row"):
                table.flat(other)
    assert Recordings.of([]).flat("valid_spans")[1].tolist() == [0]


def test_rows_are_found_by_the_text_of_a_column(tmp_path: Path) -> None:
    table = opened(tmp_path / "t", ROWS)
    assert table.rows_of("split", "train").tolist() == [True, True, True, False]
    assert table.rows_of("site", "t").tolist() == [False, False, False, True]
    assert not table.rows_of("split", "validation").any() and len(table.rows_of("split", "validation")) == 4
    assert table.texts("session", np.array([2, 0])) == ["séance", ""] and table.texts("site", np.array([3])) == ["t"]
    assert table.distinct("channels") == [["c0", "c1", "c2"], ["c0", "c1", "c2", "c3", "c4"]]
    assert table.sample_starts().tolist() == [0, 2, 3, 4] and Recordings.of([]).sample_starts().tolist() == [0]


def test_flags_and_lists_of_more_than_a_byte_of_bits_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rows = [
        recording(f"s{i:02d}", n_channels=n, simulated=bool(rng.integers(2)), channel_good=rng.integers(0, 2, n) > 0)
        for i, n in enumerate((1, 7, 8, 9, 17, 3, 30, 2, 16, 5, 11))
    ]
    rows = [replace(row, channel_good=[bool(good) for good in row.channel_good]) for row in rows]
    table = opened(tmp_path / "t", rows)
    assert all(same(a, b) for a, b in zip(table, rows, strict=True))
    assert table.column("simulated").tolist() == [row.simulated for row in rows]
    assert table[-11].key == "s00" and [row.key for row in table[::5]] == ["s00", "s05", "s10"]
