"""Build a corpus: one Ray task per planned shard, on this machine or on a cluster; the only module that knows Ray.

Tasks may run twice or die: what they write is complete or absent and always the same, and a receipt beside the shards
says what is done. So an interrupted build goes on where it stopped.
"""

import json
import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from tqdm import tqdm

import mcsp
from mcsp.config import CorpusConfig
from mcsp.data_sharding.index import (
    INDEX_NAME,
    SHARDS_NAME,
    Rejection,
    make_index,
    read_index,
)
from mcsp.data_sharding.plan import Plan, PlannedShard, make_plan, public_config, software_versions, subject_key
from mcsp.data_sharding.seal import PRIVATE_NAME, people, publish_rejections, seal_corpus
from mcsp.data_sharding.shards import Receipt, build_shard
from mcsp.data_sharding.storage import sha256_file, write_atomic
from mcsp.schema import Recording

# State of a build; not part of the corpus, and free to be deleted once the build is finished.
BUILD_NAME = ".build"
_TASK_RETRIES = 3
_CONNECT_SECONDS = 10
# Results of BLAS and FFT may depend on the number of threads; one also suits one task per core.
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


def build_corpus(config: CorpusConfig, address: str | None = None) -> tuple[dict[str, Any], bool]:
    """Build the corpus that ``config`` describes.

    Args:
        config: what to build; ``out_dir`` must be empty, or hold the same build, finished or not.
        address: a running Ray cluster that sees the same file system; None starts Ray on this machine.

    Returns:
        the content of ``index.json``, and whether the corpus was there already.

    Raises:
        ValueError: one line: bad input folders, no subject key, another corpus in ``out_dir``, or a failing worker.
    """
    key = subject_key()
    plan = make_plan(config, key)
    _claim(config.out_dir, plan)
    if _is_finished(config.out_dir):
        return read_index(config.out_dir), True
    receipts = _run(plan, config, address)
    recordings = [Recording.from_row(row) for receipt in receipts for row in receipt.recordings]
    recordings.sort(key=lambda r: r.member)
    rejected = [Rejection(**row) for receipt in receipts for row in receipt.rejected]
    rejected.sort(key=lambda r: (r.site, r.file))
    names = people(plan.sites)
    rejected = publish_rejections(config.out_dir / BUILD_NAME / PRIVATE_NAME, rejected, key, names)
    index = make_index(
        public_config(config),
        software_versions(),
        {site.name: site.simulated for site in plan.sites},
        [receipt.shard for receipt in receipts if receipt.shard is not None],
        recordings,
        rejected,
    )
    for leftover in (config.out_dir / SHARDS_NAME).glob(".*.tmp"):
        leftover.unlink()
    seal_corpus(config.out_dir, index, recordings, plan.sites, names)
    return index, False


