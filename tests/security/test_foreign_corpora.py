"""Attacks by a corpus of somebody else, and by another user of the machine on what was fetched of a corpus.

Covers: data_sharding/store/foreign.py
"""

import hashlib
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from mcsp import outside
from mcsp.data_sharding.inspect.lint import lint_corpus
from mcsp.data_sharding.store.index import INDEX_NAME, SHARDS_NAME, make_index, read_index, write_index
from mcsp.data_sharding.store.reader import Corpus
from mcsp.schema import Recording, block_bounds, crc_name
from tests.data_sharding.store.test_table import recording
from tests.object_store import object_store

ROOT = Path(__file__).parents[2]
OTHER_UID = 12345
X_TC = np.arange(3000, dtype="<f2").reshape(1000, 3)


def write_corpus(folder: Path, rows: Callable[[Recording], Recording] = lambda row: row) -> Path:
    """A sound corpus of one recording, or one whose ``rows`` were changed before its table was written."""
    array = io.BytesIO()
    np.lib.format.write_array(array, X_TC, version=(1, 0), allow_pickle=False)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        header = tarfile.TarInfo("s_a.eeg-0.npy")
        header.size = len(array.getvalue())
        archive.addfile(header, io.BytesIO(array.getvalue()))
    content = tar.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    name = f"train-00001-{digest[:12]}.tar"
    (folder / SHARDS_NAME).mkdir(parents=True)
    (folder / SHARDS_NAME / name).write_bytes(content)
    crcs = [zlib.crc32(X_TC[a:b].tobytes()) for a, b in pairwise(block_bounds(1000, 400))]
    np.save(folder / SHARDS_NAME / crc_name(name), np.array(crcs, "<u4"))
    offset = content.index(X_TC.tobytes())
    row = recording("s_a", shard=name, subject="a", byte_offset=offset, block_samples=400, valid_spans=[0, 1000])
    described = {
        "config": {}, "software": {}, "fingerprint": "", "subject_key_fingerprint": "", "simulated": {"s": True},
        "shards": [{"name": name, "sha256": digest, "bytes": len(content), "samples": 1, "recordings": 1}],
    }  # fmt: skip
    scratch = folder / ".scratch"
    scratch.mkdir()
    index, tables = make_index(described, [rows(row)], [], [], scratch)
    write_index(folder, index, tables)
    shutil.rmtree(scratch)
    return folder


