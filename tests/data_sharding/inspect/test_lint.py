"""Every kind of lie is found, and a sound corpus has none."""

import json
import os
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcsp.commands.main import launcher
from mcsp.data_sharding.inspect.lint import _metadata_lies, _table_lies, lint_corpus
from mcsp.data_sharding.store.files import location, scratch_folder
from mcsp.data_sharding.store.index import (
    SHARDS_NAME,
    index_hash,
    make_index,
    read_index,
    read_rejected,
    read_repairs,
    write_index,
)
from mcsp.data_sharding.store.reader import Corpus
from mcsp.data_sharding.store.table import Recordings
from mcsp.outside import sha256_file
from mcsp.schema import Recording, crc_name

main = launcher("lint")


def test_a_fresh_corpus_is_sound(built: Path) -> None:
    assert lint_corpus(built) == []


@pytest.mark.multirank
def test_several_processes_find_the_same(copied: Path) -> None:
    for name, offset in (("train", 0), ("test", 100)):
        r = next(r for r in Corpus(copied).recordings if r.split == name)
        path = copied / SHARDS_NAME / r.shard
        overwrite(path, r.byte_offset + offset, bytes([path.read_bytes()[r.byte_offset + offset] ^ 4]))
    lies = lint_corpus(copied)
    assert len(lies) == 4  # a hash and a block of each
    assert lint_corpus(copied, workers=2) == lies


def test_a_description_of_something_else_is_caught(copied: Path) -> None:
    file = copied / "dataset_description.json"
    sound = json.loads(file.read_text())
    made_otherwise = [{**sound["GeneratedBy"][0], "ConfigSHA256": "0" * 64}]
    for change in ({"GeneratedBy": made_otherwise}, {"SourceDatasets": sound["SourceDatasets"][1:]}):
        file.write_text(json.dumps({**sound, **change}))
        assert lint_corpus(copied) == [
            "dataset_description.json: GeneratedBy or the sites of SourceDatasets differ from index.json"
        ]
    file.unlink()
    assert len(lint_corpus(copied)) == 1


