"""The scanner's work grows with the length of a text, whatever it holds: steps are counted, not seconds.

``re`` does not tell how far it goes. So each pattern is taken apart by ``re``'s own parser and matched here, character
by character with the same order of attempts, and every attempt is a step.
"""

import random
import re
import re._constants as sre
import re._parser as parser
from collections.abc import Iterator
from typing import Any

import pytest

from mcsp.data_sharding.build import privacy
from tests.data_sharding.build.test_privacy import HARMLESS, PLANTED

PATTERNS = {**privacy._PATTERNS, "hash": privacy._HASH, "column": privacy._COLUMN, "reference": privacy._REFERENCE,
            "session": privacy._DATE_LABEL}  # fmt: skip
# What patterns begin with, go on with and stop at.
PARTS = [
    "a", "1", "9", "é", "-", ".", "/", "@", ":", " ", "\\", "_", "~", "19", "sub-", "jan", "1mar", "sn ", "10.1234/",
    "https://", "1.", "00:", "2001:", "age", "born ", "a@", "a.", "/a",
]  # fmt: skip
CATEGORIES = {
    sre.CATEGORY_DIGIT: str.isdecimal,
    sre.CATEGORY_NOT_DIGIT: lambda c: not c.isdecimal(),
    sre.CATEGORY_SPACE: str.isspace,
    sre.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
    sre.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
    sre.CATEGORY_NOT_WORD: lambda c: not (c.isalnum() or c == "_"),
}


class Counted:
    """Matches a pattern as ``re`` does, without its short cuts, and counts the attempts."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._tokens = parser.parse(pattern.pattern, pattern.flags)
        self._any_case = bool(pattern.flags & re.IGNORECASE)
        self.steps = 0

    def spans(self, text: str) -> list[tuple[int, int]]:
        self._text, self.steps = text, 0
        found, start = [], 0
        while start <= len(text):
            end = next((stop for stop, _ in self._sequence(list(self._tokens), 0, start, {})), None)
            if end is not None:
                found.append((start, end))
            start = max(end or 0, start + 1)
        return found

    def _sequence(self, tokens: list[Any], k: int, place: int, groups: dict[int, str]) -> Iterator[tuple[int, Any]]:
        if k == len(tokens):
            yield place, groups
            return
        for after, known in self._token(*tokens[k], place, groups):
            yield from self._sequence(tokens, k + 1, after, known)

    def _token(self, kind: Any, value: Any, place: int, groups: dict[int, str]) -> Iterator[tuple[int, Any]]:
        self.steps += 1
        if kind in (sre.LITERAL, sre.NOT_LITERAL, sre.IN, sre.ANY):
            if place < len(self._text) and self._fits(kind, value, self._text[place]):
                yield place + 1, groups
        elif kind is sre.BRANCH:
            for branch in value[1]:
                yield from self._sequence(list(branch), 0, place, groups)
        elif kind is sre.SUBPATTERN:
            for after, known in self._sequence(list(value[3]), 0, place, groups):
                yield after, known if value[0] is None else {**known, value[0]: self._text[place:after]}
        elif kind is sre.GROUPREF:
            if self._text[place : place + len(groups[value])].lower() == groups[value].lower():
                yield place + len(groups[value]), groups
        elif kind in (sre.ASSERT, sre.ASSERT_NOT):
            start = place - (value[1].getwidth()[0] if value[0] < 0 else 0)
            inside = start >= 0 and next(self._sequence(list(value[1]), 0, start, groups), None) is not None
            if inside == (kind is sre.ASSERT):
                yield place, groups
        elif kind is sre.AT:
            if self._at(value, place):
                yield place, groups
        elif kind is sre.MAX_REPEAT:
            yield from self._repeat(value[0], value[1], list(value[2]), place, groups)
        else:
            raise NotImplementedError(kind)

    def _repeat(self, low: int, high: Any, body: list[Any], place: int, groups: Any) -> Iterator[tuple[int, Any]]:
        most = len(self._text) + 1 if high is sre.MAXREPEAT else high
        if len(body) == 1 and body[0][0] in (sre.LITERAL, sre.NOT_LITERAL, sre.IN, sre.ANY):
            n = 0
            while n < most and place + n < len(self._text) and self._fits(*body[0], self._text[place + n]):
                n += 1
            self.steps += n
            for length in range(n, low - 1, -1):
                self.steps += 1
                yield place + length, groups
            return
        if most > 0:
            for after, known in self._sequence(body, 0, place, groups):
                if after > place:
                    rest = sre.MAXREPEAT if high is sre.MAXREPEAT else most - 1
                    yield from self._repeat(max(low - 1, 0), rest, body, after, known)
        if low == 0:
            yield place, groups

    def _fits(self, kind: Any, value: Any, letter: str) -> bool:
        if kind is sre.ANY:
            return letter != "\n"
        codes = {ord(form) for form in (letter, letter.lower(), letter.upper())} if self._any_case else {ord(letter)}
        if kind is not sre.IN:
            return (value in codes) == (kind is sre.LITERAL)
        negated = value[0][0] is sre.NEGATE
        for inner, what in value:
            if (
                (inner is sre.LITERAL and what in codes)
                or (inner is sre.RANGE and any(what[0] <= code <= what[1] for code in codes))
                or (inner is sre.CATEGORY and CATEGORIES[what](letter))
            ):
                return not negated
        return negated

    def _at(self, what: Any, place: int) -> bool:
        if what in (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING):
            return place == 0
        if what in (sre.AT_END, sre.AT_END_STRING):
            return place == len(self._text)
        word = CATEGORIES[sre.CATEGORY_WORD]
        sides = (place > 0 and word(self._text[place - 1]), place < len(self._text) and word(self._text[place]))
        return (sides[0] != sides[1]) == (what is sre.AT_BOUNDARY)


def growth(pattern: re.Pattern[str], unit: str, n: int = 300) -> float:
    """Steps for twice the length over steps for the length; 2 where work is linear, 4 where it is quadratic."""
    counted = Counted(pattern)
    steps = []
    for length in (n, 2 * n):
        counted.spans((unit * length)[:length])
        steps.append(counted.steps)
    return steps[1] / steps[0]


@pytest.mark.parametrize("name", PATTERNS)
def test_the_counter_matches_what_re_matches(name: str) -> None:
    pattern = PATTERNS[name]
    for text in [*(text for texts in PLANTED.values() for text in texts), *HARMLESS]:
        assert Counted(pattern).spans(text) == [m.span() for m in pattern.finditer(text)], text


@pytest.mark.parametrize("name", PATTERNS)
def test_twice_the_text_is_twice_the_work(name: str) -> None:
    draw = random.Random(name)
    units = [*PARTS, *("".join(draw.choices(PARTS, k=draw.randint(2, 3))) for _ in range(4))]
    worst = max((growth(PATTERNS[name], unit), unit) for unit in units)
    assert worst[0] < 2.6, f"{name}: work grows by {worst[0]:.2f} with {worst[1]!r}"


def test_the_count_tells_a_pattern_whose_work_is_quadratic() -> None:
    assert growth(re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), "a") > 3.5
    assert growth(re.compile(r"(?:a+b?)+c"), "ab", 12) > 3.5
