"""A site of files that never end costs a set time and not the build."""

import os
from pathlib import Path

import pytest

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.write import write_eeg, write_json
from mcsp.data_sharding.build.plan import make_plan
from mcsp.data_sharding.build.shards import build_shard, reading_limits
from mcsp.data_sharding.clean.read import USED_UP, ReadingProcess, SiteTime
from mcsp.data_sharding.store.index import SHARDS_NAME
from tests.data_sharding.conftest import CHANNELS, DESCRIPTION, KEY, eeg_uv


def test_losses_are_seen_by_all_and_forgotten_at_the_next_start(tmp_path: Path) -> None:
    config = CorpusConfig(bids_root=tmp_path, out_dir=tmp_path, read_timeout_seconds=100, site_timeout_seconds=150)
    one, other = SiteTime(config), SiteTime(config)
    one.lose("a")
    one.require("a")
    one.lose("a")
    for worker in (one, other):
        with pytest.raises(RecordingError, match="have cost 200 s, expected less than site_timeout_seconds = 150"):
            worker.require("a")
        worker.require("b")
    one.forget()
    SiteTime(config).require("a")


def test_the_rest_of_a_hanging_site_is_not_read_and_other_sites_are(tmp_path: Path) -> None:
    """Tables that are pipes without a writer: a reader waits for ever."""
    for site, hangs in (("hanging", range(1, 6)), ("sound", range(0))):
        root = tmp_path / "bids" / site
        write_json(root / "dataset_description.json", DESCRIPTION)
        for subject in range(1, 6):
            uv_CT = eeg_uv(15, seed=subject + 10 * len(site))
            path = write_eeg(root, str(subject), "rest", uv_CT, CHANNELS, {"SamplingFrequency": 250})
            if subject in hangs:
                table = path.with_name(f"sub-{subject}_task-rest_channels.tsv")
                table.unlink()
                os.mkfifo(table)
    config = CorpusConfig(
        bids_root=tmp_path / "bids", out_dir=tmp_path / "corpus", read_timeout_seconds=4, site_timeout_seconds=8,
        split_fractions=(1, 0, 0),
    )  # fmt: skip
    (tmp_path / "corpus" / SHARDS_NAME).mkdir(parents=True)
    (shard,) = make_plan(config, KEY.encode()).shards
    with ReadingProcess(config) as process:
        receipt = build_shard(shard, config, process)
    assert receipt.sites == {"hanging": [0, 5, 0.0], "sound": [5, 0, pytest.approx(5 * 15 / 3600)]}
    assert [row["reason"] for row in receipt.rejected] == ["timeout"] * 5
    assert sum(row["detail"].startswith(USED_UP) for row in receipt.rejected) == 3
    assert receipt.limits == [] != reading_limits(config)  # another run asks again