@contextmanager
def ray_session(workers: int | None = None, address: str | None = None) -> Iterator[None]:
    """Connect to Ray, or start it here with ``workers`` CPUs (None: all); joins a session that is already open."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its default only warns
    address = address or os.environ.get("RAY_ADDRESS")  # set by `ray job submit`
    _check_reachable(address)
    try:
        if address:
            ray.init(address=address, runtime_env={"env_vars": _ONE_THREAD}, log_to_driver=False)
        else:
            # A checkout that is not installed is importable here, so it must be in the workers.
            paths = [str(Path(mcsp.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
            ray.init(
                address="local",
                num_cpus=workers,
                include_dashboard=False,
                logging_level="ERROR",
                log_to_driver=False,
                runtime_env={"env_vars": {**_ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, paths))}},
            )
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(f"Ray at {address or 'this machine'}: cannot start ({' '.join(str(error).split())})") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Raise ``ValueError`` where nothing listens at ``host:port``; Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise ValueError(f"Ray at {address}: cannot connect ({error})") from None


def _claim(out_dir: Path, plan: Plan) -> None:
    """Make ``out_dir`` ours, or raise ``ValueError`` where it holds anything but this very build."""
    state = out_dir / BUILD_NAME / "plan.json"
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"{out_dir}: expected a folder to write the corpus into, found a file")
    if out_dir.is_dir() and any(out_dir.iterdir()):
        try:
            found = json.loads(state.read_bytes())["digest"]
        except (OSError, ValueError, LookupError):
            raise ValueError(f"{out_dir}: not empty and no unfinished build; choose another out_dir") from None
        if found != plan.digest:
            raise ValueError(
                f"{out_dir}: holds a corpus of another configuration, subject key, code or input; "
                "choose another out_dir or delete it"
            )
        return
    try:
        (out_dir / SHARDS_NAME).mkdir(parents=True, exist_ok=True)
        state.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise ValueError(f"{out_dir}: cannot write the corpus there ({error.strerror})") from None
    write_atomic(state, json.dumps({"digest": plan.digest}).encode())


def _is_finished(out_dir: Path) -> bool:
    """Whether the index and all of its shards are there, by size; `lint_corpus` looks deeper."""
    if not (out_dir / INDEX_NAME).is_file():
        return False
    files = {shard["name"]: shard["bytes"] for shard in read_index(out_dir)["shards"]}
    shards = out_dir / SHARDS_NAME
    return all((shards / name).is_file() and (shards / name).stat().st_size == size for name, size in files.items())


def _run(plan: Plan, config: CorpusConfig, address: str | None) -> list[Receipt]:
    """Build every shard; receipts in the plan's order."""
    receipts: dict[str, Receipt] = {}
    found = Counter(ref.site.name for shard in plan.shards for s in shard.samples for ref in s.recordings)
    done: Counter[str] = Counter()
    total = sum(shard.n_recordings for shard in plan.shards)
    with (
        ray_session(config.workers, address),
        tqdm(total=total, unit="recording", desc="corpus", mininterval=0.5, dynamic_ncols=True) as bar,
    ):
        config_ref = ray.put(config)
        task = ray.remote(num_cpus=1, max_retries=_TASK_RETRIES)(_build_or_keep)
        waiting = list(reversed(plan.shards))
        running: dict[ray.ObjectRef, PlannedShard] = {}
        in_flight = 2 * max(int(ray.cluster_resources().get("CPU", 1)), 1)
        while waiting or running:
            while waiting and len(running) < in_flight:
                shard = waiting.pop()
                running[task.remote(shard, config_ref)] = shard
            ready, _ = ray.wait(list(running))
            shard = running.pop(ready[0])
            receipts[shard.name] = _result(ready[0], shard)
            bar.update(shard.n_recordings)
            done.update(ref.site.name for s in shard.samples for ref in s.recordings)
            bar.set_postfix_str(" ".join(f"{site} {done[site]}/{n}" for site, n in sorted(found.items())))
    return [receipts[shard.name] for shard in plan.shards]


def _result(reference: "ray.ObjectRef", shard: PlannedShard) -> Receipt:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise ValueError(f"{shard.name}: {type(error.cause).__name__}: {' '.join(str(error.cause).split())}") from None
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{shard.name}: lost its worker {_TASK_RETRIES + 1} times ({reason})") from None


def _build_or_keep(shard: PlannedShard, config: CorpusConfig) -> Receipt:
    """The Ray task: a shard that a receipt proves to be the same is kept, any other is built."""
    file = config.out_dir / BUILD_NAME / f"{shard.name}.json"
    if file.is_file():
        receipt = Receipt(**json.loads(file.read_bytes()))
        if receipt.digest == shard.digest and _holds(receipt, config.out_dir):
            return receipt
    receipt = build_shard(shard, config)
    write_atomic(file, json.dumps(asdict(receipt)).encode())
    return receipt


def _holds(receipt: Receipt, out_dir: Path) -> bool:
    if receipt.shard is None:
        return True
    tar = out_dir / SHARDS_NAME / receipt.shard["name"]
    return tar.is_file() and sha256_file(tar) == receipt.shard["sha256"]
