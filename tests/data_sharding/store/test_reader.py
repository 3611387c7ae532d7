"""Reading windows by byte range, and what a reader must refuse."""

import json
import multiprocessing
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pytest

from mcsp.data_sharding.store import reader
from mcsp.data_sharding.store.index import SHARDS_NAME
from mcsp.data_sharding.store.reader import BadWindowError, Corpus
from mcsp.schema import Recording, Window, crc_name


def eeg_of(corpus: Corpus) -> Recording:
    """A recording of 60 s, which has thirty blocks of checksums."""
    return next(r for r in corpus.recordings if r.modality == "eeg" and r.site == "paired")


def read_sum(corpus: Corpus, recording: Recording) -> float:
    return float(corpus.read_window(recording, 1900, 4200).x_TC.sum())


def flip(corpus: Corpus, recording: Recording, sample: int) -> None:
    """Change one bit of one stored value."""
    path = corpus.path / SHARDS_NAME / recording.shard
    path.chmod(0o644)
    with open(path, "r+b") as file:
        file.seek(recording.byte_offset + sample * recording.n_channels * 2 + 1)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("verify", [True, False])
def test_windows_are_cuts_of_the_recording_in_physical_units(built: Path, verify: bool) -> None:
    corpus = Corpus(built)
    for r in corpus.recordings:
        whole = corpus.read_window(r, 0, r.n_samples, verify)
        assert whole.x_TC.shape == (r.n_samples, r.n_channels) and whole.x_TC.dtype == np.float32
        for start, n in ((0, 1), (7, 13), (r.n_samples - 5, 5), (r.block_samples // 2, r.n_samples // 2)):
            start = min(start, r.n_samples - n)
            window = corpus.read_window(r, start, n, verify)
            assert (window.start, window.stop, window.recording) == (start, start + n, r)
            np.testing.assert_array_equal(window.x_TC, whole.x_TC[start : start + n])
    # 20 uV at 10 Hz went in, and the average reference takes part of the common signal.
    amplitude = corpus.read_window(eeg_of(corpus), 2000, 8000).x_TC.std()
    assert 15 < amplitude < 25
    percent = [r for r in corpus.recordings if r.modality == "fmri" and r.site == "paired"]
    assert all(0.7 < corpus.read_window(r, 0, r.n_samples).x_TC.std() < 1.3 for r in percent)


def test_samples_group_recordings_by_split(built: Path) -> None:
    corpus = Corpus(built)
    by_split = [corpus.samples(split) for split in ("train", "validation", "test")]
    assert sum(len(samples) for samples in by_split) == len(corpus.samples()) == 7
    assert list(corpus.samples()) == sorted(corpus.samples())
    subjects = [{(r.site, r.subject) for rs in samples.values() for r in rs} for samples in by_split]
    assert not subjects[0] & subjects[1] and not subjects[0] & subjects[2] and not subjects[1] & subjects[2]
    assert {len(rs) for key, rs in corpus.samples().items() if key.startswith("paired")} == {2}
    with pytest.raises(ValueError, match="split 'dev': expected one of"):
        corpus.samples("dev")


@pytest.mark.parametrize(("start", "n"), [(-1, 10), (0, 0), (0, 10**9), (11_999, 2)])
def test_a_window_beyond_the_recording_is_refused(built: Path, start: int, n: int) -> None:
    corpus = Corpus(built)
    with pytest.raises(ValueError, match="exceeds the recording of 12000 samples"):
        corpus.read_window(eeg_of(corpus), start, n)


def test_a_flipped_bit_is_caught_in_its_block_alone(copied: Path) -> None:
    corpus = Corpus(copied)
    r = eeg_of(corpus)
    flip(corpus, r, sample=4321)
    assert isinstance(corpus.read_window(r, 0, 4000), Window)
    assert isinstance(corpus.read_window(r, 6000, 6000), Window)
    for start, n in ((4321, 1), (3999, 2), (4399, 9)):
        with pytest.raises(ValueError, match=rf"{r.shard}: damaged, block 10 of .*\(key {r.key}\)"):
            corpus.read_window(r, start, n)
        with pytest.raises(ValueError, match="damaged, block 10"):
            corpus.read_stored(r, start, n)
    assert isinstance(corpus.read_window(r, 4321, 1, verify=False), Window)


def test_a_flipped_bit_is_caught_in_a_last_block_that_is_not_full(copied: Path) -> None:
    corpus = Corpus(copied)
    r = eeg_of(corpus)
    whole = r.n_samples // r.block_samples - 1
    last = corpus.read_stored(r, whole * r.block_samples, r.block_samples)[:250]
    checksums = copied / SHARDS_NAME / crc_name(r.shard)
    crcs = np.load(checksums)
    crcs[r.crc_offset + whole] = crc32(last.tobytes())
    checksums.chmod(0o644)
    np.save(checksums, crcs)
    corpus.close()
    r = replace(r, n_samples=whole * r.block_samples + 250)  # as if the recording ended 150 samples earlier
    assert corpus.read_window(r, r.n_samples - 10, 10).x_TC.shape == (10, r.n_channels)
    flip(corpus, r, sample=r.n_samples - 1)
    assert isinstance(corpus.read_window(r, 0, whole * r.block_samples), Window)
    for start in (r.n_samples - 1, whole * r.block_samples, whole * r.block_samples - 1, 0):
        with pytest.raises(ValueError, match=f"damaged, block {whole} of "):
            corpus.read_window(r, start, r.n_samples - start)


def test_a_truncated_or_missing_shard_is_named(copied: Path) -> None:
    corpus = Corpus(copied)
    r = eeg_of(corpus)
    path = copied / SHARDS_NAME / r.shard
    path.chmod(0o644)
    with open(path, "r+b") as file:
        file.truncate(r.byte_offset + 1000)
    with pytest.raises(ValueError, match=f"{r.shard}: truncated inside {r.member}"):
        corpus.read_window(r, 0, 2000)
    corpus.close()
    path.unlink()
    with pytest.raises(ValueError, match=f"{r.shard}: cannot read the shard"):
        corpus.read_window(r, 0, 2000)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_what_the_parent_reads(built: Path, method: str) -> None:
    corpus = Corpus(built)
    r = eeg_of(corpus)
    expected = read_sum(corpus, r)  # opens the shard before the workers start
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.starmap(read_sum, [(corpus, r)] * 4) == [expected] * 4
    assert read_sum(pickle.loads(pickle.dumps(corpus)), r) == expected


def test_another_schema_version_is_refused(copied: Path) -> None:
    index = json.loads((copied / "index.json").read_text())
    (copied / "index.json").write_text(json.dumps({**index, "schema_version": 99}))
    with pytest.raises(ValueError, match=r"index\.json: corpus has schema version 99, this code reads version 2"):
        Corpus(copied)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("index.json", None, "cannot read the index of the corpus"),
        ("index.json", b"{", "not a JSON file"),
        ("index.json", b"[]", "schema version None"),
        ("index.json", b'{"schema_version": 2}', "expected the keys"),
        ("recordings-*.arrow", None, "cannot read the table of recordings"),
        ("recordings-*.arrow", b"ARROW1", "cannot read the table of recordings"),
    ],
)
def test_a_damaged_description_is_refused_in_one_line(
    copied: Path, file: str, content: bytes | None, message: str
) -> None:
    path = next(copied.glob(file))
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        Corpus(copied)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    "change", [{"n_channels": 0}, {"block_samples": 0}, {"byte_offset": -1}, {"crc_offset": -1}, {"shard": "x.tar"}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_row_of_no_recording_is_refused(built: Path, change: dict[str, object]) -> None:
    corpus = Corpus(built)
    with pytest.raises(BadWindowError):
        corpus.read_window(replace(eeg_of(corpus), **change), 0, 10)  # type: ignore[arg-type]


def test_a_recording_may_fill_its_shard_and_no_more(built: Path) -> None:
    corpus = Corpus(built)
    r = eeg_of(corpus)
    n_bytes = r.n_samples * r.n_channels * 2
    corpus._shard_bytes[r.shard] = n_bytes
    corpus.read_window(r, 0, 10)
    corpus._shard_bytes[r.shard] = n_bytes - 1
    with pytest.raises(BadWindowError, match=f"expected {n_bytes} bytes at least for {r.member}, found {n_bytes - 1}"):
        corpus.read_window(r, 0, 10)


def test_the_whole_recording_is_a_window_and_one_sample_is(built: Path) -> None:
    corpus = Corpus(built)
    r = eeg_of(corpus)
    whole = corpus.read_window(r, 0, r.n_samples).x_TC
    np.testing.assert_array_equal(corpus.read_stored(r, r.n_samples - 1, 1).astype(np.float32) * r.scale, whole[-1:])


def test_memory_that_is_lent_is_used_where_it_is_large_enough(built: Path) -> None:
    corpus = Corpus(built)
    r = eeg_of(corpus)
    expected = corpus.read_stored(r, 100, 50)
    n_bytes = 50 * r.n_channels * 2
    for size in (n_bytes - 1, n_bytes, 10 * n_bytes):
        buffer = np.full(size, 255, np.uint8)
        found = corpus.read_stored(r, 100, 50, verify=False, buffer=buffer)
        np.testing.assert_array_equal(found, expected)
        assert np.shares_memory(found, buffer) == (size >= n_bytes)


@pytest.mark.parametrize("failures", [0, 1, 3, 4])
def test_a_disk_that_fails_is_asked_again_for_two_seconds(
    built: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    corpus = Corpus(built)
    r = eeg_of(corpus)
    real, left, pauses = reader.read_into, [failures], list[float]()

    def fails_at_first(descriptor: int, content: memoryview, offset: int) -> int:
        if left[0]:
            left[0] -= 1
            raise OSError(5, "Input/output error")
        return real(descriptor, content, offset)

    monkeypatch.setattr(reader, "read_into", fails_at_first)
    monkeypatch.setattr(reader, "time", SimpleNamespace(sleep=pauses.append))
    if failures <= 3:
        assert corpus.read_window(r, 0, 10).x_TC.shape == (10, r.n_channels)
    else:
        with pytest.raises(BadWindowError, match=rf"{r.shard}: cannot read the shard \(Input/output error\)"):
            corpus.read_window(r, 0, 10)
    assert pauses == [0.1, 0.5, 1.5][:failures]


def test_files_are_closed_those_unused_for_longest_first(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor for each shard of a large corpus would be more than a process may have."""
    assert reader._MAX_OPEN_SHARDS < 1024
    monkeypatch.setattr(reader, "_MAX_OPEN_SHARDS", 2)
    corpus = Corpus(built)
    of_shard = {row.shard: row for row in corpus.recordings}
    first, second, third = list(of_shard.values())[:3]
    for row, open_ in ((first, [first]), (second, [first, second]), (first, [second, first]), (third, [first, third])):
        corpus.read_window(row, 0, 1)
        assert list(corpus._shards) == [r.shard for r in open_]
    corpus.close(first.shard)
    assert list(corpus._shards) == [third.shard]


def test_a_table_of_another_length_than_the_index_says_is_refused(copied: Path) -> None:
    index = json.loads((copied / "index.json").read_text())
    n = index["totals"]["all"]["recordings"]
    index["totals"]["all"]["recordings"] = n + 1
    (copied / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"index\.json: lists {n + 1} recordings, the table has {n}"):
        Corpus(copied)
