"""Lists and digests in messages."""

import hashlib
from pathlib import Path

import pytest

from mcsp.wording import listed, sha256_file


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


def test_the_digest_is_that_of_the_whole_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000
    (tmp_path / "x").write_bytes(content)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()
