"""Sidecars and tables of a BIDS dataset, read within limits; errors name file, row and cell.

``dataset_description.json`` of a corpus says what made it, and of which datasets, in the terms of BIDS 1.10:
GeneratedBy and SourceDatasets are those of BIDS derivatives
(https://bids-specification.readthedocs.io/en/stable/modality-agnostic-files.html). Nobody's name is copied: of a source
only its name, version, licence, DOI and links go along.
"""

import csv
import io
import math
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.store.files import Location
from mcsp.outside import MOST_BYTES, parse_json

if TYPE_CHECKING:
    from mcsp.data_sharding.bids.ref import Site


from collections.abc import Mapping

from mcsp.outside import sha256_json
from mcsp.version import __version__
from mcsp.wording import markdown

# What stands in a file whose content was not fetched.
_POINTERS = {b"/annex/objects/": "git-annex", b"version https://git-lfs.github.com/spec": "Git LFS"}


def require_content(file: Location) -> None:
    """Raise :class:`RecordingError` where ``file`` is a link to nowhere, or stands for content that was not fetched.

    Also where its name is no UTF-8: neither an index nor a library could hold it.
    """
    if (name := printable(file.name)) != file.name:
        raise RecordingError("bad-encoding", f"{name}: the name of the file is no UTF-8, expected letters that are")
    try:
        with file.open("rb") as content:
            start = content.read(64)
    except FileNotFoundError:
        if isinstance(file, Path) and file.is_symlink():
            found = f"a link to {printable(os.readlink(file))}, which is absent"
            raise RecordingError("missing-file", f"{file.name}: {found}, expected the file itself") from None
        raise RecordingError("missing-file", f"{file.name}: no such file") from None
    except OSError as error:
        raise RecordingError("unreadable", f"{file.name}: cannot be opened ({error.strerror})") from None
    for pointer, system in _POINTERS.items():
        if start.startswith(pointer):
            raise RecordingError(
                "missing-file", f"{file.name}: a pointer of {system}, expected the content of the file"
            )


def require_inside(site: "Site", files: Iterable[Path]) -> None:
    """Raise :class:`RecordingError` (outside-dataset) for a file whose real place is outside of its site's folder.

    Where data lie decides under whose consent they are used. A link into the dataset's own annex stays inside; folders
    outside are read where ``trusted_link_targets`` names them.

    Args:
        site: with ``trusted`` None nothing is refused: somebody has named the file by hand.
        files: as the dataset, or a header in it, names them.
    """
    if site.trusted is None:
        return
    allowed = [real_folder(folder) for folder in (site.root, *site.trusted)]
    if site.label_image is not None:  # the configuration names it
        allowed.append(real_folder(site.label_image.parent))
    for file in files:
        is_link = file.is_symlink() or file.name == ".."
        place = file.resolve() if is_link else real_folder(file.parent) / file.name
        if not any(place.is_relative_to(folder) for folder in allowed):
            raise RecordingError(
                "outside-dataset",
                f"{file.name}: lies outside of its dataset, through a link or a name in a header; expected it below "
                "the dataset's folder, or its folder under trusted_link_targets",
            )


@lru_cache(maxsize=16)
def real_folder(folder: Path) -> Path:
    """``folder.resolve()``; asked for several times of one recording, before which its reader forgets what it knew."""
    return folder.resolve()


