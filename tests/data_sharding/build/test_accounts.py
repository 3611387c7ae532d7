"""The end of a build without its cluster: on a disk and in fsspec's memory, nothing lost, nothing sealed by mistake.

Covers: data_sharding/build/receipts.py
"""

import json
import math
import re
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from mcsp.config import CorpusConfig
from mcsp.data_sharding.build.plan import Plan, make_plan
from mcsp.data_sharding.build.privacy import find_identifiers_in_shards
from mcsp.data_sharding.build.pseudonyms import subject_key
from mcsp.data_sharding.build.receipts import (
    duplicates,
    is_current,
    read_header,
    read_rows,
    remove_stale,
    write_receipt,
)
from mcsp.data_sharding.build.seal import settle
from mcsp.data_sharding.build.shards import Receipt, build_shard
from mcsp.data_sharding.clean.read import ReadingProcess
from mcsp.data_sharding.store.files import Location, location, names
from mcsp.data_sharding.store.index import BUILD_NAME, SHARDS_NAME, read_index, read_rejected
from tests.data_sharding.conftest import KEY, write_paired_site
from tests.data_sharding.store.test_table import recording


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("accounts") / "paired"
    write_paired_site(root, subjects=3)
    (root / "sub-03/eeg/sub-03_task-rest_eeg.edf").write_bytes(b"no EDF")
    return root


@pytest.fixture(scope="module")
def reader(site: Path) -> Iterator[ReadingProcess]:
    with ReadingProcess(configuration(site, "unused")) as process:
        yield process


def configuration(site: Path, out: Path | str) -> CorpusConfig:
    return CorpusConfig(bids_root=site.parent, out_dir=out, samples_per_shard=2, max_quarantined=0.5)


def build_here(site: Path, out: Path | str, reader: ReadingProcess) -> tuple[Plan, CorpusConfig, Location]:
    """What the workers do, without sealing."""
    config = configuration(site, out)
    folder = location(out)
    for part in (folder / SHARDS_NAME, folder / BUILD_NAME / "receipts"):
        part.mkdir(parents=True, exist_ok=True)
    plan = make_plan(config, subject_key(config))
    for shard in plan.shards:
        write_receipt(folder / BUILD_NAME, shard.name, build_shard(shard, config, reader))
    return plan, config, folder


def test_memory_and_disk_hold_the_same_corpus(
    site: Path, reader: ReadingProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCSP_SUBJECT_KEY", KEY)
    found = []
    for out in (tmp_path / "corpus", f"memory://{tmp_path.name}/corpus"):
        plan, config, folder = build_here(site, out, reader)
        assert duplicates(folder / BUILD_NAME, plan) == {}
        (folder / SHARDS_NAME / "train-77777-000000000000.tar").write_bytes(b"of an older index")
        index = settle(plan, config, folder, "0" * 64, KEY.encode(), partial(find_identifiers_in_shards, folder))
        remove_stale(folder, folder / BUILD_NAME, index, plan)
        assert read_index(folder) == index
        described = {name: (folder / name).read_bytes() for name in index["tables"].values()}
        shards = {name: (folder / SHARDS_NAME / name).read_bytes() for name in names(folder / SHARDS_NAME)}
        found.append((index, described, shards))
        assert len(shards) == 2 * len(index["shards"]) and index["totals"]["all"]["found"] == 6
        assert [r.reason for r in read_rejected(folder)] == list(index["reasons"])
    assert found[0] == found[1]
    assert len(found[0][0]["shards"]) >= 2
    for name in filter(re.compile(r".*\.tar").fullmatch, found[0][2]):
        with tarfile.open(tmp_path / "corpus" / SHARDS_NAME / name) as tar:
            for member in (member for member in tar if member.name.endswith(".json")):
                text = tar.extractfile(member).read().decode()  # type: ignore[union-attr]
                assert text == json.dumps(json.loads(text), sort_keys=True, allow_nan=False)


def test_a_receipt_holds_a_list_of_many_recordings_once(tmp_path: Path) -> None:
    channels = [f"parcel-{i}" for i in range(200)]
    shared = {"channels": channels, "channel_good": [True] * 200, "positions_mm": [math.nan, -0.0, *[1.25] * 598]}
    rows = [vars(recording(f"r{i}", n_channels=200, **shared)) for i in range(3)]
    rows.insert(1, vars(recording("other", n_channels=2, positions_mm=shared["positions_mm"])))
    receipt = Receipt("", {}, None, {}, {}, [], [], [], rows)
    (tmp_path / BUILD_NAME / "receipts").mkdir(parents=True)
    write_receipt(tmp_path / BUILD_NAME, "train-00001", receipt)
    assert (tmp_path / BUILD_NAME / "receipts" / "train-00001.jsonl").read_text().count('"parcel-199"') == 1
    plan = Plan([], "", CorpusConfig(bids_root=tmp_path, out_dir=tmp_path))
    plan.names = ["train-00001"]
    found = list(read_rows(tmp_path / BUILD_NAME, plan))
    assert [repr(vars(row)) for row in found] == [repr(row) for row in rows]
    assert found[0].channels is found[3].channels and found[0].channels is not found[1].channels


def test_a_lost_recording_is_no_corpus(
    site: Path, reader: ReadingProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCSP_SUBJECT_KEY", KEY)
    plan, config, folder = build_here(site, tmp_path / "corpus", reader)
    file = tmp_path / "corpus" / BUILD_NAME / "receipts" / f"{plan.names[0]}.jsonl"
    header, *rows = file.read_text().splitlines()
    content = json.loads(header)
    content["sites"]["paired"][0] -= 1
    file.write_text("\n".join([json.dumps(content), *rows]) + "\n")
    with pytest.raises(ValueError, match=r"recordings are lost \(paired: found 6, read \+ quarantined 5\)"):
        settle(plan, config, folder, "0" * 64, KEY.encode(), partial(find_identifiers_in_shards, folder))
    assert not (folder / "index.json").exists()


def test_a_receipt_counts_only_for_what_it_was_written_for(
    site: Path, reader: ReadingProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCSP_SUBJECT_KEY", KEY)
    plan, _, folder = build_here(site, tmp_path / "corpus", reader)
    name, digest = plan.names[0], plan.digests[0]
    header = read_header(folder / BUILD_NAME, name)
    assert header is not None and header.shard is not None
    assert is_current(header, folder, digest, {}, [1.0, 1.0], deep=True)
    assert not is_current(header, folder, "other", {}, [1.0, 1.0], deep=False)
    assert not is_current(header, folder, digest, {"a/b": "c"}, [1.0, 1.0], deep=False)
    tar = tmp_path / "corpus" / SHARDS_NAME / header.shard["name"]
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.chmod(0o644)
    tar.write_bytes(content)
    assert is_current(header, folder, digest, {}, [1.0, 1.0], deep=False)
    assert not is_current(header, folder, digest, {}, [1.0, 1.0], deep=True)
    assert read_header(folder / BUILD_NAME, "train-99999") is None
