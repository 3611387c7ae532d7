"""The parts of a build that grow with the number of recordings, on recordings that do not exist; for bench_corpus.py.

Names are empty files with BIDS names on 50 sites. Rows and receipts are of 64 channels, as a worker writes them.
"""

import hashlib
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

CHANNELS, SITES, PER_SHARD = 64, 50, 64
KEY = b"mcsp benchmark, public key".hex().ljust(64, "0")


def write_names(root: str, n: int) -> dict[str, Any]:
    """Empty recordings of ``n`` subjects on 50 sites."""
    for site in range(SITES):
        folder = Path(root) / f"site-{site:02d}"
        folder.mkdir(parents=True)
        (folder / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
        for subject in range(site, n, SITES):
            name = f"sub-{subject:07d}"
            (folder / name / "eeg").mkdir(parents=True)
            (folder / name / "eeg" / f"{name}_task-rest_eeg.edf").touch()
    return {}


def plan(root: str) -> dict[str, Any]:
    """Plan everything below ``root``."""
    from mcsp.config import CorpusConfig
    from mcsp.data_sharding.build.plan import make_plan

    config = CorpusConfig(bids_root=Path(root), out_dir=Path(root) / "out")
    baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    made = make_plan(config, KEY.encode())
    seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 2), "shards": len(made.names), "recordings": sum(made.found.values()),
            "mb_before": round(baseline)}  # fmt: skip


def rows(first: int, stop: int) -> Iterator[Any]:
    """Rows of 64 channels; every third has a bad channel of its own, every hundredth positions of its own."""
    from mcsp.schema import Recording

    rng = np.random.default_rng(0)
    shared = rng.normal(0, 60, 3 * CHANNELS).round(3).tolist()
    names = [f"E{c}" for c in range(CHANNELS)]
    for i in range(first, stop):
        site, key = f"site-{i % SITES:02d}", f"site-{i % SITES:02d}_{i:016x}"
        yield Recording(
            key=key, shard=f"train-{i // PER_SHARD:07d}-000000000000.tar", member=f"{key}.eeg-0.npy", modality="eeg",
            site=site, subject=f"{i:016x}", session="", task="rest", run="", split="train", sfreq=200.0, unit="uV",
            scale=0.0078125, n_samples=120_000 + i % 1000, n_channels=CHANNELS, dtype="float16", byte_offset=1024,
            crc_offset=0, block_samples=2000, simulated=False, onset_seconds=float("nan"), channels=names,
            positions_mm=shared if i % 100 else rng.normal(0, 60, 3 * CHANNELS).round(3).tolist(),
            channel_good=[i % 3 > 0 or c != i % CHANNELS for c in range(CHANNELS)], valid_spans=[0, 120_000],
            participant="{}", quality=json.dumps({"amplitude": i % 97 / 10, "bad_channels": i % 3 == 0}),
        )  # fmt: skip


