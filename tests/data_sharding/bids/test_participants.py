"""participants.tsv as sites write it: rows of sessions, ids without zeros, ids twice."""

from pathlib import Path

import pytest

from mcsp.data_sharding.bids.find import Participants, read_participants
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import Site
from mcsp.data_sharding.bids.write import write_tsv


def table(root: Path, columns: tuple[str, ...], *rows: tuple[object, ...]) -> Participants:
    write_tsv(root / "participants.tsv", columns, rows)
    return read_participants(Site("site", root, False, None))


def test_a_row_per_session_is_joined_by_session(tmp_path: Path) -> None:
    rows = [(f"sub-{s}", f"ses-{n}", d, "F") for s in ("01", "02", "3") for n, d in ((1, "MCI"), (2, "AD"))]
    people = table(tmp_path, ("participant_id", "session_id", "diagnosis", "sex"), *rows)
    assert [people.of("01", session)["diagnosis"] for session in ("1", "2")] == ["MCI", "AD"]
    assert people.of("03", "2")["diagnosis"] == "AD"  # sub-3, which is nobody else
    assert people.of("02") == {"participant_id": "sub-02", "sex": "F"}  # of both sessions
    assert people.of("04") == {}
    assert people.notes(["diagnosis"]) == [
        "participants.tsv: row taken sub-3 for sub-03", "participants.tsv: no row for sub-04",
    ]  # fmt: skip
    assert people.notes([]) == []  # nobody asked for a column


def test_zeros_are_no_doubt_only_where_one_row_is_meant(tmp_path: Path) -> None:
    people = table(tmp_path, ("participant_id", "group"), ("sub-1", "A"), ("sub-01", "B"), ("2", "C"))
    assert [people.of(s).get("group") for s in ("1", "01", "001", "2", "002")] == ["A", "B", None, "C", "C"]


def test_rows_that_contradict_each_other_are_told_and_not_taken(tmp_path: Path) -> None:
    rows = [("sub-1", "A", "F"), ("sub-1", "B", "F"), ("sub-2", "A", "M")]
    people = table(tmp_path, ("participant_id", "group", "sex"), *rows)
    assert people.of("1") == {"participant_id": "sub-1", "sex": "F"}
    assert people.of("2")["group"] == "A"
    assert people.notes(["group", "sex"]) == [
        "participants.tsv: rows contradict each other in group, which is not taken, of sub-1"
    ]


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (b"participant_id\tgroup\tparticipant_id\nsub-1\tA\t1\n", "bad-table", "column 'participant_id' twice"),
        (b"participant_id,group\nsub-1,A\n", "bad-table", "no column participant_id, expected it among 'participant_"),
        (b"participant_id\tgroup\nsub-1\tcaf\xe9\n", "bad-encoding", "line 2: byte 30 is 0xe9, expected UTF-8"),
        (b"/annex/objects/MD5E-s12--x.tsv\n", "missing-file", "a pointer of git-annex"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path: Path, content: bytes, reason: str, detail: str) -> None:
    (tmp_path / "participants.tsv").write_bytes(content)
    with pytest.raises(RecordingError, match=detail) as caught:
        read_participants(Site("site", tmp_path, False, None))
    assert caught.value.reason == reason and str(caught.value).startswith("participants.tsv: ")


def test_no_table_and_an_empty_one_have_no_rows(tmp_path: Path) -> None:
    site = Site("site", tmp_path, False, None)
    assert read_participants(site).rows == []
    (tmp_path / "participants.tsv").touch()
    assert read_participants(site).of("1") == {}


def test_three_of_many_are_named(tmp_path: Path) -> None:
    people = table(tmp_path, ("participant_id", "group"), ("sub-1", "A"))
    for subject in ("2", "3", "2", "4", "5", "6"):
        assert people.of(subject) == {}
    assert people.notes(["group"]) == ["participants.tsv: no row for sub-2, sub-3, sub-4 and 2 more"]


def test_rows_of_one_session_may_contradict_each_other_and_those_of_others_do_not_count(tmp_path: Path) -> None:
    rows = [
        ("sub-1", "ses-a", "x", "F"),
        ("sub-1", "a", "y", "F"),
        ("sub-1", "ses-b", "z", "F"),
        ("sub-2", "c", "w", "M"),
    ]
    people = table(tmp_path, ("participant_id", "session_id", "group", "sex"), *rows)
    assert people.of("1", "a") == {"participant_id": "sub-1", "sex": "F"}
    assert people.of("1", "b")["group"] == "z"
    assert people.of("2", "d")["group"] == "w", "of a session without a row, what all rows say"
    assert people.of("1", "d").get("group") is None
    assert people.notes(["group"]) == [
        "participants.tsv: rows contradict each other in group, which is not taken, of sub-1"
    ]
    assert people.notes(["sex"]) == [] and Participants().notes(["sex"]) == []


def test_without_a_session_rows_of_several_sessions_are_no_contradiction(tmp_path: Path) -> None:
    people = table(tmp_path, ("participant_id", "session_id", "group"), ("1", "a", "x"), (" sub-1 ", "b", "y"))
    assert "group" not in people.of("1") and people.notes(["group"]) == []
    assert people.of("1", "b")["group"] == "y"


def test_a_row_without_a_participant_is_nobodys(tmp_path: Path) -> None:
    people = table(tmp_path, ("participant_id", "group"), ("n/a", "A"), ("sub-x", "B"), ("007", "C"))
    assert len(people.rows) == 2 and people.of("x")["group"] == "B"
    assert people.of("7")["group"] == people.of("0007")["group"] == "C" and people.of("70") == {}
