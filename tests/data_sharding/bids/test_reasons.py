"""The reasons: one table for the code, the documents and the people who read them."""

from pathlib import Path

import pytest

from mcsp.data_sharding.bids.reasons import REASONS, RecordingError, measurements, reading, reasons_page

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


@pytest.mark.parametrize(
    ("reason", "published"),
    {
        "too-short": "5.0 s, 10 s",
        "truncated": "570000 bytes",
        "sfreq-mismatch": "500 Hz, 250 Hz",
        "wrong-unit": "2e+04 uV, 0.1 to 5000 uV",
        "clipped": "5 of 8 channels",
        "parcels-mismatch": "200 columns, 190 parcels",
        "timeout": "900 s",
        "bad-table": "",
        "bad-name": "",
        "unreadable": "",
        "unsafe-file": "",
        "invalid-json": "",
    }.items(),
)
def test_of_a_line_its_measurements_are_published(reason: str, published: str) -> None:
    assert measurements(reason, REASONS[reason].example) == published


def test_no_name_cell_or_date_is_a_measurement() -> None:
    for text in (
        "Anna: 'born 1987 s'",
        "EEG (channel 1987 s) is odd",
        "2019-05-04",
        "MRN 123456",
        "12:34 s",
        "x1987 s",
    ):
        assert measurements("too-short", f"sub-1_eeg.edf: {text}") == "", text
