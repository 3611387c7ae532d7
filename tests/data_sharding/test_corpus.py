"""The whole build: same bytes, nothing lost, nothing silently kept."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import webdataset

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids import read_tsv
from mcsp.data_sharding.corpus import BUILD_NAME, build_corpus
from mcsp.data_sharding.lint import lint_corpus
from mcsp.data_sharding.reader import Corpus
from mcsp.data_sharding.seal import PRIVATE_NAME


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
    originals = read_tsv(built / ".build" / PRIVATE_NAME)
    rejected = {(r["site"], r["original_file"]): r["reason"] for r in originals}
    listed = [{name: r[name] for name in ("site", "file", "reason")} for r in corpus.index["rejected"]]
    assert sorted(listed, key=str) == sorted(
        ({n: r[n] for n in ("site", "file", "reason")} for r in originals), key=str
    )
    expected = {("damaged", file): reason for file, reason in expected_reasons.items()}
    expected["images", "sub-03/func/sub-03_task-rest_bold.nii.gz"] = "t_r-mismatch"
    assert rejected == expected
    assert all(r["detail"] and "\n" not in r["detail"] for r in corpus.index["rejected"])
    stored = {site: counts["recordings"] for site, counts in corpus.index["totals"]["sites"].items()}
    assert stored == {"paired": 8, "images": 2, "damaged": 1}
    assert sum(corpus.index["reasons"].values()) == len(expected)


def test_nothing_of_the_inputs_identity_is_in_the_corpus(built: Path, bids_root: Path) -> None:
    text = "".join(content.decode("latin-1") for content in corpus_files(built).values())
    for secret in ("sub-01", "name-01", "2019", str(bids_root), os.environ["MCSP_SUBJECT_KEY"]):
        assert secret not in text


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
    (config.out_dir / BUILD_NAME / f"{shards[2].name}.json").unlink()  # shard without its receipt
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


@pytest.mark.parametrize("change", [{"seed": 1}, {"samples_per_shard": 2}, {"participants_columns": []}])
def test_another_plan_is_refused_in_the_same_folder(copied: Path, config: CorpusConfig, change: dict) -> None:
    with pytest.raises(ValueError, match="holds a corpus of another configuration"):
        build_corpus(config.model_copy(update={"out_dir": copied, **change}))
    assert lint_corpus(copied) == []


def test_a_changed_input_is_refused_in_the_same_folder(
    tmp_path: Path, bids_root: Path, copied: Path, config: CorpusConfig
) -> None:
    other = tmp_path / "bids"
    shutil.copytree(bids_root, other)
    (other / "paired/sub-01/eeg/sub-01_task-rest_channels.tsv").write_text("name\ttype\tstatus\nFp1\tEEG\tbad\n")
    with pytest.raises(ValueError, match="another configuration"):
        build_corpus(config.model_copy(update={"out_dir": copied, "bids_root": other}))


def test_a_folder_with_other_files_is_left_alone(config: CorpusConfig) -> None:
    config.out_dir.mkdir()
    (config.out_dir / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="not empty and no unfinished build"):
        build_corpus(config)
    assert [p.name for p in config.out_dir.iterdir()] == ["thesis.txt"]
