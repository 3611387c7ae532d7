"""The plan: splits, keys and shards as a pure function of the inputs."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids_write import write_json, write_tsv
from mcsp.data_sharding.plan import KEY_VARIABLE, Plan, assign_splits, make_plan, public_config, subject_key
from mcsp.schema import SPLITS

KEY = b"a key for tests alone"


def write_site(
    root: Path, subjects: int, sessions: tuple[str, ...] = ("",), columns: dict[str, list[str]] | None = None
) -> None:
    """Empty files are enough: planning reads none."""
    write_json(root / "dataset_description.json", {"Name": "x"})
    names = [f"sub-{i:02d}" for i in range(subjects)]
    for name in names:
        for session in sessions:
            folder = root / name / (f"ses-{session}" if session else "") / "eeg"
            folder.mkdir(parents=True)
            (folder / "_".join(filter(None, (name, f"ses-{session}" if session else "", "task-rest_eeg.edf")))).touch()
    if columns:
        rows = [(name, *(values[i] for values in columns.values())) for i, name in enumerate(names)]
        write_tsv(root / "participants.tsv", ("participant_id", *columns), rows)


def plan_of(root: Path, key: bytes = KEY, **values: object) -> Plan:
    return make_plan(CorpusConfig.parse({"bids_root": root, "out_dir": root / "out", **values}, "test"), key)


def samples_of(plan: Plan) -> dict[str, tuple[str, str]]:
    """Sample key -> (shard, split)."""
    return {s.key: (shard.name, s.split) for shard in plan.shards for s in shard.samples}


@given(st.integers(0, 200), st.integers(0, 5), st.lists(st.integers(0, 10), min_size=3, max_size=3).filter(sum))
def test_each_site_gets_its_proportions_and_everyone_a_split(subjects: int, seed: int, weights: list[int]) -> None:
    fractions = [weight / sum(weights) for weight in weights]
    units = [f"u{i}" for i in range(subjects)]
    splits = assign_splits(units, fractions, seed, "site", KEY)
    assert set(splits) == set(units)
    assert splits == assign_splits(units[::-1], fractions, seed, "site", KEY)
    counts = Counter(splits.values())
    for split, fraction in zip(SPLITS, fractions, strict=True):
        assert abs(counts[split] - fraction * subjects) <= 1


def test_a_small_site_is_in_every_split() -> None:
    counts = Counter(assign_splits([f"u{i}" for i in range(10)], (0.8, 0.1, 0.1), 0, "s", KEY).values())
    assert counts == {"train": 8, "validation": 1, "test": 1}


def test_sessions_of_a_subject_and_members_of_a_family_stay_together(tmp_path: Path) -> None:
    families = ["f1"] * 4 + ["f2"] * 4 + [f"own{i}" for i in range(8)]
    write_site(tmp_path / "a", 16, sessions=("1", "2"), columns={"family": families})
    plan = plan_of(tmp_path, family_column="family", split_fractions=[0.4, 0.3, 0.3])
    splits: dict[str, set[str]] = {}
    for shard in plan.shards:
        for sample in shard.samples:
            original = int(sample.recordings[0].entities["subject"])
            splits.setdefault(families[original], set()).add(sample.split)
    assert all(len(found) == 1 for found in splits.values())
    assert len(samples_of(plan)) == 32
    assert set.union(*splits.values()) == set(SPLITS)


def test_the_plan_depends_on_the_key_and_the_seed_alone(tmp_path: Path) -> None:
    for name, subjects in (("a", 20), ("b", 20)):
        write_site(tmp_path / name, subjects)
    first = plan_of(tmp_path, samples_per_shard=4)
    again = plan_of(tmp_path, samples_per_shard=4, workers=7, out_dir=tmp_path / "elsewhere")
    assert (first.digest, samples_of(first)) == (again.digest, samples_of(again))
    reseeded = plan_of(tmp_path, samples_per_shard=4, seed=1)
    assert samples_of(reseeded).keys() == samples_of(first).keys()
    assert samples_of(reseeded) != samples_of(first)
    assert not samples_of(plan_of(tmp_path, key=b"another key, as long")).keys() & samples_of(first).keys()
    assert max(len(shard.samples) for shard in first.shards) == 4
    mixed = [{s.site.name for s in shard.samples} for shard in first.shards if shard.name.startswith("train")]
    assert {"a", "b"} in mixed


def test_the_digest_follows_size_and_time_of_the_inputs(tmp_path: Path) -> None:
    write_site(tmp_path / "a", 3)
    before = plan_of(tmp_path)
    (tmp_path / "a/sub-00/eeg/sub-00_task-rest_eeg.json").write_text("{}")
    after = plan_of(tmp_path)
    changed = [old.name for old, new in zip(before.shards, after.shards, strict=True) if old.digest != new.digest]
    assert len(changed) == 1


def test_sessions_that_may_be_dates_are_hashed(tmp_path: Path) -> None:
    write_site(tmp_path / "a", 1, sessions=("20190504", "baseline"))
    keys = sorted(samples_of(plan_of(tmp_path)), key=lambda key: "baseline" not in key)
    assert keys[0].endswith("_baseline")
    assert "2019" not in keys[1] and len(keys[1].split("_")) == 3


def test_only_named_columns_go_along(tmp_path: Path) -> None:
    write_site(
        tmp_path / "a",
        3,
        columns={"diagnosis": ["case", "control", "n/a"], "age": ["31", "9.5", "n/a"], "city": ["x"] * 3},
    )
    plan = plan_of(tmp_path, participants_columns=["diagnosis", "age"])
    found = sorted((json.loads(s.participant) for shard in plan.shards for s in shard.samples), key=str)
    assert found == [{"age": 31.0, "diagnosis": "case"}, {"age": 9.5, "diagnosis": "control"}, {}]


@pytest.mark.parametrize(
    ("columns", "message"),
    [(["iq"], r"no site has the column 'iq', found \['diagnosis', 'name', 'participant_id'\]"),
     (["name"], "'name' may identify a person")],
)  # fmt: skip
def test_unknown_and_identifying_columns_are_refused(tmp_path: Path, columns: list[str], message: str) -> None:
    write_site(tmp_path / "a", 1, columns={"diagnosis": ["case"], "name": ["Ann"]})
    with pytest.raises(ValueError, match=message):
        plan_of(tmp_path, participants_columns=columns)


def test_a_dataset_without_recordings_is_refused(tmp_path: Path) -> None:
    write_site(tmp_path / "a", 0)
    with pytest.raises(ValueError, match="no EEG or fMRI recordings found"):
        plan_of(tmp_path)


@pytest.mark.parametrize("key", [None, "short"])
def test_a_missing_subject_key_says_how_to_make_one(monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    if key is not None:
        monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(ValueError, match=r"export MCSP_SUBJECT_KEY=\$\(openssl rand -hex 32\)"):
        subject_key()


def test_the_recorded_configuration_names_no_folder(tmp_path: Path) -> None:
    sites = {"a": {"path": tmp_path / "deep" / "a", "label_image": tmp_path / "deep" / "atlas.nii.gz"}}
    config = CorpusConfig.parse({"sites": sites, "out_dir": tmp_path / "out", "workers": 3}, "test")
    recorded = public_config(config)
    assert recorded["sites"]["a"]["label_image"] == "atlas.nii.gz" and "path" not in recorded["sites"]["a"]
    assert str(tmp_path) not in json.dumps(recorded) and "workers" not in recorded
    assert recorded["eeg"]["sfreq"] == 200.0
