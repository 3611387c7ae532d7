"""Build a corpus: one Ray task per planned shard, on this machine or on a cluster; the only module that knows Ray.

Tasks may run twice or die: what they write is complete or absent and always the same, and a receipt beside the shards
says what is done. So an interrupted build goes on where it stopped, and a changed recording costs its shard alone.
"""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import ray

from mcsp.config import CorpusConfig
from mcsp.data_sharding.build.plan import Plan, PlannedShard, make_plan
from mcsp.data_sharding.build.privacy import find_identifiers_in_shards
from mcsp.data_sharding.build.progress import BuildStatus, Progress
from mcsp.data_sharding.build.pseudonyms import subject_key, without_key_in_environment
from mcsp.data_sharding.build.receipts import (
    build_or_keep,
    claimed,
    duplicates,
    fingerprint_here,
    headers,
    is_current,
    private_place,
    read_header,
    remove_stale,
    sealed_plan,
    write_sealed,
)
from mcsp.data_sharding.build.seal import settle
from mcsp.data_sharding.build.shards import Receipt, reading_limits
from mcsp.data_sharding.clean.landlock import landlock_version
from mcsp.data_sharding.clean.read import ONE_THREAD, SiteTime
from mcsp.data_sharding.store.files import Location, location, size, write_atomic
from mcsp.data_sharding.store.index import BUILD_NAME, INDEX_NAME, SHARDS_NAME, read_index
from mcsp.provenance import ROOT

Key = TypeVar("Key")
_FINGERPRINT_NAME = "fingerprint.txt"
_TASK_RETRIES = 3
_CONNECT_SECONDS = 10
_START_ATTEMPTS = 3
_LOOK_SECONDS = 1.0
# Shards that one task looks through for personal data: of each only headers and JSON are read.
_SCANNED_TOGETHER = 16


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
    key = subject_key(config)
    plan = make_plan(config, key)
    # Workers get pseudonyms, never the key or the way to it.
    config = config.model_copy(update={"subject_key_file": None})
    out, private = location(config.out_dir), private_place(config)
    digest = f"{plan.digest} {reading_limits(config)}"
    with claimed(out, private, plan), without_key_in_environment():
        if sealed_plan(out) == digest and _is_finished(out):
            return read_index(out), True
        with ray_session(config.workers, address, config.allow_open_cluster):
            status = BuildStatus(out, plan.found, len(plan.names))
            for note in plan.notes:
                status.say(f"warning: {note}")
            if not landlock_version():
                status.say("warning: no Landlock here: a file can make its reader open what this user may read")
            state = "failed"
            _fetch_atlases(plan, config)
            try:
                fingerprint = _run(plan, config, out, status)
                index = settle(plan, config, out, fingerprint, key, partial(_scanned, out))
                write_sealed(out, digest)
                remove_stale(out, private, index, plan)
                state = "complete"
            finally:
                status.close(state)
    return index, False


def _fetch_atlases(plan: Plan, config: CorpusConfig) -> None:
    """Have nilearn download the atlases that are named, once and not in every worker.

    Raises:
        ValueError: one is not there and cannot be downloaded.
    """
    names = {config.fmri_of(site.name).atlas for site in plan.sites if plan.found[site.name]} - {None}
    if names:  # costs seconds, which builds without a name need not pay
        from mcsp.data_sharding.parcels.atlases import named_atlas

        for name in sorted(filter(None, names)):
            named_atlas(name)


