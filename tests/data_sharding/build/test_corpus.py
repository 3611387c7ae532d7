"""The whole build: same bytes, nothing lost, nothing silently kept.

Covers: data_sharding/build/receipts.py
"""

import fcntl
import json
import os
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import webdataset

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.tables import read_tsv
from mcsp.data_sharding.build.corpus import build_corpus, start_patiently
from mcsp.data_sharding.build.seal import PRIVATE_NAME, TooManyQuarantinedError
from mcsp.data_sharding.inspect.lint import lint_corpus
from mcsp.data_sharding.store.index import BUILD_NAME, read_rejected
from mcsp.data_sharding.store.reader import Corpus


def corpus_files(folder: Path) -> dict[str, bytes]:
    """Every file of a corpus but the state of its build."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files if BUILD_NAME not in p.parts}


def test_building_twice_gives_identical_bytes(built: Path, config: CorpusConfig) -> None:
    _, was_there = build_corpus(config.model_copy(update={"workers": 1}))
    assert not was_there
    first, second = corpus_files(built), corpus_files(config.out_dir)
    assert len([name for name in first if name.endswith(".tar")]) >= 5
    assert first == second


def test_every_bad_recording_is_listed_with_its_reason_and_the_others_survive(
    built: Path, expected_reasons: dict[str, str]
) -> None:
    corpus = Corpus(built)
    originals = read_tsv(built / BUILD_NAME / PRIVATE_NAME)
    rejected = {(r["site"], r["original_file"]): r["reason"] for r in originals}
    listed = sorted((r.site, r.file, r.reason) for r in read_rejected(built))
    assert listed == sorted((r["site"], r["file"], r["reason"]) for r in originals)
    expected = {("damaged", file): reason for file, reason in expected_reasons.items()}
    expected["images", "sub-03/func/sub-03_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"] = "t_r-mismatch"
    assert rejected == expected
    assert all(r["original_detail"] for r in originals)
    assert all(re.fullmatch(r"sub-[0-9a-f]{32}", r.file) for r in read_rejected(built))
    stored = {site: counts["recordings"] for site, counts in corpus.index["totals"]["sites"].items()}
    assert stored == {"paired": 8, "images": 2, "damaged": 1}
    assert sum(corpus.index["reasons"].values()) == len(expected)


def test_nothing_of_the_inputs_identity_is_in_the_corpus(built: Path, bids_root: Path) -> None:
    text = "".join(content.decode("latin-1") for content in corpus_files(built).values())
    for secret in ("sub-01", "name-01", "2019", str(bids_root), os.environ["MCSP_SUBJECT_KEY"]):
        assert secret not in text


@pytest.mark.filterwarnings("ignore:Exception ignored in.*FileIO:pytest.PytestUnraisableExceptionWarning")
def test_stock_webdataset_reads_the_same_arrays(built: Path) -> None:
    corpus = Corpus(built)
    seen = 0
    for shard in corpus.index["shards"]:
        for sample in webdataset.WebDataset(str(built / "shards" / shard["name"]), shardshuffle=False).decode():
            recordings = corpus.samples()[sample["__key__"]]
            assert sample["json"]["key"] == sample["__key__"]
            for r in recordings:
                array = sample[r.member.removeprefix(f"{r.key}.")]
                window = corpus.read_window(r, 0, r.n_samples)
                np.testing.assert_array_equal(array.astype(np.float32) * np.float32(r.scale), window.x_TC)
                seen += 1
    assert seen == len(corpus.recordings) == 11


def test_simultaneous_recordings_share_a_clock_and_labels_go_along(built: Path) -> None:
    corpus = Corpus(built)
    paired = [r for r in corpus.recordings if r.site == "paired"]
    assert {(r.modality, r.onset_seconds) for r in paired} == {("eeg", 0.0), ("fmri", 3.0)}
    assert all(corpus.participant(r) == {"diagnosis": "case"} and r.simulated for r in paired)
    assert all(np.isnan(r.onset_seconds) and not r.simulated for r in corpus.recordings if r.site != "paired")


def test_an_interrupted_build_continues_and_ends_with_the_same_bytes(
    built: Path, copied: Path, config: CorpusConfig
) -> None:
    shutil.move(copied, config.out_dir)
    shards = sorted((config.out_dir / "shards").glob("*.tar"))
    (config.out_dir / "index.json").unlink()
    shards[0].unlink()  # receipt without its shard
    content = bytearray(shards[1].read_bytes())
    content[700] ^= 1  # shard that is not what the receipt says
    shards[1].chmod(0o644)
    shards[1].write_bytes(content)
    (config.out_dir / BUILD_NAME / "sealed.json").unlink()
    stem = shards[2].name.rpartition("-")[0]
    (config.out_dir / BUILD_NAME / "receipts" / f"{stem}.jsonl").unlink()  # shard without its receipt
    (config.out_dir / "shards" / f".{shards[0].name}.77.tmp").write_bytes(b"left by a killed worker")
    kept = shards[3].stat().st_mtime_ns
    build_corpus(config)
    assert corpus_files(config.out_dir) == corpus_files(built)
    assert shards[3].stat().st_mtime_ns == kept


def test_a_finished_build_returns_at_once(copied: Path, config: CorpusConfig) -> None:
    before = {p: p.stat().st_mtime_ns for p in copied.rglob("*")}
    index, was_there = build_corpus(config.model_copy(update={"out_dir": copied}))
    assert was_there
    assert index["index_hash"] == Corpus(copied).index_hash
    assert {p: p.stat().st_mtime_ns for p in copied.rglob("*")} == before


@pytest.mark.parametrize("change", [{"seed": 3}, {"samples_per_shard": 2}, {"participants_columns": []}])
def test_another_plan_is_refused_in_the_same_folder(copied: Path, config: CorpusConfig, change: dict) -> None:
    with pytest.raises(ValueError, match="holds a corpus of another configuration"):
        build_corpus(config.model_copy(update={"out_dir": copied, **change}))
    assert lint_corpus(copied) == []


def test_a_changed_recording_rewrites_its_shard_alone(
    tmp_path: Path, bids_root: Path, copied: Path, config: CorpusConfig
) -> None:
    other = tmp_path / "bids"
    shutil.copytree(bids_root, other)
    (other / "paired/sub-01/eeg/sub-01_task-rest_channels.tsv").write_text("name\ttype\tstatus\nFp1\tEEG\tbad\n")
    older = Corpus(copied)
    before = {p.name: p.stat().st_mtime_ns for p in (copied / "shards").iterdir()}
    index, was_there = build_corpus(config.model_copy(update={"out_dir": copied, "bids_root": other}))
    after = {p.name: p.stat().st_mtime_ns for p in (copied / "shards").iterdir()}
    assert not was_there and index["index_hash"] != older.index_hash
    gone, new = before.keys() - after.keys(), after.keys() - before.keys()
    assert len(gone) == len(new) == 2, "one tar and its checksums, under another hash"
    assert all(after[name] == before[name] for name in before.keys() & after.keys())
    bad = [(r.site, r.channels) for r in Corpus(copied).recordings if r.modality == "eeg" and not r.channel_good[0]]
    assert (bad[0][0], bad[0][1][0]) == ("paired", "Fp1")
    assert lint_corpus(copied) == []
    fresh = config.model_copy(update={"bids_root": other})
    build_corpus(fresh)
    assert corpus_files(fresh.out_dir) == corpus_files(copied)


def test_content_under_two_names_is_stored_once_and_comes_back(
    tmp_path: Path, bids_root: Path, config: CorpusConfig
) -> None:
    site, twin = tmp_path / "twins" / "paired", tmp_path / "twins" / "paired" / "sub-09"
    shutil.copytree(bids_root / "paired", site)
    shutil.copytree(site / "sub-02" / "eeg", twin / "eeg")
    for file in (twin / "eeg").iterdir():
        file.rename(file.with_name(file.name.replace("sub-02", "sub-09")))
    config = config.model_copy(update={"bids_root": site.parent})
    index, _ = build_corpus(config)
    (rejection,) = read_rejected(config.out_dir)
    (original,) = read_tsv(config.out_dir / BUILD_NAME / PRIVATE_NAME)
    assert (rejection.reason, original["original_file"]) == ("duplicate", "sub-09/eeg/sub-09_task-rest_eeg.edf")
    assert original["original_detail"] == "same content as sub-02/eeg/sub-02_task-rest_eeg.edf of site paired"
    assert index["totals"]["sites"]["paired"]["found"] == 9 == index["totals"]["all"]["recordings"] + 1
    assert lint_corpus(config.out_dir) == []
    assert build_corpus(config) == (index, True)
    (site / "sub-02/eeg/sub-02_task-rest_eeg.edf").unlink()
    build_corpus(config)
    assert list(read_rejected(config.out_dir)) == [] and len(Corpus(config.out_dir).recordings) == 8


def test_too_many_bad_recordings_fail_with_the_reasons_and_seal_nothing(config: CorpusConfig) -> None:
    strict = config.model_copy(update={"max_quarantined": 0.05})
    with pytest.raises(TooManyQuarantinedError, match=r"max_quarantined allows 5 %") as caught:
        build_corpus(strict)
    assert "damaged  flat" in str(caught.value)
    assert not (config.out_dir / "index.json").exists()
    status = json.loads((config.out_dir / BUILD_NAME / "status.json").read_text())
    assert status["state"] == "failed"
    sites = status["sites"]
    assert all(site["done"] == site["found"] for site in sites.values()) and sites["damaged"]["quarantined"] > 5
    assert status["shards"]["done"] == status["shards"]["total"] and status["seconds_left"] == 0
    index, _ = build_corpus(config)  # now they may be bad, and nothing is read again
    assert index["totals"]["sites"]["damaged"]["rejected"] == sites["damaged"]["quarantined"]


def test_on_error_raises_or_warns(config: CorpusConfig, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"(damaged|images)/sub-.*on_error: raise"):
        build_corpus(config.model_copy(update={"on_error": "raise"}))
    build_corpus(config.model_copy(update={"on_error": "warn"}))
    assert "warning: " in capfd.readouterr().err


def test_a_machine_that_computes_otherwise_is_named(copied: Path, config: CorpusConfig) -> None:
    (copied / BUILD_NAME / "sealed.json").unlink()
    (copied / BUILD_NAME / "fingerprint.txt").write_text("0" * 64)
    with pytest.raises(ValueError, match=rf"node {socket.gethostname()} computes other values"):
        build_corpus(config.model_copy(update={"out_dir": copied}))


def test_one_build_at_a_time_and_no_process_memory(copied: Path, config: CorpusConfig) -> None:
    with open(copied / BUILD_NAME / "lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another build of this corpus is running"):
            build_corpus(config.model_copy(update={"out_dir": copied}))
    with pytest.raises(ValueError, match="memory of one process"):
        build_corpus(config.model_copy(update={"out_dir": "memory://corpus"}))


def test_a_folder_with_other_files_is_left_alone(config: CorpusConfig) -> None:
    config.out_dir.mkdir()
    (config.out_dir / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="not empty and no build of a corpus"):
        build_corpus(config)
    assert [p.name for p in config.out_dir.iterdir()] == ["thesis.txt"]


def test_ray_that_needs_longer_to_start_is_started_again(capsys: pytest.CaptureFixture[str]) -> None:
    """The beginnings of Ray fail on a machine under load; what they raise is Ray's own."""
    outcomes = [ConnectionError("node timed out"), TimeoutError(), None]

    def start() -> None:
        if (error := outcomes.pop(0)) is not None:
            raise error

    start_patiently(start, "this machine", pause_seconds=0)
    assert outcomes == []
    assert capsys.readouterr().err.splitlines() == [
        "Ray at this machine: has not started (node timed out); trying again",
        "Ray at this machine: has not started (TimeoutError); trying again",
    ]
    outcomes = [RuntimeError(f"attempt {i}\nfailed") for i in range(3)]
    with pytest.raises(ValueError, match=r"^Ray at here: cannot start, tried 3 times \(attempt 2 failed\)"):
        start_patiently(start, "here", pause_seconds=0)
