"""Encoding of values, and the clock of simultaneous recordings.

Covers: data_sharding/build/samples.py
"""

import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import webdataset

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.ref import RecordingRef, Site, acquisition_time
from mcsp.data_sharding.bids.write import write_eeg, write_json, write_participants, write_tsv
from mcsp.data_sharding.build.plan import make_plan
from mcsp.data_sharding.build.samples import onset_seconds
from mcsp.data_sharding.build.shards import _count_sites, _rounded, add_members, build_shard
from mcsp.data_sharding.clean.read import ReadingProcess
from mcsp.data_sharding.store.index import SHARDS_NAME, Rejection
from mcsp.schema import Modality
from tests.data_sharding.conftest import CHANNELS, DESCRIPTION, eeg_uv
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