@contextmanager
def ray_session(
    workers: int | None = None, address: str | None = None, allow_open_cluster: bool = False
) -> Iterator[None]:
    """Connect to Ray, or start it here with ``workers`` CPUs (None: all); joins a session that is already open.

    Raises:
        ValueError: a cluster without authentication, unless ``allow_open_cluster``, or Ray that does not start.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its default only warns
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of tasks that nobody asks for after the first error
    address = address or os.environ.get("RAY_ADDRESS")  # set by `ray job submit`
    _check_reachable(address)
    if address and not allow_open_cluster and os.environ.get("RAY_AUTH_MODE") != "token":
        raise ValueError(
            f"Ray at {address}: found RAY_AUTH_MODE unset, expected a cluster with authentication (RAY_AUTH_MODE=token "
            "on every node and here): everybody who reaches an open cluster can run programs as you; set it, or "
            "allow_open_cluster=true"
        )

    def start() -> None:
        """Start Ray, here or there."""
        ray.shutdown()  # what is left of an attempt before
        if address:
            ray.init(address=address, runtime_env={"env_vars": ONE_THREAD}, log_to_driver=False)
            return
        # A checkout that is not installed is importable here, so it must be in the workers.
        paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
        ray.init(
            address="local", num_cpus=workers, include_dashboard=False, logging_level="ERROR", log_to_driver=False,
            runtime_env={"env_vars": {**ONE_THREAD, "PYTHONPATH": os.pathsep.join(paths)}},
        )  # fmt: skip

    start_patiently(start, address or "this machine")
    try:
        yield
    finally:
        ray.shutdown()


def start_patiently(start: Callable[[], object], where: str, pause_seconds: float = 5.0) -> None:
    """Start Ray, and again after a pause where a busy machine let it fail; at last raise ``ValueError``, one line."""
    for attempt in range(1, _START_ATTEMPTS + 1):
        try:
            start()
            return
        except (ConnectionError, RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
        if attempt < _START_ATTEMPTS:
            print(f"Ray at {where}: has not started ({reason}); trying again", file=sys.stderr, flush=True)
            time.sleep(pause_seconds * attempt)
    raise ValueError(
        f"Ray at {where}: cannot start, tried {_START_ATTEMPTS} times ({reason}); is the machine overloaded?"
    )


def _check_reachable(address: str | None) -> None:
    """Raise ``ValueError`` where nothing listens at ``host:port``; Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise ValueError(f"Ray at {address}: cannot connect ({error})") from None


def _is_finished(out: Location) -> bool:
    """Whether the index and all of its files are there, shards by size; `lint_corpus` looks deeper."""
    if size(out / INDEX_NAME) is None:
        return False
    index = read_index(out)
    tables = all(size(out / name) is not None for name in index["tables"].values())
    return tables and all(size(out / SHARDS_NAME / shard["name"]) == shard["bytes"] for shard in index["shards"])


def _run(plan: Plan, config: CorpusConfig, out: Location, status: BuildStatus) -> str:
    """Build every shard, then once more those with recordings that are stored elsewhere too; the fingerprint."""
    SiteTime(config).forget()
    file = out / BUILD_NAME / _FINGERPRINT_NAME
    if size(file) is None:  # what every machine must compute is what the first worker of this build computed
        task = ray.remote(num_cpus=1, max_retries=_TASK_RETRIES)(fingerprint_here)
        write_atomic(file, _result(task.remote(config), "numeric fingerprint").encode(), private=True)
    fingerprint = file.read_bytes().decode()
    # Files of a finished corpus were compared when they were written; those of an interrupted build are read again.
    deep = sealed_plan(out) is None
    for number, header, kept in _built(plan, config, dict.fromkeys(range(len(plan.names))), fingerprint, deep, status):
        status.add(plan.names[number], header.sites, kept)
        _tell(header, kept, config, status)
    private = private_place(config)
    excluded = duplicates(private, plan)
    before = {}
    for number, (name, header) in enumerate(headers(private, plan)):
        if header.excluded != excluded.get(name, {}):
            before[number] = header.sites
    wanted = {number: excluded.get(plan.names[number], {}) for number in before}
    for number, header, kept in _built(plan, config, wanted, fingerprint, deep=False):
        status.correct(before[number], header.sites)
        _tell(header, kept, config, status, only="duplicate")
    return fingerprint


