"""Re-read a corpus and print everything that is not as its index says: ``lint_corpus.py DIR``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mcsp.data_sharding.index import read_index
from mcsp.data_sharding.lint import lint_corpus


def main(argv: Sequence[str] | None = None) -> int:
    """Status 0 where the corpus is sound, 1 after a line for every lie, 2 where there is no readable corpus."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus_dir", type=Path, metavar="DIR", help="a corpus that build_corpus wrote")
    arguments = parser.parse_args(argv)
    try:
        lies = lint_corpus(arguments.corpus_dir)
        counts = read_index(arguments.corpus_dir)["totals"]["all"]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for lie in lies:
        print(lie)
    summary = f"{counts['samples']} samples, {counts['recordings']} recordings, {counts['hours']:.2f} h"
    print(f"{arguments.corpus_dir}: {f'{len(lies)} lies' if lies else 'sound'} ({summary})")
    return 1 if lies else 0


if __name__ == "__main__":
    raise SystemExit(main())
