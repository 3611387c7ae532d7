"""Sidecars and tables within limits: what is wrong is told with the file, the row and the cell, and costs itself."""

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from mcsp.data_sharding.bids import tables
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import Site
from mcsp.data_sharding.bids.tables import (
    number_in,
    printable,
    read_columns,
    read_json,
    read_tsv,
    require_content,
    require_inside,
)


def refusal(read: object, *arguments: object) -> tuple[str, str]:
    with pytest.raises(RecordingError) as caught:
        read(*arguments)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    return caught.value.reason, str(caught.value)


def test_json_that_no_memory_or_stack_can_hold(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text("[" * 100_000)
    assert refusal(read_json, file)[0] == "invalid-json"
    file.write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    assert refusal(read_json, file) == ("invalid-json", "x.json: not valid JSON (nested too deep)")
    with open(file, "wb") as sparse:
        sparse.truncate(100 * 10**9)
    reason, text = refusal(read_json, file)
    assert reason == "unreadable" and text.startswith("x.json: 100,000,000,000 bytes, expected a text of at most")
    assert refusal(read_tsv, file)[0] == "unreadable"


def test_links_and_pointers_are_no_content(tmp_path: Path) -> None:
    link = tmp_path / "x.json"
    link.symlink_to("../.git/annex/objects/a/b")
    assert refusal(read_json, link) == (
        "missing-file", "x.json: a link to ../.git/annex/objects/a/b, which is absent, expected the file itself",
    )  # fmt: skip
    link.unlink()
    link.symlink_to(link.name)
    assert refusal(require_content, link)[0] == "unreadable"
    assert refusal(require_content, tmp_path / "none") == ("missing-file", "none: no such file")
    bytes_name = Path(os.fsdecode(os.fsencode(tmp_path) + b"/t\xe9.tsv"))
    bytes_name.touch()
    assert refusal(require_content, bytes_name)[0] == "bad-encoding"
    assert printable(bytes_name.name) == "t\\xe9.tsv"


def test_files_lie_where_their_links_and_dots_lead(tmp_path: Path) -> None:
    root = tmp_path / "site"
    (root / "sub-1" / "func").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.tsv").touch()
    own = root / "sub-1" / "func" / "x.tsv"
    own.touch()
    (root / "again.tsv").symlink_to(own)
    (root / "sub-2").symlink_to(root / "sub-1")
    (root / "away.tsv").symlink_to(tmp_path / "elsewhere" / "x.tsv")
    (root / "sub-3").symlink_to(tmp_path / "elsewhere")
    site = Site("site", root, False, None, trusted=())
    require_inside(site, [own, root / "again.tsv", root / "sub-2" / "func" / "x.tsv", root / "none.tsv", root])
    outside = ["away.tsv", "sub-3/x.tsv", "..", "../elsewhere/x.tsv", "sub-1/../../elsewhere/x.tsv", "sub-3"]
    for name in outside:
        assert refusal(require_inside, site, [own, root / name])[0] == "outside-dataset", name
    trusting = replace(site, trusted=(tmp_path / "elsewhere",))
    require_inside(trusting, [root / "away.tsv", root / "sub-3" / "x.tsv", root / ".." / "elsewhere" / "x.tsv"])


def test_columns_are_found_in_any_case_and_their_absence_is_told(tmp_path: Path) -> None:
    file, repairs = tmp_path / "x.tsv", list[str]()
    file.write_text("\ufeffName\t X \nCz\t1.5\nPz\tn/a\n", encoding="utf-8")
    rows = read_columns(file, ("name", "x"), repairs)
    assert rows == [{"name": "Cz", "x": "1.5"}, {"name": "Pz"}] and repairs == []
    assert number_in(file, 1, rows[0], "x") == 1.5 and math.isnan(number_in(file, 2, rows[1], "x"))
    assert refusal(number_in, file, 2, {"x": "1,5"}, "x") == (
        "bad-table", "x.tsv: row 2, column x: '1,5', expected a number with a decimal point",
    )  # fmt: skip
    assert refusal(read_columns, file, ("name", "y"), repairs)[1] == (
        "x.tsv: no column y, expected columns separated by tabs, found 'Name', ' X '"
    )
    file.write_bytes("name\tx\n\u00d6\t1\n".encode("latin-1"))
    assert read_columns(file, ("name",), repairs) == [{"name": "\u00d6", "x": "1"}]
    assert repairs == ["x.tsv: not UTF-8, read as Latin-1"]
    assert refusal(read_tsv, file) == ("bad-encoding", "x.tsv: line 2: byte 7 is 0xd6, expected UTF-8")
    file.write_bytes("name\tx\n".encode("utf-16"))
    assert refusal(read_columns, file, ("name",), repairs)[0] == "bad-encoding"


def test_a_tab_in_a_text_is_told_for_it_moves_what_follows(tmp_path: Path) -> None:
    file = tmp_path / "x.tsv"
    file.write_text("name\tnote\tstatus\nCz\ta\tgood\t\nPz\ta\tb\tbad\n")
    assert refusal(read_tsv, file) == ("bad-table", "x.tsv: row 2 has more cells than the header, expected 3")


def test_a_text_of_exactly_the_most_bytes_is_read_and_one_byte_more_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tables.MOST_BYTES == 268_435_456
    monkeypatch.setattr(tables, "MOST_BYTES", 20)
    file = tmp_path / "x.tsv"
    file.write_bytes(b"name\tx\nCz\t" + 10 * b"1")
    assert len(read_tsv(file)) == 1
    file.write_bytes(b"name\tx\nCz\t" + 11 * b"1")
    assert refusal(read_tsv, file)[1] == "x.tsv: 21 bytes, expected a text of at most 20 bytes"


def test_only_files_of_the_dataset_and_of_folders_that_are_trusted_may_be_read(tmp_path: Path) -> None:
    """A label image that the configuration names is one, with what lies beside it."""
    root, vault, atlases = (tmp_path / name for name in ("site", "vault", "atlases"))
    for folder in (root, vault, atlases):
        folder.mkdir()
        (folder / "x.edf").write_bytes(b"x")
    (root / "link.edf").symlink_to("../vault/x.edf")
    own, link = [root / "x.edf"], [root / "x.edf", root / "link.edf"]
    strict = Site("s", root, False, None, trusted=())
    require_inside(strict, own)
    assert refusal(require_inside, strict, link)[0] == "outside-dataset"
    require_inside(Site("s", root, False, None, trusted=(vault,)), link)
    require_inside(Site("s", root, False, atlases / "a.nii.gz", trusted=()), [atlases / "x.edf"])
    assert refusal(require_inside, strict, [atlases / "x.edf"])[0] == "outside-dataset"
    require_inside(Site("s", root, False, None), link)  # by hand


def test_what_is_wrong_with_a_cell_is_shown_by_its_beginning(tmp_path: Path) -> None:
    file = tmp_path / "x.tsv"
    expected = f"x.tsv: row 3, column x: {'a' * 40!r}, expected a number"
    assert refusal(number_in, file, 3, {"x": "a" * 50}, "x") == ("bad-table", expected)
    assert number_in(file, 3, {}, "x", 0.0) == 0.0 and number_in(file, 3, {"x": " 1e3 "}, "x") == 1000.0
    file.write_text("a\tb\ta\n1\t2\t3\n")
    assert refusal(read_tsv, file)[1] == "x.tsv: column 'a' twice, expected each name once"


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a\tb\n1\tn/a\n\t2\n", [{"a": "1"}, {"b": "2"}]), ("a\tb\n1\n", [{"a": "1"}]),
        ("a\tb\n1\t2\t\t\n", [{"a": "1", "b": "2"}]), ('a\tb\n"x\t y"\n', [{"a": '"x', "b": ' y"'}]),
        ("a\tb\r\n1\t2\r\n", [{"a": "1", "b": "2"}]), ("a\n", []), ("", []),
    ],
)  # fmt: skip
def test_cells_are_those_of_their_columns_as_they_were_written(
    tmp_path: Path, text: str, rows: list[dict[str, str]]
) -> None:
    file = tmp_path / "x.tsv"
    file.write_bytes(text.encode())
    assert read_tsv(file) == rows
    assert read_columns(file, (), []) == [{k: v.strip() for k, v in row.items()} for row in rows]


@pytest.mark.parametrize(("content", "kind"), [("[1]", "list"), ("3", "int"), ('"x"', "str"), ("null", "NoneType")])
def test_a_sidecar_is_an_object(tmp_path: Path, content: str, kind: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(content)
    assert refusal(read_json, file) == ("invalid-json", f"x.json: expected a JSON object, found {kind}")
    file.write_text('\ufeff{"a": 1}', encoding="utf-8")
    assert read_json(file) == {"a": 1}
