"""Re-read a corpus and print everything that is not as its index says: ``lint_corpus.py DIR [--privacy]``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mcsp.data_sharding.build.identifiers import find_identifiers_in_corpus
from mcsp.data_sharding.build.privacy import name_words
from mcsp.data_sharding.inspect.lint import lint_corpus
from mcsp.data_sharding.store.files import location
from mcsp.data_sharding.store.index import read_index


def main(argv: Sequence[str] | None = None) -> int:
    """Status 0 where the corpus is sound, 1 after a line for every lie, 2 where there is no readable corpus."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "corpus_dir", metavar="DIR", help="a corpus that build_corpus wrote, a folder or a URL like s3://..."
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that read shards (default: 1)")
    parser.add_argument(
        "--privacy",
        action="store_true",
        help="look for dates, names, record numbers, e-mail addresses, paths",
    )
    parser.add_argument("--names", type=Path, metavar="FILE", help="with --privacy: people's names, one per line")
    arguments = parser.parse_args(argv)
    if arguments.workers < 1 or (arguments.names and not arguments.privacy):
        parser.error("--workers must be 1 or more, and --names goes with --privacy")
    try:
        path = location(arguments.corpus_dir)
        if arguments.privacy:
            names = arguments.names.read_text(encoding="utf-8").splitlines() if arguments.names else []
            lies = find_identifiers_in_corpus(path, name_words(names), arguments.workers)
        else:
            lies = lint_corpus(path, arguments.workers)
        counts = read_index(path)["totals"]["all"]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for lie in lies:
        print(lie)
    summary = f"{counts['samples']} samples, {counts['recordings']} recordings, {counts['hours']:.2f} h"
    noun, good = ("finding", "nothing found that may identify a person") if arguments.privacy else ("lie", "sound")
    bad = f"{len(lies)} {noun}{'' if len(lies) == 1 else 's'}"
    print(f"{arguments.corpus_dir}: {bad if lies else good} ({summary})")
    return 1 if lies else 0


if __name__ == "__main__":
    raise SystemExit(main())
