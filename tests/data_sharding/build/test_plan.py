"""The plan: splits, keys and shards as a pure function of the inputs.

Covers: data_sharding/build/pseudonyms.py
"""

import hmac
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcsp.config import CorpusConfig, EegConfig, FmriConfig, SiteConfig
from mcsp.data_sharding.bids.write import write_json, write_tsv
from mcsp.data_sharding.build import plan as room
from mcsp.data_sharding.build.plan import (
    Plan,
    assign_split,
    code_digest,
    cut,
    make_plan,
    public_config,
    recipe_config,
)
from mcsp.data_sharding.build.pseudonyms import subject_key
from mcsp.schema import KEY_VARIABLE, SPLITS
from tests.conftest import SUBJECT_KEY

KEY = SUBJECT_KEY.encode()


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


@given(st.integers(0, 5), st.lists(st.integers(0, 10), min_size=3, max_size=3).filter(sum))
def test_a_split_gets_its_share_and_depends_on_nobody_else(seed: int, weights: list[int]) -> None:
    fractions = [weight / sum(weights) for weight in weights]
    counts = Counter(assign_split(f"u{i}", fractions, seed, "site", KEY) for i in range(1000))
    for split, fraction in zip(SPLITS, fractions, strict=True):
        assert abs(counts[split] - 1000 * fraction) <= 5 * (1000 * fraction * (1 - fraction)) ** 0.5


@given(st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=300), st.integers(1, 20))
def test_the_cut_is_complete_within_the_limit_and_an_arrival_changes_one_shard(orders: list[int], limit: int) -> None:
    def leaves(values: list[int]) -> dict[int, tuple[int, ...]]:
        values = sorted(values)
        return {node: tuple(values[a:b]) for node, a, b in cut(values, limit)}

    after = leaves(orders)
    assert sorted(x for part in after.values() for x in part) == sorted(orders)
    assert all(1 <= len(part) <= limit for part in after.values())
    if orders:
        before = leaves(orders[1:])
        changed = [node for node in before if before[node] != after.get(node)]
        assert len(changed) <= 1
        if changed:  # the same shard with the newcomer, or the shards that it was halved into
            moved = {x for node in after.keys() - before.keys() for x in after[node]} or set(after[changed[0]])
            assert moved == {*before[changed[0]], orders[0]}


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
    assert 2 <= max(len(shard.samples) for shard in first.shards) <= 4
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


def test_a_subject_that_joins_moves_nobody_and_changes_one_shard(tmp_path: Path) -> None:
    write_site(tmp_path / "a", 60)
    before = plan_of(tmp_path, samples_per_shard=8)
    where = samples_of(before)
    (tmp_path / "a/sub-99/eeg").mkdir(parents=True)
    (tmp_path / "a/sub-99/eeg/sub-99_task-rest_eeg.edf").touch()
    after = plan_of(tmp_path, samples_per_shard=8)
    assert after.recipe == before.recipe and after.digest != before.digest
    assert {key: split for key, (_, split) in samples_of(after).items() if key in where} == {
        key: split for key, (_, split) in where.items()
    }
    old = dict(zip(before.names, before.digests, strict=True))
    new = dict(zip(after.names, after.digests, strict=True))
    assert len([name for name in old if new.get(name) != old[name]]) <= 1
    assert len([name for name in new if old.get(name) != new[name]]) <= 2


def test_a_subject_makes_one_sample_where_the_site_says_so(tmp_path: Path) -> None:
    write_site(tmp_path / "a", 3, sessions=("1", "2"))
    sites = {"a": {"path": str(tmp_path / "a"), "pairing": "subject"}}
    assert [len(s.recordings) for shard in plan_of(tmp_path, sites=sites).shards for s in shard.samples] == [2, 2, 2]


def test_the_subject_key_may_come_from_a_file(tmp_path: Path) -> None:
    write_site(tmp_path / "a", 1)
    config = CorpusConfig(bids_root=tmp_path, out_dir=tmp_path / "out", subject_key_file=tmp_path / "key")
    with pytest.raises(ValueError, match=r"subject_key_file: .*key"):
        subject_key(config)
    (tmp_path / "key").write_text("short\n")
    with pytest.raises(ValueError, match=r"key has 5 characters, expected 32 random bytes .*; make one with: openssl"):
        subject_key(config)
    (tmp_path / "key").write_text(KEY.decode() + "\n")
    assert subject_key(config) == KEY
    assert str(tmp_path) not in json.dumps(public_config(config))


def test_the_example_of_a_consortium_explains_every_key() -> None:
    text = (Path(__file__).parents[3] / "configs/corpus/example-consortium.yaml").read_text()
    for section in (CorpusConfig, SiteConfig, EegConfig, FmriConfig):
        missing = [name for name in section.model_fields if f"{name}:" not in text]
        assert missing == [], section.__name__


