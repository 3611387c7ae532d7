"""Encoding of values, and the clock of simultaneous recordings.

Covers: data_sharding/build/shards.py
"""

import io
import json
import math
import tarfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import webdataset

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.ref import RecordingRef, Site, acquisition_time
from mcsp.data_sharding.bids.write import write_eeg, write_json, write_participants, write_tsv
from mcsp.data_sharding.build.plan import PlannedSample, make_plan
from mcsp.data_sharding.build.shards import (
    SampleRecording,
    _count_sites,
    _encode_sample,
    _limits_of,
    _locate,
    _rounded,
    add_members,
    build_shard,
    onset_seconds,
    reading_limits,
)
from mcsp.data_sharding.clean.read import USED_UP, ReadingProcess
from mcsp.data_sharding.clean.recording import CleanRecording
from mcsp.data_sharding.store.index import SHARDS_NAME, Rejection
from mcsp.data_sharding.store.reader import Corpus
from mcsp.schema import Modality, Recording
from tests.data_sharding.conftest import CHANNELS, DESCRIPTION, KEY, eeg_uv, make_config, write_paired_site
from tests.test_batch import window


def times(root: Path, starts: dict[str, str]) -> list[tuple[Modality, float, float]]:
    """Recordings of a minute; ``starts`` maps ``eeg-1`` and the like to an acquisition time."""
    table = root / "sub-1_scans.tsv"
    write_tsv(table, ("filename", "acq_time"), starts.items())
    site = Site("s", root, False, None)
    modalities: dict[str, Modality] = {"eeg": "eeg", "fmri": "fmri"}
    refs = [
        RecordingRef(site, root / name, modalities[name.split("-")[0]], {}, {"scans.tsv": (table,)}) for name in starts
    ]
    return [(ref.modality, acquisition_time(ref), 60.0) for ref in refs]


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        ({"eeg-1": "2020-01-01T10:00:00", "fmri-1": "2020-01-01T10:00:05.5"}, [0.0, 5.5]),
        ({"eeg-1": "2020-01-01T10:00:30Z", "fmri-1": "2020-01-01T11:00:00+01:00"}, [30.0, 0.0]),
        ({"eeg-1": "2020-01-01T10:00:00", "fmri-1": "2020-01-01T10:01:00"}, [np.nan, np.nan]),
        ({"eeg-1": "2020-01-01T10:00:00", "eeg-2": "2020-01-01T10:00:00"}, [np.nan, np.nan]),
        ({"eeg-1": "n/a", "fmri-1": "2020-01-01T10:00:00"}, [np.nan, np.nan]),
        ({"eeg-1": "this morning", "fmri-1": "2020-01-01T10:00:00"}, [np.nan, np.nan]),
        (
            {"eeg-1": "2020-01-01T09:00:00", "eeg-2": "2020-01-01T10:00:10", "fmri-1": "2020-01-01T10:00:00",
             "eeg-3": "2020-01-01T11:00:07", "fmri-2": "2020-01-01T11:00:00"},
            [np.nan, 10.0, 0.0, 3607.0, 3600.0],
        ),
    ],
)  # fmt: skip
def test_only_overlapping_recordings_of_both_modalities_share_a_clock(
    tmp_path: Path, starts: dict[str, str], expected: list[float]
) -> None:
    np.testing.assert_array_equal(onset_seconds(times(tmp_path, starts)), expected)


def test_an_unreadable_scans_table_costs_the_pairing_alone(tmp_path: Path) -> None:
    table = tmp_path / "sub-1_scans.tsv"
    table.write_bytes(b"filename\tacq_time\n\xff\xff\n")
    ref = RecordingRef(Site("s", tmp_path, False, None), tmp_path / "eeg-1", "eeg", {}, {"scans.tsv": (table,)})
    assert np.isnan(acquisition_time(ref))


def test_a_shard_of_which_nothing_survives_is_not_written(config: CorpusConfig) -> None:
    (config.out_dir / SHARDS_NAME).mkdir(parents=True)
    plan = make_plan(config.model_copy(update={"samples_per_shard": 1}), b"some key for this test")
    (shard,) = [s for s in plan.shards if s.samples[0].recordings[0].file.startswith("sub-05")]
    with ReadingProcess(config) as process:
        receipt = build_shard(shard, config, process)
    assert receipt.shard is None and receipt.rows == []
    assert [r["reason"] for r in receipt.rejected] == ["flat"]
    assert list((config.out_dir / SHARDS_NAME).iterdir()) == []