def change_index(folder: Path, *keys: Any, value: Any) -> None:
    index = json.loads((folder / INDEX_NAME).read_text())
    inner = index
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (folder / INDEX_NAME).write_text(json.dumps(index))


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything below a folder."""
    return {str(p): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def bucket() -> Iterator[Callable[[Path], str]]:
    """Puts a folder into a local server that speaks S3, and gives its address there."""
    with object_store("foreign") as store:
        numbers = itertools.count()

        def put(folder: Path) -> str:
            place = f"foreign/{next(numbers)}"
            store.put(str(folder), place, recursive=True)
            return f"s3://{place}"

        yield put


def test_a_sound_corpus_in_an_object_store_is_read(bucket: Callable[[Path], str], tmp_path: Path) -> None:
    corpus = Corpus(bucket(write_corpus(tmp_path / "corpus")), tmp_path / "cache")
    window = corpus.read_window(corpus.recordings[0], 10, 900)
    assert np.array_equal(window.x_TC, X_TC[10:910].astype(np.float32) / 2)


NAMES = [
    (("index_hash",), "../../.ssh"),
    (("index_hash",), "../victim"),
    (("index_hash",), "0" * 63 + "\n"),
    (("tables", "recordings"), "../../victim/recordings-000000000000.arrow"),
    (("tables", "recordings"), "/etc/passwd"),
    (("tables", "rejected"), "../rejected-000000000000.jsonl"),
    (("shards", 0, "name"), "../../../victim/shards/train-00001.tar"),
    (("shards", 0, "name"), "/tmp/train-00001.tar"),
    (("shards", 0, "name"), None),
    (("shards", 0, "sha256"), "../0"),
    (("shards", 0, "bytes"), -1),
    (("totals", "sites"), {"<script>": {"recordings": 1, "simulated": True}}),
    (("totals", "splits"), {"../train": {}}),
    (("shards",), "train-00001.tar"),
    (("reasons",), {"../x": 1}),
]
ROWS = {
    "shard": "../../victim/shards/train-00001.tar",
    "key": "../../x",
    "member": "/x",
    "site": "a/b",
    "session": "..",
}


def use(url: str, cache: Path) -> None:
    """All that a run does with a corpus that makes room in its cache."""
    foreign = Corpus(url, cache, cache_gb=1e-4)
    foreign.fetch_ahead([r.shard for r in foreign.recordings])
    foreign.read_window(foreign.recordings[0], 0, 10)


@pytest.mark.parametrize("attack", [*range(len(NAMES)), *ROWS])
def test_names_of_a_foreign_index_never_become_paths(
    attack: int | str, bucket: Callable[[Path], str], tmp_path: Path
) -> None:
    changed = {} if isinstance(attack, int) else {attack: ROWS[attack]}
    corpus = write_corpus(tmp_path / "corpus", lambda row: Recording(**{**vars(row), **changed}))
    if isinstance(attack, int):
        change_index(corpus, *NAMES[attack][0], value=NAMES[attack][1])
    cache = tmp_path / "home" / "cache"
    for folder in (tmp_path / "victim", tmp_path / "home" / "victim", cache / "victim"):
        (folder / SHARDS_NAME).mkdir(parents=True)
        (folder / SHARDS_NAME / "train-00001.tar").write_bytes(b"of another corpus")
    url, before = bucket(corpus), state(tmp_path)
    with pytest.raises(ValueError, match=r"^\S+: .*, expected") as error:
        use(url, cache)
    assert "\n" not in str(error.value)
    # The cache of the index's own hash may hold the table that was refused; nothing else was written or touched.
    own = cache / read_index(tmp_path / "corpus")["index_hash"][:32] if isinstance(attack, str) else cache / "none"
    after = {path: found for path, found in state(tmp_path).items() if not path.startswith(str(own))}
    for parent in (cache, cache.parent):
        before.pop(str(parent), None), after.pop(str(parent), None)
    assert after == before


def test_a_row_that_asks_for_more_than_its_shard_takes_no_memory(tmp_path: Path) -> None:
    rows = [{"n_samples": 1 << 50}, {"n_channels": 1 << 40}, {"block_samples": 0}, {"byte_offset": -8}]
    for i, change in enumerate(rows):
        folder = write_corpus(tmp_path / str(i), lambda row, change=change: Recording(**{**vars(row), **change}))
        corpus = Corpus(folder)
        with pytest.raises(ValueError, match=r"expected \d+ bytes at least|of no recording"):
            corpus.read_window(corpus.recordings[0], 0, corpus.recordings[0].n_samples)


def test_an_index_that_is_large_or_deep_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_corpus(tmp_path / "corpus")
    (folder / INDEX_NAME).write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"index\.json: not readable as JSON \(nested too deep\)"):
        Corpus(folder)
    monkeypatch.setattr(outside, "MOST_BYTES", 1000)
    (folder / INDEX_NAME).write_text(" " * 1001)
    with pytest.raises(ValueError, match=r"index\.json: .*more than 1,000 bytes"):
        Corpus(folder)


def corrupted(folder: Path, column: str, value: int) -> Path:
    """Change the last offset of a text column, or the last code of a column of codes, where it lies in the file."""
    (table,) = folder.glob("recordings-*.arrow")
    mapped = pa.memory_map(str(table))
    first, array = mapped.read_buffer(1).address, pa.ipc.open_file(mapped).get_batch(0).column(column)
    repeats = pa.types.is_dictionary(array.type)
    content, dtype = bytearray(table.read_bytes()), "<i4" if repeats else "<i8"
    start = (array.indices if repeats else array).buffers()[1].address - first + (0 if repeats else 8)
    content[start : start + np.dtype(dtype).itemsize] = np.array([value], dtype).tobytes()
    table.write_bytes(content)
    return table


READS = """
import sys
from pathlib import Path
from mcsp.data_sharding.store.table import Recordings
rows = Recordings.mapped(Path(sys.argv[1]))
rows.texts("key", [0])
"""


def test_a_table_with_changed_offsets_is_told_by_reader_and_lint(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    table = corrupted(folder, "key", 1 << 44)
    attack = subprocess.run([sys.executable, "-c", READS, table], capture_output=True, check=False)
    assert attack.returncode < 0, "the attack is real: Arrow follows the offset out of the file"
    line = r"recordings-\w+\.arrow: damaged or hostile table \(.*"
    with pytest.raises(ValueError, match=line):
        Corpus(folder)
    lint = [sys.executable, "-m", "mcsp", "lint", folder]
    result = subprocess.run(
        lint, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert result.returncode == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result
    assert "damaged or hostile table" in result.stderr


@pytest.mark.parametrize("value", [-1, 1 << 30])
def test_a_code_of_no_text_is_told(tmp_path: Path, value: int) -> None:
    folder = write_corpus(tmp_path / "corpus")
    corrupted(folder, "site", value)
    with pytest.raises(ValueError, match=r"damaged or hostile table"):
        Corpus(folder)


@pytest.mark.parametrize("attack", ["checksums", "tar", "rate", "quality"])
def test_lint_tells_what_it_cannot_read_and_goes_on(tmp_path: Path, attack: str) -> None:
    changed = {"rate": {"sfreq": 0.0}, "quality": {"quality": "[" * 10_000}}.get(attack, {})
    folder = write_corpus(tmp_path / "corpus", lambda row: row)
    if changed:
        # Written beside, as the builder itself would fail on such rows.
        from mcsp.data_sharding.store.table import write_table

        (table,) = folder.glob("recordings-*.arrow")
        write_table(table, [Recording(**{**vars(Corpus(folder).recordings[0]), **changed})])
    (tar,) = (folder / SHARDS_NAME).glob("*.tar")
    if attack == "checksums":
        header = b"{'descr': '<u4', 'fortran_order': False, 'shape': (1000000000000,), }\n"
        content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        tar.with_name(crc_name(tar.name)).write_bytes(content)
    elif attack == "tar":
        content = bytearray(tar.read_bytes())
        content[124:136] = b"7" * 12
        tar.write_bytes(content)
    lies = lint_corpus(folder)
    assert any("cannot be" in lie or "is wrong" in lie for lie in lies), lies


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A folder in which every user of the machine may write, as the temporary one."""
    folder = Path(tempfile.mkdtemp(prefix="mcsp-shared-"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A sound corpus in fsspec's memory: its address, and the name of its folder in a cache."""
    fs, name = fsspec.filesystem("memory"), f"/{tmp_path.name}-foreign"
    folder = write_corpus(tmp_path / "corpus")
    fs.put(str(folder), name, recursive=True)
    yield f"memory:/{name}", read_index(folder)["index_hash"][:32]
    fs.rm(name, recursive=True)


def as_another_user(command: str) -> subprocess.CompletedProcess[str]:
    words = ["setpriv", f"--reuid={OTHER_UID}", f"--regid={OTHER_UID}", "--clear-groups", "sh", "-c", command]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="a second user needs root, setpriv")
def test_another_user_can_neither_own_nor_read_the_cache(store: tuple[str, str], shared: Path) -> None:
    url, name = store
    assert as_another_user(f"mkdir -m 777 {shared / name}").returncode == 0, "the attack is real"
    with pytest.raises(ValueError, match=rf"{name}: belongs to uid {OTHER_UID}, expected yours \(0\)") as error:
        Corpus(url, shared)
    assert "\n" not in str(error.value)
    as_another_user(f"rmdir {shared / name}; mkdir {shared}/theirs; ln -s {shared}/theirs {shared / name}")
    with pytest.raises(ValueError, match=r": a link or a file, expected a folder of your own"):
        Corpus(url, shared)
    as_another_user(f"rm {shared / name}")
    corpus = Corpus(url, shared)
    corpus.read_window(corpus.recordings[0], 0, 10)
    for path in (corpus.path, *corpus.path.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
        assert as_another_user(f"cat {path}").returncode != 0 and as_another_user(f"touch {path}/x").returncode != 0


def test_values_that_were_changed_together_with_their_checksums_are_fetched_again(
    store: tuple[str, str], tmp_path: Path
) -> None:
    url, _ = store
    first = Corpus(url, tmp_path / "cache")
    row = first.recordings[0]
    expected = first.read_window(row, 0, 1000).x_TC
    first.close()
    changed = np.full_like(X_TC, 7)
    tar = first.path / SHARDS_NAME / row.shard
    tar.write_bytes(tar.read_bytes().replace(X_TC.tobytes(), changed.tobytes()))
    crcs = [zlib.crc32(changed[a:b].tobytes()) for a, b in pairwise(block_bounds(1000, 400))]
    np.save(tar.with_name(crc_name(tar.name)), np.array(crcs, "<u4"))
    (table,) = first.path.glob("recordings-*.arrow")
    table.write_bytes(table.read_bytes().replace(b"rest", b"sing"))
    second = Corpus(url, tmp_path / "cache")
    assert second.recordings[0].task == "rest", "the table was changed in the cache"
    assert np.array_equal(second.read_window(row, 0, 1000).x_TC, expected)
    assert hashlib.sha256(tar.read_bytes()).hexdigest() == second.index["shards"][0]["sha256"]


def test_without_a_name_the_cache_is_in_the_users_own_folder(
    store: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mcsp").mkdir(mode=0o777)
    corpus = Corpus(store[0])
    assert corpus.path == tmp_path / "home" / "mcsp" / store[1]
    assert (tmp_path / "home" / "mcsp").stat().st_mode & 0o777 == 0o700
