"""Every byte that a corpus publishes, for tests that search it."""

import io
import json
import socket
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def published_bytes(out: Path) -> Iterator[tuple[str, bytes]]:
    """Every file beside ``.build``, every member of the shards, and their arrays as the bytes that they stand for.

    A byte that was taken for a sample comes back through float16 and its scale, in volts or microvolts; so arrays are
    given rounded to bytes under each of these scales, in either order of time and channels.
    """
    for file in (path for path in out.rglob("*") if path.is_file() and ".build" not in path.parts):
        yield file.name, file.read_bytes()
        if file.suffix != ".tar":
            continue
        with tarfile.open(file) as archive:
            members = {m.name: archive.extractfile(m).read() for m in archive.getmembers()}  # type: ignore[union-attr]
        scales = {r["member"]: r["scale"] for n, m in members.items() if n.endswith(".json")
                  for r in json.loads(m)["recordings"]}  # fmt: skip
        for name, content in members.items():
            yield name, content
            if name.endswith(".npy"):
                stored_TC = np.load(io.BytesIO(content), allow_pickle=False).astype(np.float64)
                for scale in (1.0, scales[name], 1e-6 * scales[name], 1e6 * scales[name]):
                    for x in (stored_TC, stored_TC.T):
                        yield name, np.clip(np.rint(x * scale), 0, 255).astype("u1").tobytes()


def assert_names_no_machine(folder: Path, *places: Path) -> None:
    """No file of ``folder`` has the name of this host, or the path of this code or of one of ``places``, in it."""
    host = socket.gethostname()
    hidden = [str(place).encode() for place in (Path(__file__).parents[2], *places)]
    hidden += [host.encode()] if len(host) > 8 else []  # a shorter one may be a part of any word or picture
    for file in (path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes()
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                content += b"".join(archive.read(name) for name in archive.namelist())
        found = [text for text in hidden if text in content]
        assert not found, (file, found)