def test_an_object_store_is_read_as_a_folder_is(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"memory://linted-{built.parent.name}/corpus"
    remote = location(url)
    for file in built.rglob("*"):
        if file.is_file() and ".build" not in file.parts:
            (remote / file.relative_to(built).as_posix()).write_bytes(file.read_bytes())
    assert main([url]) == 0 and main([url, "--privacy"]) == 0, capsys.readouterr().out
    r = Corpus(built).recordings[0]
    shard = remote / SHARDS_NAME / r.shard
    content = bytearray(shard.read_bytes())
    content[r.byte_offset] ^= 1
    shard.write_bytes(bytes(content))
    capsys.readouterr()
    assert main([url]) == 1
    lies = capsys.readouterr().out.splitlines()
    assert len(lies) == 3 and "SHA-256" in lies[0] and lies[1] == f"{r.member}: block 0 does not match its CRC-32"
    shard.unlink()
    assert main([url]) == 1 and "missing" in capsys.readouterr().out


def overwrite(path: Path, offset: int, content: bytes) -> None:
    path.chmod(0o644)
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


def first(corpus: Path) -> tuple[Recording, Path]:
    recording = Corpus(corpus).recordings[0]
    return recording, corpus / SHARDS_NAME / recording.shard


def rewrite(corpus: Path, index: dict[str, Any], rows: list[Recording]) -> None:
    """Other rows under the old totals, as a mistake of the builder would leave them."""
    simulated = {site: counts["simulated"] for site, counts in index["totals"]["sites"].items()}
    described = {**index, "simulated": simulated}
    with scratch_folder(corpus) as scratch:
        made, tables = make_index(described, rows, list(read_rejected(corpus)), list(read_repairs(corpus)), scratch)
        write_index(corpus, {**made, "totals": index["totals"]}, tables)


def accept(corpus: Path) -> None:
    """Make the index agree with changed shards, as a forger would."""
    index = read_index(corpus)
    for shard in index["shards"]:
        path = corpus / SHARDS_NAME / shard["name"]
        shard |= {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    index["index_hash"] = index_hash(index["shards"])
    rewrite(corpus, index, list(Corpus(corpus).recordings))


def test_every_flipped_byte_of_a_payload_is_caught_even_under_a_forged_hash(copied: Path) -> None:
    r, path = first(copied)
    overwrite(path, r.byte_offset + 17, bytes([path.read_bytes()[r.byte_offset + 17] ^ 4]))
    assert any("SHA-256" in lie for lie in lint_corpus(copied))
    accept(copied)
    assert lint_corpus(copied) == [f"{r.member}: block 0 does not match its CRC-32"]


def test_non_finite_values_are_caught_even_under_a_forged_checksum(copied: Path) -> None:
    r, path = first(copied)
    nan = np.array([np.nan], dtype="<f2").tobytes()
    overwrite(path, r.byte_offset, nan)

    crcs = np.load(path.with_name(crc_name(path.name)))
    crcs[r.crc_offset] = zlib.crc32(
        path.read_bytes()[r.byte_offset :][: min(r.block_samples, r.n_samples) * r.n_channels * 2]
    )
    np.save(path.with_name(crc_name(path.name)), crcs)
    accept(copied)
    assert lint_corpus(copied) == [f"{r.member}: block 0 holds values that are not finite"]


Change = Callable[[Recording], dict[str, Any]]
CHANGES: list[tuple[Change, str]] = [
    (lambda r: {"byte_offset": r.byte_offset + 2}, "header, offset or size"),
    (lambda r: {"n_samples": r.n_samples - 1}, "header, offset or size"),
    (lambda r: {"scale": 0.0}, "field scale is wrong"),
    (lambda r: {"scale": r.scale * 2}, "differ from recordings.arrow"),
    (lambda r: {"subject": "sub-01"}, "field subject is wrong"),
    (lambda r: {"unit": "V"}, "field unit is wrong"),
    (lambda r: {"channels": r.channels[1:]}, "field channels is wrong"),
    (lambda r: {"valid_spans": [5, 3]}, "field valid_spans is wrong"),
    (lambda r: {"quality": '{"amplitude": "high"}'}, "field quality is wrong"),
    (lambda r: {"crc_offset": r.crc_offset + 1}, "does not match its CRC-32"),
    (lambda r: {"split": "train" if r.split != "train" else "test"}, "totals.splits"),
    (lambda r: {"sfreq": r.sfreq * 2}, "totals.modalities"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_row_that_is_not_so_is_caught(
    copied: Path, change: Callable[[Recording], dict[str, Any]], message: str
) -> None:
    rows = list(Corpus(copied).recordings)
    # A shard of several recordings, so that a wrong checksum position still lies inside.
    i = next(i for i, r in enumerate(rows) if r.crc_offset == 0 and r.site == "paired")
    rows[i] = replace(rows[i], **change(rows[i]))
    rewrite(copied, read_index(copied), rows)
    assert any(message in lie for lie in lint_corpus(copied)), lint_corpus(copied)


def test_a_subject_in_two_splits_is_caught(copied: Path) -> None:
    rows = list(Corpus(copied).recordings)
    train, test = (next(r for r in rows if r.split == split) for split in ("train", "test"))
    rows[rows.index(test)] = replace(test, subject=train.subject, site=train.site)
    rewrite(copied, read_index(copied), rows)
    assert any("is in two splits" in lie for lie in lint_corpus(copied))


def test_what_only_the_whole_table_shows(built: Path) -> None:
    """People of two sites may well have one hash; rows of a sample lie side by side, and each has its own member."""
    rows = list(Corpus(built).recordings)
    assert not list(_table_lies(Recordings.of(rows)))
    train = next(r for r in rows if r.split == "train")
    other = next(i for i, r in enumerate(rows) if r.split == "test" and r.site != train.site)
    alike = [*rows[:other], replace(rows[other], subject=train.subject), *rows[other + 1 :]]
    assert not list(_table_lies(Recordings.of(alike)))
    first = next(i for i, (a, b) in enumerate(pairwise(rows)) if a.key == b.key)
    apart = [*rows[: first + 1], *rows[first + 2 :], rows[first + 1]]
    for wrong in (apart, [*rows, rows[-1]]):
        [lie] = _table_lies(Recordings.of(wrong))
        assert lie == "recordings.arrow: members are not unique, or the rows of a sample are not side by side"


def test_metadata_of_a_sample_without_one_of_its_recordings_are_caught(built: Path) -> None:
    row = Corpus(built).recordings[0]
    known = {name: getattr(row, name) for name in ("key", "site", "subject", "session", "split", "simulated")}
    content = {**known, "participant": json.loads(row.participant), "recordings": [{"member": row.member}]}
    assert not list(_metadata_lies(json.dumps(content).encode(), row.key, [row]))
    [lie] = _metadata_lies(json.dumps({**content, "recordings": []}).encode(), row.key, [row])
    assert lie == f"{row.key}.json: [{row.member!r}] differ from recordings.arrow"


@pytest.mark.parametrize(
    ("change", "message"),
    [({"index_hash": "0" * 64}, "index_hash does not follow"), ({"reasons": {}}, "reasons is {}")],
)
def test_an_index_that_is_not_so_is_caught(copied: Path, change: dict[str, Any], message: str) -> None:
    (copied / "index.json").write_text(json.dumps({**read_index(copied), **change}))
    assert any(message in lie for lie in lint_corpus(copied))


def test_a_rejection_that_is_not_counted_or_not_known_is_caught(copied: Path) -> None:
    table = copied / read_index(copied)["tables"]["rejected"]
    lines = table.read_bytes().splitlines(keepends=True)
    table.write_bytes(b"".join(lines[1:]))
    assert any("totals." in lie for lie in lint_corpus(copied))
    table.write_bytes(b"".join([json.dumps({**json.loads(lines[0]), "reason": "ugly"}).encode(), b"\n", *lines[1:]]))
    assert any("unknown reason 'ugly'" in lie for lie in lint_corpus(copied))
    table.write_bytes(b"".join([json.dumps({**json.loads(lines[0]), "site": "moon"}).encode(), b"\n", *lines[1:]]))
    assert any("or site 'moon'" in lie for lie in lint_corpus(copied))


def test_files_that_vanish_or_appear_are_caught(copied: Path) -> None:
    _, path = first(copied)
    (path.parent / "train-99999.tar").write_bytes(path.read_bytes())
    os.unlink(path.with_name(crc_name(path.name)))
    (path.parent / ".nfs0001").touch()  # the file system's own
    lies = lint_corpus(copied)
    assert not any(".nfs" in lie for lie in lies)
    assert any("train-99999.tar: not in the index" in lie for lie in lies)
    assert any(f"{crc_name(path.name)}: cannot be read" in lie for lie in lies)
    path.unlink()
    assert any(f"{path.name}: missing" in lie for lie in lint_corpus(copied))


def test_members_beyond_the_table_are_caught(copied: Path) -> None:
    _, path = first(copied)
    path.chmod(0o644)
    with tarfile.open(path, "a") as archive:
        archive.add(copied / "index.json", "stowaway.json")
    accept(copied)
    assert [lie for lie in lint_corpus(copied) if "stowaway.json" in lie]


def test_a_truncated_shard_is_caught(copied: Path) -> None:
    r, path = first(copied)
    path.chmod(0o644)
    os.truncate(path, r.byte_offset + 100)
    assert any("SHA-256" in lie for lie in lint_corpus(copied))
    accept(copied)
    assert lint_corpus(copied)
