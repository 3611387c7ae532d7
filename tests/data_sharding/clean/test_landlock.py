"""What a thread with limits can still open, and that the others can as before."""

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mcsp.data_sharding.clean.landlock import landlock_version, limit_to

needs_landlock = pytest.mark.skipif(landlock_version() == 0, reason="this kernel offers no Landlock")


def in_a_thread(work: Callable[[], object]) -> None:
    raised: list[BaseException] = []

    def caught() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  told to pytest
            raised.append(error)

    thread = threading.Thread(target=caught)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


@needs_landlock
def test_a_thread_reads_and_writes_where_it_may_and_nowhere_else(tmp_path: Path) -> None:
    own, scratch, other = (tmp_path / name for name in ("own", "scratch", "other"))
    for folder in (own, scratch, other):
        folder.mkdir()
        (folder / "x.txt").write_text(folder.name)
    (own / "out").symlink_to(other / "x.txt")

    def work() -> None:
        """What a limited thread may do, and what not."""
        limit_to([own, tmp_path / "absent"], write=[scratch, Path(os.devnull)], names=[tmp_path])
        assert (own / "x.txt").read_text() == "own" and sorted(os.listdir(other)) == ["x.txt"]
        (scratch / "folder").mkdir()
        (scratch / "folder" / "new").write_text("new")
        (scratch / "link").symlink_to(own / "x.txt")
        assert (scratch / "link").read_text() == "own"
        for file in (other / "x.txt", own / "out", Path("/proc/self/environ"), Path("/etc/passwd")):
            with pytest.raises(PermissionError):
                file.read_bytes()
        for file in (own / "new", own / "x.txt", other / "new"):
            with pytest.raises(PermissionError):
                file.write_text("changed")
        with pytest.raises(PermissionError):
            (other / "x.txt").unlink()
        with pytest.raises(PermissionError):
            os.posix_spawn("/bin/true", ["true"], {})

    in_a_thread(work)
    assert (other / "x.txt").read_text() == "other" and Path("/proc/self/environ").read_bytes()
    assert (scratch / "folder" / "new").read_text() == "new"


@pytest.mark.skipif(landlock_version() < 4, reason="this kernel's Landlock knows no network")
def test_a_thread_with_limits_connects_to_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def work() -> None:
            limit_to([])
            with pytest.raises(PermissionError), socket.socket() as client:
                client.connect(server.getsockname())

        in_a_thread(work)
        socket.create_connection(server.getsockname()).close()
