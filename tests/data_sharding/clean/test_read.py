"""A file that hangs, crashes or floods its reader costs itself alone: real processes that really do so.

Covers: data_sharding/clean/child.py
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.find import find_recordings
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import RecordingRef, Site
from mcsp.data_sharding.bids.write import write_eeg, write_json
from mcsp.data_sharding.clean.child import fingerprint, read_recording
from mcsp.data_sharding.clean.read import ReadingProcess

CHANNELS = ["Fp1", "Fp2", "C3", "C4", "O1", "O2", "T3"]


def eeg_uv() -> np.ndarray:
    """Twenty seconds at 250 Hz."""
    return np.random.default_rng(0).normal(0, 20, (len(CHANNELS), 5000))


@pytest.fixture(scope="module")
def refs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RecordingRef]:
    """Subjects: a sound recording, a table that is a pipe without a writer, and 1.4 GB of zeros."""
    root = tmp_path_factory.mktemp("site")
    write_json(root / "dataset_description.json", {"Name": "x", "BIDSVersion": "1.10.0"})
    sidecar = {"SamplingFrequency": 250}
    write_eeg(root, "sound", "rest", eeg_uv(), CHANNELS, sidecar)
    hanging = write_eeg(root, "hanging", "rest", eeg_uv(), CHANNELS, sidecar)
    table = hanging.with_name("sub-hanging_task-rest_channels.tsv")
    table.unlink(missing_ok=True)
    os.mkfifo(table)
    large = write_eeg(root, "large", "rest", eeg_uv(), CHANNELS, sidecar)
    n_records, header = 400_000, 256 * (1 + len(CHANNELS))
    record_bytes = (large.stat().st_size - header) // int(large.read_bytes()[236:244])
    with open(large, "r+b") as file:
        file.seek(236)
        file.write(str(n_records).ljust(8).encode())
        file.truncate(header + n_records * record_bytes)  # a hole: takes no room on the disk
    return {ref.entities["subject"]: ref for ref in find_recordings(Site("x", root, False, None))}


@pytest.fixture(scope="module")
def process() -> Iterator[ReadingProcess]:
    # A busy machine may need long to fill two gigabytes: only the test of the timeout has a short one.
    config = CorpusConfig(bids_root=Path("a"), out_dir=Path("b"), read_timeout_seconds=120, read_memory_gb=2)
    with ReadingProcess(config) as process:
        yield process


def test_the_other_process_reads_the_same_and_serves_many(
    refs: dict[str, RecordingRef], process: ReadingProcess
) -> None:
    first = process.read(refs["sound"])
    assert process.process is not None
    pid = process.process.pid
    again = process.read(refs["sound"])
    assert process.process.pid == pid
    here = read_recording(refs["sound"], process.config)
    for there in (first, again):
        np.testing.assert_array_equal(there.x_TC, here.x_TC)
        assert there.channels == here.channels and there.valid_spans == here.valid_spans
    assert process.fingerprint() == fingerprint()


def test_each_recording_has_a_scratch_folder_that_vanishes(
    refs: dict[str, RecordingRef], process: ReadingProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with ReadingProcess(process.config) as own:
        places: set[Path] = set()
        done = threading.Event()

        def watch() -> None:
            """See the folders, and leave a file in one, as a reader may."""
            while not done.is_set():
                for place in tmp_path.glob("mcsp-reading-*"):
                    with suppress(OSError):
                        (place / "left.txt").touch()
                    places.add(place)

        watcher = threading.Thread(target=watch)
        watcher.start()
        for _ in range(3):
            own.read(refs["sound"])
        done.set()
        watcher.join()
        assert len(places) == 3
    assert list(tmp_path.glob("mcsp-reading-*")) == []


def test_a_hang_is_ended_and_the_next_file_is_read(refs: dict[str, RecordingRef], process: ReadingProcess) -> None:
    with ReadingProcess(process.config.model_copy(update={"read_timeout_seconds": 5})) as impatient:
        with pytest.raises(RecordingError, match="not read within 5 s") as caught:
            impatient.read(refs["hanging"])
        assert caught.value.reason == "timeout"
        assert len(impatient.read(refs["sound"]).channels) == len(CHANNELS)


def test_memory_is_limited(refs: dict[str, RecordingRef], process: ReadingProcess) -> None:
    with pytest.raises(RecordingError, match="read_memory_gb = 2") as caught:
        process.read(refs["large"])
    assert caught.value.reason == "out-of-memory"
    assert len(process.read(refs["sound"]).channels) == len(CHANNELS)


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGSEGV, "native-crash"), (signal.SIGKILL, "out-of-memory")], ids=lambda x: str(x)
)
def test_a_death_is_confirmed_by_a_second_one(
    refs: dict[str, RecordingRef], process: ReadingProcess, number: signal.Signals, reason: str
) -> None:
    """The reader stands still in the pipe while a real signal ends it, twice."""
    pipe, killed = refs["hanging"].companions["channels.tsv"][-1], []
    done = threading.Event()

    def kill() -> None:
        """End whoever reads from the pipe."""
        while not done.wait(0.1):
            try:  # succeeds once somebody waits to read
                writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                continue
            assert process.process is not None
            killed.append(process.process.pid)
            os.kill(process.process.pid, number)
            process.process.wait()
            os.close(writer)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(RecordingError, match=number.name) as caught:
            process.read(refs["hanging"])
    finally:
        done.set()
        killer.join()
    assert caught.value.reason == reason and len(set(killed)) == 2
    assert len(process.read(refs["sound"]).channels) == len(CHANNELS)


def test_one_death_alone_costs_nothing(refs: dict[str, RecordingRef], process: ReadingProcess) -> None:
    process.read(refs["sound"])
    assert process.process is not None
    os.kill(process.process.pid, signal.SIGKILL)
    time.sleep(0.2)
    assert len(process.read(refs["sound"]).channels) == len(CHANNELS)
