"""A dataset in a public bucket is built as on the disk, read anonymously from a local server that speaks S3.

Covers: data_sharding/bids/remote.py
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.find import find_recordings, find_sites
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.remote import local_copy
from mcsp.data_sharding.bids.write import write_json, write_parcellated_bold, write_parcellation, write_tsv
from mcsp.data_sharding.build.plan import make_plan, public_config
from mcsp.data_sharding.build.shards import build_shard
from mcsp.data_sharding.clean.read import ReadingProcess
from mcsp.data_sharding.store.index import SHARDS_NAME
from tests.data_sharding.clean.test_eeg_files import SFREQ, signal_uv, write_file
from tests.data_sharding.conftest import DESCRIPTION, KEY, PARCELS, bold


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BrainVision and EEGLAB, each of several files; parcels; tables at several levels."""
    root = tmp_path_factory.mktemp("remote") / "ds000001"
    write_json(root / "dataset_description.json", DESCRIPTION)
    write_json(root / "task-rest_eeg.json", {"SamplingFrequency": SFREQ, "PowerLineFrequency": 50})
    write_tsv(root / "participants.tsv", ("participant_id", "group"), [(f"sub-{i}", "AB"[i % 2]) for i in (1, 2, 3)])
    write_file(root / "sub-1/eeg/sub-1_task-rest_eeg", ".vhdr", signal_uv(SFREQ))
    write_file(root / "sub-2/eeg/sub-2_task-rest_eeg", ".fdt", 2 * signal_uv(SFREQ))
    write_tsv(root / "sub-2/eeg/sub-2_task-rest_events.tsv", ("onset", "duration", "trial_type"), [(5, 2, "BAD_x")])
    write_parcellation(root, "Three", PARCELS, np.array([[-40.0, 0, 30], [40, 0, 30], [0, 20, 50]]))
    write_parcellated_bold(root, "3", "Three", PARCELS, bold(40), {"RepetitionTime": 1.5})
    return root


@pytest.fixture(scope="module")
def bucket(dataset: Path) -> Iterator[tuple[str, dict[str, object]]]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = {"endpoint_url": f"http://{host}:{port}"}
    import s3fs

    owner = s3fs.S3FileSystem(
        key="owner", secret="owner", client_kwargs=client, s3_additional_kwargs={"ACL": "public-read"},
        skip_instance_cache=True,
    )  # fmt: skip
    owner.mkdir("openneuro", acl="public-read")
    owner.put(str(dataset), "openneuro/ds000001", recursive=True)
    try:
        yield "s3://openneuro/ds000001", {"anon": True, "client_kwargs": client}
    finally:
        server.stop()


def built(path: object, options: dict[str, object], out: Path) -> tuple[bytes, list[str], list[dict[str, str]]]:
    """Tar, rows and repairs of a corpus of one shard."""
    sites = {"public": {"path": str(path), "storage_options": options}}
    values = {"sites": sites, "out_dir": out, "participants_columns": ["group"], "split_fractions": (1, 0, 0)}
    config = CorpusConfig.parse(values, "test")
    (out / SHARDS_NAME).mkdir(parents=True)
    plan = make_plan(config, KEY.encode())
    (shard,) = plan.shards
    with ReadingProcess(config) as process:
        receipt = build_shard(shard, config, process)
    assert receipt.rejected == [] and "client_kwargs" not in str(public_config(config))
    assert receipt.shard is not None
    return (out / SHARDS_NAME / receipt.shard["name"]).read_bytes(), [str(row) for row in receipt.rows], receipt.repairs


@pytest.mark.filterwarnings("ignore")
def test_a_bucket_gives_the_bytes_that_the_disk_gives(
    dataset: Path, bucket: tuple[str, dict[str, object]], tmp_path: Path
) -> None:
    there, here = built(*bucket, tmp_path / "there"), built(dataset, {}, tmp_path / "here")
    assert there == here and len(there[1]) == 3


def test_what_is_not_there_is_told_in_one_line(bucket: tuple[str, dict[str, object]], tmp_path: Path) -> None:
    url, options = bucket
    for path, message in ((f"{url}9", "nothing is there, expected a BIDS dataset"), ("none://x", "cannot be opened")):
        sites = {"public": {"path": path, "storage_options": options if path.startswith("s3") else {}}}
        with pytest.raises(ValueError, match=message) as caught:
            find_sites(CorpusConfig.parse({"sites": sites, "out_dir": "out"}, "test"), mirrors=tmp_path)
        assert "\n" not in str(caught.value)
    sites = {"public": {"path": url, "storage_options": options, "subjects": [1]}}
    (site,) = find_sites(CorpusConfig.parse({"sites": sites, "out_dir": "out"}, "test"), mirrors=tmp_path)
    (ref,) = find_recordings(site)
    absent = ref.path.with_name("sub-1_task-gone_eeg.vhdr")
    ref.companions["gone"] = (absent,)
    with pytest.raises(RecordingError, match="is not in s3://openneuro/ds000001") as missing, local_copy(ref):
        pass
    assert missing.value.reason == "missing-file"
