"""Lists and digests in messages."""

import hashlib
import io
from pathlib import Path

import pytest

from mcsp.wording import bold, columns, counted, listed, markdown, printable, sha256_file, shortened


@pytest.mark.parametrize(
    ("names", "most", "text"),
    [
        ([], 2, ""), (["a"], 2, "a"), (["a", "b"], 2, "a, b"), (["a", "b", "c"], 2, "a, b and 1 more"),
        (range(12), 8, "0, 1, 2, 3, 4, 5, 6, 7 and 4 more"), (range(9), 8, "0, 1, 2, 3, 4, 5, 6, 7 and 1 more"),
    ],
)  # fmt: skip
def test_a_list_says_how_many_it_leaves_out(names: list[str], most: int, text: str) -> None:
    assert listed(names, most) == text


def test_the_default_and_other_separators() -> None:
    assert listed(range(8)) == "0, 1, 2, 3, 4, 5, 6, 7" and listed(range(9)).endswith("7 and 1 more")
    assert listed((i for i in "abc"), separator="; ") == "a; b; c"


def test_counts_and_columns_are_aligned() -> None:
    assert [counted(n, "site") for n in (0, 1, 2, 2000)] == ["0 sites", "1 site", "2 sites", "2,000 sites"]
    rows = [["a", "1"], ["b\tb", "20"]]
    assert columns(rows) == ["a    1", "b?b  20"] and columns(rows, right=1) == ["a     1", "b?b  20"]


@pytest.mark.parametrize(
    ("no_color", "term", "terminal", "is_bold"),
    [("", "xterm", True, True), ("1", "xterm", True, False), ("", "dumb", True, False), ("", "xterm", False, False)],
)
def test_bold_needs_a_terminal_that_shows_it(
    no_color: str, term: str, terminal: bool, is_bold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", term)
    stream = io.StringIO()
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    assert bold("a", stream) == ("\x1b[1ma\x1b[0m" if is_bold else "a")


def test_what_comes_from_outside_is_one_line_without_effect() -> None:
    assert printable("a\x1b[1mb\nc") == "a?[1mb?c"
    assert markdown("[a](b)\n <i>") == r"\[a\]\(b\) &lt;i&gt;"
    assert [shortened("abcdef", most) for most in (4, 5, 6, 7)] == ["abc…", "abcd…", "abcdef", "abcdef"]


def test_the_digest_is_that_of_the_whole_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000
    (tmp_path / "x").write_bytes(content)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()
