"""The reasons: one table for the code, the documents and the people who read them."""

from pathlib import Path

import pytest

from mcsp.data_sharding.bids.reasons import REASONS, RecordingError, reading, reasons_page

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_is_made_of_the_table() -> None:
    page = (ROOT / "docs/reasons.md").read_text(encoding="utf-8")
    assert page == reasons_page(), "python -m mcsp.data_sharding.bids.reasons > docs/reasons.md"
    assert all(len(part) > 10 for reason in REASONS.values() for part in reason)
    assert "|" not in "".join(part for reason in REASONS.values() for part in reason)  # a cell of the table each
    for linking in ("corpus.md", "corpus-format.md"):
        assert "(reasons.md)" in (ROOT / "docs" / linking).read_text(encoding="utf-8")


class OwnError(Exception):
    """As the readers of some formats raise: no subclass of what Python itself raises."""


def test_whatever_a_reader_raises_is_told_with_the_file_and_without_the_folder(tmp_path: Path) -> None:
    expected = r"^a\.set: OwnError: sub-1/a\.set has 3 parts$"
    with pytest.raises(RecordingError, match=expected) as caught, reading(tmp_path, "a.set"):
        raise OwnError(f"{tmp_path}/sub-1/a.set\nhas  3 parts")
    assert caught.value.reason == "unreadable" and caught.value.remedy.startswith("open the file")
    with pytest.raises(MemoryError), reading(tmp_path, "a.set"):  # no fault of the file
        raise MemoryError
