"""Which sample lies in which shard, and what a shard's digest stands for: pinned, because builds are continued.

Covers: data_sharding/build/plan.py
"""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.ref import RecordingRef, Site
from mcsp.data_sharding.build.plan import FileStates, Plan, PlannedSample, cut
from mcsp.outside import sha256_json


def site(root: Path, name: str = "a", **changes: Any) -> Site:
    (root / name / "sub-1").mkdir(parents=True, exist_ok=True)
    return replace(Site(name, root / name, False, None), **changes)


def sample(of: Site, key: str = "a_1", split: str = "train", **changes: Any) -> PlannedSample:
    path = of.root / "sub-1" / f"{key}_eeg.edf"
    path.touch()
    os.utime(path, (5, 5))
    table = of.root / "participants.tsv"
    ref = RecordingRef(of, path, "eeg", {"subject": "1", "task": "rest"}, {"x.tsv": (table, of.root / "away.tsv")})
    return replace(PlannedSample(key, of, "hash", "ses", split, "{}", (ref,)), **changes)  # type: ignore[arg-type]


def plan_of(
    samples: list[PlannedSample], limit: int = 100, options: Any = None, common: Any = (), seed: int = 7
) -> Plan:
    sites = {s.site.name: s.site for s in samples}
    config = CorpusConfig(bids_root=Path("bids"), out_dir=Path("out"), samples_per_shard=limit)
    plan = Plan(list(sites.values()), "recipe", config)
    for planned in samples:
        plan.add(planned, seed, FileStates(), options)
    plan.close(common)
    return plan


def order(key: str, seed: int = 7) -> int:
    return int(hashlib.sha256(f"{seed}/{key}".encode()).hexdigest()[:16], 16)


def test_samples_of_a_split_are_ordered_by_a_hash_of_seed_and_key_and_come_back_as_they_were(tmp_path: Path) -> None:
    of = site(tmp_path)
    samples = [sample(of, f"a_{i}", split) for i in range(20) for split in ("test", "train")]
    plan = plan_of(samples)
    assert plan.names == ["train-00001", "test-00001"] and plan.found == {"a": 40}
    assert [shard.name for shard in plan.shards] == plan.names
    for shard, split in zip(plan.shards, ("train", "test"), strict=True):
        expected = sorted((s for s in samples if s.split == split), key=lambda s: order(s.key))
        assert list(shard.samples) == expected and shard.digest in plan.digests


def test_a_full_shard_is_halved_at_the_next_bit_of_the_order(tmp_path: Path) -> None:
    samples = [sample(site(tmp_path), f"a_{i}") for i in range(20)]
    plan = plan_of(samples, limit=12)
    halves = [[s.key for s in shard.samples] for shard in plan.shards]
    assert plan.names == ["train-00002", "train-00003"]
    assert [{order(key) >> 63 for key in half} for half in halves] == [{0}, {1}]
    assert sum(map(len, halves)) == 20
    assert plan_of(samples, limit=20).names == ["train-00001"], "exactly so many fit"


def test_numbers_of_shards_are_nodes_of_a_binary_tree() -> None:
    top, bit = 1 << 63, 1 << 62
    assert list(cut([0, 1, top, top + bit], 4)) == [(1, 0, 4)] and list(cut([], 4)) == []
    assert list(cut([0, 1, top, top + bit], 2)) == [(2, 0, 2), (3, 2, 4)]
    assert list(cut([bit - 1, bit, top, top + bit], 1)) == [(4, 0, 1), (5, 1, 2), (6, 2, 3), (7, 3, 4)]
    assert list(cut([top, top + 1, top + bit], 2)) == [(6, 0, 2), (7, 2, 3)]
    [(deepest, start, stop)] = cut([5, 5, 5], 2)  # what no bit tells apart stays together
    assert (deepest, start, stop) == ((1 << 64) + 5, 0, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"session": "other"}, {"participant": '{"age": 3}'}, {"simulated": True}, {"pairing": "subject"},
        {"first_volume_event": "R128"}, {"fault": ("invalid-json", "x")}, {"size": 3}, {"time": 6}, {"table": "x"},
        {"options": {"gain": 2}}, {"common": ["code"]}, {"modality": "fmri"},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_whatever_decides_the_bytes_of_a_shard_changes_its_digest_alone(tmp_path: Path, change: dict[str, Any]) -> None:
    of_site = {k: v for k, v in change.items() if k in ("simulated", "pairing", "first_volume_event", "fault")}
    of_sample = {k: v for k, v in change.items() if k in ("session", "participant")}
    of_plan = {k: v for k, v in change.items() if k in ("options", "common")}
    other = sample(site(tmp_path), "a_2", "test")
    before = plan_of([sample(site(tmp_path)), other])
    assert before.digests == plan_of([other, sample(site(tmp_path))]).digests, "in any order, and twice the same"
    changed = sample(site(tmp_path, **of_site), **of_sample)
    [ref] = changed.recordings
    if "modality" in change:
        changed = replace(changed, recordings=(replace(ref, modality="fmri"),))
    if "size" in change:
        ref.path.write_bytes(b"abc")
        os.utime(ref.path, (5, 5))
    if "time" in change:
        os.utime(ref.path, (5, 6))
    if "table" in change:
        (ref.site.root / "participants.tsv").write_text("x")
        other = replace(other, recordings=(replace(other.recordings[0], companions={}),))
        before = plan_of([replace(sample(site(tmp_path)), recordings=(replace(ref, companions={}),)), other])
    after = plan_of([changed, other], **of_plan)
    differs = [a != b for a, b in zip(before.digests, after.digests, strict=True)]
    assert differs == [True, bool(of_plan)] and before.digest != after.digest


def test_a_plan_stands_for_its_recipe_and_its_sites_too(tmp_path: Path) -> None:
    def digest(recipe: str, **changes: Any) -> str:
        config = CorpusConfig(bids_root=Path("bids"), out_dir=Path("out"))
        return Plan([site(tmp_path, **changes)], recipe, config).digest

    assert len({digest("a"), digest("b"), digest("a", simulated=True), digest("a", name="b")}) == 4
    assert digest("a") == digest("a") == sha256_json(["a", [["a", False]], [], []])
    assert sha256_json({"b": 1, "a": [2]}) == hashlib.sha256(b'{"a": [2], "b": 1}').hexdigest()


def test_the_state_of_a_file_is_its_size_and_time_and_is_asked_for_once(tmp_path: Path) -> None:
    file, link, states = tmp_path / "x", tmp_path / "link", FileStates()
    assert states[file] == [-1, -1]
    file.write_bytes(b"abc")
    os.utime(file, ns=(1, 123_456_789))
    assert states[file] == [-1, -1] and FileStates()[file] == [3, 123_456_789]
    link.symlink_to("x")
    assert FileStates()[link] == [3, 123_456_789]
    file.unlink()
    assert FileStates()[link] == [1, link.lstat().st_mtime_ns], "of a link to nowhere its own"


def test_a_plan_is_kept_on_disk_with_paths_below_the_site_or_elsewhere(tmp_path: Path) -> None:
    of = site(tmp_path)
    elsewhere = sample(of)
    [ref] = elsewhere.recordings
    ref = replace(ref, companions={"dseg.tsv": (tmp_path / "atlas.tsv", of.root / "dseg.tsv"), "none": ()})
    planned = replace(elsewhere, recordings=(ref,), participant=json.dumps({"age": 3.5}))
    [shard] = plan_of([planned]).shards
    assert shard.samples == (planned,)