def index(root: str, n: int) -> dict[str, Any]:
    """Write and open the index of ``n`` recordings, as the end of a build does."""
    from mcsp.data_sharding.store.files import scratch_folder
    from mcsp.data_sharding.store.index import make_index, read_index, write_index
    from mcsp.data_sharding.store.reader import Corpus

    described = {
        "config": {}, "software": {}, "fingerprint": "", "subject_key_fingerprint": "",
        "simulated": dict.fromkeys(site_names(), False), "shards": [shard(i) for i in range(-(-n // PER_SHARD))],
    }  # fmt: skip
    start = time.perf_counter()
    with scratch_folder(Path(root)) as scratch:
        content, tables = make_index(described, rows(0, n), [], [], scratch)
        write_index(Path(root), content, tables)
    written = time.perf_counter() - start
    start = time.perf_counter()
    assert len(Corpus(root).recordings) == n == read_index(Path(root))["totals"]["all"]["recordings"]
    opened = time.perf_counter() - start
    n_bytes = sum(p.stat().st_size for p in Path(root).iterdir() if p.is_file())
    return {"write_seconds": round(written, 1), "open_seconds": round(opened, 2), "mb": round(n_bytes / 1e6)}


def site_names() -> list[str]:
    """Names of the sites."""
    return [f"site-{s:02d}" for s in range(SITES)]


def shard(number: int) -> dict[str, Any]:
    """What an index says of a shard."""
    name = f"train-{number:07d}-000000000000.tar"
    return {"name": name, "sha256": f"{number:064x}", "bytes": 1, "samples": PER_SHARD, "recordings": PER_SHARD}


def use(root: str, what: str) -> dict[str, Any]:
    """What reads the whole table of a finished corpus, without its shards: the report, the linter, the privacy scan."""
    from mcsp.data_sharding.build import seal
    from mcsp.data_sharding.inspect import lint, report
    from mcsp.data_sharding.store.reader import Corpus

    corpus = Corpus(root)
    start = time.perf_counter()
    if what == "report":
        report.write_report(Path(root))
    elif what == "lint":
        found = [*lint._index_lies(corpus, Path(root)), *lint._table_lies(corpus.recordings)]
        assert found == [] and len(lint._rows_by_shard(corpus.recordings)) == len(corpus.index["shards"])
    else:
        assert list(seal.find_identifiers_in_table(corpus.recordings, frozenset({"anna"}))) == []
    return {"seconds": round(time.perf_counter() - start, 1)}


def write_receipts(root: str, n: int) -> dict[str, Any]:
    """What the workers of a build leave of ``n`` recordings: 1 % more are rejected, every tenth was repaired."""
    from mcsp.data_sharding.build.receipts import write_receipt
    from mcsp.data_sharding.build.shards import Receipt
    from mcsp.data_sharding.store.index import BUILD_NAME, Rejection, Repair

    (Path(root) / BUILD_NAME / "receipts").mkdir(parents=True)
    for number in range(n // PER_SHARD):
        of_shard = list(rows(number * PER_SHARD, (number + 1) * PER_SHARD))
        files = [f"sub-{r.subject}/eeg/sub-{r.subject}_task-rest_eeg.edf" for r in of_shard]
        site = of_shard[0].site
        rejected = [Rejection(site, files[0], "eeg", "truncated", "ends early")] if number % 100 < PER_SHARD else []
        named = list(zip(of_shard, files, strict=True))
        repairs = [Repair(r.site, f, "eeg", "header put right") for r, f in named[::10]]
        counts: dict[str, list[float]] = {}
        for r in of_shard:
            of_site = counts.setdefault(r.site, [0, 0, 0.0])
            of_site[0], of_site[2] = of_site[0] + 1, of_site[2] + r.seconds / 3600
        counts[site][1] += len(rejected)
        contents = [(r.site, f, hashlib.sha256(f.encode()).hexdigest()[:32]) for r, f in named]
        receipt = Receipt("", {}, None, shard(number), counts, contents, [vars(r) for r in rejected],
                          [vars(r) for r in repairs], [vars(r) for r in of_shard])  # fmt: skip
        write_receipt(Path(root) / BUILD_NAME, name(number), receipt)
    return {}


def name(number: int) -> str:
    """Name of a planned shard."""
    return f"train-{number:07d}"


def seal(root: str, n: int) -> dict[str, Any]:
    """What the driver does after the last shard: duplicates, accounts, table, lists, report; shards are not scanned."""
    from mcsp.config import CorpusConfig
    from mcsp.data_sharding.bids.ref import Site
    from mcsp.data_sharding.build.plan import Plan
    from mcsp.data_sharding.build.receipts import duplicates, headers
    from mcsp.data_sharding.build.seal import settle
    from mcsp.data_sharding.store.index import BUILD_NAME

    config = CorpusConfig(bids_root=Path(root) / "none", out_dir=Path(root))
    made = Plan([Site(site, Path(root) / site, False, None) for site in site_names()], "", config)
    made.names = [name(number) for number in range(n // PER_SHARD)]
    for _, header in headers(Path(root) / BUILD_NAME, made):
        for site, (stored, rejected, _) in header.sites.items():
            made.found[site] += int(stored + rejected)
    baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    assert duplicates(Path(root) / BUILD_NAME, made) == {}
    content = settle(made, config, Path(root), "", bytes(32), lambda shards, names: ([] for _ in shards))
    seconds = time.perf_counter() - start
    counts = content["totals"]["all"]
    return {"seconds": round(seconds, 1), "recordings": counts["recordings"], "rejected": counts["rejected"],
            "mb_before": round(baseline)}  # fmt: skip
