"""A corpus behind a URL: every shard fetched once, checked, within the space it was given."""

import hashlib
import http.server
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pytest

from mcsp.data_sharding.store.cache import ShardCache
from mcsp.data_sharding.store.files import location
from mcsp.data_sharding.store.index import SHARDS_NAME
from mcsp.data_sharding.store.reader import BadWindowError, Corpus

CONTENT = {f"train-{i}.tar": bytes([i]) * 1000 for i in range(5)}
SHARDS = [{"name": n, "bytes": 1000, "sha256": hashlib.sha256(c).hexdigest()} for n, c in CONTENT.items()]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """Five shards of 1,000 bytes in fsspec's memory."""
    fs, name = fsspec.filesystem("memory"), f"/{tmp_path.name}"
    for shard, content in CONTENT.items():
        fs.pipe_file(f"{name}/{SHARDS_NAME}/{shard}", content)
        fs.pipe_file(f"{name}/{SHARDS_NAME}/{shard.removesuffix('.tar')}.crc.npy", b"checksums")
    yield f"memory:/{name}"
    fs.rm(name, recursive=True)


def cache_of(store: str, folder: Path, limit_bytes: int = 10**9) -> ShardCache:
    return ShardCache(location(store), folder, "0" * 64, limit_bytes / 1e9)


def held(cache: ShardCache) -> set[str]:
    return {p.name for p in (cache.folder / SHARDS_NAME).glob("*.tar")}


def test_shards_unused_for_longest_make_room(store: str, tmp_path: Path) -> None:
    cache = cache_of(store, tmp_path / "cache", 3000)
    for i in (0, 1, 2, 0, 3):
        cache.fetch_shard(f"train-{i}.tar", SHARDS)
        time.sleep(0.01)
        assert (cache.folder / SHARDS_NAME / f"train-{i}.tar").read_bytes() == CONTENT[f"train-{i}.tar"]
    assert held(cache) == {"train-2.tar", "train-0.tar", "train-3.tar"}
    with pytest.raises(ValueError, match=r"train-0.tar: has 1000 bytes, more than the 999 bytes of cache_gb"):
        cache_of(store, tmp_path / "small", 999).fetch_shard("train-0.tar", SHARDS)


def test_what_the_store_gives_must_be_what_the_index_says(store: str, tmp_path: Path) -> None:
    cache = cache_of(store, tmp_path / "cache")
    fs = fsspec.filesystem("memory")
    root = store.removeprefix("memory:/")
    for content, message in ((b"\1" * 999, "bytes 999, expected 1000"), (b"\2" * 1000, "sha256 .*, expected")):
        fs.pipe_file(f"{root}/{SHARDS_NAME}/train-1.tar", content)
        with pytest.raises(OSError, match=message):
            cache_of(store, tmp_path / "cache").fetch_shard("train-1.tar", SHARDS)
    fs.rm(f"{root}/{SHARDS_NAME}/train-1.tar")
    with pytest.raises(FileNotFoundError):
        cache.fetch_shard("train-1.tar", SHARDS)
    assert held(cache) == set() and not list(cache.folder.rglob("*.tmp"))
    begin = time.monotonic()
    with pytest.raises(FileNotFoundError):
        cache.fetch_shard("train-1.tar", SHARDS)
    assert time.monotonic() - begin < 0.1, "a shard that failed is asked for again at once"


def test_shards_are_fetched_ahead_in_the_background(store: str, tmp_path: Path) -> None:
    cache = cache_of(store, tmp_path / "cache")
    cache.fetch_ahead([*CONTENT, "no-such.tar"], SHARDS)
    deadline = time.monotonic() + 10
    while held(cache) != set(CONTENT) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held(cache) == set(CONTENT)


def test_a_shard_that_arrives_while_room_is_made_for_another_costs_neither(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = ShardCache._stored

    def slowly(cache: ShardCache) -> list[Path]:
        found = listed(cache)
        time.sleep(0.05)  # time enough for the other thread's file to get its name
        return found

    monkeypatch.setattr(ShardCache, "_stored", slowly)
    test_shards_are_fetched_ahead_in_the_background(store, tmp_path)


class Counting(http.server.SimpleHTTPRequestHandler):
    """Serves files and counts what was asked for; slowly, so that processes meet."""

    asked: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        time.sleep(0.05)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(built: Path) -> Iterator[str]:
    """The finished corpus behind a local HTTP server."""
    Counting.asked.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Counting, directory=str(built)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_corpus_behind_a_url_reads_as_the_local_one_and_each_shard_is_fetched_once(
    built: Path, served: str, tmp_path: Path
) -> None:
    local = Corpus(built)
    remotes = [Corpus(served, tmp_path / "cache") for _ in range(3)]  # as the processes of a machine
    assert remotes[0].is_remote and not local.is_remote and remotes[0].index_hash == local.index_hash
    found: list[list[np.ndarray]] = [[] for _ in remotes]

    def read(number: int) -> None:
        for r in remotes[number].recordings:
            found[number].append(remotes[number].read_window(r, 0, r.n_samples).x_TC)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(len(remotes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [local.read_window(r, 0, r.n_samples).x_TC for r in local.recordings]
    for arrays in found:
        assert len(arrays) == len(expected) and all(map(np.array_equal, arrays, expected))
    shards = {path: n for path, n in Counting.asked.items() if path.endswith((".tar", ".npy", ".arrow"))}
    assert len(shards) == 2 * len(local.index["shards"]) + 1
    assert set(shards.values()) == {1}, "a file was fetched twice"


def test_a_cache_smaller_than_the_corpus_reads_it_all_the_same(built: Path, tmp_path: Path) -> None:
    local = Corpus(built)
    largest = max(shard["bytes"] for shard in local.index["shards"])
    fs, name = fsspec.filesystem("memory"), f"/{tmp_path.name}-corpus"
    fs.put(str(built), name, recursive=True)
    remote = Corpus(f"memory:/{name}", tmp_path / "cache", largest / 1e9)
    for _ in range(2):
        for r in local.recordings:
            window = remote.read_window(r, 0, r.n_samples)
            assert np.array_equal(window.x_TC, local.read_window(r, 0, r.n_samples).x_TC)
            assert sum(p.stat().st_size for p in (remote.path / SHARDS_NAME).glob("*.tar")) <= largest
    lost = local.recordings[0]
    fs.rm(f"{name}/{SHARDS_NAME}/{lost.shard}")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(BadWindowError, match=f"{lost.shard}: cannot read the shard"):
        Corpus(f"memory:/{name}", tmp_path / "cache").read_window(lost, 0, 1)
    with pytest.raises(ValueError, match=r"index\.json: cannot read the index of the corpus"):
        Corpus("memory://nowhere", tmp_path / "cache")
    fs.rm(name, recursive=True)