def test_a_split_is_the_share_of_a_keyed_hash_that_its_fraction_covers() -> None:
    """Pinned: a subject that moved from training to test would be in both."""
    for unit in ("subject 1", "family x"):
        text = "\0".join(["split", "3", "site", unit]).encode()
        share = int.from_bytes(hmac.new(KEY, text, "sha256").digest()[:8], "big") / 2**64

        def split(*fractions: float, of: str = unit) -> str:
            return assign_split(of, fractions, 3, "site", KEY)

        above = share + 1e-9
        assert split(above, 1 - above, 0) == "train" and split(share, 1 - share, 0) == "validation"
        assert (
            split(above / 2, above / 2, 1 - above) == "validation" and split(share / 2, share / 2, 1 - share) == "test"
        )
        assert split(0, 1, 0) == "validation" and split(0, 0, 1) == "test"
        # What rounding leaves beyond the last fraction goes to the last split that has any.
        assert split(share / 2, share / 2, 0) == "validation" and split(share, 0, 0) == "train"


def test_the_recipe_is_without_sites_machines_and_what_decides_only_whether_a_recording_survives(
    tmp_path: Path,
) -> None:
    config = CorpusConfig.parse({"bids_root": tmp_path, "out_dir": tmp_path / "out"}, "test")
    recipe = recipe_config(config)
    assert {"eeg", "fmri", "participants_columns", "split_fractions", "seed", "min_seconds"} <= set(recipe)
    others = {
        "read_timeout_seconds": 9, "site_timeout_seconds": 99, "read_memory_gb": 3, "on_error": "stop",
        "max_quarantined": 0.5, "subjects": ["1"], "exclude": ["x"], "derivatives": "none", "workers": 3,
    }  # fmt: skip
    assert recipe_config(config.model_copy(update=others)) == recipe
    assert recipe_config(config.model_copy(update={"seed": 1})) != recipe


def test_the_digest_of_the_code_follows_every_file_that_decides_stored_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = room.ROOT / "mcsp" / "data_sharding"
    names = ["schema.py", *(f"data_sharding/{file.relative_to(folder)}" for file in folder.rglob("*.py"))]
    for name in names:
        copy = tmp_path / "mcsp" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((room.ROOT / "mcsp" / name).read_bytes())
    before = code_digest()
    monkeypatch.setattr(room, "ROOT", tmp_path)
    assert code_digest() == before
    decides = {
        "schema.py", "data_sharding/build/shards.py", "data_sharding/clean/eeg.py",
        "data_sharding/bids/tables.py", "data_sharding/parcels/series.py",
    }  # fmt: skip
    for name in (*decides, "data_sharding/inspect/report.py", "data_sharding/store/index.py"):
        file = tmp_path / "mcsp" / name
        content = file.read_bytes()
        file.write_bytes(content + b"#")
        assert (code_digest() != before) == (name in decides), name
        file.write_bytes(content)


def test_cells_of_participants_are_numbers_where_those_are_finite_and_texts_otherwise(tmp_path: Path) -> None:
    cells = ["12", "1e2", "inf", "nan", "12 y", "-0.5"]
    write_site(tmp_path / "a", 6, columns={"x": cells})
    plan = plan_of(tmp_path, participants_columns=["x"])
    found = {
        s.recordings[0].entities["subject"]: json.loads(s.participant)["x"] for h in plan.shards for s in h.samples
    }
    assert [found[f"{i:02d}"] for i in range(6)] == [12.0, 100.0, "inf", "nan", "12 y", -0.5]


def test_a_fault_of_one_dataset_costs_its_own_recordings_and_is_told(tmp_path: Path) -> None:
    for name in "ab":
        write_site(tmp_path / name, 2, columns={"group": ["x", "y"]})
    (tmp_path / "a/participants.tsv").write_bytes(b"participant_id\tgroup\nsub-00\t\xff\n")
    plan = plan_of(tmp_path, participants_columns=["group"])
    faults = {site.name: site.fault for site in plan.sites}
    assert faults["b"] is None and faults["a"] is not None and faults["a"][0] == "bad-encoding"
    assert len(plan.notes) == 1
    assert plan.notes[0].startswith("a: participants.tsv: line 2") and plan.notes[0].endswith("recordings is stored")
    assert plan.found == {"a": 2, "b": 2}, "they are planned, and rejected with the reason"


def test_recordings_of_a_sample_are_in_order_of_modality_and_name(tmp_path: Path) -> None:
    write_site(tmp_path / "a", 1, sessions=("1",))
    eeg = tmp_path / "a/sub-00/ses-1/eeg"
    (eeg / "sub-00_ses-1_task-a_eeg.edf").touch()
    (tmp_path / "a/sub-00/ses-1/afunc").mkdir()
    (tmp_path / "a/sub-00/ses-1/afunc/sub-00_ses-1_task-rest_bold.nii.gz").touch()
    [sample] = [s for shard in plan_of(tmp_path).shards for s in shard.samples]
    assert [ref.path.name.split("_", 2)[2] for ref in sample.recordings] == [
        "task-a_eeg.edf", "task-rest_eeg.edf", "task-rest_bold.nii.gz",
    ]  # fmt: skip
    assert sample.key == f"a_{sample.subject}_1" and sample.session == "1"
