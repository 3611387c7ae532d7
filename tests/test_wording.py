"""Lists, tables, names from outside and digests in messages."""

import hashlib
import html
import io
import re
from pathlib import Path

import markdown
import pytest

from mcsp.outside import sha256_file
from mcsp.wording import BOLD, CYAN, YELLOW, columns, counted, listed, printable, shortened, styled
from mcsp.wording import markdown as plain


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


def test_what_comes_from_outside_is_one_line_without_effect() -> None:
    assert printable("a\x1b[1mb\nc") == "a?[1mb?c"
    assert [shortened("abcdef", most) for most in (4, 5, 6, 7)] == ["abc…", "abcd…", "abcdef", "abcdef"]


def test_the_digest_is_that_of_the_whole_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000
    (tmp_path / "x").write_bytes(content)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_columns_stay_apart_and_nothing_moves_the_cursor() -> None:
    rows = [("site", "n"), ("a-long-name", "7"), ("b\x1b[2J\n", "12345")]
    assert columns(rows) == ["site         n", "a-long-name  7", "b?[2J?       12345"]
    assert columns(rows, right=1) == ["site             n", "a-long-name      7", "b?[2J?       12345"]


def test_counts_and_long_names() -> None:
    assert [counted(n, "site") for n in (0, 1, 2000)] == ["0 sites", "1 site", "2,000 sites"]
    assert (shortened("abcd", 4), shortened("abcde", 4)) == ("abcd", "abc…")


@pytest.mark.parametrize(("terminal", "variables", "shown"), [
    (True, {}, "\x1b[1mx\x1b[0m"), (False, {}, "x"), (True, {"NO_COLOR": "1"}, "x"),
    (True, {"NO_COLOR": ""}, "\x1b[1mx\x1b[0m"), (True, {"TERM": "dumb"}, "x"),
])  # fmt: skip
def test_bold_is_for_terminals_that_want_it(
    terminal: bool, variables: dict[str, str], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    assert styled("x", stream) == shown
    assert styled("x", stream, CYAN) == shown.replace("1m", "1;36m")


def test_markdown_of_somebody_else_is_words() -> None:
    attack = "[a](b) ![c](d)\n\n# e\n<b> | `f` *g* _h_ & \\ x"
    page = markdown.markdown(f"| x | y |\n|---|---|\n| {plain(attack)} | z |\n", extensions=["tables"])
    assert page.count("<td>") == 2 and not re.search("<(a|img|h1|b|code|em|strong)\\b", page)
    assert html.unescape(re.findall("<td>(.*)</td>", page)[0]) == " ".join(attack.split())


def test_marks_of_markdown_are_escaped_and_everything_else_stays() -> None:
    shown = r"""\!"\#\$%&amp;'\(\)\*+,-./0123456789:;&lt;=&gt;?@ABCDEFGHIJKLMNOPQRSTUVWXYZ\[\\\]^\_\`"""
    assert plain("".join(map(chr, range(32, 127)))) == shown + r"abcdefghijklmnopqrstuvwxyz\{\|\}\~"
    assert plain(" a \n\t b ") == "a b" and plain("ä\x07") == "ä?"


def test_columns_to_the_right_begin_where_they_are_said_to() -> None:
    rows = [["a", "b", "c"], ["aaa", "bbb", "ccc"]]
    assert columns(rows) == ["a    b    c", "aaa  bbb  ccc"]
    assert columns(rows, right=2) == ["a    b      c", "aaa  bbb  ccc"]
    assert columns(rows, right=0) == ["  a    b    c", "aaa  bbb  ccc"]


def test_codes_of_a_terminal() -> None:
    assert (BOLD, CYAN, YELLOW) == ("1", "1;36", "1;33")