def test_what_may_identify_a_person_keeps_its_recording_out_and_no_other(tmp_path: Path) -> None:
    root = tmp_path / "bids" / "a"
    write_json(root / "dataset_description.json", DESCRIPTION)
    dated = [*CHANNELS[:-1], "12.05.1987"]
    for subject, channels in (("1", CHANNELS), ("2", dated), ("3", CHANNELS)):
        sidecar = {"SamplingFrequency": 250, "PowerLineFrequency": 50}
        write_eeg(root, subject, "rest", eeg_uv(15, seed=int(subject)), channels, sidecar)
    write_tsv(root / "sub-2/eeg/sub-2_electrodes.tsv", ("name", "x", "y", "z"), [(dated[-1], 0, 20, 90)])
    system = {"EEGCoordinateSystem": "CapTrak", "EEGCoordinateUnits": "mm"}
    write_json(root / "sub-2/eeg/sub-2_coordsystem.json", system)
    write_participants(root, {"note": {}}, [("sub-1", "well"), ("sub-2", "well"), ("sub-3", "file 0012345678")])
    config = CorpusConfig(bids_root=root.parent, out_dir=tmp_path / "corpus", participants_columns=["note"])
    (config.out_dir / SHARDS_NAME).mkdir(parents=True)
    found, stored = {}, 0
    with ReadingProcess(config) as process:
        for shard in make_plan(config, b"some key for this test").shards:
            receipt = build_shard(shard, config, process)
            found |= {row["file"][:5]: (row["reason"], row["detail"]) for row in receipt.rejected}
            stored += len(receipt.rows)
    reason = "suspected-personal-data"
    assert stored == 1 and found == {
        "sub-2": (reason, "channel: date like '99.99.9999'"),
        "sub-3": (reason, "participants.tsv: note: record number like '9999999999'"),
    }


def test_the_tar_is_the_one_that_webdatasets_own_writer_makes(tmp_path: Path) -> None:
    members = {"json": b"{}", "eeg-0.npy": bytes(700), "fmri-0.npy": b"abc"}
    with open(tmp_path / "theirs.tar", "wb") as file:
        writer = webdataset.TarWriter(file, user="mcsp", group="mcsp", mode=0o444, encoder=False, mtime=0)
        for key in ("a", "b" * 120):
            writer.write({"__key__": key, **members})
        writer.close()
    with tarfile.open(tmp_path / "ours.tar", "w") as tar:
        for key in ("a", "b" * 120):
            add_members(tar, key, members)
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "theirs.tar").read_bytes()


def test_places_in_the_metadata_are_those_of_the_table_micrometre_by_micrometre() -> None:
    for dtype in (np.float32, np.float64):
        places = np.array([12.34567, -0.0004, np.nan], dtype)
        assert str(_rounded(places.tobytes(), str(places.dtype))[0]) == "[12.346, -0.0, nan]"


def test_sites_are_counted_with_the_hours_that_are_stored() -> None:
    row = window(sfreq=200.0).recording
    rows = [replace(row, site=site, n_samples=hours * 720_000) for site, hours in (("a", 1), ("a", 2), ("b", 4))]
    samples = [SimpleNamespace(site=SimpleNamespace(name=site)) for site in "abbc"]
    planned: Any = SimpleNamespace(samples=samples)
    rejected = [Rejection("b", "x.edf", "eeg", "flat", "")]
    assert _count_sites(planned, rows, rejected) == {"a": [2, 0, 3.0], "b": [1, 1, 4.0], "c": [0, 0, 0.0]}


