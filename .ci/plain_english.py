# /// script
# dependencies = ["pyphen==0.18.1"]
# ///
"""How hard the pages are to read: words and median sentence length of each page, and the ten hardest sentences.

uv run --script .ci/plain_english.py [FILES...]      default: README.md, CONTRIBUTING.md and docs/*.md

The grade is Flesch and Kincaid's: years of school in English. It warns; people decide. The status is always 0.
"""

import re
import sys
from pathlib import Path
from statistics import median

from pyphen import Pyphen

ROOT = Path(__file__).resolve().parents[1]
LONGEST_MEDIAN = 18  # words of a sentence
SYLLABLES = Pyphen(lang="en_US")


def prose(markdown: str) -> str:
    """The sentences of a page: no code, tables, headings or addresses; code in a line counts as one word."""
    text = re.sub(r"(?ms)^\s*(`{3,}|~~~|:{3,}).*?^\s*\1[^\n]*$", "\n\n", markdown)
    text = re.sub(r"(?s)<!--.*?-->|<[^>]+>", " ", text)
    lines = [line for line in text.splitlines() if not re.match(r"\s*(\||#|    \S)", line)]
    text = re.sub(r"`[^`]+`\S*", "code", "\n".join(lines))
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)(\{[^}]*\})?", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"(?m)^\s*([*+-]|\d+\.) +", "\n\n", text)
    return text.replace("*", "")


def sentences(text: str) -> list[str]:
    """Sentences of at least three words."""
    blocks = [" ".join(block.split()) for block in re.split(r"\n\s*\n", text)]
    parts = [part for block in blocks for part in re.split(r"(?<=[.?!:])\s+", block)]
    return [part for part in parts if len(part.split()) >= 3]


def grade(sentence: str) -> float:
    """Flesch and Kincaid's grade of one sentence (Kincaid et al., 1975)."""
    words = re.findall(r"[A-Za-z]+", sentence) or ["a"]
    syllables = sum(len(SYLLABLES.positions(word)) + 1 for word in words)
    return 0.39 * len(words) + 11.8 * syllables / len(words) - 15.59


def main() -> None:
    """Print the table of pages, then the hardest sentences."""
    files = [Path(name) for name in sys.argv[1:]]
    files = files or [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    hardest: list[tuple[float, str, str]] = []
    total = 0
    for file in files:
        words = len(file.read_text(encoding="utf-8").split())
        total += words
        found = sentences(prose(file.read_text(encoding="utf-8")))
        length = median(len(s.split()) for s in found) if found else 0
        warning = "  long sentences" if length > LONGEST_MEDIAN else ""
        print(f"{file.name:24s} {words:6d} words  median sentence {length:4.0f} words{warning}")
        hardest += [(grade(s), file.name, s) for s in found]
    print(f"{'all':24s} {total:6d} words\n\nThe hardest sentences (grade, page):")
    for years, name, sentence in sorted(hardest, reverse=True)[:10]:
        print(f"{years:5.1f}  {name}: {sentence}")


if __name__ == "__main__":
    main()
