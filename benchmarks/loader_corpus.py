"""Corpora of noise for bench_loader: real shards of 64-channel EEG, and a table of a million recordings in them."""

import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import webdataset

from mcsp.data_sharding.store.index import INDEX_NAME, SHARDS_NAME, index_hash
from mcsp.data_sharding.store.table import RECORDINGS_NAME, make_batch, write_table
from mcsp.outside import sha256_file
from mcsp.schema import BLOCK_SAMPLES, SCHEMA_VERSION, Recording, block_bounds, crc_name

CHANNELS, SAMPLES, SFREQ = 64, 60_000, 200.0  # five minutes
RECORDINGS, PER_SHARD = 64, 8


def _recording(number: int, shard: str) -> Recording:
    key = f"noise_{number:016x}"
    return Recording(
        key=key, shard=shard, member=f"{key}.eeg-0.npy", modality="eeg", site=f"noise-{number % 8}", subject=key[6:],
        session="", task="rest", run="", split="train", sfreq=SFREQ, unit="uV", scale=2.0**-8, n_samples=SAMPLES,
        n_channels=CHANNELS, dtype="float16", byte_offset=0, crc_offset=0, block_samples=BLOCK_SAMPLES["eeg"],
        simulated=True, onset_seconds=float("nan"), channels=[f"E{i}" for i in range(CHANNELS)],
        positions_mm=np.random.default_rng(0).normal(0, 60, 3 * CHANNELS).tolist(), channel_good=[True] * CHANNELS,
        valid_spans=[0, SAMPLES],
    )  # fmt: skip


def write_shards(folder: Path) -> list[Recording]:
    """A finished corpus of noise as the builder writes it; its rows."""
    (folder / SHARDS_NAME).mkdir(parents=True)
    noise_TC = (np.random.default_rng(0).standard_normal((SAMPLES, CHANNELS)) * 3000).astype("<f2")
    rows, described = [], []
    for first in range(0, RECORDINGS, PER_SHARD):
        path = folder / SHARDS_NAME / f"train-{first // PER_SHARD:05d}.tar"
        crcs: list[int] = []
        with open(path, "wb") as file:
            writer = webdataset.TarWriter(file, encoder=False, mtime=0)
            for number in range(first, first + PER_SHARD):
                r = _recording(number, path.name)
                x_TC = np.roll(noise_TC, number * 7, axis=0)
                sink = io.BytesIO()
                np.lib.format.write_array(sink, x_TC, version=(1, 0))
                writer.write({"__key__": r.key, "eeg-0.npy": sink.getvalue()})
                rows.append(Recording(**{**vars(r), "crc_offset": len(crcs)}))
                crcs += [zlib.crc32(x_TC[a:b].data) for a, b in pairwise(block_bounds(SAMPLES, r.block_samples))]
            writer.close()
        with tarfile.open(path, "r:") as archive:
            stops = [member.offset_data + member.size for member in archive.getmembers()]
        for number, stop in zip(range(first, first + PER_SHARD), stops, strict=True):
            start = stop - SAMPLES * CHANNELS * 2
            rows[number] = Recording(**{**vars(rows[number]), "byte_offset": start})
        np.save(path.with_name(crc_name(path.name)), np.array(crcs, dtype="<u4"))
        described.append({"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)})
    write_table(folder / RECORDINGS_NAME, rows)
    _write_index(folder, described, len(rows))
    return rows


def write_million(folder: Path, shards: Path, rows: list[Recording], n: int) -> None:
    """A corpus of ``n`` recordings of the shards of another one: row i is its row i modulo their number, renamed."""
    folder.mkdir()
    os.symlink(shards / SHARDS_NAME, folder / SHARDS_NAME)
    few = make_batch(rows)
    keys = [f"noise_{i:016x}" for i in range(n)]
    own: dict[str, Callable[[], list[str]]] = {
        "key": lambda: keys,
        "member": lambda: [f"{key}.eeg-0.npy" for key in keys],
        "subject": lambda: [key[6:] for key in keys],
    }
    turn = pa.array(np.arange(n) % len(rows))
    columns = [
        pa.array(own[f.name](), few.column(f.name).type) if f.name in own else few.column(f.name).take(turn)
        for f in fields(Recording)
    ]
    table = pa.RecordBatch.from_arrays(columns, schema=few.schema)
    with pa.OSFile(str(folder / RECORDINGS_NAME), "wb") as sink, pa.ipc.new_file(sink, few.schema) as writer:
        writer.write_batch(table)
    _write_index(folder, json.loads((shards / INDEX_NAME).read_text())["shards"], n)


def _write_index(folder: Path, shards: list[dict[str, Any]], n: int) -> None:
    index = {
        "schema_version": SCHEMA_VERSION, "index_hash": index_hash(shards), "config": {}, "shards": shards,
        "totals": {"all": {"recordings": n}}, "rejected": [], "reasons": {}, "tables": {"recordings": RECORDINGS_NAME},
    }  # fmt: skip
    (folder / INDEX_NAME).write_text(json.dumps(index))
