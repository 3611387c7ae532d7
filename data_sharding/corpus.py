"""Build a corpus: one Ray task per planned shard, on this machine or on a cluster; the only module that knows Ray.

Tasks may run twice or die: what they write is complete or absent and always the same, and a receipt beside the shards
says what is done. So an interrupted build goes on where it stopped, and a changed recording costs its shard alone.
"""

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from tqdm import tqdm

import mcsp
from mcsp.config import CorpusConfig
from mcsp.data_sharding.accounts import settle
from mcsp.data_sharding.index import INDEX_NAME, SHARDS_NAME, read_index
from mcsp.data_sharding.isolation import ONE_THREAD, ReadingProcess
from mcsp.data_sharding.layout import Plan, PlannedShard
from mcsp.data_sharding.plan import make_plan, subject_key
from mcsp.data_sharding.receipts import (
    BUILD_NAME,
    claimed,
    duplicates,
    is_current,
    read_header,
    remove_stale,
    sealed_plan,
    write_receipt,
    write_sealed,
)
from mcsp.data_sharding.shards import Receipt, build_shard
from mcsp.data_sharding.status import STATUS_NAME, BuildStatus
from mcsp.data_sharding.storage import Location, location, size, write_atomic

_FINGERPRINT_NAME = "fingerprint.txt"
_TASK_RETRIES = 3
_CONNECT_SECONDS = 10