def _built(
    plan: Plan,
    config: CorpusConfig,
    wanted: Mapping[int, dict[str, str] | None],
    fingerprint: str,
    deep: bool,
    status: BuildStatus | None = None,
) -> Iterator[tuple[int, Receipt, bool]]:
    """Make shards current, with a bounded number of tasks at a time, while ``status`` hears how far they are.

    Takes places in the plan with their exclusions (None: as before); gives place, receipt without rows, and whether
    the shard was there already.
    """
    out, private, limits = location(config.out_dir), private_place(config), reading_limits(config)
    config_ref = ray.put(config)
    task = ray.remote(num_cpus=1, max_retries=_TASK_RETRIES)(_build_or_keep)
    progress = ray.remote(num_cpus=0, max_restarts=-1)(Progress).remote() if status else None
    there: dict[int, Receipt] = {}

    def tasks() -> Iterator[tuple[int, ray.ObjectRef | None]]:
        """Place and task of each shard, None where it is current."""
        for number, excluded in wanted.items():
            header = None if deep else read_header(private, plan.names[number])
            if header is not None:
                exclusions = header.excluded if excluded is None else excluded
                if is_current(header, out, plan.digests[number], exclusions, limits, deep=False):
                    there[number] = header
                    yield number, None
                    continue
            yield number, task.remote(plan.shard(number), excluded, config_ref, fingerprint, deep, progress)

    asked: list[ray.ObjectRef] = []

    def look(running: Iterable[int]) -> None:
        """Have ``status`` hear of the shards that are being built, once the last answer is there."""
        if not (status and progress):
            return
        if asked and ray.wait(asked, timeout=0)[0]:
            with suppress(ray.exceptions.RayError):  # its node may be dead for a while; then nothing is known
                counts, going_on = ray.get(asked[0]), {plan.names[number] for number in running}
                status.look({shard: found for shard, found in counts.items() if shard in going_on})
            asked.clear()
        if not asked:
            asked.append(progress.of.remote([plan.names[number] for number in running]))

    for number, reference in _bounded(tasks(), look):
        kept = reference is None or _result(reference, plan.names[number])
        header = there.pop(number, None) or read_header(private, plan.names[number], wait=True)
        assert header is not None, plan.names[number]
        yield number, header, kept


def _bounded(
    tasks: Iterable[tuple[Key, "ray.ObjectRef | None"]], look: Callable[[Iterable[Key]], None] = lambda running: None
) -> Iterator[tuple[Key, "ray.ObjectRef | None"]]:
    """The tasks as they end, of which only twice as many as cores exist at a time; those that are None at once.

    ``look`` is told what runs, about once a second.
    """
    running: dict[ray.ObjectRef, Key] = {}

    def ended() -> Iterator[tuple[Key, ray.ObjectRef]]:
        found, _ = ray.wait(list(running), timeout=_LOOK_SECONDS)
        for reference in found:
            yield running.pop(reference), reference
        look(running.values())

    for key, reference in tasks:
        if reference is None:
            yield key, None
            continue
        running[reference] = key
        # Asked for anew because a cluster may grow.
        while len(running) >= 2 * max(int(ray.cluster_resources().get("CPU", 1)), 1):
            yield from ended()
    while running:
        yield from ended()


def _build_or_keep(
    shard: PlannedShard,
    excluded: dict[str, str] | None,
    config: CorpusConfig,
    fingerprint: str,
    deep: bool,
    progress: Any,
) -> bool:
    """The Ray task of a shard; nobody waits for what it tells on the way."""
    tell = partial(progress.tell.remote, shard.name) if progress else None
    return build_or_keep(shard, excluded, config, fingerprint, deep, tell)


def _scanned(out: Location, shards: Sequence[str], names: frozenset[str]) -> Iterator[list[str]]:
    """What may identify a person in each of some shards, looked for by the workers."""
    task = ray.remote(num_cpus=1, max_retries=_TASK_RETRIES)(find_identifiers_in_shards)
    names_ref = ray.put(names)
    parts = (shards[start : start + _SCANNED_TOGETHER] for start in range(0, len(shards), _SCANNED_TOGETHER))
    for first, reference in _bounded((part[0], task.remote(out, part, names_ref)) for part in parts):
        yield from _result(reference, f"privacy scan from {first} on")


def _tell(header: Receipt, kept: bool, config: CorpusConfig, status: BuildStatus, only: str | None = None) -> None:
    """Say what came of a shard, as ``on_error`` wants it."""
    for row in header.rejected:
        if only in (None, row["reason"]):
            line = f"{row['site']}/{row['file']}: {row['reason']}: {row['detail']}"
            if config.on_error == "raise":
                raise ValueError(f"{line} (on_error: raise)")
            if config.on_error == "warn" and not kept:
                status.say(f"warning: {line}")


def _result(reference: "ray.ObjectRef", what: str) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise ValueError(f"{what}: {type(error.cause).__name__}: {' '.join(str(error.cause).split())}") from None
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{what}: lost its worker {_TASK_RETRIES + 1} times ({reason})") from None