def read_json(file: Location) -> dict[str, Any]:
    """Read a JSON object; raise :class:`RecordingError`, a ``ValueError``, with one line naming the file."""
    try:
        content = parse_json(read_text(file))
    except RecordingError:
        raise
    except ValueError as error:
        raise RecordingError("invalid-json", f"{file.name}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise RecordingError("invalid-json", f"{file.name}: expected a JSON object, found {type(content).__name__}")
    return content


def read_tsv(file: Path, commas: bool = False) -> list[dict[str, str]]:
    """Rows of a BIDS table, without the cells that are empty or ``n/a``; raise :class:`RecordingError`, one line.

    ``commas``: of a ``.csv``, with quotes around cells that hold commas.
    """
    return _table(file, read_text(file), commas)[1]


def read_columns(file: Path, required: Sequence[str], repairs: list[str]) -> list[dict[str, str]]:
    """As :func:`read_tsv` of a table whose words are known: names of columns in lower case, and none may be absent.

    A table in Latin-1 is taken, with a line in ``repairs``: what it says is compared with names that are known.

    Raises:
        RecordingError: ``bad-table``, with the columns that were found.
    """
    try:
        text = read_text(file)
    except RecordingError as error:
        if error.reason != "bad-encoding" or file.read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise
        text = file.read_text(encoding="latin-1")
        repairs.append(f"{file.name}: not UTF-8, read as Latin-1")
    header, rows = _table(file, text)
    if not header:  # an empty file says nothing
        return []
    known = [str(name).strip().lower() for name in header]
    if absent := [name for name in required if name not in known]:
        raise RecordingError(
            "bad-table",
            f"{file.name}: no column {', '.join(absent)}, expected columns separated by tabs, found "
            f"{', '.join(repr(name) for name in header[:6])}",
        )
    return [{k.strip().lower(): v.strip() for k, v in row.items()} for row in rows]


def number_in(file: Path, number: int, row: dict[str, str], column: str, unknown: float = math.nan) -> float:
    """A cell as a number, ``unknown`` where it is empty; raise :class:`RecordingError` with file, row and cell."""
    text = row.get(column)
    if text is None:
        return unknown
    try:
        return float(text)
    except ValueError:
        found = f"row {number}, column {column}: {text[:40]!r}"
        comma = " with a decimal point" if "," in text else ""
        raise RecordingError("bad-table", f"{file.name}: {found}, expected a number{comma}") from None


def _table(file: Path, text: str, commas: bool = False) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows."""
    source = io.StringIO(text, newline="")
    reader = csv.DictReader(source) if commas else csv.DictReader(source, delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        header = list(reader.fieldnames or [])
        if twice := [name for i, name in enumerate(header) if name in header[:i]]:
            raise RecordingError("bad-table", f"{file.name}: column {twice[0]!r} twice, expected each name once")
        rows = []
        for number, row in enumerate(reader, 1):
            if any(row.pop(None, ())):  # a tab in a text: what follows it stands in other columns
                found = f"row {number} has more cells than the header"
                raise RecordingError("bad-table", f"{file.name}: {found}, expected {len(header)}")
            rows.append({k: v for k, v in row.items() if v not in (None, "", "n/a")})
        return header, rows
    except csv.Error as error:
        raise RecordingError("bad-table", f"{file.name}: cannot read the table ({error})") from None


def read_text(file: Location) -> str:
    """A text of a sane length in UTF-8; raise :class:`RecordingError`, one line."""
    require_content(file)
    try:
        if (n_bytes := file.stat().st_size) > MOST_BYTES:
            expected = f"expected a text of at most {MOST_BYTES:,} bytes"
            raise RecordingError("unreadable", f"{file.name}: {n_bytes:,} bytes, {expected}")
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RecordingError("unreadable", f"{file.name}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        found = f"line {line}: byte {error.start} is 0x{error.object[error.start]:02x}"
        raise RecordingError("bad-encoding", f"{file.name}: {found}, expected UTF-8") from None


def printable(name: str) -> str:
    """A file's name as text; bytes that are no UTF-8 as ``\\xe9``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


DESCRIPTION_NAME = "dataset_description.json"
_BIDS_VERSION = "1.10.0"
# Key of the site's file -> key in SourceDatasets.
_COPIED = {"Name": "Name", "License": "License", "DatasetDOI": "DOI", "DatasetVersion": "Version"}


def source_dataset(site: str, root: Path) -> dict[str, Any]:
    """What a site's ``dataset_description.json`` says of its origin; only the site's name where it says nothing."""
    try:
        given = read_json(root / DESCRIPTION_NAME)
    except ValueError:  # told elsewhere; a description is no reason to fail
        given = {}
    source: dict[str, Any] = {"Site": site}
    source |= {own: given[name] for name, own in _COPIED.items() if isinstance(given.get(name), str) and given[name]}
    links = given.get("ReferencesAndLinks")
    if isinstance(links, list):
        source["ReferencesAndLinks"] = [text for text in links if isinstance(text, str)]
    if given.get("Simulated") is True:
        source["Simulated"] = True
    return source


def read_sources(path: Any) -> dict[str, dict[str, Any]]:
    """What a corpus says of the origin of each site; empty where it says nothing."""
    file = path / DESCRIPTION_NAME
    found = read_json(file).get("SourceDatasets") if file.is_file() else []
    known = [source for source in found if isinstance(source, dict)] if isinstance(found, list) else []
    return {source["Site"]: source for source in known if isinstance(source.get("Site"), str)}


def terms_of(source: Mapping[str, Any]) -> str:
    """Licence and DOI of one of these, for a table of a Markdown file."""
    stated = [source.get("License") or "not stated", source.get("DOI")]
    return markdown(", ".join(text for text in stated if isinstance(text, str)))


def dataset_description(
    config: Mapping[str, Any], versions: Mapping[str, str], sources: Mapping[str, Path]
) -> dict[str, Any]:
    """The content of the file: a function of the configuration, the versions and the sites' own descriptions.

    Args:
        config: the resolved configuration, without what depends on the machine.
        versions: of the software that made the corpus.
        sources: folder of each site.
    """
    software = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()) if name != "mcsp")
    return {
        "Name": "MCSP corpus",
        "BIDSVersion": _BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [
            {
                "Name": "mcsp-pretraining",
                "Version": versions.get("mcsp", __version__),
                "Description": f"launchers/build_corpus.py, with {software}",
                "ConfigSHA256": sha256_json(config),
            }
        ],
        "SourceDatasets": [source_dataset(site, root) for site, root in sorted(sources.items())],
    }