def build_corpus(config: CorpusConfig, address: str | None = None) -> tuple[dict[str, Any], bool]:
    """Build the corpus that ``config`` describes, or bring an older one of the same recipe up to date.

    Args:
        config: what to build; ``out_dir`` must be empty, or hold a build of the same recipe, finished or not.
        address: a running Ray cluster that sees the same file system; None starts Ray on this machine.

    Returns:
        the content of ``index.json``, and whether the corpus was there already.

    Raises:
        TooManyQuarantinedError: with the table of reasons.
        ValueError: one line: bad input folders, no subject key, another corpus in ``out_dir``, a failing worker, a
            machine that computes otherwise, or a bad recording under ``on_error: raise``.
    """
    plan = make_plan(config, subject_key(config))
    out = location(config.out_dir)
    # Under other limits, what failed for them is read again.
    digest = f"{plan.digest} {_limits(config)}"
    with claimed(out, plan):
        if sealed_plan(out) == digest and _is_finished(out):
            return read_index(out), True
        with ray_session(config.workers, address):
            status = BuildStatus(out / BUILD_NAME / STATUS_NAME, plan.found, len(plan.names))
            state = "failed"
            try:
                fingerprint = _run(plan, config, out, status)
                index = settle(plan, config, out, fingerprint)
                write_sealed(out, digest)
                remove_stale(out, index, plan)
                state = "complete"
            finally:
                status.close(state)
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
            ray.init(address=address, runtime_env={"env_vars": ONE_THREAD}, log_to_driver=False)
        else:
            # A checkout that is not installed is importable here, so it must be in the workers.
            paths = [str(Path(mcsp.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
            ray.init(
                address="local",
                num_cpus=workers,
                include_dashboard=False,
                logging_level="ERROR",
                log_to_driver=False,
                runtime_env={"env_vars": {**ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, paths))}},
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


def _limits(config: CorpusConfig) -> list[float]:
    return [config.read_timeout_seconds, config.read_memory_gb]


def _is_finished(out: Location) -> bool:
    """Whether the index and all of its files are there, shards by size; `lint_corpus` looks deeper."""
    if size(out / INDEX_NAME) is None:
        return False
    index = read_index(out)
    tables = all(size(out / name) is not None for name in index["tables"].values())
    return tables and all(size(out / SHARDS_NAME / shard["name"]) == shard["bytes"] for shard in index["shards"])


def _run(plan: Plan, config: CorpusConfig, out: Location, status: BuildStatus) -> str:
    """Build every shard, then once more those with recordings that are stored elsewhere too; the fingerprint."""
    fingerprint = _common_fingerprint(config, out)
    # Files of a finished corpus were compared when they were written; those of an interrupted build are read again.
    deep = sealed_plan(out) is None
    for _, header, kept in _built(plan, config, dict.fromkeys(range(len(plan.names))), fingerprint, deep):
        status.add(header.sites, kept)
        _tell(header, kept, config)
    excluded = duplicates(out, plan)
    before = {}
    for number, name in enumerate(plan.names):
        header = _header(out, name)
        if header.excluded != excluded.get(name, {}):
            before[number] = header.sites
    wanted = {number: excluded.get(plan.names[number], {}) for number in before}
    for number, header, kept in _built(plan, config, wanted, fingerprint, deep=False):
        status.correct(before[number], header.sites)
        _tell(header, kept, config, only="duplicate")
    return fingerprint


def _common_fingerprint(config: CorpusConfig, out: Location) -> str:
    """What every machine must compute: what the first worker of this build computed."""
    file = out / BUILD_NAME / _FINGERPRINT_NAME
    if size(file) is None:
        task = ray.remote(num_cpus=1, max_retries=_TASK_RETRIES)(_fingerprint_here)
        write_atomic(file, _result(task.remote(config), "numeric fingerprint").encode())
    return file.read_bytes().decode()


def _built(
    plan: Plan,
    config: CorpusConfig,
    wanted: Mapping[int, dict[str, str] | None],
    fingerprint: str,
    deep: bool,
) -> Iterator[tuple[int, Receipt, bool]]:
    """Make shards current, with a bounded number of tasks at a time.

    Takes places in the plan with their exclusions (None: as before); gives place, receipt without rows, and whether
    the shard was there already.
    """
    out, limits = location(config.out_dir), _limits(config)
    config_ref = ray.put(config)
    task = ray.remote(num_cpus=1, max_retries=_TASK_RETRIES)(_build_or_keep)
    running: dict[ray.ObjectRef, int] = {}
    for number, excluded in wanted.items():
        header = None if deep else read_header(out, plan.names[number])
        if header is not None:
            exclusions = header.excluded if excluded is None else excluded
            if is_current(header, out, plan.digests[number], exclusions, limits, deep=False):
                yield number, header, True
                continue
        running[task.remote(plan.shard(number), excluded, config_ref, fingerprint, deep)] = number
        # Twice as many as cores, asked for anew because a cluster may grow.
        while len(running) >= 2 * max(int(ray.cluster_resources().get("CPU", 1)), 1):
            yield from _finished_tasks(running, plan, out)
    while running:
        yield from _finished_tasks(running, plan, out)


def _finished_tasks(
    running: dict["ray.ObjectRef", int], plan: Plan, out: Location
) -> Iterator[tuple[int, Receipt, bool]]:
    """Wait for a task and take it out of ``running``."""
    for reference in ray.wait(list(running))[0]:
        number = running.pop(reference)
        kept = _result(reference, plan.names[number])
        yield number, _header(out, plan.names[number]), kept


def _header(out: Location, name: str) -> Receipt:
    header = read_header(out, name, wait=True)
    assert header is not None, name
    return header


def _tell(header: Receipt, kept: bool, config: CorpusConfig, only: str | None = None) -> None:
    """Say what came of a shard, as ``on_error`` wants it."""
    for row in header.rejected:
        if only in (None, row["reason"]):
            line = f"{row['site']}/{row['file']}: {row['reason']}: {row['detail']}"
            if config.on_error == "raise":
                raise ValueError(f"{line} (on_error: raise)")
            if config.on_error == "warn" and not kept:
                tqdm.write(f"warning: {line}", file=sys.stderr)


def _result(reference: "ray.ObjectRef", what: str) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise ValueError(f"{what}: {type(error.cause).__name__}: {' '.join(str(error.cause).split())}") from None
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{what}: lost its worker {_TASK_RETRIES + 1} times ({reason})") from None


# The process that reads for this Ray worker; it serves one task after the other.
_reading: list[ReadingProcess] = []
_fingerprints: dict[int, str] = {}  # by the reading process's id


def _reading_process(config: CorpusConfig) -> ReadingProcess:
    if not _reading or _reading[0].config != config:
        for old in _reading:
            old.close()
        _reading[:] = [ReadingProcess(config)]
    return _reading[0]


def _fingerprint_here(config: CorpusConfig) -> str:
    return _reading_process(config).fingerprint()


def _build_or_keep(
    shard: PlannedShard, excluded: dict[str, str] | None, config: CorpusConfig, fingerprint: str, deep: bool
) -> bool:
    """The Ray task: a shard that a receipt proves to be the same is kept (True), any other is built.

    ``excluded`` None: those of the receipt, if there is one.
    """
    process = _reading_process(config)
    if id(process) not in _fingerprints:
        _fingerprints[id(process)] = process.fingerprint()
    if _fingerprints[id(process)] != fingerprint:
        raise ValueError(
            f"node {socket.gethostname()} ({ray.util.get_node_ip_address()}) computes other values than the first "
            f"worker of this build: numeric fingerprint {_fingerprints[id(process)][:16]}, expected "
            f"{fingerprint[:16]}; take it out of the cluster"
        )
    out = location(config.out_dir)
    header = read_header(out, shard.name)
    if header is not None:
        wanted = header.excluded if excluded is None else excluded
        if is_current(header, out, shard.digest, wanted, _limits(config), deep):
            return True
    receipt = build_shard(shard, config, process, excluded)
    if header is not None and excluded:  # not read again, and still the same content
        carried = [entry for entry in header.contents if f"{entry[0]}/{entry[1]}" in excluded]
        receipt = replace(receipt, contents=[*receipt.contents, *carried])
    write_receipt(out, shard.name, receipt)
    return False