def test_a_shard_and_its_rows_are_what_tarfile_and_numpy_read_of_it(tmp_path: Path) -> None:
    """Names by the beginning of the hash, offsets, checksums of every block, and the same text beside the arrays."""
    write_paired_site(tmp_path / "bids" / "a", 2)
    config = make_config(tmp_path / "bids", tmp_path / "corpus").model_copy(update={"split_fractions": (1, 0, 0)})
    folder = tmp_path / "corpus" / SHARDS_NAME
    folder.mkdir(parents=True)
    [planned] = make_plan(config, KEY.encode()).shards
    with ReadingProcess(config) as process:
        receipt = build_shard(planned, config, process)
    rows, shard = [Recording(**row) for row in receipt.rows], receipt.shard
    assert shard is not None and receipt.digest == planned.digest and receipt.limits is None and not receipt.rejected
    path = folder / shard["name"]
    content = path.read_bytes()
    assert shard["sha256"] == sha256(content).hexdigest() and shard["bytes"] == len(content)
    assert path.name == f"train-00001-{shard['sha256'][:12]}.tar" and len(rows) == shard["recordings"] == 4
    assert shard["samples"] == 2 and receipt.sites == {"a": [4, 0, pytest.approx((2 * 60 + 2 * 40 * 1.5) / 3600)]}
    with tarfile.open(path) as archive:
        members = {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
    expected: list[int] = []
    for row, (site, file, digest) in zip(rows, receipt.contents, strict=True):
        array_TC = np.load(io.BytesIO(members[row.member]))
        assert array_TC.shape == (row.n_samples, row.n_channels) and array_TC.dtype == np.dtype("<f2")
        assert content[row.byte_offset :][: array_TC.nbytes] == array_TC.tobytes() and row.shard == path.name
        assert (site, file[:4], digest) == ("a", "sub-", sha256(members[row.member]).hexdigest()[:32])
        assert row.crc_offset == len(expected) and row.block_samples == {"eeg": 400, "fmri": 10}[row.modality]
        starts = range(0, row.n_samples, row.block_samples)
        expected += [crc32(array_TC[start : start + row.block_samples].tobytes()) for start in starts]
        told = json.loads(members[f"{row.key}.json"])
        for name in ("key", "site", "subject", "session", "split", "simulated"):
            assert told[name] == getattr(row, name)
        [of_row] = [entry for entry in told["recordings"] if entry["member"] == row.member]
        for name in ("modality", "task", "run", "sfreq", "unit", "scale", "n_samples", "n_channels", "valid_spans",
                     "space", "channels", "channel_good", "onset_seconds"):  # fmt: skip
            assert of_row[name] == getattr(row, name)
        assert told["participant"] == json.loads(row.participant) and told["schema_version"] == 2
        places = [math.nan if value is None else value for value in of_row["positions_mm"]]
        np.testing.assert_array_equal(places, row.positions_mm)
    crcs = np.load(path.with_suffix(".crc.npy"))
    assert crcs.tolist() == expected and crcs.dtype == np.dtype("<u4")


def test_an_array_that_reads_back_otherwise_stops_the_build(built: Path) -> None:
    corpus = Corpus(built)
    shard = corpus.index["shards"][0]["name"]
    rows = [row for row in corpus.recordings if row.shard == shard]
    path = built / SHARDS_NAME / shard
    crcs = np.load(path.with_suffix(".crc.npy")).tolist()
    assert _locate(path, shard, [replace(row, byte_offset=-1, shard="") for row in rows], crcs) == rows
    last = rows[-1]
    for wrong_rows, wrong_crcs in (
        (rows, [*crcs[:-1], crcs[-1] ^ 1]), (rows, crcs[:-1]), ([replace(last, n_samples=last.n_samples - 1)], crcs),
        ([replace(last, n_channels=last.n_channels + 1)], crcs),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="read back differs from what was written"):
            _locate(path, shard, wrong_rows, wrong_crcs)


def test_several_recordings_of_a_sample_are_numbered_by_modality_and_unknown_onsets_are_null() -> None:
    site = Site("a", Path("/a"), True, None)
    sample = PlannedSample("a_x", site, "x", "pre", "test", '{"age": 3.0}', ())

    def survivor(name: str, modality: Modality, onset: float, n: int) -> SampleRecording:
        clean = CleanRecording(
            np.arange(2.0 * n, dtype=np.float32).reshape(n, 2), 10.0, "uV", ["A", "B"], np.array([[1.0, 2, 3]] * 2),
            np.array([True, False]), [0, n], {"b": 2.0, "a": 1.0}, "MNI",
        )  # fmt: skip
        entities = {"task": "rest", "run": "1234567"} if name == "one" else {"task": "20190504"}
        return SampleRecording(RecordingRef(site, Path("/a") / name, modality, entities, {}), clean, onset)

    crcs = [7]
    survivors = [survivor("one", "eeg", 1.5, 3), survivor("two", "eeg", math.nan, 401), survivor("x", "fmri", 0.0, 2)]
    rows, members = _encode_sample(sample, survivors, crcs)
    assert list(members) == ["eeg-0.npy", "eeg-1.npy", "fmri-0.npy", "json"]
    assert [row.member for row in rows] == ["a_x.eeg-0.npy", "a_x.eeg-1.npy", "a_x.fmri-0.npy"]
    assert [(row.task, row.run) for row in rows] == [("rest", ""), ("", ""), ("", "")]  # labels that may be dates
    assert [row.crc_offset for row in rows] == [1, 2, 4] and len(crcs) == 5
    told = json.loads(members["json"])["recordings"]
    assert [entry["onset_seconds"] for entry in told] == [1.5, None, 0.0]
    assert rows[0].quality == '{"a": 1.0, "b": 2.0}' and rows[0].positions_mm == [1.0, 2.0, 3.0] * 2
    assert rows[0].channel_good == [True, False] and rows[1].block_samples == 400 and rows[2].block_samples == 10
    assert _encode_sample(sample, [], crcs) == ([], {})


@pytest.mark.parametrize(
    ("rejected", "limits"),
    [
        ([], None), ([("flat", "x")], None), ([("timeout", "slow")], True),
        ([("flat", "x"), ("out-of-memory", "x")], True),
        ([("native-crash", "x")], True), ([("timeout", "slow"), ("timeout", f"{USED_UP}: x")], []),
        ([("flat", USED_UP)], None),
    ],
)  # fmt: skip
def test_what_failed_for_its_limits_is_read_again_under_others(
    config: CorpusConfig, rejected: list[tuple[str, str]], limits: list[float] | bool | None
) -> None:
    config = config.model_copy(update={"read_timeout_seconds": 1.0, "site_timeout_seconds": 2.0, "read_memory_gb": 3.0})
    assert reading_limits(config) == [1.0, 2.0, 3.0]
    found = _limits_of([Rejection("a", "x", "eeg", *reason) for reason in rejected], config)
    assert found == ([1.0, 2.0, 3.0] if limits is True else limits)
